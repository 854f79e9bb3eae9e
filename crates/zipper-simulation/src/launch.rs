//! One launch of the run: a coordinator's process, and zipper-launch that starts it again.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures::StreamExt;
use tokio::sync::mpsc;
use tokio::task::{JoinHandle, spawn_local};
use tokio::time::sleep;
use tonic::Request;
use zipper_checkpoint::lease::{Holder, Lease, LeaseOptions};
use zipper_cli::{ExitStatus, UserError, status_of};
use zipper_coordinator::server::{Job, Services, start};
use zipper_coordinator::state::{self, Crew};
use zipper_proto::v1;
use zipper_proto::v1::run_service_server::RunService;
use zipper_proto::v1::watch_response::Event;
use zipper_types::Generation;

use crate::store::Pause;
use crate::world::{World, after};

/// How long zipper-launch takes to start another coordinator.
const RESTART: Duration = Duration::from_millis(300);
/// The longest that it waits before it does. It would be a minute, but a real store's client tries requests again before a
/// coordinator gives up, and this one does not.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// How often it does.
const RESTARTS: u32 = 100;
/// How long a coordinator answers after its end.
const LINGER: Duration = Duration::from_secs(3);

/// How a launch ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// As its coordinator said, and why.
    Ended(ExitStatus, String),
    /// Somebody else has the run, or it cannot be.
    Refused(String),
    /// Its coordinator ended too often.
    GaveUp(String),
}

/// A launch.
pub(crate) struct Launch {
    world: Rc<World>,
    /// Where its coordinators listen.
    address: u64,
    /// The claim of its newest coordinator.
    epoch: Cell<Option<u64>>,
    process: RefCell<Option<Process>>,
    /// How the run ended and why, as whoever watches it was told.
    heard: RefCell<Option<(ExitStatus, String)>>,
    pub(crate) verdict: RefCell<Option<Verdict>>,
}

/// A coordinator's process.
#[derive(Clone)]
struct Process {
    number: u64,
    pause: Pause,
    cut: Arc<AtomicBool>,
    stop: mpsc::Sender<state::Event>,
    killed: Arc<tokio::sync::Notify>,
}

impl Launch {
    /// Starts it.
    pub(crate) fn start(world: &Rc<World>, address: u64) -> Rc<Self> {
        let launch = Rc::new(Self {
            world: Rc::clone(world),
            address,
            epoch: Cell::new(None),
            process: RefCell::new(None),
            heard: RefCell::default(),
            verdict: RefCell::new(None),
        });
        spawn_local(Rc::clone(&launch).keep());
        launch
    }

    fn process(&self) -> Option<Process> {
        self.process.borrow().clone()
    }

    /// Its coordinator is killed.
    pub(crate) fn kill(&self) {
        if let Some(process) = self.process() {
            process.killed.notify_one();
        }
    }

    /// Its coordinator reaches nobody, or goes on.
    pub(crate) fn suspend(&self, lasting: Duration) {
        if let Some(process) = self.process() {
            self.world.truth.suspended(process.number);
            process.pause.set(true);
            after(lasting, move || process.pause.set(false));
        }
    }

    /// Its coordinator does not reach the store.
    pub(crate) fn cut(&self, lasting: Duration) {
        if let Some(process) = self.process() {
            process.cut.store(true, Ordering::Relaxed);
            after(lasting, move || process.cut.store(false, Ordering::Relaxed));
        }
    }

    pub(crate) fn request_stop(&self) {
        if let Some(process) = self.process() {
            let reason = "the simulation".to_owned();
            // A coordinator that is ending needs no request.
            let _ = process.stop.try_send(state::Event::StopRequested { reason });
        }
    }

    /// Starts one coordinator after the other, until one has ended in order.
    async fn keep(self: Rc<Self>) {
        let mut pause = RESTART;
        for _ in 0..RESTARTS {
            if let Some(verdict) = self.one().await {
                self.world
                    .truth
                    .happened(&format!("launch {} ended: {verdict:?}", self.address));
                *self.verdict.borrow_mut() = Some(verdict);
                return;
            }
            sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
        let why = format!("the coordinator ended {RESTARTS} times");
        *self.verdict.borrow_mut() = Some(Verdict::GaveUp(why));
    }

    /// Runs one coordinator; nothing if another one is to be started.
    async fn one(self: &Rc<Self>) -> Option<Verdict> {
        let number = self.world.next_number();
        let (stop, stopped) = mpsc::channel(4);
        let process = Process {
            number,
            pause: Pause::new(),
            cut: Arc::default(),
            stop,
            killed: Arc::default(),
        };
        *self.process.borrow_mut() = Some(process.clone());
        let launch = Rc::clone(self);
        let job: JoinHandle<anyhow::Result<ExitStatus>> = {
            let process = process.clone();
            spawn_local(async move { launch.coordinate(&process, stopped).await })
        };
        let abort = job.abort_handle();
        let ended = tokio::select! {
            biased;
            () = process.killed.notified() => {
                abort.abort();
                None
            }
            ended = job => ended.ok(),
        };
        // What a dead process had under way while it reached nobody never arrives.
        process.pause.end();
        self.world.listening.set(self.address, None);
        match ended {
            Some(Ok(status)) => {
                let heard = self.heard.borrow().clone();
                Some(Verdict::Ended(
                    status,
                    heard.map_or_else(String::new, |(_, reason)| reason),
                ))
            }
            Some(Err(error)) if status_of(&error) == ExitStatus::Usage => {
                Some(Verdict::Refused(format!("{error:#}")))
            }
            Some(Err(error)) => {
                self.world
                    .truth
                    .happened(&format!("coordinator {number} ended: {error:#}"));
                None
            }
            None => {
                self.world
                    .truth
                    .happened(&format!("coordinator {number} is dead"));
                // Who has heard the verdict starts no other one.
                let heard = self.heard.borrow().clone();
                heard.map(|(status, reason)| Verdict::Ended(status, reason))
            }
        }
    }

    /// As `zipper-coordinator` does.
    async fn coordinate(
        self: &Rc<Self>,
        process: &Process,
        stopped: mpsc::Receiver<state::Event>,
    ) -> anyhow::Result<ExitStatus> {
        let world = &self.world;
        let number = process.number;
        let store = world.store(number, Arc::clone(&process.cut), process.pause.clone());
        let holder = Holder {
            host: "host".to_owned(),
            pid: number as u32,
            since: world.clock().text(),
            address: self.address.to_string(),
        };
        let options = LeaseOptions {
            ttl: world.config.elastic.lease_ttl,
        };
        let supersede = self.epoch.get();
        let lease = match Lease::acquire(&store, holder, options, supersede).await? {
            Ok(lease) => lease,
            Err(refused) => return Err(UserError::new(refused.to_string()).into()),
        };
        self.epoch.set(Some(lease.epoch()));
        world.truth.claimed(number, lease.epoch());
        let job = Job {
            store,
            config: world.config.clone(),
            crew: Crew {
                min_workers: 1,
                max_workers: world.nodes,
                nodes: world.nodes,
                workers_per_node: 1,
            },
            bank_bytes: None,
            lease,
            adopt: supersede.is_some(),
            clock: world.clock(),
        };
        let running = start(job, stopped).await?;
        let open = (running.services(), process.pause.clone());
        world.listening.set(self.address, Some(open));
        spawn_local(Rc::clone(self).watch(running.services()));
        let ended = running.ended().await;
        if ended.is_ok() {
            // Agents and workers hear of the end.
            sleep(LINGER).await;
        }
        ended
    }

    /// Hears of the end, as zipper-launch does.
    async fn watch(self: Rc<Self>, services: Services) {
        let Ok(events) = services.watch(Request::new(v1::WatchRequest::default())).await else {
            return;
        };
        let mut events = events.into_inner();
        while let Some(Ok(response)) = events.next().await {
            if let Some(Event::GenerationFormed(formed)) = &response.event {
                self.world.truth.formed(Generation(formed.generation));
            }
            if let Some(Event::Verdict(verdict)) = response.event {
                let status = match verdict.outcome() {
                    v1::verdict::Outcome::Done => ExitStatus::Done,
                    v1::verdict::Outcome::Stopped => ExitStatus::Stopped,
                    v1::verdict::Outcome::Config => ExitStatus::Usage,
                    _ => ExitStatus::Failed,
                };
                *self.heard.borrow_mut() = Some((status, verdict.reason));
            }
        }
    }
}
