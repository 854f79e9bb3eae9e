//! The task that owns the state.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, bail};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;
use zipper_checkpoint::{FORMAT_VERSION, Manifest};
use zipper_cli::UserError;
use zipper_plan::Placement;
use zipper_proto::v1;
use zipper_proto::v1::watch_response::Event as Watched;
use zipper_types::{Generation, Step, WorkerId};

use super::history::History;
use super::scribe::{Told, Work};
use super::{FAREWELL, wire};
use crate::clock::Clock;
use crate::evaluation::{score_set, title};
use crate::journal::JournalEntry;
use crate::metrics::Metrics;
use crate::placement;
use crate::schedule::{EvaluationSet, Planned};
use crate::state::{Accounts, Decoded, Effect, Event, Origin, Recovery, Seat, State, Verdict};

const TICK: Duration = Duration::from_millis(250);

/// What the services wait for.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct View {
    /// The generation that is together.
    pub(super) generation: Option<Generation>,
    pub(super) task: Option<v1::Task>,
    pub(super) stop_requested: bool,
    pub(super) regroup_requested: bool,
    pub(super) verdict: Option<Verdict>,
    pub(super) committed: Option<Step>,
}

/// A question about the state.
pub(super) type Question = Box<dyn FnOnce(&State) + Send>;

/// For the task that owns the state.
pub(super) enum Message {
    /// An event of somebody who needs no answer but that it was taken in.
    Event(Box<Event>, oneshot::Sender<()>),
    /// Something is asked; the question sends the answer itself.
    Ask(Question),
    /// Metrics of a step.
    Step(Box<v1::StepMetrics>),
    /// A worker was told how the run ended.
    TookVerdict(WorkerId),
    /// The agent of a node was told.
    AgentTookVerdict(u32),
}

/// The task that owns the state.
pub(super) struct Owner {
    started: Instant,
    state: State,
    clock: Clock,
    epoch: u64,
    metrics: Metrics,
    view: watch::Sender<View>,
    history: History,
    works: mpsc::UnboundedSender<Work>,
    /// Workers that have fetched the verdict, or ended without it.
    farewell: BTreeSet<WorkerId>,
    /// Nodes whose agents have heard of the verdict.
    agents_told: BTreeSet<u32>,
    ended: Option<Instant>,
}

impl Owner {
    pub(super) fn new(
        state: State,
        clock: Clock,
        epoch: u64,
        metrics: Metrics,
        view: watch::Sender<View>,
        history: History,
        works: mpsc::UnboundedSender<Work>,
    ) -> Self {
        Self {
            started: Instant::now(),
            state,
            clock,
            epoch,
            metrics,
            view,
            history,
            works,
            farewell: BTreeSet::new(),
            agents_told: BTreeSet::new(),
            ended: None,
        }
    }

    pub(super) async fn run(
        mut self,
        mut inbox: mpsc::Receiver<Message>,
        mut told: mpsc::UnboundedReceiver<Told>,
    ) -> anyhow::Result<Verdict> {
        // Those of an earlier launch count no more.
        self.note_costs();
        let known: Vec<Effect> = self.state.nodes_left_out().collect();
        for effect in known {
            self.perform(effect).await?;
        }
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                told = told.recv() => match told {
                    Some(Told::Event(event)) => self.apply(*event).await?,
                    // Not a failure of the run, which goes on elsewhere.
                    Some(Told::Fenced(message)) => return Err(UserError::new(message).into()),
                    // The next one begins with that entry.
                    Some(Told::Behind(message)) => bail!(message),
                    None => bail!("the run's journal is not written any more"),
                },
                message = inbox.recv() => match message {
                    Some(message) => self.take(message).await?,
                    None => bail!("all services are gone"),
                },
                _ = ticks.tick() => {
                    self.apply(Event::Tick).await?;
                    let training = matches!(self.state.task(), Some((_, Planned::Train { .. })));
                    self.write_metrics(!training);
                }
            }
            if let (Some(verdict), Some(ended)) = (self.state.verdict(), self.ended) {
                let everyone = self.state.workers().all(|worker| self.farewell.contains(worker))
                    && self.state.nodes().all(|node| self.agents_told.contains(&node));
                if everyone || ended.elapsed() > FAREWELL {
                    return Ok(verdict.clone());
                }
            }
        }
    }

    async fn take(&mut self, message: Message) -> anyhow::Result<()> {
        match message {
            Message::Event(event, done) => {
                if let Event::Exited(ended) = &*event {
                    // Who has ended does not fetch the verdict.
                    self.farewell.insert(ended.worker.clone());
                }
                self.apply(*event).await?;
                // An answer that nobody waits for any more is no failure.
                let _ = done.send(());
            }
            Message::Ask(question) => question(&self.state),
            Message::Step(metrics) => {
                if self.metrics.add(&metrics) {
                    self.history.add(Watched::Step(*metrics));
                }
            }
            Message::TookVerdict(worker) => {
                self.farewell.insert(worker);
            }
            Message::AgentTookVerdict(node) => {
                self.agents_told.insert(node);
            }
        }
        Ok(())
    }

    /// Applies an event and does what follows from it; then shows the result.
    async fn apply(&mut self, event: Event) -> anyhow::Result<()> {
        let mut events = vec![event];
        let failures = self.state.failures();
        let mut costs_changed = false;
        while let Some(event) = events.pop() {
            for effect in self.state.apply(self.started.elapsed(), event) {
                costs_changed |= matches!(effect, Effect::FormGeneration { .. } | Effect::Committed { .. });
                events.extend(self.perform(effect).await?);
            }
        }
        if costs_changed || self.state.failures() > failures {
            self.note_costs();
        }
        let task = self.state.task();
        let new = View {
            generation: self.state.together(),
            task: task.map(|(id, planned)| wire::task(id, planned)),
            stop_requested: self.state.stop_requested(),
            regroup_requested: self.state.regroup_requested(),
            verdict: self.state.verdict().cloned(),
            committed: self.state.committed(),
        };
        self.view.send_if_modified(|view| {
            let changed = *view != new;
            *view = new;
            changed
        });
        Ok(())
    }

    /// Does what an effect says; what comes of it, if the state is to know it.
    async fn perform(&mut self, effect: Effect) -> anyhow::Result<Option<Event>> {
        match effect {
            Effect::Reserve(reserved) => self.write(Work::reserve(reserved, self.epoch, &self.clock)),
            Effect::Publish {
                step,
                stage,
                generation,
                world_size,
                parts,
            } => {
                self.write(Work::Publish(Manifest {
                    format_version: FORMAT_VERSION,
                    step,
                    stage,
                    created: self.clock.text(),
                    world_size,
                    generation,
                    parts,
                }));
            }
            Effect::Committed { step, retire } => {
                self.note(JournalEntry::Checkpoint {
                    step,
                    at: self.clock.text(),
                });
                self.write_metrics(true);
                self.write(Work::Retire(retire, step));
                let committed = v1::CheckpointCommitted { step: step.0 };
                self.history.add(Watched::CheckpointCommitted(committed));
            }
            Effect::Evaluated {
                set,
                silenced,
                step,
                utterances,
            } => return Ok(Some(self.score(set, silenced, step, utterances))),
            Effect::End { verdict, accounts } => self.end(&verdict, &accounts).await?,
            effect => self.tell(effect),
        }
        Ok(None)
    }

    /// Scores an evaluation, and has the scores written down.
    fn score(&self, set: EvaluationSet, silenced: bool, step: Step, mut utterances: Vec<Decoded>) -> Event {
        utterances.sort_by(|a, b| a.lang.cmp(&b.lang).then_with(|| a.id.cmp(&b.id)));
        let scored = score_set(self.state.config(), &set, silenced, step, &utterances);
        let overall = &scored.report.overall;
        self.history.add(Watched::EvaluationDone(v1::EvaluationDone {
            name: title(&set, silenced, step),
            step: step.0,
            wer: overall.wer.rate(),
            cer: overall.cer.rate(),
            loss: scored.loss,
        }));
        let loss = scored.loss;
        self.write(Work::Evaluation(Box::new(scored), utterances));
        self.note(JournalEntry::Evaluation {
            set,
            silenced,
            step,
            loss,
            at: self.clock.text(),
        });
        Event::Scored { step, loss }
    }

    /// What is noted and told, and needs nothing else.
    fn tell(&self, effect: Effect) {
        match effect {
            Effect::FormGeneration {
                generation,
                seats,
                placement,
                step,
                origin,
                spares,
            } => self.formed(generation, seats, placement.as_ref(), step, origin, spares),
            Effect::Broken {
                generation,
                step,
                reason,
            } => self.broken(generation, step, reason),
            Effect::Recovered(recovery) => {
                tracing::info!("recovered: {recovery:?}");
                self.history.add(Watched::Recovered(recovered(&recovery)));
            }
            Effect::Begin { id, planned } => self.begin(id, planned),
            Effect::LeftOut {
                node,
                hostname,
                reason,
            } => {
                tracing::warn!("{reason}");
                self.history.add(Watched::NodeLeftOut(v1::NodeLeftOut {
                    node_rank: node,
                    hostname,
                    reason,
                }));
            }
            Effect::Alarm { message, cleared } => {
                tracing::warn!("{message}");
                self.history.add(Watched::Alarm(v1::Alarm {
                    kind: zipper_watch::events::STORE_ALARM.to_owned(),
                    message,
                    cleared,
                }));
            }
            Effect::Straggler {
                worker,
                rank,
                hostname,
                factor,
                lost_share,
            } => {
                self.history.add(Watched::Straggler(v1::Straggler {
                    worker_id: worker.0,
                    rank: rank.0,
                    hostname,
                    factor,
                    lost_share,
                }));
            }
            Effect::Waiting(what) => self.history.add(Watched::Waiting(v1::Waiting { what })),
            // Done by `perform`.
            Effect::Reserve(_)
            | Effect::Publish { .. }
            | Effect::Committed { .. }
            | Effect::Evaluated { .. }
            | Effect::End { .. } => {}
        }
    }

    fn formed(
        &self,
        generation: Generation,
        seats: Vec<Seat>,
        placement: Option<&Placement>,
        step: Step,
        origin: Origin,
        spares: u32,
    ) {
        let world_size = seats.len() as u32;
        let languages = self.state.config().data.languages.iter().cloned();
        let banks = languages.zip(placement::owners(placement)).collect();
        tracing::info!(
            "generation {generation} formed with {world_size} workers and {spares} spares, from step {step}"
        );
        self.note(JournalEntry::Generation {
            generation,
            seats,
            banks,
            resume: step,
            origin,
            at: self.clock.text(),
        });
        self.history.add(Watched::GenerationFormed(v1::GenerationFormed {
            generation: generation.0,
            world_size,
            spares,
        }));
    }

    fn broken(&self, generation: Generation, step: Step, reason: String) {
        tracing::warn!("generation {generation} is broken: {reason}");
        self.note(JournalEntry::Broken {
            generation,
            step,
            reason: reason.clone(),
            at: self.clock.text(),
        });
        self.history.add(Watched::GenerationBroken(v1::GenerationBroken {
            generation: generation.0,
            step: step.0,
            reason,
        }));
    }

    fn begin(&self, id: u64, planned: Planned) {
        match &planned {
            Planned::Train {
                stage, from, until, ..
            } => self.history.add(Watched::TrainingStarted(v1::TrainingStarted {
                stage: v1::Stage::from(*stage).into(),
                from_step: from.0,
                until_step: until.0,
            })),
            Planned::Evaluate { set, silenced, step } => {
                let name = title(set, *silenced, *step);
                self.history
                    .add(Watched::EvaluationStarted(v1::EvaluationStarted { name }));
            }
            Planned::Save { .. } => {}
        }
        self.note(JournalEntry::Task {
            id,
            planned,
            at: self.clock.text(),
        });
    }

    async fn end(&mut self, verdict: &Verdict, accounts: &Accounts) -> anyhow::Result<()> {
        self.ended = Some(Instant::now());
        self.write_metrics(true);
        tracing::info!("the run ended: {verdict:?}");
        let done = *verdict == Verdict::Done;
        if done {
            // Made of what was written.
            self.write(Work::Table(Box::new(self.state.config().clone())));
        }
        self.note(JournalEntry::End {
            verdict: Some(verdict.clone()),
            generation: Some(self.state.highest_generation()),
            at: self.clock.text(),
        });
        if done {
            let (flushed, written) = oneshot::channel();
            self.write(Work::Flush(flushed));
            let limit = self.state.config().checkpoint.outage_limit;
            let written = tokio::time::timeout(limit, written).await;
            // Whoever has lost the run does not say how it ended.
            written
                .with_context(|| {
                    format!(
                        "the run's results could not be written within `checkpoint.outage_limit` = {}",
                        humantime::format_duration(limit)
                    )
                })?
                .context("the run's results could not be written")?;
        }
        self.history.add(Watched::Summary(summary(accounts)));
        self.history.add(Watched::Verdict(wire::verdict(verdict)));
        Ok(())
    }

    fn write_metrics(&mut self, urgent: bool) {
        if let Some(text) = self.metrics.due_write(self.started.elapsed(), urgent) {
            self.write(Work::Metrics(text));
        }
    }

    fn note_costs(&self) {
        self.note(JournalEntry::Ledger {
            ledger: self.state.ledger(self.started.elapsed()),
            at: self.clock.text(),
        });
    }

    fn note(&self, entry: JournalEntry) {
        self.write(Work::Note(Box::new(entry), None));
    }

    fn write(&self, work: Work) {
        // A scribe that has ended has said why, and the run ends.
        let _ = self.works.send(work);
    }
}

fn recovered(recovery: &Recovery) -> v1::Recovered {
    v1::Recovered {
        generation: recovery.generation.0,
        world_size: recovery.world_size.0,
        from_step: recovery.from.0,
        from_checkpoint: recovery.from_checkpoint,
        repeated_steps: recovery.repeated_steps,
        took: Some(zipper_proto::wire_duration(recovery.took)),
        store_reads: recovery.store_reads,
    }
}

fn summary(accounts: &Accounts) -> v1::Summary {
    let lost = accounts
        .lost()
        .map(|(activity, time)| (activity.name().to_owned(), zipper_proto::wire_duration(time)));
    v1::Summary {
        total: Some(zipper_proto::wire_duration(accounts.total())),
        productive: Some(zipper_proto::wire_duration(accounts.productive())),
        lost: lost.collect(),
        losses: accounts.losses,
        repeated_steps: accounts.repeated_steps,
    }
}

#[cfg(test)]
mod tests {
    use zipper_types::WorldSize;

    use super::*;

    /// Goal: watchers are told the whole of a recovery.
    #[test]
    fn a_recovery_is_told_whole() {
        let told = recovered(&Recovery {
            generation: Generation(3),
            world_size: WorldSize(4),
            from: Step(20),
            from_checkpoint: true,
            repeated_steps: 5,
            took: Duration::from_secs(6),
            store_reads: 7,
        });
        let expected = v1::Recovered {
            generation: 3,
            world_size: 4,
            from_step: 20,
            from_checkpoint: true,
            repeated_steps: 5,
            took: Some(zipper_proto::wire_duration(Duration::from_secs(6))),
            store_reads: 7,
        };
        assert_eq!(told, expected);
    }
}
