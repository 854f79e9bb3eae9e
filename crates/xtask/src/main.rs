//! `cargo xtask`: set-up, quickstart, demo corpora and models, the whole test suite, and the fault campaign.
//!
//! Owns what has to run before anything that links libtorch can be built, so it links nothing of the kind. Everything it
//! fetches or makes goes under `.deps/` and `demo/`.
//!
//! Reading order: `workspace` (folders, running programs), `setup`, `demo`, `quickstart`, `checks` (`cargo xtask test`),
//! `gpu`, `bench`, `instructions`, `reference`, `dist`, `faults`, `load`, `simulate`.

mod bench;
mod checks;
mod demo;
mod dist;
mod faults;
mod gpu;
mod instructions;
mod load;
mod phases;
mod quickstart;
mod reference;
mod setup;
mod simulate;
mod workspace;

use std::path::PathBuf;

use clap::{Parser, Subcommand};
use zipper_cli::ExitStatus;

use crate::bench::Bench;
use crate::demo::{Corpus, Model};
use crate::instructions::Options;
use crate::setup::Flavor;
use crate::workspace::Workspace;

#[derive(Debug, Parser)]
#[command(name = "cargo xtask", about = "Zipper's set-up, quickstart and tests")]
struct Cli {
    #[command(subcommand)]
    command: Command,
    /// The folder that takes what is fetched; tests use another one than the default, `.deps`.
    #[arg(long, global = true, hide = true)]
    deps: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Fetch libtorch into `.deps/`, after which `cargo build` works.
    Setup {
        /// The CUDA-capable install of the same version: 4 GB instead of 1.3.
        #[arg(long)]
        cuda: bool,
    },
    /// Everything: set up, make the demo, train both stages with 2 workers, evaluate.
    Quickstart,
    /// Everything that CI runs.
    Test,
    /// The tests that need a GPU.
    Gpu,
    /// Measure, and write what came out into docs/benchmarks/.
    Bench {
        #[arg(value_enum)]
        what: Bench,
        /// What of it is measured, where it has parts: `cargo xtask bench training -- --help` tells of its own.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Count the instructions of hot paths, and fail if one takes many more than docs/benchmarks/instructions.json has.
    Instructions(Options),
    /// Write the parts of docs/ that are made of the code: the references of commands and configuration.
    Reference,
    /// Make a tarball of the programs in target/dist/, and see that they run from it.
    Dist,
    /// Break real runs at random, and compare each with the run that was left in peace.
    Faults {
        /// `--rounds N --seed S --only KIND`, `--soak-minutes M`; `cargo xtask faults -- --help` tells all.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Let a coordinator serve thousands of simulated workers, and fail if that takes too long or too much.
    Load {
        /// `--workers N`, `--seconds S`, `--output FILE`; `cargo xtask load -- --help` tells all.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Play the coordinator on a virtual clock, with faults that seeds decide.
    Simulate {
        /// `--seeds N --first K`, `--trace`, `--bug NAME`; `cargo xtask simulate -- --help` tells all.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Make a demo corpus under `demo/`.
    Corpus {
        #[arg(value_enum)]
        corpus: Corpus,
    },
    /// Make a demo model under `demo/models/`.
    Model {
        #[arg(value_enum)]
        model: Model,
    },
}

fn main() -> ExitStatus {
    let cli = Cli::parse();
    let workspace = Workspace::new(cli.deps);
    let result = match cli.command {
        Command::Setup { cuda } => setup::run(&workspace, if cuda { Flavor::Cuda } else { Flavor::Cpu }),
        Command::Quickstart => quickstart::run(&workspace),
        Command::Test => checks::run(&workspace),
        Command::Gpu => gpu::run(&workspace),
        Command::Bench { what, arguments } => bench::run(&workspace, what, &arguments),
        Command::Instructions(options) => instructions::run(&workspace, options),
        Command::Dist => dist::run(&workspace),
        Command::Reference => reference::run(&workspace, false),
        Command::Faults { arguments } => faults::run(&workspace, &arguments),
        Command::Load { arguments } => load::run(&workspace, &arguments),
        Command::Simulate { arguments } => simulate::run(&workspace, &arguments),
        Command::Corpus { corpus } => demo::corpus(&workspace, corpus),
        Command::Model { model } => demo::model(&workspace, model),
    };
    zipper_cli::finish(result.map(|()| ExitStatus::Done))
}
