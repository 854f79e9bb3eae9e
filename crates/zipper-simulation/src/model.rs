//! What training computes here: the state after a step is a hash that depends on every step before.

use std::collections::BTreeMap;

use zipper_types::Step;

/// Languages of a run, each with a bank.
pub(crate) const LANGUAGES: usize = 3;
/// Steps of the first stage, in which banks do not change.
pub(crate) const ALIGN_STEPS: u64 = 14;

/// What a rank has of the state after a step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Partial {
    pub(crate) step: Step,
    pub(crate) shared: Option<String>,
    /// By language.
    pub(crate) banks: BTreeMap<usize, String>,
}

impl Partial {
    /// The state before the first step, with all banks.
    pub(crate) fn initial() -> Self {
        let bank = |language| (language, hash(&format!("bank {language}"), Step(0)));
        Self {
            step: Step(0),
            shared: Some(hash("shared", Step(0))),
            banks: (0..LANGUAGES).map(bank).collect(),
        }
    }

    /// The state after the next step.
    pub(crate) fn next(&self) -> Self {
        let step = self.step.next();
        let banks = self.banks.iter().map(|(&language, bank)| {
            // Each step has utterances of two languages.
            let idle = step.0 <= ALIGN_STEPS || step.0 as usize % LANGUAGES == language;
            (language, if idle { bank.clone() } else { hash(bank, step) })
        });
        Self {
            step,
            shared: self.shared.as_ref().map(|shared| hash(shared, step)),
            banks: banks.collect(),
        }
    }

    /// Only these banks.
    pub(crate) fn with_banks(&self, wanted: impl Fn(usize) -> bool) -> Self {
        let mut part = self.clone();
        part.banks.retain(|&language, _| wanted(language));
        part
    }

    /// What somebody else has of the same step.
    pub(crate) fn extend(&mut self, other: Self) {
        self.shared = self.shared.take().or(other.shared);
        self.banks.extend(other.banks);
    }
}

fn hash(before: &str, step: Step) -> String {
    let mut hasher = blake3::Hasher::new();
    hasher.update(before.as_bytes());
    hasher.update(&step.0.to_le_bytes());
    hasher.finalize().to_hex()[..16].to_owned()
}
