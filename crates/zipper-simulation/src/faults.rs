//! What goes wrong in a run: decided by its seed.

use std::time::Duration;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Something that goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// A worker process is killed.
    KillWorker {
        /// Its node.
        node: u32,
    },
    /// The agent of a node is killed, and its worker with it.
    KillAgent {
        /// The node.
        node: u32,
    },
    /// The coordinator is killed.
    KillCoordinator,
    /// A worker stands still for a while, then goes on as if nothing had been.
    SuspendWorker {
        /// Its node.
        node: u32,
        /// For how long.
        lasting: Duration,
    },
    /// The coordinator reaches nobody and nobody reaches it for a while; what was under way arrives then.
    SuspendCoordinator {
        /// For how long.
        lasting: Duration,
    },
    /// A worker's way to the coordinator is cut for a while, out, back or both.
    CutWorker {
        /// Its node.
        node: u32,
        /// What it says is lost.
        out: bool,
        /// What it is told is lost.
        back: bool,
        /// For how long.
        lasting: Duration,
    },
    /// The coordinator does not reach the store for a while, all others do.
    CutCoordinator {
        /// For how long.
        lasting: Duration,
    },
    /// A worker does not reach the store for a while.
    CutStore {
        /// Its node.
        node: u32,
        /// For how long.
        lasting: Duration,
    },
    /// The store does not answer anybody for a while.
    StoreAway {
        /// For how long.
        lasting: Duration,
    },
    /// Somebody launches the same run a second time.
    SecondLaunch,
    /// The time of day jumps.
    ClockStep {
        /// By how many seconds.
        seconds: i64,
    },
    /// Somebody asks the run to stop.
    Stop,
}

impl Fault {
    /// What kind it is, for summaries.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::KillWorker { .. } => "worker killed",
            Self::KillAgent { .. } => "agent killed",
            Self::KillCoordinator => "coordinator killed",
            Self::SuspendWorker { .. } => "worker suspended",
            Self::SuspendCoordinator { .. } => "coordinator suspended",
            Self::CutWorker {
                out: true,
                back: true,
                ..
            } => "worker cut off from the coordinator",
            Self::CutWorker { .. } => "worker cut off in one direction",
            Self::CutCoordinator { .. } => "coordinator cut off from the store",
            Self::CutStore { .. } => "worker cut off from the store",
            Self::StoreAway { .. } => "store away",
            Self::SecondLaunch => "second launch",
            Self::ClockStep { .. } => "clock step",
            Self::Stop => "stop requested",
        }
    }
}

/// A fault and when it happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Planned {
    /// Since the start.
    pub at: Duration,
    /// What.
    pub fault: Fault,
}

/// The faults of a run, in their order.
#[must_use]
pub fn plan(seed: u64, nodes: u32) -> Vec<Planned> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let count = rng.random_range(0..8);
    let mut plan = Vec::new();
    for _ in 0..count {
        let at = Duration::from_millis(rng.random_range(500..40_000));
        let lasting = Duration::from_millis(rng.random_range(500..40_000));
        let node = rng.random_range(0..nodes);
        let fault = one(&mut rng, node, lasting);
        plan.push(Planned { at, fault });
        let alone = matches!(
            fault,
            Fault::SuspendCoordinator { .. } | Fault::CutCoordinator { .. }
        );
        // That is when a second one may believe that the first one is gone.
        if alone && rng.random_bool(0.5) {
            let at = at + Duration::from_millis(rng.random_range(0..5000));
            let fault = Fault::SecondLaunch;
            plan.push(Planned { at, fault });
        }
    }
    plan.sort_by_key(|planned| planned.at);
    plan
}

fn one(rng: &mut ChaCha8Rng, node: u32, lasting: Duration) -> Fault {
    match rng.random_range(0..40) {
        0..8 => Fault::KillWorker { node },
        8..11 => Fault::KillAgent { node },
        11..17 => Fault::KillCoordinator,
        17..20 => Fault::SuspendWorker { node, lasting },
        20..23 => Fault::SuspendCoordinator { lasting },
        23..27 => {
            let which = rng.random_range(0..3);
            let (out, back) = (which != 1, which != 0);
            Fault::CutWorker {
                node,
                out,
                back,
                lasting,
            }
        }
        27..30 => Fault::CutCoordinator { lasting },
        30..32 => Fault::CutStore { node, lasting },
        32..36 => Fault::StoreAway { lasting },
        36 => Fault::SecondLaunch,
        37 | 38 => Fault::ClockStep {
            seconds: rng.random_range(-7200..7200),
        },
        _ => Fault::Stop,
    }
}
