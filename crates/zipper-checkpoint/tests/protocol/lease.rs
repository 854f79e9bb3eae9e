//! Goal: one coordinator at a time has a run (LEASE-1 to LEASE-4), whatever is slow, lost, stopped or killed, at any request.
//! Method: contenders over a store that fails on demand, on tokio's paused clock, so that minutes of waiting take no time and
//! every run is the same.

use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};
use zipper_checkpoint::lease::{self, Holder, Lease, LeaseLost, LeaseOptions, Refused};
use zipper_checkpoint::{CheckpointError, ErrorKind, RunStore, layout};
use zipper_simstore::{
    Backing, Crash, Faults, FaultyStore, Gate, Moment, NoFaults, RandomFaults, Request, Switch,
};

const TTL: Duration = Duration::from_secs(15);
const OPTIONS: LeaseOptions = LeaseOptions { ttl: TTL };

fn run(backing: &Arc<Backing>, faults: Arc<dyn Faults>) -> RunStore {
    let store = Arc::new(FaultyStore::new(Arc::clone(backing), faults));
    RunStore::over(store, "memory://run")
}

fn healthy(backing: &Arc<Backing>) -> RunStore {
    run(backing, Arc::new(NoFaults))
}

fn holder(pid: u32) -> Holder {
    Holder {
        host: "node1".to_owned(),
        pid,
        since: "2026-01-02T03:04:05Z".to_owned(),
        address: "http://node1:4000".to_owned(),
    }
}

async fn acquire(run: &RunStore, pid: u32) -> Result<Result<Lease, Refused>, CheckpointError> {
    Lease::acquire(run, holder(pid), OPTIONS, None).await
}

async fn acquired(run: &RunStore, pid: u32) -> Lease {
    acquire(run, pid)
        .await
        .unwrap()
        .unwrap_or_else(|refused| panic!("{refused}"))
}

/// The requests with which `pid` claims a run.
async fn requests(backing: &Arc<Backing>, pid: u32) -> Vec<Request> {
    let store = Arc::new(FaultyStore::new(Arc::clone(backing), Arc::new(NoFaults)));
    acquired(&RunStore::over(Arc::clone(&store) as _, "memory://run"), pid).await;
    store.requests()
}

/// How many requests it takes to claim a run whose holder `pid` 1 is silent.
async fn num_requests() -> usize {
    let backing = Backing::new();
    acquired(&healthy(&backing), 1).await;
    requests(&backing, 2).await.len()
}

/// A contender dies at any of its requests: the next one gets the run after the time to live, under a number of its own.
#[tokio::test(start_paused = true)]
async fn a_contender_killed_at_any_request_blocks_nobody() {
    for number in 0..num_requests().await {
        for moment in [Moment::Before, Moment::After] {
            let what = format!("killed {moment:?} request {number}");
            let backing = Backing::new();
            acquired(&healthy(&backing), 1).await;
            let crash = Arc::new(Crash::at(number, moment));
            let victim = acquire(&run(&backing, Arc::clone(&crash) as _), 2).await;
            assert!(crash.has_happened(), "{what}");
            // Between its claim and its last look it has the run already, and does not know it.
            let begun = Instant::now();
            let third = acquired(&healthy(&backing), 3).await;
            third
                .check()
                .await
                .unwrap_or_else(|error| panic!("{what}: {error}"));
            assert!(
                begun.elapsed() <= TTL * 2,
                "{what}: it waited for {:?}",
                begun.elapsed()
            );
            let newest = lease::newest(&healthy(&backing)).await.unwrap().unwrap();
            assert_eq!(
                (newest.epoch, newest.holder),
                (third.epoch(), holder(3)),
                "{what}"
            );
            if let Ok(Ok(lease)) = victim {
                assert!(lease.epoch() < third.epoch(), "{what}");
            }
        }
    }
}

/// A contender whose claim succeeded without its knowing tries again with the same identity, and has the run once.
#[tokio::test(start_paused = true)]
async fn a_contender_that_repeats_itself_has_the_run() {
    for number in 0..num_requests().await {
        for moment in [Moment::Before, Moment::After] {
            let what = format!("failed {moment:?} request {number}");
            let backing = Backing::new();
            acquired(&healthy(&backing), 1).await;
            let failed = acquire(&run(&backing, Arc::new(Crash::at(number, moment))), 2).await;
            let lease = match failed {
                Ok(lease) => lease.unwrap(),
                Err(_) => acquired(&healthy(&backing), 2).await,
            };
            assert_eq!(lease.epoch(), 2, "{what}: there is one claim of it");
        }
    }
}

/// LEASE-3: the holder was stopped for longer than the time to live, and wakes up at any moment of the contender's claim. At no
/// time do both pass their checks.
#[tokio::test(start_paused = true)]
async fn a_holder_that_wakes_up_while_its_run_is_claimed_never_has_it_together_with_the_other() {
    for number in 0..num_requests().await {
        for moment in [Moment::Before, Moment::After] {
            let what = format!("the contender sleeps {moment:?} request {number}");
            let backing = Backing::new();
            let first = acquired(&healthy(&backing), 1).await;
            sleep(TTL).await;

            let gate = Arc::new(Gate::at(number, moment));
            let contender_run = run(&backing, Arc::clone(&gate) as _);
            let contender: JoinHandle<_> = tokio::spawn(async move { acquire(&contender_run, 2).await });
            gate.reached().await;
            // The holder wakes up and looks; then both go on, and the holder does not renew any more.
            let woken = first.renew().await;
            gate.open();
            let mut second = None;
            let mut contender = Some(contender);
            for _ in 0..400 {
                sleep(Duration::from_millis(100)).await;
                if contender.as_ref().is_some_and(JoinHandle::is_finished) {
                    second = Some(contender.take().unwrap().await.unwrap().unwrap());
                }
                if let Some(Ok(second)) = &second {
                    // Who has the run is asked first, so that its answer is not the later one.
                    let (second, first) = (second.check().await, first.check().await);
                    assert!(second.is_err() || first.is_err(), "{what}, woken: {woken:?}");
                }
            }
            match second.unwrap_or_else(|| panic!("{what}: it ends")) {
                Ok(second) => second
                    .check()
                    .await
                    .unwrap_or_else(|error| panic!("{what}: {error}")),
                Err(refused) => {
                    assert_eq!(refused.holder, holder(1), "{what}");
                    first
                        .check()
                        .await
                        .unwrap_or_else(|error| panic!("{what}: {error}"));
                }
            }
        }
    }
}

/// LEASE-3 again: the claim came right after a renewal, and the contender never heard that it succeeded. When it finds that out,
/// the holder before it may still trust its renewal.
#[tokio::test(start_paused = true)]
async fn a_claim_that_was_not_acknowledged_counts_when_the_other_holder_knows_it() {
    let backing = Backing::new();
    let run = healthy(&backing);
    let first = acquired(&run, 1).await;
    first.renew().await.unwrap();
    let claim = serde_json::to_vec(&holder(2)).unwrap();
    run.put_create(&layout::lease_claim(2), claim.into())
        .await
        .unwrap();
    first.check().await.expect("its renewal is young");
    let begun = Instant::now();
    let second = acquired(&run, 2).await;
    assert_eq!(second.epoch(), 2);
    assert!(begun.elapsed() <= TTL, "it waited for {:?}", begun.elapsed());
    first.check().await.expect_err("the other one has the run");
    second.check().await.unwrap();
}

/// Between a contender's look and its claim another one claims the run, and lives: the contender is refused, and told by whom.
#[tokio::test(start_paused = true)]
async fn a_contender_that_is_a_moment_too_late_is_refused() {
    // Its last request is its claim.
    let number = requests(&Backing::new(), 1).await.len() - 1;
    let gate = Arc::new(Gate::at(number, Moment::Before));
    let backing = Backing::new();
    let late = run(&backing, Arc::clone(&gate) as _);
    let late = tokio::spawn(async move { acquire(&late, 1).await });
    gate.reached().await;
    let second = acquired(&healthy(&backing), 2).await;
    gate.open();
    while !late.is_finished() {
        second.renew().await.unwrap();
        sleep(second.renew_every()).await;
    }
    let refused = late.await.unwrap().unwrap().err().expect("it is refused");
    assert_eq!((refused.epoch, refused.holder), (1, holder(2)));
}

/// While a contender waits for one holder that is gone, another one claims the run and is gone as well: the contender waits again.
#[tokio::test(start_paused = true)]
async fn a_contender_outlives_several_that_are_gone() {
    let backing = Backing::new();
    let run = healthy(&backing);
    acquired(&run, 1).await;
    let contender = run.clone();
    let contender = tokio::spawn(async move { acquire(&contender, 3).await });
    sleep(TTL / 2).await;
    let claim = serde_json::to_vec(&holder(2)).unwrap();
    run.put_create(&layout::lease_claim(2), claim.into())
        .await
        .unwrap();
    let lease = contender.await.unwrap().unwrap();
    let lease = lease.unwrap_or_else(|refused| panic!("{refused}"));
    assert_eq!(lease.epoch(), 3);
}

/// LEASE-2 and LEASE-3: the holder is stopped in the middle of the renewal that a check asks for, on either side of any of its requests, until
/// another one has the run. What it finds out then is too old.
#[tokio::test(start_paused = true)]
async fn a_holder_that_is_stopped_in_a_check_does_not_pass_it() {
    for number in 0..2 {
        for moment in [Moment::Before, Moment::After] {
            let what = format!("stopped {moment:?} request {number} of the renewal");
            let backing = Backing::new();
            acquired(&healthy(&backing), 9).await.release().await.unwrap();
            // The requests before are those of the claim, after one that was given back.
            let gate = Arc::new(Gate::at(
                num_requests_to_claim_a_free_run().await + number,
                moment,
            ));
            let first = acquired(&run(&backing, Arc::clone(&gate) as _), 1).await;
            sleep(TTL).await;
            let checking = tokio::spawn(async move { first.check().await });
            gate.reached().await;
            let second = acquired(&healthy(&backing), 2).await;
            second.check().await.unwrap();
            gate.open();
            let checked = checking.await.unwrap();
            checked.expect_err(&what);
        }
    }
}

async fn num_requests_to_claim_a_free_run() -> usize {
    let backing = Backing::new();
    acquired(&healthy(&backing), 9).await.release().await.unwrap();
    requests(&backing, 1).await.len()
}

/// A run that was given back is free at once; giving it back again changes nothing.
#[tokio::test(start_paused = true)]
async fn a_run_that_was_given_back_is_not_waited_for() {
    let backing = Backing::new();
    let run = healthy(&backing);
    let first = acquired(&run, 1).await;
    assert!(!lease::newest(&run).await.unwrap().unwrap().released);
    for _ in 0..2 {
        first.release().await.unwrap();
        assert!(lease::newest(&run).await.unwrap().unwrap().released);
    }
    let begun = Instant::now();
    assert_eq!(acquired(&run, 2).await.epoch(), 2);
    assert_eq!(begun.elapsed(), Duration::ZERO);
}

/// LEASE-4: a claim that was lost is lost, although the last renewal before that is young.
#[tokio::test(start_paused = true)]
async fn a_lost_claim_stays_lost() {
    let backing = Backing::new();
    let first = acquired(&healthy(&backing), 1).await;
    first.renew().await.unwrap();
    let second = Lease::acquire(&healthy(&backing), holder(2), OPTIONS, Some(1)).await;
    let second = second.unwrap().unwrap();
    let lost = first.renew().await.unwrap_err();
    assert!(lost.to_string().contains("claim 2 was made by"), "{lost}");
    second.release().await.unwrap();
    for _ in 0..3 {
        for result in [first.check().await, first.renew().await] {
            assert!(matches!(
                result,
                Err(LeaseLost::Superseded {
                    epoch: 1,
                    newer: 2,
                    ..
                })
            ));
        }
        sleep(TTL).await;
    }
}

/// A holder that lives keeps its run against contenders that come at any time, over a store that loses requests and answers, as
/// long as it can renew at all within the time to live.
#[tokio::test(start_paused = true)]
async fn a_holder_that_lives_is_not_robbed() {
    for seed in 0..20 {
        let backing = Backing::new();
        let delay = Duration::from_millis(1)..Duration::from_millis(400);
        let faults = Arc::new(RandomFaults::new(seed, 0.2, 0.2, delay));
        let first = acquired(&healthy(&backing), 1).await;
        let first_run = run(&backing, faults);
        // Its own client is bad; the contenders' are good.
        let lease = loop {
            match Lease::acquire(&first_run, holder(9), OPTIONS, Some(first.epoch())).await {
                Ok(lease) => break Arc::new(lease.unwrap()),
                Err(_) => sleep(Duration::from_millis(200)).await,
            }
        };
        let renewing = Arc::clone(&lease);
        let renewals = tokio::spawn(async move {
            loop {
                // As the coordinator does: what fails is tried again soon.
                let pause = match renewing.renew().await {
                    Ok(()) => renewing.renew_every(),
                    Err(LeaseLost::Store(_)) => Duration::from_millis(500),
                    Err(lost) => panic!("seed {seed}: {lost}"),
                };
                sleep(pause).await;
            }
        });
        for pid in 2..6 {
            let refused = acquire(&healthy(&backing), pid).await.unwrap();
            let refused = refused.err().unwrap_or_else(|| panic!("seed {seed}: robbed"));
            assert_eq!(refused.holder, holder(9));
            sleep(Duration::from_secs(7)).await;
        }
        assert!(!renewals.is_finished(), "seed {seed}");
        renewals.abort();
    }
}

/// A holder without its store may not write once two thirds of the time to live are over, and may again when the store is back
/// and nobody else came.
#[tokio::test(start_paused = true)]
async fn a_holder_without_its_store_stops_in_time() {
    let backing = Backing::new();
    let switch = Arc::new(Switch::default());
    let lease = acquired(&run(&backing, Arc::clone(&switch) as _), 1).await;
    lease.renew().await.unwrap();
    switch.set_away(true);
    let moment = Duration::from_millis(1);
    sleep((TTL * 2 / 3).saturating_sub(moment)).await;
    lease.check().await.expect("its renewal is young");
    sleep(moment).await;
    assert!(matches!(lease.check().await, Err(LeaseLost::Store(_))));
    switch.set_away(false);
    lease.check().await.expect("nobody has claimed the run");
}

/// A store on which create-if-absent means nothing is refused by name, before anything is claimed.
#[tokio::test(start_paused = true)]
async fn a_store_that_ignores_conditions_is_refused() {
    let store = FaultyStore::new(Backing::new(), Arc::new(NoFaults)).ignoring_conditions();
    let run = RunStore::over(Arc::new(store), "memory://run");
    let error = acquire(&run, 1).await.err().expect("it is refused");
    assert_eq!(error.kind(), ErrorKind::Config);
    assert!(error.to_string().contains("If-None-Match"), "{error}");
    assert_eq!(lease::newest(&run).await.unwrap(), None);
}
