//! The `checkpoint:` section.

use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// When checkpoints are written, and which are kept.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CheckpointConfig {
    /// Every how many steps; 0: only at the end of each stage and when the run is stopped.
    #[serde(default = "default_every_steps")]
    pub every_steps: u64,
    /// How many of the newest are kept. Those at the end of a stage are always kept.
    #[serde(default = "default_keep_last")]
    pub keep_last: u64,
    /// Those whose step is a multiple of this are kept, too; 0: none.
    #[serde(default)]
    pub keep_every: u64,
    /// How many of the best by validation loss are kept, too: as many as `--average` of eval, export and transcribe is to take.
    #[serde(default = "default_keep_best")]
    pub keep_best: u64,
    /// Objects above this size, in MiB, are uploaded in pieces, several at a time.
    #[serde(default = "default_multipart_mib")]
    pub multipart_mib: u64,
    /// How long training goes on while the object store cannot be written, before the run stops.
    #[serde(default = "default_outage_limit", with = "crate::duration")]
    #[schemars(with = "String")]
    pub outage_limit: Duration,
}

impl Default for CheckpointConfig {
    fn default() -> Self {
        Self {
            every_steps: default_every_steps(),
            keep_last: default_keep_last(),
            keep_every: 0,
            keep_best: default_keep_best(),
            multipart_mib: default_multipart_mib(),
            outage_limit: default_outage_limit(),
        }
    }
}

fn default_every_steps() -> u64 {
    500
}

fn default_keep_last() -> u64 {
    3
}

fn default_keep_best() -> u64 {
    1
}

fn default_multipart_mib() -> u64 {
    64
}

fn default_outage_limit() -> Duration {
    Duration::from_mins(30)
}
