//! The shell around [`State`]: one task owns the state, applies events in turn, and does what the effects say before anybody
//! sees the result. The gRPC services (`service`) send it events and watch its view.

mod service;

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant, SystemTime};

use anyhow::Context;
use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_stream::wrappers::TcpListenerStream;
use zipper_checkpoint::{FORMAT_VERSION, Manifest, RunStore};
use zipper_cli::{ExitStatus, UserError};
use zipper_config::RunConfig;
use zipper_proto::v1;
use zipper_proto::v1::run_service_server::RunServiceServer;
use zipper_proto::v1::worker_service_server::WorkerServiceServer;
use zipper_types::{Generation, Incarnation, Rank, Step, WorkerId, WorldSize};

use crate::corpus::Corpus;
use crate::evaluation::{self, score_set};
use crate::metrics::Metrics;
use crate::placement::{self, PlacementBasis};
use crate::schedule::Planned;
use crate::state::{Effect, Event, Refusal, State, Verdict};

const TICK: Duration = Duration::from_millis(250);
/// How long workers may take to fetch the verdict before the coordinator ends without them.
const FAREWELL: Duration = Duration::from_secs(5);
const EVENTS_WAITING: usize = 256;

/// What a coordinator serves.
pub struct Job {
    /// Where the run is kept.
    pub store: RunStore,
    /// Its configuration.
    pub config: RunConfig,
    /// Workers it needs.
    pub world_size: WorldSize,
    /// Completed steps to go on from.
    pub resume: Step,
    /// Memory that a bank takes on a worker that owns it; needed only for `runtime.bank_memory_mib`.
    pub bank_bytes: Option<u64>,
}

/// An entry of the run's journal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum JournalEntry {
    /// A generation was formed.
    Generation {
        /// Its number.
        generation: Generation,
        /// Workers in the order of their ranks.
        workers: Vec<WorkerId>,
        /// First and last owner of each language's bank; empty if there are no banks.
        banks: BTreeMap<String, (Rank, Rank)>,
        /// Completed steps it goes on from.
        resume: Step,
        /// When.
        at: String,
    },
    /// A checkpoint was published.
    Checkpoint {
        /// Of which step.
        step: Step,
        /// When.
        at: String,
    },
    /// The run ended.
    End {
        /// How.
        verdict: String,
        /// When.
        at: String,
    },
}

/// What the services see of the state.
#[derive(Debug, Clone, Default)]
struct View {
    formed: bool,
    task: Option<v1::Task>,
    stop_requested: bool,
    verdict: Option<Verdict>,
}

/// A question or an event for the task that owns the state.
enum Message {
    /// An event of somebody who needs no answer but that it was taken in.
    Event(Event, oneshot::Sender<()>),
    /// Who is this worker?
    Member(
        WorkerId,
        Incarnation,
        Option<Generation>,
        oneshot::Sender<Result<Rank, Refusal>>,
    ),
    /// Its place, once all have joined.
    Assignment(WorkerId, Incarnation, oneshot::Sender<Option<v1::JoinResponse>>),
    /// Metrics of a step.
    Step(Box<v1::StepMetrics>),
    /// A worker was told how the run ended.
    TookVerdict(WorkerId),
}

/// Serves a run on `listener` until it has ended, and returns how.
///
/// # Errors
/// If the run's store cannot be read or written, or the listener fails.
pub async fn serve(
    listener: TcpListener,
    job: Job,
    stop: oneshot::Receiver<String>,
) -> anyhow::Result<ExitStatus> {
    let journal = job.store.journal();
    let entries = journal
        .read_all::<JournalEntry>()
        .await
        .context("the run's journal cannot be read")?;
    let generation = Generation(
        1 + entries
            .iter()
            .filter_map(|(_, entry)| entry.generation())
            .max()
            .unwrap_or(0),
    );
    let sequence = entries
        .iter()
        .map(|(sequence, _)| sequence + 1)
        .max()
        .unwrap_or(0);
    let metrics = Metrics::open(job.store.clone(), job.resume)
        .await
        .context("the run's metrics cannot be read")?;
    let corpus = Corpus::read(&job.store)
        .await
        .context("what there is to train on cannot be read")?;
    let basis = PlacementBasis::new(&job.config, &corpus, metrics.lines(), job.bank_bytes)
        .map_err(|error| UserError::new(error.to_string()))?;
    let (messages, inbox) = mpsc::channel(EVENTS_WAITING);
    let (view, views) = watch::channel(View::default());
    let history = History::default();
    let services = service::Services::new(messages.clone(), views, history.clone(), job.config.name.clone());
    let owner = Owner {
        started: Instant::now(),
        resume: job.resume,
        store: job.store,
        state: State::new(job.config, job.world_size, generation, basis, job.resume),
        sequence,
        metrics,
        view,
        history,
        farewell: BTreeSet::new(),
    };
    let owner = tokio::spawn(owner.run(inbox));
    tokio::spawn(async move {
        if let Ok(reason) = stop.await {
            let _ = messages
                .send(Message::Event(
                    Event::StopRequested { reason },
                    oneshot::channel().0,
                ))
                .await;
        }
    });
    let (ended, shutdown) = oneshot::channel::<()>();
    let server = tonic::transport::Server::builder()
        .add_service(WorkerServiceServer::new(services.clone()).max_decoding_message_size(usize::MAX))
        .add_service(RunServiceServer::new(services))
        .serve_with_incoming_shutdown(TcpListenerStream::new(listener), async {
            let _ = shutdown.await;
        });
    let server = tokio::spawn(server);
    let verdict = owner.await.context("the coordinator's state was lost")??;
    let _ = ended.send(());
    // Streams of watchers end with the verdict; one that does not must not keep the coordinator.
    let _ = tokio::time::timeout(FAREWELL, server).await;
    Ok(match verdict {
        Verdict::Done => ExitStatus::Done,
        Verdict::Failed(_) => ExitStatus::Failed,
        Verdict::Config(_) => ExitStatus::Usage,
        Verdict::Stopped(_) => ExitStatus::Stopped,
    })
}

impl JournalEntry {
    fn generation(&self) -> Option<u64> {
        match self {
            Self::Generation { generation, .. } => Some(generation.0),
            Self::Checkpoint { .. } | Self::End { .. } => None,
        }
    }
}

/// Everything that watchers were told, so that a late one catches up.
#[derive(Debug, Clone)]
struct History(watch::Sender<Vec<v1::watch_response::Event>>);

impl Default for History {
    fn default() -> Self {
        Self(watch::channel(Vec::new()).0)
    }
}

impl History {
    fn add(&self, event: v1::watch_response::Event) {
        self.0.send_modify(|events| events.push(event));
    }
}

/// The task that owns the state.
struct Owner {
    started: Instant,
    resume: Step,
    store: RunStore,
    state: State,
    /// Number of the journal's next entry.
    sequence: u64,
    metrics: Metrics,
    view: watch::Sender<View>,
    history: History,
    /// Workers that have fetched the verdict, or ended without it.
    farewell: BTreeSet<WorkerId>,
}

impl Owner {
    async fn run(mut self, mut inbox: mpsc::Receiver<Message>) -> anyhow::Result<Verdict> {
        let mut ticks = tokio::time::interval(TICK);
        let mut ended: Option<Instant> = None;
        loop {
            tokio::select! {
                message = inbox.recv() => match message {
                    Some(message) => self.take(message).await?,
                    None => anyhow::bail!("all services are gone"),
                },
                _ = ticks.tick() => {
                    self.apply(Event::Tick).await?;
                    let urgent = self.state.task().is_none_or(|(_, planned)| !matches!(planned, Planned::Train { .. }));
                    self.metrics.write(self.started.elapsed(), urgent).await?;
                }
            }
            if let Some(verdict) = self.state.verdict() {
                let since = ended.get_or_insert_with(Instant::now).elapsed();
                if since > FAREWELL || self.farewell.len() >= self.state.world_size().0 as usize {
                    let verdict = verdict.clone();
                    self.metrics.write(self.started.elapsed(), true).await?;
                    return Ok(verdict);
                }
            }
        }
    }

    async fn take(&mut self, message: Message) -> anyhow::Result<()> {
        // An answer that nobody waits for any more is no failure.
        match message {
            Message::Event(event, done) => {
                if let Event::Exited(ended) = &event {
                    // Who has ended does not fetch the verdict.
                    self.farewell.insert(ended.worker.clone());
                }
                self.apply(event).await?;
                let _ = done.send(());
            }
            Message::Member(worker, incarnation, generation, answer) => {
                let _ = answer.send(self.state.member(&worker, incarnation, generation));
            }
            Message::Assignment(worker, incarnation, answer) => {
                let assignment = self.state.assignment(&worker, incarnation);
                let _ = answer.send(assignment.map(|(rank, store_address)| v1::JoinResponse {
                    generation: self.state.generation().0,
                    rank: rank.0,
                    world_size: self.state.world_size().0,
                    store_address: store_address.to_owned(),
                    placement: Some(placement::wire(
                        self.state.placement(),
                        self.state.basis().model(),
                    )),
                }));
            }
            Message::Step(metrics) => {
                self.metrics.add(&metrics);
                // The verdict is the last thing that watchers are told.
                if self.state.verdict().is_none() {
                    self.history.add(v1::watch_response::Event::Step(*metrics));
                }
            }
            Message::TookVerdict(worker) => {
                self.farewell.insert(worker);
            }
        }
        Ok(())
    }

    /// Applies an event and does what follows from it; then shows the result.
    async fn apply(&mut self, event: Event) -> anyhow::Result<()> {
        let mut events = vec![event];
        while let Some(event) = events.pop() {
            for effect in self.state.apply(self.started.elapsed(), event) {
                events.extend(self.perform(effect).await?);
            }
        }
        self.view.send_if_modified(|view| {
            let task = self
                .state
                .task()
                .map(|(id, planned)| service::wire_task(id, planned));
            let new = View {
                formed: self.state.is_formed(),
                task,
                stop_requested: self.state.stop_requested(),
                verdict: self.state.verdict().cloned(),
            };
            let changed = view.formed != new.formed
                || view.task != new.task
                || view.stop_requested != new.stop_requested
                || view.verdict != new.verdict;
            *view = new;
            changed
        });
        Ok(())
    }

    async fn perform(&mut self, effect: Effect) -> anyhow::Result<Option<Event>> {
        use v1::watch_response::Event as Told;
        let at = humantime::format_rfc3339_seconds(SystemTime::now()).to_string();
        match effect {
            Effect::FormGeneration { workers, placement } => {
                let generation = self.state.generation();
                let world_size = workers.len() as u32;
                let languages = self.state.config().data.languages.iter().cloned();
                let banks = languages.zip(placement::owners(placement.as_ref())).collect();
                let resume = self.resume;
                self.note(&JournalEntry::Generation {
                    generation,
                    workers,
                    banks,
                    resume,
                    at,
                })
                .await?;
                tracing::info!("generation {generation} formed with {world_size} workers");
                self.history.add(Told::GenerationFormed(v1::GenerationFormed {
                    generation: generation.0,
                    world_size,
                }));
            }
            Effect::Begin(Planned::Train {
                stage, from, until, ..
            }) => {
                self.history.add(Told::TrainingStarted(v1::TrainingStarted {
                    stage: v1::Stage::from(stage).into(),
                    from_step: from.0,
                    until_step: until.0,
                }));
            }
            Effect::Begin(Planned::Evaluate { set, silenced, step }) => {
                let name = score_set(self.state.config(), &set, silenced, step, &[]).title();
                self.history
                    .add(Told::EvaluationStarted(v1::EvaluationStarted { name }));
            }
            Effect::Publish { step, stage, parts } => {
                let manifest = Manifest {
                    format_version: FORMAT_VERSION,
                    step,
                    stage,
                    created: at,
                    world_size: self.state.world_size(),
                    generation: self.state.generation(),
                    parts,
                };
                let published = self.store.checkpoints().publish(&manifest).await;
                let error = published.err().map(|error| error.to_string());
                return Ok(Some(Event::Published { step, error }));
            }
            Effect::Committed(step) => {
                self.note(&JournalEntry::Checkpoint { step, at }).await?;
                self.metrics.write(self.started.elapsed(), true).await?;
                self.history
                    .add(Told::CheckpointCommitted(v1::CheckpointCommitted {
                        step: step.0,
                    }));
            }
            Effect::Evaluated {
                set,
                silenced,
                step,
                mut utterances,
            } => {
                utterances.sort_by(|a, b| a.lang.cmp(&b.lang).then_with(|| a.id.cmp(&b.id)));
                let scored = score_set(self.state.config(), &set, silenced, step, &utterances);
                scored.write(&self.store, &utterances).await?;
                let overall = &scored.report.overall;
                self.history.add(Told::EvaluationDone(v1::EvaluationDone {
                    name: scored.title(),
                    step: step.0,
                    wer: overall.wer.rate(),
                    cer: overall.cer.rate(),
                    loss: scored.loss,
                }));
            }
            Effect::End(verdict) => self.end(&verdict, at).await?,
        }
        Ok(None)
    }

    async fn end(&mut self, verdict: &Verdict, at: String) -> anyhow::Result<()> {
        self.metrics.write(self.started.elapsed(), true).await?;
        if *verdict == Verdict::Done {
            let last_step = crate::schedule::stages(self.state.config()).last_step();
            evaluation::write_table(&self.store, self.state.config(), last_step).await?;
        }
        let wire = service::wire_verdict(verdict);
        tracing::info!("the run ended: {verdict:?}");
        self.note(&JournalEntry::End {
            verdict: format!("{verdict:?}"),
            at,
        })
        .await?;
        self.history.add(v1::watch_response::Event::Verdict(wire));
        Ok(())
    }

    async fn note(&mut self, entry: &JournalEntry) -> anyhow::Result<()> {
        self.store
            .journal()
            .append(self.sequence, entry)
            .await
            .context("the run's journal cannot be written: does another coordinator run it?")?;
        self.sequence += 1;
        Ok(())
    }
}
