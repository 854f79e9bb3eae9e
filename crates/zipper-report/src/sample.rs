//! What was counted on a test set.

use std::collections::BTreeMap;

use zipper_score::Counts;

/// Edits and lengths of the utterances of a test set by language, each by the unit of its language's headline: words or characters.
/// Counts of an utterance that was decoded by several models (seeds) add up.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Sample {
    by_language: BTreeMap<String, BTreeMap<String, Counts>>,
}

impl Sample {
    /// Adds what was counted for an utterance.
    pub fn add(&mut self, lang: &str, utterance: &str, counts: Counts) {
        let of_language = self.by_language.entry(lang.to_owned()).or_default();
        *of_language.entry(utterance.to_owned()).or_default() += counts;
    }

    /// Adds another model's sample of the same test set.
    pub fn merge(&mut self, other: &Self) {
        for (lang, utterances) in &other.by_language {
            for (utterance, counts) in utterances {
                self.add(lang, utterance, *counts);
            }
        }
    }

    /// Its languages.
    pub fn languages(&self) -> impl Iterator<Item = &str> {
        self.by_language.keys().map(String::as_str)
    }

    /// Utterances of a language.
    pub fn utterances(&self, lang: &str) -> usize {
        self.by_language.get(lang).map_or(0, BTreeMap::len)
    }

    /// The error rate of a language, as a fraction; nothing if it is not in the set.
    pub fn rate(&self, lang: &str) -> Option<f64> {
        let utterances = self.by_language.get(lang)?;
        Some(utterances.values().copied().sum::<Counts>().rate())
    }

    /// The mean of the error rates of those of `languages` that are in the set: each counts as much as the others.
    pub fn mean_rate(&self, languages: &[String]) -> Option<f64> {
        let rates: Vec<f64> = languages.iter().filter_map(|lang| self.rate(lang)).collect();
        (!rates.is_empty()).then(|| rates.iter().sum::<f64>() / rates.len() as f64)
    }

    /// The counts of a language's utterances that both samples have.
    pub(crate) fn pairs(&self, other: &Self, lang: &str) -> Vec<[Counts; 2]> {
        let (Some(own), Some(others)) = (self.by_language.get(lang), other.by_language.get(lang)) else {
            return Vec::new();
        };
        own.iter()
            .filter_map(|(utterance, counts)| Some([*counts, *others.get(utterance)?]))
            .collect()
    }
}
