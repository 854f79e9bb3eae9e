//! From what people write as a run URL to a store and a place in it.

use std::path::{Path as FilePath, PathBuf, absolute};
use std::sync::Arc;

use object_store::ObjectStore;
use object_store::local::LocalFileSystem;
use object_store::multipart::MultipartStore;
use object_store::path::Path;
use url::Url;

use crate::aws::{self, ProfileCredentials};
use crate::options::{Environment, StoreOptions};
use crate::{CheckpointError, Result};

/// A store, the run's place in it, and the run URL in its full form.
pub(crate) struct Location {
    pub(crate) store: Arc<dyn ObjectStore>,
    /// The same store, where it takes large objects in pieces.
    pub(crate) multipart: Option<Arc<dyn MultipartStore>>,
    /// Credentials that are read from files.
    pub(crate) credentials: Option<Arc<ProfileCredentials>>,
    /// The run's folder, where the store is this machine's file system.
    pub(crate) folder: Option<PathBuf>,
    pub(crate) root: Path,
    pub(crate) url: String,
}

impl Location {
    /// The root of a store that has no URL of its own.
    pub(crate) fn root_of(
        store: Arc<dyn ObjectStore>,
        multipart: Option<Arc<dyn MultipartStore>>,
        url: &str,
    ) -> Self {
        Self {
            store,
            multipart,
            credentials: None,
            folder: None,
            root: Path::default(),
            url: url.to_owned(),
        }
    }
}

/// Reads `file:///dir`, `file://./dir`, a plain path, or `s3://bucket/prefix`.
pub(crate) fn resolve(given: &str, options: &StoreOptions, environment: &Environment) -> Result<Location> {
    let location = match given.split_once("://") {
        None if given.trim().is_empty() => Err("it is empty".to_owned()),
        None => directory(FilePath::new(given)),
        Some(("file", rest)) if rest.starts_with("./") || rest.starts_with("../") => {
            directory(FilePath::new(rest))
        }
        Some(("file", rest)) if rest.starts_with('/') => file_url(given).and_then(|path| directory(&path)),
        Some(("file", _)) => Err("after `file://` comes an absolute path (`file:///dir`) or `./`".to_owned()),
        Some(("s3", rest)) => s3(rest, options, environment),
        Some((scheme, _)) => Err(format!(
            "unknown scheme `{scheme}`: use a path, `file:///dir` or `s3://bucket/prefix`"
        )),
    };
    location.map_err(|problem| CheckpointError::Url {
        url: given.to_owned(),
        problem,
    })
}

fn file_url(given: &str) -> std::result::Result<PathBuf, String> {
    let url = Url::parse(given).map_err(|error| error.to_string())?;
    url.to_file_path()
        .map_err(|()| "it is not a path on this machine".to_owned())
}

/// A directory that need not exist yet: reading a run that is not there must not make one.
fn directory(path: &FilePath) -> std::result::Result<Location, String> {
    let path = absolute(path).map_err(|error| error.to_string())?;
    if path.exists() && !path.is_dir() {
        return Err("it is a file, not a directory".to_owned());
    }
    let root = Path::from_absolute_path(&path).map_err(|error| error.to_string())?;
    let url = Url::from_directory_path(&path).map_err(|()| "it is not an absolute path".to_owned())?;
    Ok(Location {
        store: Arc::new(LocalFileSystem::new().with_fsync(true)),
        multipart: None,
        credentials: None,
        folder: Some(path),
        root,
        url: url.as_str().trim_end_matches('/').to_owned(),
    })
}

/// A prefix in a bucket.
fn s3(
    rest: &str,
    options: &StoreOptions,
    environment: &Environment,
) -> std::result::Result<Location, String> {
    let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
    if bucket.is_empty() {
        return Err("after `s3://` comes the name of a bucket".to_owned());
    }
    let root = Path::parse(prefix).map_err(|error| error.to_string())?;
    let (store, credentials) = aws::open(bucket, options, environment)?;
    let store = Arc::new(store);
    let url = format!("s3://{bucket}/{root}").trim_end_matches('/').to_owned();
    Ok(Location {
        store: Arc::clone(&store) as _,
        multipart: Some(store),
        credentials,
        folder: None,
        root,
        url,
    })
}
