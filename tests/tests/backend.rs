//! Goal: what sums gradients is chosen by what workers can use: NCCL without GPUs is refused before anything starts.
//! Method: the real programs, from which GPUs are hidden.

use std::process::Command;

use zipper_tests::{Fixture, program};

#[test]
fn nccl_without_gpus_is_refused() {
    let fixture = Fixture::new();
    let output = Command::new(program("zipper-launch"))
        .args(["--nodes", "1", "--backend", "nccl"])
        .arg("--config")
        .arg(fixture.path().join("run.yaml"))
        .args(["--run", &fixture.run_url("run")])
        .env("CUDA_VISIBLE_DEVICES", "")
        .output()
        .expect("zipper-launch can be started");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{stderr}");
    // The first where zipper-worker was built without the feature `cuda`, the second where it has it.
    let says = [
        "was built without it",
        "1 worker on 0 GPUs: NCCL needs a GPU for each worker",
    ];
    assert!(says.iter().any(|words| stderr.contains(words)), "{stderr}");
    assert!(
        stderr.contains("hint: ") && stderr.contains("--backend gloo"),
        "{stderr}"
    );
    assert!(
        !fixture.path().join("run").exists(),
        "a refused run has not begun"
    );
}
