//! Goal: a run survives the loss of any of its parts, and ends as if nothing had been lost.
//! Method: rounds of the fault campaign with set faults: real processes, a real S3 server, final parameters compared with those of
//! the run that was left in peace. `cargo xtask faults` draws many more, of every kind and at any moment.

use std::collections::BTreeSet;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use zipper_checkpoint::RunStore;
use zipper_proto::v1::watch_response::Event;
use zipper_tests::faults::{Kind, LiveRun, Plan, Round, Site, Size};
use zipper_tests::{Parameters, everything_is_required};

/// Few steps, but enough that a worker which is started again comes back before the end.
const SIZE: Size = Size {
    nodes: 3,
    min_nodes: 1,
    spares: 0,
    steps_of_a_stage: 60,
    checkpoint_every: 20,
    keep_last: 100,
    snapshot_every: 5,
    log_every: 1,
    restarts_of_a_node: 10,
};

/// A fault of node 1, or of what all nodes share.
fn fault(round: u64, kind: Kind, after_step: u64, lasts: Duration) -> Plan {
    Plan {
        round,
        kind,
        after_step,
        delay: Duration::ZERO,
        lasts,
        node: 1,
        clock_step: 0,
    }
}

/// Plays a round that has to go well, and says how long the fault held the run up.
async fn play(site: &Site, plan: Plan) -> Round {
    let round = Round::play(site, plan).await;
    let (kind, step) = (round.plan.kind, round.plan.after_step);
    let next = round.recovery.unwrap_or(f64::NAN);
    eprintln!(
        "{kind} after step {step}: the next step was completed {next:.2} s after the fault; the whole run took {:.1} s",
        round.seconds
    );
    assert_eq!(round.problems, [""; 0], "{round:#?}");
    round
}

/// One of four: the others go on from their memory and read nothing. In stage 1 everybody has everything, so that not even a
/// step is made again; in stage 2 a bank of which the lost one was the only owner is as old as its copy.
#[tokio::test(flavor = "multi_thread")]
async fn a_killed_worker_of_four_is_made_up_for_from_memory() {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let job = Size { nodes: 4, ..SIZE };
    let site = Site::open(folder.path(), job);
    let in_stage_2 = job.steps_of_a_stage + 40;
    for (number, (after_step, most_again)) in [(40, 0), (in_stage_2, job.snapshot_every)]
        .into_iter()
        .enumerate()
    {
        let plan = Plan {
            // First rank 0, which tells the coordinator what the steps were like.
            node: number as u32,
            ..fault(number as u64, Kind::WorkerKilled, after_step, Duration::ZERO)
        };
        let round = play(&site, plan).await;
        assert!(round.broken >= 1, "nothing was lost: {round:?}");
        assert_eq!((round.store_reads, round.from_store), (0, 0), "{round:?}");
        assert!(round.repeated_steps <= most_again, "{round:?}");
    }
}

/// What is not a worker: the coordinator, zipper-launch itself, the network between nodes, the store, the disk.
#[tokio::test(flavor = "multi_thread")]
async fn whatever_else_is_lost_costs_nothing() {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let site = Site::open(folder.path(), SIZE);
    let (possible, left_out) = site.kinds();
    assert!(
        left_out.is_empty() || !everything_is_required(),
        "ZIPPER_RIGS=required, but {left_out:?}"
    );
    eprintln!("left out: {left_out:?}");
    // Longer than the 5 s after which a node is taken for dead.
    let (dead, a_while) = (Duration::from_secs(7), Duration::from_secs(2));
    let faults = [
        (Kind::CoordinatorKilled, Duration::ZERO),
        (Kind::LauncherKilled, Duration::ZERO),
        (Kind::Preempted, Duration::ZERO),
        (Kind::Partition, dead),
        (Kind::StoreLosesAnswers, a_while),
        (Kind::DiskFull, a_while),
    ];
    for (number, (kind, lasts)) in faults.into_iter().enumerate() {
        if !possible.contains(&kind) {
            continue;
        }
        let harmed = site.proxy().harmed();
        let round = play(&site, fault(number as u64, kind, 30, lasts)).await;
        // What did nothing would cost nothing.
        match kind {
            Kind::Partition => assert!(round.broken >= 1, "{round:?}"),
            Kind::StoreLosesAnswers => assert!(site.proxy().harmed() > harmed, "{round:?}"),
            _ => {}
        }
    }
}

/// The nodes of the members of each generation, as the run's journal has them.
async fn generations(store: &RunStore) -> Vec<BTreeSet<u64>> {
    let entries: Vec<(u64, Value)> = store.journal().read_all().await.expect("the journal is whole");
    let generations = entries.iter().filter(|(_, entry)| entry["event"] == "generation");
    let node = |seat: &Value| seat["node_rank"].as_u64().expect("a seat is on a node");
    let members = |entry: &Value| {
        let seats = entry["seats"].as_array().expect("a generation has members");
        seats.iter().map(node).collect()
    };
    generations.map(|(_, entry)| members(entry)).collect()
}

/// Two train and a third waits, with its model loaded. It takes the place of the one that is lost: the next generation is as large
/// as the one before and has the spare's node in it, so it waited for nobody to be started again.
#[tokio::test(flavor = "multi_thread")]
async fn a_spare_takes_the_place_of_a_killed_worker() {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let job = Size {
        nodes: 2,
        min_nodes: 2,
        spares: 1,
        ..SIZE
    };
    let site = Site::open(folder.path(), job);
    let (folder, (url, store)) = (site.folder("run"), site.run_in_store("run"));
    let mut launch = site.launch(&url, &folder);
    // Else the lost one may be back before the survivor has joined, and take its own place.
    launch.args(["--set", "elastic.restart_backoff=1m"]);
    let mut run = LiveRun::start(&mut launch, &url, &folder).unwrap();
    run.wait_for_step(job.steps_of_a_stage + 40).await.unwrap();
    // Whichever of the three came last is the spare.
    let before = generations(&store).await.remove(0);
    let lost = *before.last().expect("a generation has members");
    let spare = (0..3).find(|node| !before.contains(node)).expect("one is left");
    let worker = run.worker(lost as u32).expect("it is at work");
    kill(Pid::from_raw(worker), Signal::SIGKILL).expect("it is at work");
    let ended = run.wait().await;
    assert_eq!(ended.code, Some(0), "{}", ended.last_words());
    let after = before
        .iter()
        .copied()
        .filter(|node| *node != lost)
        .chain([spare])
        .collect();
    assert_eq!(generations(&store).await, [before, after], "lost: {lost}");
    let recovered = ended.events.iter().find_map(|(_, event)| match event {
        Event::Recovered(recovered) => Some(recovered),
        _ => None,
    });
    let recovered = recovered.expect("it is told");
    eprintln!("the next step was completed within {:?}", recovered.took);
    assert_eq!(
        (recovered.world_size, recovered.store_reads),
        (2, 0),
        "{recovered:?}"
    );
    assert!(!recovered.from_checkpoint, "{recovered:?}");
    let found = Parameters::newest(&store).await.unwrap();
    site.expected().await.unwrap().assert_same(&found);
}
