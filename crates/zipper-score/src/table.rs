//! The table at the end of a run, as it is written and as it is read by whoever shows it.

use serde::{Deserialize, Serialize};

use zipper_types::Step;

use crate::Headline;

/// Where a run keeps its table.
pub const RESULT_TABLE: &str = "eval/table.json";

/// The table at the end: each test set with its controls.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ResultTable {
    /// Completed steps of the model.
    pub step: Step,
    /// One part for each test set.
    pub sets: Vec<ResultSet>,
}

/// One test set.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ResultSet {
    /// Its name.
    pub name: String,
    /// One row for each language in it.
    pub languages: Vec<ResultRow>,
    /// All languages together.
    pub overall: ResultRow,
}

/// One row: rates as fractions, 0.25 is 25 %.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ResultRow {
    /// Language code, or `all`.
    pub lang: String,
    /// Hours of training data, if known.
    pub train_hours: Option<f64>,
    /// Utterances decoded.
    pub utterances: u64,
    /// The figure that counts for this language.
    pub headline: Option<Headline>,
    /// With speech.
    pub trained: Rates,
    /// With silenced speech.
    pub silenced: Option<Rates>,
    /// Before the first step.
    pub untrained: Option<Rates>,
}

/// Word and character error rate.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Rates {
    /// Word error rate.
    pub wer: f64,
    /// Character error rate.
    pub cer: f64,
}
