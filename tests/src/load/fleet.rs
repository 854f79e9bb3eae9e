//! What all simulated workers share: connections, one clock of steps, and where each has come.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::time::{Instant, Interval, interval_at};
use tonic::Status;
use tonic::transport::Channel;
use zipper_checkpoint::RunStore;
use zipper_proto::v1;
use zipper_types::Step;

use super::coordinator::Coordinator;
use super::{Load, with_causes};

/// The run's name.
pub(super) const RUN: &str = "load";
/// Time of a step that nobody computes.
const STEP: Duration = Duration::from_secs(1);

/// All of them.
pub(super) struct Fleet {
    pub(super) load: Load,
    channels: Vec<Channel>,
    store: RunStore,
    /// From when steps are counted, and heartbeats dealt over their interval.
    began: Instant,
    /// The last step: of the first worker that hears that it is to stop.
    last_step: OnceLock<u64>,
    /// Agents that have registered.
    registered: watch::Sender<u32>,
    /// Workers that have given a sign of life.
    alive: watch::Sender<u32>,
    may_join: watch::Sender<bool>,
    /// The ranks that were given, by generation.
    ranks: watch::Sender<BTreeMap<u64, Vec<u32>>>,
    measuring: AtomicBool,
    latencies: Mutex<Vec<Duration>>,
    problem: Mutex<Option<String>>,
    has_problem: Notify,
}

impl Fleet {
    pub(super) async fn connect(
        load: Load,
        coordinator: &Coordinator,
        folder: &Path,
    ) -> Result<Self, String> {
        let store = RunStore::open(&format!("file://{}", folder.display()));
        let mut channels = Vec::new();
        for _ in 0..load.connections {
            channels.push(connection(coordinator).await?);
        }
        Ok(Self {
            load,
            channels,
            store: store.map_err(|error| error.to_string())?,
            began: Instant::now(),
            last_step: OnceLock::new(),
            registered: watch::channel(0).0,
            alive: watch::channel(0).0,
            may_join: watch::channel(false).0,
            ranks: watch::channel(BTreeMap::new()).0,
            measuring: AtomicBool::new(false),
            latencies: Mutex::default(),
            problem: Mutex::default(),
            has_problem: Notify::new(),
        })
    }

    /// The connection that `index` shares with others.
    pub(super) fn channel(&self, index: u32) -> Channel {
        self.channels[index as usize % self.channels.len()].clone()
    }

    /// The beat of one of `all`, which do not beat at once.
    pub(super) fn heartbeats(&self, index: u32, all: u32) -> Interval {
        let interval = self.load.interval;
        interval_at(Instant::now() + interval * index / all, interval)
    }

    /// Completed steps, of all ranks alike.
    pub(super) fn step(&self) -> u64 {
        let now = self.began.elapsed().as_secs() / STEP.as_secs();
        self.last_step.get().map_or(now, |last| now.min(*last))
    }

    /// After which step all stop.
    pub(super) fn last_step(&self) -> u64 {
        *self.last_step.get_or_init(|| self.step() + 1)
    }

    /// Whether somebody has heard that the run stops.
    pub(super) fn stops(&self) -> bool {
        self.last_step.get().is_some()
    }

    /// Writes the one part of a checkpoint.
    pub(super) async fn write_part(&self, step: u64, prefix: &str) -> Result<v1::CheckpointPart, String> {
        let (path, bytes) = ("shared.safetensors", vec![7; 1024]);
        let part = self
            .store
            .checkpoints()
            .put_part(Step(step), prefix, path, bytes.into())
            .await;
        let part = part.map_err(|error| error.to_string())?;
        Ok(v1::CheckpointPart {
            path: part.path,
            bytes: part.bytes,
            blake3: part.blake3,
            object: part.object,
        })
    }

    /// An agent has registered.
    pub(super) fn is_registered(&self) {
        self.registered.send_modify(|registered| *registered += 1);
    }

    /// Until all agents have registered: only then are there workers.
    pub(super) async fn all_registered(&self) {
        let mut registered = self.registered.subscribe();
        let all = |registered: &u32| *registered == self.load.nodes();
        registered.wait_for(all).await.expect("its sender is here");
    }

    /// A worker has given its first sign of life.
    pub(super) fn is_alive(&self) {
        self.alive.send_modify(|alive| *alive += 1);
    }

    /// Until all workers have.
    pub(super) async fn all_alive(&self) {
        let mut alive = self.alive.subscribe();
        let all = |alive: &u32| *alive == self.load.workers;
        alive.wait_for(all).await.expect("its sender is here");
    }

    /// Workers have loaded their models.
    pub(super) fn let_join(&self) {
        self.may_join.send_replace(true);
    }

    pub(super) async fn may_join(&self) {
        let mut may_join = self.may_join.subscribe();
        may_join.wait_for(|may| *may).await.expect("its sender is here");
    }

    /// A worker was given a rank.
    pub(super) fn joined(&self, generation: u64, rank: u32) {
        self.ranks
            .send_modify(|ranks| ranks.entry(generation).or_default().push(rank));
    }

    /// The ranks of a generation, when as many were given as there are workers.
    pub(super) async fn ranks(&self, generation: u64) -> Vec<u32> {
        let mut ranks = self.ranks.subscribe();
        let all = |ranks: &BTreeMap<u64, Vec<u32>>| {
            ranks
                .get(&generation)
                .is_some_and(|ranks| ranks.len() >= self.load.workers as usize)
        };
        let given = ranks.wait_for(all).await.expect("its sender is here");
        given.get(&generation).cloned().unwrap_or_default()
    }

    pub(super) fn num_ranks(&self, generation: u64) -> usize {
        self.ranks.borrow().get(&generation).map_or(0, Vec::len)
    }

    pub(super) fn measure(&self, measure: bool) {
        self.measuring.store(measure, Ordering::Relaxed);
    }

    /// A heartbeat was answered that was due at `due`: whatever held it up counts, here as well.
    pub(super) fn answered(&self, due: Instant) {
        if self.measuring.load(Ordering::Relaxed) {
            lock(&self.latencies).push(due.elapsed());
        }
    }

    /// Of all heartbeats that were measured, shortest first.
    pub(super) fn latencies(&self) -> Vec<Duration> {
        let mut latencies = std::mem::take(&mut *lock(&self.latencies));
        latencies.sort_unstable();
        latencies
    }

    /// Lets those who wait know of a failure.
    pub(super) fn note<T>(&self, result: Result<T, String>) -> Result<T, String> {
        result.inspect_err(|problem| {
            lock(&self.problem).get_or_insert_with(|| problem.clone());
            self.has_problem.notify_one();
        })
    }

    /// The first failure of anybody.
    pub(super) async fn first_problem(&self) -> String {
        self.has_problem.notified().await;
        lock(&self.problem).clone().unwrap_or_default()
    }
}

/// The machine that a node is on.
pub(super) fn hostname(node: u32) -> String {
    format!("host-{node}")
}

/// A connection to the coordinator: the one place where one is made.
async fn connection(coordinator: &Coordinator) -> Result<Channel, String> {
    let address = format!("https://{}", coordinator.address);
    let endpoint = coordinator
        .credentials
        .endpoint(&address)
        .map_err(|error| with_causes(&error))?;
    let connected = endpoint.connect().await;
    connected.map_err(|error| {
        format!(
            "the coordinator does not listen on {}: {error}",
            coordinator.address
        )
    })
}

/// What was refused, and why.
pub(super) fn refused(what: &str, status: &Status) -> String {
    format!("{what} was refused: {:?}: {}", status.code(), status.message())
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
