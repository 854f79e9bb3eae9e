//! Goal: what only a run in a folder meets harms nothing: a writer that is killed in the middle of a file, folders without files, a full
//! disk. Method: files as such a writer leaves them; a small file system.

use std::fs;

use bytes::Bytes;
use zipper_checkpoint::{ErrorKind, RunStore, layout};
use zipper_tests::{SmallDisk, manifest, permitted};
use zipper_types::{Advised, Generation, Step};

async fn write(run: &RunStore, step: Step) {
    let checkpoints = run.checkpoints();
    let prefix = checkpoints.begin(step, Generation(1)).await.unwrap();
    let bank = layout::bank("de");
    let part = checkpoints.put_part(step, &prefix, &bank, Bytes::from_static(b"a bank"));
    let manifest = manifest(step, Generation(1), vec![part.await.unwrap()]);
    checkpoints.publish(&manifest).await.unwrap();
}

/// A file that was being written when its writer was killed is in nobody's way, is found, and goes with its folder; one of an
/// attempt that may be under way stays.
#[tokio::test]
async fn unfinished_files_are_collected() {
    let directory = tempfile::tempdir().unwrap();
    let run = RunStore::open(directory.path().to_str().unwrap()).unwrap();
    for step in [10, 20] {
        write(&run, Step(step)).await;
    }
    let folder = |step: u64| directory.path().join(layout::checkpoint_dir(Step(step)));
    let unfinished = [5, 10, 30].map(|step| folder(step).join("banks/de.safetensors#1"));
    for path in &unfinished {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, "half a ba").unwrap();
    }
    let list = run.checkpoints().list().await.unwrap();
    assert_eq!((list.checkpoints.len(), list.leftovers.len()), (2, 0));
    run.checkpoints().verify(Step(10)).await.unwrap();

    let collected = run.checkpoints().collect(Step(20)).await.unwrap();
    assert_eq!(collected.uploads, 2);
    assert_eq!(
        unfinished.each_ref().map(|path| path.exists()),
        [false, false, true]
    );

    run.checkpoints().remove(Step(10)).await.unwrap();
    assert!(
        !folder(10).join("banks").exists(),
        "folders without files go, too"
    );
    run.checkpoints().collect(Step(20)).await.unwrap();
    assert!(!folder(10).exists());
    run.checkpoints().verify(Step(20)).await.unwrap();
}

/// A full disk is told apart from other trouble, harms nothing that is there, and is over when there is room again.
#[tokio::test]
async fn a_full_disk_is_an_error_of_its_own() {
    let Some(disk) = permitted(SmallDisk::mount(4)) else {
        return;
    };
    let run = RunStore::open(disk.path().join("run").to_str().unwrap()).unwrap();
    write(&run, Step(10)).await;
    disk.fill();
    let large = Bytes::from(vec![7; 1 << 20]);
    let error = run
        .checkpoints()
        .put_part(Step(20), "", layout::SHARED, large.clone())
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Full, "{error:?}");
    assert!(error.is_retryable());
    assert!(error.to_string().ends_with("there is no room left"), "{error}");
    run.checkpoints().verify(Step(10)).await.unwrap();
    disk.free();
    run.checkpoints()
        .put_part(Step(20), "", layout::SHARED, large)
        .await
        .unwrap();
}
