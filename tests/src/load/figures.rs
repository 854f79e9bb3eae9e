//! What came out.

use std::fmt;
use std::time::Duration;

use serde::Serialize;

use super::Load;

/// What a coordinator has to do with.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Limits {
    /// Longest from the first request to join until everybody has a rank (s).
    pub rendezvous: f64,
    /// Longest of 99 in 100 heartbeats (ms).
    pub heartbeat_p99: f64,
    /// Most resident memory (bytes).
    pub memory: u64,
}

/// What was measured.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Figures {
    /// Simulated workers.
    pub workers: u32,
    /// Their nodes.
    pub nodes: u32,
    /// Connections that they shared.
    pub connections: u32,
    /// Processors of the machine, which simulated the workers as well.
    pub cores: usize,
    /// How many processes wanted to run in the minute before.
    pub load_before: Option<f64>,
    /// From the first request to join until everybody had a rank (s).
    pub rendezvous_seconds: f64,
    /// From the loss of a worker until everybody had a rank again (s).
    pub rejoined_seconds: f64,
    /// Heartbeats of workers that were measured,
    pub heartbeats: usize,
    /// over so long (s).
    pub seconds: f64,
    /// From when a heartbeat was due until it was answered (ms): the median,
    pub heartbeat_ms_p50: f64,
    /// 99 of 100 were faster,
    pub heartbeat_ms_p99: f64,
    /// and the slowest.
    pub heartbeat_ms_max: f64,
    /// Share of one processor that the coordinator took meanwhile.
    pub cpu_share: f64,
    /// The most resident memory that it had (bytes).
    pub memory_peak: u64,
}

impl Figures {
    /// `latencies`: shortest first.
    pub(super) fn new(
        load: &Load,
        load_before: Option<f64>,
        (rendezvous, rejoined): (Duration, Duration),
        cpu_share: f64,
        memory_peak: u64,
        latencies: &[Duration],
    ) -> Self {
        let of_100 = |part: usize| {
            let index = (latencies.len() * part / 100).min(latencies.len().saturating_sub(1));
            latencies
                .get(index)
                .map_or(f64::NAN, |latency| 1e3 * latency.as_secs_f64())
        };
        Self {
            workers: load.workers,
            nodes: load.nodes(),
            connections: load.connections,
            cores: std::thread::available_parallelism().map_or(0, Into::into),
            load_before,
            rendezvous_seconds: rendezvous.as_secs_f64(),
            rejoined_seconds: rejoined.as_secs_f64(),
            heartbeats: latencies.len(),
            seconds: load.lasts.as_secs_f64(),
            heartbeat_ms_p50: of_100(50),
            heartbeat_ms_p99: of_100(99),
            heartbeat_ms_max: of_100(100),
            cpu_share,
            memory_peak,
        }
    }

    /// What is beyond `limits`.
    pub fn missed(&self, limits: &Limits) -> Vec<String> {
        let mut missed = Vec::new();
        let mut check = |what: &str, measured: f64, limit: f64, unit: &str| {
            // What was not measured is missed as well.
            if measured.is_nan() || measured > limit {
                missed.push(format!(
                    "{what}: {measured:.2} {unit} is more than {limit:.0} {unit}"
                ));
            }
        };
        check("rendezvous", self.rendezvous_seconds, limits.rendezvous, "s");
        check(
            "heartbeats, 99 of 100",
            self.heartbeat_ms_p99,
            limits.heartbeat_p99,
            "ms",
        );
        check(
            "memory",
            self.memory_peak as f64 / 1e6,
            limits.memory as f64 / 1e6,
            "MB",
        );
        missed
    }
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let load = self
            .load_before
            .map_or_else(String::new, |load| format!(", load average before {load:.2}"));
        writeln!(
            f,
            "{} workers on {} nodes, {} connections; {} cores{load}",
            self.workers, self.nodes, self.connections, self.cores
        )?;
        writeln!(f, "rendezvous                {:>8.2} s", self.rendezvous_seconds)?;
        writeln!(f, "together again after loss {:>8.2} s", self.rejoined_seconds)?;
        writeln!(
            f,
            "heartbeats                {:>8.2} ms (99 of 100 are faster; median {:.2}, slowest {:.2}; {} in {:.0} s)",
            self.heartbeat_ms_p99,
            self.heartbeat_ms_p50,
            self.heartbeat_ms_max,
            self.heartbeats,
            self.seconds
        )?;
        writeln!(
            f,
            "memory, peak              {:>8.1} MB",
            self.memory_peak as f64 / 1e6
        )?;
        write!(
            f,
            "processor                 {:>8.1} % of one core while heartbeats were measured",
            100.0 * self.cpu_share
        )
    }
}
