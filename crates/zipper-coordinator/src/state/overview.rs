//! What the state looks like to people: nothing here decides anything.

use std::collections::BTreeMap;
use std::time::Duration;

use zipper_types::{Generation, Rank, Step};

use super::accounts::Accounts;
use super::members::Status;
use super::{Phase, State};

/// An agent gives a sign of life every second: one that was not heard of for longer is called silent.
const SILENT_AFTER: Duration = Duration::from_secs(5);
/// Members that are named one by one: of more, those that are not at work come first.
const MOST_MEMBERS: usize = 256;

/// What the state looks like at its last tick.
#[derive(Debug, Clone, PartialEq)]
pub struct Overview {
    /// The newest generation.
    pub generation: Generation,
    /// Its ranks, if it is at work.
    pub world_size: Option<u32>,
    /// The newest completed step of any rank.
    pub step: Step,
    /// Workers by what they do.
    pub workers: BTreeMap<&'static str, u32>,
    /// Nodes by how they are.
    pub nodes: BTreeMap<&'static str, u32>,
    /// Workers one by one.
    pub members: Vec<Seen>,
    /// First and last owner of each language's bank, in the order of the configuration; empty if there are none.
    pub banks: Vec<(Rank, Rank)>,
    /// Checkpoints that are kept.
    pub kept: Vec<Step>,
    /// Where the time of this launch went.
    pub accounts: Accounts,
}

/// A worker process.
#[derive(Debug, Clone, PartialEq)]
pub struct Seen {
    /// Its launch slot.
    pub worker: String,
    /// Its rank, if it has one.
    pub rank: Option<Rank>,
    /// Its node.
    pub node: u32,
    /// Its machine.
    pub hostname: String,
    /// What it does: a key of [`Overview::workers`].
    pub state: &'static str,
    /// Its last completed step.
    pub step: Step,
    /// How long ago it was heard of.
    pub heard: Duration,
    /// What it does, in its own words.
    pub doing: String,
}

impl State {
    /// What the state looks like.
    pub fn overview(&self) -> Overview {
        let now = self.last_tick;
        let mut members: Vec<Seen> = self
            .members
            .iter()
            .map(|(worker, member)| Seen {
                worker: worker.0.clone(),
                rank: member.rank(),
                node: member.node_rank,
                hostname: member.hostname.clone(),
                state: name(member.status),
                step: member.step,
                heard: now.saturating_sub(member.heard),
                doing: member.doing.clone(),
            })
            .collect();
        let mut workers = BTreeMap::new();
        for member in &members {
            *workers.entry(member.state).or_default() += 1;
        }
        if members.len() > MOST_MEMBERS {
            members.sort_by_key(|member| (member.rank.is_some(), std::cmp::Reverse(member.heard)));
            members.truncate(MOST_MEMBERS);
        }
        members.sort_by_key(|member| (member.rank.is_none(), member.rank));
        let (world_size, newest) = match &self.phase {
            Phase::Together(together) => (Some(together.world_size.0), together.newest),
            Phase::Gathering(_) => (None, self.reached),
        };
        let accounts = match self.verdict {
            None => self.accounts.until(now),
            Some(_) => self.accounts.clone(),
        };
        Overview {
            generation: self.generation,
            world_size,
            step: newest.max(self.reached),
            workers,
            nodes: self.nodes_by_state(),
            members,
            banks: crate::placement::owners(self.placement.as_ref()),
            kept: self.published.iter().copied().collect(),
            accounts,
        }
    }

    fn nodes_by_state(&self) -> BTreeMap<&'static str, u32> {
        let mut nodes = BTreeMap::new();
        for (&number, node) in &self.nodes {
            let state = if self.is_left_out(number) {
                "left_out"
            } else if self.last_tick.saturating_sub(node.heard) > SILENT_AFTER {
                "silent"
            } else {
                "healthy"
            };
            *nodes.entry(state).or_default() += 1;
        }
        let missing = self.crew.nodes.saturating_sub(self.nodes.len() as u32);
        if missing > 0 {
            nodes.insert("missing", missing);
        }
        nodes
    }
}

fn name(status: Status) -> &'static str {
    match status {
        Status::Loading => "loading",
        Status::Leaving => "leaving",
        Status::Ready => "ready",
        Status::Member(_) => "training",
    }
}
