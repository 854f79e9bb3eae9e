//! What the training thread and the tasks beside it tell each other.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, watch};
use zipper_collectives::AbortHandle;
use zipper_proto::v1;
use zipper_train::step::{StepReport, Votes};
use zipper_types::Step;

/// Shared by all threads and tasks of a worker.
pub(crate) struct Shared {
    stop_requested: AtomicBool,
    regroup_requested: AtomicBool,
    /// How the run ended, if it did.
    verdict: OnceLock<v1::Verdict>,
    /// The generation that this worker is in; 0 outside.
    generation: AtomicU64,
    /// The newest generation that is known to be over.
    over: AtomicU64,
    progress: Mutex<Progress>,
    doing: Mutex<&'static str>,
    trouble: Mutex<Option<Trouble>>,
    /// End the collectives that the training thread waits in.
    aborts: Mutex<Vec<AbortHandle>>,
    /// Which coordinator answers; another one may not know what the one before was told.
    epoch: watch::Sender<u64>,
    /// The newest checkpoint that was published.
    committed: watch::Sender<Option<Step>>,
    /// Something that the coordinator should hear of at once.
    pub(super) news: Notify,
}

/// How far the training thread is in this generation.
#[derive(Debug, Clone, Copy)]
pub(super) struct Progress {
    pub(super) step: Step,
    pub(super) since: Instant,
    pub(super) compute_seconds: f64,
    pub(super) work: f64,
    /// Reads of the store before the generation.
    pub(super) reads_before: u64,
    first: bool,
}

/// Nothing can be stored.
#[derive(Debug, Clone)]
pub(super) struct Trouble {
    pub(super) since: Instant,
    pub(super) message: String,
}

impl Shared {
    pub(super) fn new() -> Self {
        Self {
            stop_requested: AtomicBool::new(false),
            regroup_requested: AtomicBool::new(false),
            verdict: OnceLock::new(),
            generation: AtomicU64::new(0),
            over: AtomicU64::new(0),
            progress: Mutex::new(Progress {
                step: Step(0),
                since: Instant::now(),
                compute_seconds: 0.0,
                work: 0.0,
                reads_before: 0,
                first: true,
            }),
            doing: Mutex::new("starting"),
            trouble: Mutex::new(None),
            aborts: Mutex::default(),
            epoch: watch::channel(0).0,
            committed: watch::channel(None).0,
            news: Notify::new(),
        }
    }

    /// A generation begins, after `step` steps.
    pub(super) fn begin_generation(&self, generation: u64, step: Step, reads_before: u64) {
        *lock(&self.progress) = Progress {
            step,
            since: Instant::now(),
            compute_seconds: 0.0,
            work: 0.0,
            reads_before,
            first: true,
        };
        self.regroup_requested.store(false, Ordering::Relaxed);
        self.generation.store(generation, Ordering::Release);
    }

    /// This worker has left its generation.
    pub(super) fn end_generation(&self) {
        self.generation.store(0, Ordering::Release);
        lock(&self.aborts).clear();
    }

    pub(super) fn generation(&self) -> Option<u64> {
        Some(self.generation.load(Ordering::Acquire)).filter(|&generation| generation > 0)
    }

    /// The coordinator says that `generation` is over.
    pub(super) fn generation_over(&self, generation: u64) -> bool {
        self.over.fetch_max(generation, Ordering::AcqRel) < generation
    }

    /// Whether the generation that this worker is in is over.
    pub(crate) fn is_over(&self) -> bool {
        self.generation()
            .is_some_and(|generation| self.over.load(Ordering::Acquire) >= generation)
    }

    /// Only the training thread calls this, after a step: a heartbeat cannot claim progress that was not made.
    pub(crate) fn completed(&self, report: &StepReport) {
        let first = {
            let mut progress = lock(&self.progress);
            progress.step = report.step;
            progress.since = Instant::now();
            progress.compute_seconds += report.own_compute.as_secs_f64();
            progress.work += report.own_work;
            std::mem::take(&mut progress.first)
        };
        if first {
            self.news.notify_one();
        }
    }

    /// A batch is decoded; as with steps, only the thread that does it calls this.
    pub(crate) fn got_on(&self) {
        lock(&self.progress).since = Instant::now();
    }

    /// A task begins: time without a step counts from now.
    pub(crate) fn task_begins(&self, step: Step, doing: &'static str) {
        {
            let mut progress = lock(&self.progress);
            progress.step = step;
            progress.since = Instant::now();
        }
        self.set_doing(doing);
    }

    pub(super) fn progress(&self) -> Progress {
        *lock(&self.progress)
    }

    pub(crate) fn set_doing(&self, doing: &'static str) {
        *lock(&self.doing) = doing;
    }

    pub(super) fn doing(&self) -> &'static str {
        *lock(&self.doing)
    }

    pub(super) fn set_trouble(&self, message: Option<String>) {
        let mut trouble = lock(&self.trouble);
        *trouble = message.map(|message| Trouble {
            since: trouble
                .as_ref()
                .map_or_else(Instant::now, |trouble| trouble.since),
            message,
        });
    }

    pub(super) fn trouble(&self) -> Option<(Duration, String)> {
        lock(&self.trouble)
            .as_ref()
            .map(|trouble| (trouble.since.elapsed(), trouble.message.clone()))
    }

    /// The run is to stop: the coordinator says so, or a signal to this process.
    pub(crate) fn request_stop(&self) {
        self.stop_requested.store(true, Ordering::Relaxed);
    }

    pub(super) fn request_regroup(&self, requested: bool) {
        self.regroup_requested.store(requested, Ordering::Relaxed);
    }

    /// What this rank brings into the next step.
    pub(crate) fn votes(&self) -> Votes {
        Votes {
            stop: self.stop_requested(),
            regroup: self.regroup_requested.load(Ordering::Relaxed),
        }
    }

    pub(crate) fn stop_requested(&self) -> bool {
        self.stop_requested.load(Ordering::Relaxed)
    }

    /// What frees the training thread if its generation is over while it waits for others.
    pub(crate) fn abort_when_over(&self, handles: Vec<AbortHandle>) {
        *lock(&self.aborts) = handles;
    }

    pub(super) fn take_aborts(&self) -> Vec<AbortHandle> {
        std::mem::take(&mut *lock(&self.aborts))
    }

    /// The first one to say how the run ended.
    pub(super) fn set_verdict(&self, verdict: v1::Verdict) -> bool {
        self.verdict.set(verdict).is_ok()
    }

    pub(super) fn verdict(&self) -> Option<&v1::Verdict> {
        self.verdict.get()
    }

    /// An answer of a coordinator.
    pub(super) fn heard_epoch(&self, epoch: u64) {
        self.epoch.send_if_modified(|known| {
            let newer = epoch > *known;
            if newer {
                *known = epoch;
            }
            newer
        });
    }

    pub(super) fn epochs(&self) -> watch::Receiver<u64> {
        self.epoch.subscribe()
    }

    pub(super) fn heard_committed(&self, step: Option<u64>) {
        let step = step.map(Step);
        self.committed.send_if_modified(|known| {
            let newer = step > *known;
            if newer {
                *known = step;
            }
            newer
        });
    }

    pub(super) fn committed(&self) -> watch::Receiver<Option<Step>> {
        self.committed.subscribe()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
