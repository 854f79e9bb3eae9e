//! The words of Zipper: identifiers and counts that several crates speak about.
//!
//! Owns newtypes and small enums with one meaning each (see docs/ARCHITECTURE.md, "Words").
//! Never holds I/O, async code or tensors.

pub mod language;
mod text;

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use text::{Normalizer, Scoring, TextNormalization};

macro_rules! count {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

count! {
    /// Dense index of a worker inside one generation. Never an identity, never stored across generations.
    Rank(u32)
}
count! {
    /// Number of ranks in one generation.
    WorldSize(u32)
}
count! {
    /// Monotonic, durable membership version: the fencing token. Not an epoch.
    Generation(u64)
}
count! {
    /// Count of completed optimizer steps over the whole run, both stages together.
    Step(u64)
}
count! {
    /// One process lifetime of a worker slot.
    Incarnation(u64)
}

impl Step {
    /// The step after this one.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

/// A worker's launch slot, stable across restarts of its process: `node0/0`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct WorkerId(pub String);

impl WorkerId {
    /// The slot `local_rank` of node `node_rank`.
    pub fn new(node_rank: u32, local_rank: u32) -> Self {
        Self(format!("node{node_rank}/{local_rank}"))
    }
}

impl fmt::Display for WorkerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// An error that knows whether it may pass, and what to do about it: the programs' exit codes and hints come of it.
pub trait Advised: std::error::Error {
    /// Whether the same request may succeed later, when nothing is changed but the world.
    fn is_retryable(&self) -> bool;

    /// What a person can do about it, where the message does not say so itself.
    fn advice(&self) -> Option<&'static str>;
}

/// The two stages of Zipper-LoRA training.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// Stage 1: the projector and one shared LoRA.
    Align,
    /// Stage 2: the configured variant, started from stage 1.
    Zipper,
}

impl Stage {
    /// The name used in configuration, metrics and file names.
    pub fn name(self) -> &'static str {
        match self {
            Self::Align => "align",
            Self::Zipper => "zipper",
        }
    }
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// How the B matrices of an adapter are shared between languages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Variant {
    /// Plain LoRA: one A and one B for all languages.
    Shared,
    /// One A and one B for each language.
    Independent,
    /// The first `shared_rank` columns of B are shared, the others belong to the language.
    Static,
    /// Each column is the shared one or the language's own, by a straight-through gate.
    Hard,
    /// Each column is a gated mixture of the shared one and the language's own.
    Soft,
}

impl Variant {
    /// All of them.
    pub const ALL: [Self; 5] = [
        Self::Shared,
        Self::Independent,
        Self::Static,
        Self::Hard,
        Self::Soft,
    ];

    /// The name used in configuration and file names.
    pub fn name(self) -> &'static str {
        match self {
            Self::Shared => "shared",
            Self::Independent => "independent",
            Self::Static => "static",
            Self::Hard => "hard",
            Self::Soft => "soft",
        }
    }

    /// Whether a language-conditioned router decides the sharing.
    pub fn has_router(self) -> bool {
        matches!(self, Self::Hard | Self::Soft)
    }
}

impl fmt::Display for Variant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}
