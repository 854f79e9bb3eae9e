//! In what form transcripts are learnt and compared. What each name does to a text is in `zipper-score`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What is done to a reference and a hypothesis before they are compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Normalizer {
    /// Whisper's rules for English.
    English,
    /// Whisper's rules for all other languages.
    Basic,
    /// The same, and then every letter (grapheme cluster) is a word of its own: WER and CER are one figure, errors in letters, and
    /// spaces do not count. Whisper's authors report so for scripts that do not separate words.
    BasicSplit,
    /// Nothing: case and punctuation count.
    None,
}

impl Normalizer {
    /// The one that Whisper's authors use for a language, letters not split.
    pub fn of_language(lang: &str) -> Self {
        match lang {
            "en" => Self::English,
            _ => Self::Basic,
        }
    }
}

/// How a reference and a hypothesis of one language are compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Scoring {
    /// What is done to both.
    pub normalizer: Normalizer,
    /// Whether a phrase that the hypothesis repeats without end counts once.
    pub remove_repetitions: bool,
}

impl Scoring {
    /// As Whisper's authors do it for a language.
    pub fn of_language(lang: &str) -> Self {
        Self {
            normalizer: Normalizer::of_language(lang),
            remove_repetitions: false,
        }
    }
}

/// What is done to the transcripts that are learnt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum TextNormalization {
    /// Nothing: the model learns to write as the manifests do.
    #[default]
    None,
    /// Lower case.
    Lowercase,
    /// Whisper's basic rules: lower case, no punctuation or symbols, nothing in brackets.
    Basic,
}
