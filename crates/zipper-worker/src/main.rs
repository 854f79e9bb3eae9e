//! `zipper-worker`: one rank of a run, and the tools that need the model.
//!
//! Reading order: `control` (what the coordinator is told and asked, on tokio), `train` (the training thread and its
//! tasks), `diagnosis` (what is told of collectives), `checkpoint` (parts of a checkpoint, read), `eval` (WER and CER of
//! a manifest), `export` (the result in the formats of others), `source` (the checkpoint that those two read), `devices` (what
//! zipper-launch asks).

mod checkpoint;
mod control;
mod devices;
mod diagnosis;
mod eval;
mod export;
mod source;
mod start;
mod train;

use std::io::Write;

use anyhow::Context;
use clap::{Parser, Subcommand};
use zipper_cli::{ExitStatus, finish, init_tracing};

/// One rank of a Zipper run, and the tools that need its model.
#[derive(Debug, Parser)]
#[command(version, about, long_about = None)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Train as one rank of a run; zipper-launch starts this.
    #[command(hide = true)]
    Train(train::Arguments),
    /// Print the devices of this machine as JSON; zipper-launch asks.
    #[command(hide = true)]
    Devices,
    /// Decode a manifest with a run's adapters, and print WER and CER by language.
    ///
    /// Examples:
    ///   zipper-worker eval --run file:///data/runs/quickstart --manifest test.jsonl
    ///   zipper-worker eval --run ./runs/quickstart --checkpoint step-00000500 --manifest test.jsonl --json
    #[command(verbatim_doc_comment)]
    Eval(eval::Arguments),
    /// Write a run's adapters as others load them: a PEFT directory for each language, and the projector.
    ///
    /// Each language comes down to one ordinary LoRA adapter, whatever the variant. With `--merge` it is added to the weights of the
    /// LLM instead. The output comes to its place as a whole.
    ///
    /// Examples:
    ///   zipper-worker export --run file:///data/runs/quickstart --output adapters
    ///   zipper-worker export --run s3://bucket/runs/a --checkpoint step-00000500 --language de vi --output adapters
    ///   zipper-worker export --run s3://bucket/runs/a --merge --language de --output german
    #[command(verbatim_doc_comment)]
    Export(export::Arguments),
}

fn main() -> ExitStatus {
    let arguments = Arguments::parse();
    init_tracing("info");
    finish(match arguments.command {
        Command::Train(arguments) => train::run(&arguments),
        Command::Devices => devices::run(),
        Command::Eval(arguments) => eval::run(&arguments),
        Command::Export(arguments) => export::run(&arguments),
    })
}

/// Prints what a tool found, on stdout.
fn print_line(text: &str) -> anyhow::Result<()> {
    writeln!(std::io::stdout().lock(), "{text}").context("stdout is closed")
}
