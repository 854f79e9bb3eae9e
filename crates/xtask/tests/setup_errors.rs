//! Goal: on a machine that lacks something, `cargo xtask setup` says what and what to do, and ends with exit code 2.
//! Method: run the program with a PATH of our own making, a folder of our own to fetch into, and no way to the network.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output};

use tempfile::TempDir;

/// A Python that is new enough and has every module.
const GOOD_PYTHON: &str = "#!/bin/sh\ncase \"$2\" in *version*) echo 3 12;; esac\n";
const TOOLS: [&str; 4] = ["g++", "cmake", "make", "espeak-ng"];

/// A folder of programs.
struct Machine(TempDir);

impl Machine {
    fn with(programs: &[(&str, &str)]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        for (name, script) in programs {
            let path = folder.path().join(name);
            fs::write(&path, script).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        }
        Self(folder)
    }

    fn complete(python: &'static str) -> Self {
        let mut programs = vec![("python3", python)];
        programs.extend(TOOLS.map(|tool| (tool, "#!/bin/sh\n")));
        Self::with(&programs)
    }

    /// Runs `xtask setup` on a machine that has these programs only.
    fn setup(&self, deps: &Path) -> Output {
        Command::new(env!("CARGO_BIN_EXE_xtask"))
            .args(["setup", "--deps"])
            .arg(deps)
            .env("PATH", self.0.path())
            .output()
            .unwrap()
    }
}

#[track_caller]
fn assert_refused(output: &Output, parts: &[&str]) {
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{said}");
    for part in parts {
        assert!(said.contains(part), "`{part}` is not in: {said}");
    }
}

#[test]
fn no_python_is_said() {
    let deps = tempfile::tempdir().unwrap();
    let output = Machine::with(&[]).setup(deps.path());
    assert_refused(
        &output,
        &["there is no `python3`", "apt-get install", "python3-venv"],
    );
}

#[test]
fn an_old_python_is_said() {
    let deps = tempfile::tempdir().unwrap();
    let output = Machine::with(&[("python3", "#!/bin/sh\necho 3 8\n")]).setup(deps.path());
    assert_refused(&output, &["Python 3.8; 3.10 or newer", "hint:"]);
}

#[test]
fn a_python_that_cannot_make_environments_is_said() {
    let deps = tempfile::tempdir().unwrap();
    let script = "#!/bin/sh\ncase \"$2\" in *venv*) exit 1;; esac\necho 3 11\n";
    let output = Machine::with(&[("python3", script)]).setup(deps.path());
    assert_refused(&output, &["virtual environments", "python3-venv"]);
}

#[test]
fn a_python_that_does_not_work_is_said() {
    let deps = tempfile::tempdir().unwrap();
    let script = "#!/bin/sh\necho broken installation >&2\nexit 1\n";
    let output = Machine::with(&[("python3", script)]).setup(deps.path());
    assert_refused(&output, &["`python3` does not work", "broken installation"]);
}

#[test]
fn missing_system_packages_are_named_with_the_command_that_installs_them() {
    let deps = tempfile::tempdir().unwrap();
    let output = Machine::with(&[("python3", GOOD_PYTHON), ("make", "")]).setup(deps.path());
    assert_refused(
        &output,
        &[
            "lacks `g++`, `cmake`, `espeak-ng`",
            "--no-install-recommends g++ cmake espeak-ng",
        ],
    );
}

/// /proc is a file system without a single free block.
#[test]
fn a_full_disk_is_said_before_anything_is_fetched() {
    let output = Machine::complete(GOOD_PYTHON).setup(Path::new("/proc/zipper"));
    assert_refused(&output, &["2.0 GiB are needed in `/proc`, 0.0 GiB are free"]);
}

/// Uses the real Python, whose pip is told of an index at a port where nobody listens.
#[test]
fn no_network_is_said() {
    let deps = tempfile::tempdir().unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_xtask"))
        .args(["setup", "--deps"])
        .arg(deps.path())
        .env("PIP_CONFIG_FILE", "/dev/null")
        .env("PIP_INDEX_URL", "http://127.0.0.1:1/simple")
        .env("PIP_RETRIES", "0")
        .env("PIP_NO_CACHE_DIR", "1")
        .output()
        .unwrap();
    assert_refused(&output, &["pip cannot reach the Python package index", "network"]);
    assert!(!deps.path().join("libtorch").exists());
}
