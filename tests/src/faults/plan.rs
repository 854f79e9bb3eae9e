//! Which fault, when and for how long: a pure function of the campaign's seed and the round's number.

use std::fmt;
use std::time::Duration;

use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

/// Clocks jump up to this far: object stores refuse requests that are signed a quarter of an hour beside their own time.
const MOST_CLOCK_STEP: i64 = 800;

/// What goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// SIGKILL to a worker.
    WorkerKilled,
    /// SIGSTOP to a worker, SIGCONT later.
    WorkerStopped,
    /// SIGKILL to a node's agent.
    AgentKilled,
    /// SIGSTOP to a node's agent, SIGCONT later.
    AgentStopped,
    /// SIGKILL to the coordinator.
    CoordinatorKilled,
    /// SIGSTOP to the coordinator, SIGCONT later.
    CoordinatorStopped,
    /// SIGKILL to zipper-launch, and the same command again.
    LauncherKilled,
    /// SIGTERM to zipper-launch, and the same command again.
    Preempted,
    /// A node is cut off from the network, and connected again.
    Partition,
    /// SIGKILL to the S3 server, started again later.
    StoreKilled,
    /// The store refuses connections for a while.
    StoreRefuses,
    /// The store is slow for a while.
    StoreSlow,
    /// The store answers 500 for a while.
    StoreAnswers500,
    /// The store answers 503 for a while.
    StoreAnswers503,
    /// Requests are cut in the middle of their bodies for a while.
    StoreCutsRequests,
    /// Answers are cut in the middle of their bodies for a while.
    StoreCutsAnswers,
    /// The store does what it is asked and its answers are lost, for a while.
    StoreLosesAnswers,
    /// The store does not answer for a while.
    StoreHangs,
    /// The disk that the run is kept on is full for a while.
    DiskFull,
    /// The wall clock of all processes jumps, and back.
    ClockStep,
}

impl Kind {
    /// All kinds.
    pub const ALL: [Self; 20] = [
        Self::WorkerKilled,
        Self::WorkerStopped,
        Self::AgentKilled,
        Self::AgentStopped,
        Self::CoordinatorKilled,
        Self::CoordinatorStopped,
        Self::LauncherKilled,
        Self::Preempted,
        Self::Partition,
        Self::StoreKilled,
        Self::StoreRefuses,
        Self::StoreSlow,
        Self::StoreAnswers500,
        Self::StoreAnswers503,
        Self::StoreCutsRequests,
        Self::StoreCutsAnswers,
        Self::StoreLosesAnswers,
        Self::StoreHangs,
        Self::DiskFull,
        Self::ClockStep,
    ];

    /// Whether zipper-launch itself ends and has to be called again.
    pub fn ends_the_launch(self) -> bool {
        matches!(self, Self::LauncherKilled | Self::Preempted)
    }

    /// The kind of this name, as [`fmt::Display`] writes it.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.to_string() == name)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match self {
            Self::WorkerKilled => "worker-killed",
            Self::WorkerStopped => "worker-stopped",
            Self::AgentKilled => "agent-killed",
            Self::AgentStopped => "agent-stopped",
            Self::CoordinatorKilled => "coordinator-killed",
            Self::CoordinatorStopped => "coordinator-stopped",
            Self::LauncherKilled => "launcher-killed",
            Self::Preempted => "preempted",
            Self::Partition => "partition",
            Self::StoreKilled => "store-killed",
            Self::StoreRefuses => "store-refuses",
            Self::StoreSlow => "store-slow",
            Self::StoreAnswers500 => "store-answers-500",
            Self::StoreAnswers503 => "store-answers-503",
            Self::StoreCutsRequests => "store-cuts-requests",
            Self::StoreCutsAnswers => "store-cuts-answers",
            Self::StoreLosesAnswers => "store-loses-answers",
            Self::StoreHangs => "store-hangs",
            Self::DiskFull => "disk-full",
            Self::ClockStep => "clock-step",
        };
        formatter.pad(name)
    }
}

/// The fault of one round.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// From 0.
    pub round: u64,
    /// What goes wrong.
    pub kind: Kind,
    /// It does once this step is completed,
    pub after_step: u64,
    /// this much later,
    pub delay: Duration,
    /// and for so long, where it passes over.
    pub lasts: Duration,
    /// Node whose process or network it is.
    pub node: u32,
    /// Seconds by which clocks jump.
    pub clock_step: i64,
}

impl Plan {
    /// The fault of round `round`. Every kind of `kinds` comes once in as many rounds.
    ///
    /// # Panics
    /// If `kinds` is empty.
    pub fn draw(seed: u64, round: u64, kinds: &[Kind], nodes: u32, steps: u64) -> Self {
        let (pass, place) = (round / kinds.len() as u64, round % kinds.len() as u64);
        let mut deck = kinds.to_vec();
        let mut shuffling = ChaCha8Rng::seed_from_u64(seed);
        shuffling.set_stream(1 + 2 * pass);
        deck.shuffle(&mut shuffling);
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        random.set_stream(2 + 2 * round);
        let kind = deck[place as usize];
        let lasts = match kind {
            // Shorter and longer than what is taken for a death.
            Kind::WorkerStopped | Kind::AgentStopped | Kind::CoordinatorStopped | Kind::Partition => {
                200..12_000
            }
            Kind::StoreKilled => 0..3_000,
            _ => 500..6_000,
        };
        let size = random.random_range(30..MOST_CLOCK_STEP);
        Self {
            round,
            kind,
            // In both stages, and early enough that something is left to do.
            after_step: random.random_range(3..steps * 17 / 20),
            delay: Duration::from_millis(random.random_range(0..400)),
            lasts: Duration::from_millis(random.random_range(lasts)),
            node: random.random_range(0..nodes),
            clock_step: if random.random_bool(0.5) { size } else { -size },
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// The same seed gives the same faults, another one others, and every kind comes once in each pass over all.
    #[test]
    fn plans_are_a_function_of_the_seed() {
        let plans = |seed| -> Vec<Plan> {
            (0..40)
                .map(|round| Plan::draw(seed, round, &Kind::ALL, 4, 100))
                .collect()
        };
        assert_eq!(plans(3), plans(3));
        assert_ne!(plans(3), plans(4));
        for pass in plans(3).chunks(Kind::ALL.len()) {
            let kinds: BTreeSet<Kind> = pass.iter().map(|plan| plan.kind).collect();
            assert_eq!(kinds.len(), Kind::ALL.len());
            assert!(
                pass.iter().any(|plan| plan.after_step > 50),
                "in the second stage"
            );
            assert!(pass.iter().all(|plan| plan.node < 4 && plan.after_step < 85));
        }
    }

    #[test]
    fn names_are_one_to_one() {
        for kind in Kind::ALL {
            assert_eq!(Kind::named(&kind.to_string()), Some(kind));
        }
        assert_eq!(Kind::named("bad-weather"), None);
    }
}
