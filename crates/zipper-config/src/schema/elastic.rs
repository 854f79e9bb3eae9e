//! The `elastic:` section.

use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What happens when workers, nodes or the coordinator are lost, come back, hang or are slow.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ElasticConfig {
    /// What to do when a worker is lost and no spare is ready.
    #[serde(default)]
    pub on_loss: OnLoss,
    /// With `on_loss: wait`: how long to wait for a replacement before going on with fewer workers.
    #[serde(default = "default_replacement_wait", with = "crate::duration")]
    #[schemars(with = "String")]
    pub replacement_wait: Duration,
    /// How long to wait at the start for the rest of `--nodes MIN:MAX` once MIN nodes are there.
    #[serde(default = "default_join_wait", with = "crate::duration")]
    #[schemars(with = "String")]
    pub join_wait: Duration,
    /// How long survivors of a loss may take to come together again; one that does not is given up.
    #[serde(default = "default_regroup_timeout", with = "crate::duration")]
    #[schemars(with = "String")]
    pub regroup_timeout: Duration,
    /// Every how many steps the banks of a rank are copied to the memory of another one; 0: never, then losing a rank that
    /// alone owned a bank goes back to the newest checkpoint.
    #[serde(default = "default_snapshot_every")]
    pub snapshot_every: u64,
    /// Failures older than this no longer count against the next two limits.
    #[serde(default = "default_restart_window", with = "crate::duration")]
    #[schemars(with = "String")]
    pub restart_window: Duration,
    /// How often the workers of one node may fail before the node is left out.
    #[serde(default = "default_restarts_per_node")]
    pub restarts_per_node: u32,
    /// How often the run may lose workers before it ends; several that are lost together count once. Nor may it lose them more often than
    /// that, in whatever time, without a step in between that was never made before.
    #[serde(default = "default_restarts_per_run")]
    pub restarts_per_run: u32,
    /// Pause before a failed worker is started again; it doubles with every failure of the node, up to a minute.
    #[serde(default = "default_restart_backoff", with = "crate::duration")]
    #[schemars(with = "String")]
    pub restart_backoff: Duration,
    /// A run hangs when no step is completed for this many times the longest of the recent steps. In an evaluation a rank hangs when it
    /// decodes no batch for this many times the longest batch so far, and for `runtime.first_collective_timeout`.
    #[serde(default = "default_hang_factor")]
    pub hang_factor: f64,
    /// But never before this long.
    #[serde(default = "default_hang_min", with = "crate::duration")]
    #[schemars(with = "String")]
    pub hang_min: Duration,
    /// A rank that takes this many times as long for its work as the median of all is a straggler.
    #[serde(default = "default_straggler_factor")]
    pub straggler_factor: f64,
    /// Steps over which a rank has to be slow.
    #[serde(default = "default_straggler_steps")]
    pub straggler_steps: u64,
    /// How long workers go on without a coordinator.
    #[serde(default = "default_coordinator_timeout", with = "crate::duration")]
    #[schemars(with = "String")]
    pub coordinator_timeout: Duration,
    /// How long a coordinator that was not ended in order keeps others from the run.
    #[serde(default = "default_lease_ttl", with = "crate::duration")]
    #[schemars(with = "String")]
    pub lease_ttl: Duration,
}

impl Default for ElasticConfig {
    fn default() -> Self {
        Self {
            on_loss: OnLoss::default(),
            replacement_wait: default_replacement_wait(),
            join_wait: default_join_wait(),
            regroup_timeout: default_regroup_timeout(),
            snapshot_every: default_snapshot_every(),
            restart_window: default_restart_window(),
            restarts_per_node: default_restarts_per_node(),
            restarts_per_run: default_restarts_per_run(),
            restart_backoff: default_restart_backoff(),
            hang_factor: default_hang_factor(),
            hang_min: default_hang_min(),
            straggler_factor: default_straggler_factor(),
            straggler_steps: default_straggler_steps(),
            coordinator_timeout: default_coordinator_timeout(),
            lease_ttl: default_lease_ttl(),
        }
    }
}

/// What to do when a worker is lost and no spare is ready.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OnLoss {
    /// Go on at once with those that are left, if they are enough.
    #[default]
    Shrink,
    /// Wait for a replacement first.
    Wait,
}

fn default_replacement_wait() -> Duration {
    Duration::from_mins(2)
}

fn default_join_wait() -> Duration {
    Duration::from_secs(30)
}

fn default_regroup_timeout() -> Duration {
    Duration::from_secs(30)
}

fn default_snapshot_every() -> u64 {
    10
}

fn default_restart_window() -> Duration {
    Duration::from_hours(1)
}

fn default_restarts_per_node() -> u32 {
    3
}

fn default_restarts_per_run() -> u32 {
    20
}

fn default_restart_backoff() -> Duration {
    Duration::from_secs(1)
}

fn default_hang_factor() -> f64 {
    10.0
}

fn default_hang_min() -> Duration {
    Duration::from_secs(30)
}

fn default_straggler_factor() -> f64 {
    1.5
}

fn default_straggler_steps() -> u64 {
    50
}

fn default_coordinator_timeout() -> Duration {
    Duration::from_mins(5)
}

fn default_lease_ttl() -> Duration {
    Duration::from_secs(15)
}
