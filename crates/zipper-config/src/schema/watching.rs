//! The `watching:` section.

use std::net::{Ipv4Addr, SocketAddr};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What people and machines are shown of the run while it is made.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct WatchingConfig {
    /// Serve the status page and `/metrics`.
    #[serde(default = "default_true")]
    pub page: bool,
    /// Address of both, `host:port` with a numeric host; port 0 takes a free one. Outside loopback they need the token that
    /// zipper-launch prints.
    #[serde(default = "default_listen")]
    pub listen: SocketAddr,
    /// Write event files for TensorBoard into `metrics/tensorboard` of the run.
    #[serde(default = "default_true")]
    pub tensorboard: bool,
}

impl Default for WatchingConfig {
    fn default() -> Self {
        Self {
            page: default_true(),
            listen: default_listen(),
            tensorboard: default_true(),
        }
    }
}

fn default_true() -> bool {
    true
}

fn default_listen() -> SocketAddr {
    (Ipv4Addr::LOCALHOST, 0).into()
}
