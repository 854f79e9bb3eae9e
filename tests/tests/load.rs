//! Goal: the coordinator serves many workers at once, and gives each its rank.
//! Method: a real coordinator and some hundred simulated workers, as `cargo xtask load` has them by the thousand. How long it
//! takes is not judged here.

use std::time::Duration;

use zipper_tests::load::Load;

/// Everybody gets a rank of its own, again after a loss, and hears how the run ended; nobody is refused anything meanwhile.
#[tokio::test(flavor = "multi_thread")]
async fn hundreds_of_workers_are_together() {
    let load = Load {
        workers: 256,
        workers_per_node: 8,
        connections: 16,
        interval: Duration::from_secs(1),
        lasts: Duration::from_secs(3),
    };
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let figures = load
        .play(folder.path())
        .await
        .unwrap_or_else(|problem| panic!("{problem}"));
    // Each had time for two at least; what was under way at the ends is not counted.
    assert!(figures.heartbeats >= 256, "{figures}");
    let published = folder.path().join("checkpoints");
    let manifests = std::fs::read_dir(published)
        .expect("a checkpoint was written")
        .flatten();
    let manifests = manifests.filter(|folder| folder.path().join("MANIFEST.json").exists());
    assert_eq!(manifests.count(), 1, "the last step is kept");
}
