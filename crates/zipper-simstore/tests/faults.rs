//! Goal: a fault before a request's effect means that it never has one, after it that it has; the same seed is the same run.
//! Method: one client with faults, and one without that looks at what there is.

use std::sync::Arc;
use std::time::Duration;

use object_store::multipart::MultipartStore;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};
use tokio::time::Instant;
use zipper_simstore::{
    Backing, Crash, Faults, FaultyStore, Gate, Moment, NoFaults, RandomFaults, RequestKind, Switch,
};

fn store(backing: &Arc<Backing>, faults: impl Faults) -> FaultyStore {
    FaultyStore::new(Arc::clone(backing), Arc::new(faults))
}

fn path(path: &str) -> Path {
    Path::parse(path).unwrap()
}

#[tokio::test]
async fn a_crash_is_before_or_after_the_effect_and_for_good() {
    for (moment, there) in [(Moment::Before, 1), (Moment::After, 2)] {
        let backing = Backing::new();
        let victim = store(&backing, Crash::at(1, moment));
        victim.put(&path("a"), "a".into()).await.unwrap();
        victim.put(&path("b"), "b".into()).await.unwrap_err();
        victim.put(&path("c"), "c".into()).await.unwrap_err();
        victim.get(&path("a")).await.unwrap_err();
        let other = store(&backing, NoFaults);
        let listed = other.list_with_delimiter(None).await.unwrap();
        assert_eq!(listed.objects.len(), there, "{moment:?}");
        let kinds: Vec<RequestKind> = victim.requests().iter().map(|request| request.kind).collect();
        assert_eq!(
            kinds,
            [
                RequestKind::Put,
                RequestKind::Put,
                RequestKind::Put,
                RequestKind::Get
            ]
        );
    }
}

/// A stopped client's other requests stop, too, and all go on together.
#[tokio::test]
async fn a_gate_holds_a_client_until_it_is_opened() {
    let backing = Backing::new();
    let gate = Arc::new(Gate::at(0, Moment::Before));
    let held = FaultyStore::new(Arc::clone(&backing), Arc::clone(&gate) as _);
    let writing = tokio::spawn(async move {
        let paths = [path("a"), path("b")];
        tokio::try_join!(held.put(&paths[0], "a".into()), held.put(&paths[1], "b".into())).unwrap();
    });
    gate.reached().await;
    let other = store(&backing, NoFaults);
    assert!(other.list_with_delimiter(None).await.unwrap().objects.is_empty());
    gate.open();
    writing.await.unwrap();
    assert_eq!(other.list_with_delimiter(None).await.unwrap().objects.len(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_seed_is_a_run() {
    let trace = async |seed| {
        let delay = Duration::ZERO..Duration::from_secs(5);
        let store = store(&Backing::new(), RandomFaults::new(seed, 0.3, 0.3, delay));
        let begun = Instant::now();
        let mut trace = Vec::new();
        for number in 0..50 {
            let put = store.put(&path(&number.to_string()), "x".into()).await;
            trace.push((put.is_ok(), begun.elapsed()));
        }
        trace
    };
    assert_eq!(trace(7).await, trace(7).await);
    assert_ne!(trace(7).await, trace(8).await);
    assert!(trace(7).await.iter().any(|(fine, _)| *fine));
}

/// What is not complete is seen; what is complete or given up is not, and its upload is not found any more, as on a server.
#[tokio::test]
async fn open_uploads_are_seen() {
    let backing = Backing::new();
    let switch = Arc::new(Switch::default());
    let store = FaultyStore::new(Arc::clone(&backing), Arc::clone(&switch) as _);
    let object = path("large");
    let upload = store.create_multipart(&object).await.unwrap();
    let part = store.put_part(&object, &upload, 0, "piece".into()).await.unwrap();
    let open = backing.open_uploads();
    assert_eq!((open[0].path.as_str(), open[0].pieces), ("large", 1));

    switch.set_away(true);
    store.abort_multipart(&object, &upload).await.unwrap_err();
    assert_eq!(backing.open_uploads().len(), 1);
    switch.set_away(false);
    store
        .complete_multipart(&object, &upload, vec![part])
        .await
        .unwrap();
    assert!(backing.open_uploads().is_empty());
    let again = store.abort_multipart(&object, &upload).await;
    assert!(matches!(again, Err(object_store::Error::NotFound { .. })));
    assert_eq!(store.get(&object).await.unwrap().bytes().await.unwrap(), "piece");
}
