//! The training step and everything one rank needs for it: encoder frames, optimizer, trainable state as bytes,
//! decoding of manifests.
//!
//! Owns what happens to tensors between two checkpoints. Never holds async code, gRPC or object storage, and does
//! not decide which utterances are in a batch ([`zipper_plan`]) or when to stop, validate and save (the coordinator).
//!
//! Reading order: [`replica`] (one copy of the model), [`team`] (the other ranks), [`session`] (what a rank holds), `regroup` (how
//! it changes teams), [`memory`] and `copies` (what it remembers for that), [`capture`] (checkpoints), [`step`] (one optimizer
//! step), `seeds`, `judge` and [`spike`] (whether it is made), `reduction` (which gradients are summed when), [`parts`] (where its
//! time goes), [`frames`], `reading` (what is read ahead) and `cache`, [`optimizer`], [`state`], [`evaluate`]; [`trained`] (a checkpoint's
//! result without the frozen models) and [`peft`] (the same as the world loads it), [`start`] (what others made, to begin with).

mod cache;
pub mod capture;
mod copies;
mod error;
pub mod evaluate;
pub mod frames;
mod judge;
pub mod memory;
pub mod optimizer;
pub mod parts;
pub mod peft;
mod reading;
mod reduction;
mod regroup;
pub mod replica;
mod seeds;
pub mod session;
pub mod spike;
pub mod start;
pub mod state;
pub mod step;
pub mod team;
pub mod trained;

pub use error::TrainError;
