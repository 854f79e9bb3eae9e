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

#[cfg(test)]
mod tests {
    use super::*;

    /// Seconds for a second of audio and for a token, in all steps below.
    const TRUTH: (f64, f64) = (0.5, 0.02);

    fn languages() -> Vec<String> {
        ["en", "de", "ja"].map(str::to_owned).to_vec()
    }

    /// Of `en` 40 characters an utterance, of `de` 50; of `ja` nothing is ever drawn.
    fn amounts() -> [LanguageAmount; 3] {
        [(10, 400), (4, 200), (2, 30)].map(|(utterances, characters)| LanguageAmount {
            utterances,
            seconds: 60.0,
            characters,
        })
    }

    /// A step of three utterances of `en` with 20 tokens each, and two of `de` with 10.
    fn step(audio_seconds: f64, compute_seconds: f64) -> MeasuredStep {
        let of_language = |tokens, utterances| MeasuredLanguage { tokens, utterances };
        MeasuredStep {
            audio_seconds,
            tokens: 80,
            compute_seconds,
            by_language: [("en", of_language(60, 3)), ("de", of_language(20, 2))]
                .map(|(lang, measured)| (lang.to_owned(), measured))
                .into(),
        }
    }

    /// Steps of 30, 31, .. seconds of audio, each as long as `TRUTH` says.
    fn steps(number: usize) -> Vec<MeasuredStep> {
        (0..number)
            .map(|index| {
                let audio = 30.0 + index as f64;
                step(audio, TRUTH.0 * audio + TRUTH.1 * 80.0)
            })
            .collect()
    }

    fn assert_true(model: &WorkModel) {
        assert!(model.measured);
        assert!((model.per_audio_second - TRUTH.0).abs() < 1e-9, "{model:?}");
        assert!((model.per_token - TRUTH.1).abs() < 1e-9, "{model:?}");
    }

    /// Goal: eight steps say what audio and tokens take, seven do not; either say how many tokens a character makes.
    #[test]
    fn enough_steps_are_a_model() {
        for (number, measured) in [(MIN_SAMPLES, true), (MIN_SAMPLES - 1, false)] {
            let model = WorkModel::measured_by(&languages(), &amounts(), &steps(number));
            assert_eq!(model.measured, measured, "{number} steps");
            let expected = [60.0 / 120.0, 20.0 / 100.0, 80.0 / 220.0];
            for (found, expected) in model.tokens_per_character.iter().zip(expected) {
                assert!((found - expected).abs() < 1e-12, "{model:?}");
            }
        }
        assert_true(&WorkModel::measured_by(
            &languages(),
            &amounts(),
            &steps(MIN_SAMPLES),
        ));
    }

    /// Goal: steps that were held up, and lines in which nothing was measured, do not count, also not among the eight.
    #[test]
    fn steps_that_say_nothing_are_left_out() {
        let mut lines = steps(MIN_SAMPLES);
        // Just over three times what the usual step takes for a second of audio; then nothing computed, and nothing heard.
        lines.insert(3, step(10.0, 3.01 * (TRUTH.0 * 34.0 + 1.6) / 34.0 * 10.0));
        lines.push(step(50.0, 0.0));
        lines.push(step(0.0, 2.0));
        assert_true(&WorkModel::measured_by(&languages(), &amounts(), &lines));
        lines.remove(0);
        assert!(!WorkModel::measured_by(&languages(), &amounts(), &lines).measured);
    }

    /// Goal: what is usual is the median: a few steps that were much faster make no outliers of the others.
    #[test]
    fn fast_steps_make_no_outliers() {
        let mut lines = steps(MIN_SAMPLES);
        lines.extend([step(30.0, 1.0), step(31.0, 1.0)]);
        assert!(WorkModel::measured_by(&languages(), &amounts(), &lines).measured);
    }

    /// Goal: before anything was drawn a character is a token.
    #[test]
    fn nothing_was_drawn() {
        let model = WorkModel::measured_by(&languages(), &amounts(), &[]);
        assert_eq!(model.tokens_per_character, [1.0; 3]);
        assert!(!model.measured);
    }
}
