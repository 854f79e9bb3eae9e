//! The shell around [`State`]: one task owns the state and applies events in turn (`owner`), another writes
//! what it decides (`scribe`), a third keeps the lease, and the gRPC services (`service`, with
//! `wire` for its words and `bounds` for what a request may say) ask and tell, over connections that `transport` takes in. `history` is
//! what watchers are told, `watcher` the way of those who show the run to people.

mod bounds;
mod history;
mod owner;
mod scribe;
mod service;
mod transport;
mod watcher;
mod wire;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, interval};
use zipper_checkpoint::RunStore;
use zipper_checkpoint::lease::{Lease, LeaseLost};
use zipper_cli::{ExitStatus, UserError, in_words, unusable};
use zipper_config::RunConfig;
use zipper_proto::v1;
use zipper_tls::{Credentials, Refusals};
use zipper_types::{Generation, Step};

use crate::clock::Clock;
use crate::corpus::Corpus;
use crate::journal::{self, JournalEntry};
use crate::metrics::Metrics;
use crate::placement::PlacementBasis;
use crate::state::{Crew, Event, Past, RESERVED_AT_A_TIME, State, Verdict};
use crate::watching::{Assignment, Page, Watching};

pub(crate) use history::Recent;
#[cfg(test)]
pub(crate) use scribe::tests::claim;
pub(crate) use watcher::Watcher;

use bounds::Bounds;
use history::History;
use owner::{Message, Owner, View};
use scribe::{Scribe, Told, Work};

pub use service::Services;

/// How long workers may take to fetch the verdict before the coordinator ends without them.
pub(crate) const FAREWELL: Duration = Duration::from_secs(5);
/// How long the last entries may take to be written.
const LAST_WORDS: Duration = Duration::from_secs(10);
const EVENTS_WAITING: usize = 256;
/// Tasks of each claim have numbers of their own: the coordinator before may have given out some that it had no time to note.
const TASK_BITS: u32 = 32;

/// What a coordinator serves.
pub struct Job {
    /// Where the run is kept.
    pub store: RunStore,
    /// Its configuration.
    pub config: RunConfig,
    /// How many workers it may have.
    pub crew: Crew,
    /// Memory that a bank takes on a worker that owns it; needed only for `runtime.bank_memory_mib`.
    pub bank_bytes: Option<u64>,
    /// The claim on the run.
    pub lease: Lease,
    /// Take over the workers of a coordinator that crashed.
    pub adopt: bool,
    /// The time of day.
    pub clock: Clock,
}

/// Serves a run on `listener` to those who have credentials of the same launch, and its status page on `page`, until it has ended,
/// and returns how. `stop` brings what happens to this process itself.
///
/// # Errors
/// If the run's store cannot be read, another coordinator takes the run over, or the credentials cannot be used.
pub async fn serve(
    listener: TcpListener,
    credentials: &Credentials,
    page: Option<Page>,
    job: Job,
    stop: mpsc::Receiver<Event>,
) -> anyhow::Result<ExitStatus> {
    let (store, config, adopts) = (job.store.clone(), job.config.clone(), job.adopt);
    let refusals = Refusals::default();
    let incoming = transport::incoming(listener, credentials, job.crew, refusals.clone())?;
    let mut running = start(job, stop).await?;
    let services = running.services();
    let showing = Assignment::new(&store, &config, &running.lease, adopts, page, refusals);
    running.watching = Some(Watching::start(showing, services.watcher()));
    let (ended, shutdown) = oneshot::channel::<()>();
    let server = transport::router(services).serve_with_incoming_shutdown(incoming, async {
        let _ = shutdown.await;
    });
    let server = tokio::spawn(server);
    let status = running.ended().await;
    let _ = ended.send(());
    // Streams of watchers end with the verdict; one that does not must not keep the coordinator.
    let _ = tokio::time::timeout(FAREWELL, server).await;
    status
}

/// A coordinator at work, without a network.
pub struct Running {
    services: Services,
    owner: JoinHandle<anyhow::Result<Verdict>>,
    /// The tasks beside the one that owns the state.
    others: Vec<JoinHandle<()>>,
    works: mpsc::UnboundedSender<Work>,
    lease: Arc<Lease>,
    /// Who shows it to people, if anybody does.
    watching: Option<Watching>,
}

/// Begins to coordinate a run.
///
/// # Errors
/// If the run's store cannot be read, or what is there does not fit.
pub async fn start(job: Job, stop: mpsc::Receiver<Event>) -> anyhow::Result<Running> {
    let Beginning {
        past,
        basis,
        metrics,
        sequence,
        damaged,
    } = begin(&job).await?;
    let (messages, inbox) = mpsc::channel(EVENTS_WAITING);
    let (view, views) = watch::channel(View::default());
    let (told, telling) = mpsc::unbounded_channel();
    let (works, waiting) = mpsc::unbounded_channel();
    let history = History::default();
    let lease = Arc::new(job.lease);
    let services = Services::new(
        messages.clone(),
        views,
        history.clone(),
        job.config.name.clone(),
        Bounds::new(&job.config, job.crew),
        job.store.checkpoints(),
        Arc::clone(&lease),
    );
    let reserved = Generation(past.generation.0 + RESERVED_AT_A_TIME);
    // The receiver is a few lines above.
    let _ = works.send(Work::reserve(reserved, lease.epoch(), &job.clock));
    if past.reached > Step(0) && past.adopted.is_none() {
        history.add(v1::watch_response::Event::Resumed(v1::Resumed {
            step: past.reached.0,
            damaged,
        }));
    }
    let scribe = Scribe::new(job.store, Arc::clone(&lease), sequence, waiting, told.clone());
    let owner = Owner::new(
        State::new(job.config, job.crew, basis, past),
        job.clock,
        lease.epoch(),
        metrics,
        view,
        history,
        works.clone(),
    );
    Ok(Running {
        services,
        others: vec![
            tokio::spawn(scribe.run()),
            tokio::spawn(keep(Arc::clone(&lease), told)),
            tokio::spawn(pass_on(stop, messages)),
        ],
        owner: tokio::spawn(owner.run(inbox, telling)),
        works,
        lease,
        watching: None,
    })
}

impl Running {
    /// What workers, agents and watchers ask.
    pub fn services(&self) -> Services {
        self.services.clone()
    }

    /// Waits for the end of the run, writes the last words and gives the run back.
    ///
    /// # Errors
    /// If the run's store cannot be read any more, or another coordinator takes the run over.
    pub async fn ended(mut self) -> anyhow::Result<ExitStatus> {
        let verdict = (&mut self.owner)
            .await
            .context("the coordinator's state was lost")??;
        if let Some(watching) = self.watching.take() {
            // While the claim on the run is still this one's.
            watching.end().await;
        }
        let (done, written) = oneshot::channel();
        if self.works.send(Work::Flush(done)).is_ok() {
            // What could not be written by then is not worth more waiting: the run can be resumed without it.
            if tokio::time::timeout(LAST_WORDS, written).await.is_err() {
                tracing::warn!("not all of the run's last entries were written within {LAST_WORDS:?}");
            }
        }
        match tokio::time::timeout(LAST_WORDS, self.lease.release()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!("the claim on the run was not given back: {}", in_words(&error)),
            Err(_) => tracing::warn!("the claim on the run was not given back within {LAST_WORDS:?}"),
        }
        Ok(match verdict {
            Verdict::Done => ExitStatus::Done,
            Verdict::Failed(_) => ExitStatus::Failed,
            Verdict::Config(_) => ExitStatus::Usage,
            Verdict::Stopped(_) => ExitStatus::Stopped,
        })
    }
}

impl Drop for Running {
    /// Nothing goes on without it: as if the process had ended.
    fn drop(&mut self) {
        self.owner.abort();
        for task in &self.others {
            task.abort();
        }
    }
}

/// What a coordinator finds.
struct Beginning {
    past: Past,
    basis: PlacementBasis,
    metrics: Metrics,
    /// Number of the journal's next entry.
    sequence: u64,
    /// The first damage of each checkpoint that cannot be used and was newer.
    damaged: Vec<String>,
}

/// Reads the journal, finds the newest checkpoint that can be read, and makes room for those after it.
async fn begin(job: &Job) -> anyhow::Result<Beginning> {
    let Job { store, config, .. } = job;
    let entries = store
        .journal()
        .read_all::<JournalEntry>()
        .await
        .context("the run's journal cannot be read")?;
    let sequence = entries.last().map_or(0, |(sequence, _)| sequence + 1);
    let entries: Vec<JournalEntry> = entries.into_iter().map(|(_, entry)| entry).collect();
    let list = store
        .checkpoints()
        .list()
        .await
        .context("the run's checkpoints cannot be listed")?;
    let mut published: BTreeSet<Step> = list
        .checkpoints
        .iter()
        .map(|checkpoint| checkpoint.manifest.step)
        .collect();
    let past = |published: BTreeSet<Step>| {
        journal::past(&entries, &config.data.languages, published, job.adopt, &job.clock)
    };
    // Workers that go on have what they need: nothing is read from checkpoints then.
    let damaged = if past(published.clone()).adopted.is_some() {
        Vec::new()
    } else {
        make_room(job, &mut published).await?
    };
    let mut past = past(published);
    past.next_task = past.next_task.max(job.lease.epoch() << TASK_BITS);
    let metrics = Metrics::open(store, past.adopted.is_none().then_some(past.reached))
        .await
        .context("the run's metrics cannot be read")?;
    let corpus = Corpus::read(store)
        .await
        .context("what there is to train on cannot be read")?;
    let basis = PlacementBasis::new(config, &corpus, metrics.lines(), job.bank_bytes)
        .map_err(|error| UserError::new(error.to_string()))?;
    Ok(Beginning {
        past,
        basis,
        metrics,
        sequence,
        damaged,
    })
}

/// Removes the checkpoints that are damaged and newer than the one to go on from, also from `published`. Returns what each has.
async fn make_room(job: &Job, published: &mut BTreeSet<Step>) -> anyhow::Result<Vec<String>> {
    let checkpoints = job.store.checkpoints();
    let latest = checkpoints.latest_readable().await.map_err(unusable)?;
    let mut damaged = Vec::new();
    for (step, error) in latest.damaged {
        job.lease.check().await?;
        tracing::warn!("the checkpoint of step {step} is damaged and makes room for a new one: {error}");
        checkpoints.remove(step).await?;
        published.remove(&step);
        damaged.push(format!("step {step}: {error}"));
    }
    Ok(damaged)
}

/// Hands what happens to this process to the owner of the state.
async fn pass_on(mut stop: mpsc::Receiver<Event>, messages: mpsc::Sender<Message>) {
    while let Some(event) = stop.recv().await {
        let message = Message::Event(Box::new(event), oneshot::channel().0);
        if messages.send(message).await.is_err() {
            return;
        }
    }
}

/// Renews the claim on the run, and says so when another coordinator has taken it or somebody asks for the end of the run.
async fn keep(lease: Arc<Lease>, told: mpsc::UnboundedSender<Told>) {
    let mut asked_to_stop = false;
    let mut ticks = interval(lease.renew_every());
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut troubled_since: Option<Instant> = None;
    loop {
        ticks.tick().await;
        match lease.renew().await {
            Ok(()) => {
                troubled_since = None;
                if !asked_to_stop && let Ok(Some(request)) = lease.stop_request().await {
                    asked_to_stop = true;
                    let reason = format!("`zipper-launch stop` of {} on {}", request.user, request.host);
                    let _ = told.send(Told::Event(Box::new(Event::StopRequested { reason })));
                }
            }
            Err(LeaseLost::Store(error)) => {
                let lasting = troubled_since.get_or_insert_with(Instant::now).elapsed();
                let why = in_words(&error);
                tracing::warn!("the claim on the run could not be renewed for {lasting:?}: {why}");
            }
            Err(lost) => {
                let _ = told.send(Told::Fenced(lost.to_string()));
                return;
            }
        }
    }
}
