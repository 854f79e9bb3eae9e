//! What a corpus holds and what was left out of it.

use std::fmt;

use serde::Serialize;

use crate::manifest::Utterance;

/// Amounts by language, and the utterances that were left out.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct CorpusReport {
    /// One for each configured language, in their order.
    pub languages: Vec<LanguageReport>,
    /// Ids of utterances left out because the id occurred before.
    pub duplicate_ids: Vec<String>,
    /// Ids of utterances left out because they have no text.
    pub empty_texts: Vec<String>,
    /// Ids of utterances left out because they are longer than the limit.
    pub too_long: Vec<String>,
    /// Ids of utterances left out because they are shorter than the limit.
    pub too_short: Vec<String>,
    /// Empty manifests, and languages without utterances.
    pub warnings: Vec<String>,
}

/// What is kept of one language.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LanguageReport {
    /// Language code.
    pub lang: String,
    /// Number of utterances.
    pub utterances: usize,
    /// Their length in seconds.
    pub seconds: f64,
    /// Characters of their texts.
    pub characters: usize,
}

impl CorpusReport {
    pub(crate) fn new(languages: &[String], warnings: Vec<String>) -> Self {
        let language = |lang: &String| LanguageReport {
            lang: lang.clone(),
            utterances: 0,
            seconds: 0.0,
            characters: 0,
        };
        Self {
            languages: languages.iter().map(language).collect(),
            duplicate_ids: Vec::new(),
            empty_texts: Vec::new(),
            too_long: Vec::new(),
            too_short: Vec::new(),
            warnings,
        }
    }

    /// Counts the amounts anew: `utterances` are what is kept.
    pub fn count(&mut self, utterances: &[Utterance]) {
        for language in &mut self.languages {
            (language.utterances, language.seconds, language.characters) = (0, 0.0, 0);
        }
        for utterance in utterances {
            let language = &mut self.languages[utterance.language];
            language.utterances += 1;
            language.seconds += utterance.duration;
            language.characters += utterance.text.chars().count();
        }
    }
}

/// How many ids of a kind are listed.
const LISTED: usize = 5;

/// A table of the languages, then a line for each kind of utterance left out and for each warning.
impl fmt::Display for CorpusReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = self
            .languages
            .iter()
            .map(|language| language.lang.len())
            .max()
            .unwrap_or(0)
            .max("language".len());
        write!(f, "{:width$}  {:>10}  {:>9}", "language", "utterances", "hours")?;
        for LanguageReport {
            lang,
            utterances,
            seconds,
            ..
        } in &self.languages
        {
            write!(f, "\n{lang:width$}  {utterances:>10}  {:>9.3}", seconds / 3600.0)?;
        }
        let utterances: usize = self.languages.iter().map(|language| language.utterances).sum();
        let seconds: f64 = self.languages.iter().map(|language| language.seconds).sum();
        write!(
            f,
            "\n{:width$}  {utterances:>10}  {:>9.3}",
            "all",
            seconds / 3600.0
        )?;
        for (reason, ids) in [
            ("repeated id", &self.duplicate_ids),
            ("empty text", &self.empty_texts),
            ("too long", &self.too_long),
            ("too short", &self.too_short),
        ] {
            if !ids.is_empty() {
                write!(
                    f,
                    "\nleft out, {reason}: {} ({}",
                    ids.len(),
                    ids[..ids.len().min(LISTED)].join(", ")
                )?;
                write!(f, "{}", if ids.len() > LISTED { ", ..)" } else { ")" })?;
            }
        }
        for warning in &self.warnings {
            write!(f, "\nwarning: {warning}")?;
        }
        Ok(())
    }
}
