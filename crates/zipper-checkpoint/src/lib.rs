//! A run's objects: where they are, how a checkpoint is written so that it is whole or not there, and how it is found
//! and checked again.
//!
//! Owns run URLs, the layout under them, the manifest format, part checksums, discovery, retention, the lease on a run, and the
//! coordinator's journal as numbered objects. Never holds tensors (parts are bytes) and does not decide when to write a checkpoint.
//!
//! Three facts that everything rests on:
//! - `CKPT-1`: a checkpoint exists if and only if its manifest does; the manifest is written last, create-if-absent.
//! - `CKPT-2`: every byte of a part that is handed out has been checked against the manifest's checksum.
//! - `CKPT-3`: no two generations ever write the same object of a checkpoint.
//!
//! Only create-if-absent and plain replacement are asked of the store, because that is all a local directory has.
//!
//! Reading order: [`layout`], [`store`] (one run's objects), [`options`], [`manifest`], [`checkpoints`], [`collection`], [`retention`],
//! [`journal`], [`lease`], [`error`]; below the store `location` (from a run URL to a client), `aws`, `upload` (large objects), `folder`,
//! `usage`; `probe` (whether a store does all this).

mod aws;
pub mod checkpoints;
pub mod collection;
pub mod error;
mod folder;
pub mod journal;
pub mod layout;
pub mod lease;
mod location;
pub mod manifest;
pub mod options;
mod probe;
pub mod retention;
pub mod store;
mod upload;
mod usage;

pub use checkpoints::{CheckpointList, CheckpointSummary, Checkpoints, LatestReadable, Leftover};
pub use collection::Collected;
pub use error::{CheckpointError, ErrorKind};
pub use journal::Journal;
pub use manifest::{FORMAT_VERSION, Manifest, PartRecord};
pub use options::{Environment, StoreOptions};
pub use probe::Probed;
pub use store::RunStore;
pub use usage::StoreUsage;

/// What every function here returns.
pub type Result<T> = std::result::Result<T, CheckpointError>;
