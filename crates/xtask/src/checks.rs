//! `cargo xtask test`: everything that CI runs.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::{fs, io};

use anyhow::Context;

use crate::gpu;
use crate::instructions;
use crate::phases::Phases;
use crate::reference;
use crate::setup;
use crate::setup::python::{Environment, System};
use crate::simulate;
use crate::workspace::{self, Workspace};

/// Programs that only this command needs: subcommand of cargo, version.
const TOOLS: [(&str, &str); 3] = [("nextest", "0.9.143"), ("deny", "0.20.2"), ("machete", "0.9.2")];

pub(crate) fn run(workspace: &Workspace) -> anyhow::Result<()> {
    let mut phases = Phases::default();
    phases.run("tools", || {
        install_tools(workspace)?;
        let python = System::find()?;
        Environment::tensorboard(workspace, &python)?;
        Environment::jobset(workspace, &python)?;
        // They need a torch that can be imported.
        if setup::has_cuda(workspace)? {
            Environment::transformers(workspace, &python)?;
        }
        Ok(())
    })?;
    phases.run("format", || {
        workspace::run(workspace.cargo().args(["fmt", "--all", "--check"]))
    })?;
    phases.run("lints", || {
        let mut clippy = workspace.cargo();
        clippy.args([
            "clippy",
            "--workspace",
            "--all-targets",
            "--",
            "--deny",
            "warnings",
        ]);
        workspace::run(&mut clippy)
    })?;
    phases.run("documentation", || {
        let mut doc = workspace.cargo();
        doc.env("RUSTDOCFLAGS", "--deny warnings");
        workspace::run(doc.args(["doc", "--workspace", "--no-deps"]))
    })?;
    phases.run("dependencies", || {
        workspace::run(tool(workspace, "deny").args(["check", "bans", "licenses", "sources"]))?;
        // Crates that are named in a Cargo.toml and used nowhere; the folders, because what is below `.deps` and `target` is not ours.
        workspace::run(tool(workspace, "machete").args(["crates", "launcher", "tests", "fuzz"]))
    })?;
    phases.run("scripts", || check_scripts(workspace))?;
    phases.run("examples in the documentation", || {
        // Cargo's link arguments do not reach these programs, so libtorch must be found another way.
        let libraries = workspace.deps().join("libtorch/torch/lib");
        let mut test = workspace.cargo();
        test.env("LD_LIBRARY_PATH", libraries);
        workspace::run(test.args(["test", "--workspace", "--doc", "--quiet"]))
    })?;
    // With a feature that the other phases build without.
    phases.run("bugs that the simulation has to find", || {
        simulate::seeded_bugs(workspace)
    })?;
    // Before the programs, which puts the worker without CUDA back into its place.
    phases.run("CUDA", || gpu::check(workspace))?;
    // The end-to-end tests run programs of other packages, which building tests alone does not build.
    phases.run("programs", || {
        workspace::run(workspace.cargo().args(["build", "--workspace"]))
    })?;
    phases.run("references in docs/", || reference::run(workspace, true))?;
    // With the example that building the tests makes too, so that only counting takes time.
    phases.run("instructions", || instructions::check(workspace))?;
    // The direction of dependencies between crates is a test too: tests/tests/architecture.rs.
    // Last, so that the counts of passed and failed tests end the output.
    phases.run("tests", || {
        workspace::run(tool(workspace, "nextest").args(["run", "--workspace"]))
    })?;
    println!("== all checks passed");
    Ok(())
}

/// Parses every Python script, and gives shell scripts to shellcheck where it is installed.
fn check_scripts(workspace: &Workspace) -> anyhow::Result<()> {
    let mut compile = workspace.command("python3");
    compile.env("PYTHONPYCACHEPREFIX", workspace.root().join("target/pycache"));
    workspace::run(compile.args(["-m", "compileall", "-q", "cluster", "crates", "tests"]))?;
    if runs(&mut workspace.command("shellcheck")) {
        let mut shellcheck = workspace.command("shellcheck");
        shellcheck
            .args([
                ".ci/run",
                "crates/xtask/dist/install-libtorch.sh",
                "launcher/src/slurm/job.sh",
            ])
            .args(scripts(&workspace.root().join("cluster"))?);
        workspace::run(&mut shellcheck)?;
    } else {
        println!("shellcheck is not installed: shell scripts are not checked");
    }
    Ok(())
}

/// The shell scripts in `folder`, sorted.
fn scripts(folder: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let entries = fs::read_dir(folder).with_context(|| format!("cannot list `{}`", folder.display()))?;
    let paths = entries
        .map(|entry| Ok(entry?.path()))
        .collect::<io::Result<Vec<_>>>();
    let paths = paths.with_context(|| format!("cannot list `{}`", folder.display()))?;
    let is_script = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "sh");
    let mut scripts: Vec<PathBuf> = paths.into_iter().filter(is_script).collect();
    scripts.sort();
    Ok(scripts)
}

/// Installs those that are missing, or there in another version, into `.deps/tools`.
pub(crate) fn install_tools(workspace: &Workspace) -> anyhow::Result<()> {
    for (name, version) in TOOLS {
        if has_version(&mut tool(workspace, name), version) {
            continue;
        }
        let mut install = workspace.cargo();
        // Unoptimised, which takes a third of the time to compile and does for what they do here.
        install
            .args(["install", "--locked", "--debug", "--root"])
            .arg(workspace.deps().join("tools"));
        workspace::run(install.arg(format!("cargo-{name}@{version}")))?;
    }
    Ok(())
}

/// Whether a program can be asked its version.
pub(crate) fn runs(command: &mut Command) -> bool {
    command
        .arg("--version")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

/// Whether a program is there in this version.
fn has_version(command: &mut Command, version: &str) -> bool {
    let output = command.arg("--version").stderr(Stdio::null()).output();
    output.is_ok_and(|output| {
        let said = String::from_utf8_lossy(&output.stdout);
        output.status.success() && said.split_whitespace().any(|word| word == version)
    })
}

/// `cargo <name>`: the one in `.deps/tools` if it is there, else the one on the PATH.
pub(crate) fn tool(workspace: &Workspace, name: &str) -> Command {
    let own = workspace.deps().join("tools/bin").join(format!("cargo-{name}"));
    let mut command = if own.exists() {
        workspace.command(own)
    } else {
        workspace.command(format!("cargo-{name}"))
    };
    // Set by the `cargo run` that started this program, and by cargo never for a subcommand, which cargo-machete tells them by.
    command.env_remove("CARGO_PKG_NAME").arg(name);
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: a tool of another version than the one that is named here is not taken for it.
    #[test]
    fn a_tool_counts_in_its_version_only() {
        let says = |text: &str| {
            let mut command = Command::new("echo");
            command.arg(text);
            command
        };
        let nextest = "cargo-nextest 0.9.143 (60fa45f63 2026-08-04)\nrelease: 0.9.143";
        for (text, version, is_there) in [
            (nextest, "0.9.143", true),
            (nextest, "0.9.144", false),
            (nextest, "0.9.14", false),
            ("0.9.2", "0.9.2", true),
        ] {
            assert_eq!(
                has_version(&mut says(text), version),
                is_there,
                "{version} in {text}"
            );
        }
        assert!(!has_version(&mut Command::new("/nonexistent"), "1.0.0"));
    }
}
