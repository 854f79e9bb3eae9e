//! Which old rank takes which place of a new placement, so that few banks have to move.

use zipper_types::Rank;

use crate::Placement;

/// Who takes which place of a new placement.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Succession {
    /// For each rank of the new placement the old rank that becomes it, or nothing for a newcomer.
    pub from: Vec<Option<Rank>>,
    /// Banks that a rank gets and did not have.
    pub moved: usize,
    /// The same if old rank r became new rank r.
    pub moved_by_number: usize,
}

/// Lets the ranks of `old` keep as many banks as possible under `new`, which may have more ranks or fewer.
///
/// # Panics
/// If the two placements have different languages.
pub fn succession(old: &Placement, new: &Placement) -> Succession {
    assert_eq!(old.num_languages(), new.num_languages(), "the same languages");
    let had = banks(old);
    let gets = banks(new);
    let from = places(&had, new);
    let pieces: usize = gets.iter().map(Vec::len).sum();
    let kept =
        |(place, from): (usize, &Option<usize>)| from.map_or(0, |old| in_both(&had[old], &gets[place]));
    let kept: u32 = from.iter().enumerate().map(kept).sum();
    let by_number: u32 = had.iter().zip(&gets).map(|(had, gets)| in_both(had, gets)).sum();
    Succession {
        from: from
            .into_iter()
            .map(|old| old.map(|old| Rank(old as u32)))
            .collect(),
        moved: pieces - kept as usize,
        moved_by_number: pieces - by_number as usize,
    }
}

/// For each rank of `new` the index in `had` of who takes it, or nothing for a newcomer, so that many banks stay where they are.
///
/// `had` holds the banks of those who are there, ascending. They stay in their order, as their pieces of the ruler do: then a
/// dynamic programme over the two sequences finds the best.
pub fn places(had: &[Vec<usize>], new: &Placement) -> Vec<Option<usize>> {
    let new = banks(new);
    // Who has nothing keeps nothing wherever it goes.
    let those: Vec<usize> = (0..had.len()).filter(|&index| !had[index].is_empty()).collect();
    // kept[i][j]: banks kept by the first i of those in the first j new places.
    let columns = new.len() + 1;
    let mut kept = vec![0_u32; (those.len() + 1) * columns];
    for (i, &index) in those.iter().enumerate() {
        for (j, gets) in new.iter().enumerate() {
            let stays = kept[i * columns + j] + in_both(&had[index], gets);
            let without = kept[i * columns + j + 1].max(kept[(i + 1) * columns + j]);
            kept[(i + 1) * columns + j + 1] = stays.max(without);
        }
    }
    let mut from = vec![None; new.len()];
    let (mut i, mut j) = (those.len(), new.len());
    while i > 0 && j > 0 {
        let here = kept[i * columns + j];
        let index = those[i - 1];
        if here == kept[(i - 1) * columns + j - 1] + in_both(&had[index], &new[j - 1]) {
            from[j - 1] = Some(index);
            (i, j) = (i - 1, j - 1);
        } else if here == kept[(i - 1) * columns + j] {
            i -= 1;
        } else {
            j -= 1;
        }
    }
    from
}

/// The banks of each rank, ascending.
fn banks(placement: &Placement) -> Vec<Vec<usize>> {
    let mut banks = vec![Vec::new(); placement.world_size().0 as usize];
    for language in 0..placement.num_languages() {
        for rank in placement.owners(language) {
            banks[rank as usize].push(language);
        }
    }
    banks
}

/// How many languages two ascending lists share.
fn in_both(a: &[usize], b: &[usize]) -> u32 {
    a.iter()
        .map(|language| u32::from(b.binary_search(language).is_ok()))
        .sum()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use zipper_types::WorldSize;

    use super::*;
    use crate::PlacementProblem;

    fn place(work: &[f64], world: u32) -> Placement {
        Placement::solve(&PlacementProblem {
            work: work.to_vec(),
            world_size: WorldSize(world),
            max_banks_per_rank: None,
        })
        .expect("memory is no limit")
    }

    /// Most banks that any assignment of `old` ranks to `new` places keeps.
    fn best(old: &Placement, new: &Placement) -> usize {
        fn search(old: &[Vec<usize>], new: &[Vec<usize>], used: &mut Vec<bool>, at: usize) -> u32 {
            if at == new.len() {
                return 0;
            }
            let mut best = search(old, new, used, at + 1);
            for rank in 0..old.len() {
                if !used[rank] {
                    used[rank] = true;
                    best = best.max(in_both(&old[rank], &new[at]) + search(old, new, used, at + 1));
                    used[rank] = false;
                }
            }
            best
        }
        let (old, new) = (banks(old), banks(new));
        let pieces: usize = new.iter().map(Vec::len).sum();
        pieces - search(&old, &new, &mut vec![false; old.len()], 0) as usize
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// No other assignment of ranks to places moves fewer banks.
        #[test]
        fn as_few_banks_move_as_possible(
            work in prop::collection::vec(0.1..100.0f64, 1..14), old in 1u32..6, new in 1u32..6,
        ) {
            let (old, new) = (place(&work, old), place(&work, new));
            let succession = succession(&old, &new);
            prop_assert_eq!(succession.moved, best(&old, &new));
            prop_assert!(succession.moved <= succession.moved_by_number);
            let mut taken: Vec<Rank> = succession.from.iter().copied().flatten().collect();
            prop_assert!(taken.is_sorted());
            taken.dedup();
            prop_assert_eq!(taken.len(), succession.from.iter().flatten().count());
        }
    }

    /// Goal: who has lost its peers stays with its banks; newcomers take the places that are left, and who has nothing gets none of those
    /// that somebody knows.
    #[test]
    fn newcomers_take_the_places_that_are_left() {
        let owners = vec![(0, 1), (1, 1), (2, 2), (3, 3)];
        let new = Placement::from_owners(owners, WorldSize(4)).expect("they are in order");
        let had = [vec![0, 1], vec![], vec![3]];
        assert_eq!(places(&had, &new), [None, Some(0), None, Some(2)]);
        assert_eq!(places(&[], &new), [None; 4]);
    }

    /// Goal: what is saved is counted against ranks that keep their numbers.
    #[test]
    fn numbers_would_move_more() {
        let placement = |owners: &[(u32, u32)], world| {
            Placement::from_owners(owners.to_vec(), WorldSize(world)).expect("they are in order")
        };
        let old = placement(&[(0, 0), (1, 1), (2, 2)], 3);
        let new = placement(&[(0, 0), (0, 0), (1, 1)], 2);
        let succession = succession(&old, &new);
        // Rank 2 keeps its bank as the new rank 1; of the two before it one brings its own, and the other one's moves.
        assert_eq!((succession.moved, succession.moved_by_number), (1, 2));
        assert_eq!(succession.from[1], Some(Rank(2)));
    }

    /// Goal: nothing moves when nothing changes.
    #[test]
    fn the_same_placement_stays() {
        let placement = place(&[5.0, 1.0, 1.0, 3.0], 4);
        let succession = succession(&placement, &placement);
        assert_eq!(succession.moved, 0);
        assert_eq!(succession.from, [0, 1, 2, 3].map(|rank| Some(Rank(rank))));
    }
}
