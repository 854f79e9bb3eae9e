//! `cargo xtask simulate`: runs of the coordinator on a virtual clock, many of them.

use crate::workspace::{self, Workspace};

/// Plays runs as `arguments` say, in a release build. Only with `--bug` are there bugs in it.
///
/// # Errors
/// If a run violated an invariant.
pub(crate) fn run(workspace: &Workspace, arguments: &[String]) -> anyhow::Result<()> {
    let mut play = workspace.cargo();
    play.args(["run", "--release", "--package", "zipper-simulation"]);
    if arguments.iter().any(|argument| argument.starts_with("--bug")) {
        play.args(["--features", "seeded-bugs"]);
    }
    workspace::run(play.arg("--").args(arguments))
}

/// Whether the simulation finds bugs that are put in for it to find. No other build of the coordinator has them: features of
/// packages that are built together are merged, and nothing is built together with these tests.
///
/// # Errors
/// If it does not.
pub(crate) fn seeded_bugs(workspace: &Workspace) -> anyhow::Result<()> {
    let mut test = crate::checks::tool(workspace, "nextest");
    // The whole workspace: for this package alone dependencies would have other features, and be compiled once more.
    test.args([
        "run",
        "--workspace",
        "--features",
        "zipper-simulation/seeded-bugs",
    ]);
    workspace::run(test.args(["--test", "seeded"]))
}
