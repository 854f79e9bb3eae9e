//! `zipper-worker`: one rank of a run, and the tools that need the model.
//!
//! Reading order: `control` (what the coordinator is told and asked, on tokio), `train` (the training thread and its tasks), `start`
//! (what `training.start_from` names), `wire` (the protocol's words), `diagnosis` (what is told of collectives), `checkpoint` (parts of
//! a checkpoint, read), `eval` (WER and CER of a manifest), `transcribe` (audio files to text and subtitles), `export` (the result in
//! the formats of others), `inspect` (what the router learnt), `source` and `model` (the checkpoint that those read, and its model),
//! `best` (the mean of several), `devices` (what zipper-launch asks).

mod best;
mod checkpoint;
mod control;
mod devices;
mod diagnosis;
mod eval;
mod export;
mod inspect;
mod model;
mod source;
mod start;
mod train;
mod transcribe;
mod wire;

use std::io::Write;

use anyhow::Context;
use clap::{CommandFactory, Parser, Subcommand};
use zipper_cli::{About, ExitStatus, finish, init_tracing};

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
    ///   zipper-worker eval --run ./runs/quickstart --average 3 --manifest test.jsonl
    #[command(verbatim_doc_comment)]
    Eval(eval::Arguments),
    /// Write down what is said in audio files, as text, JSON or subtitles.
    ///
    /// Reads WAV, FLAC, MP3, Ogg Vorbis and Opus. Long recordings are cut at their pauses. A file's
    /// language is told by `--language` or a list, or else detected, by a run that was trained with `model.lid_head`; files in
    /// different languages are decoded together.
    ///
    /// Examples:
    ///   zipper-worker transcribe --run file:///data/runs/quickstart --language de talk.mp3
    ///   zipper-worker transcribe --run ./runs/quickstart --language de --format srt --output subtitles *.flac
    ///   zipper-worker transcribe --run s3://bucket/runs/a --list files.tsv --beam 4 --format json > transcripts.json
    #[command(verbatim_doc_comment)]
    Transcribe(transcribe::Arguments),
    /// Write a run's adapters as others load them: a PEFT directory for each language, and the projector.
    ///
    /// Each language comes down to one ordinary LoRA adapter, whatever the variant. With `--merge` it is added to the weights of the
    /// LLM instead. The output comes to its place as a whole.
    ///
    /// Examples:
    ///   zipper-worker export --run file:///data/runs/quickstart --output adapters
    ///   zipper-worker export --run s3://bucket/runs/a --checkpoint step-00000500 --language de vi --output adapters
    ///   zipper-worker export --run s3://bucket/runs/a --merge --language de --output german
    ///   zipper-worker export --run s3://bucket/runs/a --average 3 --output adapters
    #[command(verbatim_doc_comment)]
    Export(export::Arguments),
    /// Print a checkpoint's gates and similarities of languages as JSON; `zipper-launch inspect` makes pictures of them.
    ///
    /// Examples:
    ///   zipper-worker inspect --run file:///data/runs/a
    ///   zipper-worker inspect --run s3://bucket/runs/a --checkpoint step-00000500
    #[command(verbatim_doc_comment)]
    Inspect(inspect::Arguments),
    #[command(flatten)]
    About(About),
}

fn main() -> ExitStatus {
    let arguments = Arguments::parse();
    init_tracing("info");
    finish(match arguments.command {
        Command::Train(arguments) => train::run(&arguments),
        Command::Devices => devices::run(),
        Command::Eval(arguments) => eval::run(&arguments),
        Command::Transcribe(arguments) => transcribe::run(&arguments),
        Command::Export(arguments) => export::run(&arguments),
        Command::Inspect(arguments) => inspect::run(&arguments),
        Command::About(about) => about.run(Arguments::command()),
    })
}

/// Prints what a tool found, on stdout.
fn print_line(text: &str) -> anyhow::Result<()> {
    writeln!(std::io::stdout().lock(), "{text}").context("stdout is closed")
}
