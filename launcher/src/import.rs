//! `zipper-launch data import`: published corpora, and those of other toolkits, as manifests.

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::{Subcommand, ValueEnum};
use comfy_table::Table;
use zipper_cli::{ExitStatus, UserError};
use zipper_data::import::{Imported, Layout, Request, import};

use crate::run::print;

/// Names that a message lists; the report has all.
const NAMED: usize = 20;

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Make a manifest of a corpus as it was published; audio stays where it is.
    ///
    /// Prints utterances and hours of each language. `--ids` takes only what a list names: ids that it has twice are taken once and
    /// listed, ids that the corpus has not are an error unless `--allow-missing`. What was left out, and why, is in full in
    /// `<output>.report.json`.
    ///
    /// Examples:
    ///   zipper-launch data import --from common-voice --split train --ids train_com_voice_ar_ids.txt cv-corpus-18.0/ar --output ar.jsonl
    ///   zipper-launch data import --from mls --split train --language de mls_german --output de.jsonl
    ///   zipper-launch data import --from libri-speech --split train-clean-100 --language en --lowercase LibriSpeech --output en.jsonl
    ///   zipper-launch data import --from lhotse cuts.jsonl.gz --output cuts.jsonl
    #[command(verbatim_doc_comment)]
    Import(Arguments),
}

#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// The corpus's folder; with `lhotse` a file of cuts, with `msr-86k` the JSON.
    root: PathBuf,
    /// How it is laid out.
    #[arg(long, value_enum)]
    from: LayoutName,
    /// The part of it, as the corpus names it.
    #[arg(long, default_value = "train")]
    split: String,
    /// Language of everything, where the corpus does not say it of each utterance.
    #[arg(long)]
    language: Option<String>,
    /// List of utterance ids, one a line. Can be given several times.
    #[arg(long)]
    ids: Vec<PathBuf>,
    /// Go on without ids that the corpus has not.
    #[arg(long, requires = "ids")]
    allow_missing: bool,
    /// Go on without audio that is not there or cannot be read.
    #[arg(long)]
    skip_bad_audio: bool,
    /// Turn texts into small letters.
    #[arg(long)]
    lowercase: bool,
    /// Text before every id, so that ids of several corpora stay apart.
    #[arg(long, default_value = "")]
    prefix: String,
    /// The manifest to write. It must not be there.
    #[arg(long)]
    output: PathBuf,
}

/// Values of `--from`.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum LayoutName {
    /// Mozilla Common Voice: a language's folder with `<split>.tsv` and `clips/`.
    CommonVoice,
    /// Multilingual LibriSpeech: `mls_german` with `<split>/transcripts.txt`.
    Mls,
    /// LibriSpeech: the folder with `train-clean-100` and the others.
    LibriSpeech,
    /// MSR-86K: a language's JSON, with the recordings anywhere below its folder.
    #[value(name = "msr-86k")]
    Msr86k,
    /// A Kaldi data directory.
    Kaldi,
    /// Cuts of Lhotse, `.jsonl` or `.jsonl.gz`.
    Lhotse,
    /// Hugging Face's `audiofolder` with `metadata.jsonl` or `metadata.csv`.
    Audiofolder,
}

impl LayoutName {
    fn layout(self) -> Layout {
        match self {
            Self::CommonVoice => Layout::CommonVoice,
            Self::Mls => Layout::Mls,
            Self::LibriSpeech => Layout::LibriSpeech,
            Self::Msr86k => Layout::Msr86k,
            Self::Kaldi => Layout::Kaldi,
            Self::Lhotse => Layout::Lhotse,
            Self::Audiofolder => Layout::AudioFolder,
        }
    }
}

pub(crate) async fn run(command: Command) -> anyhow::Result<ExitStatus> {
    let Command::Import(arguments) = command;
    // Reads many files.
    tokio::task::spawn_blocking(move || make(&arguments))
        .await
        .context("the import was cut off")?
}

fn make(arguments: &Arguments) -> anyhow::Result<ExitStatus> {
    if arguments.output.exists() {
        return Err(
            UserError::new(format!("`{}` is there already", arguments.output.display()))
                .hint("give `--output` another name, or remove it")
                .into(),
        );
    }
    let request = Request {
        root: arguments.root.clone(),
        layout: arguments.from.layout(),
        split: arguments.split.clone(),
        lang: arguments.language.clone(),
        ids: arguments.ids.clone(),
        prefix: arguments.prefix.clone(),
        lowercase: arguments.lowercase,
    };
    let imported = import(&request).map_err(|error| UserError::new(error.to_string()))?;
    for note in notes(&imported) {
        eprintln!("note: {note}");
    }
    refuse(arguments, &imported)?;
    let mut manifest = String::new();
    for line in &imported.lines {
        let _ = writeln!(
            manifest,
            "{}",
            serde_json::to_string(line).context("a path is not UTF-8")?
        );
    }
    let report = serde_json::to_string_pretty(&imported).context("the report cannot be written as JSON")?;
    let mut report_path = arguments.output.clone().into_os_string();
    report_path.push(".report.json");
    write_whole(Path::new(&report_path), &report)?;
    write_whole(&arguments.output, &manifest)?;
    print(&format!("{}\n{}", table(&imported), arguments.output.display()))?;
    Ok(ExitStatus::Done)
}

/// What was left out and does no harm.
fn notes(imported: &Imported) -> Vec<String> {
    let mut notes = Vec::new();
    for (list, repeated) in &imported.repeated {
        let ids: Vec<&str> = repeated.iter().map(|repeated| repeated.id.as_str()).collect();
        let what = format!(
            "`{}` has {} ids more than once; each was taken once",
            list.display(),
            ids.len()
        );
        notes.push(format!("{what}: {}", named(&ids)));
    }
    if !imported.empty_texts.is_empty() {
        let ids: Vec<&str> = imported.empty_texts.iter().map(String::as_str).collect();
        notes.push(format!(
            "{} without a text are left out: {}",
            ids.len(),
            named(&ids)
        ));
    }
    notes
}

/// What may not be left out unless the user says so.
fn refuse(arguments: &Arguments, imported: &Imported) -> Result<(), UserError> {
    for (list, missing) in &imported.missing {
        let ids: Vec<&str> = missing.iter().map(String::as_str).collect();
        let what = format!(
            "`{}` names {} ids that the corpus has not: {}",
            list.display(),
            ids.len(),
            named(&ids)
        );
        if !arguments.allow_missing {
            return Err(UserError::new(what).hint(
                "is it the right `--split`, and all of the corpus? `--allow-missing` goes on without them",
            ));
        }
        eprintln!("warning: {what}");
    }
    if !imported.bad_audio.is_empty() {
        let files: Vec<String> = imported
            .bad_audio
            .iter()
            .map(|(id, error)| format!("{id} ({error})"))
            .collect();
        let files: Vec<&str> = files.iter().map(String::as_str).collect();
        let what = format!(
            "the audio of {} utterances cannot be used: {}",
            files.len(),
            named(&files)
        );
        if !arguments.skip_bad_audio {
            return Err(UserError::new(what).hint("`--skip-bad-audio` goes on without them"));
        }
        eprintln!("warning: {what}");
    }
    if imported.lines.is_empty() {
        return Err(UserError::new("there is nothing to import"));
    }
    Ok(())
}

fn named(names: &[&str]) -> String {
    let mut text = names[..names.len().min(NAMED)].join(", ");
    if names.len() > NAMED {
        let _ = write!(text, " and {} more", names.len() - NAMED);
    }
    text
}

fn table(imported: &Imported) -> Table {
    let mut table = zipper_cli::table(["language", "utterances", "hours"], [1, 2]);
    for (lang, amount) in &imported.languages {
        table.add_row([
            lang.clone(),
            amount.utterances.to_string(),
            format!("{:.2}", amount.hours),
        ]);
    }
    table
}

/// Writes a file that is there as a whole or not at all.
fn write_whole(path: &Path, text: &str) -> anyhow::Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    let cannot = || format!("`{}` cannot be written", path.display());
    let mut file = tempfile::NamedTempFile::new_in(folder.unwrap_or(Path::new("."))).with_context(cannot)?;
    file.write_all(text.as_bytes()).with_context(cannot)?;
    file.persist(path).with_context(cannot)?;
    Ok(())
}
