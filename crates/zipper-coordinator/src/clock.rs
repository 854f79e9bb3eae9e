//! The time of day, for the journal and for people. Nothing is decided by it but how much of a budget is left after a crash.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

/// Where the time of day comes from.
#[derive(Clone)]
pub struct Clock(Arc<dyn Fn() -> SystemTime + Send + Sync>);

impl Clock {
    /// The machine's clock.
    #[must_use]
    pub fn system() -> Self {
        Self::new(SystemTime::now)
    }

    /// Any other.
    #[must_use]
    pub fn new(now: impl Fn() -> SystemTime + Send + Sync + 'static) -> Self {
        Self(Arc::new(now))
    }

    /// Now, in RFC 3339.
    pub fn text(&self) -> String {
        humantime::format_rfc3339_seconds((self.0)()).to_string()
    }

    /// How long ago something happened: nothing if clocks disagree.
    pub(crate) fn since(&self, at: &str) -> Duration {
        let at = humantime::parse_rfc3339(at).ok();
        at.and_then(|at| (self.0)().duration_since(at).ok())
            .unwrap_or_default()
    }
}

impl fmt::Debug for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Clock({})", self.text())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: times are read by people and by the next coordinator, whose clock may be behind. Method: a clock that stands.
    #[test]
    fn times_are_written_and_measured() {
        let clock = Clock::new(|| SystemTime::UNIX_EPOCH + Duration::from_millis(90_061_500));
        assert_eq!(clock.text(), "1970-01-02T01:01:01Z");
        assert_eq!(format!("{clock:?}"), "Clock(1970-01-02T01:01:01Z)");
        assert_eq!(clock.since("1970-01-02T01:00:00Z"), Duration::from_millis(61_500));
        for no_time in ["1970-01-02T01:02:00Z", "yesterday"] {
            assert_eq!(clock.since(no_time), Duration::ZERO, "{no_time}");
        }
    }
}
