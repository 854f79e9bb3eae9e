//! The gRPC contract of `proto/zipper/v1`, generated, and its conversions to the words of [`zipper_types`].
//!
//! Holds no logic: what a request means is decided by the coordinator and the worker. Only what everybody has to take alike is here.

use std::time::Duration;

use zipper_types::Stage;

/// The generated messages, clients and servers of package `zipper.v1`.
#[allow(missing_docs, unreachable_pub, clippy::pedantic, clippy::large_enum_variant)]
pub mod v1 {
    tonic::include_proto!("zipper.v1");
}

/// A message lacks a field that its meaning depends on: the peer runs another version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MissingField(pub &'static str);

impl std::fmt::Display for MissingField {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "the message has no `{}`: does the peer run another version of zipper?",
            self.0
        )
    }
}

impl std::error::Error for MissingField {}

impl From<MissingField> for tonic::Status {
    fn from(missing: MissingField) -> Self {
        Self::invalid_argument(missing.to_string())
    }
}

/// Whether a coordinator that answers so may just be away, so that it may help to ask again.
pub fn is_away(status: &tonic::Status) -> bool {
    use tonic::Code;
    matches!(
        status.code(),
        Code::Unavailable | Code::Cancelled | Code::DeadlineExceeded | Code::Unknown
    )
}

impl From<Stage> for v1::Stage {
    fn from(stage: Stage) -> Self {
        match stage {
            Stage::Align => Self::Align,
            Stage::Zipper => Self::Zipper,
        }
    }
}

/// The stage a message names.
///
/// # Errors
/// [`MissingField`] for the unspecified and for unknown stages.
pub fn stage(wire: i32) -> Result<Stage, MissingField> {
    match v1::Stage::try_from(wire) {
        Ok(v1::Stage::Align) => Ok(Stage::Align),
        Ok(v1::Stage::Zipper) => Ok(Stage::Zipper),
        Ok(v1::Stage::Unspecified) | Err(_) => Err(MissingField("stage")),
    }
}

/// A duration as messages hold it; one too long for them becomes the longest.
pub fn wire_duration(duration: Duration) -> prost_types::Duration {
    prost_types::Duration::try_from(duration).unwrap_or(prost_types::Duration {
        seconds: i64::MAX,
        nanos: 0,
    })
}

/// A duration of a message; nothing for an absent or negative one.
pub fn duration(wire: Option<prost_types::Duration>) -> Option<Duration> {
    Duration::try_from(wire?).ok()
}
