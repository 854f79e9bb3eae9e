//! The coordinator of a run: membership, ranks, generations, stage schedule, checkpoint commit, metrics, WER table.
//!
//! Owns every decision about a run that is not part of a training step. Never on the per-step path, and never reaches
//! libtorch.
//!
//! Reading order: [`schedule`] (what is to be done, as a list), [`placement`] (which rank owns which bank), [`state`] (the
//! pure machine `apply(now, event) -> effects`), [`journal`] (what the next coordinator has to know), [`corpus`] (what there
//! is to train on), `evaluation` and `metrics` (what it writes down), [`server`] (its tonic and timer shell), [`clock`] (the time
//! of day), [`watching`] (what people and machines are shown of it). [`seeded`] is for tests of the tests.

pub mod clock;
pub mod corpus;
mod evaluation;
pub mod journal;
mod metrics;
pub mod placement;
pub mod schedule;
pub mod seeded;
pub mod server;
pub mod state;
pub mod watching;
