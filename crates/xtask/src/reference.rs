//! `cargo xtask reference`: the parts of docs/ that are made of the code.

use crate::workspace::{self, Workspace};

/// Writes them, or with `check` looks whether they are what the code says: tests/examples/reference.rs.
///
/// # Errors
/// If one of them is not, or what building fails with.
pub(crate) fn run(workspace: &Workspace, check: bool) -> anyhow::Result<()> {
    let mut build = workspace.cargo();
    workspace::run(build.args(["build", "--workspace", "--bins", "--example", "reference"]))?;
    let mut reference = workspace.command(workspace.root().join("target/debug/examples/reference"));
    if check {
        reference.arg("--check");
    }
    workspace::run(&mut reference)
}
