//! `zipper-demo`: makes the toy language model of the quickstart.
//!
//! The rest of the demo, corpora and pretrained models, is made by the Python scripts beside this crate's sources.
//!
//! Reading order: [`words`] (the text), [`directory`] (the Hugging Face directory), [`dictation`], [`pretrain`].

mod dictation;
mod directory;
mod pretrain;
mod words;

use std::path::PathBuf;

use clap::{Parser, Subcommand};
use zipper_cli::ExitStatus;

#[derive(Debug, Parser)]
#[command(version, about)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Pretrain a character-level Llama on lines of text and save it as a Hugging Face directory.
    PretrainLm {
        /// Lines of `language<TAB>text`.
        #[arg(long)]
        words: PathBuf,
        /// The directory to write; kept as it is if it was made from the same text with the same settings.
        #[arg(long)]
        output: PathBuf,
        /// Optimizer steps.
        #[arg(long, default_value_t = 600)]
        steps: u32,
        /// Share of rows, 0 to 1, that are dictation: a blurred spelling, where speech will be, before its text. So a small model learns
        /// to listen, where a large one knows how to repeat.
        #[arg(long, default_value_t = 0.0)]
        dictation: f64,
        /// Torch threads.
        #[arg(long, default_value_t = 2)]
        threads: u16,
    },
}

fn main() -> ExitStatus {
    zipper_cli::init_tracing("info");
    let Command::PretrainLm {
        words,
        output,
        steps,
        dictation,
        threads,
    } = Cli::parse().command;
    tch::set_num_threads(i32::from(threads));
    zipper_cli::finish(pretrain::run(&words, &output, steps, dictation).map(|()| ExitStatus::Done))
}
