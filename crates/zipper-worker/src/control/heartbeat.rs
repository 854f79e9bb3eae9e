//! Signs of life, and what the coordinator answers to them.

use std::sync::Arc;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tonic::Code;
use zipper_checkpoint::RunStore;
use zipper_proto::v1;

use super::connection::{Connection, with_timeout};
use super::shared::Shared;
use super::{Identity, first_line};

/// How long the training thread may take to see by itself that its generation is over, before its collectives are aborted.
const ABORT_AFTER: Duration = Duration::from_secs(1);
/// How long it may take after that, before the process ends without it.
const GIVE_UP_AFTER: Duration = Duration::from_secs(8);

/// Which collective the training thread is in, from any thread.
pub(super) type Latest = Box<dyn Fn() -> Option<v1::CollectiveState> + Send + Sync>;

pub(super) struct Heartbeat {
    pub(super) connection: Connection,
    pub(super) identity: Arc<Identity>,
    pub(super) shared: Arc<Shared>,
    pub(super) store: RunStore,
    pub(super) latest: Latest,
    pub(super) interval: Duration,
    /// How long to go on without a coordinator.
    pub(super) patience: Duration,
}

impl Heartbeat {
    pub(super) async fn run(self) {
        let mut ticks = tokio::time::interval(self.interval);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = ticks.tick() => {}
                () = self.shared.news.notified() => {}
            }
            self.beat().await;
            if self.connection.away_for() > self.patience {
                die(&format!(
                    "no coordinator for {} (`elastic.coordinator_timeout`)",
                    humantime::format_duration(self.patience)
                ));
            }
        }
    }

    async fn beat(&self) {
        let progress = self.shared.progress();
        let generation = self.shared.generation();
        let trouble = self.shared.trouble();
        let request = v1::HeartbeatRequest {
            member: Some(self.identity.member(generation)),
            last_completed_step: progress.step.0,
            latest_collective: (self.latest)(),
            idle: Some(zipper_proto::wire_duration(progress.since.elapsed())),
            compute_seconds: progress.compute_seconds,
            work: progress.work,
            store_reads: self.store.usage().reads.saturating_sub(progress.reads_before),
            trouble: trouble.map(|(lasting, message)| v1::StoreTrouble {
                lasting: Some(zipper_proto::wire_duration(lasting)),
                message,
            }),
            doing: self.shared.doing().to_owned(),
            node_rank: self.identity.node_rank,
            local_rank: self.identity.local_rank,
            hostname: self.identity.hostname.clone(),
        };
        let answer = self
            .connection
            .once(|mut client| async move { client.heartbeat(with_timeout(request)).await });
        match answer.await {
            Ok(response) => self.heard(response, generation),
            Err(status) if status.code() == Code::FailedPrecondition => die(status.message()),
            Err(status) => tracing::debug!("a heartbeat was lost: {status}"),
        }
    }

    fn heard(&self, response: v1::HeartbeatResponse, generation: Option<u64>) {
        let shared = &self.shared;
        shared.heard_epoch(response.epoch);
        shared.heard_committed(response.committed_step);
        if response.stop_requested {
            shared.request_stop();
        }
        shared.request_regroup(response.regroup_requested);
        if let Some(generation) = generation.filter(|_| response.generation_over)
            && shared.generation_over(generation)
        {
            tokio::spawn(free(Arc::clone(shared), Some(generation)));
        }
        if let Some(verdict) = response.verdict {
            let failed = is_failure(&verdict);
            if shared.set_verdict(verdict) && failed {
                tokio::spawn(free(Arc::clone(shared), None));
            }
        }
    }
}

fn is_failure(verdict: &v1::Verdict) -> bool {
    use v1::verdict::Outcome;
    matches!(verdict.outcome(), Outcome::Failed | Outcome::Config)
}

/// The generation is over, or the run: sees to it that the training thread leaves whatever it waits for, or that the process
/// ends.
async fn free(shared: Arc<Shared>, generation: Option<u64>) {
    let left = || generation.is_some() && shared.generation() != generation;
    tokio::time::sleep(ABORT_AFTER).await;
    if left() {
        return;
    }
    let handles = shared.take_aborts();
    let aborting = tokio::task::spawn_blocking(move || {
        for handle in &handles {
            handle.abort();
        }
    });
    tokio::time::sleep(GIVE_UP_AFTER).await;
    drop(aborting);
    if !left() {
        die(shared
            .verdict()
            .map_or("its generation is over, and it cannot leave it", first_line));
    }
}

/// Ends this process, whatever its training thread waits for.
fn die(reason: &str) {
    tracing::error!("this worker ends: {reason}");
    // Not `exit`: it would tear libtorch down under the training thread.
    let _ = kill(Pid::this(), Signal::SIGKILL);
}
