//! Writing, finding and checking the checkpoints of a run.

use std::collections::BTreeMap;

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use serde::{Deserialize, Serialize};
use zipper_types::{Advised, Generation, Step};

use crate::error::ErrorKind;
use crate::layout;
use crate::manifest::{Manifest, PartRecord};
use crate::store::{ObjectInfo, PARALLEL, RunStore};
use crate::{CheckpointError, Result};

/// How often the newest checkpoint is looked for when one was removed while it was read.
const LOOKS: u32 = 5;

/// From which size on a part's checksum is computed apart from other work.
const LARGE: usize = 1 << 20;

/// The checkpoints of one run.
#[derive(Clone)]
pub struct Checkpoints {
    pub(crate) run: RunStore,
}

/// A checkpoint with a readable manifest. Its parts have not been read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckpointSummary {
    /// `step-00000500`.
    pub id: String,
    /// Its manifest.
    pub manifest: Manifest,
}

/// Objects of a checkpoint that was never published: the writer ended before the manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leftover {
    /// The step it would have been of.
    pub step: Step,
    /// How many objects there are.
    pub num_objects: usize,
    /// Their size in bytes.
    pub bytes: u64,
}

/// Everything in the checkpoints directory, each list sorted by step.
#[derive(Debug)]
pub struct CheckpointList {
    /// Those with a readable manifest.
    pub checkpoints: Vec<CheckpointSummary>,
    /// Those whose manifest is there but cannot be read.
    pub unreadable: Vec<(Step, CheckpointError)>,
    /// Those without a manifest, which are no checkpoints.
    pub leftovers: Vec<Leftover>,
}

/// Which generation uses the plain names of a checkpoint's folder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Writer {
    generation: Generation,
}

/// The checkpoint to go on from.
#[derive(Debug)]
pub struct LatestReadable {
    /// The newest one of which every byte is right, if there is one.
    pub manifest: Option<Manifest>,
    /// Newer ones that were passed over, newest first, with the first damage found in each.
    pub damaged: Vec<(Step, CheckpointError)>,
}

impl Checkpoints {
    pub(crate) fn new(run: RunStore) -> Self {
        Self { run }
    }

    /// Claims the folder of the checkpoint after `step` steps for `generation`, and returns the prefix of the objects that it may
    /// write: empty for the first claimant, `generation-4/` for any other. So no two generations ever write the same object,
    /// however late one of them wakes up (`CKPT-3`).
    ///
    /// # Errors
    /// As [`RunStore::put_create`] and [`RunStore::get`]; [`ErrorKind::AlreadyExists`] only if the store refuses, time and again, to
    /// create what is not there.
    pub async fn begin(&self, step: Step, generation: Generation) -> Result<String> {
        let path = part_path(step, layout::WRITER);
        let claim = Writer { generation };
        let json = serde_json::to_vec(&claim).expect("a claim has only a number");
        let there = self.run.create_or_get(&path, json.into()).await?;
        // What cannot be read was not written by this generation.
        let ours = there
            .is_none_or(|bytes| serde_json::from_slice(&bytes).is_ok_and(|writer: Writer| writer == claim));
        Ok(if ours {
            String::new()
        } else {
            layout::generation_prefix(generation)
        })
    }

    /// Whether the checkpoint after `step` steps exists.
    ///
    /// # Errors
    /// As [`RunStore::exists`].
    pub async fn is_published(&self, step: Step) -> Result<bool> {
        self.run.exists(&manifest_path(step)).await
    }

    /// Writes one part of the checkpoint after `step` steps, under the `prefix` that [`Checkpoints::begin`] gave.
    ///
    /// `path` is relative to the checkpoint: `banks/de.safetensors`. The part does not count before
    /// [`Checkpoints::publish`]. Writing it again replaces it. A large part is uploaded in pieces, several at a time.
    ///
    /// # Errors
    /// [`ErrorKind::Io`], [`ErrorKind::Full`], [`ErrorKind::Denied`]; [`ErrorKind::Config`] for a path that cannot be a part's.
    pub async fn put_part(&self, step: Step, prefix: &str, path: &str, bytes: Bytes) -> Result<PartRecord> {
        if layout::is_own(path) {
            let problem = "it is the checkpoint's own, and no part".to_owned();
            return Err(CheckpointError::Path {
                path: path.to_owned(),
                problem,
            });
        }
        let mut record = describe(path, &bytes).await;
        record.object = (!prefix.is_empty()).then(|| format!("{prefix}{path}"));
        self.run
            .put_large(&part_path(step, record.object()), bytes)
            .await?;
        Ok(record)
    }

    /// Makes the checkpoint exist, by writing its manifest (`CKPT-1`).
    ///
    /// Publishing the same manifest again is not an error, so a caller that does not know whether it succeeded can
    /// repeat it.
    ///
    /// # Errors
    /// [`ErrorKind::Damaged`] when a part is missing or has another size, [`ErrorKind::AlreadyExists`] when another
    /// manifest is there, [`ErrorKind::Config`] when the list of parts cannot be one.
    pub async fn publish(&self, manifest: &Manifest) -> Result<()> {
        if let Some((path, problem)) = manifest.bad_part() {
            return Err(CheckpointError::Path {
                path: path.to_owned(),
                problem: problem.to_owned(),
            });
        }
        self.check_sizes(manifest).await?;
        let path = manifest_path(manifest.step);
        if let Some(there) = self.run.create_or_get(&path, manifest.to_bytes()).await? {
            let object = self.run.object_url(&path);
            if Manifest::from_bytes(manifest.step, &object, &there)? == *manifest {
                return Ok(());
            }
            let detail = " and describes another checkpoint";
            return Err(CheckpointError::AlreadyExists { object, detail });
        }
        // A writer that was stopped before that request and has lost the run meanwhile may find its parts collected.
        let still = self.check_sizes(manifest).await;
        if matches!(&still, Err(error) if error.kind() == ErrorKind::Damaged) {
            self.run.delete(&path).await?;
        }
        still
    }

    async fn check_sizes(&self, manifest: &Manifest) -> Result<()> {
        let directory = layout::checkpoint_dir(manifest.step);
        let objects = self.run.list_with_sizes(&directory).await?;
        let sizes: BTreeMap<&str, u64> = objects
            .iter()
            .map(|object| (object.path.as_str(), object.bytes))
            .collect();
        for part in &manifest.parts {
            let path = part_path(manifest.step, part.object());
            let found = match sizes.get(path.as_str()) {
                Some(&bytes) if bytes == part.bytes => continue,
                Some(bytes) => format!("{bytes} bytes"),
                None => "no object".to_owned(),
            };
            let expected = format!("{} bytes", part.bytes);
            return Err(CheckpointError::Damaged {
                object: self.run.object_url(&path),
                expected,
                found,
            });
        }
        Ok(())
    }

    /// What is in the checkpoints directory. Reads the manifests and no parts.
    ///
    /// # Errors
    /// As [`RunStore::list`]; what a manifest has wrong is in the list.
    pub async fn list(&self) -> Result<CheckpointList> {
        let mut list = CheckpointList {
            checkpoints: Vec::new(),
            unreadable: Vec::new(),
            leftovers: Vec::new(),
        };
        for (step, objects) in self.directories().await? {
            if !has_manifest(step, &objects) {
                if is_only_claimed(step, &objects) {
                    continue;
                }
                let bytes = objects.iter().map(|object| object.bytes).sum();
                list.leftovers.push(Leftover {
                    step,
                    num_objects: objects.len(),
                    bytes,
                });
                continue;
            }
            match self.load_manifest(step).await {
                Ok(manifest) => {
                    list.checkpoints.push(CheckpointSummary {
                        id: layout::checkpoint_id(step),
                        manifest,
                    });
                }
                Err(error) if error.is_retryable() => return Err(error),
                // It was retired while we looked.
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) => list.unreadable.push((step, error)),
            }
        }
        Ok(list)
    }

    /// The step of the newest checkpoint, which has not been read.
    ///
    /// # Errors
    /// As [`RunStore::list`].
    pub async fn latest(&self) -> Result<Option<Step>> {
        Ok(self.published().await?.pop())
    }

    /// Reads the manifest of the checkpoint after `step` steps.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] when there is no such checkpoint, [`ErrorKind::Config`] when a newer version of Zipper
    /// wrote it, [`ErrorKind::Damaged`] when it is not a manifest.
    pub async fn load_manifest(&self, step: Step) -> Result<Manifest> {
        let path = manifest_path(step);
        let bytes = self.run.get(&path).await?;
        Manifest::from_bytes(step, &self.run.object_url(&path), &bytes)
    }

    /// Reads one part and checks every byte of it (`CKPT-2`). What is not right is read a second time before it counts as
    /// damaged, because damage on the way is not damage in the store.
    ///
    /// # Errors
    /// [`ErrorKind::Damaged`] when it is missing or not what was written; the message names the object.
    pub async fn read_part(&self, step: Step, part: &PartRecord) -> Result<Bytes> {
        match self.try_read_part(step, part).await {
            Err(error) if error.kind() == ErrorKind::Damaged => {
                tracing::warn!("{error}; it is read again");
                self.try_read_part(step, part).await
            }
            result => result,
        }
    }

    /// The bytes of several parts, verified, in their order. A few are read at the same time.
    ///
    /// # Errors
    /// Those of [`Checkpoints::read_part`].
    pub async fn read_parts(&self, step: Step, parts: &[&PartRecord]) -> Result<Vec<Bytes>> {
        stream::iter(parts)
            .map(|part| self.read_part(step, part))
            .buffered(PARALLEL)
            .try_collect()
            .await
    }

    async fn try_read_part(&self, step: Step, part: &PartRecord) -> Result<Bytes> {
        let path = part_path(step, part.object());
        match self.run.get_sized(&path, part.bytes).await {
            Ok(bytes) => {
                let found = describe(&part.path, &bytes).await;
                part.check(self.run.object_url(&path), &found)?;
                Ok(bytes)
            }
            Err(CheckpointError::NotFound { object }) => {
                let (expected, found) = (format!("{} bytes", part.bytes), "no object".to_owned());
                Err(CheckpointError::Damaged {
                    object,
                    expected,
                    found,
                })
            }
            Err(error) => Err(error),
        }
    }

    /// Reads and checks every byte of the checkpoint after `step` steps, and returns its manifest.
    ///
    /// # Errors
    /// As [`Checkpoints::load_manifest`] and [`Checkpoints::read_part`], for the first part that is not right.
    /// [`ErrorKind::NotFound`], too, when it was removed meanwhile.
    pub async fn verify(&self, step: Step) -> Result<Manifest> {
        let manifest = self.load_manifest(step).await?;
        let parts = stream::iter(manifest.parts.clone())
            .map(async |part: PartRecord| self.read_part(step, &part).await)
            .buffered(PARALLEL)
            .try_for_each(async |_| Ok(()))
            .await;
        match parts {
            // It was retired while we read: the manifest goes first.
            Err(error) if error.kind() == ErrorKind::Damaged && !self.is_published(step).await? => {
                let object = self.run.object_url(&manifest_path(step));
                Err(CheckpointError::NotFound { object })
            }
            parts => parts.map(|()| manifest),
        }
    }

    /// The newest checkpoint of which every byte is right, and the newer ones that are damaged. When one is removed while it is read,
    /// the newest is looked for again.
    ///
    /// # Errors
    /// Only damage is passed over. A store that cannot be read ([`ErrorKind::is_retryable`]) or a manifest of a newer version
    /// of Zipper ([`ErrorKind::Config`]) is an error: going back to an older checkpoint would throw work away.
    pub async fn latest_readable(&self) -> Result<LatestReadable> {
        let mut looks = 1;
        loop {
            match self.look_for_latest().await {
                // Retired while we looked: so there is a newer one, which was not in the list.
                Err(error) if error.kind() == ErrorKind::NotFound && looks < LOOKS => looks += 1,
                found => return found,
            }
        }
    }

    /// As [`Checkpoints::latest_readable`], and [`ErrorKind::NotFound`] when one was removed meanwhile.
    async fn look_for_latest(&self) -> Result<LatestReadable> {
        let mut damaged = Vec::new();
        for step in self.published().await?.into_iter().rev() {
            match self.verify(step).await {
                Ok(manifest) => {
                    return Ok(LatestReadable {
                        manifest: Some(manifest),
                        damaged,
                    });
                }
                Err(error) if error.kind() == ErrorKind::Damaged => damaged.push((step, error)),
                Err(error) => return Err(error),
            }
        }
        Ok(LatestReadable {
            manifest: None,
            damaged,
        })
    }

    /// The objects in the checkpoints directory, by step.
    pub(crate) async fn directories(&self) -> Result<BTreeMap<Step, Vec<ObjectInfo>>> {
        let mut directories: BTreeMap<Step, Vec<ObjectInfo>> = BTreeMap::new();
        for object in self.run.list_with_sizes(layout::CHECKPOINTS).await? {
            let step = object.path.split('/').nth(1).and_then(layout::step_of_id);
            if let Some(step) = step {
                directories.entry(step).or_default().push(object);
            }
        }
        Ok(directories)
    }

    /// The steps that have a manifest, sorted.
    async fn published(&self) -> Result<Vec<Step>> {
        let directories = self.directories().await?;
        Ok(directories
            .iter()
            .filter(|(step, objects)| has_manifest(**step, objects))
            .map(|(step, _)| *step)
            .collect())
    }
}

pub(crate) fn part_path(step: Step, part: &str) -> String {
    format!("{}/{part}", layout::checkpoint_dir(step))
}

pub(crate) fn manifest_path(step: Step) -> String {
    part_path(step, layout::MANIFEST)
}

pub(crate) fn has_manifest(step: Step, objects: &[ObjectInfo]) -> bool {
    let manifest = manifest_path(step);
    objects.iter().any(|object| object.path == manifest)
}

/// Nothing is there but the claim of a writer: what stays of a checkpoint that was removed.
fn is_only_claimed(step: Step, objects: &[ObjectInfo]) -> bool {
    let writer = part_path(step, layout::WRITER);
    objects.iter().all(|object| object.path == writer)
}

/// The part at `path`, its checksum computed where it keeps nobody waiting.
async fn describe(path: &str, bytes: &Bytes) -> PartRecord {
    if bytes.len() < LARGE {
        return PartRecord::of(path, bytes);
    }
    let (path, bytes) = (path.to_owned(), bytes.clone());
    tokio::task::spawn_blocking(move || PartRecord::of(&path, &bytes))
        .await
        .expect("a checksum cannot panic")
}
