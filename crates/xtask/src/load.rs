//! `cargo xtask load`: the coordinator with thousands of workers.

use crate::workspace::{self, Workspace};

/// Builds the coordinator for release, and measures it as `arguments` say.
///
/// # Errors
/// If a figure is beyond its limit, or the run failed.
pub(crate) fn run(workspace: &Workspace, arguments: &[String]) -> anyhow::Result<()> {
    let build = ["build", "--release", "--package", "zipper-coordinator"];
    workspace::run(workspace.cargo().args(build))?;
    let mut load = workspace.cargo();
    load.args([
        "run",
        "--release",
        "--package",
        "zipper-tests",
        "--example",
        "load",
        "--",
    ]);
    workspace::run(load.args(arguments))
}
