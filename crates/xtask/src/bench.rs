//! `cargo xtask bench`: measurements that docs/benchmarks keeps.

use clap::ValueEnum;
use zipper_cli::UserError;

use crate::setup;
use crate::setup::python::{Environment, System};
use crate::workspace::{self, Workspace};

/// What is measured, each by the example of its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Bench {
    /// How long workers wait for gradients, with and without overlap (3 minutes).
    Overlap,
    /// What it costs to remember states for recovery and to capture checkpoints (3 minutes).
    Memory,
    /// How long it takes to the first step, against torchrun (4 minutes).
    Startup,
    /// How fast checkpoints are written and read, against plain object_store, in S3 and in a folder (2 minutes).
    Checkpoints,
    /// What more languages cost a step (10 minutes).
    Languages,
    /// How fast audio files become features, against Python; needs the demo's data (6 minutes).
    Features,
    /// How fast transcripts are written, against transformers; needs the demo's data and models (half an hour).
    Decoding,
    /// How fast a step is and how much memory it takes, against transformers, PEFT and DDP; needs the demo's data and models (hours).
    Training,
}

impl Bench {
    /// The folder with the scripts of PyTorch's side, if there is one.
    fn scripts(self) -> Option<&'static str> {
        match self {
            Self::Startup => Some("crates/xtask/scripts"),
            Self::Features | Self::Decoding | Self::Training => Some("tests/baseline"),
            Self::Overlap | Self::Memory | Self::Checkpoints | Self::Languages => None,
        }
    }

    /// Whether it can be told what of it to measure.
    fn has_parts(self) -> bool {
        !matches!(self, Self::Overlap | Self::Memory | Self::Startup)
    }
}

/// Measures with the release build and writes `docs/benchmarks/<name>.json`, or such a file for each size of model.
///
/// # Errors
/// What building or measuring fails with.
pub(crate) fn run(workspace: &Workspace, bench: Bench, arguments: &[String]) -> anyhow::Result<()> {
    let name = bench
        .to_possible_value()
        .map(|value| value.get_name().to_owned())
        .unwrap_or_default();
    if !bench.has_parts() && !arguments.is_empty() {
        let error = UserError::new(format!("unexpected: {}", arguments.join(" ")));
        return Err(error
            .hint(format!("`cargo xtask bench {name}` measures all of it"))
            .into());
    }
    let torch = bench
        .scripts()
        .map(|scripts| torch_side(workspace, scripts))
        .transpose()?;
    let mut measure = workspace.command(workspace.example(workspace.cargo(), &name, true)?);
    measure.arg(format!("docs/benchmarks/{name}.json"));
    workspace::run(measure.args(torch.unwrap_or_default()).args(arguments))
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
