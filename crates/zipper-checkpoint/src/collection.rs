//! Deleting: checkpoints that are retired, and what was left of those that were never finished.

use std::collections::BTreeSet;

use zipper_types::{Advised, Step};

use crate::checkpoints::{Checkpoints, has_manifest, manifest_path, part_path};
use crate::store::ObjectInfo;
use crate::{Result, folder, layout};

/// What was deleted of checkpoints that were never published.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Collected {
    /// The steps they are of, or would have been of.
    pub steps: Vec<Step>,
    /// How many objects.
    pub objects: usize,
    /// Their size in bytes.
    pub bytes: u64,
    /// Interrupted uploads.
    pub uploads: usize,
}

impl Checkpoints {
    /// Deletes a checkpoint or a leftover, manifest first, so that it is never half there. What is not there counts as
    /// deleted. A run that goes on from before a damaged checkpoint has to remove it to write that step again.
    ///
    /// The claim on the folder stays (`CKPT-3`): who writes this step again gets other names than a writer that was cut off and
    /// comes back. [`Checkpoints::collect`] takes it when the step is far behind.
    ///
    /// # Errors
    /// [`crate::ErrorKind::is_retryable`]: what was deleted stays deleted, and this can be repeated.
    pub async fn remove(&self, step: Step) -> Result<()> {
        self.run.delete(&manifest_path(step)).await?;
        let claim = part_path(step, layout::WRITER);
        let mut parts = self.run.list(&layout::checkpoint_dir(step)).await?;
        parts.retain(|path| *path != claim);
        self.run.delete_all(&parts).await?;
        self.prune(step);
        Ok(())
    }

    /// Deletes what was left up to the checkpoint `newest`: folders that were never published, objects in published ones that
    /// belong to an attempt of another generation, and interrupted uploads. Attempts at later steps may be under way and stay.
    ///
    /// Nothing is deleted if `newest` is not published.
    ///
    /// # Errors
    /// [`crate::ErrorKind::is_retryable`]: what was deleted stays deleted, and this can be repeated.
    pub async fn collect(&self, newest: Step) -> Result<Collected> {
        let mut collected = Collected::default();
        let directories = self.directories().await?;
        if !directories
            .get(&newest)
            .is_some_and(|objects| has_manifest(newest, objects))
        {
            return Ok(collected);
        }
        let over = |path: &str| step_of_path(path).is_some_and(|step| step <= newest);
        collected.uploads = self.run.collect_uploads(over).await?;
        for (&step, objects) in directories.range(..=newest) {
            let claim = part_path(step, layout::WRITER);
            let published = has_manifest(step, objects);
            let leftovers = if published {
                self.unlisted(step, objects).await?
            } else {
                objects.iter().filter(|object| object.path != claim).collect()
            };
            let paths: Vec<&str> = leftovers.iter().map(|object| object.path.as_str()).collect();
            self.run.delete_all(&paths).await?;
            if !leftovers.is_empty() {
                collected.steps.push(step);
                collected.objects += leftovers.len();
                collected.bytes += leftovers.iter().map(|object| object.bytes).sum::<u64>();
            }
            if !published {
                // Last: while anything is there, nobody else gets its name.
                self.run.delete(&claim).await?;
                self.prune(step);
            }
        }
        Ok(collected)
    }

    /// The objects in the folder of a published checkpoint that are not its own. There can only be some where two generations
    /// have written: then one of them has a prefix.
    async fn unlisted<'a>(&self, step: Step, objects: &'a [ObjectInfo]) -> Result<Vec<&'a ObjectInfo>> {
        let prefixed = part_path(step, layout::GENERATION_PREFIX);
        if !objects.iter().any(|object| object.path.starts_with(&prefixed)) {
            return Ok(Vec::new());
        }
        let manifest = match self.load_manifest(step).await {
            Ok(manifest) => manifest,
            Err(error) if error.is_retryable() => return Err(error),
            // What belongs to a manifest that cannot be read is not known.
            Err(_) => return Ok(Vec::new()),
        };
        let mut own: BTreeSet<String> = manifest
            .parts
            .iter()
            .map(|part| part_path(step, part.object()))
            .collect();
        own.extend([manifest_path(step), part_path(step, layout::WRITER)]);
        let unlisted = objects.iter().filter(|object| !own.contains(&object.path));
        Ok(unlisted.collect())
    }

    /// Where the run is a folder, folders without files go, too.
    fn prune(&self, step: Step) {
        if let Some(run) = &self.run.place().folder {
            folder::prune(&run.join(layout::checkpoint_dir(step)));
        }
    }
}

fn step_of_path(path: &str) -> Option<Step> {
    let inside = path.strip_prefix(layout::CHECKPOINTS)?.strip_prefix('/')?;
    layout::step_of_id(inside.split('/').next()?)
}
