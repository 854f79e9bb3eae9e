//! Goal: `zipper-launch checkpoints` says what a run can be resumed from, and finds damage that a listing cannot see.
//! Method: the checkpoint that is kept of format 1, copied and harmed.

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

const KEPT: &str = "../crates/zipper-checkpoint/tests/formats/v1/checkpoints/step-00000250";

/// Copies the checkpoint into `run`, as the one of its step.
fn copy(run: &Path) {
    let to = run.join("checkpoints/step-00000250");
    for part in [
        "MANIFEST.json",
        "state.json",
        "shared.safetensors",
        "optimizer/shared.safetensors",
        "banks/de.safetensors",
        "banks/en.safetensors",
        "banks/vi.safetensors",
        "optimizer/banks/de.safetensors",
        "optimizer/banks/en.safetensors",
        "optimizer/banks/vi.safetensors",
    ] {
        fs::create_dir_all(to.join(part).parent().unwrap()).unwrap();
        let from = Path::new(env!("CARGO_MANIFEST_DIR")).join(KEPT).join(part);
        fs::copy(from, to.join(part)).unwrap();
    }
}

fn list(run: &Path, arguments: &[&str], code: i32) -> (Value, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_zipper-launch"))
        .args(["checkpoints", "--json", "--run"])
        .arg(run)
        .args(arguments)
        .output()
        .unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(code), "{stderr}");
    let document = serde_json::from_slice(&output.stdout).unwrap_or(Value::Null);
    (document, stderr)
}

#[test]
fn damage_is_found_by_reading() {
    let folder = tempfile::tempdir().unwrap();
    copy(folder.path());
    let (document, _) = list(folder.path(), &["--verify"], 0);
    assert_eq!(document["newest"], "step-00000250");
    assert_eq!(document["checkpoints"][0]["state"], "verified");
    assert_eq!(document["checkpoints"][0]["world_size"], 2);

    let bank = folder
        .path()
        .join("checkpoints/step-00000250/banks/vi.safetensors");
    let mut bytes = fs::read(&bank).unwrap();
    bytes[5000] ^= 1;
    fs::write(&bank, bytes).unwrap();
    // A listing reads manifests alone.
    list(folder.path(), &[], 0);
    let (document, _) = list(folder.path(), &["--verify"], 1);
    let state = document["checkpoints"][0]["state"].as_str().unwrap();
    assert!(
        state.starts_with("damaged: ") && state.contains("banks/vi.safetensors"),
        "{state}"
    );
    assert_eq!(document["newest"], Value::Null);
}

#[test]
fn what_was_never_published_is_no_checkpoint() {
    let folder = tempfile::tempdir().unwrap();
    copy(folder.path());
    for step in ["step-00000200", "step-00000300"] {
        let part = folder.path().join("checkpoints").join(step);
        fs::create_dir_all(&part).unwrap();
        fs::write(part.join("shared.safetensors"), "some").unwrap();
    }
    let (document, _) = list(folder.path(), &[], 0);
    let states: Vec<&str> = (0..3)
        .map(|index| document["checkpoints"][index]["state"].as_str().unwrap())
        .collect();
    assert_eq!(
        states,
        [
            "interrupted: no manifest",
            "whole",
            "interrupted or being written: no manifest"
        ]
    );
    assert_eq!(document["newest"], "step-00000250");
}
