//! The section `training.augment`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What training changes about its utterances, so that it never hears one twice in the same way. Left out: nothing. Validation, tests and
/// `zipper-worker eval` hear them as they are.
///
/// What is drawn depends on (seed, step, utterance) alone, as dropout does: any number of workers, and a run that was stopped and
/// resumed, hear the same. Encoder outputs cannot be cached.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AugmentConfig {
    /// Masks over the features. Left out: none.
    #[serde(default)]
    pub spec_augment: Option<SpecAugmentConfig>,
    /// Speed perturbation (Ko et al., Interspeech 2015): factors, one of which is drawn for each utterance at each step; 1.1 is
    /// faster and higher, 0.9 slower and lower. Usual is `[0.9, 1.0, 1.1]`. Each is within 0.5 and 2, to a thousandth. Left out: none.
    /// An utterance that would come out longer than 30 s (Whisper's positions) or shorter than a frame keeps its speed.
    /// Durations in batches, dealing and metrics are those before the change.
    #[serde(default)]
    pub speed: Vec<f64>,
}

impl AugmentConfig {
    /// Whether utterances are trained on as they are.
    pub fn is_off(&self) -> bool {
        self.spec_augment.is_none() && self.speed.is_empty()
    }
}

/// SpecAugment (Park et al., arXiv 1904.08779) without time warping: bands and spans of the log-mel features are replaced by the mean
/// of the utterance's features. Each width is drawn from 0 to the maximum given here, both included, and each place where it fits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SpecAugmentConfig {
    /// Masks over mel bands, for the whole utterance.
    #[serde(default = "default_masks")]
    pub frequency_masks: usize,
    /// Most mel bands of such a mask; Whisper has 80 of them, or 128.
    #[serde(default = "default_frequency_width")]
    pub frequency_width: usize,
    /// Masks over time, for all mel bands.
    #[serde(default = "default_masks")]
    pub time_masks: usize,
    /// Most frames of such a mask, of 10 ms each. Never more than the utterance has.
    #[serde(default = "default_time_width")]
    pub time_width: usize,
}

impl Default for SpecAugmentConfig {
    fn default() -> Self {
        Self {
            frequency_masks: default_masks(),
            frequency_width: default_frequency_width(),
            time_masks: default_masks(),
            time_width: default_time_width(),
        }
    }
}

fn default_masks() -> usize {
    2
}

fn default_frequency_width() -> usize {
    10
}

fn default_time_width() -> usize {
    50
}
