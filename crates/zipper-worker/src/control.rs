//! The worker's side of the coordinator: joining, asking for tasks, heartbeats, reports, uploads.
//!
//! The training thread calls the blocking methods of [`Control`]; heartbeats, metrics and uploads run on tokio beside it and
//! never hold it up.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use bytes::Bytes;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};
use zipper_checkpoint::{RunStore, layout};
use zipper_collectives::AbortHandle;
use zipper_config::schema::RuntimeConfig;
use zipper_proto::v1::worker_service_client::WorkerServiceClient;
use zipper_proto::v1::{self, task};
use zipper_train::session::Part;
use zipper_types::{Generation, Rank, Stage, Step};

/// How long a request may take that is not a long poll.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a long poll for a task may take; the coordinator answers within a minute.
const POLL_TIMEOUT: Duration = Duration::from_secs(90);
/// How long the coordinator may be away before the worker gives up.
const COORDINATOR_TIMEOUT: Duration = Duration::from_mins(1);
/// How long to wait, after a failure was reported, for the verdict that names whoever is at fault: the coordinator takes a few
/// seconds to find out.
const VERDICT_TIMEOUT: Duration = Duration::from_secs(15);
/// How long the training thread may take to see by itself that the run has failed, before its collectives are aborted.
const ABORT_AFTER: Duration = Duration::from_secs(2);
/// How long it may take after that, before the process ends without it.
const GIVE_UP_AFTER: Duration = Duration::from_secs(8);
const RETRY_PAUSE: Duration = Duration::from_millis(300);
/// Checkpoints that may wait for upload; the training thread waits when there are more.
const UPLOADS_WAITING: usize = 1;
/// Metric lines that may wait to be sent.
const REPORTS_WAITING: usize = 1024;

type Client = WorkerServiceClient<Channel>;

/// What the training thread tells the heartbeat, and the heartbeat the training thread.
#[derive(Default)]
pub(crate) struct Shared {
    last_completed_step: AtomicU64,
    stop_requested: AtomicBool,
    /// That the run has failed, and why.
    failure: OnceLock<v1::Verdict>,
    /// End the collectives that the training thread waits in.
    aborts: Mutex<Vec<AbortHandle>>,
}

impl Shared {
    /// Only the training thread calls this, after a step: a heartbeat cannot claim progress that was not made.
    pub(crate) fn completed(&self, step: Step) {
        self.last_completed_step.store(step.0, Ordering::Relaxed);
    }

    pub(crate) fn stop_requested(&self) -> bool {
        self.stop_requested.load(Ordering::Relaxed)
    }
}

/// What the task that sends metrics is given, in order.
enum Report {
    Step(v1::StepMetrics),
    /// Answer when everything before is sent.
    Flush(oneshot::Sender<()>),
}

/// This rank's objects of a checkpoint.
struct Upload {
    step: Step,
    stage: Stage,
    parts: Vec<Part>,
}

/// The connection of a worker that has joined.
pub(crate) struct Control {
    runtime: Handle,
    client: Client,
    member: v1::MemberContext,
    shared: Arc<Shared>,
    store: RunStore,
    reports: mpsc::Sender<Report>,
    uploads: Option<mpsc::Sender<Upload>>,
    uploader: JoinHandle<anyhow::Result<()>>,
    heartbeat: JoinHandle<()>,
}

/// Connects to a coordinator that may still be starting.
pub(crate) async fn connect(address: &str) -> anyhow::Result<Client> {
    let endpoint = Endpoint::from_shared(address.to_owned())
        .with_context(|| format!("`{address}` is not an address"))?
        .connect_timeout(REQUEST_TIMEOUT);
    let started = Instant::now();
    loop {
        match endpoint.connect().await {
            Ok(channel) => return Ok(WorkerServiceClient::new(channel)),
            Err(error) if started.elapsed() > COORDINATOR_TIMEOUT => {
                return Err(error).with_context(|| {
                    format!("this worker waited {COORDINATOR_TIMEOUT:?} for the coordinator at {address}")
                });
            }
            Err(_) => tokio::time::sleep(RETRY_PAUSE).await,
        }
    }
}

/// Enters the rendezvous and waits until everyone has.
pub(crate) async fn join(
    client: &mut Client,
    request: v1::JoinRequest,
    timeout: Duration,
) -> anyhow::Result<v1::JoinResponse> {
    let mut request = tonic::Request::new(request);
    // The coordinator's own deadline comes first, and its message says who is missing.
    request.set_timeout(timeout + REQUEST_TIMEOUT);
    let response = client
        .join(request)
        .await
        .map_err(|status| explain("the rendezvous failed", &status))?;
    Ok(response.into_inner())
}

impl Control {
    /// Starts heartbeats, metrics and uploads of a worker that has joined as `member`. `latest` says which collective it
    /// is in, from any thread.
    pub(crate) fn start(
        runtime: Handle,
        client: Client,
        member: v1::MemberContext,
        config: &RuntimeConfig,
        store: &RunStore,
        latest: impl Fn() -> Option<v1::CollectiveState> + Send + Sync + 'static,
    ) -> Self {
        let shared = Arc::new(Shared::default());
        let (reports, waiting_reports) = mpsc::channel(REPORTS_WAITING);
        let (uploads, waiting_uploads) = mpsc::channel(UPLOADS_WAITING);
        runtime.spawn(send_reports(client.clone(), member.clone(), waiting_reports));
        let uploader = runtime.spawn(upload(
            client.clone(),
            member.clone(),
            store.clone(),
            waiting_uploads,
        ));
        let heartbeat = runtime.spawn(send_heartbeats(
            client.clone(),
            member.clone(),
            Arc::clone(&shared),
            latest,
            config.heartbeat_interval,
        ));
        Self {
            runtime,
            client,
            member,
            shared,
            store: store.clone(),
            reports,
            uploads: Some(uploads),
            uploader,
            heartbeat,
        }
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// What frees the training thread if the run fails while it waits for others.
    pub(crate) fn abort_on_failure(&self, handles: Vec<AbortHandle>) {
        *self.shared.aborts.lock().unwrap_or_else(PoisonError::into_inner) = handles;
    }

    /// Waits for the task after `completed`.
    pub(crate) fn next_task(&self, completed: Option<u64>) -> anyhow::Result<v1::Task> {
        loop {
            let response = self.runtime.block_on(retry("asking for the next task", || {
                let mut client = self.client.clone();
                let mut request = tonic::Request::new(v1::NextTaskRequest {
                    member: Some(self.member.clone()),
                    completed_task: completed,
                });
                request.set_timeout(POLL_TIMEOUT);
                async move { client.next_task(request).await }
            }))?;
            if let Some(task) = response.into_inner().task {
                return Ok(task);
            }
        }
    }

    /// Says how a task ended on this rank.
    pub(crate) fn complete_task(
        &self,
        task_id: u64,
        outcome: v1::complete_task_request::Outcome,
    ) -> anyhow::Result<()> {
        let request = v1::CompleteTaskRequest {
            member: Some(self.member.clone()),
            task_id,
            outcome: Some(outcome),
        };
        self.runtime.block_on(retry("completing a task", || {
            let mut client = self.client.clone();
            let request = with_timeout(request.clone());
            async move { client.complete_task(request).await }
        }))?;
        Ok(())
    }

    /// Stores this rank's latest collective operations in the run.
    pub(crate) fn write_flight_record(&self, rank: Rank, bytes: Vec<u8>) -> anyhow::Result<()> {
        let generation = Generation(self.member.generation.unwrap_or_default());
        let path = layout::flight_record(generation, rank);
        let stored = self.store.put(&path, Bytes::from(bytes));
        self.runtime
            .block_on(async { tokio::time::timeout(REQUEST_TIMEOUT, stored).await })
            .with_context(|| format!("it was not stored in {REQUEST_TIMEOUT:?}"))??;
        tracing::info!("flight record: {}", self.store.object_url(&path));
        Ok(())
    }

    /// After this rank reported a failure: waits a while for the verdict, which names whoever is at fault.
    pub(crate) fn verdict_after_failure(&self) -> Option<v1::Verdict> {
        let deadline = Instant::now() + VERDICT_TIMEOUT;
        while Instant::now() < deadline && self.shared.failure.get().is_none() {
            let mut request = tonic::Request::new(v1::NextTaskRequest {
                member: Some(self.member.clone()),
                // No task comes after this one, only the verdict.
                completed_task: Some(u64::MAX),
            });
            request.set_timeout(deadline.saturating_duration_since(Instant::now()));
            let mut client = self.client.clone();
            match self.runtime.block_on(client.next_task(request)) {
                Ok(response) => {
                    if let Some(task::Kind::Finish(finish)) =
                        response.into_inner().task.and_then(|task| task.kind)
                    {
                        return finish.verdict;
                    }
                }
                Err(status) => {
                    tracing::debug!("the verdict did not come: {status}");
                    break;
                }
            }
        }
        self.shared.failure.get().cloned()
    }

    /// Sends a line of metrics, later; drops it if a thousand are waiting already.
    pub(crate) fn report_step(&self, metrics: v1::StepMetrics) {
        if self.reports.try_send(Report::Step(metrics)).is_err() {
            tracing::warn!("the coordinator does not take metrics: a line is lost");
        }
    }

    /// Stores this rank's parts of a checkpoint, later; waits only while an earlier checkpoint is still under way.
    pub(crate) fn upload(&self, step: Step, stage: Stage, parts: Vec<Part>) -> anyhow::Result<()> {
        let sender = self.uploads.as_ref().context("uploads have ended")?;
        sender
            .blocking_send(Upload { step, stage, parts })
            .map_err(|_| anyhow::anyhow!("the checkpoint of an earlier step could not be stored"))
    }

    /// Waits until all metrics are sent: the coordinator writes the last line before it ends the run.
    pub(crate) fn flush_reports(&self) {
        let (sent, all_sent) = oneshot::channel();
        // A task that has ended has nothing left to send.
        if self.reports.blocking_send(Report::Flush(sent)).is_ok() {
            let _ = all_sent.blocking_recv();
        }
    }

    /// Waits until everything is stored and reported.
    pub(crate) fn finish(mut self) -> anyhow::Result<()> {
        drop(self.uploads.take());
        let stored = self
            .runtime
            .block_on(&mut self.uploader)
            .context("the uploader panicked")?;
        self.heartbeat.abort();
        stored
    }
}

async fn send_heartbeats(
    client: Client,
    member: v1::MemberContext,
    shared: Arc<Shared>,
    latest: impl Fn() -> Option<v1::CollectiveState> + Send + Sync,
    interval: Duration,
) {
    let mut ticks = tokio::time::interval(interval);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let request = v1::HeartbeatRequest {
            member: Some(member.clone()),
            last_completed_step: shared.last_completed_step.load(Ordering::Relaxed),
            latest_collective: latest(),
        };
        match client.clone().heartbeat(with_timeout(request)).await {
            Ok(response) => {
                let v1::HeartbeatResponse {
                    stop_requested,
                    verdict,
                } = response.into_inner();
                shared.stop_requested.fetch_or(stop_requested, Ordering::Relaxed);
                if let Some(verdict) = verdict.filter(is_failure)
                    && shared.failure.set(verdict).is_ok()
                {
                    tokio::spawn(leave(Arc::clone(&shared)));
                }
            }
            Err(status) => tracing::debug!("a heartbeat was lost: {status}"),
        }
    }
}

fn is_failure(verdict: &v1::Verdict) -> bool {
    use v1::verdict::Outcome;
    matches!(verdict.outcome(), Outcome::Failed | Outcome::Config)
}

/// Why the run ended, without the logs of others.
pub(crate) fn first_line(verdict: &v1::Verdict) -> &str {
    verdict.reason.lines().next().unwrap_or_default()
}

/// The run has failed: sees to it that this process ends, whatever its training thread waits for.
async fn leave(shared: Arc<Shared>) {
    tokio::time::sleep(ABORT_AFTER).await;
    let handles = std::mem::take(&mut *shared.aborts.lock().unwrap_or_else(PoisonError::into_inner));
    let aborting = tokio::task::spawn_blocking(move || handles.iter().for_each(AbortHandle::abort));
    tokio::time::sleep(GIVE_UP_AFTER).await;
    drop(aborting);
    let reason = shared.failure.get().map_or("", first_line);
    tracing::error!("the run ended: {reason}");
    // Not `exit`: it would tear libtorch down under the training thread.
    let _ = kill(Pid::this(), Signal::SIGKILL);
}

async fn send_reports(client: Client, member: v1::MemberContext, mut waiting: mpsc::Receiver<Report>) {
    while let Some(report) = waiting.recv().await {
        let metrics = match report {
            Report::Step(metrics) => metrics,
            Report::Flush(sent) => {
                // Nobody waits any more if the training thread has ended.
                let _ = sent.send(());
                continue;
            }
        };
        let request = v1::ReportStepRequest {
            member: Some(member.clone()),
            metrics: Some(metrics),
        };
        let sent = retry("reporting metrics", || {
            let mut client = client.clone();
            let request = with_timeout(request.clone());
            async move { client.report_step(request).await }
        });
        if let Err(error) = sent.await {
            tracing::warn!("{error:#}");
        }
    }
}

async fn upload(
    client: Client,
    member: v1::MemberContext,
    store: RunStore,
    mut waiting: mpsc::Receiver<Upload>,
) -> anyhow::Result<()> {
    let checkpoints = store.checkpoints();
    while let Some(Upload { step, stage, parts }) = waiting.recv().await {
        let mut records = Vec::with_capacity(parts.len());
        for part in parts {
            let stored = checkpoints
                .put_part(step, &part.name, Bytes::from(part.bytes))
                .await;
            let record = stored.with_context(|| {
                format!("checkpoint of step {step} cannot be stored in `{}`", store.url())
            })?;
            records.push(v1::CheckpointPart {
                path: record.path,
                bytes: record.bytes,
                blake3: record.blake3,
            });
        }
        let request = v1::ReportCheckpointPartsRequest {
            member: Some(member.clone()),
            step: step.0,
            stage: v1::Stage::from(stage).into(),
            parts: records,
        };
        retry("reporting a checkpoint", || {
            let mut client = client.clone();
            let request = with_timeout(request.clone());
            async move { client.report_checkpoint_parts(request).await }
        })
        .await?;
    }
    Ok(())
}

fn with_timeout<T>(request: T) -> tonic::Request<T> {
    let mut request = tonic::Request::new(request);
    request.set_timeout(REQUEST_TIMEOUT);
    request
}

/// Repeats a request while the coordinator is unavailable, for a minute at most.
async fn retry<T, F>(what: &str, mut request: impl FnMut() -> F) -> anyhow::Result<T>
where
    F: Future<Output = Result<T, Status>>,
{
    let started = Instant::now();
    loop {
        match request().await {
            Ok(response) => return Ok(response),
            Err(status) if status.code() != Code::Unavailable => return Err(explain(what, &status)),
            Err(status) => {
                if started.elapsed() > COORDINATOR_TIMEOUT {
                    bail!("{what}: this worker waited {COORDINATOR_TIMEOUT:?} for the coordinator: {status}");
                }
                tokio::time::sleep(RETRY_PAUSE).await;
            }
        }
    }
}

fn explain(what: &str, status: &Status) -> anyhow::Error {
    anyhow::anyhow!("{what}: {} ({:?})", status.message(), status.code())
}
