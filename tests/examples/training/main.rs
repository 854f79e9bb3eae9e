//! How fast a step is and how much memory it takes, against transformers, PEFT and DistributedDataParallel: `cargo xtask bench training`.
//!
//! Real runs of zipper-launch on this machine, and `tests/baseline/train.py` under torchrun, in turns, so that whatever else the machine
//! does meets both. Both train the same models on the same batches, dealt to the same ranks: the sampler and the dealing of
//! `zipper-plan` write them down for the script. Both begin with the same projector and with LoRA that does nothing yet, so that the
//! loss of the first step says whether both do the same work; if not, the measurement fails.
//!
//! Zipper runs at native length, without and with its cache of encoder outputs (filled beforehand). PyTorch's side runs with windows of
//! 30 s, at native length, and with encoder outputs that lie in memory. Run in the root of the repository, with the demo's data and
//! models; a part is measured in a minute with `--sizes quickstart --variants shared --programs zipper-cached,pytorch-cached
//! --processes 1 --rounds 1`.
//!
//! Reading order: `job` (a size, what both sides begin with, and the configuration of its runs), `batches` (what PyTorch's side is told
//! to train), `runs` (one run of one side), `flops` (what
//! a step has to compute), `report` (the table and the file).

mod batches;
mod flops;
mod job;
mod report;
mod runs;

use std::error::Error;
use std::fmt::Write;
use std::path::PathBuf;
use std::thread::available_parallelism;

use clap::{Parser, ValueEnum};
use zipper_tests::{DemoSize, TorchSide, comma_list, file_of_part, value_name};
use zipper_types::Variant;

/// Steps at the beginning of a run that are not counted.
const WARM_UP: usize = 2;
/// The same with windows of 30 s, where a step takes so long that what is done once does not matter.
const WARM_UP_PADDED: usize = 1;

/// Measures training.
#[derive(Debug, Parser)]
struct Arguments {
    /// The files that take what was measured, one for each size, whose name goes into theirs.
    output: PathBuf,
    #[command(flatten)]
    torch_side: TorchSide,
    #[command(flatten)]
    selection: Selection,
}

/// What of it is measured.
#[derive(Debug, clap::Args)]
struct Selection {
    /// Models and data.
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = DemoSize::value_variants().to_vec())]
    sizes: Vec<DemoSize>,
    /// How languages share adapters.
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = Adapters::value_variants().to_vec())]
    variants: Vec<Adapters>,
    /// What takes turns.
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = Side::value_variants().to_vec())]
    programs: Vec<Side>,
    /// Numbers of processes.
    #[arg(long, value_delimiter = ',', default_values_t = [1, 2, 4])]
    processes: Vec<u32>,
    /// How often each has its turn.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Counted steps of a run. Left out: 10 with quickstart, 3 with smollm2, whose steps are slow.
    #[arg(long)]
    steps: Option<usize>,
    /// Counted steps of a run with windows of 30 s.
    #[arg(long, default_value_t = 2)]
    padded_steps: usize,
}

/// How languages share adapters: what PEFT has, too.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Adapters {
    /// One for all.
    Shared,
    /// One for each.
    Independent,
}

/// A program and where its encoder outputs come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Side {
    ZipperNative,
    #[value(name = "pytorch-padded_30s")]
    PytorchPadded,
    PytorchNative,
    ZipperCached,
    PytorchCached,
}

/// Where runs are made.
struct Bench {
    arguments: Arguments,
    folder: tempfile::TempDir,
    cores: usize,
}

fn main() -> Result<(), Box<dyn Error>> {
    let bench = Bench {
        arguments: Arguments::parse(),
        folder: tempfile::tempdir()?,
        cores: available_parallelism()?.get(),
    };
    let selection = &bench.arguments.selection;
    for &size in &selection.sizes {
        let job = bench.prepare(size)?;
        let output = file_of_part(&bench.arguments.output, &value_name(size));
        let mut runs = Vec::new();
        for &variant in &selection.variants {
            for &processes in &selection.processes {
                for round in 0..selection.rounds {
                    for &side in &selection.programs {
                        runs.push(bench.measure(&job, variant, processes, round, side)?);
                    }
                }
                // What is measured so far is kept if a later run fails.
                bench.write(&output, &job, &runs)?;
            }
        }
        report::print(&bench.table(&runs));
        report::print_steps(&report::steps(&runs));
        println!("\nwritten: {}", output.display());
    }
    Ok(())
}

impl Selection {
    /// All steps of a run.
    fn steps_of(&self, size: DemoSize, program: Side) -> usize {
        let counted = match (program, size) {
            (Side::PytorchPadded, _) => self.padded_steps,
            (_, DemoSize::Quickstart) => self.steps.unwrap_or(10),
            (_, DemoSize::Smollm2) => self.steps.unwrap_or(3),
        };
        program.warm_up() + counted.max(1)
    }

    /// The selection as it is typed.
    fn flags(&self) -> String {
        let mut flags = format!(
            "--sizes {} --variants {} --programs {} --processes {} --rounds {} --padded-steps {}",
            comma_list(&self.sizes, |&size| value_name(size)),
            comma_list(&self.variants, |&variant| value_name(variant)),
            comma_list(&self.programs, |&side| value_name(side)),
            comma_list(&self.processes, u32::to_string),
            self.rounds,
            self.padded_steps
        );
        if let Some(steps) = self.steps {
            let _ = write!(flags, " --steps {steps}");
        }
        flags
    }
}

impl Side {
    /// What PyTorch's script calls it; nothing for Zipper.
    fn encoder(self) -> Option<&'static str> {
        match self {
            Self::ZipperNative | Self::ZipperCached => None,
            Self::PytorchPadded => Some("padded_30s"),
            Self::PytorchNative => Some("native"),
            Self::PytorchCached => Some("cached"),
        }
    }

    fn warm_up(self) -> usize {
        if self == Self::PytorchPadded {
            WARM_UP_PADDED
        } else {
            WARM_UP
        }
    }
}

impl Adapters {
    fn of_run(self) -> Variant {
        match self {
            Self::Shared => Variant::Shared,
            Self::Independent => Variant::Independent,
        }
    }
}
