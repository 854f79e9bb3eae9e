//! The coordinator's decisions as a pure machine: `apply(now, event) -> effects`.
//!
//! Time comes in as an argument, storage and the network go out as [`Effect`]s; so a whole run can be played in a test.
//!
//! Invariants:
//! - GEN-1: only a worker of the current generation changes anything ([`State::member`]).
//! - TASK-1: a task is given out after every rank has completed the one before.
//! - CKPT-1: a manifest is published after every rank has reported its parts of that step.
//! - END-1: a run is done or stopped only when every checkpoint that its ranks were to write is published.

mod checkpoints;
mod diagnosis;
mod members;
mod outcome;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use zipper_checkpoint::PartRecord;
use zipper_config::RunConfig;
use zipper_plan::Placement;
use zipper_types::{Generation, Rank, Stage, Step, WorkerId, WorldSize};

pub use diagnosis::Collective;
pub use members::Joining;
pub use outcome::{Decoded, Ended, Outcome, Refusal, Verdict};

use checkpoints::{Closing, Pending};
use diagnosis::Suspicion;
use members::Member;

use crate::placement::PlacementBasis;
use crate::schedule::{self, EvaluationSet, Planned};

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
        /// Its newest collective operation.
        collective: Option<Collective>,
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

/// What is to be done because of an event, in order.
#[derive(Debug, Clone, PartialEq)]
pub enum Effect {
    /// All workers have joined: note the generation durably before anybody learns of it.
    FormGeneration {
        /// Workers in the order of their ranks.
        workers: Vec<WorkerId>,
        /// Where the banks are; nothing if there are none.
        placement: Option<Placement>,
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

/// The task that ranks work on.
#[derive(Debug, Clone, PartialEq)]
struct Running {
    id: u64,
    planned: Planned,
    outcomes: BTreeMap<Rank, Outcome>,
}

/// Everything the coordinator knows.
#[derive(Debug)]
pub struct State {
    config: RunConfig,
    world_size: WorldSize,
    generation: Generation,
    basis: PlacementBasis,
    placement: Option<Placement>,
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
    pub fn new(
        config: RunConfig,
        world_size: WorldSize,
        generation: Generation,
        basis: PlacementBasis,
        resume: Step,
    ) -> Self {
        let mut left = schedule::tasks(&config, resume);
        left.reverse();
        Self {
            config,
            world_size,
            generation,
            basis,
            placement: None,
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

    /// Takes one event in.
    pub fn apply(&mut self, now: Now, event: Event) -> Vec<Effect> {
        let mut effects = Vec::new();
        if self.verdict.is_some() {
            return effects;
        }
        match event {
            Event::Joined(joining) => self.joined(now, joining, &mut effects),
            Event::Heartbeat {
                worker,
                step,
                collective,
            } => self.heard(now, &worker, step, collective),
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
            Event::Exited(ended) => self.exited(now, ended, &mut effects),
            Event::StopRequested { reason } => self.stop(reason, &mut effects),
            Event::Tick => self.tick(now, &mut effects),
        }
        self.close_if_ready(&mut effects);
        effects
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
        let training = matches!(running.planned, Planned::Train { .. });
        if let Outcome::Failed {
            config,
            message,
            collective,
            state,
        } = outcome
        {
            if collective {
                self.blamed_others(now, rank, message, state, effects);
            } else {
                let reason = format!("{}: {message}", self.describe(rank));
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
        if !outcome.fits(&running.planned) || (training && !agrees) {
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
        let late = if self.formed {
            self.lost_ranks(now).or_else(|| self.late_checkpoints(now))
        } else {
            self.late_rendezvous(now)
        };
        if let Some(verdict) = late {
            self.end(verdict, effects);
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
}
