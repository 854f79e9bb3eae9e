//! The coordinator's decisions as a pure machine: `apply(now, event) -> effects`.
//!
//! Time comes in as an argument, storage and the network go out as [`Effect`]s; so a whole run can be played in a test.
//!
//! Invariants:
//! - GEN-1: only a worker of the current generation changes anything ([`State::member`]).
//! - TASK-1: a task is given out after every rank has completed the one before.
//! - CKPT-1: a manifest is published after every rank has reported its parts of that step.
//! - END-1: a run is done or stopped only when every checkpoint that its ranks were to write is published.

mod outcome;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use zipper_checkpoint::PartRecord;
use zipper_config::RunConfig;
use zipper_types::{Generation, Incarnation, Rank, Stage, Step, WorkerId, WorldSize};

pub use outcome::{Decoded, Ended, Outcome, Refusal, Verdict};

use crate::schedule::{self, EvaluationSet, Planned};

/// How long a checkpoint may take after the last step before the run fails.
const CHECKPOINT_TIMEOUT: Duration = Duration::from_mins(10);

/// How long to wait, after a collective failed, for the report that says who caused it.
const BLAME_TIMEOUT: Duration = Duration::from_secs(5);

/// Time since the coordinator started.
pub type Now = Duration;

/// What happens to a run.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// A worker asks to join.
    Joined(Joining),
    /// A worker gives a sign of life.
    Heartbeat {
        /// Who.
        worker: WorkerId,
        /// How far its training thread is.
        step: Step,
    },
    /// A rank has done its part of a task.
    Completed {
        /// Which rank.
        rank: Rank,
        /// Which task.
        task: u64,
        /// How it ended.
        outcome: Outcome,
    },
    /// A rank has stored its parts of a checkpoint.
    PartsStored {
        /// Which rank.
        rank: Rank,
        /// Of which step.
        step: Step,
        /// Its stage.
        stage: Stage,
        /// The parts.
        parts: Vec<PartRecord>,
    },
    /// A manifest that was to be published is there, or could not be written.
    Published {
        /// Of which step.
        step: Step,
        /// Why not, if not.
        error: Option<String>,
    },
    /// A worker process ended.
    Exited(Ended),
    /// Somebody asks the run to stop.
    StopRequested {
        /// Who and why.
        reason: String,
    },
    /// Time passes.
    Tick,
}

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

/// What is to be done because of an event, in order.
#[derive(Debug, Clone, PartialEq)]
pub enum Effect {
    /// All workers have joined: note the generation durably before anybody learns of it.
    FormGeneration {
        /// Workers in the order of their ranks.
        workers: Vec<WorkerId>,
    },
    /// A task begins.
    Begin(Planned),
    /// All ranks have reported their parts: publish the manifest, then say [`Event::Published`].
    Publish {
        /// Of which step.
        step: Step,
        /// Its stage.
        stage: Stage,
        /// All parts.
        parts: Vec<PartRecord>,
    },
    /// A checkpoint is there.
    Committed(Step),
    /// An evaluation is complete: score it and write it down.
    Evaluated {
        /// What was decoded.
        set: EvaluationSet,
        /// Whether the speech was silenced.
        silenced: bool,
        /// Completed steps of the model.
        step: Step,
        /// Every utterance.
        utterances: Vec<Decoded>,
    },
    /// The run is over.
    End(Verdict),
}

/// A worker that has joined.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Member {
    joining: Joining,
    rank: Option<Rank>,
    last_heartbeat: Now,
    last_step: Step,
}

/// The task that ranks work on.
#[derive(Debug, Clone, PartialEq)]
struct Running {
    id: u64,
    planned: Planned,
    outcomes: BTreeMap<Rank, Outcome>,
}

/// Parts of a checkpoint that is not published yet.
#[derive(Debug, Clone, PartialEq)]
struct Pending {
    stage: Stage,
    parts: BTreeMap<Rank, Vec<PartRecord>>,
}

/// The run will end so when its checkpoints are published.
#[derive(Debug, Clone, PartialEq)]
struct Closing {
    verdict: Verdict,
    since: Now,
}

/// A collective failed; who caused it is not known yet.
#[derive(Debug, Clone, PartialEq)]
struct Suspicion {
    reason: String,
    since: Now,
    /// Ranks that reported the failure and so did not cause it by ending.
    victims: BTreeSet<Rank>,
}

/// Everything the coordinator knows.
#[derive(Debug)]
pub struct State {
    config: RunConfig,
    world_size: WorldSize,
    generation: Generation,
    formed: bool,
    members: BTreeMap<WorkerId, Member>,
    /// What is left to do, the next thing last.
    left: Vec<Planned>,
    next_task: u64,
    running: Option<Running>,
    pending: BTreeMap<Step, Pending>,
    /// Checkpoints that ranks have written or will write, not published yet.
    expected: BTreeSet<Step>,
    published: BTreeSet<Step>,
    /// Completed steps of the model.
    reached: Step,
    stop_requested: Option<String>,
    /// Something was left out because of the stop.
    cut_short: bool,
    closing: Option<Closing>,
    suspicion: Option<Suspicion>,
    verdict: Option<Verdict>,
}

impl State {
    /// A run of which `resume` steps are completed. `generation` has never been used before.
    pub fn new(config: RunConfig, world_size: WorldSize, generation: Generation, resume: Step) -> Self {
        let mut left = schedule::tasks(&config, resume);
        left.reverse();
        Self {
            config,
            world_size,
            generation,
            formed: false,
            members: BTreeMap::new(),
            left,
            next_task: 0,
            running: None,
            pending: BTreeMap::new(),
            expected: BTreeSet::new(),
            published: BTreeSet::from([resume]),
            reached: resume,
            stop_requested: None,
            cut_short: false,
            closing: None,
            suspicion: None,
            verdict: None,
        }
    }

    /// The configuration of the run.
    pub fn config(&self) -> &RunConfig {
        &self.config
    }

    /// The number of workers it needs.
    pub fn world_size(&self) -> WorldSize {
        self.world_size
    }

    /// The generation of this coordinator.
    pub fn generation(&self) -> Generation {
        self.generation
    }

    /// The task that is under way.
    pub fn task(&self) -> Option<(u64, &Planned)> {
        self.running
            .as_ref()
            .map(|running| (running.id, &running.planned))
    }

    /// Whether workers should stop at the next step boundary.
    pub fn stop_requested(&self) -> bool {
        self.stop_requested.is_some() || self.verdict.is_some()
    }

    /// How the run ended, if it has.
    pub fn verdict(&self) -> Option<&Verdict> {
        self.verdict.as_ref()
    }

    /// Whether all workers have joined.
    pub fn is_formed(&self) -> bool {
        self.formed
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

    /// Takes one event in.
    pub fn apply(&mut self, now: Now, event: Event) -> Vec<Effect> {
        let mut effects = Vec::new();
        if self.verdict.is_some() {
            return effects;
        }
        match event {
            Event::Joined(joining) => self.joined(now, joining, &mut effects),
            Event::Heartbeat { worker, step } => {
                if let Some(member) = self.members.get_mut(&worker) {
                    member.last_heartbeat = now;
                    member.last_step = step;
                }
            }
            Event::Completed { rank, task, outcome } => {
                self.completed(now, rank, task, outcome, &mut effects);
            }
            Event::PartsStored {
                rank,
                step,
                stage,
                parts,
            } => {
                self.parts_stored(rank, step, stage, parts, &mut effects);
            }
            Event::Published { step, error } => self.published(step, error, &mut effects),
            Event::Exited(ended) => self.exited(&ended, &mut effects),
            Event::StopRequested { reason } => self.stop(reason, &mut effects),
            Event::Tick => self.tick(now, &mut effects),
        }
        self.close_if_ready(&mut effects);
        effects
    }

    fn joined(&mut self, now: Now, joining: Joining, effects: &mut Vec<Effect>) {
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
            },
        );
        if self.members.len() < self.world_size.0 as usize {
            return;
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
        effects.push(Effect::FormGeneration { workers });
        self.begin_next(now, effects);
    }

    /// Gives out the next task, or begins to close (TASK-1).
    fn begin_next(&mut self, now: Now, effects: &mut Vec<Effect>) {
        self.running = None;
        let next = if self.stop_requested.is_some() {
            self.last_training()
        } else {
            self.left.pop()
        };
        if let Some(planned) = next {
            effects.push(Effect::Begin(planned.clone()));
            self.running = Some(Running {
                id: self.next_task,
                planned,
                outcomes: BTreeMap::new(),
            });
            self.next_task += 1;
        } else {
            let verdict = match &self.stop_requested {
                Some(reason) if self.cut_short || !self.left.is_empty() => Verdict::Stopped(reason.clone()),
                _ => Verdict::Done,
            };
            self.closing = Some(Closing { verdict, since: now });
        }
    }

    /// What a run that stops still has to do: steps since the last checkpoint would be lost, and training that begins now
    /// makes one step and a checkpoint.
    fn last_training(&mut self) -> Option<Planned> {
        if self.published.contains(&self.reached) || self.expected.contains(&self.reached) {
            return None;
        }
        let next = self
            .left
            .iter()
            .rposition(|planned| matches!(planned, Planned::Train { .. }))?;
        self.left.truncate(next + 1);
        self.cut_short = true;
        self.left.pop()
    }

    fn completed(&mut self, now: Now, rank: Rank, task: u64, outcome: Outcome, effects: &mut Vec<Effect>) {
        let Some(running) = self.running.as_mut().filter(|running| running.id == task) else {
            return;
        };
        if let Outcome::Failed {
            config,
            message,
            collective,
        } = &outcome
        {
            let (config, collective) = (*config, *collective);
            let reason = format!("{}: {message}", self.describe(rank));
            if collective {
                self.blamed_others(now, rank, reason);
            } else {
                let verdict = if config {
                    Verdict::Config(reason)
                } else {
                    Verdict::Failed(reason)
                };
                self.end(verdict, effects);
            }
            return;
        }
        let agrees = running
            .outcomes
            .values()
            .all(|other| other.reached() == outcome.reached());
        if !outcome.fits(&running.planned) || (matches!(running.planned, Planned::Train { .. }) && !agrees) {
            let reason = format!(
                "{} ended task {task} in a way that does not fit it or the other ranks: do all workers run the same \
                 version of zipper?",
                self.describe(rank)
            );
            self.end(Verdict::Failed(reason), effects);
            return;
        }
        self.cut_short |= matches!(outcome, Outcome::Stopped { .. });
        running.outcomes.insert(rank, outcome);
        if running.outcomes.len() < self.world_size.0 as usize {
            return;
        }
        let Some(Running {
            planned, outcomes, ..
        }) = self.running.take()
        else {
            return;
        };
        match planned {
            Planned::Train { from, ends_stage, .. } => self.trained(from, ends_stage, &outcomes),
            Planned::Evaluate { set, silenced, step } => {
                let parts: Option<Vec<Vec<Decoded>>> =
                    outcomes.into_values().map(Outcome::into_utterances).collect();
                if let Some(parts) = parts {
                    let utterances = parts.into_iter().flatten().collect();
                    effects.push(Effect::Evaluated {
                        set,
                        silenced,
                        step,
                        utterances,
                    });
                }
            }
        }
        self.begin_next(now, effects);
    }

    /// A collective failed on `rank`: the cause is probably another worker, whose end will be reported in a moment.
    fn blamed_others(&mut self, now: Now, rank: Rank, reason: String) {
        let suspicion = self.suspicion.get_or_insert(Suspicion {
            reason,
            since: now,
            victims: BTreeSet::new(),
        });
        suspicion.victims.insert(rank);
    }

    /// Notes the checkpoints that the ranks have written on the way.
    fn trained(&mut self, from: Step, ends_stage: bool, outcomes: &BTreeMap<Rank, Outcome>) {
        let stopped = outcomes
            .values()
            .any(|outcome| matches!(outcome, Outcome::Stopped { .. }));
        let Some(reached) = outcomes.values().find_map(Outcome::reached) else {
            return;
        };
        self.reached = reached;
        let written = schedule::checkpoints(&self.config, from, reached, ends_stage || stopped);
        self.expected
            .extend(written.into_iter().filter(|step| !self.published.contains(step)));
    }

    fn parts_stored(
        &mut self,
        rank: Rank,
        step: Step,
        stage: Stage,
        parts: Vec<PartRecord>,
        effects: &mut Vec<Effect>,
    ) {
        if self.published.contains(&step) {
            return;
        }
        let pending = self.pending.entry(step).or_insert_with(|| Pending {
            stage,
            parts: BTreeMap::new(),
        });
        let complete_before = pending.parts.len() == self.world_size.0 as usize;
        pending.parts.insert(rank, parts);
        if pending.parts.len() == self.world_size.0 as usize && !complete_before {
            self.expected.insert(step);
            let parts = pending.parts.values().flatten().cloned().collect();
            let stage = pending.stage;
            effects.push(Effect::Publish { step, stage, parts });
        }
    }

    fn published(&mut self, step: Step, error: Option<String>, effects: &mut Vec<Effect>) {
        if let Some(error) = error {
            let reason = format!("the checkpoint of step {step} cannot be published: {error}");
            self.end(Verdict::Failed(reason), effects);
            return;
        }
        self.pending.remove(&step);
        self.expected.remove(&step);
        self.published.insert(step);
        effects.push(Effect::Committed(step));
    }

    fn exited(&mut self, ended: &Ended, effects: &mut Vec<Effect>) {
        let rank = self.members.get(&ended.worker).and_then(|member| member.rank);
        let is_victim = |suspicion: &Suspicion| rank.is_some_and(|rank| suspicion.victims.contains(&rank));
        if self.suspicion.as_ref().is_some_and(is_victim) {
            return;
        }
        let who = match rank {
            Some(rank) => self.describe(rank),
            None => format!("worker `{}`", ended.worker),
        };
        let reason = format!("{who} {ended}");
        let verdict = if ended.is_config() {
            Verdict::Config(reason)
        } else {
            Verdict::Failed(reason)
        };
        self.end(verdict, effects);
    }

    fn stop(&mut self, reason: String, effects: &mut Vec<Effect>) {
        if !self.formed {
            self.end(Verdict::Stopped(reason), effects);
            return;
        }
        // When the run is closing the work is done already, and only a checkpoint is awaited.
        if self.closing.is_none() {
            self.stop_requested.get_or_insert(reason);
        }
    }

    fn tick(&mut self, now: Now, effects: &mut Vec<Effect>) {
        let runtime = &self.config.runtime;
        if !self.formed {
            if now > runtime.rendezvous_timeout {
                let joined: Vec<String> = self.members.keys().map(ToString::to_string).collect();
                let reason = format!(
                    "waited {} for {} workers, but only {} joined: {}",
                    humantime::format_duration(runtime.rendezvous_timeout),
                    self.world_size,
                    joined.len(),
                    if joined.is_empty() {
                        "none".to_owned()
                    } else {
                        joined.join(", ")
                    }
                );
                self.end(Verdict::Failed(reason), effects);
            }
            return;
        }
        let silent = self
            .members
            .values()
            .filter(|member| now.saturating_sub(member.last_heartbeat) > runtime.heartbeat_timeout)
            .min_by_key(|member| member.last_heartbeat);
        if let Some(member) = silent {
            let reason = format!(
                "{}: no heartbeat for {:.1}s; its last completed step was {}",
                member.rank.map_or_else(String::new, |rank| self.describe(rank)),
                now.saturating_sub(member.last_heartbeat).as_secs_f64(),
                member.last_step
            );
            self.end(Verdict::Failed(reason), effects);
            return;
        }
        if let Some(suspicion) = &self.suspicion
            && now.saturating_sub(suspicion.since) > BLAME_TIMEOUT
        {
            let reason = suspicion.reason.clone();
            self.end(Verdict::Failed(reason), effects);
            return;
        }
        if let Some(closing) = &self.closing
            && now.saturating_sub(closing.since) > CHECKPOINT_TIMEOUT
        {
            let reason = self.missing_parts();
            self.end(Verdict::Failed(reason), effects);
        }
    }

    /// Who the coordinator waited for when a checkpoint did not come.
    fn missing_parts(&self) -> String {
        let missing = self.expected.iter().map(|step| {
            let stored = self.pending.get(step).map(|pending| &pending.parts);
            let ranks: Vec<String> = (0..self.world_size.0)
                .filter(|rank| stored.is_none_or(|stored| !stored.contains_key(&Rank(*rank))))
                .map(|rank| self.describe(Rank(rank)))
                .collect();
            format!("step {step}: {}", ranks.join(", "))
        });
        format!(
            "waited {} for parts of checkpoints, of {}",
            humantime::format_duration(CHECKPOINT_TIMEOUT),
            missing.collect::<Vec<_>>().join("; ")
        )
    }

    /// Ends the run when nothing is awaited any more (END-1).
    fn close_if_ready(&mut self, effects: &mut Vec<Effect>) {
        if self.expected.is_empty()
            && let Some(closing) = self.closing.take()
        {
            self.end(closing.verdict, effects);
        }
    }

    fn end(&mut self, verdict: Verdict, effects: &mut Vec<Effect>) {
        if self.verdict.is_none() {
            self.running = None;
            self.closing = None;
            self.verdict = Some(verdict.clone());
            effects.push(Effect::End(verdict));
        }
    }

    /// ``worker `node1/0` (rank 1) on HOST``.
    fn describe(&self, rank: Rank) -> String {
        match self.members.values().find(|member| member.rank == Some(rank)) {
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
