//! Goal: adapters on their way out and in: exports against transformers and PEFT, means of checkpoints, and runs that begin with what others
//! made. Method: real runs of the real programs; Python where it is about transformers and PEFT.

mod average;
mod export;
mod start;

use std::path::{Path, PathBuf};
use std::process::Command;

use zipper_tests::{Finished, Fixture, Launched, everything_is_required, program};

fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path)
}

/// The Python with transformers and PEFT; nothing where setup has installed a torch that cannot be imported.
fn python() -> Option<PathBuf> {
    if !repository(".deps/libtorch/nvidia/nccl").exists() {
        assert!(
            !everything_is_required(),
            "ZIPPER_RIGS=required, but torch cannot be imported"
        );
        eprintln!("not shown: `cargo xtask setup --cuda` installs the torch that transformers needs");
        return None;
    }
    let python = repository(".deps/transformers/bin/python");
    assert!(
        python.exists(),
        "run `cargo xtask test` once: it installs what this needs"
    );
    Some(python)
}

fn worker(arguments: &[&str]) -> Finished {
    let mut command = Command::new(program("zipper-worker"));
    Launched::start_command(command.args(arguments)).wait()
}

/// Exports a run into a folder of the fixture.
fn export(fixture: &Fixture, url: &str, name: &str, more: &[&str]) -> String {
    let output = fixture.path().join("exports").join(name).display().to_string();
    let arguments = [&["export", "--run", url, "--output", &output], more].concat();
    let finished = worker(&arguments);
    assert_eq!(finished.code, Some(0), "{}", finished.stderr);
    output
}

/// One of our scripts.
fn script(python: &Path, name: &str, arguments: &[String]) -> Command {
    let mut command = Command::new(python);
    command
        .arg(repository("tests/scripts").join(name))
        .args(arguments)
        .env("PYTHONPATH", repository(".deps/libtorch"))
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .env("HF_HUB_OFFLINE", "1");
    command
}

/// What a script printed that ended well.
fn printed(script: &mut Command) -> String {
    let output = script.output().expect("an installed Python can be started");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    String::from_utf8(output.stdout).expect("scripts print UTF-8")
}
