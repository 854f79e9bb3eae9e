//! What a rank remembers: the memory tiers of `zipper-train`.

use std::collections::BTreeMap;

use zipper_types::Step;

use crate::model::Partial;

/// How many snapshots are kept.
const SNAPSHOTS: usize = 2;

/// Everything that a rank remembers.
#[derive(Default)]
pub(super) struct Memory {
    /// The state as it is: nothing outside of a generation.
    pub(super) live: Option<Partial>,
    /// That of one step ago.
    previous: Option<Partial>,
    /// This rank's own state and copies of others' banks, the newest first.
    snapshots: Vec<Partial>,
    /// What earlier generations ended with.
    before: BTreeMap<Step, Partial>,
}

impl Memory {
    /// A generation begins with `live`: what comes after it is made again.
    pub(super) fn begin(&mut self, live: Partial) {
        self.before.retain(|&step, _| step <= live.step);
        self.live = Some(live);
    }

    /// Makes an update.
    pub(super) fn update(&mut self) -> Option<Step> {
        let before = self.live.take()?;
        let next = before.next();
        let step = next.step;
        self.previous = Some(before);
        self.live = Some(next);
        Some(step)
    }

    pub(super) fn has_snapshot(&self) -> bool {
        !self.snapshots.is_empty()
    }

    /// What is kept from now on is enough to go on from.
    pub(super) fn settled(&mut self) {
        self.before.clear();
    }

    /// Everybody has a snapshot.
    pub(super) fn snapshot(&mut self, snapshot: Partial) {
        self.snapshots.insert(0, snapshot);
        self.snapshots.truncate(SNAPSHOTS);
        self.before.clear();
    }

    /// The generation is over.
    pub(super) fn end(&mut self) {
        let ended = self
            .snapshots
            .drain(..)
            .chain(self.previous.take())
            .chain(self.live.take());
        for partial in ended {
            match self.before.get_mut(&partial.step) {
                Some(there) => there.extend(partial),
                None => {
                    self.before.insert(partial.step, partial);
                }
            }
        }
    }

    /// What is remembered outside of a generation.
    pub(super) fn held(&self) -> Vec<Partial> {
        self.before.values().cloned().collect()
    }
}
