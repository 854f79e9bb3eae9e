//! A worker process: the protocol of `zipper-worker`, with hashes for tensors.
//!
//! `training` is its training thread, `memory` what that remembers; `beside` are the tasks beside it: heartbeats, uploads,
//! metrics.

mod beside;
mod memory;
mod training;

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::future::Future;
use std::rc::Rc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::{AbortHandle, JoinHandle, spawn_local};
use tokio::time::{Instant, sleep};
use tonic::{Code, Response, Status};
use zipper_proto::v1;
use zipper_types::{Generation, Step, WorkerId};

use crate::network::Ask;
use crate::world::{Ways, World};
use beside::{Report, Upload};
use training::Worker;

/// How long a request may take, and a long poll.
const REQUEST: Duration = Duration::from_secs(5);
const POLL: Duration = Duration::from_secs(40);
/// How long a coordinator may be away.
const COORDINATOR_AWAY: Duration = Duration::from_mins(5);
/// The pause before a request is repeated.
const PAUSE: Duration = Duration::from_millis(300);

/// How a worker process ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ended {
    /// The run has.
    Over,
    /// It gave up.
    Failed,
}

/// A running worker process.
pub(crate) struct Process {
    pub(crate) incarnation: u64,
    pub(crate) ways: Rc<Ways>,
    shared: Rc<Shared>,
    main: JoinHandle<Ended>,
    beside: Vec<AbortHandle>,
}

/// What the tasks of a process share.
struct Shared {
    world: Rc<World>,
    ways: Rc<Ways>,
    worker: WorkerId,
    node: u32,
    incarnation: u64,
    generation: Cell<Option<Generation>>,
    /// The newest generation that is known to be over.
    over: Cell<Option<Generation>>,
    stop: Cell<bool>,
    regroup: Cell<bool>,
    step: Cell<Step>,
    /// When it last got on.
    since: Cell<Instant>,
    /// The newest claim of a coordinator that has answered.
    epoch: Cell<u64>,
    given_up: Cell<bool>,
    /// Since when a part of a checkpoint could not be stored.
    trouble: Cell<Option<Instant>>,
    /// Parts that are stored and not known to be published.
    stored: RefCell<BTreeMap<Step, v1::ReportCheckpointPartsRequest>>,
    /// Lines of metrics that were sent.
    said: RefCell<VecDeque<v1::StepMetrics>>,
}

impl Process {
    pub(crate) fn start(world: &Rc<World>, node: u32, incarnation: u64) -> Self {
        let ways = Rc::new(world.process(incarnation));
        let shared = Rc::new(Shared {
            world: Rc::clone(world),
            ways: Rc::clone(&ways),
            worker: WorkerId::new(node, 0),
            node,
            incarnation,
            generation: Cell::new(None),
            over: Cell::new(None),
            stop: Cell::new(false),
            regroup: Cell::new(false),
            step: Cell::new(Step(0)),
            since: Cell::new(Instant::now()),
            epoch: Cell::new(0),
            given_up: Cell::new(false),
            trouble: Cell::new(None),
            stored: RefCell::default(),
            said: RefCell::default(),
        });
        let (uploads, to_upload) = mpsc::unbounded_channel::<Upload>();
        let (reports, to_report) = mpsc::unbounded_channel::<Report>();
        let beside = vec![
            spawn_local(Rc::clone(&shared).heartbeats()).abort_handle(),
            spawn_local(Rc::clone(&shared).uploads(to_upload)).abort_handle(),
            spawn_local(Rc::clone(&shared).reports(to_report)).abort_handle(),
        ];
        let worker = Worker::new(Rc::clone(&shared), uploads, reports);
        Self {
            incarnation,
            ways,
            shared,
            main: spawn_local(worker.run()),
            beside,
        }
    }

    /// The process is gone, whatever it was doing.
    pub(crate) fn kill(&self) {
        self.main.abort();
        self.end();
    }

    fn end(&self) {
        for task in &self.beside {
            task.abort();
        }
        self.ways.pause.end();
        self.shared.leave();
    }

    pub(crate) fn is_finished(&self) -> bool {
        self.main.is_finished()
    }

    /// How it ended: nothing if it was killed.
    pub(crate) async fn ended(mut self) -> Option<Ended> {
        let ended = (&mut self.main).await.ok();
        self.end();
        ended
    }
}

impl Shared {
    fn member(&self, generation: Option<Generation>) -> v1::MemberContext {
        v1::MemberContext {
            run: "simulated".to_owned(),
            worker_id: self.worker.0.clone(),
            incarnation: self.incarnation,
            generation: generation.map(|generation| generation.0),
        }
    }

    /// Repeats a question, made anew each time, while the coordinator is away.
    async fn insist<Q, T, F>(&self, request: impl Fn() -> Q, ask: Ask<Q, F>) -> Result<T, Status>
    where
        Q: Clone + 'static,
        T: 'static,
        F: Future<Output = Result<Response<T>, Status>> + 'static,
    {
        let since = Instant::now();
        loop {
            match self.ways.link.call(REQUEST, request(), ask).await {
                Err(status) if is_away(&status, since) => sleep(PAUSE).await,
                answer => return answer,
            }
        }
    }

    /// Whether this process has to leave its generation.
    fn is_over(&self) -> bool {
        self.given_up.get()
            || self
                .generation
                .get()
                .is_some_and(|generation| self.over.get() >= Some(generation))
    }

    fn set_over(&self, generation: Generation) {
        self.over.set(self.over.get().max(Some(generation)));
        self.world.fabric.leave(generation);
    }

    /// It takes part no more: whoever waits for it is told.
    fn leave(&self) {
        if let Some(generation) = self.generation.take() {
            self.world.fabric.leave(generation);
        }
    }
}

/// Whether an answer means that the coordinator may come back: it has not been away for long.
fn is_away(status: &Status, since: Instant) -> bool {
    status.code() == Code::Unavailable && since.elapsed() < COORDINATOR_AWAY
}
