//! `cargo xtask reference`: the parts of docs/ that are made of the code.

use crate::workspace::{self, Workspace};

/// Writes them, or with `check` looks whether they are what the code says: tests/examples/reference.rs.
///
/// # Errors
/// If one of them is not, or what building fails with.
pub(crate) fn run(workspace: &Workspace, check: bool) -> anyhow::Result<()> {
    let mut reference = workspace.command(workspace.example(workspace.cargo(), "reference", false)?);
    if check {
        reference.arg("--check");
    }
    workspace::run(&mut reference)
}
