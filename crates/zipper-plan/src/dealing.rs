//! Dealing a global batch's utterances to ranks, and a rank's utterances to micro batches.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::collections::binary_heap::PeekMut;

use zipper_types::WorldSize;

/// Ranks, that with the least to do first, and of equals the lower one. Loads may rise beside it: ranks can be in several of these.
pub(crate) struct LeastBusy {
    /// Load and rank, as they were when they were last looked at. Loads are not negative, so their bits are ordered as they are.
    ranks: BinaryHeap<Reverse<(u64, usize)>>,
}

impl LeastBusy {
    pub(crate) fn of(ranks: impl Iterator<Item = usize>, loads: &[f64]) -> Self {
        let ranks = ranks.map(|rank| Reverse((loads[rank].to_bits(), rank)));
        Self {
            ranks: ranks.collect(),
        }
    }

    /// Gives work of `cost` to the rank with the least to do.
    ///
    /// # Panics
    /// If there are no ranks.
    pub(crate) fn give(&mut self, cost: f64, loads: &mut [f64]) -> usize {
        loop {
            let mut least = self.ranks.peek_mut().expect("there is at least one rank");
            let Reverse((load, rank)) = *least;
            let is_true = load == loads[rank].to_bits();
            if is_true {
                loads[rank] += cost;
            }
            *least = Reverse((loads[rank].to_bits(), rank));
            drop::<PeekMut<'_, _>>(least);
            if is_true {
                return rank;
            }
        }
    }
}

/// Gives each utterance to the rank with the least to do, longest utterance first (longest processing time, Graham 1969).
///
/// Deterministic: equal costs go in the order of their index, equal loads to the lower rank. The loads of any two ranks
/// differ by at most one utterance's cost.
///
/// # Shapes
/// - `costs`: expected work of each utterance, any unit
/// - returns: for each rank the indices into `costs` it takes, ascending; empty for a rank with nothing to do
///
/// # Panics
/// If `world_size` is zero.
pub(crate) fn deal(costs: &[f64], world_size: WorldSize) -> Vec<Vec<usize>> {
    assert!(world_size.0 > 0, "there is at least one rank");
    let mut order: Vec<usize> = (0..costs.len()).collect();
    order.sort_by(|&a, &b| costs[b].total_cmp(&costs[a]).then(a.cmp(&b)));
    let mut hands = vec![Vec::new(); world_size.0 as usize];
    let mut loads = vec![0.0_f64; hands.len()];
    let mut ranks = LeastBusy::of(0..loads.len(), &loads);
    for index in order {
        hands[ranks.give(costs[index], &mut loads)].push(index);
    }
    for hand in &mut hands {
        hand.sort_unstable();
    }
    hands
}

/// Cuts a rank's utterances into micro batches of at most `max_seconds` of audio, neighbours in length together so that
/// little is padded where rows lie side by side, as in attention on a GPU. An utterance that is longer by itself gets a micro batch of its own.
///
/// # Shapes
/// - `seconds`: length of each utterance
/// - returns: indices into `seconds`, every one exactly once; no micro batch is empty
pub fn micro_batches(seconds: &[f64], max_seconds: f64) -> Vec<Vec<usize>> {
    let mut order: Vec<usize> = (0..seconds.len()).collect();
    order.sort_by(|&a, &b| seconds[a].total_cmp(&seconds[b]).then(a.cmp(&b)));
    let mut batches: Vec<Vec<usize>> = Vec::new();
    let mut filled = f64::INFINITY;
    for index in order {
        if filled + seconds[index] > max_seconds {
            batches.push(Vec::new());
            filled = 0.0;
        }
        if let Some(batch) = batches.last_mut() {
            batch.push(index);
            filled += seconds[index];
        }
    }
    batches
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Every utterance is dealt once, and no two ranks differ by more than one utterance.
        #[test]
        fn deal_is_complete_and_even(costs in prop::collection::vec(0.1..30.0f64, 0..60), world in 1u32..9) {
            let hands = deal(&costs, WorldSize(world));
            let mut dealt: Vec<usize> = hands.iter().flatten().copied().collect();
            dealt.sort_unstable();
            prop_assert_eq!(dealt, (0..costs.len()).collect::<Vec<_>>());
            let loads: Vec<f64> = hands.iter().map(|hand| hand.iter().map(|&index| costs[index]).sum()).collect();
            let most = loads.iter().copied().fold(0.0, f64::max);
            let least = loads.iter().copied().fold(f64::INFINITY, f64::min);
            let longest = costs.iter().copied().fold(0.0, f64::max);
            prop_assert!(most - least <= longest + 1e-9);
        }

        /// Ranges that overlap, in any order: always the rank that a look at all of them finds.
        #[test]
        fn the_least_busy_rank_is_found(
            ranges in prop::collection::vec((0usize..9, 0usize..9), 1..5),
            work in prop::collection::vec((0usize..5, 0u8..4), 0..60),
        ) {
            let ranges: Vec<_> = ranges.into_iter().map(|(a, b)| a.min(b)..=a.max(b)).collect();
            let mut loads = vec![0.0; 9];
            let mut least: Vec<_> = ranges.iter().map(|range| LeastBusy::of(range.clone(), &loads)).collect();
            for (range, cost) in work {
                let range = range % ranges.len();
                let all = ranges[range].clone().min_by(|&a, &b| f64::total_cmp(&loads[a], &loads[b]));
                prop_assert_eq!(Some(least[range].give(f64::from(cost), &mut loads)), all);
            }
        }

        /// Every utterance is in one micro batch, and only a single long utterance may exceed the limit.
        #[test]
        fn micro_batches_keep_the_limit(
            seconds in prop::collection::vec(0.1..30.0f64, 0..60),
            limit in 1.0..100.0f64,
        ) {
            let batches = micro_batches(&seconds, limit);
            let mut seen: Vec<usize> = batches.iter().flatten().copied().collect();
            seen.sort_unstable();
            prop_assert_eq!(seen, (0..seconds.len()).collect::<Vec<_>>());
            for batch in batches {
                prop_assert!(!batch.is_empty());
                let sum: f64 = batch.iter().map(|&index| seconds[index]).sum();
                prop_assert!(batch.len() == 1 || sum <= limit + 1e-9);
            }
        }
    }

    /// Goal: a micro batch may be filled to its limit, and is not kept below it.
    #[test]
    fn a_micro_batch_may_be_full() {
        assert_eq!(micro_batches(&[6.0, 3.0, 4.0], 7.0), [vec![1, 2], vec![0]]);
        assert_eq!(micro_batches(&[6.0, 3.0, 4.0], 6.9), [vec![1], vec![2], vec![0]]);
    }

    /// More ranks than utterances: some have nothing to do, and that is an answer.
    #[test]
    fn idle_ranks_get_an_empty_hand() {
        assert_eq!(deal(&[2.0, 3.0], WorldSize(3)), [vec![1], vec![0], vec![]]);
    }
}
