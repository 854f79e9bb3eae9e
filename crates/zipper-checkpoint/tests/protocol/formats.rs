//! Goal: checkpoints of every past format stay readable, byte for byte; those of the future are refused.
//! Method: `tests/formats/v<N>` keeps a checkpoint of the tiny test model as the last version with format N wrote it. A new format
//! adds its folder here before the number goes up.

use std::fs;
use std::path::{Path, PathBuf};

use zipper_checkpoint::{ErrorKind, FORMAT_VERSION, RunStore, layout};
use zipper_types::{Stage, Step};

fn kept(format: u32) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/formats/v{format}"))
}

#[tokio::test]
async fn every_past_format_is_readable() {
    for format in 1..FORMAT_VERSION {
        let run = RunStore::open(kept(format).to_str().unwrap()).unwrap();
        let checkpoints = run.checkpoints();
        let latest = checkpoints.latest_readable().await.unwrap();
        assert!(latest.damaged.is_empty(), "format {format}: {:?}", latest.damaged);
        let manifest = latest
            .manifest
            .unwrap_or_else(|| panic!("format {format} is kept"));
        assert_eq!(manifest.format_version, format);
        assert_eq!((manifest.step, manifest.stage), (Step(250), Stage::Zipper));
        for path in [
            layout::SHARED.to_owned(),
            layout::OPTIMIZER_SHARED.to_owned(),
            layout::STATE.to_owned(),
            layout::bank("en"),
            layout::bank("de"),
            layout::bank("vi"),
            layout::optimizer_bank("vi"),
        ] {
            let part = manifest
                .part(&path)
                .unwrap_or_else(|| panic!("format {format} has {path}"));
            checkpoints.read_part(manifest.step, part).await.unwrap();
        }
    }
}

/// What is written today says so, and a format of tomorrow is refused with both numbers, never passed over.
#[tokio::test]
async fn a_future_format_is_refused_by_name() {
    let directory = tempfile::tempdir().unwrap();
    let run = RunStore::open(directory.path().to_str().unwrap()).unwrap();
    let past = kept(1).join("checkpoints/step-00000250/MANIFEST.json");
    let text = fs::read_to_string(past).unwrap();
    let future = text.replace(
        "\"format_version\": 1",
        &format!("\"format_version\": {}", FORMAT_VERSION + 1),
    );
    assert_ne!(text, future);
    run.put(
        "checkpoints/step-00000250/MANIFEST.json",
        future.into_bytes().into(),
    )
    .await
    .unwrap();
    let error = run.checkpoints().latest_readable().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Config);
    let message = error.to_string();
    for words in [
        format!("format version {}", FORMAT_VERSION + 1),
        format!("reads up to {FORMAT_VERSION}"),
        "step-00000250/MANIFEST.json".to_owned(),
    ] {
        assert!(message.contains(&words), "{message}");
    }
}
