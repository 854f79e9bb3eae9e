//! The `data:` section.

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use zipper_types::TextNormalization;

use super::ByLanguage;

/// Languages and manifests.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DataConfig {
    /// Codes of languages, each with a bank of its own: those of Whisper, or others with a name in `model.prompt.language_names`. Every
    /// utterance must be in one of them.
    pub languages: Vec<String>,
    /// Training manifests (JSON lines).
    pub train: Vec<PathBuf>,
    /// Validation manifests; none: no validation.
    #[serde(default)]
    pub validation: Vec<PathBuf>,
    /// Languages are drawn with probability proportional to hours^(1/T). 1 keeps the proportions, larger evens out. NeMo's
    /// `reweight_temperature` is 1/T.
    #[serde(default = "default_temperature")]
    pub temperature: f64,
    /// What is done to the transcripts that are learnt, by language: `none`, `lowercase` or `basic` (Whisper's basic rules: no
    /// punctuation either). `default` is for those that are not named; left out: `none`. Also for the loss in validation, which
    /// could not be compared with that of training otherwise; references in `eval/` stay as the manifests have them.
    #[serde(default)]
    pub text_normalization: ByLanguage<TextNormalization>,
    /// What to do with an utterance whose audio is missing or broken.
    #[serde(default)]
    pub on_bad_audio: OnBadAudio,
    /// Longest utterance, in seconds; longer ones are left out and counted. At most 30 (Whisper's positions).
    #[serde(default = "default_max_seconds")]
    pub max_seconds: f64,
    /// Shortest utterance, in seconds; shorter ones are left out and counted. At least 0.01 (one frame of features).
    #[serde(default = "default_min_seconds")]
    pub min_seconds: f64,
}

fn default_temperature() -> f64 {
    1.0
}

fn default_max_seconds() -> f64 {
    30.0
}

fn default_min_seconds() -> f64 {
    0.1
}

/// What to do with an utterance whose audio is missing or broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OnBadAudio {
    /// Stop the run before the first step, naming every bad utterance.
    #[default]
    Fail,
    /// Leave it out, and count it in the report at the start. Whenever the run goes on, the same ones are left out.
    Skip,
}
