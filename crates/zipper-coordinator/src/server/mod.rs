//! The shell around [`State`]: one task owns the state and applies events in turn (`owner`), another writes
//! what it decides (`scribe`), a third keeps the lease, and the gRPC services (`service`) ask and tell.

mod owner;
mod scribe;
mod service;

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, interval};
use tokio_stream::wrappers::TcpListenerStream;
use zipper_checkpoint::lease::{Lease, LeaseLost};
use zipper_checkpoint::{CheckpointError, ErrorKind, RunStore};
use zipper_cli::{ExitStatus, UserError};
use zipper_config::RunConfig;
use zipper_proto::v1;
use zipper_proto::v1::agent_service_server::AgentServiceServer;
use zipper_proto::v1::run_service_server::RunServiceServer;
use zipper_proto::v1::worker_service_server::WorkerServiceServer;
use zipper_types::{Generation, Step};

use crate::corpus::Corpus;
use crate::journal::{self, JournalEntry};
use crate::metrics::Metrics;
use crate::placement::PlacementBasis;
use crate::state::{Crew, Event, RESERVED_AT_A_TIME, State, Verdict};

use owner::{History, Message, Owner, View};
use scribe::{Scribe, Told, Work};

/// How long workers may take to fetch the verdict before the coordinator ends without them.
pub(crate) const FAREWELL: Duration = Duration::from_secs(5);
/// How long the last entries may take to be written.
const LAST_WORDS: Duration = Duration::from_secs(10);
const EVENTS_WAITING: usize = 256;

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
}

/// Serves a run on `listener` until it has ended, and returns how. `stop` brings what happens to this process itself.
///
/// # Errors
/// If the run's store cannot be read, another coordinator takes the run over, or the listener fails.
pub async fn serve(
    listener: TcpListener,
    job: Job,
    mut stop: mpsc::Receiver<Event>,
) -> anyhow::Result<ExitStatus> {
    let (messages, inbox) = mpsc::channel(EVENTS_WAITING);
    let (view, views) = watch::channel(View::default());
    let history = History::default();
    let lease = Arc::new(job.lease);
    let services = service::Services::new(
        messages.clone(),
        views,
        history.clone(),
        job.config.name.clone(),
        job.store.checkpoints(),
        Arc::clone(&lease),
    );
    let (ended, shutdown) = oneshot::channel::<()>();
    let server = tonic::transport::Server::builder()
        .add_service(WorkerServiceServer::new(services.clone()).max_decoding_message_size(usize::MAX))
        .add_service(AgentServiceServer::new(services.clone()))
        .add_service(RunServiceServer::new(services))
        .serve_with_incoming_shutdown(TcpListenerStream::new(listener), async {
            let _ = shutdown.await;
        });
    let server = tokio::spawn(server);

    let (told, telling) = mpsc::unbounded_channel();
    let (works, waiting) = mpsc::unbounded_channel();
    let started = begin(&job.store, &job.config, &lease, job.bank_bytes, job.adopt).await?;
    let Beginning {
        past,
        basis,
        metrics,
        sequence,
        damaged,
    } = started;
    let reserved = Generation(past.generation.0 + RESERVED_AT_A_TIME);
    let entry = JournalEntry::Coordinator {
        epoch: lease.epoch(),
        reserved,
        at: journal::now_text(),
    };
    // The receiver is a few lines below.
    let _ = works.send(Work::Note(
        Box::new(entry),
        Some(Box::new(Event::Reserved(reserved))),
    ));
    if past.reached > Step(0) && past.adopted.is_none() {
        history.add(v1::watch_response::Event::Resumed(v1::Resumed {
            step: past.reached.0,
            damaged,
        }));
    }
    let scribe = Scribe::new(
        job.store.clone(),
        Arc::clone(&lease),
        sequence,
        waiting,
        told.clone(),
    );
    tokio::spawn(scribe.run());
    let keeper = tokio::spawn(keep(Arc::clone(&lease), told));
    let owner = Owner::new(
        job.store,
        State::new(job.config, job.crew, basis, past),
        lease.epoch(),
        metrics,
        view,
        history,
        works.clone(),
    );
    let owner = tokio::spawn(owner.run(inbox, telling));
    tokio::spawn(async move {
        while let Some(event) = stop.recv().await {
            let _ = messages
                .send(Message::Event(Box::new(event), oneshot::channel().0))
                .await;
        }
    });
    let verdict = owner.await.context("the coordinator's state was lost")?;
    keeper.abort();
    let verdict = verdict?;
    let (done, written) = oneshot::channel();
    if works.send(Work::Flush(done)).is_ok() {
        // What could not be written by then is not worth more waiting: the run can be resumed without it.
        let _ = tokio::time::timeout(LAST_WORDS, written).await;
    }
    if let Err(error) = tokio::time::timeout(LAST_WORDS, lease.release())
        .await
        .unwrap_or(Ok(()))
    {
        tracing::warn!("the claim on the run was not given back: {error}");
    }
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

/// What a coordinator finds.
struct Beginning {
    past: crate::state::Past,
    basis: PlacementBasis,
    metrics: Metrics,
    /// Number of the journal's next entry.
    sequence: u64,
    /// The first damage of each checkpoint that cannot be used and was newer.
    damaged: Vec<String>,
}

/// Reads the journal, finds the newest checkpoint that can be read, and makes room for those after it.
async fn begin(
    store: &RunStore,
    config: &RunConfig,
    lease: &Lease,
    bank_bytes: Option<u64>,
    adopt: bool,
) -> anyhow::Result<Beginning> {
    let entries = store
        .journal()
        .read_all::<JournalEntry>()
        .await
        .context("the run's journal cannot be read")?;
    let sequence = entries.last().map_or(0, |(sequence, _)| sequence + 1);
    let entries: Vec<JournalEntry> = entries.into_iter().map(|(_, entry)| entry).collect();
    let checkpoints = store.checkpoints();
    let list = checkpoints
        .list()
        .await
        .context("the run's checkpoints cannot be listed")?;
    let mut published: std::collections::BTreeSet<Step> = list
        .checkpoints
        .iter()
        .map(|checkpoint| checkpoint.manifest.step)
        .collect();
    let mut damaged = Vec::new();
    // Workers that go on have what they need: nothing is read from checkpoints then.
    if journal::past(&entries, &config.data.languages, published.clone(), adopt)
        .adopted
        .is_none()
    {
        let latest = checkpoints.latest_readable().await.map_err(fault)?;
        for (step, error) in latest.damaged {
            lease.check().await?;
            tracing::warn!("the checkpoint of step {step} is damaged and makes room for a new one: {error}");
            checkpoints.remove(step).await?;
            published.remove(&step);
            damaged.push(format!("step {step}: {error}"));
        }
    }
    let past = journal::past(&entries, &config.data.languages, published, adopt);
    let metrics = Metrics::open(store, past.adopted.is_none().then_some(past.reached))
        .await
        .context("the run's metrics cannot be read")?;
    let corpus = Corpus::read(store)
        .await
        .context("what there is to train on cannot be read")?;
    let basis = PlacementBasis::new(config, &corpus, metrics.lines(), bank_bytes)
        .map_err(|error| UserError::new(error.to_string()))?;
    Ok(Beginning {
        past,
        basis,
        metrics,
        sequence,
        damaged,
    })
}

/// What trying again cannot help is the user's to mend.
fn fault(error: CheckpointError) -> anyhow::Error {
    if error.kind() == ErrorKind::Config {
        UserError::new(error.to_string()).into()
    } else {
        error.into()
    }
}

/// Renews the claim on the run, and says so when another coordinator has taken it.
async fn keep(lease: Arc<Lease>, told: mpsc::UnboundedSender<Told>) {
    let mut ticks = interval(lease.renew_every());
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut troubled_since: Option<Instant> = None;
    loop {
        ticks.tick().await;
        match lease.renew().await {
            Ok(()) => troubled_since = None,
            Err(LeaseLost::Store(error)) => {
                let lasting = troubled_since.get_or_insert_with(Instant::now).elapsed();
                tracing::warn!("the claim on the run could not be renewed for {lasting:?}: {error}");
            }
            Err(lost) => {
                let _ = told.send(Told::Fenced(lost.to_string()));
                return;
            }
        }
    }
}
