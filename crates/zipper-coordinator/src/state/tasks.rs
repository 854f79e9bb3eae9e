//! Tasks: given out one after the other, each to all ranks of a generation.

use std::collections::BTreeMap;
use std::time::Duration;

use zipper_types::{Rank, Step};

use super::checkpoints::Closing;
use super::{Decoded, Effect, Failure, Now, Outcome, Phase, Standing, State, Stop, Verdict};
use crate::schedule::{self, Planned};

/// The task that ranks work on.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Running {
    pub(super) id: u64,
    pub(super) planned: Planned,
    pub(super) outcomes: BTreeMap<Rank, Outcome>,
    /// The longest time in which a rank was heard of without getting on.
    pub(super) longest_pause: Duration,
}

impl Running {
    /// A task of which no rank has done anything yet.
    pub(super) fn new(id: u64, planned: Planned) -> Self {
        Self {
            id,
            planned,
            outcomes: BTreeMap::new(),
            longest_pause: Duration::ZERO,
        }
    }
}

impl State {
    /// Whether a rank has said how it ended a task, or the task is not the one under way.
    pub fn knows_outcome(&self, rank: Rank, task: u64) -> bool {
        self.running
            .as_ref()
            .is_none_or(|running| running.id != task || running.outcomes.contains_key(&rank))
    }

    /// Whether a task comes after the one under way: an earlier coordinator has given it out, and had no time to note it.
    pub fn is_ahead(&self, task: u64) -> bool {
        self.running.as_ref().is_some_and(|running| task > running.id)
    }

    /// A generation starts from `step`: what is left to do.
    pub(super) fn go_on_from(&mut self, step: Step) {
        self.reached = step;
        self.furthest = self.furthest.max(step);
        self.left = schedule::tasks(&self.config, step);
        self.left.retain(|planned| match planned {
            Planned::Evaluate { set, silenced, step } => {
                !self.evaluated.contains(&(set.clone(), *silenced, *step))
            }
            _ => true,
        });
        self.left.reverse();
        // A checkpoint that was due here and has not been finished.
        if schedule::is_checkpoint(&self.config, step)
            && !self.was_published(step)
            && let Some(stage) = schedule::stages(&self.config).stage_of(step)
        {
            self.left.push(Planned::Save { stage, step });
        }
    }

    /// Gives out the next task, lets others in, or begins to close (TASK-1).
    pub(super) fn begin_next(&mut self, now: Now, effects: &mut Vec<Effect>) {
        self.running = None;
        let next = if self.stop_requested.is_some() {
            self.last_save()
        } else if self.regroup_requested() {
            self.regroup(now);
            return;
        } else {
            self.left.pop()
        };
        if let Some(planned) = next {
            let id = self.next_task;
            self.next_task += 1;
            effects.push(Effect::Begin {
                id,
                planned: planned.clone(),
            });
            if let Phase::Together(together) = &mut self.phase {
                together.progress = now;
            }
            for member in self.members.values_mut() {
                member.progress = now;
            }
            self.running = Some(Running::new(id, planned));
        } else {
            let verdict = match &self.stop_requested {
                Some(stop) if self.cut_short || !self.left.is_empty() => {
                    Verdict::Stopped(stop.reason.clone())
                }
                _ => Verdict::Done,
            };
            self.closing = Some(Closing { verdict, since: now });
        }
    }

    /// What a run that stops still has to do: store what it has done since the last checkpoint.
    fn last_save(&mut self) -> Option<Planned> {
        let step = self.reached;
        if self.was_published(step) || self.expected.contains(&step) {
            return None;
        }
        let stage = schedule::stages(&self.config).stage_of(step)?;
        Some(Planned::Save { stage, step })
    }

    /// A rank has ended its part of a task; the last one ends the task (TASK-1).
    pub(super) fn completed(
        &mut self,
        now: Now,
        rank: Rank,
        task: u64,
        outcome: Outcome,
        effects: &mut Vec<Effect>,
    ) {
        let world_size = match &self.phase {
            Phase::Together(together) => together.world_size,
            Phase::Gathering(_) => return,
        };
        let Some(running) = self.running.as_mut().filter(|running| running.id == task) else {
            return;
        };
        let training = matches!(running.planned, Planned::Train { .. });
        // Those before agree with each other.
        let mut before = running.outcomes.values();
        let agrees = before
            .next()
            .is_none_or(|other| other.reached() == outcome.reached());
        if !outcome.fits(&running.planned) || (training && !agrees) {
            let reason = format!(
                "{} ended task {task} in a way that does not fit it or the other ranks: do all workers run the same \
                 version of zipper?",
                self.describe(rank)
            );
            self.end(now, Verdict::Failed(reason), effects);
            return;
        }
        let is_cut_short = matches!(outcome, Outcome::Stopped { .. });
        running.outcomes.insert(rank, outcome);
        if is_cut_short {
            self.cut_short = true;
            // A signal may reach a worker alone, whose vote then stops all of them.
            let reason = format!("{} was asked to stop", self.describe(rank));
            self.stop_requested.get_or_insert(Stop { reason, since: now });
        }
        let is_done = |running: &mut Running| running.outcomes.len() >= world_size.0 as usize;
        if let Some(done) = self.running.take_if(is_done) {
            self.task_done(done, effects);
            self.begin_next(now, effects);
        }
    }

    /// What follows from a task of which all ranks have said how they ended it.
    fn task_done(&mut self, done: Running, effects: &mut Vec<Effect>) {
        let Running {
            planned, outcomes, ..
        } = done;
        match planned {
            Planned::Train { from, ends_stage, .. } => self.trained(from, ends_stage, &outcomes),
            Planned::Save { step, .. } => {
                if !self.was_published(step) {
                    self.expected.insert(step);
                }
            }
            Planned::Evaluate { set, silenced, step } => {
                let parts: Option<Vec<Vec<Decoded>>> =
                    outcomes.into_values().map(Outcome::into_utterances).collect();
                if let Some(parts) = parts {
                    let utterances = parts.into_iter().flatten().collect();
                    self.evaluated.insert((set.clone(), silenced, step));
                    effects.push(Effect::Evaluated {
                        set,
                        silenced,
                        step,
                        utterances,
                    });
                }
            }
        }
    }

    /// A worker cannot go on as it is.
    pub(super) fn failed(&mut self, now: Now, failure: Failure, effects: &mut Vec<Effect>) {
        // GEN-1: what happened to a process that was given up, or in a generation before the newest, decides nothing any more. Whoever is in
        // none yet may still find that it cannot do what the configuration says.
        let standing = self.standing(&failure.worker, failure.incarnation, failure.generation);
        let is_stale = failure
            .generation
            .is_some_and(|generation| generation < self.generation);
        if standing == Standing::GivenUp || is_stale {
            return;
        }
        let rank = self
            .members
            .get(&failure.worker)
            .filter(|member| member.incarnation == failure.incarnation)
            .and_then(super::Member::rank);
        let who = match rank {
            Some(rank) => self.describe(rank),
            None => format!("worker `{}`", failure.worker),
        };
        if failure.config || failure.fatal {
            let reason = format!("{who}: {}", failure.message);
            let verdict = if failure.config {
                Verdict::Config(reason)
            } else {
                Verdict::Failed(reason)
            };
            self.end(now, verdict, effects);
            return;
        }
        if rank.is_some() && failure.generation == Some(self.generation) {
            self.break_generation(now);
        }
        if let Some(loss) = &mut self.loss {
            loss.reported(failure);
        }
        self.tell_loss(now, effects);
        self.end_if_hopeless(now, effects);
    }
}
