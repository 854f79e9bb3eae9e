//! What happens to requests.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use object_store::{Error, Result};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tokio::sync::watch;

use crate::store::Request;

/// Comes between a client and its store. An error that it returns is what the client sees; a future that never ends is a
/// request that hangs.
#[async_trait]
pub trait Faults: Send + Sync + 'static {
    /// Before a request has its effect: an error means that it never has.
    async fn before(&self, _request: &Request) -> Result<()> {
        Ok(())
    }

    /// After a request has had its effect: an error means that the client does not know it.
    async fn after(&self, _request: &Request) -> Result<()> {
        Ok(())
    }
}

/// Nothing goes wrong.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoFaults;

#[async_trait]
impl Faults for NoFaults {}

/// Which side of a request's effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Moment {
    /// It has not happened.
    Before,
    /// It has happened, and nobody was told.
    After,
}

/// The error of a request that was lost.
#[must_use]
pub fn lost(what: &'static str) -> Error {
    Error::Generic {
        store: "FaultyStore",
        source: what.into(),
    }
}

/// A store that is there or away.
#[derive(Debug, Default)]
pub struct Switch {
    away: AtomicBool,
}

impl Switch {
    /// From now on every request fails without effect, or none does.
    pub fn set_away(&self, away: bool) {
        self.away.store(away, Ordering::SeqCst);
    }
}

#[async_trait]
impl Faults for Switch {
    async fn before(&self, _request: &Request) -> Result<()> {
        if self.away.load(Ordering::SeqCst) {
            return Err(lost("the store is away"));
        }
        Ok(())
    }
}

/// The client dies at one request: this one and all after it fail, and none after it has an effect.
#[derive(Debug)]
pub struct Crash {
    at: (usize, Moment),
    dead: AtomicBool,
}

impl Crash {
    /// Dies before or after request `number` of this client has its effect.
    #[must_use]
    pub fn at(number: usize, moment: Moment) -> Self {
        Self {
            at: (number, moment),
            dead: AtomicBool::new(false),
        }
    }

    /// Whether the client has come so far.
    #[must_use]
    pub fn has_happened(&self) -> bool {
        self.dead.load(Ordering::SeqCst)
    }

    fn pass(&self, request: &Request, moment: Moment) -> Result<()> {
        if (request.number, moment) == self.at {
            self.dead.store(true, Ordering::SeqCst);
        }
        if self.has_happened() {
            return Err(lost("the client is dead"));
        }
        Ok(())
    }
}

#[async_trait]
impl Faults for Crash {
    async fn before(&self, request: &Request) -> Result<()> {
        self.pass(request, Moment::Before)
    }

    async fn after(&self, request: &Request) -> Result<()> {
        self.pass(request, Moment::After)
    }
}

/// The client stops at one request, as if it was suspended or cut off, and goes on when it is let.
#[derive(Debug)]
pub struct Gate {
    at: (usize, Moment),
    reached: watch::Sender<bool>,
    open: watch::Sender<bool>,
}

impl Gate {
    /// Stops before or after request `number` of this client has its effect.
    #[must_use]
    pub fn at(number: usize, moment: Moment) -> Self {
        Self {
            at: (number, moment),
            reached: watch::Sender::new(false),
            open: watch::Sender::new(false),
        }
    }

    /// Waits until the client has stopped. Never ends if it does not come so far.
    pub async fn reached(&self) {
        wait_for(&self.reached).await;
    }

    /// Lets it go on.
    pub fn open(&self) {
        self.open.send_replace(true);
    }

    async fn pass(&self, request: &Request, moment: Moment) {
        if (request.number, moment) == self.at {
            self.reached.send_replace(true);
        }
        // Requests that the client makes at the same time stop, too.
        if *self.reached.borrow() {
            wait_for(&self.open).await;
        }
    }
}

async fn wait_for(flag: &watch::Sender<bool>) {
    flag.subscribe()
        .wait_for(|set| *set)
        .await
        .expect("the sender lives as long as the gate");
}

#[async_trait]
impl Faults for Gate {
    async fn before(&self, request: &Request) -> Result<()> {
        self.pass(request, Moment::Before).await;
        Ok(())
    }

    async fn after(&self, request: &Request) -> Result<()> {
        self.pass(request, Moment::After).await;
        Ok(())
    }
}

/// Requests are slow and get lost by chance, from a seed.
#[derive(Debug)]
pub struct RandomFaults {
    rng: Mutex<ChaCha8Rng>,
    /// How likely a request is lost before its effect.
    lost_before: f64,
    /// How likely the answer is lost.
    lost_after: f64,
    /// How long a request takes, on each side of its effect.
    delay: Range<Duration>,
}

impl RandomFaults {
    /// `lost_before`, `lost_after`: probabilities; `delay`: on each side of the effect, by tokio's clock.
    #[must_use]
    pub fn new(seed: u64, lost_before: f64, lost_after: f64, delay: Range<Duration>) -> Self {
        Self {
            rng: Mutex::new(ChaCha8Rng::seed_from_u64(seed)),
            lost_before,
            lost_after,
            delay,
        }
    }

    async fn pass(&self, probability: f64, what: &'static str) -> Result<()> {
        let (delay, fails) = {
            let mut rng = self.rng.lock().unwrap_or_else(PoisonError::into_inner);
            let delay = if self.delay.is_empty() {
                self.delay.start
            } else {
                rng.random_range(self.delay.clone())
            };
            (delay, rng.random_bool(probability))
        };
        if !delay.is_zero() {
            tokio::time::sleep(delay).await;
        }
        if fails { Err(lost(what)) } else { Ok(()) }
    }
}

#[async_trait]
impl Faults for RandomFaults {
    async fn before(&self, _request: &Request) -> Result<()> {
        self.pass(self.lost_before, "the request was lost").await
    }

    async fn after(&self, _request: &Request) -> Result<()> {
        self.pass(self.lost_after, "the answer was lost").await
    }
}
