//! The ranks of one generation as a rank sees them: who owns which bank, and the process groups that follow from it.

use std::collections::{BTreeMap, BTreeSet};

use tch::Tensor;
use zipper_collectives::{AbortHandle, CollectiveError, GroupOptions, ProcessGroup, Store};
use zipper_config::schema::RunConfig;
use zipper_data::Utterance;
use zipper_plan::{Placement, WorkModel};
use zipper_types::{Rank, Variant, WorldSize};

use crate::copies;

/// This rank among the others.
pub struct Team {
    world: ProcessGroup,
    /// Of the languages that this rank and another one own.
    owners: BTreeMap<usize, ProcessGroup>,
    placement: Placement,
    /// Where there are no banks, every rank takes utterances of every language.
    everywhere: Placement,
    work: WorkModel,
    /// Who keeps a copy of each bank, by language; empty without banks.
    keepers: Vec<Option<Rank>>,
}

impl Team {
    /// Connects this rank to the others: the world group, and one group for each language with several owners.
    ///
    /// `store` is the generation's own, `node` the index of this rank's node. `options.name` and `options.members` are set here.
    ///
    /// # Collective
    /// Every rank calls it with the same placement. Groups of owners are formed in two rounds, so that a rank never
    /// waits for a chain of others.
    ///
    /// # Errors
    /// [`CollectiveError`] if a rank does not come.
    pub fn form(
        store: &Store,
        rank: Rank,
        node: u32,
        config: &RunConfig,
        placement: Placement,
        work: WorkModel,
        options: &GroupOptions,
    ) -> Result<Self, CollectiveError> {
        let world_size = placement.world_size();
        let languages = &config.data.languages;
        let group = |name: String, members: Vec<Rank>| {
            let prefix = store.prefix(&name)?;
            let index = members.iter().position(|&member| member == rank);
            let index = Rank(index.expect("this rank is a member") as u32);
            let size = WorldSize(members.len() as u32);
            let options = GroupOptions {
                name,
                members,
                ..options.clone()
            };
            ProcessGroup::connect(&prefix, index, size, &options)
        };
        let world = group("world".to_owned(), (0..world_size.0).map(Rank).collect())?;
        let mut owners = BTreeMap::new();
        let mut keepers = Vec::new();
        if config.adapter.variant != Variant::Shared {
            keepers = copies::keepers(&placement, &nodes(&world, node, options)?);
            let split = placement.split_languages();
            // A rank is in at most two such groups, and they are neighbours in this order.
            for &language in split.iter().step_by(2).chain(split.iter().skip(1).step_by(2)) {
                if placement.owns(rank, language) {
                    let name = format!("owners of {}", languages[language]);
                    let members = placement.owners(language).map(Rank).collect();
                    owners.insert(language, group(name, members)?);
                }
            }
        }
        Ok(Self {
            world,
            owners,
            everywhere: Placement::everywhere(languages.len(), world_size),
            placement,
            work,
            keepers,
        })
    }

    /// This rank.
    pub fn rank(&self) -> Rank {
        self.world.rank()
    }

    /// The group of all ranks.
    pub fn world(&self) -> &ProcessGroup {
        &self.world
    }

    /// Who owns which bank.
    pub fn placement(&self) -> &Placement {
        &self.placement
    }

    /// The languages whose banks this rank owns.
    pub fn own_banks(&self) -> BTreeSet<usize> {
        self.placement.languages_of(self.rank()).into_iter().collect()
    }

    /// The rank that keeps a copy of each bank in its memory, by language; empty where there are no banks.
    pub(crate) fn keepers(&self) -> &[Option<Rank>] {
        &self.keepers
    }

    /// What ends the collectives of all groups of this rank from another thread.
    pub fn abort_handles(&self) -> Vec<AbortHandle> {
        let groups = std::iter::once(&self.world).chain(self.owners.values());
        groups.map(ProcessGroup::abort_handle).collect()
    }

    /// The group of all owners of a bank; nothing if this rank is the only one.
    pub(crate) fn owners_of(&self, language: usize) -> Option<&ProcessGroup> {
        self.owners.get(&language)
    }

    /// This rank's part of `utterances`, in their order: only languages that it owns, if there are `banks`.
    ///
    /// Returns indices into `utterances`.
    pub(crate) fn deal(&self, utterances: &[&Utterance], banks: bool) -> Vec<usize> {
        let placement = if banks { &self.placement } else { &self.everywhere };
        self.hand(placement, utterances)
    }

    /// This rank's part of `utterances` under any placement, as indices into them.
    pub(crate) fn hand(&self, placement: &Placement, utterances: &[&Utterance]) -> Vec<usize> {
        let costs: Vec<(usize, f64)> = utterances
            .iter()
            .map(|utterance| (utterance.language, self.cost(utterance)))
            .collect();
        placement.deal(&costs).swap_remove(self.rank().0 as usize)
    }

    /// Expected time of one utterance.
    pub(crate) fn cost(&self, utterance: &Utterance) -> f64 {
        let characters = utterance.text.chars().count();
        self.work.cost(utterance.language, utterance.duration, characters)
    }
}

/// The node of each rank.
fn nodes(world: &ProcessGroup, own: u32, options: &GroupOptions) -> Result<Vec<u32>, CollectiveError> {
    let own = Tensor::from_slice(&[i64::from(own)]).to_device(options.device);
    let all = world.all_gather(&own, "nodes of the ranks")?;
    Ok(all.iter().map(|node| node.int64_value(&[0]) as u32).collect())
}
