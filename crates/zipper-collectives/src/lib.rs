//! Process groups: how the ranks of one generation sum, broadcast and gather tensors.
//!
//! Owns safe types over c10d, libtorch's own engine for collective communication ([`zipper_collectives_sys`]), and the
//! classification of its failures. Never holds training policy, and writes no collective of its own.
//!
//! A [`Store`] is where the ranks of a run find each other; a [`ProcessGroup`] is the communicator of exactly one
//! generation. After its first error a group is dead: build a new one under a new [`Store::prefix`].
//!
//! Reading order: [`store`], [`group`], [`error`], `ffi` (the only unsafe code).

pub mod error;
mod ffi;
pub mod group;
pub mod store;

pub use error::{CollectiveError, ErrorKind};
pub use group::{AbortHandle, ProcessGroup};
pub use store::Store;
