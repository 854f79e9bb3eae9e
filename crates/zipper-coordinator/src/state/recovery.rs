//! From which step a new generation starts, and where its state comes from: a pure function of what its members remember.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use zipper_types::{Rank, Stage, Step};

/// Trainable state of one step that a worker has in memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeldState {
    /// Completed steps.
    pub step: Step,
    /// The stage of that step.
    pub stage: Stage,
    /// Whether it has the parameters that all ranks share, with everything that is not a tensor.
    pub shared: bool,
    /// Languages whose banks it has.
    pub banks: BTreeSet<usize>,
}

/// Where a generation's state comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Origin {
    /// Initial values.
    Fresh,
    /// The checkpoint of its step.
    Checkpoint,
    /// What its members remember.
    Memory {
        /// Who gives the shared parameters to those who lack them.
        shared: Rank,
        /// Who gives each bank; empty in a stage without banks.
        banks: Vec<Rank>,
    },
}

/// The newest step of which `workers` together hold everything. With `banks` also those of all languages in stage zipper.
pub(super) fn newest_common(workers: &[&[HeldState]], num_languages: usize, banks: bool) -> Option<Step> {
    let steps: BTreeSet<Step> = workers
        .iter()
        .flat_map(|held| held.iter().map(|state| state.step))
        .collect();
    steps
        .into_iter()
        .rev()
        .find(|&step| sources(workers, step, num_languages, banks).is_some())
}

/// Which of `workers` has what of `step`: the first one each; nothing unless everything is there.
pub(super) fn sources(
    workers: &[&[HeldState]],
    step: Step,
    num_languages: usize,
    banks: bool,
) -> Option<(usize, Vec<usize>)> {
    let who = |has: &dyn Fn(&HeldState) -> bool| {
        workers
            .iter()
            .position(|held| held.iter().any(|state| state.step == step && has(state)))
    };
    let shared = who(&|state| state.shared)?;
    let stage = workers[shared].iter().find(|state| state.step == step)?.stage;
    if !banks || stage == Stage::Align {
        return Some((shared, Vec::new()));
    }
    let banks: Option<Vec<usize>> = (0..num_languages)
        .map(|language| who(&|state| state.banks.contains(&language)))
        .collect();
    Some((shared, banks?))
}

/// The banks that a worker holds of `step`, ascending.
pub(super) fn banks_at(held: &[HeldState], step: Step) -> Vec<usize> {
    let banks: BTreeSet<usize> = held
        .iter()
        .filter(|state| state.step == step)
        .flat_map(|state| state.banks.iter().copied())
        .collect();
    banks.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held(step: u64, shared: bool, banks: &[usize]) -> HeldState {
        HeldState {
            step: Step(step),
            stage: if step < 5 { Stage::Align } else { Stage::Zipper },
            shared,
            banks: banks.iter().copied().collect(),
        }
    }

    fn newest(workers: &[Vec<HeldState>]) -> Option<u64> {
        let workers: Vec<&[HeldState]> = workers.iter().map(Vec::as_slice).collect();
        newest_common(&workers, 3, true).map(|step| step.0)
    }

    /// Ranks that were cut off in the middle of a step are at most one step apart.
    #[test]
    fn the_newest_step_that_is_whole_is_taken() {
        let ahead = vec![held(8, true, &[0, 1]), held(7, true, &[0, 1])];
        let behind = vec![held(7, true, &[2]), held(6, true, &[2])];
        assert_eq!(newest(&[ahead.clone(), behind]), Some(7));
        let also_ahead = vec![held(8, true, &[2]), held(7, true, &[2])];
        assert_eq!(newest(&[ahead.clone(), also_ahead]), Some(8));
        // Alone, the bank of language 2 is lost.
        assert_eq!(newest(std::slice::from_ref(&ahead)), None);
        // A copy for a lost peer, which is older.
        let mut with_copy = ahead;
        with_copy.extend([held(6, true, &[0, 1]), held(6, false, &[2])]);
        assert_eq!(newest(&[with_copy]), Some(6));
    }

    #[test]
    fn a_stage_without_banks_needs_none() {
        assert_eq!(newest(&[vec![held(4, true, &[])]]), Some(4));
        assert_eq!(newest(&[vec![held(6, true, &[])]]), None);
        let workers = [held(6, true, &[])];
        assert_eq!(newest_common(&[&workers], 3, false), Some(Step(6)));
        assert_eq!(newest(&[]), None);
    }

    #[test]
    fn the_first_holder_gives() {
        let (a, b) = (vec![held(7, true, &[0, 2])], vec![held(7, true, &[1, 2])]);
        assert_eq!(sources(&[&a, &b], Step(7), 3, true), Some((0, vec![0, 1, 0])));
        assert_eq!(banks_at(&b, Step(7)), [1, 2]);
        assert_eq!(banks_at(&b, Step(6)), [0; 0]);
    }
}
