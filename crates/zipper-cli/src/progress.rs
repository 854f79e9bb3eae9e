//! How far something long has come: a bar on a terminal, a line in the log now and then elsewhere.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

/// Between two lines.
const BETWEEN_LINES: Duration = Duration::from_secs(10);

/// The progress of something with a known end. The bar is gone when this is dropped.
#[derive(Debug)]
pub struct Progress {
    what: &'static str,
    total: usize,
    bar: ProgressBar,
    last_line: Mutex<Instant>,
}

impl Progress {
    /// Nothing is done yet of `total`; `what` begins a sentence: `Checking audio`.
    #[must_use]
    pub fn new(what: &'static str, total: usize) -> Self {
        let style = ProgressStyle::with_template("{msg} {bar:30} {pos}/{len} {eta}")
            .unwrap_or_else(|_| ProgressStyle::default_bar());
        let bar = ProgressBar::new(total as u64)
            .with_style(style)
            .with_message(what);
        Self {
            what,
            total,
            bar,
            last_line: Mutex::new(Instant::now()),
        }
    }

    /// So much is done by now.
    pub fn at(&self, done: usize) {
        self.bar.set_position(done as u64);
        if !self.bar.is_hidden() {
            return;
        }
        let mut last_line = self.last_line.lock().unwrap_or_else(PoisonError::into_inner);
        if last_line.elapsed() >= BETWEEN_LINES {
            *last_line = Instant::now();
            tracing::info!("{}: {done} of {}", self.what, self.total);
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
