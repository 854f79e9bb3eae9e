//! From what people write as a run URL to a store and a place in it.

use std::env;
use std::path::{Path as FilePath, absolute};
use std::sync::Arc;

use object_store::ObjectStore;
use object_store::aws::AmazonS3Builder;
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use url::Url;

use crate::{CheckpointError, Result};

/// A store, the run's place in it, and the run URL in its full form.
pub(crate) struct Location {
    pub(crate) store: Arc<dyn ObjectStore>,
    pub(crate) root: Path,
    pub(crate) url: String,
}

/// Reads `file:///dir`, `file://./dir`, a plain path, or `s3://bucket/prefix`.
pub(crate) fn resolve(given: &str) -> Result<Location> {
    let problem = |problem: String| CheckpointError::Url {
        url: given.to_owned(),
        problem,
    };
    match given.split_once("://") {
        None if given.trim().is_empty() => Err(problem("it is empty".to_owned())),
        None => directory(FilePath::new(given)),
        Some(("file", rest)) if rest.starts_with("./") || rest.starts_with("../") => {
            directory(FilePath::new(rest))
        }
        Some(("file", rest)) if rest.starts_with('/') => {
            let url = Url::parse(given).map_err(|error| problem(error.to_string()))?;
            let path = url
                .to_file_path()
                .map_err(|()| problem("it is not a path on this machine".to_owned()))?;
            directory(&path)
        }
        Some(("file", _)) => Err(problem(
            "after `file://` comes an absolute path (`file:///dir`) or `./`".to_owned(),
        )),
        Some(("s3", rest)) => s3(rest),
        Some((scheme, _)) => Err(problem(format!(
            "unknown scheme `{scheme}`: use a path, `file:///dir` or `s3://bucket/prefix`"
        ))),
    }
    .map_err(|error| match error {
        CheckpointError::Url { problem, .. } => CheckpointError::Url {
            url: given.to_owned(),
            problem,
        },
        other => other,
    })
}

fn url_error(problem: impl Into<String>) -> CheckpointError {
    CheckpointError::Url {
        url: String::new(),
        problem: problem.into(),
    }
}

/// A directory that need not exist yet: reading a run that is not there must not make one.
fn directory(path: &FilePath) -> Result<Location> {
    let path = absolute(path).map_err(|error| url_error(error.to_string()))?;
    if path.exists() && !path.is_dir() {
        return Err(url_error("it is a file, not a directory"));
    }
    let root = Path::from_absolute_path(&path).map_err(|error| url_error(error.to_string()))?;
    let url = Url::from_directory_path(&path).map_err(|()| url_error("it is not an absolute path"))?;
    Ok(Location {
        store: Arc::new(LocalFileSystem::new().with_fsync(true)),
        root,
        url: url.as_str().trim_end_matches('/').to_owned(),
    })
}

/// A prefix in a bucket; endpoint, region and credentials come from the usual `AWS_*` variables.
fn s3(rest: &str) -> Result<Location> {
    let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
    if bucket.is_empty() {
        return Err(url_error("after `s3://` comes the name of a bucket"));
    }
    let root = Path::parse(prefix).map_err(|error| url_error(error.to_string()))?;
    let variable = |name: &str| env::var(name).unwrap_or_default();
    for name in ["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT"] {
        let endpoint = variable(name);
        if endpoint.starts_with("http://") && !variable("AWS_ALLOW_HTTP").eq_ignore_ascii_case("true") {
            return Err(url_error(format!(
                "{name} is `{endpoint}`, which is not encrypted: use https, or set AWS_ALLOW_HTTP=true"
            )));
        }
    }
    let store = AmazonS3Builder::from_env()
        .with_bucket_name(bucket)
        .build()
        .map_err(|error| url_error(error.to_string()))?;
    let url = format!("s3://{bucket}/{root}").trim_end_matches('/').to_owned();
    Ok(Location {
        store: Arc::new(store),
        root,
        url,
    })
}
