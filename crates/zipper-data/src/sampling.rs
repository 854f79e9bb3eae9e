//! From a configuration and its utterances to what batches are drawn from.

use zipper_config::RunConfig;
use zipper_plan::SamplerProblem;

use crate::manifest::Utterance;

/// What a run's global batches are drawn from: the same for whoever checks a run, plans it or trains it. How languages take turns in
/// `utterances` does not matter.
///
/// # Panics
/// If an utterance is in none of the configured languages.
pub fn sampler_problem<'a>(
    config: &RunConfig,
    utterances: impl IntoIterator<Item = &'a Utterance>,
) -> SamplerProblem {
    let mut durations = vec![Vec::new(); config.data.languages.len()];
    for utterance in utterances {
        durations[utterance.language].push(utterance.duration);
    }
    SamplerProblem {
        seed: config.seed,
        temperature: config.data.temperature,
        batch_seconds: config.training.batch_audio_seconds,
        durations,
    }
}
