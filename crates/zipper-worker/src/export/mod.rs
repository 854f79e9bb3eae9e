//! `zipper-worker export`: a run's result in the formats of others. One PEFT adapter for each language with the projector, or one
//! language merged into the weights of the LLM.
//!
//! Reads the checkpoint alone, and the frozen models only to merge. `card` writes what a reader needs to use it, `merged` the
//! models with one language in them.

mod card;
mod merged;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context;
use serde_json::json;
use zipper_cli::{ExitStatus, UserError};
use zipper_config::RunConfig;
use zipper_score::{RESULT_TABLE, ResultTable};
use zipper_train::peft;
use zipper_train::state::to_safetensors;
use zipper_train::trained::{AdaptedModel, Trained};

use crate::print_line;
use crate::source::{self, Source};

/// The folder of the projector, beside those of the languages.
const PROJECTOR: &str = "projector";

#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    source: source::Choice,
    /// Folder to make. It must not be there, or be empty.
    #[arg(long)]
    output: PathBuf,
    /// Language to export. Can be given several times; left out: all.
    #[arg(long = "language", value_name = "LANGUAGE", num_args = 1..)]
    languages: Vec<String>,
    /// Write the LLM with one language merged into its weights, as a Hugging Face directory, instead of adapters.
    #[arg(long)]
    merge: bool,
    /// Print what was written as one JSON document.
    #[arg(long)]
    json: bool,
}

/// What is exported.
struct Export<'a> {
    config: &'a RunConfig,
    trained: &'a Trained,
    results: Option<ResultTable>,
    /// Name of the checkpoint, or those of several.
    checkpoint: String,
}

pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<ExitStatus> {
    check_output(&arguments.output)?;
    let source = Source::open(&arguments.source)?;
    let languages = chosen(&source.config.data.languages, arguments)?;
    let trained = Trained::read(&source.config, |names| source.parts.read(names))?;
    let results = source.object(RESULT_TABLE)?;
    let results = results.and_then(|bytes| serde_json::from_slice::<ResultTable>(&bytes).ok());
    let export = Export {
        config: &source.config,
        trained: &trained,
        // Of another step it says nothing about these weights.
        results: results.filter(|table| source.steps == [table.step]),
        checkpoint: match source.checkpoints().as_slice() {
            [one] => one.clone(),
            several => format!("mean of {}", several.join(", ")),
        },
    };
    // Beside its final place, so that it comes there as a whole.
    let beside = arguments
        .output
        .parent()
        .filter(|path| !path.as_os_str().is_empty());
    let beside = beside.unwrap_or(Path::new("."));
    fs::create_dir_all(beside).with_context(|| format!("cannot make `{}`", beside.display()))?;
    let partial = tempfile::Builder::new().prefix(".export-").tempdir_in(beside);
    let partial = partial.with_context(|| format!("cannot write in `{}`", beside.display()))?;
    let written = if arguments.merge {
        merged::write_models(&export, languages[0], partial.path())?
    } else {
        export.write_adapters(&languages, partial.path())?
    };
    export.write_projector(&partial.path().join(PROJECTOR))?;
    publish(partial, &arguments.output)?;
    let document = json!({
        "run": source.store.url(),
        "checkpoint": export.checkpoint,
        "checkpoints": source.checkpoints(),
        "output": arguments.output,
        "written": written,
    });
    print_line(&if arguments.json {
        document.to_string()
    } else {
        let output = arguments.output.display();
        format!(
            "{} of {} -> {output}: {}",
            export.checkpoint,
            source.store.url(),
            written.join(", ")
        )
    })?;
    Ok(ExitStatus::Done)
}

/// Refuses to write over anything.
fn check_output(output: &Path) -> Result<(), UserError> {
    let occupied = match fs::read_dir(output) {
        Ok(mut entries) => entries.next().is_some(),
        Err(_) => output.exists(),
    };
    if occupied {
        let error = UserError::new(format!("`{}` is there already", output.display()));
        return Err(error.hint("give `--output` a folder that is not there, or an empty one"));
    }
    Ok(())
}

/// The ordinals of the languages that were asked for.
fn chosen(all: &[String], arguments: &Arguments) -> Result<Vec<usize>, UserError> {
    let asked = &arguments.languages;
    if arguments.merge && asked.len() != 1 {
        return Err(UserError::new("`--merge` needs exactly one `--language`")
            .hint(format!("the run's languages are {}", all.join(", "))));
    }
    if asked.is_empty() {
        return Ok((0..all.len()).collect());
    }
    let ordinal = |language: &String| {
        all.iter().position(|one| one == language).ok_or_else(|| {
            UserError::new(format!("the run has no language `{language}`"))
                .hint(format!("its languages are {}", all.join(", ")))
        })
    };
    let mut chosen = asked.iter().map(ordinal).collect::<Result<Vec<_>, _>>()?;
    chosen.sort_unstable();
    chosen.dedup();
    Ok(chosen)
}

/// Brings what was written to its place.
fn publish(partial: tempfile::TempDir, output: &Path) -> anyhow::Result<()> {
    let partial = partial.keep();
    // An empty folder may be there, over which nothing can be renamed on some systems.
    let _ = fs::remove_dir(output);
    let moved = fs::rename(&partial, output).and_then(|()| {
        use std::os::unix::fs::PermissionsExt;
        fs::set_permissions(output, fs::Permissions::from_mode(0o755))
    });
    if moved.is_err() {
        let _ = fs::remove_dir_all(&partial);
    }
    moved.with_context(|| format!("cannot write `{}`", output.display()))
}

impl Export<'_> {
    /// A PEFT directory for each language; returns their names.
    fn write_adapters(&self, languages: &[usize], folder: &Path) -> anyhow::Result<Vec<String>> {
        let merged = self.trained.merged();
        let mut written = Vec::new();
        for &language in languages {
            let name = &self.config.data.languages[language];
            let own = folder.join(name);
            for (model, folder) in [
                (AdaptedModel::Llm, own.clone()),
                (AdaptedModel::Encoder, own.join(peft::ENCODER)),
            ] {
                let Some(adapter) = peft::adapter(self.config, self.trained, &merged, model, language)?
                else {
                    continue;
                };
                write(&folder, peft::CONFIG, &pretty(&adapter.config))?;
                write(&folder, peft::WEIGHTS, &adapter.weights)?;
            }
            write(&own, "README.md", card::adapter(self, name).as_bytes())?;
            written.push(name.clone());
        }
        Ok(written)
    }

    /// The projector, and what else a program needs to use it.
    fn write_projector(&self, folder: &Path) -> anyhow::Result<()> {
        let projector = self.trained.projector.iter();
        let projector = projector.map(|(name, tensor)| (name.clone(), tensor.to_kind(tch::Kind::Float)));
        let projector: Vec<_> = projector.collect();
        let projector = to_safetensors(projector.iter().map(|(name, tensor)| (name.clone(), tensor)))?;
        write(folder, "projector.safetensors", &projector)?;
        let model = &self.config.model;
        let about = json!({
            "projector": model.projector,
            "encoder": {
                "path": model.encoder.path,
                "context": model.encoder.context,
                "chunk_seconds": model.encoder.chunk_seconds,
                "left_context_seconds": model.encoder.left_context_seconds,
            },
            "prompt": model.prompt,
        });
        write(folder, "config.json", &pretty(&about))
    }
}

/// JSON for people.
fn pretty(value: &serde_json::Value) -> Vec<u8> {
    format!("{value:#}\n").into_bytes()
}

fn write(folder: &Path, name: &str, bytes: &[u8]) -> anyhow::Result<()> {
    let path = folder.join(name);
    fs::create_dir_all(folder)
        .and_then(|()| fs::write(&path, bytes))
        .with_context(|| format!("cannot write `{}`", path.display()))
}
