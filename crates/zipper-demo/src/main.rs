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
        #[arg(long, default_value_t = 0.0, value_parser = share)]
        dictation: f64,
        /// Torch threads.
        #[arg(long, default_value_t = 2)]
        threads: u16,
    },
}

fn share(text: &str) -> Result<f64, String> {
    let share: f64 = text.parse().map_err(|_| "expected a number, such as `0.9`")?;
    if (0.0..=1.0).contains(&share) {
        Ok(share)
    } else {
        Err("expected a share, 0 to 1".to_owned())
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_share_is_refused() {
        let parse = |dictation: &str| {
            let dictation = format!("--dictation={dictation}");
            Cli::try_parse_from([
                "zipper-demo",
                "pretrain-lm",
                "--words=words.tsv",
                "--output=lm",
                &dictation,
            ])
        };
        for share in ["0", "0.9", "1"] {
            assert!(parse(share).is_ok(), "{share}");
        }
        for (wrong, words) in [
            ("2", "expected a share, 0 to 1"),
            ("-0.1", "expected a share, 0 to 1"),
            ("nan", "expected a share, 0 to 1"),
            ("half", "expected a number, such as `0.9`"),
        ] {
            let error = parse(wrong).expect_err("it is no share").to_string();
            assert!(error.contains(words), "{wrong}: {error}");
        }
    }
}
