//! Training as the simulation has it: ranks of a generation meet at every step, or lose each other.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::timeout;
use zipper_types::{Generation, Rank, Step};

use crate::model::Partial;

/// Where ranks meet, and what for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Meeting {
    /// At the beginning of a generation.
    Regroup,
    /// In a step.
    Step(Step),
    /// After a step, to give each other copies of banks.
    Copies(Step),
}

/// What ranks ask of each other in a step.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Votes {
    pub(crate) stop: bool,
    pub(crate) regroup: bool,
}

/// A peer is lost.
#[derive(Debug)]
pub(crate) struct Lost;

/// All generations.
#[derive(Clone, Default)]
pub(crate) struct Fabric(Rc<RefCell<BTreeMap<Generation, Group>>>);

#[derive(Default)]
struct Group {
    arrived: BTreeMap<Meeting, BTreeSet<Rank>>,
    brought: BTreeMap<(Meeting, Rank), Vec<Partial>>,
    votes: BTreeMap<Meeting, Votes>,
    broken: bool,
    changed: Rc<Notify>,
}

impl Group {
    /// Meetings that nobody can be at any more.
    fn forget_before(&mut self, meeting: Meeting) {
        let old = |other: &Meeting| match (other, meeting) {
            (Meeting::Step(step) | Meeting::Copies(step), Meeting::Step(now)) => step.0 + 3 < now.0,
            _ => false,
        };
        self.arrived.retain(|other, _| !old(other));
        self.votes.retain(|other, _| !old(other));
        self.brought.retain(|(other, _), _| !old(other));
    }
}

/// A rank's place in a group.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Place {
    pub(crate) generation: Generation,
    pub(crate) rank: Rank,
    pub(crate) world_size: u32,
}

impl Fabric {
    /// Comes to a meeting with what it brings, and waits until all ranks have come.
    pub(crate) async fn meet(
        &self,
        place: Place,
        meeting: Meeting,
        votes: Votes,
        brings: Vec<Partial>,
        patience: Duration,
    ) -> Result<Votes, Lost> {
        let changed = {
            let mut groups = self.0.borrow_mut();
            let group = groups.entry(place.generation).or_default();
            if group.broken {
                return Err(Lost);
            }
            group.arrived.entry(meeting).or_default().insert(place.rank);
            if !brings.is_empty() {
                group.brought.insert((meeting, place.rank), brings);
            }
            group.forget_before(meeting);
            let sum = group.votes.entry(meeting).or_default();
            sum.stop |= votes.stop;
            sum.regroup |= votes.regroup;
            group.changed.notify_waiters();
            Rc::clone(&group.changed)
        };
        let waiting = async {
            loop {
                let notified = changed.notified();
                {
                    let groups = self.0.borrow();
                    let group = &groups[&place.generation];
                    // Who has everybody's part is through, also when somebody is lost right after.
                    if group.arrived[&meeting].len() == place.world_size as usize {
                        return Ok(group.votes[&meeting]);
                    }
                    if group.broken {
                        return Err(Lost);
                    }
                }
                notified.await;
            }
        };
        timeout(patience, waiting).await.unwrap_or(Err(Lost))
    }

    /// What a rank brought to a meeting.
    pub(crate) fn brought(&self, generation: Generation, meeting: Meeting, rank: Rank) -> Vec<Partial> {
        let groups = self.0.borrow();
        let brought = groups
            .get(&generation)
            .and_then(|group| group.brought.get(&(meeting, rank)));
        brought.cloned().unwrap_or_default()
    }

    /// A member has gone: all others fail where they wait.
    pub(crate) fn leave(&self, generation: Generation) {
        if let Some(group) = self.0.borrow_mut().get_mut(&generation) {
            group.broken = true;
            group.changed.notify_waiters();
        }
    }
}
