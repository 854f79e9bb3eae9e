//! The sampler: the sequence of global batches, a pure function of (seed, step, manifest).

use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};
use zipper_types::WorldSize;

use crate::PlanError;

/// Separates the random streams that are made from one seed.
const STREAM_OF_DRAWS: u64 = 0;
const STREAM_OF_PERMUTATIONS: u64 = 1;

/// What is sampled from.
#[derive(Debug, Clone, PartialEq)]
pub struct SamplerProblem {
    /// The run's seed.
    pub seed: u64,
    /// Languages are drawn with probability proportional to hours^(1/temperature).
    pub temperature: f64,
    /// Seconds of audio in a global batch.
    pub batch_seconds: f64,
    /// Seconds of every utterance, by language.
    pub durations: Vec<Vec<f64>>,
}

/// One utterance of the problem.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct UtteranceRef {
    /// Ordinal of its language.
    pub language: usize,
    /// Index within the language.
    pub index: usize,
}

/// The utterances of one optimizer step, in the order they were drawn.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GlobalBatch {
    /// At least one. An utterance can be in it twice only if its language began a new epoch inside the batch.
    pub utterances: Vec<UtteranceRef>,
}

/// Where a sampler stands: small, and all that a checkpoint needs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SamplerState {
    /// Languages drawn so far.
    pub draws: u64,
    /// For each language its epoch and how many utterances of the epoch are used up.
    pub positions: Vec<Position>,
}

/// Where a language stands in its own epochs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Position {
    /// Complete passes over the language.
    pub epoch: u64,
    /// Utterances of this epoch that are used up.
    pub used: usize,
}

/// Draws global batches.
#[derive(Debug, Clone)]
pub struct Sampler {
    problem: SamplerProblem,
    /// Running sums of the languages' probabilities; the last is 1.
    cumulative: Vec<f64>,
    state: SamplerState,
    /// This epoch's order of each language, empty for a language without utterances.
    orders: Vec<Vec<usize>>,
}

impl Sampler {
    /// A sampler at the first step.
    ///
    /// # Errors
    /// [`PlanError::NoUtterances`].
    pub fn new(problem: SamplerProblem) -> Result<Self, PlanError> {
        let positions = vec![Position::default(); problem.durations.len()];
        Self::restore(problem, SamplerState { draws: 0, positions })
    }

    /// A sampler that goes on from `state`.
    ///
    /// # Errors
    /// [`PlanError::NoUtterances`]; [`PlanError::State`] if the state has other languages or stands past the end of one.
    pub fn restore(problem: SamplerProblem, state: SamplerState) -> Result<Self, PlanError> {
        let languages = problem.durations.len();
        if state.positions.len() != languages {
            let found = state.positions.len();
            return Err(PlanError::State(format!(
                "it has {found} languages, the data {languages}"
            )));
        }
        for (language, (position, durations)) in state.positions.iter().zip(&problem.durations).enumerate() {
            if position.used > durations.len() {
                return Err(PlanError::State(format!(
                    "the language in place {language} of `data.languages`, counted from 0, has used {} utterances of an epoch, and \
                     there are {}",
                    position.used,
                    durations.len()
                )));
            }
        }
        let cumulative = cumulative(&problem)?;
        let mut sampler = Self {
            problem,
            cumulative,
            state,
            orders: Vec::new(),
        };
        sampler.orders = (0..languages).map(|language| sampler.order(language)).collect();
        Ok(sampler)
    }

    /// Where the sampler stands: the next batch is the first one drawn from this state.
    pub fn state(&self) -> SamplerState {
        self.state.clone()
    }

    /// Draws the next global batch: utterances until their seconds reach `batch_seconds`.
    pub fn next_batch(&mut self) -> GlobalBatch {
        let mut utterances = Vec::new();
        let mut seconds = 0.0;
        while seconds < self.problem.batch_seconds || utterances.is_empty() {
            let language = self.draw_language();
            let index = self.draw_utterance(language);
            seconds += self.problem.durations[language][index];
            utterances.push(UtteranceRef { language, index });
        }
        GlobalBatch { utterances }
    }

    fn draw_language(&mut self) -> usize {
        let mut random = stream(self.problem.seed, STREAM_OF_DRAWS, self.state.draws, 0);
        self.state.draws += 1;
        let at: f64 = random.random();
        self.cumulative.partition_point(|&sum| sum <= at)
    }

    fn draw_utterance(&mut self, language: usize) -> usize {
        if self.state.positions[language].used == self.orders[language].len() {
            let position = &mut self.state.positions[language];
            *position = Position {
                epoch: position.epoch + 1,
                used: 0,
            };
            self.orders[language] = self.order(language);
        }
        let position = &mut self.state.positions[language];
        position.used += 1;
        self.orders[language][position.used - 1]
    }

    /// The order of `language` in its current epoch.
    fn order(&self, language: usize) -> Vec<usize> {
        let mut order: Vec<usize> = (0..self.problem.durations[language].len()).collect();
        let epoch = self.state.positions[language].epoch;
        order.shuffle(&mut stream(
            self.problem.seed,
            STREAM_OF_PERMUTATIONS,
            epoch,
            language as u64,
        ));
        order
    }
}

impl SamplerProblem {
    /// Refuses more workers than a global batch has utterances, on average.
    ///
    /// # Errors
    /// [`PlanError::TooManyWorkers`], [`PlanError::NoUtterances`].
    pub fn check_world_size(&self, world_size: WorldSize) -> Result<(), PlanError> {
        let mean_seconds = self.mean_seconds()?;
        let utterances = (self.batch_seconds / mean_seconds).max(1.0);
        if f64::from(world_size.0) <= utterances {
            return Ok(());
        }
        Err(PlanError::TooManyWorkers {
            world_size,
            batch_seconds: self.batch_seconds,
            utterances,
            mean_seconds,
            largest: utterances as u32,
        })
    }

    /// Expected length of a drawn utterance, in seconds.
    fn mean_seconds(&self) -> Result<f64, PlanError> {
        let cumulative = cumulative(self)?;
        let mut before = 0.0;
        let mut mean = 0.0;
        for (durations, sum) in self.durations.iter().zip(cumulative) {
            if !durations.is_empty() {
                mean += (sum - before) * durations.iter().sum::<f64>() / durations.len() as f64;
            }
            before = sum;
        }
        Ok(mean)
    }
}

/// Running sums of the probabilities of the languages.
fn cumulative(problem: &SamplerProblem) -> Result<Vec<f64>, PlanError> {
    let seconds: Vec<f64> = problem
        .durations
        .iter()
        .map(|durations| durations.iter().sum())
        .collect();
    let probabilities = probabilities(&seconds, problem.temperature)?;
    let last = probabilities.iter().rposition(|&probability| probability > 0.0);
    let mut sum = 0.0;
    let running = probabilities.iter().enumerate().map(|(language, probability)| {
        sum += probability;
        // Rounding must leave no gap below 1 that would fall to a language without utterances.
        if Some(language) >= last { 1.0 } else { sum }
    });
    Ok(running.collect())
}

/// The probabilities with which languages are drawn, proportional to hours^(1/T).
///
/// # Errors
/// [`PlanError::NoUtterances`].
pub(crate) fn probabilities(seconds: &[f64], temperature: f64) -> Result<Vec<f64>, PlanError> {
    // Of the largest language, so that no power overflows.
    let most = seconds.iter().copied().fold(0.0, f64::max);
    let weight = |&seconds: &f64| {
        if seconds > 0.0 {
            (seconds / most).powf(1.0 / temperature)
        } else {
            0.0
        }
    };
    let weights: Vec<f64> = seconds.iter().map(weight).collect();
    let total: f64 = weights.iter().sum();
    if total == 0.0 {
        return Err(PlanError::NoUtterances);
    }
    Ok(weights.iter().map(|weight| weight / total).collect())
}

/// A random stream of its own for each (seed, purpose, a, b).
fn stream(seed: u64, purpose: u64, a: u64, b: u64) -> ChaCha8Rng {
    let mut key = [0; 32];
    for (bytes, value) in key.chunks_exact_mut(8).zip([seed, purpose, a, b]) {
        bytes.copy_from_slice(&value.to_le_bytes());
    }
    ChaCha8Rng::from_seed(key)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn problem(seed: u64, sizes: &[usize]) -> SamplerProblem {
        let durations = sizes
            .iter()
            .map(|&size| (0..size).map(|index| 1.0 + (index % 7) as f64 / 3.0).collect())
            .collect();
        SamplerProblem {
            seed,
            temperature: 2.0,
            batch_seconds: 9.0,
            durations,
        }
    }

    #[test]
    fn each_epoch_has_an_order_of_its_own() {
        let mut sampler = Sampler::new(problem(1, &[20])).expect("there is data");
        let batches = (0..40).flat_map(|_| sampler.next_batch().utterances);
        let drawn: Vec<usize> = batches.map(|at| at.index).collect();
        assert_ne!(drawn[..20], drawn[20..40]);
    }

    #[test]
    fn a_batch_ends_when_its_seconds_are_reached() {
        let problem = SamplerProblem {
            batch_seconds: 4.0,
            durations: vec![vec![1.0; 20]],
            ..problem(1, &[])
        };
        let mut sampler = Sampler::new(problem).expect("there is data");
        assert_eq!(sampler.next_batch().utterances.len(), 4);
    }

    proptest! {
        /// Thread 5 of docs/testing.md. Stopping after any batch, in any epoch, and going on from the state gives the same batches.
        #[test]
        fn thread_5_restart_at_any_step_changes_nothing(seed in any::<u64>(), stop in 0usize..20) {
            let problem = problem(seed, &[13, 0, 5, 1]);
            let mut uninterrupted = Sampler::new(problem.clone()).unwrap();
            let expected: Vec<GlobalBatch> = (0..25).map(|_| uninterrupted.next_batch()).collect();
            let mut before = Sampler::new(problem.clone()).unwrap();
            let mut found: Vec<GlobalBatch> = (0..stop).map(|_| before.next_batch()).collect();
            let state = serde_json::from_str(&serde_json::to_string(&before.state()).unwrap()).unwrap();
            let mut after = Sampler::restore(problem, state).unwrap();
            found.extend((stop..25).map(|_| after.next_batch()));
            prop_assert_eq!(found, expected);
        }

        /// Within an epoch of a language every utterance comes once before any comes twice.
        #[test]
        fn no_utterance_is_lost_or_repeated_inside_an_epoch(seed in any::<u64>()) {
            let sizes = [13, 4];
            let mut sampler = Sampler::new(problem(seed, &sizes)).unwrap();
            let drawn: Vec<UtteranceRef> = (0..40).flat_map(|_| sampler.next_batch().utterances).collect();
            for (language, size) in sizes.into_iter().enumerate() {
                let of_language: Vec<usize> =
                    drawn.iter().filter(|at| at.language == language).map(|at| at.index).collect();
                for epoch in of_language.chunks_exact(size) {
                    prop_assert_eq!(epoch.iter().collect::<BTreeSet<_>>().len(), size);
                }
            }
        }
    }

    /// Languages are drawn as hours^(1/T) says: with 100 times the hours and T = 2, 10 times as often.
    #[test]
    fn temperature_evens_languages_out() {
        let problem = SamplerProblem {
            seed: 5,
            temperature: 2.0,
            batch_seconds: 1.0,
            durations: vec![vec![1.0; 1_000], vec![1.0; 10], vec![]],
        };
        let mut sampler = Sampler::new(problem).unwrap();
        let big = (0..22_000)
            .filter(|_| sampler.next_batch().utterances[0].language == 0)
            .count();
        assert!(
            (19_700..20_300).contains(&big),
            "expected about 20000, found {big}"
        );
    }

    #[test]
    fn no_temperature_overflows() {
        assert_eq!(probabilities(&[1e200, 1e200], 0.25), Ok(vec![0.5, 0.5]));
    }

    #[test]
    fn more_workers_than_utterances_in_a_batch_are_refused() {
        let problem = problem(1, &[20]);
        assert_eq!(problem.check_world_size(WorldSize(4)), Ok(()));
        let message = problem.check_world_size(WorldSize(64)).unwrap_err().to_string();
        assert!(
            message.contains("64 workers") && message.contains("at most 4 workers"),
            "{message}"
        );
    }

    /// Goal: the mean length is that of what is drawn. Method: a quarter of the hours is utterances of 2 s, the rest of 6 s.
    #[test]
    fn a_batch_has_utterances_of_all_languages_mean_length() {
        let problem = SamplerProblem {
            temperature: 1.0,
            batch_seconds: 20.0,
            durations: vec![vec![2.0; 2], vec![6.0; 2]],
            ..problem(1, &[])
        };
        assert_eq!(problem.check_world_size(WorldSize(4)), Ok(()));
        let refused = PlanError::TooManyWorkers {
            world_size: WorldSize(5),
            batch_seconds: 20.0,
            utterances: 4.0,
            mean_seconds: 5.0,
            largest: 4,
        };
        assert_eq!(problem.check_world_size(WorldSize(5)), Err(refused));
    }

    #[test]
    fn nothing_to_draw_from_is_refused() {
        assert_eq!(
            Sampler::new(problem(1, &[0, 0])).unwrap_err(),
            PlanError::NoUtterances
        );
    }

    #[test]
    fn a_state_of_other_data_is_refused() {
        let state = Sampler::new(problem(1, &[3, 3])).unwrap().state();
        let error = Sampler::restore(problem(1, &[3]), state).unwrap_err().to_string();
        assert!(error.contains("it has 2 languages, the data 1"), "{error}");

        let longer = SamplerState {
            draws: 4,
            positions: vec![Position::default(), Position { epoch: 0, used: 4 }],
        };
        let error = Sampler::restore(problem(1, &[3, 3]), longer)
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("in place 1 of `data.languages`") && error.contains("begin a new run"),
            "{error}"
        );
    }
}
