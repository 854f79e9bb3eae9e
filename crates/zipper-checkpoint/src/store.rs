//! A run's objects, by their path under the run URL.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use object_store::memory::InMemory;
use object_store::multipart::MultipartStore;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt, PutMode};

use crate::checkpoints::Checkpoints;
use crate::journal::Journal;
use crate::location::{Location, resolve};
use crate::options::{Environment, StoreOptions};
use crate::usage::{Meter, StoreUsage};
use crate::{CheckpointError, ErrorKind, Result};

/// How many objects or pieces of one are read, written or deleted at the same time.
pub(crate) const PARALLEL: usize = 4;

/// How often a creation is repeated that was refused although nothing is there, and after which pause.
const CREATIONS: u32 = 10;
const BETWEEN_CREATIONS: Duration = Duration::from_millis(200);

/// The place where one run keeps everything. Cheap to clone.
#[derive(Clone)]
pub struct RunStore {
    place: Arc<Place>,
}

/// What clones share.
struct Place {
    location: Location,
    options: StoreOptions,
    meter: Meter,
    /// The store has answered: a bucket that is missing now was there.
    answered: AtomicBool,
}

/// An object and its size.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObjectInfo {
    /// Relative to the run.
    pub path: String,
    /// Size in bytes.
    pub bytes: u64,
}

impl RunStore {
    /// Opens the run at `file:///dir`, `file://./dir`, a plain path, or `s3://bucket/prefix`.
    ///
    /// Nothing is read or made yet: directories come with the first object. Writes to a directory are on the disk when
    /// they return. For `s3://`, endpoint, region and credentials come from the usual `AWS_*` variables and profiles.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Config`] when the URL or the environment cannot be used.
    pub fn open(url: &str) -> Result<Self> {
        Self::open_with(url, &StoreOptions::default())
    }

    /// As [`RunStore::open`], with other limits than usual.
    ///
    /// # Errors
    /// As [`RunStore::open`].
    pub fn open_with(url: &str, options: &StoreOptions) -> Result<Self> {
        Self::open_in(url, options, &Environment::of_process())
    }

    /// As [`RunStore::open_with`], in another environment than that of this process.
    ///
    /// # Errors
    /// As [`RunStore::open`].
    pub fn open_in(url: &str, options: &StoreOptions, environment: &Environment) -> Result<Self> {
        Ok(Self::at(resolve(url, options, environment)?, options))
    }

    /// A run at the root of any store; `url` is how messages name it. Large objects are written whole.
    #[must_use]
    pub fn over(store: Arc<dyn ObjectStore>, url: &str) -> Self {
        Self::at(Location::root_of(store, None, url), &StoreOptions::default())
    }

    /// As [`RunStore::over`], with large objects written in pieces.
    #[must_use]
    pub fn over_pieces<S: ObjectStore + MultipartStore>(
        store: Arc<S>,
        url: &str,
        options: &StoreOptions,
    ) -> Self {
        let location = Location::root_of(Arc::clone(&store) as _, Some(store), url);
        Self::at(location, options)
    }

    /// A run that lives as long as this value and its clones.
    #[must_use]
    pub fn in_memory() -> Self {
        Self::over(Arc::new(InMemory::new()), "memory://")
    }

    fn at(location: Location, options: &StoreOptions) -> Self {
        Self {
            place: Arc::new(Place {
                location,
                options: *options,
                meter: Meter::default(),
                answered: AtomicBool::new(false),
            }),
        }
    }

    /// The run URL in its full form.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.place.location.url
    }

    /// The URL of the object at `path`, as errors name it.
    #[must_use]
    pub fn object_url(&self, path: &str) -> String {
        format!("{}/{path}", self.url())
    }

    /// What was asked of the store since it was opened, by this value and its clones.
    #[must_use]
    pub fn usage(&self) -> StoreUsage {
        self.place.meter.usage()
    }

    /// The run's checkpoints.
    #[must_use]
    pub fn checkpoints(&self) -> Checkpoints {
        Checkpoints::new(self.clone())
    }

    /// The coordinator's journal.
    #[must_use]
    pub fn journal(&self) -> Journal {
        Journal::new(self.clone())
    }

    /// Writes an object, replacing what is there. Readers see the old bytes or the new ones, never a mixture.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Io`], [`crate::ErrorKind::Full`] or [`crate::ErrorKind::Denied`]; [`crate::ErrorKind::Config`] if there
    /// is no such bucket.
    pub async fn put(&self, path: &str, bytes: Bytes) -> Result<()> {
        self.put_with(path, bytes, PutMode::Overwrite).await
    }

    /// Writes an object that must not be there yet. Of several writers at the same time, one succeeds.
    ///
    /// A connection that breaks may leave the object behind although this fails; repeating it then finds it there.
    ///
    /// # Errors
    /// [`crate::ErrorKind::AlreadyExists`], or as [`RunStore::put`].
    pub async fn put_create(&self, path: &str, bytes: Bytes) -> Result<()> {
        self.put_with(path, bytes, PutMode::Create).await
    }

    /// Writes an object that must not be there yet, or returns what is there.
    ///
    /// S3 also refuses a creation while another one of the same object is under way, which may fail yet: so one that is refused
    /// although nothing is there is repeated.
    ///
    /// # Errors
    /// As [`RunStore::put_create`], [`crate::ErrorKind::AlreadyExists`] only after some repetitions.
    pub async fn create_or_get(&self, path: &str, bytes: Bytes) -> Result<Option<Bytes>> {
        let mut repetitions = 0;
        loop {
            match self.put_create(path, bytes.clone()).await {
                Ok(()) => return Ok(None),
                Err(error) if error.kind() == ErrorKind::AlreadyExists => match self.get(path).await {
                    Ok(there) => return Ok(Some(there)),
                    Err(missing) if missing.kind() != ErrorKind::NotFound => return Err(missing),
                    Err(_) if repetitions == CREATIONS => return Err(error),
                    Err(_) => {}
                },
                Err(error) => return Err(error),
            }
            repetitions += 1;
            tokio::time::sleep(BETWEEN_CREATIONS).await;
        }
    }

    async fn put_with(&self, path: &str, bytes: Bytes, mode: PutMode) -> Result<()> {
        let location = self.location(path)?;
        self.meter().write(bytes.len());
        let written = self.store().put_opts(&location, bytes.into(), mode.into()).await;
        self.answer("write", path, written)?;
        Ok(())
    }

    /// Reads a whole object.
    ///
    /// # Errors
    /// [`crate::ErrorKind::NotFound`], [`crate::ErrorKind::Io`] or [`crate::ErrorKind::Denied`]; [`crate::ErrorKind::Config`] if
    /// there is no such bucket.
    pub async fn get(&self, path: &str) -> Result<Bytes> {
        let location = self.location(path)?;
        self.meter().read();
        let read = async { self.store().get(&location).await?.bytes().await };
        let bytes = self.answer("read", path, read.await)?;
        self.meter().received(bytes.len());
        Ok(bytes)
    }

    /// As [`RunStore::get`]; nothing where there is no such object.
    ///
    /// # Errors
    /// As [`RunStore::get`], but not [`crate::ErrorKind::NotFound`].
    pub async fn get_if_there(&self, path: &str) -> Result<Option<Bytes>> {
        match self.get(path).await {
            Ok(bytes) => Ok(Some(bytes)),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Reads an object of `expected` bytes, a large one in pieces. Another size than that comes back whole, too.
    ///
    /// # Errors
    /// As [`RunStore::get`].
    pub(crate) async fn get_sized(&self, path: &str, expected: u64) -> Result<Bytes> {
        let piece = self.options().multipart_bytes.max(1);
        if expected <= piece {
            return self.get(path).await;
        }
        let location = self.location(path)?;
        self.meter().read();
        let head = self.answer("read", path, self.store().head(&location).await)?;
        let pieces = stream::iter((0..head.size).step_by(piece as usize))
            .map(|start| {
                self.meter().read();
                self.store()
                    .get_range(&location, start..head.size.min(start + piece))
            })
            .buffered(PARALLEL)
            .try_fold(
                Vec::with_capacity(head.size as usize),
                async |mut whole, piece| {
                    whole.extend_from_slice(&piece);
                    Ok(whole)
                },
            );
        let bytes = self.answer("read", path, pieces.await)?;
        self.meter().received(bytes.len());
        Ok(bytes.into())
    }

    /// Whether there is an object at `path`.
    ///
    /// # Errors
    /// As [`RunStore::get`], but not [`crate::ErrorKind::NotFound`].
    pub async fn exists(&self, path: &str) -> Result<bool> {
        let location = self.location(path)?;
        self.meter().read();
        match self.answer("read", path, self.store().head(&location).await) {
            Ok(_) => Ok(true),
            Err(CheckpointError::NotFound { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// The paths of all objects in the directory `prefix` and below it, sorted. Empty when there is no such directory.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Io`] or [`crate::ErrorKind::Denied`]; [`crate::ErrorKind::Config`] if there is no such bucket.
    pub async fn list(&self, prefix: &str) -> Result<Vec<String>> {
        Ok(self
            .list_with_sizes(prefix)
            .await?
            .into_iter()
            .map(|object| object.path)
            .collect())
    }

    /// As [`RunStore::list`], with sizes.
    ///
    /// # Errors
    /// As [`RunStore::list`].
    pub async fn list_with_sizes(&self, prefix: &str) -> Result<Vec<ObjectInfo>> {
        let root = &self.place.location.root;
        let directory = if prefix.is_empty() {
            root.clone()
        } else {
            self.location(prefix)?
        };
        self.meter().list();
        let listed: object_store::Result<Vec<ObjectInfo>> = self
            .store()
            .list(Some(&directory))
            .try_filter_map(async |meta| {
                let inside = meta.location.prefix_match(root);
                Ok(inside.map(|parts| {
                    let parts: Vec<String> = parts.map(|part| part.as_ref().to_owned()).collect();
                    ObjectInfo {
                        path: parts.join("/"),
                        bytes: meta.size,
                    }
                }))
            })
            .try_collect()
            .await;
        let mut objects = self.answer("list", prefix, listed)?;
        objects.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(objects)
    }

    /// Deletes an object. One that is not there counts as deleted.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Io`] or [`crate::ErrorKind::Denied`]; [`crate::ErrorKind::Config`] if there is no such bucket.
    pub async fn delete(&self, path: &str) -> Result<()> {
        let location = self.location(path)?;
        self.meter().delete();
        match self.answer("delete", path, self.store().delete(&location).await) {
            Ok(()) | Err(CheckpointError::NotFound { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Deletes objects, several at a time.
    ///
    /// # Errors
    /// As [`RunStore::delete`], for the first that fails.
    pub(crate) async fn delete_all(&self, paths: &[impl AsRef<str>]) -> Result<()> {
        let paths: Vec<String> = paths.iter().map(|path| path.as_ref().to_owned()).collect();
        stream::iter(paths)
            .map(async |path: String| self.delete(&path).await)
            .buffer_unordered(PARALLEL)
            .try_collect()
            .await
    }

    pub(crate) fn store(&self) -> &dyn ObjectStore {
        self.place.location.store.as_ref()
    }

    pub(crate) fn place(&self) -> &Location {
        &self.place.location
    }

    pub(crate) fn options(&self) -> &StoreOptions {
        &self.place.options
    }

    pub(crate) fn meter(&self) -> &Meter {
        &self.place.meter
    }

    /// Takes in what the store answered about the object at `path`.
    pub(crate) fn answer<T>(
        &self,
        action: &'static str,
        path: &str,
        answer: object_store::Result<T>,
    ) -> Result<T> {
        let answered = &self.place.answered;
        let failed = |source| {
            let was_there = answered.load(Ordering::Relaxed);
            CheckpointError::from_store(action, self.object_url(path), source, was_there)
        };
        let answer = answer.map_err(failed);
        match &answer {
            Ok(_) => answered.store(true, Ordering::Relaxed),
            Err(CheckpointError::Denied { .. }) => {
                if let Some(credentials) = &self.place.location.credentials {
                    credentials.read_again();
                }
            }
            Err(_) => {}
        }
        answer
    }

    pub(crate) fn location(&self, path: &str) -> Result<Path> {
        let problem = |problem: String| CheckpointError::Path {
            path: path.to_owned(),
            problem,
        };
        if path.starts_with('/') || path.ends_with('/') || path.is_empty() {
            return Err(problem(
                "it is relative to the run and names an object".to_owned(),
            ));
        }
        let relative = Path::parse(path).map_err(|error| problem(error.to_string()))?;
        Ok(relative
            .parts()
            .fold(self.place.location.root.clone(), Path::join))
    }
}
