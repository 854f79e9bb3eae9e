//! How often a process was started again, and how long to wait before the next time.

use std::time::Duration;

use tokio::time::Instant;

/// The longest pause.
const LONGEST: Duration = Duration::from_mins(1);

/// The restarts of one process.
#[derive(Debug)]
pub(crate) struct Restarts {
    /// Restarts count for this long.
    window: Duration,
    /// The pause after the first end; it doubles from one to the next.
    backoff: Duration,
    recent: Vec<Instant>,
}

impl Restarts {
    pub(crate) fn new(window: Duration, backoff: Duration) -> Self {
        Self {
            window,
            backoff,
            recent: Vec::new(),
        }
    }

    /// The process ended once more: how often it has within the window, and the pause before it is started again.
    pub(crate) fn note(&mut self, now: Instant) -> (usize, Duration) {
        self.recent
            .retain(|earlier| now.duration_since(*earlier) < self.window);
        self.recent.push(now);
        let doublings = u32::try_from(self.recent.len() - 1).unwrap_or(u32::MAX).min(16);
        let pause = self.backoff.saturating_mul(1 << doublings).min(LONGEST);
        (self.recent.len(), pause)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_until_the_window_has_passed() {
        let begin = Instant::now();
        let at = |seconds| begin + Duration::from_secs(seconds);
        let mut restarts = Restarts::new(Duration::from_secs(100), Duration::from_secs(1));
        let noted: Vec<(usize, u64)> = [0, 1, 2, 99, 100, 1000]
            .map(|seconds| {
                let (count, pause) = restarts.note(at(seconds));
                (count, pause.as_secs())
            })
            .into();
        assert_eq!(noted, [(1, 1), (2, 2), (3, 4), (4, 8), (4, 8), (1, 1)]);
        for _ in 0..100 {
            restarts.note(at(1001));
        }
        assert_eq!(restarts.note(at(1001)).1, LONGEST);
    }
}
