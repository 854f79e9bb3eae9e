//! `cargo xtask faults`: the fault campaign.

use crate::workspace::{self, Workspace};

/// Programs of a run.
const PACKAGES: [&str; 3] = ["zipper-launch", "zipper-coordinator", "zipper-worker"];

/// Builds the programs, and plays rounds with them as `arguments` say.
///
/// # Errors
/// If a round did not go well, or nothing could be played.
pub(crate) fn run(workspace: &Workspace, arguments: &[String]) -> anyhow::Result<()> {
    let packages = PACKAGES.iter().flat_map(|package| ["--package", package]);
    workspace::run(workspace.cargo().arg("build").args(packages))?;
    let mut campaign = workspace.cargo();
    campaign.args(["run", "--package", "zipper-tests", "--example", "faults", "--"]);
    workspace::run(campaign.args(arguments))
}
