//! Goal: the simulation finds what it is there to find.
//! Method: three bugs that are known to do harm, in a build that has them (feature `seeded-bugs`), one at a time: each has to be
//! found within a number of seeds, as the invariant that it breaks; the same seeds find nothing without it.

use zipper_simulation::invariants::{COMPLETE, GENERATIONS, Invariant, ONE_WRITER};
use zipper_simulation::{Bug, plant, simulate};

/// Plays seeds until one breaks `invariant`, with the bug and then without it.
fn is_found(bug: Bug, invariant: Invariant, within: u64) {
    plant(Some(bug));
    let finds = |seed: &u64| {
        let outcome = simulate(*seed, false);
        outcome
            .violations
            .iter()
            .any(|violation| violation.invariant == invariant)
    };
    let found = (0..within).find(finds);
    plant(None);
    let found = found.unwrap_or_else(|| panic!("{bug:?} was not found within {within} seeds"));
    println!("{bug:?}: found by seed {found} as {}", invariant.name);
    let violations = simulate(found, false).violations;
    assert!(violations.is_empty(), "without {bug:?}: {violations:?}");
}

#[test]
fn a_manifest_that_is_published_too_early_is_found() {
    is_found(Bug::EarlyManifest, COMPLETE, 20);
}

#[test]
fn numbers_that_are_forgotten_are_found() {
    is_found(Bug::ForgottenNumbers, GENERATIONS, 20);
}

#[test]
fn a_lease_that_is_not_looked_at_is_found() {
    is_found(Bug::UncheckedLease, ONE_WRITER, 20);
}
