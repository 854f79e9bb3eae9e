//! Goal: what sums gradients is chosen by what workers can use: NCCL without GPUs is refused before anything starts, and a run
//! goes on where the backend is another one.

use std::process::Command;

use zipper_tests::{Finished, Fixture, Launched, program};

fn arguments<'a>(config: &'a str, run: &'a str, backend: &'a str) -> [&'a str; 8] {
    [
        "--nodes",
        "1",
        "--config",
        config,
        "--run",
        run,
        "--backend",
        backend,
    ]
}

#[test]
fn nccl_without_gpus_is_refused() {
    let fixture = Fixture::new();
    let config = fixture.path().join("run.yaml").display().to_string();
    let run = fixture.run_url("run");
    let output = Command::new(program("zipper-launch"))
        .args(arguments(&config, &run, "nccl"))
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

#[test]
fn a_run_goes_on_with_another_backend() {
    let fixture = Fixture::new();
    fixture.write_config("short.yaml", |text| {
        text.replace("steps: 6,", "steps: 2,")
            .replace("untrained: true", "untrained: false")
            .replace("no_audio_control: true", "no_audio_control: false")
    });
    let config = fixture.path().join("short.yaml").display().to_string();
    let run = fixture.run_url("run");
    let launch = |backend: &str, more: &[&str]| -> Finished {
        Launched::run(&[&arguments(&config, &run, backend)[..], more].concat())
    };
    let begun = launch("gloo", &[]);
    assert_eq!(begun.code, Some(0), "{}", begun.stderr);
    let resumed = launch("auto", &["--resume", "require"]);
    assert_eq!(resumed.code, Some(0), "{}", resumed.stderr);
    let refused = launch("auto", &["--set", "training.clip_grad_norm=7"]);
    assert_eq!(refused.code, Some(2), "{}", refused.stderr);
    assert!(
        refused.stderr.contains("training.clip_grad_norm"),
        "{}",
        refused.stderr
    );
}
