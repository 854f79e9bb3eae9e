//! Process groups: how the ranks of one generation sum, broadcast and gather tensors.
//!
//! Owns safe types over c10d, libtorch's own engine for collective communication ([`zipper_collectives_sys`]), and the
//! classification of its failures. Never holds training policy, and writes no collective of its own.
//!
//! A [`Store`] is where the ranks of a run find each other; a [`ProcessGroup`] is the communicator of exactly one
//! generation. After its first error a group is dead: build a new one under a new [`Store::prefix`].
//!
//! Reading order: [`store`], [`group`], [`gradients`] (sums while backward runs), [`error`], [`recorder`] and
//! [`roll_call`] (who was where when a collective failed), [`memory`], `ffi` (the only unsafe code).

pub mod error;
mod ffi;
pub mod gradients;
pub mod group;
pub mod memory;
pub mod recorder;
pub mod roll_call;
pub mod store;

pub use error::{CollectiveError, ErrorKind};
pub use gradients::{BucketPlan, BucketSpec, GradientReducer, ReduceReport};
pub use group::{AbortHandle, Backend, GroupOptions, ProcessGroup};
pub use recorder::{FlightRecord, FlightRecorder};
pub use roll_call::RollCall;
pub use store::Store;
