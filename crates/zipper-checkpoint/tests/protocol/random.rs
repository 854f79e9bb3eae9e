//! Goal: lease, journal and checkpoints together hold under any mixture of faults. Method: three coordinators that live, die and come
//! back on one run, over clients that are slow, lose requests and answers, and now and then stop for longer than the time to
//! live; on tokio's paused clock, from seeds. What must hold is checked at every step and at the end.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tokio::task::LocalSet;
use tokio::time::{Instant, sleep, sleep_until};
use zipper_checkpoint::lease::{Holder, Lease, LeaseLost, LeaseOptions};
use zipper_checkpoint::{
    CheckpointError, ErrorKind, FORMAT_VERSION, Manifest, RunStore, StoreOptions, layout,
};
use zipper_simstore::{Backing, Faults, FaultyStore, NoFaults, RandomFaults, Request};
use zipper_types::{Advised, Generation, Stage, Step, WorldSize};

const TTL: Duration = Duration::from_secs(15);
const SEEDS: u64 = 60;
const LASTS: Duration = Duration::from_mins(15);

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Entry {
    epoch: u64,
}

/// Faults of every day, and now and then a stop of the whole process, on either side of a request.
struct Faulty {
    often: RandomFaults,
    stops: RandomFaults,
    stopped_until: Mutex<Instant>,
}

impl Faulty {
    fn new(seed: u64) -> Self {
        let often = Duration::from_millis(1)..Duration::from_millis(300);
        let none = Duration::ZERO..Duration::ZERO;
        Self {
            often: RandomFaults::new(seed, 0.04, 0.04, often),
            stops: RandomFaults::new(!seed, 0.008, 0.008, none),
            stopped_until: Mutex::new(Instant::now()),
        }
    }

    /// Stops, if this request's fate is to be stopped at; waits as long as the process is.
    async fn stop(&self, fate: object_store::Result<()>) {
        let until = {
            let mut until = self.stopped_until.lock().unwrap();
            if fate.is_err() {
                *until = Instant::now() + TTL * 2;
            }
            *until
        };
        sleep_until(until).await;
    }
}

#[async_trait]
impl Faults for Faulty {
    async fn before(&self, request: &Request) -> object_store::Result<()> {
        self.stop(self.stops.before(request).await).await;
        self.often.before(request).await
    }

    async fn after(&self, request: &Request) -> object_store::Result<()> {
        self.stop(self.stops.after(request).await).await;
        self.often.after(request).await
    }
}

/// What all coordinators have done, for the checks.
#[derive(Default)]
struct World {
    seed: u64,
    /// The highest epoch that has passed a check.
    active: Cell<u64>,
    lives: Cell<u32>,
    published: RefCell<BTreeMap<Step, u64>>,
}

impl World {
    /// LEASE-3: once a later holder has passed a check, no earlier one does.
    async fn check(&self, lease: &Lease) -> Result<(), LeaseLost> {
        lease.check().await?;
        assert!(
            lease.epoch() >= self.active.get(),
            "seed {}: {} passes a check after {}",
            self.seed,
            lease.epoch(),
            self.active.get()
        );
        self.active.set(lease.epoch());
        Ok(())
    }
}

/// Why a life ends.
enum End {
    /// Another one has the run.
    Fenced,
    /// The time of the test is over.
    Over,
}

struct Coordinator {
    world: Rc<World>,
    run: RunStore,
    lease: Rc<Lease>,
    until: Instant,
}

impl Coordinator {
    /// Repeats a write until it succeeds, never does, or is not ours to make any more.
    async fn write<T, F: Future<Output = Result<T, CheckpointError>>>(
        &self,
        attempt: impl Fn() -> F,
    ) -> Result<Option<T>, End> {
        loop {
            if Instant::now() > self.until {
                return Err(End::Over);
            }
            match self.world.check(&self.lease).await {
                Ok(()) => {}
                Err(LeaseLost::Superseded { .. }) => return Err(End::Fenced),
                Err(LeaseLost::Store(_)) => {
                    sleep(Duration::from_secs(1)).await;
                    continue;
                }
            }
            match attempt().await {
                Ok(value) => return Ok(Some(value)),
                Err(error) if error.is_retryable() => sleep(Duration::from_millis(500)).await,
                Err(error) => match error.kind() {
                    ErrorKind::AlreadyExists | ErrorKind::Damaged => return Ok(None),
                    _ => panic!("seed {}: {error}", self.world.seed),
                },
            }
        }
    }

    async fn live(&self) -> Result<(), End> {
        let epoch = self.lease.epoch();
        let checkpoints = self.run.checkpoints();
        let read = || async { self.run.journal().read_all::<Entry>().await };
        let entries = self.write(read).await?.expect("what is written once is whole");
        let mut sequence = entries.last().map_or(0, |(sequence, _)| sequence + 1);
        let latest = || async { checkpoints.latest_readable().await };
        let newest = self.write(latest).await?.expect("damage is passed over");
        assert!(newest.damaged.is_empty(), "seed {}: {newest:?}", self.world.seed);
        let mut step = newest.manifest.map_or(Step(0), |manifest| manifest.step);
        loop {
            let append = || async { self.run.journal().append(sequence, &Entry { epoch }).await };
            if self.write(append).await?.is_none() {
                return Err(End::Fenced);
            }
            sequence += 1;
            step = Step(step.0 + 10);
            let generation = Generation(u32::try_from(epoch).unwrap().into());
            let begin = || async { checkpoints.begin(step, generation).await };
            let prefix = self.write(begin).await?.expect("a claim is readable");
            let prefix = &prefix;
            let mut parts = Vec::new();
            for path in [layout::SHARED, layout::STATE] {
                let put = || async {
                    checkpoints
                        .put_part(step, prefix, path, content(path, step, epoch))
                        .await
                };
                parts.push(self.write(put).await?.expect("a part can be written"));
            }
            let manifest = Manifest {
                format_version: FORMAT_VERSION,
                step,
                stage: Stage::Align,
                created: epoch.to_string(),
                world_size: WorldSize(1),
                generation,
                parts,
            };
            let publish = || async { checkpoints.publish(&manifest).await };
            if self.write(publish).await?.is_some() {
                self.world.published.borrow_mut().insert(step, epoch);
            }
            let collect = || async { checkpoints.collect(step).await };
            self.write(collect).await?;
            sleep(Duration::from_secs(3)).await;
        }
    }
}

/// Large parts go in pieces; nobody else writes the same bytes.
fn content(path: &str, step: Step, epoch: u64) -> Bytes {
    let text = format!("{path} of {step} by {epoch}; ");
    text.into_bytes().into_iter().cycle().take(100).collect()
}

/// Lives one life after the other.
async fn coordinator(world: Rc<World>, backing: Arc<Backing>, number: u64) {
    let until = Instant::now() + LASTS;
    while Instant::now() < until {
        let life = world.lives.get() + 1;
        world.lives.set(life);
        let faults = Arc::new(Faulty::new(world.seed * 1000 + u64::from(life)));
        let store = Arc::new(FaultyStore::new(Arc::clone(&backing), faults));
        let options = StoreOptions {
            multipart_bytes: 40,
            ..StoreOptions::default()
        };
        let run = RunStore::over_pieces(store, "memory://run", &options);
        let holder = Holder {
            host: format!("node{number}"),
            pid: life,
            since: "2026-01-02T03:04:05Z".to_owned(),
            address: "http://node:1".to_owned(),
        };
        let acquired = Lease::acquire(&run, holder, LeaseOptions { ttl: TTL }, None).await;
        let Ok(Ok(lease)) = acquired else {
            sleep(Duration::from_secs(5 + number)).await;
            continue;
        };
        let lease = Rc::new(lease);
        let renewing = Rc::clone(&lease);
        let renewals = async move {
            loop {
                match renewing.renew().await {
                    Err(LeaseLost::Superseded { .. }) => std::future::pending().await,
                    Err(LeaseLost::Store(_)) => sleep(Duration::from_millis(500)).await,
                    Ok(()) => sleep(renewing.renew_every()).await,
                }
            }
        };
        let coordinator = Coordinator {
            world: Rc::clone(&world),
            run,
            lease,
            until,
        };
        // Every second one dies suddenly.
        let death = sleep(if life.is_multiple_of(2) { TTL * 4 } else { LASTS });
        tokio::select! {
            () = renewals => unreachable!("it never ends"),
            ended = coordinator.live() => if matches!(ended, Err(End::Over)) { return },
            () = death => {}
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_run_that_is_fought_over_stays_whole() {
    let (mut published, mut epochs) = (0, 0);
    for seed in 0..SEEDS {
        let backing = Backing::new();
        let world = Rc::new(World {
            seed,
            ..World::default()
        });
        let all = LocalSet::new();
        let coordinators = (0..3)
            .map(|number| all.spawn_local(coordinator(Rc::clone(&world), Arc::clone(&backing), number)));
        let coordinators: Vec<_> = coordinators.collect();
        all.await;
        for ended in coordinators {
            ended.await.expect("a coordinator sees nothing impossible");
        }

        let run = RunStore::over(
            Arc::new(FaultyStore::new(Arc::clone(&backing), Arc::new(NoFaults))),
            "memory://run",
        );
        // One history, and who has lost the run writes nothing after who has it.
        let journal: Vec<(u64, Entry)> = run.journal().read_all().await.unwrap();
        assert!(
            journal.is_sorted_by_key(|(_, entry)| entry.epoch),
            "seed {seed}: {journal:?}"
        );
        // What was acknowledged is there, whole, with the bytes of its writer.
        let list = run.checkpoints().list().await.unwrap();
        assert!(list.unreadable.is_empty(), "seed {seed}: {:?}", list.unreadable);
        for checkpoint in &list.checkpoints {
            let manifest = &checkpoint.manifest;
            run.checkpoints()
                .verify(manifest.step)
                .await
                .unwrap_or_else(|error| panic!("seed {seed}: {error}"));
            for part in &manifest.parts {
                let bytes = run.checkpoints().read_part(manifest.step, part).await.unwrap();
                let expected = content(&part.path, manifest.step, manifest.generation.0);
                assert_eq!(bytes, expected, "seed {seed}: {} {}", checkpoint.id, part.path);
            }
        }
        for (step, epoch) in world.published.take() {
            let found = run.checkpoints().load_manifest(step).await;
            let found = found.unwrap_or_else(|error| panic!("seed {seed}: {error}"));
            assert_eq!(found.generation.0, epoch, "seed {seed}: {step}");
        }
        published += list.checkpoints.len();
        epochs += world.active.get();
    }
    println!("{published} checkpoints by {epochs} holders in {SEEDS} runs");
    assert!(
        published as u64 > SEEDS * 20 && epochs > SEEDS * 3,
        "the faults leave room for work, and take it away"
    );
}
