//! Where the time of a step goes.

use std::cell::Cell;
use std::time::{Duration, Instant};

/// Time of one rank's training thread for the parts of a step; memory of earlier states and checkpoints are told of elsewhere.
///
/// On a GPU it is the time of the host, which runs ahead: the part that waits for a result has the time of all kernels before it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct StepParts {
    /// Reading audio or encoder outputs that were kept, augmentation, log-mel.
    pub data: Duration,
    /// The encoder.
    pub encoder: Duration,
    /// Projector, LLM and loss.
    pub forward: Duration,
    /// The backward pass, with what is exchanged meanwhile.
    pub backward: Duration,
    /// Waiting for gradients behind the backward pass, and for the sums of losses and norms.
    pub exchange: Duration,
    /// Clipping and the optimizer.
    pub update: Duration,
}

/// Adds up times, also through shared references.
#[derive(Debug, Default)]
pub(crate) struct Stopwatch {
    total: Cell<Duration>,
}

impl Stopwatch {
    /// Does `work`, and adds the time that it takes.
    pub(crate) fn time<T>(&self, work: impl FnOnce() -> T) -> T {
        let started = Instant::now();
        let done = work();
        self.total.set(self.total.get() + started.elapsed());
        done
    }

    /// What was added up, which is nothing afterwards.
    pub(crate) fn take(&self) -> Duration {
        self.total.take()
    }
}
