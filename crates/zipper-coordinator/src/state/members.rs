//! Who takes part: joining, ranks, signs of life.

use zipper_plan::Placement;
use zipper_types::{Generation, Incarnation, Rank, Step, WorkerId};

use super::{Collective, Effect, Now, Refusal, State, Verdict};
use crate::placement::PlacementBasis;

/// A worker that asks to join.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Joining {
    /// Its launch slot.
    pub worker: WorkerId,
    /// Its process lifetime.
    pub incarnation: Incarnation,
    /// Index of its node.
    pub node_rank: u32,
    /// Index on its node.
    pub local_rank: u32,
    /// The TCPStore it serves.
    pub store_address: String,
    /// Its machine.
    pub hostname: String,
}

/// A worker that has joined.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Member {
    pub(super) joining: Joining,
    pub(super) rank: Option<Rank>,
    pub(super) last_heartbeat: Now,
    pub(super) last_step: Step,
    pub(super) last_collective: Option<Collective>,
}

impl State {
    /// What the placement follows from.
    pub fn basis(&self) -> &PlacementBasis {
        &self.basis
    }

    /// Where the banks are, once all have joined; nothing if there are none.
    pub fn placement(&self) -> Option<&Placement> {
        self.placement.as_ref()
    }

    /// Rank of a worker and address of rank 0's store, once all have joined; nothing for a process that is not the one that
    /// the generation was formed with.
    pub fn assignment(&self, worker: &WorkerId, incarnation: Incarnation) -> Option<(Rank, &str)> {
        let member = self.members.get(worker)?;
        let rank = member
            .rank
            .filter(|_| member.joining.incarnation == incarnation)?;
        let first = self
            .members
            .values()
            .find(|member| member.rank == Some(Rank(0)))?;
        Some((rank, &first.joining.store_address))
    }

    /// The rank of a worker that says it is of `incarnation` and `generation` (GEN-1).
    ///
    /// # Errors
    /// [`Refusal`] for a worker that is not a member, or was one and was replaced.
    pub fn member(
        &self,
        worker: &WorkerId,
        incarnation: Incarnation,
        generation: Option<Generation>,
    ) -> Result<Rank, Refusal> {
        let member = self
            .members
            .get(worker)
            .ok_or_else(|| Refusal::Unknown(worker.clone()))?;
        if member.joining.incarnation != incarnation || generation != Some(self.generation) {
            return Err(Refusal::Stale {
                worker: worker.clone(),
                current: self.generation,
            });
        }
        member.rank.ok_or_else(|| Refusal::Unknown(worker.clone()))
    }

    pub(super) fn joined(&mut self, now: Now, joining: Joining, effects: &mut Vec<Effect>) {
        if self.formed {
            return;
        }
        let replaced = self
            .members
            .get(&joining.worker)
            .is_some_and(|member| member.joining.incarnation > joining.incarnation);
        if replaced {
            return;
        }
        self.members.insert(
            joining.worker.clone(),
            Member {
                joining,
                rank: None,
                last_heartbeat: now,
                last_step: Step(0),
                last_collective: None,
            },
        );
        if self.members.len() < self.world_size.0 as usize {
            return;
        }
        match self.basis.place(self.world_size) {
            Ok(placement) => self.placement = placement,
            Err(error) => {
                self.end(Verdict::Config(error.to_string()), effects);
                return;
            }
        }
        let mut order: Vec<&mut Member> = self.members.values_mut().collect();
        order.sort_by_key(|member| (member.joining.node_rank, member.joining.local_rank));
        let mut workers = Vec::with_capacity(order.len());
        for (rank, member) in (0..).zip(order) {
            member.rank = Some(Rank(rank));
            member.last_heartbeat = now;
            workers.push(member.joining.worker.clone());
        }
        self.formed = true;
        let placement = self.placement.clone();
        effects.push(Effect::FormGeneration { workers, placement });
        self.begin_next(now, effects);
    }

    pub(super) fn heard(&mut self, now: Now, worker: &WorkerId, step: Step, collective: Option<Collective>) {
        if let Some(member) = self.members.get_mut(worker) {
            member.last_heartbeat = now;
            member.last_step = step;
            member.last_collective = collective;
        }
    }

    /// How the run ends if not all have joined in time.
    pub(super) fn late_rendezvous(&self, now: Now) -> Option<Verdict> {
        let timeout = self.config.runtime.rendezvous_timeout;
        if now <= timeout {
            return None;
        }
        let joined: Vec<String> = self.members.keys().map(ToString::to_string).collect();
        Some(Verdict::Failed(format!(
            "waited {} for {} workers, but only {} joined: {}",
            humantime::format_duration(timeout),
            self.world_size,
            joined.len(),
            if joined.is_empty() {
                "none".to_owned()
            } else {
                joined.join(", ")
            }
        )))
    }

    /// The worker that has a rank.
    pub(super) fn member_of(&self, rank: Rank) -> Option<&Member> {
        self.members.values().find(|member| member.rank == Some(rank))
    }

    /// ``worker `node1/0` (rank 1) on HOST``.
    pub(super) fn describe(&self, rank: Rank) -> String {
        match self.member_of(rank) {
            Some(member) => {
                format!(
                    "worker `{}` (rank {rank}) on {}",
                    member.joining.worker, member.joining.hostname
                )
            }
            None => format!("rank {rank}"),
        }
    }
}
