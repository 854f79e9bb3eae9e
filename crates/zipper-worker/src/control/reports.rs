//! Metrics on their way to the coordinator.

use std::collections::VecDeque;
use std::sync::Arc;

use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot};
use zipper_proto::v1;

use super::Identity;
use super::connection::{Connection, with_timeout};
use super::shared::Shared;

/// Lines that may wait to be sent.
const WAITING: usize = 1024;
/// Lines that are said again to a coordinator that has come back: it may have lost what it had not written, which is at most
/// half as many (`MOST_UNWRITTEN` of its `metrics.rs`).
const SAID_AGAIN: usize = 2048;
/// Lines that are said again when a generation was broken: its rank 0 may have been lost before it had told them. Ranks are at most
/// a step apart, so these are many.
const LAST_OF_A_LOST_RANK: usize = 16;

/// What the task that sends metrics is given, in order.
enum Report {
    Step(Box<v1::StepMetrics>),
    /// A line that another rank tells.
    Heard(Box<v1::StepMetrics>),
    /// Tell the last lines, whoever was to tell them.
    Again,
    /// Answer when everything before is sent.
    Flush(oneshot::Sender<()>),
}

/// The way to the task that sends metrics.
pub(super) struct Reports(mpsc::Sender<Report>);

impl Reports {
    pub(super) fn start(
        runtime: &Handle,
        connection: Connection,
        identity: Arc<Identity>,
        shared: &Arc<Shared>,
    ) -> Self {
        let (reports, waiting) = mpsc::channel(WAITING);
        runtime.spawn(run(connection, identity, Arc::clone(shared), waiting));
        Self(reports)
    }

    /// Drops the line if a thousand are waiting already.
    pub(super) fn send(&self, metrics: v1::StepMetrics) {
        if self.0.try_send(Report::Step(Box::new(metrics))).is_err() {
            tracing::warn!("the coordinator does not take metrics: a line is lost");
        }
    }

    /// Remembers a line that rank 0 tells, for the case that it cannot. Dropped if a thousand are waiting already.
    pub(super) fn remember(&self, metrics: v1::StepMetrics) {
        let _ = self.0.try_send(Report::Heard(Box::new(metrics)));
    }

    /// Tells the last lines again, later: lines that the coordinator knows are not added again.
    pub(super) fn repeat(&self) {
        // A task that has ended tells nobody anything.
        let _ = self.0.blocking_send(Report::Again);
    }

    pub(super) fn flush(&self) {
        let (sent, all_sent) = oneshot::channel();
        // A task that has ended has nothing left to send.
        if self.0.blocking_send(Report::Flush(sent)).is_ok() {
            let _ = all_sent.blocking_recv();
        }
    }
}

async fn run(
    connection: Connection,
    identity: Arc<Identity>,
    shared: Arc<Shared>,
    mut waiting: mpsc::Receiver<Report>,
) {
    let mut epochs = shared.epochs();
    let mut said: VecDeque<v1::StepMetrics> = VecDeque::new();
    // Whether it is this rank that tells the coordinator.
    let mut tells = false;
    let send = async |metrics: &v1::StepMetrics| {
        let request = v1::ReportStepRequest {
            member: Some(identity.member(shared.generation())),
            metrics: Some(metrics.clone()),
        };
        let sent = connection.send("reporting metrics", |mut client| {
            let request = with_timeout(request.clone());
            async move { client.report_step(request).await }
        });
        if let Err(refused) = sent.await {
            tracing::debug!("{refused}");
        }
    };
    loop {
        tokio::select! {
            report = waiting.recv() => match report {
                None => return,
                Some(Report::Flush(done)) => {
                    // Nobody waits any more if the training thread has ended.
                    let _ = done.send(());
                }
                Some(Report::Step(metrics)) => {
                    tells = true;
                    send(&metrics).await;
                    keep(&mut said, *metrics);
                }
                Some(Report::Heard(metrics)) => {
                    tells = false;
                    keep(&mut said, *metrics);
                }
                Some(Report::Again) => {
                    for metrics in said.iter().skip(said.len().saturating_sub(LAST_OF_A_LOST_RANK)) {
                        send(metrics).await;
                    }
                }
            },
            Ok(()) = epochs.changed() => {
                if tells {
                    for metrics in &said {
                        send(metrics).await;
                    }
                }
            }
        }
    }
}

fn keep(said: &mut VecDeque<v1::StepMetrics>, metrics: v1::StepMetrics) {
    said.push_back(metrics);
    if said.len() > SAID_AGAIN {
        said.pop_front();
    }
}
