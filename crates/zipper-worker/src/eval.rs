//! `zipper-worker eval`: WER and CER of a manifest, by language; and how often the LID head finds the language, if the run has one.

use std::collections::BTreeMap;
use std::num::NonZeroU16;
use std::path::PathBuf;

use serde::Serialize;
use zipper_cli::{ExitStatus, Progress, UserError};
use zipper_data::{DurationLimits, Utterance, load_corpus};
use zipper_score::{Counts, Headline, Report, ReportBuilder, score};
use zipper_train::evaluate::{DecodeOptions, Decoded, decode};

use crate::model::load;
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
    threads: Option<NonZeroU16>,
}

pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<ExitStatus> {
    if let Some(threads) = arguments.threads {
        tch::set_num_threads(i32::from(threads.get()));
    }
    let source = Source::open(&arguments.source)?;
    let config = &source.config;
    let limits = DurationLimits::from(&config.data);
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
        detect: replica.detects_languages(),
    };
    let progress = Progress::new("Decoding utterances", utterances.len());
    let decoded = decode(&replica, &utterances, options, |done| {
        progress.at(done);
        true
    })?
    .unwrap_or_default();
    drop(progress);
    let mut builder = ReportBuilder::new(&config.evaluation.cer_languages);
    for utterance in &decoded {
        let scoring = config.evaluation.scoring(&utterance.lang);
        builder.add(
            &utterance.lang,
            score(scoring, &utterance.reference, &utterance.hypothesis),
        );
    }
    let report = builder.finish();
    let languages = &config.data.languages;
    let detection = Detection::of(&decoded, languages);
    let text = if arguments.json {
        let utterances: Vec<_> = decoded
            .iter()
            .map(|utterance| {
                let (nll, tokens) = utterance.nll.unzip();
                let (detected, probability) = utterance.detected.unzip();
                let detected = detected.map(|language| &languages[language]);
                serde_json::json!({"id": utterance.id, "lang": utterance.lang, "reference": utterance.reference,
                                   "hypothesis": utterance.hypothesis, "nll": nll, "tokens": tokens,
                                   "detected": detected, "probability": probability})
            })
            .collect();
        serde_json::json!({"step": source.step, "checkpoints": source.checkpoints(), "silenced": arguments.silenced,
                           "report": report, "language_identification": detection, "utterances": utterances})
        .to_string()
    } else {
        table(&report, detection.as_ref())
    };
    print_line(&text)?;
    Ok(ExitStatus::Done)
}

/// How often the LID head was right.
#[derive(Debug, Default, Serialize)]
struct Detection {
    /// Of all utterances.
    accuracy: f64,
    /// Of the utterances of each language.
    by_language: BTreeMap<String, f64>,
    /// What each language was taken for, where it was not itself: how many utterances.
    taken_for: BTreeMap<String, BTreeMap<String, usize>>,
}

impl Detection {
    /// Nothing if languages were not detected.
    fn of(decoded: &[Decoded], languages: &[String]) -> Option<Self> {
        let mut counts = BTreeMap::<&str, (usize, usize)>::new();
        let mut detection = Self::default();
        for utterance in decoded {
            let (detected, _) = utterance.detected?;
            let (right, all) = counts.entry(&utterance.lang).or_default();
            *all += 1;
            if languages[detected] == utterance.lang {
                *right += 1;
            } else {
                let taken_for = detection.taken_for.entry(utterance.lang.clone()).or_default();
                *taken_for.entry(languages[detected].clone()).or_default() += 1;
            }
        }
        let part = |(right, all): (usize, usize)| right as f64 / all as f64;
        let sum = |(right, all): (usize, usize), of: &(usize, usize)| (right + of.0, all + of.1);
        detection.accuracy = part(counts.values().fold((0, 0), sum));
        detection.by_language = counts
            .into_iter()
            .map(|(lang, counts)| (lang.to_owned(), part(counts)))
            .collect();
        (!decoded.is_empty()).then_some(detection)
    }
}

fn table(report: &Report, detection: Option<&Detection>) -> String {
    let mut header = vec!["language", "utterances", "WER %", "CER %", "headline"];
    header.extend(detection.map(|_| "detected %"));
    let mut table = zipper_cli::table(header, [1, 2, 3, 5]);
    let detected = |part: f64| format!("{:.1}", 100.0 * part);
    let percent = |counts: Counts| format!("{:.1}", 100.0 * counts.rate());
    for (lang, of_language) in &report.by_language {
        let headline = match of_language.headline {
            Headline::Wer => "WER",
            Headline::Cer => "CER",
        };
        let mut row = vec![
            lang.clone(),
            of_language.utterances.to_string(),
            percent(of_language.wer),
            percent(of_language.cer),
            headline.to_owned(),
        ];
        row.extend(detection.map(|detection| detected(detection.by_language[lang])));
        table.add_row(row);
    }
    let overall = &report.overall;
    let mut row = vec![
        "all".to_owned(),
        overall.utterances.to_string(),
        percent(overall.wer),
        percent(overall.cer),
        String::new(),
    ];
    row.extend(detection.map(|detection| detected(detection.accuracy)));
    table.add_row(row);
    table.to_string()
}
