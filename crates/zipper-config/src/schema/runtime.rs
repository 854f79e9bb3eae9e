//! The `runtime:` section.

use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How the workers of the run work together: timeouts, collectives, memory.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "keys that do not depend on each other"
)]
pub struct RuntimeConfig {
    /// How often a worker tells the coordinator that it lives and how far it is.
    #[serde(default = "default_heartbeat_interval", with = "crate::duration")]
    #[schemars(with = "String")]
    pub heartbeat_interval: Duration,
    /// Silence after which a worker is taken for dead.
    #[serde(default = "default_heartbeat_timeout", with = "crate::duration")]
    #[schemars(with = "String")]
    pub heartbeat_timeout: Duration,
    /// How long to wait for all workers to join.
    #[serde(default = "default_rendezvous_timeout", with = "crate::duration")]
    #[schemars(with = "String")]
    pub rendezvous_timeout: Duration,
    /// Longest wait in one collective operation. Shorter than in other trainers, whose runs end with it: here the ranks form a new
    /// generation and go on.
    #[serde(default = "default_collective_timeout", with = "crate::duration")]
    #[schemars(with = "String")]
    pub collective_timeout: Duration,
    /// The same for a worker's first one, if that is longer: until then others may still be loading the model.
    #[serde(default = "default_first_collective_timeout", with = "crate::duration")]
    #[schemars(with = "String")]
    pub first_collective_timeout: Duration,
    /// How long a run that was asked to stop may take to write its checkpoint.
    #[serde(default = "default_grace", with = "crate::duration")]
    #[schemars(with = "String")]
    pub grace: Duration,
    /// What sums gradients over the workers.
    #[serde(default)]
    pub backend: Backend,
    /// Sum gradients while the backward pass is still under way.
    #[serde(default = "default_overlap")]
    pub overlap: bool,
    /// Gradients that are summed together, in MiB.
    #[serde(default = "default_bucket_mib")]
    pub bucket_mib: f64,
    /// Keep of the LLM's layers only what goes into them, and compute them again in the backward pass (activation checkpointing): less memory,
    /// and their forward passes twice.
    #[serde(default)]
    pub recompute_activations: bool,
    /// Compare operation, name and shape between the workers before each collective operation. For looking for bugs; always
    /// on in debug builds.
    #[serde(default)]
    pub check_collectives: bool,
    /// Most memory of a worker for banks (weights, gradients, optimizer state), in MiB. Left out: no limit.
    #[serde(default)]
    pub bank_memory_mib: Option<f64>,
    /// Torch threads of a worker. Left out: the machine's cores divided by its workers.
    #[serde(default)]
    pub threads_per_worker: Option<usize>,
    /// Give each worker cores of its own, side by side on one socket where they fit: threads then stay near their memory. Not where other
    /// work takes some of the cores.
    #[serde(default)]
    pub pin_cores: bool,
}

impl Default for RuntimeConfig {
    fn default() -> Self {
        Self {
            heartbeat_interval: default_heartbeat_interval(),
            heartbeat_timeout: default_heartbeat_timeout(),
            rendezvous_timeout: default_rendezvous_timeout(),
            collective_timeout: default_collective_timeout(),
            first_collective_timeout: default_first_collective_timeout(),
            grace: default_grace(),
            backend: Backend::default(),
            overlap: default_overlap(),
            bucket_mib: default_bucket_mib(),
            recompute_activations: false,
            check_collectives: false,
            bank_memory_mib: None,
            threads_per_worker: None,
            pin_cores: false,
        }
    }
}

fn default_heartbeat_interval() -> Duration {
    Duration::from_secs(1)
}

fn default_heartbeat_timeout() -> Duration {
    Duration::from_secs(20)
}

fn default_rendezvous_timeout() -> Duration {
    Duration::from_mins(5)
}

fn default_collective_timeout() -> Duration {
    Duration::from_secs(50)
}

fn default_first_collective_timeout() -> Duration {
    Duration::from_mins(5)
}

fn default_grace() -> Duration {
    Duration::from_mins(1)
}

fn default_overlap() -> bool {
    true
}

fn default_bucket_mib() -> f64 {
    25.0
}

/// What sums gradients over the workers: one of libtorch's own process groups.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Backend {
    /// NCCL if every worker has a GPU of its own, else Gloo.
    #[default]
    Auto,
    /// Over TCP, on CPUs or GPUs.
    Gloo,
    /// Between GPUs, one for each worker.
    Nccl,
}
