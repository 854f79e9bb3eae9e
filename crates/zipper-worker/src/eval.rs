//! `zipper-worker eval`: WER and CER of a manifest, by language.

use std::path::PathBuf;

use comfy_table::{CellAlignment, Table, presets};
use tch::Device;
use zipper_cli::{ExitStatus, UserError};
use zipper_config::RunConfig;
use zipper_data::{DurationLimits, Utterance, load_corpus};
use zipper_score::{Counts, Headline, Report, ReportBuilder, score};
use zipper_train::evaluate::{DecodeOptions, decode};
use zipper_train::replica::Replica;
use zipper_train::state::TrainState;
use zipper_types::Stage;

use crate::checkpoint::Parts;
use crate::print_line;
use crate::source::{self, Source};

#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    source: source::Choice,
    /// JSON-lines manifest to decode.
    #[arg(long)]
    manifest: PathBuf,
    /// Silence the speech: what the model guesses without hearing.
    #[arg(long)]
    silenced: bool,
    /// Print one JSON document instead of a table.
    #[arg(long)]
    json: bool,
    /// Torch threads. Left out: all cores.
    #[arg(long)]
    threads: Option<i32>,
}

pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<ExitStatus> {
    if let Some(threads) = arguments.threads {
        tch::set_num_threads(threads);
    }
    let source = Source::open(&arguments.source)?;
    let config = &source.config;
    let limits = DurationLimits {
        min_seconds: config.data.min_seconds,
        max_seconds: config.data.max_seconds,
    };
    let corpus = load_corpus(
        std::slice::from_ref(&arguments.manifest),
        &config.data.languages,
        limits,
    )
    .map_err(|error| UserError::new(error.to_string()))?;
    let replica = load(config, &source.parts)?;

    let utterances: Vec<&Utterance> = corpus.utterances.iter().collect();
    let options = DecodeOptions {
        silenced: arguments.silenced,
        with_nll: arguments.json,
    };
    let total = utterances.len();
    let decoded = decode(&replica, &utterances, options, |done| {
        tracing::info!("decoded {done} of {total} utterances");
        true
    })?
    .unwrap_or_default();
    let mut builder = ReportBuilder::new(&config.evaluation.cer_languages);
    for utterance in &decoded {
        builder.add(
            &utterance.lang,
            score(&utterance.lang, &utterance.reference, &utterance.hypothesis),
        );
    }
    let report = builder.finish();
    let text = if arguments.json {
        let utterances: Vec<_> = decoded
            .iter()
            .map(|utterance| {
                let (nll, tokens) = utterance.nll.unzip();
                serde_json::json!({"id": utterance.id, "lang": utterance.lang, "reference": utterance.reference,
                                   "hypothesis": utterance.hypothesis, "nll": nll, "tokens": tokens})
            })
            .collect();
        serde_json::json!({"step": source.step, "silenced": arguments.silenced, "report": report,
                           "utterances": utterances})
        .to_string()
    } else {
        table(&report).to_string()
    };
    print_line(&text)?;
    Ok(ExitStatus::Done)
}

/// The model as the checkpoint has it.
fn load(config: &RunConfig, parts: &Parts) -> anyhow::Result<Replica> {
    let state = TrainState::read(|name| parts.read(name))?;
    let every_bank = (0..config.data.languages.len()).collect();
    let mut replica =
        Replica::load(config, Stage::Align, Device::Cpu, every_bank).map_err(user_error_if_config)?;
    if state.stage == Stage::Zipper {
        replica.enter_zipper_stage()?;
    }
    replica.restore(|name| parts.read(name))?;
    Ok(replica)
}

/// Faults of the configuration end with exit code 2.
pub(crate) fn user_error_if_config(error: zipper_train::TrainError) -> anyhow::Error {
    if error.is_config() {
        UserError::new(error.to_string()).into()
    } else {
        error.into()
    }
}

fn table(report: &Report) -> Table {
    let mut table = Table::new();
    table.load_style(presets::UTF8_HORIZONTAL_ONLY);
    table.set_header(["language", "utterances", "WER %", "CER %", "headline"]);
    let percent = |counts: Counts| format!("{:.1}", 100.0 * counts.rate());
    for (lang, of_language) in &report.by_language {
        let headline = match of_language.headline {
            Headline::Wer => "WER",
            Headline::Cer => "CER",
        };
        table.add_row([
            lang.clone(),
            of_language.utterances.to_string(),
            percent(of_language.wer),
            percent(of_language.cer),
            headline.to_owned(),
        ]);
    }
    let overall = &report.overall;
    table.add_row([
        "all".to_owned(),
        overall.utterances.to_string(),
        percent(overall.wer),
        percent(overall.cer),
        String::new(),
    ]);
    for column in 1..=3 {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
}
