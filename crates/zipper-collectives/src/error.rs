//! What can go wrong between ranks, and whose fault it is.

use std::fmt;
use std::time::Duration;

use zipper_collectives_sys as sys;
use zipper_types::{Rank, WorldSize};

use crate::ffi::Failure;
use crate::roll_call::Attendance;

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
    /// The ranks do not call the same: a bug, or workers of different versions.
    Mismatch,
    /// Anything else that libtorch reports.
    Other,
}

impl ErrorKind {
    fn explanation(self) -> &'static str {
        match self {
            Self::Timeout => "a peer did not answer in time",
            Self::PeerLost => "a peer closed its connection",
            Self::Network => "the network failed",
            Self::Aborted => "the group was aborted on this rank",
            Self::InvalidArgument => "the call is not valid",
            Self::Mismatch => "the ranks do not call the same",
            Self::Other => "libtorch reported an error",
        }
    }
}

/// A failed operation of a [`crate::Store`] or a [`crate::ProcessGroup`].
#[derive(Debug, Clone, thiserror::Error)]
pub struct CollectiveError(Box<Details>);

#[derive(Debug, Clone)]
struct Details {
    kind: ErrorKind,
    operation: Operation,
    elapsed: Duration,
    timeout: Duration,
    message: String,
    attendance: Option<Attendance>,
}

/// Which operation failed, for whom and for what.
#[derive(Debug, Clone)]
pub(crate) struct Operation {
    pub(crate) name: &'static str,
    pub(crate) what: String,
    pub(crate) place: Option<Place>,
}

/// Where an operation was called.
#[derive(Debug, Clone)]
pub(crate) struct Place {
    pub(crate) group: String,
    /// Ranks of the generation, not of the group.
    pub(crate) rank: Rank,
    pub(crate) size: WorldSize,
    /// Number among the collectives of the group; 0 for its construction.
    pub(crate) sequence: u64,
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
        Self(Box::new(Details {
            kind,
            operation,
            elapsed,
            timeout,
            message: readable(&failure.message),
            attendance: None,
        }))
    }

    /// A failure that has nothing to do with other ranks.
    pub(crate) fn unplaced(name: &'static str, what: &str, failure: &Failure) -> Self {
        let operation = Operation {
            name,
            what: what.to_owned(),
            place: None,
        };
        Self::from_failure(operation, failure, Duration::ZERO, Duration::ZERO, false)
    }

    /// The ranks of one group called different things.
    pub(crate) fn mismatch(operation: Operation, timeout: Duration, message: String) -> Self {
        let mut error = Self::invalid(operation, timeout, message);
        error.0.kind = ErrorKind::Mismatch;
        error
    }

    /// The same error, with who had come.
    pub(crate) fn with_attendance(mut self, attendance: Attendance) -> Self {
        self.0.attendance = Some(attendance);
        self
    }

    /// An error that we found before calling libtorch.
    pub(crate) fn invalid(operation: Operation, timeout: Duration, message: String) -> Self {
        let kind = ErrorKind::InvalidArgument;
        Self(Box::new(Details {
            kind,
            operation,
            elapsed: Duration::ZERO,
            timeout,
            message,
            attendance: None,
        }))
    }

    /// A failure of the operating system while preparing the operation.
    pub(crate) fn from_io(operation: Operation, timeout: Duration, source: &std::io::Error) -> Self {
        let kind = ErrorKind::Network;
        Self(Box::new(Details {
            kind,
            operation,
            elapsed: Duration::ZERO,
            timeout,
            message: source.to_string(),
            attendance: None,
        }))
    }

    /// What a caller can do about it.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// Name of the group, number of the collective in it, its operation and what it was for; nothing for what is no
    /// collective of a group.
    #[must_use]
    pub fn collective(&self) -> Option<(&str, u64, &'static str, &str)> {
        let place = self.0.operation.place.as_ref()?;
        Some((
            &place.group,
            place.sequence,
            self.0.operation.name,
            &self.0.operation.what,
        ))
    }

    /// Ranks of the generation that had come to the collective; empty where nobody was asked.
    #[must_use]
    pub fn arrived(&self) -> Vec<Rank> {
        let attendance = self.0.attendance.as_ref();
        attendance.map_or_else(Vec::new, |attendance| attendance.arrived.clone())
    }

    /// Ranks of the generation that did not answer when they were asked. Those that answered from another collective are
    /// neither here nor in [`Self::arrived`]: only the message tells of them. If rank 0, which serves the store, does not
    /// answer, nothing is known of the others, and it is the only one here.
    #[must_use]
    pub fn missing(&self) -> Vec<Rank> {
        let attendance = self.0.attendance.as_ref();
        attendance.map_or_else(Vec::new, |attendance| attendance.missing.clone())
    }

    /// How long the operation had been under way when it failed.
    #[must_use]
    pub fn elapsed(&self) -> Duration {
        self.0.elapsed
    }
}

impl fmt::Display for CollectiveError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let details = &self.0;
        let Operation { name, what, place } = &details.operation;
        write!(f, "{name} of `{what}`")?;
        if let Some(place) = place {
            write!(
                f,
                " on rank {} in group `{}` of {}",
                place.rank, place.group, place.size
            )?;
        }
        f.write_str(" failed")?;
        // What has no place among the ranks waits for nobody.
        if !details.timeout.is_zero() {
            write!(
                f,
                " after {:.1?} (timeout {:?})",
                details.elapsed, details.timeout
            )?;
        }
        write!(f, ": {}", details.kind.explanation())?;
        if let Some(attendance) = &details.attendance {
            write!(f, ": {attendance}")?;
        }
        write!(f, " ({})", details.message)
    }
}

impl fmt::Display for Attendance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            arrived,
            elsewhere,
            missing,
            store_lost,
        } = self;
        if *store_lost {
            return write!(
                f,
                "rank 0, which serves the store, does not answer, so that nobody can be asked who had arrived"
            );
        }
        write!(f, "{} had arrived", enumerate(arrived))?;
        for (rank, place) in elsewhere {
            write!(f, ", rank {rank} is at {place}")?;
        }
        if !missing.is_empty() {
            write!(f, ", {} had not", enumerate(missing))?;
        }
        Ok(())
    }
}

/// `rank 3`, `ranks 0, 1 and 3`.
fn enumerate(ranks: &[Rank]) -> String {
    match ranks {
        [] => "no rank".to_owned(),
        [rank] => format!("rank {rank}"),
        [first @ .., last] => {
            let first: Vec<String> = first.iter().map(ToString::to_string).collect();
            format!("ranks {} and {last}", first.join(", "))
        }
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
        // What has no place among the ranks has no timeout either.
        _ if !timeout.is_zero() && elapsed >= timeout => ErrorKind::Timeout,
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
