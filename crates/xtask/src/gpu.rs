//! The part of the workspace that needs CUDA: checked by `cargo xtask test` without a GPU, run on one by `cargo xtask gpu`.

use crate::checks;
use crate::setup;
use crate::workspace::{self, Workspace};

/// Packages with the feature `cuda` whose tests look at it.
const PACKAGES: [&str; 2] = ["zipper-collectives", "zipper-train"];
const WORKER: &str = "zipper-worker";
/// The same for the whole workspace: with some packages alone, dependencies would have other features, and be compiled once more.
const FEATURES: [&str; 2] = ["--features", "zipper-worker/cuda"];
/// Tests of the process groups, by file.
const TESTS: [&str; 2] = ["gradients", "nccl"];

/// Compiles and links everything with the feature `cuda`, and shows that it behaves where there is no GPU: the CPU tests
/// of the process groups pass, and the worker can say what it finds.
///
/// Leaves a worker with CUDA in `target/debug`; building without the feature puts the other one back.
///
/// # Errors
/// What fails.
pub(crate) fn check(workspace: &Workspace) -> anyhow::Result<()> {
    if !setup::has_cuda(workspace)? {
        println!(
            "CUDA's packages are not installed (`cargo xtask setup --cuda`): nothing is built against them"
        );
        return Ok(());
    }
    let with_cuda = |subcommand: &str| {
        let mut cargo = workspace.cargo();
        cargo.args([subcommand, "--workspace"]).args(FEATURES);
        cargo
    };
    let mut clippy = with_cuda("clippy");
    workspace::run(clippy.args(["--all-targets", "--", "--deny", "warnings"]))?;
    workspace::run(with_cuda("build").args(["--bin", WORKER]))?;
    let worker = workspace.root().join("target/debug").join(WORKER);
    workspace::run(workspace.command(worker).arg("devices"))?;
    let mut nextest = checks::tool(workspace, "nextest");
    nextest.args(["run", "--workspace"]).args(FEATURES);
    nextest.args(TESTS.iter().flat_map(|test| ["--test", test]));
    workspace::run(&mut nextest)
}

/// Runs the tests that need a GPU.
///
/// # Errors
/// What fails.
pub(crate) fn run(workspace: &Workspace) -> anyhow::Result<()> {
    setup::run(workspace, setup::Flavor::Cuda)?;
    checks::install_tools(workspace)?;
    let mut nextest = checks::tool(workspace, "nextest");
    nextest.arg("run");
    nextest.args(PACKAGES.iter().flat_map(|package| ["--package", package]));
    nextest.args(["--features", "cuda", "--run-ignored", "only", "--no-capture"]);
    // By name: packages have other ignored tests, which only take long.
    workspace::run(nextest.args(["-E", "test(/gpu/)"]))
}
