//! Goal: the journal of a run has one history, whoever is killed, cut off or repeats a request, at any of its requests.
//! Method: a coordinator appends with a fault before or after each of its requests in turn; another one takes over from what it
//! reads; the first one comes back.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use zipper_checkpoint::{CheckpointError, ErrorKind, RunStore};
use zipper_simstore::{Backing, Crash, Faults, FaultyStore, Moment, NoFaults, Request};

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Entry {
    by: String,
    number: u64,
}

fn run(backing: &Arc<Backing>, faults: Arc<dyn Faults>) -> RunStore {
    let store = Arc::new(FaultyStore::new(Arc::clone(backing), faults));
    RunStore::over(store, "memory://run")
}

fn entry(by: &str, number: u64) -> Entry {
    let by = by.to_owned();
    Entry { by, number }
}

/// Appends entries `from..to`; returns how many are known to be durable.
async fn append(run: &RunStore, by: &str, from: u64, to: u64) -> (u64, Result<(), CheckpointError>) {
    for number in from..to {
        if let Err(error) = run.journal().append(number, &entry(by, number)).await {
            return (number - from, Err(error));
        }
    }
    (to - from, Ok(()))
}

const ENTRIES: u64 = 4;

/// As S3 does while another creation of the same object is under way, which may fail yet.
struct Busy;

#[async_trait::async_trait]
impl Faults for Busy {
    async fn before(&self, request: &Request) -> object_store::Result<()> {
        if request.number > 0 {
            return Ok(());
        }
        Err(object_store::Error::AlreadyExists {
            path: request.path.clone(),
            source: "409".into(),
        })
    }
}

#[tokio::test(start_paused = true)]
async fn a_creation_that_is_refused_although_nothing_is_there_is_repeated() {
    let run = run(&Backing::new(), Arc::new(Busy));
    run.journal().append(0, &entry("first", 0)).await.unwrap();
    let found: Vec<(u64, Entry)> = run.journal().read_all().await.unwrap();
    assert_eq!(found, [(0, entry("first", 0))]);
}

#[tokio::test]
async fn a_crash_at_any_request_leaves_a_history_that_another_one_continues() {
    for number in 0..ENTRIES as usize {
        for moment in [Moment::Before, Moment::After] {
            let what = format!("crash {moment:?} request {number}");
            let backing = Backing::new();
            let first = run(&backing, Arc::new(Crash::at(number, moment)));
            let (durable, result) = append(&first, "first", 0, ENTRIES).await;
            assert_eq!(result.unwrap_err().kind(), ErrorKind::Io, "{what}");

            let second = run(&backing, Arc::new(NoFaults));
            let found: Vec<(u64, Entry)> = second.journal().read_all().await.unwrap();
            let landed = durable + u64::from(moment == Moment::After);
            let expected: Vec<_> = (0..landed)
                .map(|number| (number, entry("first", number)))
                .collect();
            assert_eq!(found, expected, "{what}: what was acknowledged is there");
            append(&second, "second", landed, ENTRIES).await.1.unwrap();

            // The first one was only cut off. It goes on with the entry that it did not hear of.
            let back = run(&backing, Arc::new(NoFaults));
            let (accepted, result) = append(&back, "first", durable, ENTRIES).await;
            assert_eq!(
                accepted,
                landed - durable,
                "{what}: its own entry is its own, and no more"
            );
            if landed < ENTRIES {
                assert_eq!(result.unwrap_err().kind(), ErrorKind::AlreadyExists, "{what}");
            }
            let history: Vec<(u64, Entry)> = second.journal().read_all().await.unwrap();
            let writers = (0..ENTRIES).map(|number| if number < landed { "first" } else { "second" });
            let expected: Vec<_> = (0..)
                .zip(writers)
                .map(|(number, by)| (number, entry(by, number)))
                .collect();
            assert_eq!(history, expected, "{what}");
        }
    }
}

/// Of two coordinators that both take themselves for the right one, each number belongs to one, and the other is told.
#[tokio::test]
async fn of_two_writers_one_gets_each_number() {
    let backing = Backing::new();
    let [a, b] = ["a", "b"].map(|by| (by, run(&backing, Arc::new(NoFaults))));
    for number in 0..20 {
        let one = a.1.journal();
        let two = b.1.journal();
        let (entry_a, entry_b) = (entry(a.0, number), entry(b.0, number));
        let (one, two) = tokio::join!(one.append(number, &entry_a), two.append(number, &entry_b));
        assert!(one.is_ok() != two.is_ok(), "entry {number}: {one:?}, {two:?}");
        let loser = one.err().or(two.err()).unwrap();
        assert_eq!(loser.kind(), ErrorKind::AlreadyExists);
    }
    let history: Vec<(u64, Entry)> = a.1.journal().read_all().await.unwrap();
    assert_eq!(history.len(), 20);
}
