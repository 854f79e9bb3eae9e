//! Goal: `--json` prints one JSON document on stdout and nothing else, also where a command is stopped before it does anything.
//!
//! Method: the real program, in a folder with a configuration that would do. The manifest is a named pipe, so a launch waits for its data
//! until it is stopped.

use std::fs::{self, File};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::fcntl::OFlag;
use nix::sys::signal::{Signal, kill};
use nix::sys::stat::Mode;
use nix::unistd::{Pid, mkfifo};
use serde_json::{Value, json};
use tempfile::TempDir;

const CONFIG: &str = "\
name: documents
model:
  encoder: {path: models}
  llm: {path: models}
data:
  languages: [en]
  train: [train.jsonl]
training:
  align: {steps: 2}
  zipper: {steps: 2}
  batch_audio_seconds: 1
";

/// A folder in which a launch would wait for its manifest.
fn folder() -> TempDir {
    let folder = tempfile::tempdir().expect("a folder can be made");
    let at = folder.path();
    fs::create_dir(at.join("models")).expect("the folder is writable");
    fs::write(at.join("run.yaml"), CONFIG).expect("the folder is writable");
    mkfifo(&at.join("train.jsonl"), Mode::S_IRUSR | Mode::S_IWUSR).expect("the folder is writable");
    folder
}

fn launch(folder: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_zipper-launch"));
    command
        .args(arguments)
        .current_dir(folder)
        // Not about an allocation that the test itself is run in.
        .env_remove("SLURM_JOB_ID")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

/// What a command that ends well prints on stdout.
fn printed(folder: &Path, arguments: &[&str]) -> String {
    let output = launch(folder, arguments)
        .output()
        .expect("zipper-launch can be started");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{arguments:?}: {stderr}");
    String::from_utf8(output.stdout).expect("stdout is UTF-8")
}

fn document(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("not one document: {error}\n{text}"))
}

/// The other end of a pipe, as soon as somebody reads it.
fn writer(pipe: &Path) -> File {
    let started = Instant::now();
    loop {
        let mut options = File::options();
        options.write(true).custom_flags(OFlag::O_NONBLOCK.bits());
        match options.open(pipe) {
            Ok(writer) => return writer,
            Err(error) => assert!(
                started.elapsed() < Duration::from_mins(1),
                "nobody reads: {error}"
            ),
        }
        sleep(Duration::from_millis(10));
    }
}

#[test]
fn a_launch_that_is_stopped_before_the_run_begins_says_so() {
    for (run, url) in [(&["--run", "kept"][..], "kept"), (&[], "runs/documents")] {
        let folder = folder();
        let arguments = [&["--config", "run.yaml", "--json"], run].concat();
        let child = launch(folder.path(), &arguments)
            .spawn()
            .expect("zipper-launch can be started");
        // It handles signals before it reads anything.
        let writer = writer(&folder.path().join("train.jsonl"));
        kill(Pid::from_raw(child.id().cast_signed()), Signal::SIGTERM).expect("it is running");
        let output = child.wait_with_output().expect("it can be waited for");
        drop(writer);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(75), "{stderr}");
        assert!(
            stderr.contains("Stopped (SIGTERM to zipper-launch) before the run went on."),
            "{stderr}"
        );
        let url = format!("file://{}/{url}", folder.path().display());
        assert_eq!(
            document(&String::from_utf8_lossy(&output.stdout)),
            json!({"outcome": "stopped", "run": url, "reason": "SIGTERM to zipper-launch"})
        );
    }
}

#[test]
fn logs_are_one_array() {
    let folder = folder();
    let logs = folder.path().join("logs");
    fs::create_dir(&logs).expect("the folder is writable");
    let arguments = ["logs", "--run", "run", "--folder", "logs", "--json"];
    assert_eq!(document(&printed(folder.path(), &arguments)), json!([]));
    fs::write(logs.join("coordinator.log"), "one\ntwo\n").expect("the folder is writable");
    assert_eq!(
        document(&printed(folder.path(), &arguments)),
        json!([
            {"source": "coordinator", "rank": null, "line": "one"},
            {"source": "coordinator", "rank": null, "line": "two"},
        ])
    );
}

#[test]
fn a_script_that_is_only_shown_is_in_a_document() {
    let folder = folder();
    let arguments = ["submit", "--config", "run.yaml", "--nodes", "2", "--print"];
    let script = printed(folder.path(), &arguments);
    assert!(script.starts_with("#!/bin/bash\n#SBATCH"), "{script}");
    let printed = printed(folder.path(), &[&arguments[..], &["--json"]].concat());
    let document = document(&printed);
    assert_eq!(
        document.as_object().map(serde_json::Map::len),
        Some(1),
        "{document}"
    );
    let script = document["script"].as_str().expect("a text");
    assert!(script.starts_with("#!/bin/bash\n#SBATCH"), "{script}");
}
