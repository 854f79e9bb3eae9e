//! What has been seen of a run, compared with what must be.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::time::Instant;
use zipper_simstore::{Request, RequestKind};
use zipper_types::{Generation, Rank, Step, WorkerId};

use crate::invariants::{COMMITTED, GENERATIONS, Invariant, ONE_WRITER};

/// An invariant that did not hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// Which one.
    pub invariant: Invariant,
    /// What was seen, and when.
    pub seen: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.invariant.name, self.seen)
    }
}

/// All that is seen of a run.
#[derive(Clone)]
pub(crate) struct Truth(Arc<Mutex<Seen>>);

struct Seen {
    begun: Instant,
    /// Of everything that happened and when.
    trace: blake3::Hasher,
    /// Whether everything that happens is printed, too.
    told: bool,
    /// Who had which rank in which generation.
    members: BTreeMap<Generation, BTreeMap<Rank, (WorkerId, u64)>>,
    /// Checkpoints that were told to be published.
    committed: BTreeSet<Step>,
    /// The newest of them when a generation was formed.
    formed: BTreeMap<Generation, Step>,
    /// Claims of coordinators, by process.
    epochs: BTreeMap<u64, u64>,
    /// The newest claim that was granted.
    newest_epoch: u64,
    /// Coordinators that were stopped in the middle of what they did.
    suspended: BTreeSet<u64>,
    /// Who wrote each entry of the journal: the claim.
    entries: BTreeMap<String, u64>,
    violations: Vec<Violation>,
}

impl Truth {
    pub(crate) fn new(told: bool) -> Self {
        Self(Arc::new(Mutex::new(Seen {
            begun: Instant::now(),
            trace: blake3::Hasher::new(),
            told,
            members: BTreeMap::new(),
            committed: BTreeSet::new(),
            formed: BTreeMap::new(),
            epochs: BTreeMap::new(),
            newest_epoch: 0,
            suspended: BTreeSet::new(),
            entries: BTreeMap::new(),
            violations: Vec::new(),
        })))
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Something happened.
    pub(crate) fn happened(&self, what: &str) {
        self.seen().happened(what);
    }

    pub(crate) fn violated(&self, invariant: Invariant, seen: impl AsRef<str>) {
        self.seen().violated(invariant, seen.as_ref());
    }

    /// The hash of all that happened, and what was violated.
    pub(crate) fn outcome(&self) -> (String, Vec<Violation>) {
        let seen = self.seen();
        (
            seen.trace.finalize().to_hex().to_string(),
            seen.violations.clone(),
        )
    }

    /// A process was given a rank.
    pub(crate) fn seated(&self, generation: Generation, rank: Rank, worker: &WorkerId, incarnation: u64) {
        let mut seen = self.seen();
        seen.happened(&format!(
            "{worker} ({incarnation}) is rank {rank} of generation {generation}"
        ));
        let mine = (worker.clone(), incarnation);
        let members = seen.members.entry(generation).or_default();
        if let Some(other) = members.insert(rank, mine.clone()).filter(|other| *other != mine) {
            let both = format!("rank {rank} of generation {generation} was {other:?} and is {mine:?}");
            seen.violated(GENERATIONS, &both);
        }
    }

    /// A checkpoint was told to be published.
    pub(crate) fn committed(&self, step: Step) {
        self.seen().committed.insert(step);
    }

    /// A generation was formed.
    pub(crate) fn formed(&self, generation: Generation) {
        let mut seen = self.seen();
        let newest = seen.committed.last().copied().unwrap_or_default();
        seen.formed.entry(generation).or_insert(newest);
    }

    /// A generation of the coordinator with claim `epoch` starts from `step`.
    pub(crate) fn starts(&self, epoch: u64, generation: Generation, step: Step) {
        let mut seen = self.seen();
        if epoch < seen.newest_epoch {
            // Of one that was cut off and has not noticed: it can publish nothing, and all leave it when it does.
            return;
        }
        let newest = seen.formed.get(&generation).copied().unwrap_or_default();
        if step < newest {
            let how = format!("generation {generation} starts from step {step}, step {newest} was published");
            seen.violated(COMMITTED, &how);
        }
    }

    /// Whether the coordinator with claim `epoch` still has the run.
    pub(crate) fn has_run(&self, epoch: u64) -> bool {
        epoch >= self.seen().newest_epoch
    }

    /// A coordinator's process has the claim `epoch`.
    pub(crate) fn claimed(&self, process: u64, epoch: u64) {
        let mut seen = self.seen();
        seen.happened(&format!("coordinator {process} has claim {epoch}"));
        seen.epochs.insert(process, epoch);
        seen.newest_epoch = seen.newest_epoch.max(epoch);
    }

    /// A process is stopped in the middle of what it does, and will go on.
    pub(crate) fn suspended(&self, process: u64) {
        self.seen().suspended.insert(process);
    }

    /// A process begins a request to the store.
    pub(crate) fn asks(&self, process: u64, request: &Request) {
        if !is_write(request.kind) || request.path.starts_with("lease/") {
            return;
        }
        let mut seen = self.seen();
        let Some(&epoch) = seen.epochs.get(&process) else {
            return;
        };
        // Who was stopped between its look at the lease and the request cannot know: what protects the run then is that
        // entries and manifests are created, and never replaced.
        if epoch < seen.newest_epoch && !seen.suspended.contains(&process) {
            let newest = seen.newest_epoch;
            let what = format!("{:?} of `{}`", request.kind, request.path);
            seen.violated(
                ONE_WRITER,
                &format!("{what} by claim {epoch} after claim {newest} was granted"),
            );
        }
    }

    /// A request had its effect, if it could have one.
    pub(crate) fn had_effect(&self, process: u64, request: &Request) {
        let mut seen = self.seen();
        if is_write(request.kind) {
            seen.happened(&format!("{process}: {:?} {}", request.kind, request.path));
        }
        if request.kind != RequestKind::Create || !request.path.starts_with("journal/") {
            return;
        }
        let Some(&epoch) = seen.epochs.get(&process) else {
            return;
        };
        if seen.entries.contains_key(&request.path) {
            return;
        }
        let before = seen.entries.values().copied().max().unwrap_or_default();
        if before > epoch {
            let entry = format!(
                "`{}` was written by claim {epoch} after an entry of claim {before}",
                request.path
            );
            seen.violated(ONE_WRITER, &entry);
        }
        seen.entries.insert(request.path.clone(), epoch);
    }
}

impl Seen {
    fn happened(&mut self, what: &str) {
        let line = format!("{:10.3} {what}\n", self.begun.elapsed().as_secs_f64());
        self.trace.update(line.as_bytes());
        if self.told {
            print!("{line}");
        }
    }

    fn violated(&mut self, invariant: Invariant, seen: &str) {
        let at = self.begun.elapsed().as_secs_f64();
        self.happened(&format!("VIOLATED {}: {seen}", invariant.name));
        self.violations.push(Violation {
            invariant,
            seen: format!("{seen} (at {at:.3} s)"),
        });
    }
}

fn is_write(kind: RequestKind) -> bool {
    !matches!(kind, RequestKind::Get | RequestKind::Head | RequestKind::List)
}
