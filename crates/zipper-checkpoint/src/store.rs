//! A run's objects, by their path under the run URL.

use std::sync::Arc;

use bytes::Bytes;
use futures::TryStreamExt;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt, PutMode};

use crate::checkpoints::Checkpoints;
use crate::journal::Journal;
use crate::location::{Location, resolve};
use crate::{CheckpointError, Result};

/// The place where one run keeps everything. Cheap to clone.
#[derive(Clone)]
pub struct RunStore {
    store: Arc<dyn ObjectStore>,
    root: Path,
    url: Arc<str>,
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
    /// they return. For `s3://`, endpoint, region and credentials come from the usual `AWS_*` variables.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Config`] when the URL or the environment cannot be used.
    pub fn open(url: &str) -> Result<Self> {
        let Location { store, root, url } = resolve(url)?;
        Ok(Self {
            store,
            root,
            url: url.into(),
        })
    }

    /// A run at the root of any store; `url` is how messages name it.
    #[must_use]
    pub fn over(store: Arc<dyn ObjectStore>, url: &str) -> Self {
        Self {
            store,
            root: Path::default(),
            url: url.into(),
        }
    }

    /// A run that lives as long as this value and its clones.
    #[must_use]
    pub fn in_memory() -> Self {
        Self {
            store: Arc::new(InMemory::new()),
            root: Path::default(),
            url: "memory://".into(),
        }
    }

    /// The run URL in its full form.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The URL of the object at `path`, as errors name it.
    #[must_use]
    pub fn object_url(&self, path: &str) -> String {
        format!("{}/{path}", self.url)
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
    /// [`crate::ErrorKind::Io`].
    pub async fn put(&self, path: &str, bytes: Bytes) -> Result<()> {
        self.put_with(path, bytes, PutMode::Overwrite).await
    }

    /// Writes an object that must not be there yet. Of several writers at the same time, one succeeds.
    ///
    /// # Errors
    /// [`crate::ErrorKind::AlreadyExists`] or [`crate::ErrorKind::Io`].
    pub async fn put_create(&self, path: &str, bytes: Bytes) -> Result<()> {
        self.put_with(path, bytes, PutMode::Create).await
    }

    async fn put_with(&self, path: &str, bytes: Bytes, mode: PutMode) -> Result<()> {
        let location = self.location(path)?;
        self.store
            .put_opts(&location, bytes.into(), mode.into())
            .await
            .map_err(|error| CheckpointError::from_store("write", self.object_url(path), error))?;
        Ok(())
    }

    /// Reads a whole object.
    ///
    /// # Errors
    /// [`crate::ErrorKind::NotFound`] or [`crate::ErrorKind::Io`].
    pub async fn get(&self, path: &str) -> Result<Bytes> {
        let failed = |error| CheckpointError::from_store("read", self.object_url(path), error);
        self.store
            .get(&self.location(path)?)
            .await
            .map_err(failed)?
            .bytes()
            .await
            .map_err(failed)
    }

    /// Whether there is an object at `path`.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Io`].
    pub async fn exists(&self, path: &str) -> Result<bool> {
        match self.store.head(&self.location(path)?).await {
            Ok(_) => Ok(true),
            Err(object_store::Error::NotFound { .. }) => Ok(false),
            Err(error) => Err(CheckpointError::from_store("read", self.object_url(path), error)),
        }
    }

    /// The paths of all objects in the directory `prefix` and below it, sorted. Empty when there is no such directory.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Io`].
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
    /// [`crate::ErrorKind::Io`].
    pub async fn list_with_sizes(&self, prefix: &str) -> Result<Vec<ObjectInfo>> {
        let directory = if prefix.is_empty() {
            self.root.clone()
        } else {
            self.location(prefix)?
        };
        let mut objects: Vec<ObjectInfo> = self
            .store
            .list(Some(&directory))
            .try_filter_map(async |meta| {
                let inside = meta.location.prefix_match(&self.root);
                Ok(inside.map(|parts| {
                    let parts: Vec<String> = parts.map(|part| part.as_ref().to_owned()).collect();
                    ObjectInfo {
                        path: parts.join("/"),
                        bytes: meta.size,
                    }
                }))
            })
            .try_collect()
            .await
            .map_err(|error| CheckpointError::from_store("list", self.object_url(prefix), error))?;
        objects.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(objects)
    }

    /// Deletes an object. One that is not there counts as deleted.
    ///
    /// # Errors
    /// [`crate::ErrorKind::Io`].
    pub async fn delete(&self, path: &str) -> Result<()> {
        match self.store.delete(&self.location(path)?).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(CheckpointError::from_store(
                "delete",
                self.object_url(path),
                error,
            )),
        }
    }

    fn location(&self, path: &str) -> Result<Path> {
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
        Ok(relative.parts().fold(self.root.clone(), Path::join))
    }
}
