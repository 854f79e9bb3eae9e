//! What must hold, whatever goes wrong.

/// Something that must hold in every run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Invariant {
    /// How violations name it.
    pub name: &'static str,
    /// What it says.
    pub says: &'static str,
}

/// Numbers of generations.
pub const GENERATIONS: Invariant = Invariant {
    name: "generations-never-repeat",
    says: "a generation's number is given to one membership only, also across coordinators, and the journal's numbers only grow",
};

/// The lease.
pub const ONE_WRITER: Invariant = Invariant {
    name: "one-writer",
    says: "once a coordinator has the run, no other one begins to write to it, and no entry of an older one follows its entries",
};

/// Manifests.
pub const COMPLETE: Invariant = Invariant {
    name: "complete-manifests",
    says: "whenever a manifest can be read, all parts of its checkpoint are there and every byte of them is right",
};

/// States.
pub const EXACT: Invariant = Invariant {
    name: "one-state-per-step",
    says: "whoever has the state after a step, in memory or in a checkpoint, has the one that a run in peace would have had",
};

/// Going back.
pub const COMMITTED: Invariant = Invariant {
    name: "nothing-committed-is-lost",
    says: "no generation starts from before a checkpoint that anybody was told of, and a run that is done has its last one",
};

/// Ends.
pub const ENDS: Invariant = Invariant {
    name: "every-run-ends",
    says: "every run ends within half a virtual hour: done, or for a reason that its faults and its policy give, and says it",
};

/// Metrics.
pub const METRICS: Invariant = Invariant {
    name: "one-line-per-step",
    says: "the metrics have at most one line for each step, in order, and all of them in a run in peace",
};

/// All of them.
pub const ALL: [Invariant; 7] = [GENERATIONS, ONE_WRITER, COMPLETE, EXACT, COMMITTED, ENDS, METRICS];
