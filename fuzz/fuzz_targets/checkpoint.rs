//! Goal: no bytes in the place of a checkpoint's manifest crash those that look for a checkpoint, and none of them passes for one whose
//! parts are not there.

#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use zipper_checkpoint::{RunStore, layout};
use zipper_types::Step;

const STEP: Step = Step(12);

fuzz_target!(|bytes: &[u8]| {
    let runtime = tokio::runtime::Builder::new_current_thread().build();
    runtime.expect("a runtime").block_on(look(bytes));
});

async fn look(bytes: &[u8]) {
    let store = RunStore::in_memory();
    let path = format!("{}/{}", layout::checkpoint_dir(STEP), layout::MANIFEST);
    store
        .put(&path, Bytes::copy_from_slice(bytes))
        .await
        .expect("memory takes it");
    let checkpoints = store.checkpoints();
    // Whatever they say: they come back.
    let _ = checkpoints.list().await;
    let _ = checkpoints.latest_readable().await;
    let Ok(manifest) = checkpoints.load_manifest(STEP).await else {
        return;
    };
    assert_eq!(manifest.step, STEP);
    let complete = checkpoints.verify(STEP).await.is_ok();
    assert!(!complete || manifest.parts.is_empty(), "{} parts are nowhere", manifest.parts.len());
}
