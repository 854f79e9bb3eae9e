//! `cargo xtask test`: everything that CI runs.

use std::process::{Command, Stdio};

use crate::phases::Phases;
use crate::workspace::{self, Workspace};

/// Programs that only this command needs: subcommand of cargo, version.
const TOOLS: [(&str, &str); 2] = [("nextest", "0.9.143"), ("deny", "0.20.2")];

pub(crate) fn run(workspace: &Workspace) -> anyhow::Result<()> {
    let mut phases = Phases::default();
    phases.run("tools", || install_tools(workspace))?;
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
        workspace::run(tool(workspace, "deny").args(["check", "bans", "licenses", "sources"]))
    })?;
    // The direction of dependencies between crates is a test too: tests/tests/architecture.rs.
    phases.run("tests", || {
        workspace::run(tool(workspace, "nextest").args(["run", "--workspace"]))
    })?;
    phases.run("examples in the documentation", || {
        // Cargo's link arguments do not reach these programs, so libtorch must be found another way.
        let libraries = workspace.deps().join("libtorch/torch/lib");
        let mut test = workspace.cargo();
        test.env("LD_LIBRARY_PATH", libraries);
        workspace::run(test.args(["test", "--workspace", "--doc", "--quiet"]))
    })?;
    phases.summarize();
    Ok(())
}

/// Installs the missing ones into `.deps/tools`.
fn install_tools(workspace: &Workspace) -> anyhow::Result<()> {
    for (name, version) in TOOLS {
        if is_there(workspace, name) {
            continue;
        }
        let mut install = workspace.cargo();
        install
            .args(["install", "--locked", "--root"])
            .arg(workspace.deps().join("tools"));
        workspace::run(install.arg(format!("cargo-{name}@{version}")))?;
    }
    Ok(())
}

fn is_there(workspace: &Workspace, name: &str) -> bool {
    tool(workspace, name)
        .arg("--version")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

/// `cargo <name>`: the one in `.deps/tools` if it is there, else the one on the PATH.
fn tool(workspace: &Workspace, name: &str) -> Command {
    let own = workspace.deps().join("tools/bin").join(format!("cargo-{name}"));
    let mut command = if own.exists() {
        workspace.command(own)
    } else {
        workspace.command(format!("cargo-{name}"))
    };
    command.arg(name);
    command
}
