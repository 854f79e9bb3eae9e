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

/// What the task that sends metrics is given, in order.
enum Report {
    Step(Box<v1::StepMetrics>),
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
                    send(&metrics).await;
                    said.push_back(*metrics);
                    if said.len() > SAID_AGAIN {
                        said.pop_front();
                    }
                }
            },
            Ok(()) = epochs.changed() => {
                for metrics in &said {
                    send(metrics).await;
                }
            }
        }
    }
}
