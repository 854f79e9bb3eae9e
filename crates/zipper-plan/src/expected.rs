//! What a step is expected to cost, by language: the work that placement spreads over the ranks.

use crate::sampler::probabilities;
use crate::{PlanError, WorkModel};

/// What there is to train on in one language.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct LanguageAmount {
    /// Number of utterances.
    pub utterances: usize,
    /// Their length in seconds.
    pub seconds: f64,
    /// Characters of their texts.
    pub characters: usize,
}

/// Expected work of each language in one global batch, in the unit of `model`.
///
/// A language has its probability times the mean cost of its utterances, times the number of utterances in a batch of
/// `batch_seconds`; zero if it has no utterances.
///
/// # Errors
/// [`PlanError::NoUtterances`].
pub fn expected_work(
    amounts: &[LanguageAmount],
    temperature: f64,
    batch_seconds: f64,
    model: &WorkModel,
) -> Result<Vec<f64>, PlanError> {
    let utterances = expected_utterances(amounts, temperature, batch_seconds)?;
    let work = amounts.iter().zip(utterances).enumerate();
    Ok(work
        .map(|(language, (amount, utterances))| {
            let cost = model.cost(language, amount.seconds, amount.characters);
            utterances * mean(cost, amount)
        })
        .collect())
}

/// How often `steps` global batches of `batch_seconds` pass over the utterances of each language, on average; zero if it has none.
///
/// # Errors
/// [`PlanError::NoUtterances`].
pub fn expected_epochs(
    amounts: &[LanguageAmount],
    temperature: f64,
    batch_seconds: f64,
    steps: u64,
) -> Result<Vec<f64>, PlanError> {
    let utterances = expected_utterances(amounts, temperature, batch_seconds)?;
    let epochs = amounts.iter().zip(utterances);
    Ok(epochs
        .map(|(amount, utterances)| mean(utterances * steps as f64, amount))
        .collect())
}

/// Utterances of each language in a global batch, on average.
fn expected_utterances(
    amounts: &[LanguageAmount],
    temperature: f64,
    batch_seconds: f64,
) -> Result<Vec<f64>, PlanError> {
    let seconds: Vec<f64> = amounts.iter().map(|amount| amount.seconds).collect();
    let probabilities = probabilities(&seconds, temperature)?;
    let mean_seconds: f64 = amounts
        .iter()
        .zip(&probabilities)
        .map(|(amount, probability)| probability * mean(amount.seconds, amount))
        .sum();
    let utterances = (batch_seconds / mean_seconds).max(1.0);
    Ok(probabilities
        .iter()
        .map(|probability| utterances * probability)
        .collect())
}

/// The part of a sum that is one utterance's.
fn mean(sum: f64, amount: &LanguageAmount) -> f64 {
    sum / amount.utterances.max(1) as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Sampler, SamplerProblem};

    /// Goal: the expected work is what batches bring on average. Method: draw many, with languages of different lengths
    /// and texts, and one without utterances.
    #[test]
    fn batches_bring_what_is_expected() {
        let durations = vec![vec![2.0; 300], vec![5.0; 30], vec![], vec![1.0; 4]];
        let characters = [20, 90, 0, 5];
        let amounts: Vec<LanguageAmount> = durations
            .iter()
            .zip(characters)
            .map(|(durations, characters)| LanguageAmount {
                utterances: durations.len(),
                seconds: durations.iter().sum(),
                characters: durations.len() * characters,
            })
            .collect();
        let mut model = WorkModel::unmeasured(4);
        model.tokens_per_character[1] = 0.5;
        let (temperature, batch_seconds) = (2.0, 200.0);
        let expected = expected_work(&amounts, temperature, batch_seconds, &model).expect("there is data");
        assert!(expected[2] <= 0.0, "there is nothing to draw");

        let mut sampler = Sampler::new(SamplerProblem {
            seed: 3,
            temperature,
            batch_seconds,
            durations: durations.clone(),
        })
        .expect("there is data");
        let batches = 400;
        let epochs = expected_epochs(&amounts, temperature, batch_seconds, 400).expect("there is data");
        let mut found = [0.0; 4];
        let mut heard = [0.0; 4];
        for utterance in (0..batches).flat_map(|_| sampler.next_batch().utterances) {
            let language = utterance.language;
            let seconds = durations[language][utterance.index];
            heard[language] += 1.0 / durations[language].len() as f64;
            found[language] += model.cost(language, seconds, characters[language]) / f64::from(batches);
        }
        let pairs = found.into_iter().zip(expected);
        for (found, expected) in pairs.chain(heard.into_iter().zip(epochs)) {
            assert!(
                (found - expected).abs() <= 0.05 * expected,
                "{found} instead of {expected}"
            );
        }
    }

    #[test]
    fn nothing_to_train_on_is_refused() {
        let nothing = [LanguageAmount::default()];
        assert_eq!(
            expected_work(&nothing, 1.0, 10.0, &WorkModel::unmeasured(1)),
            Err(PlanError::NoUtterances)
        );
    }

    /// Goal: epochs are utterances drawn by utterances there are. Method: counted by hand: a batch has 92 s, so nine utterances of the first
    /// language and one of the second.
    #[test]
    fn epochs_are_those_counted_by_hand() {
        let amounts = [(9, 90.0), (5, 10.0), (0, 0.0)].map(|(utterances, seconds)| LanguageAmount {
            utterances,
            seconds,
            characters: 0,
        });
        let epochs = expected_epochs(&amounts, 1.0, 92.0, 3).expect("there are utterances");
        for (found, expected) in epochs.iter().zip([9.0 * 3.0 / 9.0, 3.0 / 5.0, 0.0]) {
            assert!((found - expected).abs() < 1e-9, "{epochs:?}");
        }
        assert_eq!(epochs.len(), 3);
    }
}
