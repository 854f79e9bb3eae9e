//! Bugs that the simulation must find. They exist only in builds with the feature `seeded-bugs`, which nothing but the tests of
//! `zipper-simulation` enables; in any other build `is_planted` is the constant `false`.

/// A bug of which it is known that it does harm.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bug {
    /// A manifest is published as soon as one rank has reported its parts.
    EarlyManifest,
    /// A coordinator that takes over forgets which numbers of generations were reserved before it.
    ForgottenNumbers,
    /// What is decided is written without a look at the lease.
    UncheckedLease,
}

impl Bug {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::EarlyManifest, Self::ForgottenNumbers, Self::UncheckedLease];
}

#[cfg(feature = "seeded-bugs")]
mod planted {
    use std::cell::Cell;

    use super::Bug;

    thread_local! {
        static PLANTED: Cell<Option<Bug>> = const { Cell::new(None) };
    }

    /// From now on coordinators of this thread have this bug, or none.
    pub fn plant(bug: Option<Bug>) {
        PLANTED.set(bug);
    }

    pub(crate) fn is_planted(bug: Bug) -> bool {
        PLANTED.get() == Some(bug)
    }
}

#[cfg(feature = "seeded-bugs")]
pub(crate) use planted::is_planted;
#[cfg(feature = "seeded-bugs")]
pub use planted::plant;

/// Whether this build has the bug: never.
#[cfg(not(feature = "seeded-bugs"))]
pub(crate) const fn is_planted(_bug: Bug) -> bool {
    false
}
