//! What a coordinator knows from those before it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use zipper_plan::Placement;
use zipper_types::{Generation, Incarnation, Rank, Step, WorkerId, WorldSize};

use super::accounts::Activity;
use super::generations::Together;
use super::members::Member;
use super::tasks::Running;
use super::{Ledger, Now, Origin, Phase, State};
use crate::schedule::{EvaluationSet, Planned};

/// A worker process in a generation, as the journal keeps it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seat {
    /// Its launch slot.
    pub worker: WorkerId,
    /// Its process lifetime.
    pub incarnation: Incarnation,
    /// Index of its node.
    pub node_rank: u32,
    /// Index on its node.
    pub local_rank: u32,
    /// Its machine.
    pub hostname: String,
    /// The TCPStore it serves.
    pub store_address: String,
}

/// What the journal and the checkpoints tell.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Past {
    /// The newest generation that there ever was.
    pub generation: Generation,
    /// The number of the next task.
    pub next_task: u64,
    /// Completed steps to go on from.
    pub reached: Step,
    /// Checkpoints that there are.
    pub published: BTreeSet<Step>,
    /// Evaluations that are written down.
    pub evaluated: BTreeSet<(EvaluationSet, bool, Step)>,
    /// Validation losses in nats per token.
    pub validation_losses: BTreeMap<Step, f64>,
    /// What the launch had cost when that was last noted, and how long ago that was.
    pub ledger: Option<(Ledger, Duration)>,
    /// A generation that may be at work still.
    pub adopted: Option<Adopted>,
}

/// A generation whose coordinator has crashed.
#[derive(Debug, Clone, PartialEq)]
pub struct Adopted {
    /// Its number.
    pub generation: Generation,
    /// Its members in the order of their ranks.
    pub seats: Vec<Seat>,
    /// Where the banks are.
    pub placement: Option<Placement>,
    /// The step it started from.
    pub step: Step,
    /// Where its state came from.
    pub origin: Origin,
    /// The task that it was given last.
    pub task: Option<(u64, Planned)>,
}

impl State {
    /// Takes over a generation that works on while its coordinator is away.
    pub(super) fn adopt(&mut self, adopted: Adopted) {
        let Adopted {
            generation,
            seats,
            placement,
            step,
            origin,
            task,
        } = adopted;
        for (rank, seat) in (0..).map(Rank).zip(&seats) {
            self.members
                .insert(seat.worker.clone(), Member::of_seat(seat, rank, step));
        }
        let at = match &task {
            Some((_, Planned::Train { from, .. })) => *from,
            Some((_, Planned::Evaluate { step, .. } | Planned::Save { step, .. })) => *step,
            None => step,
        };
        // Its members know that number; the next one is above all that may have been used.
        self.highest = self.generation;
        self.generation = generation;
        self.placement = placement;
        self.phase = Phase::Together(Together::new(
            Now::ZERO,
            WorldSize(seats.len() as u32),
            step,
            origin,
        ));
        self.accounts.begin(Now::ZERO, Activity::Working);
        self.go_on_from(at);
        if let Some((id, planned)) = task {
            // Its ranks will tell again of their parts (END-1). Before the first task they have written none.
            self.expected = self.unpublished(step, at);
            // What comes before the task under way is done.
            if let Some(place) = self.left.iter().rposition(|left| *left == planned) {
                self.left.truncate(place);
            }
            self.running = Some(Running::new(id, planned));
        }
    }
}
