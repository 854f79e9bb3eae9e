//! The coordinator under the load of many workers: `cargo xtask load`.
//!
//! A real coordinator process, and real gRPC clients that say what thousands of workers and their agents say; they compute
//! nothing. Many of them share a connection.
//!
//! Reading order: `fleet` (what all share, and the connections), `worker` and `agent` (what each says), `coordinator` (the process
//! and what it takes), `figures`.

mod agent;
mod coordinator;
mod figures;
mod fleet;
mod worker;

use std::collections::BTreeSet;
use std::error::Error;
use std::iter;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};
use zipper_types::WorkerId;

pub use figures::{Figures, Limits};

use agent::Agent;
use coordinator::Coordinator;
use fleet::Fleet;
use worker::Worker;

/// Longest that any phase may take.
const DEADLINE: Duration = Duration::from_mins(2);

/// How much there is to coordinate.
#[derive(Debug, Clone, Copy)]
pub struct Load {
    /// Simulated workers.
    pub workers: u32,
    /// How many of them each node has.
    pub workers_per_node: u32,
    /// Connections that they share.
    pub connections: u32,
    /// Time between two heartbeats of a worker or an agent.
    pub interval: Duration,
    /// For how long heartbeats are measured.
    pub lasts: Duration,
}

impl Load {
    fn nodes(&self) -> u32 {
        self.workers.div_ceil(self.workers_per_node)
    }

    /// Node and place on it of each worker.
    fn places(&self) -> impl Iterator<Item = (u32, u32)> + use<> {
        let per_node = self.workers_per_node;
        (0..self.workers).map(move |index| (index / per_node, index % per_node))
    }

    /// Plays a whole run in `folder`: everybody joins, gives signs of life, loses one, is together again, and stops.
    ///
    /// # Errors
    /// If the coordinator fails, refuses somebody, or a phase takes more than two minutes.
    pub async fn play(&self, folder: &Path) -> Result<Figures, String> {
        let load_before = load();
        let coordinator = Coordinator::start(self, folder).await?;
        let fleet = Arc::new(Fleet::connect(*self, &coordinator, folder).await?);
        let mut everybody = JoinSet::new();
        let played = tokio::select! {
            played = self.phases(&fleet, &coordinator, &mut everybody) => played,
            problem = fleet.first_problem() => Err(problem),
        };
        let (rendezvous, rejoined, cpu) = played.map_err(|problem| coordinator.explain(&problem))?;
        let memory = coordinator.peak_memory()?;
        let stopping = async {
            coordinator.stop()?;
            while let Some(ended) = everybody.join_next().await {
                // Whoever was lost was aborted.
                match ended {
                    Ok(ended) => ended?,
                    Err(error) if error.is_cancelled() => {}
                    Err(error) => return Err(error.to_string()),
                }
            }
            Ok(())
        };
        within("everybody heard how the run ended", stopping).await??;
        coordinator.ended_with(75).await?;
        let together = (rendezvous, rejoined);
        Ok(Figures::new(
            self,
            load_before,
            together,
            cpu,
            memory,
            &fleet.latencies(),
        ))
    }

    /// Until everybody is together for the second time: how long it took each time, and which share of a core heartbeats take.
    async fn phases(
        &self,
        fleet: &Arc<Fleet>,
        coordinator: &Coordinator,
        everybody: &mut JoinSet<Result<(), String>>,
    ) -> Result<(Duration, Duration, f64), String> {
        for node in 0..self.nodes() {
            everybody.spawn(Agent::new(fleet, node).serve());
        }
        within("all agents had registered", fleet.all_registered()).await?;
        let mut abort = Vec::new();
        for (node, local) in self.places() {
            abort.push(everybody.spawn(Worker::new(fleet, node, local, 1).work()));
        }
        within("all workers had given a sign of life", fleet.all_alive()).await?;
        let began = Instant::now();
        fleet.let_join();
        self.together(fleet, 1).await?;
        let rendezvous = began.elapsed();

        fleet.measure(true);
        let before = coordinator.cpu_seconds()?;
        sleep(self.lasts).await;
        let cpu = (coordinator.cpu_seconds()? - before) / self.lasts.as_secs_f64();
        fleet.measure(false);

        // The last worker is lost; its node starts another one.
        let (node, local) = self.places().last().ok_or("there are no workers")?;
        abort.pop().ok_or("there are no workers")?.abort();
        let began = Instant::now();
        Agent::new(fleet, node)
            .report_exit(&WorkerId::new(node, local))
            .await?;
        everybody.spawn(Worker::new(fleet, node, local, 2).work());
        self.together(fleet, 2).await?;
        Ok((rendezvous, began.elapsed(), cpu))
    }

    /// Waits until every worker has a rank of its own in the generation `number`.
    async fn together(&self, fleet: &Fleet, number: u64) -> Result<(), String> {
        let ranks = timeout(DEADLINE, fleet.ranks(number)).await;
        let ranks = ranks.map_err(|_| {
            let (have, all) = (fleet.num_ranks(number), self.workers);
            format!("waited {DEADLINE:?} for generation {number}: {have} of {all} workers have a rank in it")
        })?;
        let different: BTreeSet<u32> = ranks.iter().copied().collect();
        if different == (0..self.workers).collect() && ranks.len() == different.len() {
            return Ok(());
        }
        Err(format!(
            "generation {number} has {} ranks, {} different ones",
            ranks.len(),
            different.len()
        ))
    }
}

/// What `work` comes to, unless it takes too long.
async fn within<T>(until: &str, work: impl Future<Output = T>) -> Result<T, String> {
    let done = timeout(DEADLINE, work).await;
    done.map_err(|_| format!("waited {DEADLINE:?} until {until}"))
}

/// What else the machine does: how many processes wanted to run in the last minute.
fn load() -> Option<f64> {
    let text = std::fs::read_to_string("/proc/loadavg").ok()?;
    text.split(' ').next()?.parse().ok()
}

/// What an error says, and all that caused it.
fn with_causes(error: &(dyn Error + 'static)) -> String {
    let said = iter::successors(Some(error), |&error| error.source()).map(ToString::to_string);
    said.collect::<Vec<_>>().join(": ")
}
