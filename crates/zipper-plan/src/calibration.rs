//! What earlier steps took, as a model of work.

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::work::StepSample;
use crate::{LanguageAmount, WorkModel};

/// Steps that have to be measured before their times count.
const MIN_SAMPLES: usize = 8;

/// A step that took so many times as long as usual says nothing about its work: it was the first of a process, or the machine
/// was busy.
const OUTLIER: f64 = 3.0;

/// What a line of a run's metrics says about work; other keys of the line do not matter.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct MeasuredStep {
    /// Seconds of audio in the global batch.
    pub audio_seconds: f64,
    /// Its target tokens.
    pub tokens: u64,
    /// Seconds of forward and backward passes, summed over the ranks.
    pub compute_seconds: f64,
    /// By language code.
    pub by_language: BTreeMap<String, MeasuredLanguage>,
}

/// One language of a measured step.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct MeasuredLanguage {
    /// Its target tokens.
    pub tokens: u64,
    /// Its utterances.
    pub utterances: u64,
}

impl WorkModel {
    /// Times and tokens as `lines` show them, as far as they do: a few steps say nothing, nor does a step that took much longer
    /// than usual.
    ///
    /// # Shapes
    /// - `languages` and `amounts`: one for each language
    pub fn measured_by(languages: &[String], amounts: &[LanguageAmount], lines: &[MeasuredStep]) -> Self {
        let unmeasured = Self::unmeasured(languages.len());
        let tokens_per_character = tokens_per_character(languages, amounts, lines);
        let mut samples: Vec<StepSample> = lines
            .iter()
            .filter(|line| line.compute_seconds > 0.0 && line.audio_seconds > 0.0)
            .map(|line| StepSample {
                compute_seconds: line.compute_seconds,
                audio_seconds: line.audio_seconds,
                tokens: line.tokens as f64,
            })
            .collect();
        let speed = |sample: &StepSample| sample.compute_seconds / sample.audio_seconds;
        let mut speeds: Vec<f64> = samples.iter().map(speed).collect();
        speeds.sort_by(f64::total_cmp);
        if let Some(usual) = speeds.get(speeds.len() / 2) {
            samples.retain(|sample| speed(sample) <= OUTLIER * usual);
        }
        if samples.len() >= MIN_SAMPLES
            && let Some((per_audio_second, per_token)) = Self::fit(&samples)
        {
            return Self {
                per_audio_second,
                per_token,
                tokens_per_character,
                measured: true,
            };
        }
        Self {
            tokens_per_character,
            ..unmeasured
        }
    }
}

/// Tokens of the utterances that were drawn by the characters of all utterances; for a language that was not drawn as in the
/// others, and one where nothing was.
fn tokens_per_character(
    languages: &[String],
    amounts: &[LanguageAmount],
    lines: &[MeasuredStep],
) -> Vec<f64> {
    let drawn = languages.iter().zip(amounts).map(|(lang, amount)| {
        let of_language = lines.iter().filter_map(|line| line.by_language.get(lang));
        let (tokens, utterances) = of_language.fold((0, 0), |(tokens, utterances), next| {
            (tokens + next.tokens, utterances + next.utterances)
        });
        let characters = amount.characters as f64 / amount.utterances.max(1) as f64 * utterances as f64;
        (tokens as f64, characters)
    });
    let drawn: Vec<(f64, f64)> = drawn.collect();
    let (tokens, characters) = drawn
        .iter()
        .fold((0.0, 0.0), |sum, next| (sum.0 + next.0, sum.1 + next.1));
    let of_all = if characters > 0.0 {
        tokens / characters
    } else {
        1.0
    };
    let ratio = |(tokens, characters): (f64, f64)| {
        if characters > 0.0 {
            tokens / characters
        } else {
            of_all
        }
    };
    drawn.into_iter().map(ratio).collect()
}
