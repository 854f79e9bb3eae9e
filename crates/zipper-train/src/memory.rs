//! What a rank remembers of earlier steps, its own state and banks of others: the memory tiers of docs/recovery.md.
//!
//! - The state of one step ago: ranks that lose each other in the middle of a step are at most one step apart.
//! - Snapshots every k steps: this rank's own state, and copies of banks for which it was chosen (`copies`). The two newest, so
//!   that one is whole while the next one is being made. The first one of a generation is made after its first step.
//! - What a generation ended with, until the next one has its first snapshot, or where it needs none, its first step.
//!
//! A scope's parameters and moments lie in one row, `[parameters, first moments, second moments]`, each in the order of the
//! parameter list. Rows are on the device, and their memory is used again.

use std::collections::{BTreeMap, BTreeSet};

use tch::{Device, Kind, Tensor};
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

impl HeldState {
    /// A whole state: with the shared parameters.
    pub(crate) fn of(state: &TrainState, scopes: impl Iterator<Item = ParamScope>) -> Self {
        let bank = |scope| match scope {
            ParamScope::Shared => None,
            ParamScope::Bank(language) => Some(language),
        };
        Self {
            step: state.step,
            stage: state.stage,
            shared: true,
            banks: scopes.filter_map(bank).collect(),
        }
    }
}

/// The state after a step, as far as it is on this rank.
#[derive(Debug)]
pub(crate) struct Remembered {
    pub(crate) state: TrainState,
    /// By scope, in one row each.
    pub(crate) rows: BTreeMap<ParamScope, Tensor>,
}

/// Everything that a rank remembers.
#[derive(Debug, Default)]
pub(crate) struct Memory {
    previous: Option<Remembered>,
    /// Scopes that have changed since `previous` was brought up to date.
    stale: BTreeSet<ParamScope>,
    /// The newest first.
    snapshots: Vec<Remembered>,
    /// Scopes that have changed since the newest snapshot.
    changed: BTreeSet<ParamScope>,
    /// What the generations before ended with.
    before: BTreeMap<Step, Remembered>,
}

impl Remembered {
    /// A copy of the state as it is.
    pub(crate) fn of(state: TrainState, params: &[&Param], optimizer: &AdamW) -> Self {
        let rows = scopes_of(params)
            .into_iter()
            .map(|scope| (scope, Tensor::cat(&optimizer.row(params, scope), 0)))
            .collect();
        Self { state, rows }
    }
}

impl Memory {
    /// Before the update that follows `state`: keeps that state, of which only what the update before has changed is copied.
    pub(crate) fn keep(&mut self, state: TrainState, params: &[&Param], optimizer: &AdamW) {
        match &mut self.previous {
            Some(previous) if previous.state.stage == state.stage => {
                for (scope, row) in &mut previous.rows {
                    if self.stale.contains(scope) {
                        fill(row, &optimizer.row(params, *scope));
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

    /// The update of the `updated` scopes is made. With `settled`, what is kept from now on is enough to go on from, and what was
    /// before the generation is let go.
    pub(crate) fn updated(&mut self, updated: &BTreeSet<ParamScope>, settled: bool) {
        self.stale.extend(updated);
        self.changed.extend(updated);
        if settled {
            self.before.clear();
        }
    }

    /// Whether a scope has changed since the newest snapshot of this generation, or there is none. The same on all ranks, whether or
    /// not they have it.
    pub(crate) fn has_changed(&self, scope: ParamScope) -> bool {
        self.snapshots.is_empty() || self.changed.contains(&scope)
    }

    /// Whether this generation has a snapshot.
    pub(crate) fn has_snapshot(&self) -> bool {
        !self.snapshots.is_empty()
    }

    /// The next snapshot: this rank's own state, and room of `row_len` elements for each of the banks that it keeps for others. What
    /// has not changed is the row of the newest snapshot, the rest takes the memory of the oldest.
    pub(crate) fn begin_snapshot(
        &mut self,
        state: TrainState,
        params: &[&Param],
        optimizer: &AdamW,
        kept: &[usize],
        row_len: i64,
    ) -> Remembered {
        let mut spare = if self.snapshots.len() == SNAPSHOTS {
            self.snapshots.pop().map(|oldest| oldest.rows).unwrap_or_default()
        } else {
            BTreeMap::new()
        };
        let newest = self.snapshots.first();
        let mut rows = BTreeMap::new();
        let kept = kept.iter().map(|&language| ParamScope::Bank(language));
        for scope in scopes_of(params).into_iter().chain(kept) {
            let last = newest.and_then(|newest| newest.rows.get(&scope));
            let row = match last {
                Some(last) if !self.has_changed(scope) => last.shallow_clone(),
                _ => {
                    let pieces = optimizer.row(params, scope);
                    // A row that did not change belongs to both snapshots.
                    let free = spare.remove(&scope);
                    let free = free.filter(|free| last.is_none_or(|last| last.data_ptr() != free.data_ptr()));
                    match free {
                        Some(mut row) => {
                            fill(&mut row, &pieces);
                            row
                        }
                        None if pieces.is_empty() => {
                            let kind = params[0].tensor.kind();
                            Tensor::zeros([row_len], (kind, params[0].tensor.device()))
                        }
                        None => Tensor::cat(&pieces, 0),
                    }
                }
            };
            rows.insert(scope, row);
        }
        Remembered { state, rows }
    }

    /// A snapshot is whole, and so is everybody's: what was before the generation is let go.
    pub(crate) fn end_snapshot(&mut self, snapshot: Remembered) {
        self.snapshots.insert(0, snapshot);
        self.changed.clear();
        self.before.clear();
    }

    /// The generation is over and ended with `now`, unless parameters were of no step.
    pub(crate) fn end_generation(&mut self, now: Option<Remembered>) {
        let snapshots = std::mem::take(&mut self.snapshots);
        let previous = self.previous.take();
        for remembered in snapshots.into_iter().rev().chain(previous).chain(now) {
            match self.before.entry(remembered.state.step) {
                std::collections::btree_map::Entry::Vacant(vacant) => {
                    vacant.insert(remembered);
                }
                std::collections::btree_map::Entry::Occupied(mut occupied) => {
                    let older = occupied.get_mut();
                    older.state = remembered.state;
                    older.rows.extend(remembered.rows);
                }
            }
        }
        self.stale.clear();
        self.changed.clear();
    }

    /// A generation begins after `step`: what was after it will be made again, and not to the last bit.
    pub(crate) fn forget_after(&mut self, step: Step) {
        self.before.retain(|&held, _| held <= step);
    }

    /// What is remembered, by step.
    pub(crate) fn held(&self) -> BTreeMap<Step, HeldState> {
        let mut held: BTreeMap<Step, HeldState> = BTreeMap::new();
        for remembered in self.everything() {
            let of_one = HeldState::of(&remembered.state, remembered.rows.keys().copied());
            match held.get_mut(&of_one.step) {
                Some(held) => held.banks.extend(of_one.banks),
                None => {
                    held.insert(of_one.step, of_one);
                }
            }
        }
        held
    }

    /// Everything that is not a tensor after `step`, as an earlier generation left it.
    pub(crate) fn state(&self, step: Step) -> Option<&TrainState> {
        self.before.get(&step).map(|remembered| &remembered.state)
    }

    /// The row of a scope after `step`, as an earlier generation left it.
    pub(crate) fn row(&self, step: Step, scope: ParamScope) -> Option<&Tensor> {
        self.before.get(&step)?.rows.get(&scope)
    }

    /// Bytes of all rows.
    pub(crate) fn bytes(&self) -> u64 {
        let rows = self.everything().flat_map(|remembered| remembered.rows.values());
        let sizes: BTreeMap<usize, usize> = rows
            .map(|row| {
                let bytes = row.numel() * row.kind().elt_size_in_bytes();
                (row.data_ptr() as usize, bytes)
            })
            .collect();
        sizes.values().sum::<usize>() as u64
    }

    fn everything(&self) -> impl Iterator<Item = &Remembered> {
        self.before.values().chain(&self.snapshots).chain(&self.previous)
    }
}

fn scopes_of(params: &[&Param]) -> BTreeSet<ParamScope> {
    params.iter().map(|param| param.scope).collect()
}

/// Puts pieces, if there are any, into a row of their length.
fn fill(row: &mut Tensor, pieces: &[Tensor]) {
    if !pieces.is_empty() {
        // The row has its length already, so nothing is allocated.
        let _ = tch::no_grad(|| Tensor::cat_out(row, pieces, 0));
    }
}

/// A number that tells two rows of the same length apart, unless their bits are the same.
///
/// Ranks that made a step in different generations hold values of it that differ by rounding; replicas have to be the same bits.
pub(crate) fn fingerprint(row: &Tensor) -> i64 {
    /// Elements that are turned into integers at a time.
    const CHUNK: usize = 1 << 22;
    let bits = match row.kind() {
        Kind::Double => Kind::Int64,
        _ => Kind::Int,
    };
    let len = row.numel();
    let of_chunk = |start: usize| {
        let end = (start + CHUNK).min(len);
        let chunk = row.narrow(0, start as i64, (end - start) as i64);
        let weights = Tensor::arange_start(start as i64, end as i64, (Kind::Int64, row.device())) * 2 + 1;
        // Sums of integers wrap, and do not depend on their order.
        let sum = (chunk.view_dtype(bits).to_kind(Kind::Int64) * weights).sum(Kind::Int64);
        sum.to_device(Device::Cpu).int64_value(&[])
    };
    (0..len).step_by(CHUNK).map(of_chunk).fold(0, i64::wrapping_add)
}
