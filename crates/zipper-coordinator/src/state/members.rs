//! Who takes part: workers that ask to join or give a sign of life, and what each process may say (GEN-1).

use std::time::Duration;

use zipper_plan::Placement;
use zipper_types::{Generation, Incarnation, Rank, Step, WorkerId, WorldSize};

use super::recovery::{HeldState, Origin};
use super::{Collective, Effect, Now, Phase, Seat, State};
use crate::placement::PlacementBasis;

/// A worker that asks to join.
#[derive(Debug, Clone, PartialEq)]
pub struct Joining {
    /// Its launch slot.
    pub worker: WorkerId,
    /// Its process lifetime.
    pub incarnation: Incarnation,
    /// The generation that it believes in, or believed in last.
    pub generation: Option<Generation>,
    /// Index of its node.
    pub node_rank: u32,
    /// Index on its node.
    pub local_rank: u32,
    /// The TCPStore it serves.
    pub store_address: String,
    /// Its machine.
    pub hostname: String,
    /// What it remembers.
    pub held: Vec<HeldState>,
}

/// A sign of life.
#[derive(Debug, Clone, PartialEq)]
pub struct Sign {
    /// Who.
    pub worker: WorkerId,
    /// Its process lifetime.
    pub incarnation: Incarnation,
    /// The generation that it believes in.
    pub generation: Option<Generation>,
    /// Index of its node.
    pub node_rank: u32,
    /// Index on its node.
    pub local_rank: u32,
    /// Its machine.
    pub hostname: String,
    /// How far its training thread is.
    pub step: Step,
    /// Time since it completed that step or decoded a batch, or since its task began.
    pub idle: Duration,
    /// Its newest collective operation.
    pub collective: Option<Collective>,
    /// Forward and backward time in this generation, in seconds.
    pub compute_seconds: f64,
    /// Work that was expected of it in this generation, in the unit of the run's [`zipper_plan::WorkModel`].
    pub work: f64,
    /// Objects that it read from the run since the generation was formed.
    pub store_reads: u64,
    /// It cannot store its part of a checkpoint.
    pub trouble: Option<Trouble>,
    /// Where it is, for those who wait for it.
    pub doing: String,
}

/// Something cannot be written to the run's store.
#[derive(Debug, Clone, PartialEq)]
pub struct Trouble {
    /// For how long.
    pub lasting: Duration,
    /// Why.
    pub message: String,
}

/// What a worker's claim to membership is worth (GEN-1).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Standing {
    /// It is a member of the generation that it believes in.
    Member(Rank),
    /// Its generation is over, or it has none yet.
    Outside,
    /// Its process is not to come back.
    GivenUp,
}

/// A worker's place in a generation.
#[derive(Debug, Clone, PartialEq)]
pub struct Assignment {
    /// The generation.
    pub generation: Generation,
    /// Its rank.
    pub rank: Rank,
    /// Number of ranks.
    pub world_size: WorldSize,
    /// The TCPStore of rank 0.
    pub store_address: String,
    /// Completed steps that the generation starts from.
    pub step: Step,
    /// Where its state comes from.
    pub origin: Origin,
}

/// A worker process that was heard of.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Member {
    pub(super) incarnation: Incarnation,
    pub(super) node_rank: u32,
    pub(super) local_rank: u32,
    pub(super) hostname: String,
    pub(super) status: Status,
    pub(super) heard: Now,
    /// When it last got on with its task, or the task began.
    pub(super) progress: Now,
    pub(super) doing: String,
    pub(super) store_address: String,
    pub(super) held: Vec<HeldState>,
    pub(super) step: Step,
    pub(super) collective: Option<Collective>,
    pub(super) compute_seconds: f64,
    pub(super) work: f64,
    pub(super) store_reads: u64,
    pub(super) trouble: Option<Trouble>,
}

/// Where a worker stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Status {
    /// It loads its model.
    Loading,
    /// It was in a generation that is over, and has not asked to join again.
    Leaving,
    /// It has asked to join.
    Ready,
    /// It is in the newest generation.
    Member(Rank),
}

impl State {
    /// What the placement follows from.
    pub fn basis(&self) -> &PlacementBasis {
        &self.basis
    }

    /// Where the banks are in the newest generation; nothing if there are none.
    pub fn placement(&self) -> Option<&Placement> {
        self.placement.as_ref()
    }

    /// Whether ranks should leave at the next step boundary, because others wait to take part.
    pub fn regroup_requested(&self) -> bool {
        matches!(&self.phase, Phase::Together(together) if together.grow) && self.stop_requested.is_none()
    }

    /// The place of a process in the newest generation, if it has one.
    pub fn assignment(&self, worker: &WorkerId, incarnation: Incarnation) -> Option<Assignment> {
        let Phase::Together(together) = &self.phase else {
            return None;
        };
        let member = self
            .members
            .get(worker)
            .filter(|member| member.incarnation == incarnation)?;
        let rank = member.rank()?;
        Some(Assignment {
            generation: self.generation,
            rank,
            world_size: together.world_size,
            store_address: self.member_of(Rank(0))?.1.store_address.clone(),
            step: together.step,
            origin: together.origin.clone(),
        })
    }

    /// What a process may say (GEN-1).
    pub fn standing(
        &self,
        worker: &WorkerId,
        incarnation: Incarnation,
        generation: Option<Generation>,
    ) -> Standing {
        if self.given_up.contains(&(worker.clone(), incarnation)) {
            return Standing::GivenUp;
        }
        let Some(member) = self.members.get(worker) else {
            return Standing::Outside;
        };
        if member.incarnation > incarnation {
            return Standing::GivenUp;
        }
        match member.rank() {
            Some(rank) if member.incarnation == incarnation && generation == Some(self.generation) => {
                Standing::Member(rank)
            }
            _ => Standing::Outside,
        }
    }

    pub(super) fn joined(&mut self, now: Now, joining: Joining) {
        let standing = self.standing(&joining.worker, joining.incarnation, joining.generation);
        if standing == Standing::GivenUp || self.is_left_out(joining.node_rank) {
            return;
        }
        self.replace(now, &joining.worker, joining.incarnation);
        // It left the generation that it is a member of, or has been in a newer one, which was not written down before the
        // coordinator of then was lost: that generation is over.
        let was_newer = joining.generation > Some(self.generation);
        if was_newer || matches!(standing, Standing::Member(_)) {
            self.break_generation_of(now, &joining.worker);
        }
        let place = (joining.node_rank, joining.local_rank);
        let member = self
            .members
            .entry(joining.worker)
            .or_insert_with(|| Member::new(joining.incarnation, place, &joining.hostname));
        member.heard = now;
        if member.rank().is_some() {
            // An answer was lost: it is a member already, and does not know it.
            return;
        }
        member.status = Status::Ready;
        member.store_address = joining.store_address;
        member.hostname = joining.hostname;
        member.held = joining.held;
        "waiting".clone_into(&mut member.doing);
        self.want_growth();
    }

    pub(super) fn heard(&mut self, now: Now, sign: Sign, effects: &mut Vec<Effect>) {
        let standing = self.standing(&sign.worker, sign.incarnation, sign.generation);
        if standing == Standing::GivenUp || self.is_left_out(sign.node_rank) {
            return;
        }
        self.replace(now, &sign.worker, sign.incarnation);
        if sign.generation == Some(self.generation)
            && let Some(loss) = &mut self.loss
        {
            loss.heard(now, &sign);
        }
        let place = (sign.node_rank, sign.local_rank);
        let member = self
            .members
            .entry(sign.worker)
            .or_insert_with(|| Member::new(sign.incarnation, place, &sign.hostname));
        member.heard = now;
        member.doing = sign.doing;
        member.trouble = sign.trouble;
        if let Standing::Member(_) = standing {
            member.step = sign.step;
            member.collective = sign.collective;
            member.compute_seconds = sign.compute_seconds;
            member.work = sign.work;
            member.store_reads = sign.store_reads;
            let at = now.saturating_sub(sign.idle).max(member.progress);
            if let Some(running) = &mut self.running {
                let pause = at.saturating_sub(member.progress);
                running.longest_pause = running.longest_pause.max(pause);
            }
            member.progress = at;
            self.progressed(now, sign.step, sign.idle, effects);
        }
    }

    /// A new process of a slot takes the place of the old one, which is lost.
    fn replace(&mut self, now: Now, worker: &WorkerId, incarnation: Incarnation) {
        if self
            .members
            .get(worker)
            .is_some_and(|member| member.incarnation < incarnation)
        {
            self.drop_member(now, worker);
        }
    }

    /// The worker that has a rank.
    pub(super) fn member_of(&self, rank: Rank) -> Option<(&WorkerId, &Member)> {
        self.members
            .iter()
            .find(|(_, member)| member.rank() == Some(rank))
    }

    /// ``worker `node1/0` (rank 1) on HOST``.
    pub(super) fn describe(&self, rank: Rank) -> String {
        match self.member_of(rank) {
            Some((worker, member)) => name_rank(rank, worker, &member.hostname),
            None => format!("rank {rank}"),
        }
    }
}

/// How messages name a rank whose worker is known.
pub(super) fn name_rank(rank: Rank, worker: &WorkerId, hostname: &str) -> String {
    format!("worker `{worker}` (rank {rank}) on {hostname}")
}

impl Member {
    /// A process on a node and slot, which has done nothing yet.
    fn new(incarnation: Incarnation, (node_rank, local_rank): (u32, u32), hostname: &str) -> Self {
        Self {
            incarnation,
            node_rank,
            local_rank,
            hostname: hostname.to_owned(),
            status: Status::Loading,
            heard: Now::ZERO,
            progress: Now::ZERO,
            doing: String::new(),
            store_address: String::new(),
            held: Vec::new(),
            step: Step(0),
            collective: None,
            compute_seconds: 0.0,
            work: 0.0,
            store_reads: 0,
            trouble: None,
        }
    }

    /// A member that a journal tells of, of which nothing has been heard yet.
    pub(super) fn of_seat(seat: &Seat, rank: Rank, step: Step) -> Self {
        Self {
            status: Status::Member(rank),
            doing: "training".to_owned(),
            store_address: seat.store_address.clone(),
            step,
            ..Self::new(
                seat.incarnation,
                (seat.node_rank, seat.local_rank),
                &seat.hostname,
            )
        }
    }

    pub(super) fn rank(&self) -> Option<Rank> {
        match self.status {
            Status::Member(rank) => Some(rank),
            _ => None,
        }
    }

    pub(super) fn take_seat(&mut self, rank: Rank, step: Step, now: Now) {
        self.status = Status::Member(rank);
        self.heard = now;
        self.progress = now;
        self.step = step;
        self.held.clear();
        self.collective = None;
        self.compute_seconds = 0.0;
        self.work = 0.0;
        self.store_reads = 0;
    }

    pub(super) fn seat(&self, worker: WorkerId) -> Seat {
        Seat {
            worker,
            incarnation: self.incarnation,
            node_rank: self.node_rank,
            local_rank: self.local_rank,
            hostname: self.hostname.clone(),
            store_address: self.store_address.clone(),
        }
    }
}
