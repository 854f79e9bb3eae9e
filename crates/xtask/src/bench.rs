//! `cargo xtask bench`: measurements that docs/benchmarks keeps.

use clap::ValueEnum;
use zipper_cli::UserError;

use crate::setup;
use crate::setup::python::{Environment, System};
use crate::workspace::{self, Workspace};

/// Programs of a run, which `overlap`, `startup` and `training` start.
const PACKAGES: [&str; 3] = ["zipper-launch", "zipper-coordinator", "zipper-worker"];

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Bench {
    /// How long workers wait for gradients, with and without overlap (10 minutes).
    Overlap,
    /// What it costs to remember states for recovery and to capture checkpoints (3 minutes).
    Memory,
    /// How long it takes to the first step, against torchrun (5 minutes).
    Startup,
    /// How fast checkpoints are written and read, against plain object_store, in S3 and in a folder (5 minutes).
    Checkpoints,
    /// How fast a step is and how much memory it takes, against transformers, PEFT and DDP; needs the demo's data and models (hours).
    Training,
}

/// Measures with the release build and writes `docs/benchmarks/<name>.json`.
///
/// # Errors
/// What building or measuring fails with.
pub(crate) fn run(workspace: &Workspace, bench: Bench, arguments: &[String]) -> anyhow::Result<()> {
    if !matches!(bench, Bench::Checkpoints | Bench::Training) && !arguments.is_empty() {
        let error = UserError::new(format!("unexpected: {}", arguments.join(" ")));
        return Err(error
            .hint("only `cargo xtask bench checkpoints` and `cargo xtask bench training` take more")
            .into());
    }
    let (name, package) = match bench {
        Bench::Overlap => ("overlap", "zipper-tests"),
        Bench::Memory => ("memory", "zipper-train"),
        Bench::Startup => ("startup", "zipper-tests"),
        Bench::Checkpoints => ("checkpoints", "zipper-tests"),
        Bench::Training => ("training", "zipper-tests"),
    };
    let torch = match bench {
        Bench::Startup => torch_side(workspace, "crates/xtask/scripts")?,
        Bench::Training => torch_side(workspace, "tests/baseline")?,
        Bench::Overlap | Bench::Memory | Bench::Checkpoints => Vec::new(),
    };
    if !matches!(bench, Bench::Memory | Bench::Checkpoints) {
        let packages = PACKAGES.iter().flat_map(|package| ["--package", package]);
        workspace::run(workspace.cargo().args(["build", "--release"]).args(packages))?;
    }
    let mut measure = workspace.cargo();
    measure.args(["run", "--release", "--package", package, "--example", name, "--"]);
    let output = format!("docs/benchmarks/{name}.json");
    workspace::run(measure.arg(output).args(torch).args(arguments))
}

/// Installs what PyTorch's side needs, whose programs are in the folder `scripts`; the arguments that name it.
fn torch_side(workspace: &Workspace, scripts: &str) -> anyhow::Result<Vec<String>> {
    if !setup::has_cuda(workspace)? {
        let error =
            UserError::new("torch cannot be imported: `cargo xtask setup` installs only its libraries");
        return Err(error.hint("`cargo xtask setup --cuda` installs all of it").into());
    }
    let environment = Environment::transformers(workspace, &System::find()?)?;
    let text = |path: std::path::PathBuf| path.display().to_string();
    let arguments = [
        ("--python", text(environment.program())),
        ("--torch", text(workspace.deps().join("libtorch"))),
        ("--scripts", text(workspace.root().join(scripts))),
        ("--pycache", text(workspace.deps().join("transformers/pycache"))),
    ];
    Ok(arguments
        .into_iter()
        .flat_map(|(name, value)| [name.to_owned(), value])
        .collect())
}
