//! The coordinator, its lease and its checkpoints under deterministic simulation: runs of a few virtual minutes with faults
//! that a seed decides, in one thread on a paused clock.
//!
//! Real: the coordinator (its gRPC services called without a network, its state, scribe, journal, lease) and everything of
//! `zipper-checkpoint`. Simulated: the store under it, the network, the processes, and what workers compute: the state after a
//! step is a hash of the state before, so that what is stored and what the run ends with can be compared with what it must be.
//!
//! Reading order: [`invariants`] (what must hold), [`faults`] (what goes wrong), [`run`] (one run), `world` (what its parts
//! share), `launch`, `node`, `worker`, `network`, `fabric`, `store`, `truth` and `checks` (what is seen).

#[cfg(not(any(tokio_unstable, doc)))]
compile_error!(
    "without `--cfg tokio_unstable` a seed would not be the same run each time: `.cargo/config.toml` sets it, and a `RUSTFLAGS` \
     of your own has to repeat it"
);

mod checks;
mod fabric;
pub mod faults;
pub mod invariants;
mod launch;
mod model;
mod network;
mod node;
pub mod run;
mod store;
mod truth;
mod worker;
mod world;

pub use run::{Outcome, simulate};
pub use truth::Violation;
#[cfg(feature = "seeded-bugs")]
pub use zipper_coordinator::seeded::{Bug, plant};
