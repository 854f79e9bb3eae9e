//! Which ranks own the bank of which language, and which of them takes which utterance (docs/decisions/0003).
//!
//! The wrap-around rule: the languages lie one after the other on a ruler as long as there are ranks, each as long as its
//! share of the expected work, and the ruler is cut at the integers. So every rank gets the same expected work, a
//! language belongs to consecutive ranks, and there are at most `W + L - 1` pieces of languages on W ranks.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;

use zipper_types::{Rank, WorldSize};

use crate::PlanError;
use crate::dealing::{LeastBusy, deal};

/// Pieces smaller than this part of a rank's work are rounding, not work.
const SLIVER: f64 = 1e-9;

/// How often the search for the smallest share halves its interval.
const BISECTIONS: usize = 40;
/// The same for each batch, where a thousandth of an utterance is close enough.
const BISECTIONS_OF_DEALING: usize = 10;

/// What has to be placed.
#[derive(Debug, Clone, PartialEq)]
pub struct PlacementProblem {
    /// Expected work of each language per step, in any unit; zero for a language without data.
    pub work: Vec<f64>,
    /// Number of ranks.
    pub world_size: WorldSize,
    /// How many banks fit into a rank's memory; nothing: as many as there are.
    pub max_banks_per_rank: Option<u32>,
}

/// The owners of each language's bank: a run of consecutive ranks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placement {
    world_size: WorldSize,
    /// First and last owner of each language.
    owners: Vec<(u32, u32)>,
}

impl Placement {
    /// Places the languages by the wrap-around rule, in their order.
    ///
    /// Where memory does not allow it, a rank takes as many banks as fit, and the others share the work that is left as
    /// evenly as that order allows.
    ///
    /// ```
    /// use zipper_plan::{Placement, PlacementProblem};
    /// use zipper_types::{Rank, WorldSize};
    ///
    /// // One language has three quarters of the work, two others an eighth each.
    /// let placement = Placement::solve(&PlacementProblem {
    ///     work: vec![6.0, 1.0, 1.0],
    ///     world_size: WorldSize(4),
    ///     max_banks_per_rank: None,
    /// })?;
    /// assert_eq!(placement.owners(0), 0..=2);
    /// assert_eq!(placement.languages_of(Rank(3)), [1, 2]);
    ///
    /// // Language and cost of each utterance: three of the first language, one of each other.
    /// let hands = placement.deal(&[(0, 2.0), (1, 1.0), (0, 2.0), (2, 1.0), (0, 2.0)]);
    /// assert_eq!(hands[3], [1, 3]);
    /// # Ok::<(), zipper_plan::PlanError>(())
    /// ```
    ///
    /// # Errors
    /// [`PlanError::TooLittleMemory`] if the banks do not fit into all ranks together.
    ///
    /// # Panics
    /// If there are no ranks, or an amount of work is negative or not finite.
    pub fn solve(problem: &PlacementProblem) -> Result<Self, PlanError> {
        let PlacementProblem {
            work,
            world_size,
            max_banks_per_rank,
        } = problem;
        assert!(world_size.0 > 0, "there is at least one rank");
        assert!(
            work.iter().all(|work| work.is_finite() && *work >= 0.0),
            "work is a number"
        );
        let ranks = world_size.0 as usize;
        let capacity = max_banks_per_rank.map_or(work.len().max(1), |banks| banks as usize);
        if capacity.saturating_mul(ranks) < work.len() {
            return Err(PlanError::TooLittleMemory {
                languages: work.len(),
                world_size: *world_size,
                banks_per_rank: capacity,
                ranks_needed: if capacity == 0 {
                    None
                } else {
                    Some(work.len().div_ceil(capacity))
                },
                banks_needed: work.len().div_ceil(ranks),
            });
        }
        let fair = work.iter().sum::<f64>() / ranks as f64;
        let place = |share: f64| fill(work, ranks, share, capacity);
        let owners = place(fair).unwrap_or_else(|| {
            // Feasible at the upper end: then only memory ends a rank's part.
            let (mut low, mut high) = (fair, fair * ranks as f64 + 1.0);
            for _ in 0..BISECTIONS {
                let middle = f64::midpoint(low, high);
                if place(middle).is_some() {
                    high = middle;
                } else {
                    low = middle;
                }
            }
            place(high).expect("all ranks together have room for every bank")
        });
        Ok(Self {
            world_size: *world_size,
            owners,
        })
    }

    /// A placement that was decided elsewhere: first and last owner of each language.
    ///
    /// # Errors
    /// [`PlanError::BadPlacement`] if a language has no owner, one that does not exist, or one before the owners of the
    /// language before it.
    pub fn from_owners(owners: Vec<(u32, u32)>, world_size: WorldSize) -> Result<Self, PlanError> {
        let mut reached = 0;
        let bad = owners.iter().position(|&(first, last)| {
            let in_order = reached <= first && first <= last && last < world_size.0;
            reached = last;
            !in_order
        });
        match bad {
            Some(language) => Err(PlanError::BadPlacement {
                language,
                first: owners[language].0,
                last: owners[language].1,
                world_size,
            }),
            None => Ok(Self { world_size, owners }),
        }
    }

    /// Every rank owns every language: for stages without banks.
    ///
    /// # Panics
    /// If there are no ranks.
    pub fn everywhere(num_languages: usize, world_size: WorldSize) -> Self {
        assert!(world_size.0 > 0, "there is at least one rank");
        Self {
            world_size,
            owners: vec![(0, world_size.0 - 1); num_languages],
        }
    }

    /// Number of ranks.
    pub fn world_size(&self) -> WorldSize {
        self.world_size
    }

    /// Number of languages.
    pub fn num_languages(&self) -> usize {
        self.owners.len()
    }

    /// The ranks that own a language's bank.
    pub fn owners(&self, language: usize) -> RangeInclusive<u32> {
        let (first, last) = self.owners[language];
        first..=last
    }

    /// Whether `rank` owns the bank of `language`.
    pub fn owns(&self, rank: Rank, language: usize) -> bool {
        self.owners(language).contains(&rank.0)
    }

    /// The owner that stands for a bank where it counts once: in norms and in checkpoints.
    pub fn first_owner(&self, language: usize) -> Rank {
        Rank(self.owners[language].0)
    }

    /// The languages whose banks `rank` owns, ascending.
    pub fn languages_of(&self, rank: Rank) -> Vec<usize> {
        (0..self.owners.len())
            .filter(|&language| self.owns(rank, language))
            .collect()
    }

    /// Languages with two or more owners, ascending.
    pub fn split_languages(&self) -> Vec<usize> {
        (0..self.owners.len())
            .filter(|&language| self.owners[language].0 < self.owners[language].1)
            .collect()
    }

    /// Banks on all ranks together.
    pub fn num_pieces(&self) -> usize {
        self.owners
            .iter()
            .map(|&(first, last)| (last - first) as usize + 1)
            .sum()
    }

    /// Work of each rank when each language's `work` is divided among its owners as evenly as they allow.
    ///
    /// # Panics
    /// If there is not one amount of work for each language.
    pub fn shares(&self, work: &[f64]) -> Vec<f64> {
        assert_eq!(
            work.len(),
            self.owners.len(),
            "one amount of work for each language"
        );
        let whole: Vec<(usize, f64)> = work.iter().copied().enumerate().collect();
        let queue = Queue::new(self, &whole);
        queue.divide(queue.divided_optimum()).unwrap_or_default()
    }

    /// Gives each utterance to one of its language's owners, so that the slowest rank is as early as possible.
    ///
    /// Ranks are filled from the first to the last up to a threshold, each with the languages that end soonest and, of
    /// those, the longest utterances; the smallest threshold that a search finds wins. The slowest rank has at most the
    /// work of the most expensive utterance more than if utterances could be divided at will.
    ///
    /// # Shapes
    /// - `utterances`: language and expected cost of each
    /// - returns: for each rank the indices of the utterances it takes, ascending
    pub fn deal(&self, utterances: &[(usize, f64)]) -> Vec<Vec<usize>> {
        let everyone = (0, self.world_size.0 - 1);
        if utterances
            .iter()
            .all(|&(language, _)| self.owners[language] == everyone)
        {
            let costs: Vec<f64> = utterances.iter().map(|&(_, cost)| cost).collect();
            return deal(&costs, self.world_size);
        }
        let mut best = self.deal_greedily(utterances);
        let slowest = |hands: &[Vec<usize>]| {
            let load = |hand: &Vec<usize>| hand.iter().map(|&index| utterances[index].1).sum::<f64>();
            hands.iter().map(load).fold(0.0, f64::max)
        };
        let queue = Queue::new(self, utterances);
        let longest = utterances.iter().map(|&(_, cost)| cost).fold(0.0, f64::max);
        let optimum = queue.divided_optimum();
        // At the optimum and one utterance more, a rank refuses an utterance only when it is past the optimum: so nothing
        // is left over.
        let upper = (optimum + longest) * (1.0 + SLIVER);
        let mut fits = |threshold: f64| {
            let Some(hands) = queue.sweep(threshold) else {
                return false;
            };
            if slowest(&hands) < slowest(&best) {
                best = hands;
            }
            true
        };
        fits(upper);
        let (mut low, mut high) = (optimum.max(longest), upper);
        for _ in 0..BISECTIONS_OF_DEALING {
            let middle = f64::midpoint(low, high);
            if fits(middle) {
                high = middle;
            } else {
                low = middle;
            }
        }
        for hand in &mut best {
            hand.sort_unstable();
        }
        best
    }

    /// Each utterance to the owner with the least to do, the longest first.
    fn deal_greedily(&self, utterances: &[(usize, f64)]) -> Vec<Vec<usize>> {
        let mut order: Vec<usize> = (0..utterances.len()).collect();
        order.sort_by(|&a, &b| utterances[b].1.total_cmp(&utterances[a].1).then(a.cmp(&b)));
        let ranks = self.world_size.0 as usize;
        let (mut hands, mut loads) = (vec![Vec::new(); ranks], vec![0.0_f64; ranks]);
        let mut owners = BTreeMap::new();
        for index in order {
            let (language, cost) = utterances[index];
            let owners = owners.entry(language).or_insert_with(|| {
                let (first, last) = self.owners[language];
                LeastBusy::of(first as usize..=last as usize, &loads)
            });
            hands[owners.give(cost, &mut loads)].push(index);
        }
        hands
    }
}

/// First and last owner of each language when every rank takes `share` of the work and at most `capacity` banks, or nothing
/// if that leaves work over.
fn fill(work: &[f64], ranks: usize, share: f64, capacity: usize) -> Option<Vec<(u32, u32)>> {
    let sliver = share * SLIVER * ranks as f64;
    let mut owners = Vec::with_capacity(work.len());
    let (mut rank, mut room, mut banks) = (0, share, 0);
    for &work_of_language in work {
        let mut left = work_of_language;
        let full = room <= sliver && left > sliver && rank + 1 < ranks;
        if full || banks == capacity {
            (rank, room, banks) = (rank + 1, share, 0);
        }
        let first = rank;
        banks += 1;
        // What is less than a sliver is rounding, and stays.
        while left > room + sliver && rank < ranks {
            left -= room;
            (rank, room, banks) = (rank + 1, share, 1);
        }
        if rank >= ranks {
            return None;
        }
        room -= left;
        owners.push((first as u32, rank as u32));
    }
    Some(owners)
}

/// The utterances of a batch in the order in which ranks take them.
struct Queue<'a> {
    placement: &'a Placement,
    /// Languages of the batch by their first owner, with their work and their utterances.
    languages: Vec<(usize, f64, Pile)>,
}

/// Utterances by cost and then by index. Costs are not negative, so their bits are ordered as they are.
type Pile = BTreeSet<(u64, usize)>;

impl<'a> Queue<'a> {
    fn new(placement: &'a Placement, utterances: &[(usize, f64)]) -> Self {
        let mut by_language: BTreeMap<usize, (f64, Pile)> = BTreeMap::new();
        for (index, &(language, cost)) in utterances.iter().enumerate() {
            let (work, pile) = by_language.entry(language).or_default();
            *work += cost;
            pile.insert((cost.to_bits(), index));
        }
        let mut languages: Vec<(usize, f64, Pile)> = by_language
            .into_iter()
            .map(|(language, (work, pile))| (language, work, pile))
            .collect();
        languages.sort_by_key(|&(language, ..)| (placement.owners[language], language));
        Self { placement, languages }
    }

    /// The time of the slowest rank if utterances could be divided at will.
    fn divided_optimum(&self) -> f64 {
        let total: f64 = self.languages.iter().map(|&(_, work, _)| work).sum();
        let (mut low, mut high) = (total / f64::from(self.placement.world_size.0), total);
        for _ in 0..BISECTIONS {
            let middle = f64::midpoint(low, high);
            if self.divide(middle).is_some() {
                high = middle;
            } else {
                low = middle;
            }
        }
        high
    }

    /// The work of each rank when none has more than `threshold` to do and utterances are divided at will, or nothing if
    /// that leaves work over.
    ///
    /// Languages come in the order of their first owners and, as pieces of a ruler, of their last ones: filling ranks from
    /// the first on is then the best that can be done.
    fn divide(&self, threshold: f64) -> Option<Vec<f64>> {
        let mut loads = vec![0.0_f64; self.placement.world_size.0 as usize];
        let mut rank = 0;
        for &(language, work, _) in &self.languages {
            let (first, last) = self.placement.owners[language];
            rank = rank.max(first as usize);
            let mut left = work;
            loop {
                let taken = left.min(threshold - loads[rank]);
                left -= taken;
                loads[rank] += taken;
                if left <= threshold * SLIVER {
                    break;
                }
                if rank >= last as usize {
                    return None;
                }
                rank += 1;
            }
        }
        Some(loads)
    }

    /// The utterances of each rank when none may take more than `threshold`, or nothing if some are left over.
    fn sweep(&self, threshold: f64) -> Option<Vec<Vec<usize>>> {
        let ranks = self.placement.world_size.0 as usize;
        let (mut hands, mut loads) = (vec![Vec::new(); ranks], vec![0.0_f64; ranks]);
        for (language, _, pile) in &self.languages {
            let mut pile = pile.clone();
            for rank in self.placement.owners(*language) {
                let rank = rank as usize;
                // The longest that still fits, again and again.
                while let Some(room) = Some(threshold - loads[rank]).filter(|room| *room >= 0.0)
                    && let Some(&next) = pile.range(..=(room.to_bits(), usize::MAX)).next_back()
                {
                    pile.remove(&next);
                    loads[rank] += f64::from_bits(next.0);
                    hands[rank].push(next.1);
                }
                if pile.is_empty() {
                    break;
                }
            }
            if !pile.is_empty() {
                return None;
            }
        }
        Some(hands)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn solve(work: &[f64], world: u32) -> Placement {
        Placement::solve(&PlacementProblem {
            work: work.to_vec(),
            world_size: WorldSize(world),
            max_banks_per_rank: None,
        })
        .expect("memory is no limit")
    }

    fn work() -> impl Strategy<Value = Vec<f64>> {
        prop::collection::vec(prop_oneof![Just(0.0), 0.001..1.0f64, 1.0..1000.0f64], 1..40)
    }

    proptest! {
        /// Every language is owned by consecutive ranks, ranks do the same, and there are at most W + L - 1 pieces.
        #[test]
        fn the_ruler_is_cut_evenly(work in work(), world in 1u32..70) {
            let placement = solve(&work, world);
            prop_assert_eq!(placement.num_languages(), work.len());
            prop_assert!(placement.num_pieces() < world as usize + work.len());
            let fair = work.iter().sum::<f64>() / f64::from(world);
            for share in placement.shares(&work) {
                prop_assert!((share - fair).abs() <= fair * 1e-6, "{share} of {fair}");
            }
            for pair in placement.owners.windows(2) {
                prop_assert!(pair[0].1 <= pair[1].0 && pair[0].0 <= pair[0].1, "{:?}", placement);
            }
            prop_assert!(placement.split_languages().len() < world as usize);
        }

        /// Memory is never exceeded, and what cannot fit is refused with what would do.
        #[test]
        fn banks_fit_into_memory(work in work(), world in 1u32..20, banks in 1u32..8) {
            let problem = PlacementProblem {
                work: work.clone(),
                world_size: WorldSize(world),
                max_banks_per_rank: Some(banks),
            };
            match Placement::solve(&problem) {
                Ok(placement) => {
                    for rank in 0..world {
                        prop_assert!(placement.languages_of(Rank(rank)).len() <= banks as usize);
                    }
                    prop_assert!(placement.num_pieces() < world as usize + work.len());
                }
                Err(PlanError::TooLittleMemory { ranks_needed, banks_needed, .. }) => {
                    prop_assert!(work.len() > (world * banks) as usize);
                    let enough = PlacementProblem {
                        world_size: WorldSize(ranks_needed.expect("a bank fits") as u32),
                        ..problem.clone()
                    };
                    prop_assert!(Placement::solve(&enough).is_ok());
                    let roomy = PlacementProblem {
                        max_banks_per_rank: Some(banks_needed as u32),
                        ..problem
                    };
                    prop_assert!(Placement::solve(&roomy).is_ok());
                }
                Err(error) => prop_assert!(false, "{}", error),
            }
        }

        /// Every utterance goes to one owner, and the slowest rank does at most one utterance more than the best that
        /// divisible utterances would allow.
        #[test]
        fn batches_are_dealt_to_owners_evenly(
            work in work(), world in 1u32..12,
            drawn in prop::collection::vec((any::<prop::sample::Index>(), 0.1..30.0f64), 0..80),
        ) {
            let placement = solve(&work, world);
            let batch: Vec<(usize, f64)> =
                drawn.iter().map(|(language, cost)| (language.index(work.len()), *cost)).collect();
            let hands = placement.deal(&batch);
            let mut dealt: Vec<usize> = hands.iter().flatten().copied().collect();
            dealt.sort_unstable();
            prop_assert_eq!(dealt, (0..batch.len()).collect::<Vec<_>>());
            for (rank, hand) in (0..).zip(&hands) {
                prop_assert!(hand.iter().all(|&index| placement.owns(Rank(rank), batch[index].0)));
                prop_assert!(hand.is_sorted());
            }
            let slowest = hands
                .iter()
                .map(|hand| hand.iter().map(|&index| batch[index].1).sum::<f64>())
                .fold(0.0, f64::max);
            let longest = batch.iter().map(|&(_, cost)| cost).fold(0.0, f64::max);
            let optimum = Queue::new(&placement, &batch).divided_optimum();
            prop_assert!(slowest <= (optimum + longest) * (1.0 + 1e-6), "{slowest} > {optimum} + {longest}");
        }
    }

    /// Goal: of a batch in the expected proportions the slowest rank gets the mean, rounded up to a whole utterance.
    #[test]
    fn the_expected_batch_is_dealt_within_one_utterance() {
        let work = [
            960.0, 30.0, 30.0, 30.0, 30.0, 30.0, 30.0, 30.0, 30.0, 30.0, 30.0, 30.0,
        ];
        for world in [1, 2, 3, 5, 8, 13] {
            let placement = solve(&work, world);
            let batch: Vec<(usize, f64)> = work
                .iter()
                .enumerate()
                .flat_map(|(language, &work)| std::iter::repeat_n((language, 1.0), work as usize))
                .collect();
            let loads: Vec<usize> = placement.deal(&batch).iter().map(Vec::len).collect();
            let fair = batch.len().div_ceil(world as usize);
            assert!(loads.iter().all(|&load| load <= fair), "{world} ranks: {loads:?}");
        }
    }

    /// Goal: the example that explains the rule. One large language spans ranks, small ones share one.
    #[test]
    fn a_large_language_spans_ranks() {
        let placement = solve(&[6.0, 1.0, 1.0], 4);
        assert_eq!(placement.owners, [(0, 2), (3, 3), (3, 3)]);
        assert_eq!(placement.split_languages(), [0]);
        assert_eq!(placement.languages_of(Rank(3)), [1, 2]);
        assert_eq!(
            (placement.first_owner(0), placement.first_owner(2)),
            (Rank(0), Rank(3))
        );
        assert_eq!(placement.num_pieces(), 5);
        let shares = placement.shares(&[6.0, 1.0, 1.0]);
        assert!(
            shares.len() == 4 && shares.iter().all(|share| (share - 2.0).abs() < 1e-9),
            "{shares:?}"
        );
    }

    /// Goal: where everybody may take everything, utterances are dealt as in a stage without banks. Method: costs that filling one rank
    /// after the other would deal better.
    #[test]
    fn without_banks_the_longest_goes_first() {
        let costs = [3.0, 3.0, 2.0, 2.0, 2.0];
        let batch = costs.map(|cost| (0, cost));
        let hands = Placement::everywhere(1, WorldSize(2)).deal(&batch);
        assert_eq!(hands, deal(&costs, WorldSize(2)));
        assert_eq!(hands, [vec![0, 2, 4], vec![1, 3]]);
    }

    /// Goal: a size beyond any cluster is solved, and the pieces stay few.
    #[test]
    fn a_thousand_languages_on_four_thousand_ranks() {
        let work: Vec<f64> = (0..1000)
            .map(|language| 1.0 / (1.0 + f64::from(language)))
            .collect();
        let placement = solve(&work, 4096);
        assert!(placement.num_pieces() < 4096 + 1000);
        let batch: Vec<(usize, f64)> = (0..20_000_usize)
            .map(|index| (index * index % 1000, 1.0 + (index % 17) as f64))
            .collect();
        assert_eq!(placement.deal(&batch).iter().flatten().count(), batch.len());
    }

    #[test]
    fn owners_from_elsewhere_are_checked() {
        let placement = |owners: &[(u32, u32)]| Placement::from_owners(owners.to_vec(), WorldSize(2));
        assert_eq!(placement(&[(0, 1), (1, 1)]), Ok(solve(&[3.0, 1.0], 2)));
        // A rank that is not there, a range from its end, a language before the one before it.
        for (owners, language) in [
            (&[(0, 1), (1, 2)][..], 1_usize),
            (&[(1, 0)], 0),
            (&[(1, 1), (0, 0)], 1),
        ] {
            let (first, last) = owners[language];
            let error = PlanError::BadPlacement {
                language,
                first,
                last,
                world_size: WorldSize(2),
            };
            assert_eq!(placement(owners), Err(error));
        }
    }
}
