//! The network between a process and a coordinator: slow, lossy, repeating itself, sometimes cut in one direction.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::future::Future;
use std::rc::Rc;
use std::time::Duration;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tokio::task::spawn_local;
use tokio::time::{Instant, sleep, timeout};
use tonic::{Request, Response, Status};
use zipper_checkpoint::{RunStore, lease};
use zipper_coordinator::server::Services;

use crate::store::Pause;

/// How long the old address is tried before the run is asked for another one, as workers do.
const LOOK_AFTER: Duration = Duration::from_secs(5);

/// Who listens where.
#[derive(Clone, Default)]
pub(crate) struct Listening(Rc<RefCell<BTreeMap<u64, (Services, Pause)>>>);

impl Listening {
    /// A coordinator listens at an address, or nobody does any more.
    pub(crate) fn set(&self, address: u64, services: Option<(Services, Pause)>) {
        let mut all = self.0.borrow_mut();
        match services {
            Some(services) => all.insert(address, services),
            None => all.remove(&address),
        };
    }

    fn at(&self, address: u64) -> Option<(Services, Pause)> {
        self.0.borrow().get(&address).cloned()
    }

    /// Where a process that is started now is told to ask.
    fn newest(&self) -> u64 {
        self.0.borrow().keys().next_back().copied().unwrap_or_default()
    }
}

/// One process's way to the coordinator.
#[derive(Clone)]
pub(crate) struct Link(Rc<Inner>);

struct Inner {
    listening: Listening,
    store: RunStore,
    pause: Pause,
    rng: RefCell<ChaCha8Rng>,
    /// How likely a message is lost, in each direction.
    loss: f64,
    cut_out: Cell<bool>,
    cut_back: Cell<bool>,
    address: Cell<u64>,
    away_since: Cell<Option<Instant>>,
    looked: Cell<Option<Instant>>,
}

/// How a request is put to a coordinator.
pub(crate) type Ask<Q, F> = fn(Services, Request<Q>) -> F;

impl Link {
    pub(crate) fn new(listening: Listening, store: RunStore, pause: Pause, seed: u64, loss: f64) -> Self {
        Self(Rc::new(Inner {
            address: Cell::new(listening.newest()),
            listening,
            store,
            pause,
            rng: RefCell::new(ChaCha8Rng::seed_from_u64(seed)),
            loss,
            cut_out: Cell::new(false),
            cut_back: Cell::new(false),
            away_since: Cell::new(None),
            looked: Cell::new(None),
        }))
    }

    /// Nothing gets out, or nothing gets back.
    pub(crate) fn cut(&self, out: bool, back: bool) {
        self.0.cut_out.set(out);
        self.0.cut_back.set(back);
    }

    /// Sends a question. It may be lost, may arrive twice, and later than what is sent after it; so may the answer.
    pub(crate) async fn call<Q, T, F>(
        &self,
        patience: Duration,
        question: Q,
        ask: Ask<Q, F>,
    ) -> Result<T, Status>
    where
        Q: Clone + 'static,
        T: 'static,
        F: Future<Output = Result<Response<T>, Status>> + 'static,
    {
        self.0.pause.pass().await;
        self.look_for_it().await;
        let asking = self.clone().ask(question, ask);
        let answer = timeout(patience, asking).await;
        let answer = answer.unwrap_or_else(|_| Err(Status::unavailable("no answer")));
        self.0.pause.pass().await;
        match &answer {
            Err(status) if status.code() == tonic::Code::Unavailable => {
                let since = self.0.away_since.get().unwrap_or_else(Instant::now);
                self.0.away_since.set(Some(since));
            }
            _ => self.0.away_since.set(None),
        }
        answer.map(Response::into_inner)
    }

    async fn ask<Q, T, F>(self, question: Q, ask: Ask<Q, F>) -> Result<Response<T>, Status>
    where
        Q: Clone + 'static,
        T: 'static,
        F: Future<Output = Result<Response<T>, Status>> + 'static,
    {
        let again = {
            let mut rng = self.0.rng.borrow_mut();
            rng.random_bool(0.03)
                .then(|| Duration::from_millis(rng.random_range(0..8000)))
        };
        if !self.way(&self.0.cut_out).await {
            return std::future::pending().await;
        }
        let listening = self.0.listening.clone();
        let address = self.0.address.get();
        if let Some(later) = again {
            let (listening, question) = (listening.clone(), question.clone());
            spawn_local(async move {
                sleep(later).await;
                if let Some((services, pause)) = listening.at(address) {
                    pause.pass().await;
                    // The answer to a message that arrives again goes nowhere.
                    let _ = ask(services, Request::new(question)).await;
                }
            });
        }
        let (services, pause) = listening
            .at(address)
            .ok_or_else(|| Status::unavailable("connection refused"))?;
        pause.pass().await;
        let answer = ask(services, Request::new(question)).await;
        pause.pass().await;
        if !self.way(&self.0.cut_back).await {
            return std::future::pending().await;
        }
        answer
    }

    async fn way(&self, cut: &Cell<bool>) -> bool {
        let (delay, lost) = {
            let mut rng = self.0.rng.borrow_mut();
            let long = rng.random_bool(0.02);
            let delay = rng.random_range(0..if long { 3000 } else { 20 });
            (Duration::from_millis(delay), rng.random_bool(self.0.loss))
        };
        sleep(delay).await;
        !cut.get() && !lost
    }

    /// As workers do: who has been without an answer for a while reads in the newest claim where to ask.
    async fn look_for_it(&self) {
        let long = |since: Option<Instant>| since.is_some_and(|since| since.elapsed() > LOOK_AFTER);
        let recently = self
            .0
            .looked
            .get()
            .is_some_and(|looked| looked.elapsed() < LOOK_AFTER);
        if !long(self.0.away_since.get()) || recently {
            return;
        }
        self.0.looked.set(Some(Instant::now()));
        let found = timeout(LOOK_AFTER, lease::newest(&self.0.store)).await;
        if let Ok(Ok(Some(claim))) = found
            && let Ok(address) = claim.holder.address.parse()
        {
            self.0.address.set(address);
        }
    }
}
