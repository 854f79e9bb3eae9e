//! The `cluster:` section.

use std::path::PathBuf;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What `zipper-launch submit` asks Slurm for, and how a job of it goes on. What is left out is the cluster's own default.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ClusterConfig {
    /// Slurm partition.
    #[serde(default)]
    pub partition: Option<String>,
    /// Account that pays.
    #[serde(default)]
    pub account: Option<String>,
    /// Quality of service.
    #[serde(default)]
    pub qos: Option<String>,
    /// Time limit of one life of the job, in whole minutes: after it the job is queued again.
    #[serde(default, with = "crate::duration::optional")]
    #[schemars(with = "Option<String>")]
    pub time: Option<Duration>,
    /// GPUs on each node, one worker for each unless `--workers-per-node` says otherwise. Left out: none are asked for.
    #[serde(default)]
    pub gpus_per_node: Option<u32>,
    /// CPUs on each node.
    #[serde(default)]
    pub cpus_per_node: Option<u32>,
    /// Features that nodes must have.
    #[serde(default)]
    pub constraint: Option<String>,
    /// How long before the time limit a job is told to stop with a checkpoint. Slurm may be a minute early or late.
    #[serde(default = "default_stop_before", with = "crate::duration")]
    #[schemars(with = "String")]
    pub stop_before: Duration,
    /// How often a job is queued again, by its time limit, pre-emption and lost nodes together, before it ends: by
    /// default some months of one-day jobs.
    #[serde(default = "default_max_requeues")]
    pub max_requeues: u32,
    /// The network interface of this machine by which its nodes reach each other: `ib0`. The coordinator listens on its address and
    /// on no other. Left out: the way to the nodes of the allocation, elsewhere loopback.
    #[serde(default)]
    pub interface: Option<String>,
    /// For how long the certificates of a launch are valid: longer than it lasts. Each launch and each requeue makes new ones.
    #[serde(default = "default_certificate_lifetime", with = "crate::duration")]
    #[schemars(with = "String")]
    pub certificate_lifetime: Duration,
    /// More arguments for sbatch: `--exclusive`.
    #[serde(default)]
    pub sbatch: Vec<String>,
    /// The container that node agents and workers run in. Left out: none.
    #[serde(default)]
    pub container: Option<ContainerConfig>,
}

impl Default for ClusterConfig {
    fn default() -> Self {
        Self {
            partition: None,
            account: None,
            qos: None,
            time: None,
            gpus_per_node: None,
            cpus_per_node: None,
            constraint: None,
            stop_before: default_stop_before(),
            max_requeues: default_max_requeues(),
            interface: None,
            certificate_lifetime: default_certificate_lifetime(),
            sbatch: Vec::new(),
            container: None,
        }
    }
}

/// A container with `zipper-launch` and `zipper-worker` in it; the coordinator and `zipper-launch` itself stay outside.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ContainerConfig {
    /// The program that runs it.
    pub runtime: ContainerRuntime,
    /// What it runs: a file, or a name that it knows.
    pub image: String,
    /// Folders that are the same inside as outside, besides the current one: those of models, data and run.
    #[serde(default)]
    pub mounts: Vec<PathBuf>,
    /// Where `zipper-launch` is in the image.
    #[serde(default = "default_container_program")]
    pub program: String,
    /// More arguments for the program that runs it.
    #[serde(default)]
    pub arguments: Vec<String>,
}

/// A program that runs containers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ContainerRuntime {
    /// `apptainer exec`.
    Apptainer,
    /// `enroot start`.
    Enroot,
}

fn default_stop_before() -> Duration {
    Duration::from_mins(3)
}

fn default_max_requeues() -> u32 {
    100
}

fn default_certificate_lifetime() -> Duration {
    Duration::from_hours(30 * 24)
}

fn default_container_program() -> String {
    "zipper-launch".to_owned()
}
