//! The coordinator's decisions as a pure machine: `apply(now, event) -> effects`.
//!
//! Time comes in as an argument, storage and the network go out as [`Effect`]s; so a whole run can be played in a test, and
//! thousands of them under simulation.
//!
//! A run alternates between *gathering* (workers come, with what they remember) and being *together* (one generation works on
//! tasks). Any loss ends a generation; the next one starts from the newest step that its members still hold completely.
//!
//! Invariants:
//! - GEN-1: only a worker of the current generation changes anything ([`State::standing`]).
//! - GEN-2: a generation's number is above all before it, also across coordinators.
//! - TASK-1: a task is given out after every rank has completed the one before.
//! - CKPT-4: a manifest is published after every rank of one generation has reported its parts of that step. (CKPT-1 to CKPT-3 are
//!   `zipper-checkpoint`'s.)
//! - END-1: a run is done or stopped only when every checkpoint that its ranks were to write is published.
//! - BUDGET-1: no node's workers are started again more often than the budget says, nor are those of the run; and no failure comes back
//!   more often than that without a step in between that is new.
//!
//! Reading order: [`State::apply`]; `members` (who is there, and may say what), `generations` (how they come together and are parted),
//! `recovery` (from which step, with whose state), `tasks`, `checkpoints`, `outcome`; `nodes` (who is started again), `health` (who is
//! given up), `diagnosis` (whose fault it was); `restore` and `ledger` (what the next coordinator takes over); `accounts`, `overview`.

mod accounts;
mod checkpoints;
mod diagnosis;
mod generations;
mod health;
mod ledger;
mod members;
mod nodes;
mod outcome;
mod overview;
mod recovery;
mod restore;
mod tasks;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use zipper_checkpoint::PartRecord;
use zipper_config::RunConfig;
use zipper_plan::Placement;
use zipper_types::{Generation, Incarnation, Rank, Stage, Step, WorkerId, WorldSize};

pub use accounts::Accounts;
pub use diagnosis::Collective;
pub use ledger::Ledger;
pub use members::{Assignment, Joining, Sign, Standing, Trouble};
pub use nodes::{Advice, Agent};
pub use outcome::{Decoded, Ended, Failure, Outcome, Verdict};
pub use overview::{Overview, Seen};
pub use recovery::{HeldState, Origin};
pub use restore::{Adopted, Past, Seat};

use checkpoints::{Closing, Pending};
use diagnosis::Loss;
use generations::{Gathering, Together};
use members::Member;
use nodes::Node;
use tasks::Running;

use crate::placement::PlacementBasis;
use crate::schedule::{EvaluationSet, Planned};

/// Numbers of generations that the journal reserves at a time.
pub(crate) const RESERVED_AT_A_TIME: u64 = 8;

/// Time since the coordinator started.
pub type Now = Duration;

/// How many workers a run may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Crew {
    /// Fewest that train.
    pub min_workers: u32,
    /// Most that train; more are spares.
    pub max_workers: u32,
    /// Nodes that may have agents, those of spares included.
    pub nodes: u32,
    /// Workers of each node.
    pub workers_per_node: u32,
}

impl Crew {
    /// Processes that may talk to the coordinator: each node's agent and its workers.
    pub(crate) fn processes(self) -> usize {
        self.nodes as usize * (1 + self.workers_per_node as usize)
    }
}

/// What happens to a run.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// A worker asks to join.
    Joined(Joining),
    /// A worker gives a sign of life.
    Heartbeat(Sign),
    /// A rank has done its part of a task.
    Completed {
        /// Which rank.
        rank: Rank,
        /// Which task.
        task: u64,
        /// How it ended.
        outcome: Outcome,
    },
    /// A worker cannot go on as it is.
    Failed(Failure),
    /// A rank has stored its parts of a checkpoint.
    PartsStored {
        /// Which rank.
        rank: Rank,
        /// Of which generation.
        generation: Generation,
        /// Of which step.
        step: Step,
        /// Its stage.
        stage: Stage,
        /// The parts.
        parts: Vec<PartRecord>,
    },
    /// A manifest that was to be published is there, or cannot be.
    Published {
        /// Of which step.
        step: Step,
        /// Why not, if trying again cannot help.
        error: Option<String>,
    },
    /// An evaluation is written down.
    Scored {
        /// The model's step.
        step: Step,
        /// Validation loss in nats per token.
        loss: Option<f64>,
    },
    /// The agent of a node has started.
    NodeRegistered(Agent),
    /// The agent of a node gives a sign of life.
    AgentAlive {
        /// Its node.
        node: u32,
        /// Its process.
        incarnation: Incarnation,
    },
    /// A worker process ended.
    Exited(Ended),
    /// Somebody asks the run to stop.
    StopRequested {
        /// Who and why.
        reason: String,
    },
    /// Whoever started the run is gone, and its workers with it: there is nothing left to coordinate.
    Abandoned,
    /// Generations up to this number may be formed: the journal says so.
    Reserved(Generation),
    /// The coordinator itself cannot write to the run's store, or can again.
    StoreTrouble(Option<Trouble>),
    /// Time passes.
    Tick,
}

/// What is to be done because of an event, in order.
#[derive(Debug, Clone, PartialEq)]
pub enum Effect {
    /// Numbers of generations run short: reserve more in the journal, then say [`Event::Reserved`].
    Reserve(Generation),
    /// A generation is formed.
    FormGeneration {
        /// Its number.
        generation: Generation,
        /// Its members in the order of their ranks.
        seats: Vec<Seat>,
        /// Where the banks are; nothing if there are none.
        placement: Option<Placement>,
        /// Completed steps that it starts from.
        step: Step,
        /// Where its state comes from.
        origin: Origin,
        /// Workers that are ready and not needed.
        spares: u32,
    },
    /// A generation ended before its time.
    Broken {
        /// Its number.
        generation: Generation,
        /// The last completed step that was heard of.
        step: Step,
        /// A paragraph: who was lost, how, and what the others were doing.
        reason: String,
    },
    /// The first step after a loss is completed.
    Recovered(Recovery),
    /// A task begins.
    Begin {
        /// Its number.
        id: u64,
        /// What it is.
        planned: Planned,
    },
    /// All ranks have reported their parts: publish the manifest, then say [`Event::Published`].
    Publish {
        /// Of which step.
        step: Step,
        /// Its stage.
        stage: Stage,
        /// Who wrote it.
        generation: Generation,
        /// How many they were.
        world_size: WorldSize,
        /// All parts.
        parts: Vec<PartRecord>,
    },
    /// A checkpoint is there. Those in `retire` are no longer kept.
    Committed {
        /// Its step.
        step: Step,
        /// Steps of checkpoints to delete.
        retire: Vec<Step>,
    },
    /// An evaluation is complete: score it, write it down, and say [`Event::Scored`].
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
    /// A node's workers have failed too often.
    LeftOut {
        /// The node.
        node: u32,
        /// Its machine.
        hostname: String,
        /// How often, and how the last one did.
        reason: String,
    },
    /// Something needs a person, or no longer does.
    Alarm {
        /// What.
        message: String,
        /// It is over.
        cleared: bool,
    },
    /// A rank is slow.
    Straggler {
        /// Its worker.
        worker: WorkerId,
        /// Its rank.
        rank: Rank,
        /// Its machine.
        hostname: String,
        /// How many times as long it takes as the median.
        factor: f64,
        /// Share of the generation's time that the others waited for it.
        lost_share: f64,
    },
    /// Who is waited for.
    Waiting(String),
    /// The run is over.
    End {
        /// How.
        verdict: Verdict,
        /// Where the time went.
        accounts: Accounts,
    },
}

/// How a run came back from a loss.
#[derive(Debug, Clone, PartialEq)]
pub struct Recovery {
    /// The generation that goes on.
    pub generation: Generation,
    /// Its ranks.
    pub world_size: WorldSize,
    /// The step it started from.
    pub from: Step,
    /// Whether that came from a checkpoint.
    pub from_checkpoint: bool,
    /// Completed steps that had to be made again.
    pub repeated_steps: u64,
    /// From when the loss was noticed until the step was completed.
    pub took: Duration,
    /// Objects that its members read from the run.
    pub store_reads: u64,
}

/// Whether workers train, or come together.
#[derive(Debug)]
enum Phase {
    Gathering(Gathering),
    Together(Together),
}

/// Everything the coordinator knows.
#[derive(Debug)]
pub struct State {
    config: RunConfig,
    crew: Crew,
    basis: PlacementBasis,
    phase: Phase,
    /// The number of the newest generation.
    generation: Generation,
    /// The highest number that was ever used, or may have been.
    highest: Generation,
    /// The highest number that may be used without a new entry in the journal.
    reserved: Generation,
    placement: Option<Placement>,
    members: BTreeMap<WorkerId, Member>,
    /// Processes that are not to come back.
    given_up: BTreeSet<(WorkerId, Incarnation)>,
    nodes: BTreeMap<u32, Node>,
    /// Until when each loss counts, over all nodes.
    failures: Vec<Now>,
    /// Losses since a step was completed that no generation had completed before.
    fruitless: u32,
    /// Failures that were counted by this coordinator.
    failed: u64,
    /// What is left to do, the next thing last.
    left: Vec<Planned>,
    next_task: u64,
    running: Option<Running>,
    /// Evaluations that are written down.
    evaluated: BTreeSet<(EvaluationSet, bool, Step)>,
    validation_losses: BTreeMap<Step, f64>,
    pending: BTreeMap<Step, Pending>,
    /// Checkpoints that ranks have written or will write, not published yet.
    expected: BTreeSet<Step>,
    published: BTreeSet<Step>,
    /// Completed steps of the model.
    reached: Step,
    /// The furthest step that was ever completed in this launch.
    furthest: Step,
    stop_requested: Option<Stop>,
    /// Something was left out because of the stop.
    cut_short: bool,
    closing: Option<Closing>,
    loss: Option<Loss>,
    /// Of the coordinator's own writes.
    own_trouble: Option<Trouble>,
    alarmed: bool,
    waiting_told: String,
    last_tick: Now,
    accounts: Accounts,
    verdict: Option<Verdict>,
}

/// A request to stop.
#[derive(Debug, Clone, PartialEq)]
struct Stop {
    reason: String,
    since: Now,
}

impl State {
    /// A run that `past` tells of, with nobody together yet unless `past` has a generation to adopt.
    pub fn new(config: RunConfig, crew: Crew, basis: PlacementBasis, past: Past) -> Self {
        let mut state = Self {
            config,
            crew,
            basis,
            phase: Phase::Gathering(Gathering::at_start()),
            generation: past.generation,
            highest: past.generation,
            reserved: past.generation,
            placement: None,
            members: BTreeMap::new(),
            given_up: BTreeSet::new(),
            nodes: BTreeMap::new(),
            failures: Vec::new(),
            fruitless: 0,
            failed: 0,
            left: Vec::new(),
            next_task: past.next_task,
            running: None,
            evaluated: past.evaluated,
            validation_losses: past.validation_losses,
            pending: BTreeMap::new(),
            expected: BTreeSet::new(),
            published: past.published,
            reached: past.reached,
            furthest: past.reached,
            stop_requested: None,
            cut_short: false,
            closing: None,
            loss: None,
            own_trouble: None,
            alarmed: false,
            waiting_told: String::new(),
            last_tick: Now::ZERO,
            accounts: Accounts::default(),
            verdict: None,
        };
        if let Some((ledger, away)) = &past.ledger {
            let meanwhile = match past.adopted {
                Some(_) => accounts::Activity::Working,
                None => accounts::Activity::Recovering,
            };
            state.take_over(ledger, *away, meanwhile);
        }
        if let Some(adopted) = past.adopted {
            state.adopt(adopted);
        }
        state
    }

    /// The configuration of the run.
    pub fn config(&self) -> &RunConfig {
        &self.config
    }

    /// The newest generation.
    pub fn generation(&self) -> Generation {
        self.generation
    }

    /// The highest number of a generation that was ever used.
    pub fn highest_generation(&self) -> Generation {
        self.highest
    }

    /// The generation that is at work.
    pub fn together(&self) -> Option<Generation> {
        matches!(self.phase, Phase::Together(_)).then_some(self.generation)
    }

    /// Worker processes that live, as far as is known.
    pub fn workers(&self) -> impl Iterator<Item = &WorkerId> {
        self.members.keys()
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

    /// The newest checkpoint that was published.
    pub fn committed(&self) -> Option<Step> {
        self.published.last().copied()
    }

    /// Takes one event in.
    pub fn apply(&mut self, now: Now, event: Event) -> Vec<Effect> {
        let mut effects = Vec::new();
        if self.verdict.is_some() {
            return effects;
        }
        match event {
            Event::Joined(joining) => self.joined(now, joining),
            Event::Heartbeat(sign) => self.heard(now, sign, &mut effects),
            Event::Completed { rank, task, outcome } => {
                self.completed(now, rank, task, outcome, &mut effects);
            }
            Event::Failed(failure) => self.failed(now, failure, &mut effects),
            Event::PartsStored {
                rank,
                generation,
                step,
                stage,
                parts,
            } => {
                // GEN-1: it may have ended since the request was looked at.
                if generation == self.generation {
                    self.parts_stored(rank, step, stage, parts, &mut effects);
                }
            }
            Event::Published { step, error } => self.published(now, step, error, &mut effects),
            Event::Scored { step, loss } => {
                self.validation_losses.extend(loss.map(|loss| (step, loss)));
            }
            Event::NodeRegistered(agent) => self.node_registered(now, agent, &mut effects),
            Event::AgentAlive { node, incarnation } => self.agent_alive(now, node, incarnation),
            Event::Exited(ended) => self.exited(now, &ended, &mut effects),
            Event::StopRequested { reason } => self.stop(now, reason, &mut effects),
            Event::Abandoned => {
                let verdict = Verdict::Stopped("zipper-launch is gone".to_owned());
                self.end(now, verdict, &mut effects);
            }
            Event::Reserved(generation) => self.reserved = self.reserved.max(generation),
            Event::StoreTrouble(trouble) => self.own_trouble = trouble,
            Event::Tick => self.tick(now, &mut effects),
        }
        // What caused a loss is noted by now.
        self.check_budget_of_run(now, &mut effects);
        let idle = self.running.is_none() && self.closing.is_none() && self.verdict.is_none();
        if idle && self.together().is_some() {
            // A generation that was taken over before its task was written down.
            self.begin_next(now, &mut effects);
        }
        self.try_form(now, &mut effects);
        self.close_if_ready(now, &mut effects);
        effects
    }

    fn stop(&mut self, now: Now, reason: String, effects: &mut Vec<Effect>) {
        let never_formed = matches!(&self.phase, Phase::Gathering(gathering) if gathering.is_start());
        if never_formed {
            self.end(now, Verdict::Stopped(reason), effects);
            return;
        }
        // When the run is closing the work is done already, and only a checkpoint is awaited.
        if self.closing.is_none() {
            self.stop_requested.get_or_insert(Stop { reason, since: now });
        }
    }

    fn tick(&mut self, now: Now, effects: &mut Vec<Effect>) {
        self.forgive_own_sleep(now);
        self.tell_loss(now, effects);
        if let Some(verdict) = self
            .late_stop(now)
            .or_else(|| self.late_checkpoints(now))
            .or_else(|| self.long_outage(effects))
            .or_else(|| self.late_gathering(now))
        {
            self.end(now, verdict, effects);
            return;
        }
        self.give_up_silent(now, effects);
        self.find_hang(now);
        self.find_stragglers(now, effects);
        self.tell_waiting(now, effects);
    }

    /// How a run ends that was asked to stop and does not get its checkpoint done within the grace time.
    fn late_stop(&self, now: Now) -> Option<Verdict> {
        let stop = self.stop_requested.as_ref()?;
        let grace = self.config.runtime.grace;
        (now.saturating_sub(stop.since) > grace).then(|| {
            let from = match self.committed() {
                Some(committed) => format!("it goes on from step {committed}"),
                None => "it begins anew".to_owned(),
            };
            Verdict::Stopped(format!(
                "{}; the last checkpoint was not finished within `runtime.grace` = {}: {from}",
                stop.reason,
                humantime::format_duration(grace)
            ))
        })
    }

    fn end(&mut self, now: Now, verdict: Verdict, effects: &mut Vec<Effect>) {
        if self.verdict.is_none() {
            self.running = None;
            self.closing = None;
            self.verdict = Some(verdict.clone());
            self.accounts.end(now);
            effects.push(Effect::End {
                verdict,
                accounts: self.accounts.clone(),
            });
        }
    }
}
