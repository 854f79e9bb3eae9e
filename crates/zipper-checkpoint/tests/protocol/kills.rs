//! Goal: whoever is killed or stopped while a checkpoint is written, at any request, in the middle of any object: the newest
//! complete checkpoint is the one that loads, with exactly the bytes that its generation wrote, and nothing else stays.
//! Method: the writing of a checkpoint is run with a fault before and after every single request of each process in turn. Its
//! larger parts go in three pieces, so between two requests is also "in the middle of a body". (A request that ends in the middle
//! of its own body never has an effect: a server keeps a whole piece or none.)

use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::Bytes;
use futures::future::{join_all, try_join_all};
use zipper_checkpoint::{CheckpointError, PartRecord, RunStore, StoreOptions, layout};
use zipper_simstore::{Backing, Crash, Faults, FaultyStore, Gate, Moment, NoFaults, Request};
use zipper_tests::manifest;
use zipper_types::{Generation, Step};

const RANKS: usize = 2;
const PIECE: u64 = 32;

/// Whose requests fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Victim {
    Coordinator,
    Rank(usize),
    /// All processes, as when the power goes.
    Everybody,
}

const VICTIMS: [Victim; 4] = [
    Victim::Coordinator,
    Victim::Rank(0),
    Victim::Rank(1),
    Victim::Everybody,
];

/// The processes of one generation, one of which may be a victim.
struct Fleet {
    coordinator: RunStore,
    ranks: Vec<RunStore>,
    victim: Arc<FaultyStore>,
}

impl Fleet {
    fn new(backing: &Arc<Backing>, victim: Victim, faults: Arc<dyn Faults>) -> Self {
        let store = |faults| Arc::new(FaultyStore::new(Arc::clone(backing), faults));
        let options = StoreOptions {
            multipart_bytes: PIECE,
            ..StoreOptions::default()
        };
        let struck = store(faults);
        let run = |is_victim: bool| {
            let store = if is_victim {
                Arc::clone(&struck)
            } else {
                store(Arc::new(NoFaults))
            };
            RunStore::over_pieces(store, "memory://run", &options)
        };
        let everybody = victim == Victim::Everybody;
        Self {
            coordinator: run(everybody || victim == Victim::Coordinator),
            ranks: (0..RANKS)
                .map(|rank| run(everybody || victim == Victim::Rank(rank)))
                .collect(),
            victim: struck,
        }
    }

    fn healthy(backing: &Arc<Backing>) -> Self {
        Self::new(backing, Victim::Everybody, Arc::new(NoFaults))
    }

    /// Writes a checkpoint as coordinator and workers do together, and keeps no other one.
    async fn write(&self, step: Step, generation: Generation) -> Result<(), CheckpointError> {
        let checkpoints = self.coordinator.checkpoints();
        let prefix = checkpoints.begin(step, generation).await?;
        let ranks = self.ranks.iter().enumerate().map(|(rank, run)| {
            let prefix = &prefix;
            async move {
                let parts = parts_of(rank).map(|path| {
                    let bytes = content(path, step, generation);
                    async move { run.checkpoints().put_part(step, prefix, path, bytes).await }
                });
                try_join_all(parts).await
            }
        });
        let mut parts = Vec::new();
        for written in join_all(ranks).await {
            parts.extend(written?);
        }
        checkpoints.publish(&manifest(step, generation, parts)).await?;
        for older in checkpoints.list().await?.checkpoints {
            if older.manifest.step < step {
                checkpoints.remove(older.manifest.step).await?;
            }
        }
        checkpoints.collect(step).await?;
        Ok(())
    }
}

/// What a rank writes; some in pieces, some not.
fn parts_of(rank: usize) -> impl Iterator<Item = &'static str> {
    let parts: &[&str] = match rank {
        0 => &["shared.safetensors", "banks/de.safetensors", "state.json"],
        _ => &["banks/en.safetensors", "optimizer/banks/en.safetensors"],
    };
    parts.iter().copied()
}

/// Differs between steps and generations, so that no mixture passes.
fn content(path: &str, step: Step, generation: Generation) -> Bytes {
    let text = format!("{generation} wrote {path} of {step}, ");
    let length = if path.starts_with("banks/") { 20 } else { 80 };
    text.into_bytes().into_iter().cycle().take(length).collect()
}

/// The newest checkpoint is `step`, written by `generation`, every byte of it; nothing in the run is damaged.
async fn newest_is(run: &RunStore, step: Step, generation: Generation, what: &str) {
    let checkpoints = run.checkpoints();
    let latest = checkpoints.latest_readable().await.unwrap();
    assert!(latest.damaged.is_empty(), "{what}: {:?}", latest.damaged);
    let manifest = latest.manifest.unwrap_or_else(|| panic!("{what}: nothing loads"));
    assert_eq!((manifest.step, manifest.generation), (step, generation), "{what}");
    let expected: BTreeSet<&str> = (0..RANKS).flat_map(parts_of).collect();
    let listed: BTreeSet<&str> = manifest.parts.iter().map(|part| part.path.as_str()).collect();
    assert_eq!(listed, expected, "{what}");
    for part in &manifest.parts {
        let bytes = checkpoints.read_part(step, part).await.unwrap();
        assert_eq!(
            bytes,
            content(&part.path, step, generation),
            "{what}: {}",
            part.path
        );
    }
    for other in checkpoints.list().await.unwrap().checkpoints {
        let verified = checkpoints.verify(other.manifest.step).await;
        verified.unwrap_or_else(|error| panic!("{what}: {} is published, but {error}", other.id));
    }
}

/// After a collection there is nothing but published checkpoints, their claims, and uploads that hold nothing.
async fn nothing_is_left(backing: &Backing, run: &RunStore, what: &str) {
    let list = run.checkpoints().list().await.unwrap();
    assert!(list.leftovers.is_empty(), "{what}: {:?}", list.leftovers);
    let mut expected = BTreeSet::new();
    for checkpoint in &list.checkpoints {
        let folder = layout::checkpoint_dir(checkpoint.manifest.step);
        let own = checkpoint.manifest.parts.iter().map(PartRecord::object);
        let own = own.chain([layout::MANIFEST, layout::WRITER]);
        expected.extend(own.map(|object| format!("{folder}/{object}")));
    }
    let found: BTreeSet<String> = run.list("").await.unwrap().into_iter().collect();
    let wrong = found.symmetric_difference(&expected).filter(|object| {
        // A sleeper may find its claim collected, and publish something whole all the same.
        found.contains(*object) || !object.ends_with(layout::WRITER)
    });
    assert_eq!(wrong.collect::<Vec<_>>(), Vec::<&String>::new(), "{what}");
    let holding: Vec<_> = backing
        .open_uploads()
        .into_iter()
        .filter(|upload| upload.pieces > 0)
        .collect();
    assert!(holding.is_empty(), "{what}: {holding:?}");
}

/// How many requests the victim makes when nothing goes wrong.
async fn num_requests(victim: Victim) -> usize {
    let backing = Backing::new();
    let fleet = Fleet::healthy(&backing);
    fleet.write(Step(10), Generation(1)).await.unwrap();
    let fleet = Fleet::new(&backing, victim, Arc::new(NoFaults));
    fleet.write(Step(20), Generation(2)).await.unwrap();
    fleet.victim.requests().len()
}

/// Thread 7 of docs/testing.md: no checkpoint is published before it is whole, and the one before stays until then.
#[tokio::test]
async fn thread_7_a_writer_killed_at_any_request_leaves_the_newest_complete_checkpoint() {
    let mut cases = 0;
    for victim in VICTIMS {
        let requests = num_requests(victim).await;
        assert!(requests >= 5, "{victim:?} makes {requests} requests");
        for number in 0..requests {
            for moment in [Moment::Before, Moment::After] {
                let what = format!("{victim:?} is killed {moment:?} request {number}");
                let backing = Backing::new();
                let healthy = Fleet::healthy(&backing);
                let run = &healthy.coordinator;
                healthy.write(Step(10), Generation(1)).await.unwrap();

                let crash = Arc::new(Crash::at(number, moment));
                let fleet = Fleet::new(&backing, victim, Arc::clone(&crash) as _);
                let written = fleet.write(Step(20), Generation(2)).await;
                assert!(crash.has_happened(), "{what}");
                let published = run.checkpoints().is_published(Step(20)).await.unwrap();
                if !published {
                    written.expect_err("there is no manifest");
                }
                let (newest, generation) = if published { (20, 2) } else { (10, 1) };
                newest_is(run, Step(newest), Generation(generation), &what).await;

                // The next generation goes on from there and comes to the same step, or to the next one.
                let next = Step(newest + 10);
                healthy
                    .write(next, Generation(3))
                    .await
                    .unwrap_or_else(|error| panic!("{what}: {error}"));
                newest_is(run, next, Generation(3), &what).await;
                nothing_is_left(&backing, run, &what).await;
                cases += 1;
            }
        }
    }
    println!("{cases} kills");
}

/// As above, but nobody dies: the victim is stopped, the next generation writes the same step (or, having passed it, a later
/// one) and collects, and then the victim wakes up and does all that it had meant to do.
#[tokio::test]
async fn a_writer_that_wakes_up_at_any_request_changes_nothing() {
    let mut cases = 0;
    for victim in VICTIMS {
        for number in 0..num_requests(victim).await {
            for moment in [Moment::Before, Moment::After] {
                for same_step in [true, false] {
                    let what =
                        format!("{victim:?} sleeps {moment:?} request {number}, same step: {same_step}");
                    wakes_up(victim, number, moment, same_step, &what).await;
                    cases += 1;
                }
            }
        }
    }
    println!("{cases} awakenings");
}

async fn wakes_up(victim: Victim, number: usize, moment: Moment, same_step: bool, what: &str) {
    let backing = Backing::new();
    let healthy = Fleet::healthy(&backing);
    let run = &healthy.coordinator;
    healthy.write(Step(10), Generation(1)).await.unwrap();

    let gate = Arc::new(Gate::at(number, moment));
    let fleet = Fleet::new(&backing, victim, Arc::clone(&gate) as _);
    let sleeper = tokio::spawn(async move { fleet.write(Step(20), Generation(2)).await });
    gate.reached().await;

    let published = run.checkpoints().is_published(Step(20)).await.unwrap();
    let next = if published || !same_step {
        Step(30)
    } else {
        Step(20)
    };
    healthy
        .write(next, Generation(3))
        .await
        .unwrap_or_else(|error| panic!("{what}: {error}"));
    newest_is(run, next, Generation(3), what).await;

    gate.open();
    // It may find its checkpoint published, its folder cleared, or nothing wrong: what counts is what can be read.
    let _ = sleeper.await.expect("it ends");
    newest_is(run, next, Generation(3), what).await;

    run.checkpoints().collect(next).await.unwrap();
    newest_is(run, next, Generation(3), what).await;
    nothing_is_left(&backing, run, what).await;
}

/// Goal: a store that is away in the middle of a part, and comes back, loses nothing: the same attempt goes through.
#[tokio::test]
async fn an_attempt_goes_through_when_the_store_comes_back() {
    for number in 0..num_requests(Victim::Everybody).await {
        for moment in [Moment::Before, Moment::After] {
            let what = format!("away {moment:?} request {number}");
            let backing = Backing::new();
            let crash = Arc::new(Crash::at(number, moment));
            let fleet = Fleet::new(&backing, Victim::Everybody, crash);
            let _ = fleet.write(Step(20), Generation(2)).await;

            // The same processes, with the same generation, try again.
            let again = Fleet::healthy(&backing);
            again
                .write(Step(20), Generation(2))
                .await
                .unwrap_or_else(|error| panic!("{what}: {error}"));
            let run = &again.coordinator;
            newest_is(run, Step(20), Generation(2), &what).await;
            let manifest = run.checkpoints().load_manifest(Step(20)).await.unwrap();
            assert!(
                manifest.parts.iter().all(|part| part.object.is_none()),
                "{what}: under its plain names"
            );
            nothing_is_left(&backing, run, &what).await;
        }
    }
}

/// Goal: a checkpoint that is retired while it is looked at makes way for the one that came after it, not for an older one that is
/// kept.
#[tokio::test]
async fn a_checkpoint_that_is_retired_meanwhile_is_not_gone_back_from() {
    let backing = Backing::new();
    let run = Fleet::healthy(&backing).coordinator;
    publish(&run, Step(10)).await;
    publish(&run, Step(20)).await;

    // The reader has seen the list; then also the manifest, and nothing that it names.
    for (request, newest) in [(0, 20), (1, 30)] {
        let gate = Arc::new(Gate::at(request, Moment::After));
        let store = FaultyStore::new(Arc::clone(&backing), Arc::clone(&gate) as _);
        let reader = RunStore::over(Arc::new(store), "memory://run").checkpoints();
        let meanwhile = async {
            gate.reached().await;
            publish(&run, Step(newest + 10)).await;
            run.checkpoints().remove(Step(newest)).await.unwrap();
            gate.open();
        };
        let (latest, ()) = tokio::join!(reader.latest_readable(), meanwhile);
        let latest = latest.unwrap();
        assert!(latest.damaged.is_empty(), "{:?}", latest.damaged);
        assert_eq!(
            latest.manifest.map(|manifest| manifest.step),
            Some(Step(newest + 10))
        );
    }
}

/// Harms what the first request reads, while it is on its way.
struct Harm {
    clean: RunStore,
    right: Bytes,
}

impl Harm {
    async fn put(&self, request: &Request, bytes: Bytes) {
        if request.number == 0 {
            self.clean.put(&request.path, bytes).await.unwrap();
        }
    }
}

#[async_trait::async_trait]
impl Faults for Harm {
    async fn before(&self, request: &Request) -> object_store::Result<()> {
        self.put(request, Bytes::from_static(b"harmed")).await;
        Ok(())
    }

    async fn after(&self, request: &Request) -> object_store::Result<()> {
        self.put(request, self.right.clone()).await;
        Ok(())
    }
}

/// Goal: bytes that are harmed on their way are read again, and do not make a checkpoint damaged, which would be removed.
#[tokio::test]
async fn what_is_harmed_on_its_way_is_no_damage() {
    let backing = Backing::new();
    let clean = Fleet::healthy(&backing).coordinator;
    publish(&clean, Step(10)).await;
    let manifest = clean.checkpoints().load_manifest(Step(10)).await.unwrap();
    let right = content(layout::STATE, Step(10), Generation(1));
    let harm = Harm {
        clean,
        right: right.clone(),
    };
    let reader = RunStore::over(
        Arc::new(FaultyStore::new(backing, Arc::new(harm))),
        "memory://run",
    );
    let read = reader.checkpoints().read_part(Step(10), &manifest.parts[0]).await;
    assert_eq!(read.unwrap(), right);
}

/// Publishes a checkpoint of one part.
async fn publish(run: &RunStore, step: Step) {
    let (checkpoints, generation) = (run.checkpoints(), Generation(1));
    let bytes = content(layout::STATE, step, generation);
    let part = checkpoints.put_part(step, "", layout::STATE, bytes).await;
    let manifest = manifest(step, generation, vec![part.unwrap()]);
    checkpoints.publish(&manifest).await.unwrap();
}
