//! Goal: what people write as a run URL means what they expect, and what cannot be one is refused with the reason.
//! Method: runs are opened by URLs, and written; what is in the folder is looked at.

use bytes::Bytes;
use zipper_checkpoint::{ErrorKind, RunStore};

/// Goal: the three ways to write a directory are the same run, and opening one makes nothing.
#[tokio::test]
async fn directories_can_be_written_in_three_ways() {
    let directory = tempfile::tempdir_in(".").unwrap();
    let name = directory.path().file_name().unwrap().to_str().unwrap();
    let absolute = std::path::absolute(directory.path()).unwrap().join("new run");
    let url = format!("file://{}", absolute.display()).replace(' ', "%20");

    let runs = [
        url.clone(),
        absolute.display().to_string(),
        format!("file://./{name}/new run"),
    ];
    let runs = runs.map(|given| RunStore::open(&given).unwrap());
    assert!(!absolute.exists());
    assert!(runs[0].list("checkpoints").await.unwrap().is_empty());
    assert!(!absolute.exists());

    runs[0]
        .put("run.yaml", Bytes::from_static(b"name: x"))
        .await
        .unwrap();
    assert!(absolute.join("run.yaml").exists());
    for run in &runs {
        assert_eq!(run.url(), url);
        assert_eq!(run.get("run.yaml").await.unwrap(), "name: x");
    }
}

/// Goal: each URL that cannot be used is a configuration error that repeats it and says why.
#[test]
fn unusable_urls_are_refused_with_the_reason() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let file = file.path().to_str().unwrap();
    for (url, words) in [
        ("", "it is empty"),
        (" ", "it is empty"),
        ("ftp://host/dir", "unknown scheme `ftp`"),
        ("file://host/dir", "absolute path"),
        ("s3://", "name of a bucket"),
        ("s3:///prefix", "name of a bucket"),
        ("s3://bucket/a//b", "empty path segment"),
        (file, "not a directory"),
    ] {
        let error = RunStore::open(url)
            .err()
            .unwrap_or_else(|| panic!("`{url}` was accepted"));
        assert_eq!(error.kind(), ErrorKind::Config, "{error}");
        let message = error.to_string();
        assert!(message.starts_with(&format!("run URL `{url}`")), "{message}");
        assert!(message.to_lowercase().contains(words), "{message}");
    }
}

/// Goal: a directory that cannot be written is an input/output error that names the object. Method: a file stands where
/// the run's directory would have to be made.
#[tokio::test]
async fn unwritable_places_name_the_object() {
    let directory = tempfile::tempdir().unwrap();
    let run = RunStore::open(directory.path().join("run").to_str().unwrap()).unwrap();
    std::fs::write(directory.path().join("run"), "a file").unwrap();
    let error = run.put("checkpoints/a", Bytes::new()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Io, "{error}");
    assert!(error.to_string().contains("run/checkpoints/a"), "{error}");
}
