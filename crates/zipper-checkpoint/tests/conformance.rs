//! Goal: every kind of store keeps the contract of [`RunStore`] and of the checkpoints in it.
//! Method: one suite, run over a directory and over memory on tokio's paused clock, and over an S3 server.

use std::process::Command;
use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use zipper_checkpoint::lease::{self, Holder, Lease, LeaseLost, LeaseOptions, StopRequest};
use zipper_checkpoint::{CheckpointError, Collected, ErrorKind, Manifest, PartRecord, RunStore, layout};
use zipper_tests::{S3Server, manifest};
use zipper_types::{Generation, Step};

#[tokio::test(start_paused = true)]
async fn a_directory_keeps_the_contract() {
    let directory = tempfile::tempdir().unwrap();
    let place = directory.path().join("a run/with spaces");
    suite(&RunStore::open(place.to_str().unwrap()).unwrap(), LEASE).await;
}

#[tokio::test(start_paused = true)]
async fn memory_keeps_the_contract() {
    suite(&RunStore::in_memory(), LEASE).await;
}

/// SeaweedFS, reached as users reach theirs: by a URL, and variables that a process has from its start.
#[test]
fn an_s3_server_keeps_the_contract() {
    let server = S3Server::start();
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", "an_object_store_keeps_the_contract"])
        .envs(server.env())
        .env("ZIPPER_TEST_S3_URL", server.url("runs/a run"))
        .output()
        .unwrap();
    let (said, stderr) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    assert!(
        output.status.success() && said.contains("1 passed"),
        "{said}\n{stderr}"
    );
}

#[tokio::test]
#[ignore = "for any other server: set ZIPPER_TEST_S3_URL to an unused prefix, and the AWS_* variables"]
async fn an_object_store_keeps_the_contract() {
    let url = std::env::var("ZIPPER_TEST_S3_URL").expect("ZIPPER_TEST_S3_URL is set");
    suite(&RunStore::open(&url).unwrap(), LEASE_BY_THE_CLOCK).await;
}

async fn suite(run: &RunStore, lease: LeaseOptions) {
    objects(run).await;
    creation_has_one_winner(run).await;
    bad_paths(run).await;
    journal(run).await;
    a_checkpoint_exists_when_its_manifest_does(run).await;
    publishing_again(run).await;
    publishing_checks_its_parts(run).await;
    generations_do_not_touch_each_others_parts(run).await;
    leftovers_are_collected(run).await;
    leases(run, lease).await;
    damage_is_found_and_passed_over(run).await;
    newer_formats_are_refused(run).await;
}

fn kind<T>(result: Result<T, CheckpointError>) -> ErrorKind {
    result.err().expect("the call was meant to fail").kind()
}

fn bytes(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

/// Objects are written, replaced, read, listed in order, and deleted.
async fn objects(run: &RunStore) {
    assert_eq!(run.list("objects").await.unwrap(), Vec::<String>::new());
    assert_eq!(kind(run.get("objects/b").await), ErrorKind::NotFound);
    assert_eq!(run.get_if_there("objects/b").await.unwrap(), None);
    assert!(!run.exists("objects/b").await.unwrap());

    run.put("objects/b", bytes("old")).await.unwrap();
    run.put("objects/b", bytes("new")).await.unwrap();
    run.put("objects/deep/er/a", bytes("")).await.unwrap();
    run.put("objects/a", bytes("first")).await.unwrap();
    run.put("objects-not/c", bytes("elsewhere")).await.unwrap();
    assert_eq!(run.get("objects/b").await.unwrap(), "new");
    assert_eq!(run.get_if_there("objects/b").await.unwrap().unwrap(), "new");
    assert_eq!(run.get("objects/deep/er/a").await.unwrap(), "");
    assert!(run.exists("objects/b").await.unwrap());
    assert_eq!(
        run.list("objects").await.unwrap(),
        ["objects/a", "objects/b", "objects/deep/er/a"]
    );
    assert!(run.list("").await.unwrap().contains(&"objects-not/c".to_owned()));

    run.delete("objects/b").await.unwrap();
    run.delete("objects/b").await.unwrap();
    assert!(!run.exists("objects/b").await.unwrap());
}

/// Of many writers that create the same object at the same time exactly one succeeds, and its bytes are there.
async fn creation_has_one_winner(run: &RunStore) {
    let writers = (0..8).map(|writer| async move {
        run.put_create("created/once", bytes(&writer.to_string()))
            .await
            .map(|()| writer.to_string())
    });
    let results = futures::future::join_all(writers).await;
    let (winners, losers): (Vec<_>, Vec<_>) = results.into_iter().partition(Result::is_ok);
    let winners: Vec<String> = winners.into_iter().map(Result::unwrap).collect();
    assert_eq!(winners.len(), 1);
    assert!(
        losers
            .into_iter()
            .all(|result| kind(result) == ErrorKind::AlreadyExists)
    );
    assert_eq!(run.get("created/once").await.unwrap(), winners[0]);
}

/// No path leads out of the run.
async fn bad_paths(run: &RunStore) {
    for path in ["", "/etc/x", "../x", "a/../../x", "a//b", "a/"] {
        assert_eq!(kind(run.put(path, bytes("x")).await), ErrorKind::Config, "{path}");
    }
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Entry {
    generation: u64,
}

/// Entries come back in the order of their numbers, a taken number is refused, and a gap is damage.
async fn journal(run: &RunStore) {
    let journal = run.journal();
    assert_eq!(journal.read_all::<Entry>().await.unwrap(), []);
    for sequence in 0..12 {
        journal
            .append(
                sequence,
                &Entry {
                    generation: sequence * 10,
                },
            )
            .await
            .unwrap();
    }
    assert_eq!(
        kind(journal.append(3, &Entry { generation: 0 }).await),
        ErrorKind::AlreadyExists
    );
    journal
        .append(3, &Entry { generation: 30 })
        .await
        .expect("a request that is repeated has succeeded");
    let expected: Vec<_> = (0..12)
        .map(|sequence| {
            (
                sequence,
                Entry {
                    generation: sequence * 10,
                },
            )
        })
        .collect();
    assert_eq!(journal.read_all::<Entry>().await.unwrap(), expected);

    run.delete("journal/000000000005.json").await.unwrap();
    let error = journal.read_all::<Entry>().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Damaged);
    assert!(error.to_string().contains("000000000005.json"), "{error}");
}

/// Writes the parts of a checkpoint and returns its manifest, unpublished.
async fn write_parts(run: &RunStore, step: Step) -> Manifest {
    let checkpoints = run.checkpoints();
    let mut parts = Vec::new();
    for path in [
        layout::SHARED.to_owned(),
        layout::bank("de"),
        layout::optimizer_bank("de"),
        layout::STATE.to_owned(),
    ] {
        let content = bytes(&format!("{path} after {step}"));
        parts.push(checkpoints.put_part(step, "", &path, content).await.unwrap());
    }
    manifest(step, Generation(7), parts)
}

async fn remove_all(run: &RunStore) {
    for path in run.list(layout::CHECKPOINTS).await.unwrap() {
        run.delete(&path).await.unwrap();
    }
}

/// CKPT-1: parts without a manifest are a leftover; with it they are a checkpoint; steps are sorted as numbers.
async fn a_checkpoint_exists_when_its_manifest_does(run: &RunStore) {
    let checkpoints = run.checkpoints();
    assert_eq!(checkpoints.latest().await.unwrap(), None);
    for step in [Step(1000), Step(500), Step(123_456_789)] {
        let manifest = write_parts(run, step).await;
        checkpoints.publish(&manifest).await.unwrap();
    }
    let unpublished = write_parts(run, Step(200_000_000)).await;
    run.put("checkpoints/notes.txt", bytes("not ours")).await.unwrap();

    let list = checkpoints.list().await.unwrap();
    let steps: Vec<u64> = list
        .checkpoints
        .iter()
        .map(|checkpoint| checkpoint.manifest.step.0)
        .collect();
    assert_eq!(steps, [500, 1000, 123_456_789]);
    assert_eq!(list.checkpoints[0].id, "step-00000500");
    assert!(list.unreadable.is_empty());
    let [leftover] = list.leftovers.as_slice() else {
        panic!("{:?}", list.leftovers)
    };
    assert_eq!((leftover.step, leftover.num_objects), (Step(200_000_000), 4));
    assert_eq!(leftover.bytes, unpublished.total_bytes());

    assert_eq!(checkpoints.latest().await.unwrap(), Some(Step(123_456_789)));
    let latest = checkpoints.latest_readable().await.unwrap();
    assert!(latest.damaged.is_empty());
    let manifest = latest.manifest.unwrap();
    let bank = manifest.part(&layout::bank("de")).unwrap();
    let content = checkpoints.read_part(manifest.step, bank).await.unwrap();
    assert_eq!(content, "banks/de.safetensors after 123456789");

    checkpoints.remove(Step(200_000_000)).await.unwrap();
    checkpoints.remove(Step(123_456_789)).await.unwrap();
    assert_eq!(checkpoints.latest().await.unwrap(), Some(Step(1000)));
    assert!(run.list("checkpoints/step-200000000").await.unwrap().is_empty());
    remove_all(run).await;
}

/// The same manifest may be published again; another one for the same step may not.
async fn publishing_again(run: &RunStore) {
    let checkpoints = run.checkpoints();
    let manifest = write_parts(run, Step(10)).await;
    checkpoints.publish(&manifest).await.unwrap();
    checkpoints.publish(&manifest).await.unwrap();
    let other = Manifest {
        generation: Generation(8),
        ..manifest.clone()
    };
    assert_eq!(kind(checkpoints.publish(&other).await), ErrorKind::AlreadyExists);
    assert_eq!(checkpoints.load_manifest(Step(10)).await.unwrap(), manifest);
    remove_all(run).await;
}

/// A manifest that lists a missing part, a part of another size, a part twice, or what is the checkpoint's own is not published.
async fn publishing_checks_its_parts(run: &RunStore) {
    let checkpoints = run.checkpoints();
    let manifest = write_parts(run, Step(20)).await;

    let mut missing = manifest.clone();
    missing
        .parts
        .push(PartRecord::of("banks/fr.safetensors", b"never written"));
    let error = checkpoints.publish(&missing).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Damaged);
    assert!(error.to_string().contains("banks/fr.safetensors"), "{error}");

    let mut twice = manifest.clone();
    twice.parts.push(twice.parts[0].clone());
    assert_eq!(kind(checkpoints.publish(&twice).await), ErrorKind::Config);

    checkpoints.begin(Step(20), Generation(7)).await.unwrap();
    let path = format!("{}/{}", layout::checkpoint_dir(Step(20)), layout::WRITER);
    let writer = run.get(&path).await.unwrap();
    let mut own = manifest.clone();
    own.parts.push(PartRecord::of(layout::WRITER, &writer));
    assert_eq!(kind(checkpoints.publish(&own).await), ErrorKind::Config);

    let mut short = manifest;
    short.parts[1].bytes += 1;
    assert_eq!(kind(checkpoints.publish(&short).await), ErrorKind::Damaged);
    assert_eq!(checkpoints.latest().await.unwrap(), None);
    remove_all(run).await;
}

/// CKPT-3: whatever a generation writes that was cut off and comes back, nothing of another generation changes.
async fn generations_do_not_touch_each_others_parts(run: &RunStore) {
    let checkpoints = run.checkpoints();
    let step = Step(30);
    let begin = async |generation| checkpoints.begin(step, Generation(generation)).await.unwrap();
    assert_eq!(begin(3).await, "");
    assert_eq!(begin(3).await, "", "asking again changes nothing");
    checkpoints
        .put_part(step, "", layout::SHARED, bytes("by generation 3, cut off"))
        .await
        .unwrap();
    assert_eq!(begin(4).await, "generation-4/");
    let mut parts = Vec::new();
    for path in [layout::SHARED.to_owned(), layout::bank("de")] {
        let content = bytes(&format!("{path} by generation 4"));
        let part = checkpoints.put_part(step, "generation-4/", &path, content).await;
        parts.push(part.unwrap());
    }
    assert_eq!(parts[0].object(), "generation-4/shared.safetensors");
    let published = manifest(step, Generation(7), parts);
    assert!(!checkpoints.is_published(step).await.unwrap());
    checkpoints.publish(&published).await.unwrap();
    assert!(checkpoints.is_published(step).await.unwrap());
    checkpoints
        .put_part(step, "", layout::SHARED, bytes("by generation 3, back again"))
        .await
        .unwrap();
    assert_eq!(checkpoints.verify(step).await.unwrap(), published);
    let manifest = checkpoints.load_manifest(step).await.unwrap();
    let shared = checkpoints.read_part(step, &manifest.parts[0]).await.unwrap();
    assert_eq!(shared, bytes("shared.safetensors by generation 4"));
    for name in [layout::MANIFEST, layout::WRITER] {
        let part = checkpoints.put_part(step, "", name, bytes("{}")).await;
        assert_eq!(kind(part), ErrorKind::Config);
    }
    remove_all(run).await;
}

/// Goal: what was never published goes when something newer is; checkpoints and attempts that are under way stay.
async fn leftovers_are_collected(run: &RunStore) {
    let checkpoints = run.checkpoints();
    for step in [10, 20, 30] {
        checkpoints.begin(Step(step), Generation(1)).await.unwrap();
        let manifest = write_parts(run, Step(step)).await;
        if step == 20 {
            checkpoints.publish(&manifest).await.unwrap();
        }
    }
    let collected = checkpoints.collect(Step(20)).await.unwrap();
    assert_eq!((collected.steps, collected.objects), (vec![Step(10)], 4));
    let folder = run.list(&layout::checkpoint_dir(Step(10))).await.unwrap();
    assert!(folder.is_empty(), "its claim is gone, too: {folder:?}");
    assert!(collected.bytes > 0);
    let list = checkpoints.list().await.unwrap();
    assert_eq!(list.checkpoints.len(), 1);
    assert_eq!(list.leftovers.len(), 1, "the attempt at step 30 is under way");
    checkpoints.verify(Step(20)).await.unwrap();
    // Nothing published, nothing collected: the step may be written again later, under other names than before.
    checkpoints.remove(Step(20)).await.unwrap();
    assert_eq!(checkpoints.collect(Step(20)).await.unwrap(), Collected::default());
    assert_eq!(
        checkpoints.begin(Step(20), Generation(2)).await.unwrap(),
        "generation-2/"
    );
    let list = checkpoints.list().await.unwrap();
    assert_eq!(list.leftovers.len(), 1, "a claim alone is no leftover");
    remove_all(run).await;
}

/// CKPT-2: a changed, a shortened and a missing part, and a manifest that is not one, are each found, with the object's
/// name and what was expected and found; the newest checkpoint without damage is the one to go on from.
async fn damage_is_found_and_passed_over(run: &RunStore) {
    let checkpoints = run.checkpoints();
    for step in 1..=5 {
        let manifest = write_parts(run, Step(step)).await;
        checkpoints.publish(&manifest).await.unwrap();
    }
    let part = |step: u64| format!("checkpoints/step-{step:08}/banks/de.safetensors");
    run.put(&part(2), bytes("BANKS/de.safetensors after 2"))
        .await
        .unwrap();
    run.put(&part(3), bytes("banks/de")).await.unwrap();
    run.delete(&part(4)).await.unwrap();
    run.put(
        "checkpoints/step-00000005/MANIFEST.json",
        bytes("{\"format_version\": 1, \"st"),
    )
    .await
    .unwrap();

    for (step, words) in [
        (2, "found blake3"),
        (3, "expected 28 bytes, found 8 bytes"),
        (4, "found no object"),
    ] {
        let error = checkpoints.verify(Step(step)).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Damaged);
        let message = error.to_string();
        assert!(
            message.contains(&run.object_url(&part(step))) && message.contains(words),
            "{message}"
        );
    }
    let latest = checkpoints.latest_readable().await.unwrap();
    assert_eq!(latest.manifest.unwrap().step, Step(1));
    let damaged: Vec<u64> = latest.damaged.iter().map(|(step, _)| step.0).collect();
    assert_eq!(damaged, [5, 4, 3, 2]);
    let unreadable: Vec<Step> = checkpoints
        .list()
        .await
        .unwrap()
        .unreadable
        .into_iter()
        .map(|(step, _)| step)
        .collect();
    assert_eq!(unreadable, [Step(5)]);

    // A manifest that was copied to another step is not that step's.
    let copied = run.get("checkpoints/step-00000001/MANIFEST.json").await.unwrap();
    run.put("checkpoints/step-00000005/MANIFEST.json", copied)
        .await
        .unwrap();
    assert_eq!(kind(checkpoints.load_manifest(Step(5)).await), ErrorKind::Damaged);
    remove_all(run).await;
}

/// A manifest of a newer format is refused with both versions named, and is not passed over for an older checkpoint.
async fn newer_formats_are_refused(run: &RunStore) {
    let checkpoints = run.checkpoints();
    let manifest = write_parts(run, Step(1)).await;
    checkpoints.publish(&manifest).await.unwrap();
    let newer = bytes("{\"format_version\": 99, \"steps\": {}}");
    run.put("checkpoints/step-00000002/MANIFEST.json", newer)
        .await
        .unwrap();
    let error = checkpoints.load_manifest(Step(2)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Config);
    let message = error.to_string();
    assert!(
        message.contains("format version 99") && message.contains("up to 2"),
        "{message}"
    );
    assert_eq!(kind(checkpoints.latest_readable().await), ErrorKind::Config);
    remove_all(run).await;
}

fn holder(pid: u32) -> Holder {
    Holder {
        host: "machine".to_owned(),
        pid,
        since: "2026-01-02T03:04:05Z".to_owned(),
        address: format!("http://127.0.0.1:{pid}"),
    }
}

/// On a paused clock, waiting takes no time.
const LEASE: LeaseOptions = LeaseOptions {
    ttl: Duration::from_secs(15),
};

/// A server does not wait for a paused clock. Between two renewals there is time for requests on a busy machine.
const LEASE_BY_THE_CLOCK: LeaseOptions = LeaseOptions {
    ttl: Duration::from_secs(3),
};

/// Who asks for the run while its holder renews its claim is refused, by name; after an orderly end, or the death of the
/// holder, the next one has it, and the one before can do nothing any more.
async fn leases(run: &RunStore, options: LeaseOptions) {
    assert_eq!(lease::newest(run).await.unwrap(), None);
    let acquire = async |pid, supersede| {
        let acquired = Lease::acquire(run, holder(pid), options, supersede).await;
        acquired.unwrap()
    };
    let first = acquire(1, None).await.unwrap();
    assert_eq!(first.epoch(), 1);
    let renewing = async {
        loop {
            first.renew().await.unwrap();
            tokio::time::sleep(first.renew_every()).await;
        }
    };
    let refused = tokio::select! {
        () = renewing => unreachable!("it renews for ever"),
        refused = acquire(2, None) => refused.err().expect("the holder lives"),
    };
    assert_eq!((refused.epoch, &refused.holder), (1, &holder(1)));
    let message = refused.to_string();
    assert!(
        message.contains("(process 1) since 2026-01-02T03:04:05Z"),
        "{message}"
    );

    first.release().await.unwrap();
    first.release().await.expect("giving it back twice is no error");
    let second = acquire(2, None).await.unwrap();
    assert_eq!(second.epoch(), 2);
    assert!(matches!(
        first.renew().await,
        Err(LeaseLost::Superseded {
            epoch: 1,
            newer: 2,
            ..
        })
    ));

    // The second one is silent, as a process is that was stopped or cut off.
    let third = acquire(3, None).await.unwrap();
    let lost = second.check().await.expect_err("its last renewal is long ago");
    assert!(lost.to_string().contains("(process 3)"), "{lost}");
    third.check().await.unwrap();

    let fourth = acquire(4, Some(3)).await.unwrap();
    assert_eq!(fourth.epoch(), 4, "who is known to be dead is not waited for");
    let newest = lease::newest(run).await.unwrap().unwrap();
    assert_eq!(
        (newest.epoch, &newest.holder, newest.released),
        (4, &holder(4), false)
    );

    let request = |user: &str| StopRequest {
        user: user.to_owned(),
        host: "login".to_owned(),
        at: "2026-01-02T03:04:05Z".to_owned(),
    };
    lease::ask_to_stop(run, 3, &request("late")).await.unwrap();
    fourth.renew().await.unwrap();
    assert_eq!(
        fourth.stop_request().await.unwrap(),
        None,
        "that was for another holder"
    );
    for user in ["first", "second"] {
        lease::ask_to_stop(run, 4, &request(user)).await.unwrap();
    }
    fourth.renew().await.unwrap();
    assert_eq!(fourth.stop_request().await.unwrap(), Some(request("first")));
}

/// LEASE-1.
#[tokio::test(start_paused = true)]
async fn of_many_contenders_one_gets_the_run() {
    let run = RunStore::in_memory();
    let dead = Lease::acquire(&run, holder(1), LEASE, None).await.unwrap();
    drop(dead.unwrap());
    let contenders = (2..8).map(|pid| {
        let run = run.clone();
        tokio::spawn(async move {
            match Lease::acquire(&run, holder(pid), LEASE, None).await.unwrap() {
                Ok(lease) => {
                    let renewals = async {
                        loop {
                            lease.renew().await.unwrap();
                            tokio::time::sleep(lease.renew_every()).await;
                        }
                    };
                    let _ = tokio::time::timeout(4 * LEASE.ttl, renewals).await;
                    Some(pid)
                }
                Err(_) => None,
            }
        })
    });
    let mut winners = Vec::new();
    for contender in contenders.collect::<Vec<_>>() {
        winners.extend(contender.await.unwrap());
    }
    assert_eq!(winners.len(), 1, "{winners:?}");
}
