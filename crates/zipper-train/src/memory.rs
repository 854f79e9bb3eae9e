//! What a rank remembers of earlier steps, its own and those of a peer: the memory tiers of DESIGN 5.
//!
//! - The state of one step ago: ranks that lose each other in the middle of a step are at most one step apart.
//! - Snapshots every k steps: of the banks of the rank before this one in the ring (those that it alone owns), and, where the
//!   step before is not enough, of this rank's own state at the same steps. Of each the two newest, so that one is whole
//!   while the next one is being made.
//! - What a generation ended with, until the next one has made its first step.
//!
//! A scope's parameters and moments lie in one row, `[parameters, first moments, second moments]`, each in the order of the
//! parameter list.

use std::collections::{BTreeMap, BTreeSet};

use tch::Tensor;
use zipper_model::param::{Param, ParamScope};
use zipper_types::{Stage, Step};

use crate::optimizer::AdamW;
use crate::state::TrainState;

/// How many snapshots are kept.
const SNAPSHOTS: usize = 2;

/// Trainable state of one step that a rank could give to others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeldState {
    /// Completed steps.
    pub step: Step,
    /// The stage of that step.
    pub stage: Stage,
    /// Whether it has the shared parameters and everything that is not a tensor.
    pub shared: bool,
    /// Languages whose banks it has.
    pub banks: BTreeSet<usize>,
}

/// A rank's own state after a step.
#[derive(Debug)]
pub(crate) struct Remembered {
    pub(crate) state: TrainState,
    /// By scope, in one row each.
    pub(crate) rows: BTreeMap<ParamScope, Tensor>,
}

/// Banks of the rank before this one after a step.
#[derive(Debug)]
struct Kept {
    step: Step,
    banks: BTreeMap<usize, Tensor>,
}

/// Everything that a rank remembers.
#[derive(Debug, Default)]
pub(crate) struct Memory {
    previous: Option<Remembered>,
    /// Scopes that have changed since `previous` was brought up to date.
    stale: BTreeSet<ParamScope>,
    /// This rank's own state at the steps of the snapshots, the newest first.
    own: Vec<Remembered>,
    /// The peer's banks, the newest first.
    peer: Vec<Kept>,
    /// Languages whose banks have changed since the newest snapshot.
    changed: BTreeSet<usize>,
    /// What the generations before ended with.
    before: Vec<Remembered>,
    kept_before: Vec<Kept>,
}

impl Remembered {
    /// A copy of the state as it is.
    pub(crate) fn of(state: TrainState, params: &[&Param], optimizer: &AdamW) -> Self {
        let scopes: BTreeSet<ParamScope> = params.iter().map(|param| param.scope).collect();
        let rows = scopes
            .into_iter()
            .map(|scope| (scope, Tensor::cat(&optimizer.row(params, scope), 0)))
            .collect();
        Self { state, rows }
    }

    fn held(&self) -> HeldState {
        HeldState {
            step: self.state.step,
            stage: self.state.stage,
            shared: true,
            banks: self.rows.keys().filter_map(|scope| bank_of(*scope)).collect(),
        }
    }
}

impl Memory {
    /// Before the update that follows `state`: keeps that state, of which only what the update before has changed is copied.
    pub(crate) fn keep(&mut self, state: TrainState, params: &[&Param], optimizer: &AdamW) {
        match &mut self.previous {
            Some(previous) if previous.state.stage == state.stage => {
                for (scope, row) in &mut previous.rows {
                    if self.stale.contains(scope) {
                        // The row has its length already, so nothing is allocated.
                        let _ = tch::no_grad(|| Tensor::cat_out(row, &optimizer.row(params, *scope), 0));
                    }
                }
                previous.state = state;
            }
            _ => self.previous = Some(Remembered::of(state, params, optimizer)),
        }
        self.stale.clear();
    }

    /// A stage begins that no step has been made of: until then `ended` is what others go on from.
    pub(crate) fn enter_stage(&mut self, ended: Remembered) {
        self.previous = Some(ended);
    }

    /// The update is made, of the `updated` scopes: what was before the generation is needed no longer.
    pub(crate) fn updated(&mut self, updated: &BTreeSet<ParamScope>) {
        self.stale.extend(updated);
        self.changed
            .extend(updated.iter().filter_map(|scope| bank_of(*scope)));
        self.before.clear();
        self.kept_before.clear();
    }

    /// Languages whose banks have changed since the newest snapshot.
    pub(crate) fn changed(&self) -> &BTreeSet<usize> {
        &self.changed
    }

    /// A snapshot is complete: the peer's banks as they came, those that did not change as they were; and this rank's own
    /// state, if it has to be remembered.
    pub(crate) fn snapshot(
        &mut self,
        step: Step,
        own: Option<Remembered>,
        peers: &BTreeSet<usize>,
        came: BTreeMap<usize, Tensor>,
    ) {
        let mut banks = came;
        if let Some(newest) = self.peer.first() {
            for (language, row) in &newest.banks {
                if peers.contains(language) && !banks.contains_key(language) {
                    banks.insert(*language, row.shallow_clone());
                }
            }
        }
        self.peer.insert(0, Kept { step, banks });
        self.peer.truncate(SNAPSHOTS);
        self.own.splice(0..0, own);
        self.own.truncate(SNAPSHOTS);
        self.changed.clear();
    }

    /// Whether there is a snapshot of this generation: the first one needs all banks.
    pub(crate) fn has_snapshot(&self) -> bool {
        !self.peer.is_empty()
    }

    /// The generation is over and ended with `now`, unless parameters were of no step.
    pub(crate) fn end_generation(&mut self, now: Option<Remembered>) {
        self.before.splice(0..0, now);
        self.before.extend(self.previous.take());
        self.before.append(&mut self.own);
        self.kept_before.append(&mut self.peer);
        self.stale.clear();
        self.changed.clear();
    }

    /// What is remembered, in no order.
    pub(crate) fn held(&self) -> Vec<HeldState> {
        let own = self.before.iter().chain(&self.previous).chain(&self.own);
        let kept = self.kept_before.iter().chain(&self.peer).map(|kept| HeldState {
            step: kept.step,
            // Only banks are kept for peers, and only stage 2 has them.
            stage: Stage::Zipper,
            shared: false,
            banks: kept.banks.keys().copied().collect(),
        });
        own.map(Remembered::held)
            .chain(kept.filter(|held| !held.banks.is_empty()))
            .collect()
    }

    /// Everything that is not a tensor after `step`, if this rank's own state of it is remembered.
    pub(crate) fn state(&self, step: Step) -> Option<&TrainState> {
        let own = self.before.iter().chain(&self.previous).chain(&self.own);
        own.map(|remembered| &remembered.state)
            .find(|state| state.step == step)
    }

    /// The row of a scope after `step`, if it is remembered.
    pub(crate) fn row(&self, step: Step, scope: ParamScope) -> Option<&Tensor> {
        let own = self.before.iter().chain(&self.previous).chain(&self.own);
        let row = own
            .filter(|remembered| remembered.state.step == step)
            .find_map(|remembered| remembered.rows.get(&scope));
        let kept = || {
            let language = bank_of(scope)?;
            let kept = self.kept_before.iter().chain(&self.peer);
            kept.filter(|kept| kept.step == step)
                .find_map(|kept| kept.banks.get(&language))
        };
        row.or_else(kept)
    }
}

fn bank_of(scope: ParamScope) -> Option<usize> {
    match scope {
        ParamScope::Shared => None,
        ParamScope::Bank(language) => Some(language),
    }
}
