//! What the parts of a simulation share.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::{Duration, SystemTime};

use tokio::task::spawn_local;
use tokio::time::{Instant, sleep};
use zipper_checkpoint::RunStore;
use zipper_config::RunConfig;
use zipper_coordinator::clock::Clock;
use zipper_simstore::{Backing, FaultyStore, NoFaults, RandomFaults};
use zipper_types::{Stage, Step};

use crate::fabric::Fabric;
use crate::model::{ALIGN_STEPS, Partial};
use crate::network::{Link, Listening};
use crate::store::{OnTheWay, Pause, StoreFaults};
use crate::truth::Truth;

/// Midday of a day in 2026.
const BEGIN: Duration = Duration::from_secs(1_780_000_000);

/// Everything that the parts of a simulation share.
pub(crate) struct World {
    pub(crate) config: RunConfig,
    pub(crate) nodes: u32,
    pub(crate) fabric: Fabric,
    pub(crate) listening: Listening,
    pub(crate) truth: Truth,
    pub(crate) store_away: Arc<AtomicBool>,
    /// How far the time of day has jumped, in seconds.
    pub(crate) clock_step: Arc<AtomicI64>,
    pub(crate) seed: u64,
    begun: Instant,
    backing: Arc<Backing>,
    /// How likely a message or a request is lost.
    loss: f64,
    numbers: Cell<u64>,
    models: RefCell<Vec<Partial>>,
}

/// A process's ways to the others.
pub(crate) struct Ways {
    pub(crate) link: Link,
    pub(crate) store: RunStore,
    pub(crate) pause: Pause,
    /// The way to the store is cut.
    pub(crate) cut: Arc<AtomicBool>,
}

/// How many nodes the run of a seed has.
#[must_use]
pub(crate) fn nodes(seed: u64) -> u32 {
    2 + (seed % 3) as u32
}

impl World {
    pub(crate) fn new(seed: u64, told: bool) -> Rc<Self> {
        Rc::new(Self {
            config: config(),
            nodes: nodes(seed),
            fabric: Fabric::default(),
            listening: Listening::default(),
            truth: Truth::new(told),
            store_away: Arc::default(),
            clock_step: Arc::default(),
            seed,
            begun: Instant::now(),
            backing: Backing::new(),
            // One run in three has a good network and store.
            loss: if seed.is_multiple_of(3) { 0.0 } else { 0.01 },
            numbers: Cell::new(0),
            models: RefCell::new(vec![Partial::initial()]),
        })
    }

    /// A number that nobody had before: higher than all.
    pub(crate) fn next_number(&self) -> u64 {
        self.numbers.set(self.numbers.get() + 1);
        self.numbers.get()
    }

    /// The time of day.
    pub(crate) fn clock(&self) -> Clock {
        let (begun, step) = (self.begun, Arc::clone(&self.clock_step));
        Clock::new(move || {
            let seconds = BEGIN.as_secs() as i64 + step.load(Ordering::Relaxed);
            SystemTime::UNIX_EPOCH + Duration::from_secs(seconds.unsigned_abs()) + begun.elapsed()
        })
    }

    /// The ways of a process that begins.
    pub(crate) fn process(&self, number: u64) -> Ways {
        let (pause, cut) = (Pause::new(), Arc::<AtomicBool>::default());
        let store = self.store(number, Arc::clone(&cut), pause.clone());
        let seed = self.seed.rotate_left(32) ^ number;
        let listening = self.listening.clone();
        Ways {
            link: Link::new(listening, store.clone(), pause.clone(), seed, self.loss),
            store,
            pause,
            cut,
        }
    }

    /// One process's view of the run's store.
    pub(crate) fn store(&self, process: u64, cut: Arc<AtomicBool>, pause: Pause) -> RunStore {
        let delay = Duration::from_millis(1)..Duration::from_millis(30);
        let seed = self.seed.rotate_left(16) ^ process;
        let faults = StoreFaults {
            process,
            truth: self.truth.clone(),
            random: RandomFaults::new(seed, self.loss, self.loss, delay),
            away: Arc::clone(&self.store_away),
            cut,
            pause,
        };
        let store = FaultyStore::new(Arc::clone(&self.backing), Arc::new(faults));
        RunStore::over(Arc::new(OnTheWay(Arc::new(store))), "memory://run")
    }

    /// The store without faults.
    pub(crate) fn clean_store(&self) -> RunStore {
        let store = FaultyStore::new(Arc::clone(&self.backing), Arc::new(NoFaults));
        RunStore::over(Arc::new(store), "memory://run")
    }

    /// What the state after a step must be.
    pub(crate) fn model(&self, step: Step) -> Partial {
        let mut models = self.models.borrow_mut();
        while models.len() <= step.0 as usize {
            let next = models[models.len() - 1].next();
            models.push(next);
        }
        models[step.0 as usize].clone()
    }

    /// Nothing is lost by chance.
    pub(crate) fn is_peaceful(&self) -> bool {
        self.loss == 0.0
    }

    pub(crate) fn last_step(&self) -> Step {
        let training = &self.config.training;
        Step(training.align.steps + training.zipper.steps)
    }
}

pub(crate) fn stage_of(step: Step) -> Stage {
    if step.0 <= ALIGN_STEPS {
        Stage::Align
    } else {
        Stage::Zipper
    }
}

/// Does something later: the end of a fault.
pub(crate) fn after(delay: Duration, then: impl FnOnce() + 'static) {
    spawn_local(async move {
        sleep(delay).await;
        then();
    });
}

fn config() -> RunConfig {
    let yaml = "
name: simulated
model: {encoder: {path: w}, llm: {path: q}}
data: {languages: [en, de, vi], train: [train.jsonl], validation: [validation.jsonl]}
training: {align: {steps: ALIGN_STEPS}, zipper: {steps: 26}, batch_audio_seconds: 8, log_every: 1}
checkpoint: {every_steps: 4, keep_last: 2, outage_limit: 2m}
elastic: {restarts_per_node: 6, restarts_per_run: 60, join_wait: 3s, regroup_timeout: 15s, hang_min: 25s, lease_ttl: 6s}
runtime: {heartbeat_timeout: 8s, rendezvous_timeout: 90s, collective_timeout: 20s, grace: 30s}
evaluation: {tests: [{name: t, manifest: t.jsonl}]}
";
    let yaml = yaml.replace("ALIGN_STEPS", &ALIGN_STEPS.to_string());
    zipper_config::from_str(&yaml, "simulation", &[]).expect("the simulation's configuration is valid")
}
