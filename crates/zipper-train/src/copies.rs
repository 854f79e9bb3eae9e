//! Who keeps copies of which banks (docs/recovery.md): a pure function of owners and nodes.

use std::collections::BTreeSet;

use zipper_plan::Placement;
use zipper_types::Rank;

/// The rank that keeps a copy of each bank in its memory, by language; the bank's first owner gives it.
///
/// A rank of another node, if there is one: the workers of a node are lost together. The banks of a node's ranks then go to
/// different ranks of the next node. Where there is only one node, the rank after the owners.
///
/// Nothing for a bank that has owners on several nodes, or several owners on the only node: another owner has it.
///
/// # Panics
/// Unless there is a node for each rank.
pub(crate) fn keepers(placement: &Placement, nodes: &[u32]) -> Vec<Option<Rank>> {
    let world_size = placement.world_size().0;
    assert_eq!(nodes.len(), world_size as usize, "every rank is on a node");
    let node = |rank: u32| nodes[rank as usize];
    let num_nodes = nodes.iter().collect::<BTreeSet<_>>().len();
    let keeper = |language| {
        let owners = placement.owners(language);
        let (first, last) = (*owners.start(), *owners.end());
        let of_owners: BTreeSet<u32> = owners.clone().map(node).collect();
        if first < last && (of_owners.len() > 1 || num_nodes == 1) {
            return None;
        }
        let others: Vec<u32> = (last + 1..last + world_size)
            .map(|rank| rank % world_size)
            .filter(|rank| !owners.contains(rank))
            .collect();
        let elsewhere: Vec<u32> = others
            .iter()
            .copied()
            .filter(|&rank| !of_owners.contains(&node(rank)))
            .collect();
        let keeper = if elsewhere.is_empty() {
            others.first()
        } else {
            let place_on_node = (0..first).filter(|&rank| node(rank) == node(first)).count();
            elsewhere.get(place_on_node % elsewhere.len())
        };
        keeper.copied().map(Rank)
    };
    (0..placement.num_languages()).map(keeper).collect()
}

#[cfg(test)]
mod tests {
    use zipper_types::WorldSize;

    use super::*;

    fn kept_by(owners: &[(u32, u32)], nodes: &[u32]) -> Vec<Option<u32>> {
        let world_size = WorldSize(nodes.len() as u32);
        let placement =
            Placement::from_owners(owners.to_vec(), world_size).expect("every rank owns something");
        let keepers = keepers(&placement, nodes);
        keepers
            .into_iter()
            .map(|keeper| keeper.map(|rank| rank.0))
            .collect()
    }

    #[test]
    fn on_one_node_the_next_rank_keeps_the_banks_of_single_owners() {
        let owners = [(0, 0), (0, 1), (1, 1), (2, 2), (2, 2)];
        assert_eq!(
            kept_by(&owners, &[0, 0, 0]),
            [Some(1), None, Some(2), Some(0), Some(0)]
        );
    }

    /// Losing any one node loses no bank, and the two ranks of a node give theirs to different ranks.
    #[test]
    fn copies_are_on_another_node() {
        let nodes = [0, 0, 1, 1, 2, 2];
        let owners = [(0, 0), (0, 1), (1, 1), (2, 2), (2, 3), (3, 4), (5, 5)];
        let kept = kept_by(&owners, &nodes);
        assert_eq!(kept, [Some(2), Some(2), Some(3), Some(4), Some(4), None, Some(1)]);
        for (&(first, last), keeper) in owners.iter().zip(&kept) {
            for lost in 0..3 {
                let mut holders = (first..=last).chain(*keeper);
                assert!(
                    holders.any(|rank| nodes[rank as usize] != lost),
                    "banks of {first}..={last}"
                );
            }
        }
    }

    /// Nodes of different sizes, as after a loss: still on another node.
    #[test]
    fn nodes_may_differ_in_size() {
        let owners = [(0, 0), (1, 1), (2, 2)];
        assert_eq!(kept_by(&owners, &[0, 0, 7]), [Some(2), Some(2), Some(0)]);
    }

    #[test]
    fn a_rank_alone_gives_nothing_away() {
        assert_eq!(kept_by(&[(0, 0), (0, 0)], &[3]), [None, None]);
    }
}
