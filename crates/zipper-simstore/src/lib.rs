//! An object store in memory that fails where a test wants it to.
//!
//! Owns [`FaultyStore`]: one client's view of a store that several clients may share, with [`Faults`] before and after each
//! request's effect: a request can be lost on the way there, lost on the way back, wait, or never return. It decides nothing by
//! itself and reads no clock but tokio's, so a test with a seed and a paused clock sees the same run each time.
//!
//! Only tests use it.
//!
//! Reading order: [`store`], [`faults`].

pub mod faults;
pub mod store;

pub use faults::{Crash, Faults, Gate, Moment, NoFaults, RandomFaults, Switch};
pub use store::{Backing, FaultyStore, OpenUpload, Request, RequestKind};
