//! `cargo xtask bench`: measurements that docs/benchmarks keeps.

use clap::ValueEnum;

use crate::workspace::{self, Workspace};

/// Programs of a run, which `overlap` starts.
const PACKAGES: [&str; 3] = ["zipper-launch", "zipper-coordinator", "zipper-worker"];

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Bench {
    /// How long workers wait for gradients, with and without overlap (10 minutes).
    Overlap,
    /// What it costs to remember states for recovery and to capture checkpoints (3 minutes).
    Memory,
}

/// Measures with the release build and writes `docs/benchmarks/<name>.json`.
///
/// # Errors
/// What building or measuring fails with.
pub(crate) fn run(workspace: &Workspace, bench: Bench) -> anyhow::Result<()> {
    let (name, package) = match bench {
        Bench::Overlap => ("overlap", "zipper-tests"),
        Bench::Memory => ("memory", "zipper-train"),
    };
    if bench == Bench::Overlap {
        let packages = PACKAGES.iter().flat_map(|package| ["--package", package]);
        workspace::run(workspace.cargo().args(["build", "--release"]).args(packages))?;
    }
    let mut measure = workspace.cargo();
    measure.args(["run", "--release", "--package", package, "--example", name, "--"]);
    workspace::run(measure.arg(format!("docs/benchmarks/{name}.json")))
}
