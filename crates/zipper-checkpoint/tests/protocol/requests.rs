//! Goal: what a client asks for is what it needs, and a single request that is lost, or an object that goes while it is read, is taken
//! for what it is. Method: requests are counted by kind; one of them fails and no other one; the object of a request is gone before it,
//! and back after it.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use zipper_checkpoint::lease::{self, Holder, Lease, LeaseOptions, StopRequest};
use zipper_checkpoint::{Collected, ErrorKind, Manifest, RunStore, StoreOptions, layout};
use zipper_simstore::{Backing, Faults, FaultyStore, NoFaults, Request, RequestKind, faults};
use zipper_tests::manifest;
use zipper_types::{Generation, Step};

const MANIFEST: &str = "checkpoints/step-00000010/MANIFEST.json";

/// The request of this number is lost.
struct Lost {
    number: usize,
}

#[async_trait::async_trait]
impl Faults for Lost {
    async fn before(&self, request: &Request) -> object_store::Result<()> {
        if request.number == self.number {
            return Err(faults::lost("this one"));
        }
        Ok(())
    }
}

/// What is read is gone when it is asked for, and back afterwards: as if it were removed and written all the time.
struct Fleeting {
    run: RunStore,
    bytes: Bytes,
}

#[async_trait::async_trait]
impl Faults for Fleeting {
    async fn before(&self, request: &Request) -> object_store::Result<()> {
        if request.kind == RequestKind::Get {
            self.run.delete(&request.path).await.unwrap();
        }
        Ok(())
    }

    async fn after(&self, request: &Request) -> object_store::Result<()> {
        if request.kind == RequestKind::Get {
            self.run.put(&request.path, self.bytes.clone()).await.unwrap();
        }
        Ok(())
    }
}

/// Creations are refused although nothing is there.
struct Refusing;

#[async_trait::async_trait]
impl Faults for Refusing {
    async fn before(&self, request: &Request) -> object_store::Result<()> {
        if request.kind != RequestKind::Create {
            return Ok(());
        }
        Err(object_store::Error::AlreadyExists {
            path: request.path.clone(),
            source: "409".into(),
        })
    }
}

fn client(backing: &Arc<Backing>, faults: impl Faults) -> (RunStore, Arc<FaultyStore>) {
    let store = Arc::new(FaultyStore::new(Arc::clone(backing), Arc::new(faults)));
    (RunStore::over(Arc::clone(&store) as _, "memory://run"), store)
}

/// A store with a checkpoint of two parts, and a client of it.
async fn with_checkpoint() -> (Arc<Backing>, RunStore, Manifest) {
    let backing = Backing::new();
    let (run, _) = client(&backing, NoFaults);
    let checkpoints = run.checkpoints();
    let mut parts = Vec::new();
    for (path, content) in [(layout::SHARED, "shared"), (layout::STATE, "{}")] {
        let part = checkpoints.put_part(Step(10), "", path, Bytes::from_static(content.as_bytes()));
        parts.push(part.await.unwrap());
    }
    let manifest = manifest(Step(10), Generation(1), parts);
    checkpoints.publish(&manifest).await.unwrap();
    (backing, run, manifest)
}

/// A store that does not do one of the things that a run asks of it is not said to do them all.
#[tokio::test]
async fn every_request_of_a_probe_has_to_succeed() {
    let (run, healthy) = client(&Backing::new(), NoFaults);
    run.probe().await.unwrap();
    for number in 0..healthy.requests().len() {
        let (run, _) = client(&Backing::new(), Lost { number });
        let error = run.probe().await.expect_err("a request was lost");
        assert_eq!(error.kind(), ErrorKind::Io, "request {number}: {error}");
    }
}

/// What is created or read is not taken for there or missing when a request was lost, and a creation is not repeated for ever.
#[tokio::test(start_paused = true)]
async fn a_lost_request_says_nothing_about_its_object() {
    let backing = Backing::new();
    let (run, _) = client(&backing, Lost { number: 0 });
    let created = run.create_or_get("a", Bytes::new()).await;
    assert_eq!(created.unwrap_err().kind(), ErrorKind::Io);
    let created = run.create_or_get("a", Bytes::new()).await;
    assert_eq!(created.unwrap(), None);
    let (run, _) = client(&backing, Lost { number: 1 });
    let created = run.create_or_get("a", Bytes::new()).await;
    assert_eq!(
        created.unwrap_err().kind(),
        ErrorKind::Io,
        "it is there, and cannot be read"
    );
    let (run, _) = client(&backing, Lost { number: 0 });
    assert_eq!(run.get_if_there("b").await.unwrap_err().kind(), ErrorKind::Io);

    let (run, store) = client(&Backing::new(), Refusing);
    let created = run.create_or_get("a", Bytes::new()).await;
    assert_eq!(created.unwrap_err().kind(), ErrorKind::AlreadyExists);
    let is_creation = |request: &&Request| request.kind == RequestKind::Create;
    assert_eq!(store.requests().iter().filter(is_creation).count(), 11);
}

/// Only what is not what was written is read again.
#[tokio::test]
async fn a_part_whose_request_is_lost_is_no_damage() {
    let (backing, run, manifest) = with_checkpoint().await;
    let (reader, _) = client(&backing, Lost { number: 0 });
    let read = reader.checkpoints().read_part(Step(10), &manifest.parts[0]).await;
    assert_eq!(read.unwrap_err().kind(), ErrorKind::Io);
    let parts: Vec<_> = manifest.parts.iter().rev().collect();
    let read = run.checkpoints().read_parts(Step(10), &parts).await.unwrap();
    assert_eq!(read, ["{}", "shared"], "in the order that was asked for");
    let (reader, store) = client(&backing, NoFaults);
    reader
        .checkpoints()
        .read_part(Step(10), &manifest.parts[0])
        .await
        .unwrap();
    assert_eq!(store.requests().len(), 1, "a small part is read at once");
}

/// Only what is larger than a piece is written in pieces.
#[tokio::test]
async fn large_parts_are_written_in_pieces() {
    for (size, expected) in [
        (32, vec![RequestKind::Put]),
        (
            80,
            vec![
                RequestKind::Begin,
                RequestKind::Put,
                RequestKind::Piece,
                RequestKind::Piece,
                RequestKind::Piece,
                RequestKind::Complete,
                RequestKind::Delete,
            ],
        ),
    ] {
        let store = Arc::new(FaultyStore::new(Backing::new(), Arc::new(NoFaults)));
        let options = StoreOptions {
            multipart_bytes: 32,
            ..StoreOptions::default()
        };
        let run = RunStore::over_pieces(Arc::clone(&store), "memory://run", &options);
        let part = run
            .checkpoints()
            .put_part(Step(10), "", layout::STATE, Bytes::from(vec![7; size]))
            .await;
        assert_eq!(part.unwrap().bytes, size as u64);
        let kinds: Vec<RequestKind> = store.requests().iter().map(|request| request.kind).collect();
        assert_eq!(kinds, expected, "{size} bytes");
    }
}

/// A checkpoint whose manifest cannot be read just now is not listed as an unreadable one; one that was removed is not listed.
#[tokio::test]
async fn a_list_says_nothing_that_it_does_not_know() {
    let (backing, run, manifest) = with_checkpoint().await;
    let (reader, _) = client(&backing, Lost { number: 1 });
    let error = reader.checkpoints().list().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Io);
    let bytes = run.get(MANIFEST).await.unwrap();
    let (reader, _) = client(&backing, Fleeting { run, bytes });
    let list = reader.checkpoints().list().await.unwrap();
    assert!(
        list.checkpoints.is_empty() && list.unreadable.is_empty(),
        "{list:?}"
    );
    assert_eq!(reader.checkpoints().latest().await.unwrap(), Some(manifest.step));
}

/// The newest checkpoint is looked for again when it was removed, but not for ever, and not when a request was lost.
#[tokio::test]
async fn the_newest_checkpoint_is_looked_for_a_few_times() {
    let (backing, run, _) = with_checkpoint().await;
    let (reader, store) = client(&backing, Lost { number: 1 });
    let error = reader.checkpoints().latest_readable().await.unwrap_err();
    assert_eq!((error.kind(), store.requests().len()), (ErrorKind::Io, 2));
    let bytes = run.get(MANIFEST).await.unwrap();
    let (reader, store) = client(&backing, Fleeting { run, bytes });
    let error = reader.checkpoints().latest_readable().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    let looks = store
        .requests()
        .iter()
        .filter(|request| request.kind == RequestKind::List)
        .count();
    assert_eq!(looks, 5);
}

/// Of a checkpoint whose manifest cannot be read, nothing is collected: neither now, when the request was lost, nor when it is damaged.
#[tokio::test]
async fn what_a_manifest_does_not_say_is_not_collected() {
    let (backing, run, _) = with_checkpoint().await;
    let checkpoints = run.checkpoints();
    let other = checkpoints.put_part(Step(10), "generation-4/", layout::STATE, Bytes::new());
    other.await.unwrap();
    let objects = run.list(layout::CHECKPOINTS).await.unwrap();
    let (collector, _) = client(&backing, Lost { number: 1 });
    let error = collector.checkpoints().collect(Step(10)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Io);
    let manifest = run.get(MANIFEST).await.unwrap();
    run.put(MANIFEST, Bytes::from_static(b"harmed")).await.unwrap();
    assert_eq!(
        run.checkpoints().collect(Step(10)).await.unwrap(),
        Collected::default()
    );
    assert_eq!(run.list(layout::CHECKPOINTS).await.unwrap(), objects);
    run.put(MANIFEST, manifest).await.unwrap();
    assert_eq!(run.checkpoints().collect(Step(10)).await.unwrap().objects, 1);
}

/// Who claims a run, gives it back or asks for its end is told when that did not work.
#[tokio::test(start_paused = true)]
async fn every_request_of_a_lease_has_to_succeed() {
    let holder = Holder {
        host: "node1".to_owned(),
        pid: 1,
        since: "2026-01-02T03:04:05Z".to_owned(),
        address: "http://node1:4000".to_owned(),
    };
    let options = LeaseOptions {
        ttl: Duration::from_secs(15),
    };
    let acquire = async |run: &RunStore| Lease::acquire(run, holder.clone(), options, None).await;
    let (run, healthy) = client(&Backing::new(), NoFaults);
    acquire(&run).await.unwrap().unwrap();
    let number = healthy.requests().len();
    for number in 0..number {
        let (run, _) = client(&Backing::new(), Lost { number });
        let error = acquire(&run).await.err().expect("a request was lost");
        assert_eq!(error.kind(), ErrorKind::Io, "request {number}: {error}");
    }
    // The request after those of the claim.
    let (run, _) = client(&Backing::new(), Lost { number });
    let lease = acquire(&run).await.unwrap().unwrap();
    assert_eq!(lease.release().await.unwrap_err().kind(), ErrorKind::Io);
    let (run, _) = client(&Backing::new(), Lost { number: 0 });
    let request = StopRequest {
        user: "ann".to_owned(),
        host: "node1".to_owned(),
        at: holder.since.clone(),
    };
    let asked = lease::ask_to_stop(&run, 1, &request).await;
    assert_eq!(asked.unwrap_err().kind(), ErrorKind::Io);
}
