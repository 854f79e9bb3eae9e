//! Goal: what a real S3 server does that memory does not: large objects in pieces, uploads that are interrupted, credentials that
//! are refused and renewed, a server that goes away and comes back. Method: SeaweedFS, and a proxy that cuts connections.

use std::fs;
use std::time::Duration;

use bytes::Bytes;
use zipper_checkpoint::{Environment, ErrorKind, Manifest, RunStore, StoreOptions, layout};
use zipper_tests::{FaultProxy, Mode, S3Server, manifest};
use zipper_types::{Advised, Generation, Step};

const MIB: usize = 1 << 20;

/// As patient as a test can be.
fn options() -> StoreOptions {
    StoreOptions {
        retry_timeout: Duration::from_secs(2),
        request_timeout: Duration::from_secs(5),
        // The smallest that S3 takes.
        multipart_bytes: 5 * MIB as u64,
    }
}

fn open(url: &str, variables: Vec<(String, String)>) -> RunStore {
    let environment: Environment = variables.into_iter().collect();
    RunStore::open_in(url, &options(), &environment).unwrap()
}

/// Bytes of which no two pieces are alike.
fn large() -> Bytes {
    (0..12 * MIB as u32 / 4)
        .flat_map(|number| number.wrapping_mul(2_654_435_761).to_le_bytes())
        .collect()
}

async fn write(run: &RunStore, step: Step) -> Result<Manifest, zipper_checkpoint::CheckpointError> {
    let checkpoints = run.checkpoints();
    let prefix = checkpoints.begin(step, Generation(1)).await?;
    let shared = checkpoints
        .put_part(step, &prefix, layout::SHARED, large())
        .await?;
    let state = Bytes::from_static(b"{}");
    let state = checkpoints.put_part(step, &prefix, layout::STATE, state).await?;
    let manifest = manifest(step, Generation(1), vec![shared, state]);
    checkpoints.publish(&manifest).await?;
    Ok(manifest)
}

/// A large part goes up in three pieces and comes down in three ranges, and every byte of it is checked; what was used is counted.
#[tokio::test]
async fn a_large_part_travels_in_pieces() {
    let server = S3Server::start();
    let run = open(&server.url("runs/large"), server.env());
    let manifest = write(&run, Step(10)).await.unwrap();
    let before = run.usage();
    let shared = run
        .checkpoints()
        .read_part(Step(10), &manifest.parts[0])
        .await
        .unwrap();
    assert!(shared == large());
    let after = run.usage();
    assert_eq!(after.reads - before.reads, 4, "the size, and three ranges");
    assert_eq!(after.bytes_read - before.bytes_read, 12 * MIB as u64);
    assert_eq!((after.writes, after.lists), (before.writes, before.lists));
    assert!(before.bytes_written > 12 * MIB as u64);
    assert!(
        run.list(layout::UPLOADS).await.unwrap().is_empty(),
        "no upload is under way"
    );
}

/// Waits until an upload in pieces is under way.
async fn noted(run: &RunStore) {
    let looking = async {
        while run.list(layout::UPLOADS).await.unwrap().is_empty() {
            tokio::task::yield_now().await;
        }
    };
    let found = tokio::time::timeout(Duration::from_secs(30), looking).await;
    found.expect("an upload begins within 30 s");
}

/// Connections that are cut in the middle of pieces fail the part and no more, and what the server has of it is given up. A writer
/// that is killed leaves its upload, which is found and collected.
#[tokio::test]
async fn uploads_that_are_cut_are_collected() {
    let server = S3Server::start();
    let proxy = FaultProxy::start(server.address());
    let run = open(&server.url("runs/cut"), server.env());
    let through = open(&server.url("runs/cut"), server.env_via(proxy.address()));
    write(&run, Step(10)).await.unwrap();

    let cut = async {
        noted(&run).await;
        proxy.set(Mode::CutRequests);
    };
    let (written, ()) = tokio::join!(write(&through, Step(20)), cut);
    let error = written.unwrap_err();
    assert!(error.is_retryable(), "{error:?}");
    assert!(proxy.harmed() > 0);
    assert_eq!(run.checkpoints().latest().await.unwrap(), Some(Step(10)));
    assert!(
        run.list(layout::UPLOADS).await.unwrap().is_empty(),
        "it was given up"
    );

    proxy.set(Mode::Pass);
    tokio::select! {
        biased;
        () = noted(&run) => {}
        written = write(&through, Step(20)) => panic!("it was written before its note was seen: {written:?}"),
    }
    assert_eq!(run.list(layout::UPLOADS).await.unwrap().len(), 1);
    write(&run, Step(30)).await.unwrap();
    let collected = run.checkpoints().collect(Step(30)).await.unwrap();
    assert_eq!(collected.uploads, 1);
    assert!(run.list(layout::UPLOADS).await.unwrap().is_empty());
    let latest = run.checkpoints().latest_readable().await.unwrap();
    assert_eq!(latest.manifest.unwrap().step, Step(30));
}

/// An answer that is lost after the server has created an object: the same request again finds its own object, and succeeds where
/// that is what counts; another one's does not.
#[tokio::test]
async fn a_lost_answer_is_no_lost_entry() {
    let server = S3Server::start();
    let proxy = FaultProxy::start(server.address());
    let run = open(&server.url("runs/lost"), server.env_via(proxy.address()));
    run.journal().append(0, &"first").await.unwrap();
    proxy.set(Mode::LoseAnswers);
    let error = run.journal().append(1, &"second").await.unwrap_err();
    assert!(error.is_retryable(), "{error:?}");
    proxy.set(Mode::Pass);
    let other = run.journal().append(1, &"other").await.unwrap_err();
    assert_eq!(other.kind(), ErrorKind::AlreadyExists);
    run.journal().append(1, &"second").await.unwrap();
    let entries: Vec<(u64, String)> = run.journal().read_all().await.unwrap();
    assert_eq!(entries, [(0, "first".to_owned()), (1, "second".to_owned())]);
}

/// A body that is cut on its way back is no damage: it is asked for again until it is whole, or is an error of the store.
#[tokio::test]
async fn a_cut_answer_is_not_damage() {
    let server = S3Server::start();
    let proxy = FaultProxy::start(server.address());
    let run = open(&server.url("runs/answers"), server.env());
    write(&run, Step(10)).await.unwrap();
    let through = open(&server.url("runs/answers"), server.env_via(proxy.address()));
    proxy.set(Mode::CutAnswers);
    let error = through.checkpoints().latest_readable().await.unwrap_err();
    assert!(error.is_retryable(), "{error:?}");
    proxy.set(Mode::Pass);
    let latest = through.checkpoints().latest_readable().await.unwrap();
    assert_eq!(latest.manifest.unwrap().step, Step(10));
    assert!(latest.damaged.is_empty());
}

/// Keys that the server refuses are reported as that, and are read again from the profile when somebody has put them right.
#[tokio::test]
async fn refused_credentials_can_be_renewed() {
    let server = S3Server::start();
    let folder = tempfile::tempdir().unwrap();
    let profile = folder.path().join("credentials");
    let mut variables = server.env();
    let mut take = |name: &str| {
        let index = variables.iter().position(|(key, _)| key == name).unwrap();
        variables.swap_remove(index).1
    };
    let (key, secret) = (take("AWS_ACCESS_KEY_ID"), take("AWS_SECRET_ACCESS_KEY"));
    let keys = |key: &str, secret: &str| {
        format!("[default]\naws_access_key_id = {key}\naws_secret_access_key = {secret}\n")
    };
    fs::write(&profile, keys(&key, "expired")).unwrap();
    let path = profile.to_str().unwrap().to_owned();
    variables.push(("AWS_SHARED_CREDENTIALS_FILE".to_owned(), path));
    variables.push(("HOME".to_owned(), folder.path().to_str().unwrap().to_owned()));
    let run = open(&server.url("runs/denied"), variables);

    let error = run.put("a", Bytes::from_static(b"a")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Denied, "{error:?}");
    assert!(error.is_retryable());
    let message = error.to_string();
    assert!(
        message.contains("runs/denied/a") && message.contains("AWS_SECRET_ACCESS_KEY"),
        "{message}"
    );

    fs::write(&profile, keys(&key, &secret)).unwrap();
    run.put("a", Bytes::from_static(b"a")).await.unwrap();
    assert_eq!(run.get("a").await.unwrap(), "a");
}

/// A server that is gone is an error that says so and can be tried again, by the same client, when it is back with its data.
#[tokio::test]
async fn a_server_that_comes_back_is_used_again() {
    let mut server = S3Server::start();
    let run = open(&server.url("runs/away"), server.env());
    write(&run, Step(10)).await.unwrap();
    server.kill();
    let error = run.put("b", Bytes::from_static(b"b")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Io, "{error:?}");
    server.restart();
    // It answers before all of it is there.
    let warm = server.run("runs/warm");
    warm.put("x", Bytes::from_static(b"x")).await.unwrap();
    run.put("b", Bytes::from_static(b"b")).await.unwrap();
    run.checkpoints().verify(Step(10)).await.unwrap();
}
