//! A node: its agent, which does as the coordinator says, and its worker.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::rc::Rc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::task::{JoinHandle, spawn_local};
use tokio::time::sleep;
use tonic::{Response, Status};
use zipper_proto::v1;
use zipper_proto::v1::advice::What;
use zipper_proto::v1::agent_service_server::AgentService;
use zipper_types::WorkerId;

use crate::network::{Ask, Link};
use crate::worker::{Ended, Process};
use crate::world::{World, after};

const REQUEST: Duration = Duration::from_secs(5);
const HEARTBEAT: Duration = Duration::from_millis(500);
/// How often an agent asks a coordinator that does not answer, a second apart, before it gives up.
const ATTEMPTS: u32 = 300;

/// A node with one worker.
pub(crate) struct Node {
    world: Rc<World>,
    number: u32,
    worker: Rc<RefCell<Option<Process>>>,
    agent: RefCell<Option<JoinHandle<()>>>,
    /// The run is over for this node.
    done: Rc<Cell<bool>>,
}

impl Node {
    pub(crate) fn new(world: &Rc<World>, number: u32) -> Self {
        Self {
            world: Rc::clone(world),
            number,
            worker: Rc::default(),
            agent: RefCell::new(None),
            done: Rc::new(Cell::new(false)),
        }
    }

    /// Starts the agent; one that was there is gone, with its worker. None is started where the run is over.
    pub(crate) fn start(&self) {
        self.kill();
        if self.done.get() {
            return;
        }
        let incarnation = self.world.next_number();
        let agent = Agent {
            link: self.world.process(incarnation).link,
            world: Rc::clone(&self.world),
            number: self.number,
            incarnation,
            worker: Rc::clone(&self.worker),
            done: Rc::clone(&self.done),
        };
        *self.agent.borrow_mut() = Some(spawn_local(agent.run()));
    }

    /// The agent is killed, and its worker with it.
    pub(crate) fn kill(&self) {
        if let Some(agent) = self.agent.borrow_mut().take() {
            agent.abort();
        }
        self.kill_worker();
    }

    pub(crate) fn kill_worker(&self) {
        if let Some(worker) = &*self.worker.borrow() {
            worker.kill();
        }
    }

    /// The worker stands still.
    pub(crate) fn suspend_worker(&self, lasting: Duration) {
        if let Some(worker) = &*self.worker.borrow() {
            let pause = worker.ways.pause.clone();
            pause.set(true);
            after(lasting, move || pause.set(false));
        }
    }

    /// The worker cannot reach the coordinator, or not hear it.
    pub(crate) fn cut_worker(&self, out: bool, back: bool, lasting: Duration) {
        if let Some(worker) = &*self.worker.borrow() {
            let link = worker.ways.link.clone();
            link.cut(out, back);
            after(lasting, move || link.cut(false, false));
        }
    }

    /// The worker does not reach the store.
    pub(crate) fn cut_store(&self, lasting: Duration) {
        if let Some(worker) = &*self.worker.borrow() {
            let cut = worker.ways.cut.clone();
            cut.store(true, Ordering::Relaxed);
            after(lasting, move || cut.store(false, Ordering::Relaxed));
        }
    }
}

struct Agent {
    world: Rc<World>,
    number: u32,
    incarnation: u64,
    link: Link,
    worker: Rc<RefCell<Option<Process>>>,
    done: Rc<Cell<bool>>,
}

impl Agent {
    fn context(&self) -> v1::AgentContext {
        v1::AgentContext {
            run: "simulated".to_owned(),
            node_rank: self.number,
            incarnation: self.incarnation,
        }
    }

    async fn run(self) {
        let mut advice = self.register().await;
        loop {
            match &advice {
                Some(What::Start(start)) => {
                    sleep(zipper_proto::duration(start.after).unwrap_or_default()).await;
                }
                Some(What::Leave(_)) | None => {
                    let told = format!("agent {} leaves: {advice:?}", self.incarnation);
                    self.world.truth.happened(&told);
                    self.done.set(true);
                    return;
                }
            }
            let incarnation = self.world.next_number();
            let process = Process::start(&self.world, self.number, incarnation);
            *self.worker.borrow_mut() = Some(process);
            let ended = self.watch().await;
            *self.worker.borrow_mut() = None;
            let how = format!("worker {incarnation} of node {} ended: {ended:?}", self.number);
            self.world.truth.happened(&how);
            if ended == Some(Ended::Over) {
                self.done.set(true);
                return;
            }
            advice = self.report(incarnation).await;
        }
    }

    /// Waits for the end of the worker, and ends it if it is given up; nothing if it was killed.
    async fn watch(&self) -> Option<Ended> {
        loop {
            sleep(HEARTBEAT).await;
            let request = v1::AgentHeartbeatRequest {
                agent: Some(self.context()),
            };
            let heard = self.link.call(REQUEST, request, |services, request| async move {
                services.agent_heartbeat(request).await
            });
            let kill = heard.await.map(|heard| heard.kill).unwrap_or_default();
            let finished = {
                let worker = self.worker.borrow();
                let worker = worker.as_ref()?;
                if kill
                    .iter()
                    .any(|process| process.incarnation == worker.incarnation)
                {
                    worker.kill();
                }
                worker.is_finished()
            };
            if finished {
                let worker = self.worker.borrow_mut().take();
                return worker?.ended().await;
            }
        }
    }

    async fn register(&self) -> Option<What> {
        let request = v1::RegisterNodeRequest {
            agent: Some(self.context()),
            hostname: format!("host{}", self.number),
        };
        let answer = self.insist(request, |services, request| async move {
            services.register_node(request).await
        });
        answer.await?.advice?.what
    }

    async fn report(&self, incarnation: u64) -> Option<What> {
        let request = v1::ReportWorkerExitRequest {
            agent: Some(self.context()),
            worker: Some(v1::WorkerProcess {
                worker_id: WorkerId::new(self.number, 0).0,
                incarnation,
            }),
            signal: Some(9),
            ..v1::ReportWorkerExitRequest::default()
        };
        let answer = self.insist(request, |services, request| async move {
            services.report_worker_exit(request).await
        });
        answer.await?.advice?.what
    }

    /// Repeats a question until it is answered; nothing if no coordinator ever does.
    async fn insist<Q, T, F>(&self, request: Q, ask: Ask<Q, F>) -> Option<T>
    where
        Q: Clone + 'static,
        T: 'static,
        F: Future<Output = Result<Response<T>, Status>> + 'static,
    {
        for _ in 0..ATTEMPTS {
            if let Ok(answer) = self.link.call(REQUEST, request.clone(), ask).await {
                return Some(answer);
            }
            sleep(Duration::from_secs(1)).await;
        }
        None
    }
}
