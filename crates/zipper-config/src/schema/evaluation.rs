//! The `evaluation:` section.

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use zipper_types::{Normalizer, Scoring};

use super::ByLanguage;

/// When and on what WER and CER are measured.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct EvaluationConfig {
    /// Test sets, decoded after the last step.
    #[serde(default)]
    pub tests: Vec<TestSet>,
    /// Also decode the test sets before the first step, with the untrained model.
    #[serde(default)]
    pub untrained: bool,
    /// Also decode the test sets with silenced speech: what the model guesses without hearing.
    #[serde(default)]
    pub no_audio_control: bool,
    /// Every how many steps the validation loss and WER are measured; 0: only at the end of each stage.
    #[serde(default)]
    pub every_steps: u64,
    /// Beam width; 1 is greedy.
    #[serde(default = "default_beam")]
    pub beam: usize,
    /// Longest transcript, in tokens.
    #[serde(default = "default_max_new_tokens")]
    pub max_new_tokens: usize,
    /// Languages whose headline figure is the CER: codes of the run's languages or of Whisper. By default those that are written without
    /// spaces between words; the paper's authors count Korean (`ko`) in letters, too.
    #[serde(default = "default_cer_languages")]
    pub cer_languages: Vec<String>,
    /// What is done to references and hypotheses before they are compared, by language: `english`, `basic`, `basic_split` (letters as
    /// words) or `none`. `default` is for those that are not named. Left out: `english` for English, `basic` for all others.
    #[serde(default)]
    pub normalizer: ByLanguage<Normalizer>,
    /// Count once what a hypothesis repeats without end: a phrase of up to 10 words that stands more than 4 times in a row, or of up to
    /// 20 letters that stands more than 12 times. Transcripts in `eval/` stay as they are.
    #[serde(default)]
    pub remove_repetitions: bool,
}

impl EvaluationConfig {
    /// How transcripts of `lang` are compared.
    pub fn scoring(&self, lang: &str) -> Scoring {
        let of_language = Normalizer::of_language(lang);
        Scoring {
            normalizer: self.normalizer.get(lang).unwrap_or(of_language),
            remove_repetitions: self.remove_repetitions,
        }
    }
}

impl Default for EvaluationConfig {
    fn default() -> Self {
        Self {
            tests: Vec::new(),
            untrained: false,
            no_audio_control: false,
            every_steps: 0,
            beam: default_beam(),
            max_new_tokens: default_max_new_tokens(),
            cer_languages: default_cer_languages(),
            normalizer: ByLanguage::default(),
            remove_repetitions: false,
        }
    }
}

fn default_beam() -> usize {
    1
}

fn default_max_new_tokens() -> usize {
    200
}

fn default_cer_languages() -> Vec<String> {
    ["bo", "ja", "km", "lo", "my", "th", "yue", "zh"]
        .map(str::to_owned)
        .to_vec()
}

/// A manifest with a name for the table.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TestSet {
    /// Name in the table and the file names: letters, digits, `-`, `_` and `.`.
    pub name: String,
    /// The manifest (JSON lines).
    pub manifest: PathBuf,
}
