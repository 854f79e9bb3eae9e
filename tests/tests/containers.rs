//! Goal: the example for Kubernetes is what its API takes.
//! Method: `cluster/containers/check-jobset.py` with the models that the API's publishers generate from its schema, which `cargo
//! xtask test` installs; the same with a misspelt key and a wrong type, so that the check is known to see something.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path)
}

/// What the check says of a manifest, and whether it is content.
fn check(manifest: &Path) -> (bool, String) {
    let python = repository(".deps/jobset/bin/python");
    assert!(
        python.exists(),
        "run `cargo xtask test` once: it installs what this needs"
    );
    let output = Command::new(python)
        .arg(repository("cluster/containers/check-jobset.py"))
        .arg(manifest)
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .output()
        .expect("an installed Python can be started");
    let said = [output.stdout, output.stderr].concat();
    (
        output.status.success(),
        String::from_utf8_lossy(&said).into_owned(),
    )
}

#[test]
fn the_jobset_is_valid_and_a_wrong_one_is_not() {
    let example = repository("cluster/containers/jobset.yaml");
    let (valid, said) = check(&example);
    assert!(valid, "{said}");
    let text = fs::read_to_string(&example).expect("the example is there");
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    for (right, wrong, words) in [
        (
            "maxRestarts: 20",
            "maxRestart: 20",
            ".spec.failurePolicy.maxRestart: unknown key",
        ),
        ("maxRestarts: 20", "maxRestarts: often", "maxRestarts"),
        ("onExitCodes:", "onExitCode:", "onExitCode: unknown key"),
        ("mountPath: /data", "mountpath: /data", "mountpath: unknown key"),
    ] {
        let broken = folder.path().join("jobset.yaml");
        fs::write(&broken, text.replacen(right, wrong, 1)).expect("the folder is writable");
        let (valid, said) = check(&broken);
        assert!(!valid && said.contains(words), "`{wrong}`: {said}");
    }
}
