//! What can go wrong between ranks, and whose fault it is.

use std::fmt;
use std::time::Duration;

use zipper_collectives_sys as sys;
use zipper_types::{Rank, WorldSize};

use crate::ffi::Failure;

/// What a caller can do about a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// A peer did not take part within the timeout: it hangs, is stopped, or is cut off without a reset.
    Timeout,
    /// A peer closed its connection: it ended, was killed, or gave its own group up after an error.
    PeerLost,
    /// The store or an address cannot be reached or used.
    Network,
    /// [`crate::AbortHandle::abort`] was called on this rank.
    Aborted,
    /// The call itself is wrong, the same way on every rank.
    InvalidArgument,
    /// Anything else that libtorch reports.
    Other,
}

impl ErrorKind {
    /// Whether a new group, perhaps of other ranks, is the answer.
    #[must_use]
    pub fn is_membership_change(self) -> bool {
        matches!(
            self,
            Self::Timeout | Self::PeerLost | Self::Network | Self::Aborted
        )
    }

    fn explanation(self) -> &'static str {
        match self {
            Self::Timeout => "a peer did not answer in time",
            Self::PeerLost => "a peer closed its connection",
            Self::Network => "the network failed",
            Self::Aborted => "the group was aborted on this rank",
            Self::InvalidArgument => "the call is not valid",
            Self::Other => "libtorch reported an error",
        }
    }
}

/// A failed operation of a [`crate::Store`] or a [`crate::ProcessGroup`].
#[derive(Debug, Clone, thiserror::Error)]
pub struct CollectiveError {
    kind: ErrorKind,
    operation: Operation,
    elapsed: Duration,
    timeout: Duration,
    message: String,
}

/// Which operation failed, for whom and for what.
#[derive(Debug, Clone)]
pub(crate) struct Operation {
    pub(crate) name: &'static str,
    pub(crate) what: String,
    pub(crate) place: Option<(Rank, WorldSize)>,
}

impl CollectiveError {
    /// Classifies what the shim reported.
    pub(crate) fn from_failure(
        operation: Operation,
        failure: &Failure,
        elapsed: Duration,
        timeout: Duration,
        aborted: bool,
    ) -> Self {
        let kind = if aborted {
            ErrorKind::Aborted
        } else {
            classify(failure, elapsed, timeout)
        };
        Self {
            kind,
            operation,
            elapsed,
            timeout,
            message: readable(&failure.message),
        }
    }

    /// An error that we found before calling libtorch.
    pub(crate) fn invalid(operation: Operation, timeout: Duration, message: String) -> Self {
        let kind = ErrorKind::InvalidArgument;
        Self {
            kind,
            operation,
            elapsed: Duration::ZERO,
            timeout,
            message,
        }
    }

    /// A failure of the operating system while preparing the operation.
    pub(crate) fn from_io(operation: Operation, timeout: Duration, source: &std::io::Error) -> Self {
        let kind = ErrorKind::Network;
        Self {
            kind,
            operation,
            elapsed: Duration::ZERO,
            timeout,
            message: source.to_string(),
        }
    }

    /// What a caller can do about it.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// How long the operation had been under way when it failed.
    #[must_use]
    pub fn elapsed(&self) -> Duration {
        self.elapsed
    }
}

impl fmt::Display for CollectiveError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Operation { name, what, place } = &self.operation;
        write!(f, "{name} of `{what}`")?;
        if let Some((rank, world_size)) = place {
            write!(f, " on rank {rank} of {world_size}")?;
        }
        write!(
            f,
            " failed after {:.1?} (timeout {:?}): {}: {}",
            self.elapsed,
            self.timeout,
            self.kind.explanation(),
            self.message
        )
    }
}

/// Gloo throws untyped exceptions, so its messages are all there is to tell its failures apart.
fn classify(failure: &Failure, elapsed: Duration, timeout: Duration) -> ErrorKind {
    let message = failure.message.to_lowercase();
    let says = |words: &[&str]| words.iter().any(|word| message.contains(word));
    match failure.status {
        sys::TIMEOUT => ErrorKind::Timeout,
        sys::NETWORK | sys::STORE if says(&["timed out", "timeout"]) => ErrorKind::Timeout,
        sys::NETWORK | sys::STORE => ErrorKind::Network,
        _ if says(&["timed out", "timeout"]) => ErrorKind::Timeout,
        _ if says(&[
            "closed by peer",
            "reset by peer",
            "broken pipe",
            "connection refused",
        ]) =>
        {
            ErrorKind::PeerLost
        }
        _ if says(&[
            "resolve",
            "unable to find address",
            "cannot assign requested address",
        ]) =>
        {
            ErrorKind::Network
        }
        _ if elapsed >= timeout => ErrorKind::Timeout,
        _ => ErrorKind::Other,
    }
}

/// The first line, without the place in libtorch's sources that Gloo puts before it.
fn readable(message: &str) -> String {
    let line = message.lines().next().unwrap_or_default();
    let line = match line.split_once("] ") {
        Some((source, rest)) if source.starts_with("[/") => rest,
        _ => line,
    };
    line.trim().trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIMEOUT: Duration = Duration::from_secs(5);

    fn kind_of(status: i32, message: &str, elapsed: Duration) -> ErrorKind {
        classify(
            &Failure {
                status,
                message: message.to_owned(),
            },
            elapsed,
            TIMEOUT,
        )
    }

    /// Goal: the messages that libtorch 2.11 was seen to give get the right kind.
    #[test]
    fn observed_messages_are_classified() {
        let soon = Duration::from_millis(10);
        let closed = "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:538] Connection closed by peer [127.0.0.1]:4";
        let slow = "[/pytorch/third_party/gloo/gloo/transport/tcp/unbound_buffer.cc:78] Timed out waiting 5000ms for recv";
        assert_eq!(kind_of(sys::OTHER, closed, soon), ErrorKind::PeerLost);
        assert_eq!(kind_of(sys::OTHER, slow, TIMEOUT), ErrorKind::Timeout);
        assert_eq!(
            kind_of(sys::STORE, "wait timeout after 5000ms", TIMEOUT),
            ErrorKind::Timeout
        );
        assert_eq!(
            kind_of(sys::NETWORK, "failed to recv, got 0 bytes", soon),
            ErrorKind::Network
        );
        assert_eq!(kind_of(sys::OTHER, "Invalid scalar type", soon), ErrorKind::Other);
        assert_eq!(kind_of(sys::OTHER, "something new", TIMEOUT), ErrorKind::Timeout);
    }

    /// Goal: the message starts with what happened and not with a path on the machine that built libtorch.
    #[test]
    fn source_places_are_left_out() {
        assert_eq!(
            readable("[/a/b.cc:5] Connection closed by peer [::1]:4\nmore"),
            "Connection closed by peer [::1]:4"
        );
        assert_eq!(readable("plain."), "plain");
    }
}
