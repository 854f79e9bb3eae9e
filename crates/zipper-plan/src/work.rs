//! How long an utterance takes: what placement and dealing go by.

/// Positions of the LLM for a second of audio, with the usual projectors (50 Hz frames, 4 to a position).
const POSITIONS_PER_SECOND: f64 = 12.5;

/// Expected time of an utterance, linear in its audio and its target tokens.
///
/// Only workers have tokenizers, so tokens are estimated from the characters of the text.
#[derive(Debug, Clone, PartialEq)]
pub struct WorkModel {
    /// Time for a second of audio.
    pub per_audio_second: f64,
    /// Time for a target token.
    pub per_token: f64,
    /// Target tokens for a character of text, by language.
    pub tokens_per_character: Vec<f64>,
    /// Whether times are seconds that were measured; else the unit is a position of the LLM.
    pub measured: bool,
}

/// What one step took: the sums over its global batch.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct StepSample {
    /// Time of forward and backward passes, summed over the ranks.
    pub(crate) compute_seconds: f64,
    /// Seconds of audio.
    pub(crate) audio_seconds: f64,
    /// Target tokens.
    pub(crate) tokens: f64,
}

impl WorkModel {
    /// Before anything was measured: positions that the LLM has to go through, and a token for each character.
    pub fn unmeasured(num_languages: usize) -> Self {
        Self {
            per_audio_second: POSITIONS_PER_SECOND,
            per_token: 1.0,
            tokens_per_character: vec![1.0; num_languages],
            measured: false,
        }
    }

    /// Expected time of an utterance, in seconds if they were `measured`, else in positions of the LLM.
    ///
    /// # Panics
    /// If there is no such language.
    pub fn cost(&self, language: usize, audio_seconds: f64, characters: usize) -> f64 {
        let tokens = characters as f64 * self.tokens_per_character[language];
        self.per_audio_second * audio_seconds + self.per_token * tokens
    }

    /// Times for a second of audio and for a token that explain `samples` best, neither negative (least squares).
    /// Nothing if the samples say nothing.
    pub(crate) fn fit(samples: &[StepSample]) -> Option<(f64, f64)> {
        let sum = |term: fn(&StepSample) -> f64| samples.iter().map(term).sum::<f64>();
        let (aa, at, tt) = (
            sum(|s| s.audio_seconds * s.audio_seconds),
            sum(|s| s.audio_seconds * s.tokens),
            sum(|s| s.tokens * s.tokens),
        );
        let (ay, ty) = (
            sum(|s| s.audio_seconds * s.compute_seconds),
            sum(|s| s.tokens * s.compute_seconds),
        );
        if !(aa > 0.0 && ay > 0.0) {
            return None;
        }
        let determinant = aa * tt - at * at;
        if determinant > 1e-9 * aa * tt {
            let (audio, token) = (
                (tt * ay - at * ty) / determinant,
                (aa * ty - at * ay) / determinant,
            );
            if audio >= 0.0 && token >= 0.0 {
                return Some((audio, token));
            }
            if audio < 0.0 {
                return Some((0.0, ty / tt));
            }
        }
        Some((ay / aa, 0.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(audio_seconds: f64, tokens: f64, (audio, token): (f64, f64)) -> StepSample {
        StepSample {
            compute_seconds: audio * audio_seconds + token * tokens,
            audio_seconds,
            tokens,
        }
    }

    /// Goal: what was put into the samples comes out, also where one of the two costs nothing.
    #[test]
    fn the_fit_finds_what_made_the_samples() {
        for truth in [(0.5, 0.01), (0.5, 0.0), (0.0, 0.02)] {
            let samples = [(60.0, 100.0), (55.0, 180.0), (70.0, 90.0), (64.0, 150.0)]
                .map(|(audio, tokens)| sample(audio, tokens, truth));
            let (audio, token) = WorkModel::fit(&samples).expect("the samples say enough");
            assert!(
                (audio - truth.0).abs() < 1e-9 && (token - truth.1).abs() < 1e-9,
                "{truth:?}"
            );
        }
    }

    /// Goal: characters cost as many positions as they make tokens.
    #[test]
    fn text_costs_its_tokens() {
        let mut model = WorkModel::unmeasured(1);
        model.tokens_per_character[0] = 0.25;
        assert!((model.cost(0, 2.0, 40) - 35.0).abs() < 1e-9);
    }

    /// Goal: what samples cannot tell apart is the audio's, and samples without time say nothing. Method: as many tokens a second in each, so
    /// that the determinant is nothing but rounding, and times with noise.
    #[test]
    fn what_cannot_be_told_apart_is_of_the_audio() {
        let noisy = [(100.1, 51.0), (200.2, 99.0), (333.3, 168.0), (71.7, 35.0)];
        let samples = noisy.map(|(audio_seconds, compute_seconds)| StepSample {
            compute_seconds,
            audio_seconds,
            tokens: 3.3 * audio_seconds,
        });
        let (audio, token) = WorkModel::fit(&samples).expect("the samples say enough");
        assert!((audio - 0.5).abs() < 0.01 && token == 0.0, "{audio} {token}");
        assert_eq!(WorkModel::fit(&[sample(60.0, 100.0, (0.0, 0.0))]), None);
    }

    /// Goal: noise that would make one of the two negative makes it zero, and the other one still fits.
    #[test]
    fn no_time_is_negative() {
        let fit = |truth| {
            let samples = [(60.0, 100.0), (55.0, 180.0), (70.0, 90.0)].map(|(a, t)| sample(a, t, truth));
            WorkModel::fit(&samples).expect("the samples say enough")
        };
        let (audio, token) = fit((1.0, -0.05));
        assert!(audio > 0.7 && audio < 1.0 && token == 0.0, "{audio} {token}");
        let (audio, token) = fit((-0.05, 1.0));
        assert!(token > 0.9 && token < 1.0 && audio == 0.0, "{audio} {token}");
        assert_eq!(WorkModel::fit(&[]), None);
    }
}
