//! The worker's side of the coordinator: joining, asking for tasks, heartbeats, reports, uploads.
//!
//! The training thread calls the blocking methods of [`Control`]; heartbeats, metrics and uploads run on tokio beside it and
//! never hold it up. All of them outlive a coordinator that is away for a while.
//!
//! Reading order: `connection` (requests, repeated), [`Shared`] (what the thread and the tasks tell each other), `heartbeat`,
//! `uploads`, `reports`.

mod connection;
mod heartbeat;
mod reports;
mod shared;
mod uploads;

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use bytes::Bytes;
use tokio::runtime::Handle;
use zipper_checkpoint::{RunStore, layout};
use zipper_collectives::FlightRecorder;
use zipper_config::schema::RunConfig;
use zipper_proto::v1::{self, task};
use zipper_tls::Credentials;
use zipper_train::capture::Capture;
use zipper_types::{Generation, Rank, Step};

use crate::diagnosis;
use connection::{Connection, with_timeout};
use heartbeat::Heartbeat;
use reports::Reports;
use uploads::{Slot, Uploader};

pub(crate) use connection::Refused;
pub(crate) use shared::Shared;

/// How long a long poll may take; the coordinator answers within a minute.
const POLL_TIMEOUT: Duration = Duration::from_secs(90);
/// How long to wait, after a failure that ends the run was reported, for the verdict.
const VERDICT_TIMEOUT: Duration = Duration::from_secs(15);
/// How long a flight record may take to be stored.
const RECORD_TIMEOUT: Duration = Duration::from_secs(5);

/// Who this worker is.
#[derive(Debug, Clone)]
pub(crate) struct Identity {
    pub(crate) run: String,
    pub(crate) worker: String,
    pub(crate) incarnation: u64,
    pub(crate) node_rank: u32,
    pub(crate) local_rank: u32,
    pub(crate) hostname: String,
}

impl Identity {
    fn member(&self, generation: Option<u64>) -> v1::MemberContext {
        v1::MemberContext {
            run: self.run.clone(),
            worker_id: self.worker.clone(),
            incarnation: self.incarnation,
            generation,
        }
    }
}

/// Why a task could not be done.
pub(crate) struct Failure {
    pub(crate) config: bool,
    pub(crate) fatal: bool,
    pub(crate) message: String,
    pub(crate) collective: Option<v1::CollectiveState>,
}

/// What a worker that asks to join is told.
pub(crate) enum Joined {
    Assigned(Box<v1::Assignment>),
    Finished(v1::Verdict),
}

/// The connection of a worker.
pub(crate) struct Control {
    runtime: Handle,
    connection: Connection,
    identity: Arc<Identity>,
    shared: Arc<Shared>,
    store: RunStore,
    reports: Reports,
    slot: Slot,
    /// The last generation that this worker was in.
    last_generation: Option<u64>,
    /// How the last task ended, until the next one is given out.
    last_outcome: Option<(u64, v1::complete_task_request::Outcome)>,
}

impl Control {
    /// Starts heartbeats, metrics and uploads.
    pub(crate) fn start(
        runtime: Handle,
        address: &str,
        credentials: Credentials,
        identity: Identity,
        config: &RunConfig,
        store: &RunStore,
        recorder: FlightRecorder,
    ) -> anyhow::Result<Self> {
        let patience = config.elastic.coordinator_timeout;
        // A lazy connection belongs to the runtime that it is made in.
        let _entered = runtime.enter();
        let connection = Connection::new(address, credentials, store.clone(), patience)?;
        let identity = Arc::new(identity);
        let shared = Arc::new(Shared::new());
        let slot = Slot::default();
        let heartbeat = Heartbeat {
            connection: connection.clone(),
            identity: Arc::clone(&identity),
            shared: Arc::clone(&shared),
            store: store.clone(),
            latest: Box::new(move || diagnosis::latest(&recorder)),
            interval: config.runtime.heartbeat_interval,
            patience,
        };
        let uploader = Uploader {
            connection: connection.clone(),
            identity: Arc::clone(&identity),
            shared: Arc::clone(&shared),
            store: store.clone(),
            slot: slot.clone(),
        };
        let reports = Reports::start(&runtime, connection.clone(), Arc::clone(&identity), &shared);
        runtime.spawn(heartbeat.run());
        runtime.spawn(uploader.run());
        Ok(Self {
            runtime,
            connection,
            identity,
            shared,
            store: store.clone(),
            reports,
            slot,
            last_generation: None,
            last_outcome: None,
        })
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// Enters the rendezvous, with what this worker remembers, and waits until a generation has a place for it.
    pub(crate) fn join(&mut self, store_address: &str, held: &[v1::HeldState]) -> Result<Joined, Refused> {
        self.shared.set_doing("waiting");
        loop {
            let request = v1::JoinRequest {
                member: Some(self.identity.member(self.last_generation)),
                node_rank: self.identity.node_rank,
                local_rank: self.identity.local_rank,
                store_address: store_address.to_owned(),
                hostname: self.identity.hostname.clone(),
                held: held.to_vec(),
            };
            let response = self.poll("joining", |mut client| {
                let request = poll(request.clone());
                async move { client.join(request).await }
            })?;
            self.shared.heard_epoch(response.epoch);
            if let Some(verdict) = response.verdict {
                return Ok(Joined::Finished(verdict));
            }
            if let Some(assignment) = response.assignment {
                let reads = self.store.usage().reads;
                self.last_generation = Some(assignment.generation);
                self.last_outcome = None;
                self.shared
                    .begin_generation(assignment.generation, Step(assignment.step), reads);
                return Ok(Joined::Assigned(Box::new(assignment)));
            }
        }
    }

    /// This worker leaves its generation: what it has on its way for it is left.
    pub(crate) fn leave(&mut self) {
        self.shared.end_generation();
    }

    /// Waits for the task after `completed`.
    pub(crate) fn next_task(&self, completed: Option<u64>) -> Result<v1::Task, Refused> {
        loop {
            let response = self.poll("asking for the next task", |mut client| {
                let request = poll(v1::NextTaskRequest {
                    member: Some(self.identity.member(self.shared.generation())),
                    completed_task: completed,
                });
                async move { client.next_task(request).await }
            })?;
            self.shared.heard_epoch(response.epoch);
            if let Some(task) = response.task {
                return Ok(task);
            }
            if let Some((id, outcome)) = self.last_outcome.as_ref().filter(|_| response.resend_outcome) {
                self.send_outcome(*id, outcome)?;
            }
        }
    }

    /// Says how a task ended on this rank.
    pub(crate) fn complete_task(
        &mut self,
        task_id: u64,
        outcome: v1::complete_task_request::Outcome,
    ) -> Result<(), Refused> {
        let (_, outcome) = self.last_outcome.insert((task_id, outcome));
        let outcome = outcome.clone();
        self.send_outcome(task_id, &outcome)
    }

    fn send_outcome(
        &self,
        task_id: u64,
        outcome: &v1::complete_task_request::Outcome,
    ) -> Result<(), Refused> {
        let request = v1::CompleteTaskRequest {
            member: Some(self.identity.member(self.shared.generation())),
            task_id,
            outcome: Some(outcome.clone()),
        };
        self.poll("completing a task", |mut client| {
            let request = with_timeout(request.clone());
            async move { client.complete_task(request).await }
        })?;
        Ok(())
    }

    /// Says that this worker cannot go on as it is.
    pub(crate) fn report_failure(&self, failure: Failure) -> Result<(), Refused> {
        let request = v1::ReportFailureRequest {
            member: Some(self.identity.member(self.shared.generation())),
            config: failure.config,
            fatal: failure.fatal,
            message: failure.message,
            failed_collective: failure.collective,
        };
        self.poll("reporting a failure", |mut client| {
            let request = with_timeout(request.clone());
            async move { client.report_failure(request).await }
        })?;
        Ok(())
    }

    /// After a failure that ends the run: waits a while for the verdict.
    pub(crate) fn verdict_after_failure(&self) -> Option<v1::Verdict> {
        let deadline = Instant::now() + VERDICT_TIMEOUT;
        while Instant::now() < deadline && self.shared.verdict().is_none() {
            let mut request = tonic::Request::new(v1::NextTaskRequest {
                member: Some(self.identity.member(self.shared.generation())),
                // No task comes after this one, only the verdict.
                completed_task: Some(u64::MAX),
            });
            request.set_timeout(deadline.saturating_duration_since(Instant::now()));
            let answer = self
                .connection
                .once(|mut client| async move { client.next_task(request).await });
            match self.runtime.block_on(answer) {
                Ok(response) => {
                    if let Some(task::Kind::Finish(finish)) = response.task.and_then(|task| task.kind) {
                        return finish.verdict;
                    }
                }
                Err(status) => {
                    tracing::debug!("the verdict did not come: {status}");
                    break;
                }
            }
        }
        self.shared.verdict().cloned()
    }

    /// Stores this rank's latest collective operations in the run.
    pub(crate) fn write_flight_record(&self, rank: Rank, bytes: Vec<u8>) -> anyhow::Result<()> {
        let generation = Generation(self.last_generation.unwrap_or_default());
        let path = layout::flight_record(generation, rank);
        let stored = self.store.put(&path, Bytes::from(bytes));
        self.runtime
            .block_on(async { tokio::time::timeout(RECORD_TIMEOUT, stored).await })
            .with_context(|| format!("this worker waited {RECORD_TIMEOUT:?} for the run's store"))??;
        tracing::info!("flight record: {}", self.store.object_url(&path));
        Ok(())
    }

    /// Sends a line of metrics, later.
    pub(crate) fn report_step(&self, metrics: v1::StepMetrics) {
        self.reports.send(metrics);
    }

    /// Remembers a line of metrics that rank 0 sends.
    pub(crate) fn remember_step(&self, metrics: v1::StepMetrics) {
        self.reports.remember(metrics);
    }

    /// Sends the last lines of metrics again, later: a rank that was lost may not have sent them.
    pub(crate) fn repeat_steps(&self) {
        self.reports.repeat();
    }

    /// Waits until all metrics are sent: the coordinator writes the last line before it ends the run.
    pub(crate) fn flush_reports(&self) {
        self.reports.flush();
    }

    /// Stores this rank's parts of a checkpoint, later; waits until the one before is on its way.
    pub(crate) fn upload(&self, capture: Capture) {
        let generation = self.shared.generation().unwrap_or_default();
        self.slot.put(generation, capture, &self.shared);
    }

    fn poll<T, F>(&self, what: &'static str, request: impl Fn(connection::Client) -> F) -> Result<T, Refused>
    where
        F: Future<Output = Result<tonic::Response<T>, tonic::Status>>,
    {
        self.runtime.block_on(self.connection.send(what, request))
    }
}

fn poll<T>(request: T) -> tonic::Request<T> {
    let mut request = tonic::Request::new(request);
    request.set_timeout(POLL_TIMEOUT);
    request
}

/// Why the run ended, without the logs of others.
pub(crate) fn first_line(verdict: &v1::Verdict) -> &str {
    verdict.reason.lines().next().unwrap_or_default()
}
