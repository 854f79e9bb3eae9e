//! `cargo xtask bench`: measurements that docs/benchmarks keeps.

use clap::ValueEnum;

use crate::workspace::{self, Workspace};

/// Programs of a run.
const PACKAGES: [&str; 3] = ["zipper-launch", "zipper-coordinator", "zipper-worker"];

/// What is measured.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum Bench {
    /// How long workers wait for gradients, with and without overlap (10 minutes).
    Overlap,
}

/// Measures with the release build and writes `docs/benchmarks/<name>.json`.
///
/// # Errors
/// What building or measuring fails with.
pub(crate) fn run(workspace: &Workspace, bench: Bench) -> anyhow::Result<()> {
    let packages = PACKAGES.iter().flat_map(|package| ["--package", package]);
    workspace::run(workspace.cargo().args(["build", "--release"]).args(packages))?;
    let name = match bench {
        Bench::Overlap => "overlap",
    };
    let mut measure = workspace.cargo();
    measure.args([
        "run",
        "--release",
        "--package",
        "zipper-tests",
        "--example",
        name,
        "--",
    ]);
    workspace::run(measure.arg(format!("docs/benchmarks/{name}.json")))
}
