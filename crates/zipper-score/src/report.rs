//! Scores of many utterances, by language and together.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::{Counts, UtteranceScore};

/// Which rate stands for a language in the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Headline {
    /// The word error rate.
    Wer,
    /// The character error rate, for scripts that do not separate words.
    Cer,
}

/// What was counted in one language.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LanguageReport {
    /// Utterances scored.
    pub utterances: u64,
    /// Counted in words.
    pub wer: Counts,
    /// Counted in characters.
    pub cer: Counts,
    /// Which of the two is the figure of the language.
    pub headline: Headline,
}

/// What was counted in all languages together: big languages weigh more.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Overall {
    /// Utterances scored.
    pub utterances: u64,
    /// Counted in words.
    pub wer: Counts,
    /// Counted in characters.
    pub cer: Counts,
}

/// The result of one evaluation.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Report {
    /// By language code, in alphabetical order.
    pub by_language: BTreeMap<String, LanguageReport>,
    /// All languages pooled.
    pub overall: Overall,
}

impl Report {
    /// Adds the counts of `part`, another part of the same evaluation. A language keeps the headline it has here.
    pub fn merge(&mut self, part: &Self) {
        for (lang, language) in &part.by_language {
            let merged = language_entry(&mut self.by_language, lang, language.headline);
            merged.utterances += language.utterances;
            merged.wer += language.wer;
            merged.cer += language.cer;
        }
        self.overall.utterances += part.overall.utterances;
        self.overall.wer += part.overall.wer;
        self.overall.cer += part.overall.cer;
    }
}

/// Collects utterances into a [`Report`].
#[derive(Debug, Clone)]
pub struct ReportBuilder {
    cer_languages: BTreeSet<String>,
    report: Report,
}

impl ReportBuilder {
    /// An empty report, in which the CER is the headline of `cer_languages` and the WER that of all others.
    pub fn new<S: AsRef<str>>(cer_languages: &[S]) -> Self {
        Self {
            cer_languages: cer_languages
                .iter()
                .map(|lang| lang.as_ref().to_owned())
                .collect(),
            report: Report::default(),
        }
    }

    /// Counts one utterance.
    pub fn add(&mut self, lang: &str, score: UtteranceScore) {
        let headline = if self.cer_languages.contains(lang) {
            Headline::Cer
        } else {
            Headline::Wer
        };
        let language = language_entry(&mut self.report.by_language, lang, headline);
        language.utterances += 1;
        language.wer += score.wer;
        language.cer += score.cer;

        let overall = &mut self.report.overall;
        overall.utterances += 1;
        overall.wer += score.wer;
        overall.cer += score.cer;
    }

    /// The report of everything added.
    pub fn finish(self) -> Report {
        self.report
    }
}

fn language_entry<'a>(
    by_language: &'a mut BTreeMap<String, LanguageReport>,
    lang: &str,
    headline: Headline,
) -> &'a mut LanguageReport {
    by_language
        .entry(lang.to_owned())
        .or_insert_with(|| LanguageReport {
            utterances: 0,
            wer: Counts::default(),
            cer: Counts::default(),
            headline,
        })
}
