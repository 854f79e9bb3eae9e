//! Goal: survivors of a dead or stopped rank learn it soon, with the right kind of error and the rank's name, and can go
//! on in a new group.
//! Method: each rank is a process: this test program started again, told by the environment which rank it is. The store
//! is served by the parent, which outlives them all.

use std::env;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, raise};
use tch::Tensor;
use zipper_collectives::{
    BucketPlan, BucketSpec, ErrorKind, FlightRecorder, GradientReducer, GroupOptions, ProcessGroup, RollCall,
    Store,
};
use zipper_types::{Rank, WorldSize};

const HOST: &str = "127.0.0.1";
const LONG: Duration = Duration::from_mins(1);
const WORLD_SIZE: u32 = 3;
/// The rank that dies or stops.
const VICTIM: u32 = WORLD_SIZE - 1;
const RANK_VARIABLE: &str = "ZIPPER_TEST_RANK";
const PORT_VARIABLE: &str = "ZIPPER_TEST_PORT";

/// Runs `rank_main` in a process for each rank; the parent checks that all but the victim succeed.
fn in_processes(test_name: &str, rank_main: impl Fn(Rank, &Store)) {
    if let Ok(rank) = env::var(RANK_VARIABLE) {
        let port = env::var(PORT_VARIABLE).unwrap().parse().unwrap();
        let store = Store::connect(HOST, port, LONG).unwrap();
        rank_main(Rank(rank.parse().unwrap()), &store);
        return;
    }
    let (_server, port) = Store::serve(HOST, LONG).unwrap();
    let start_rank = |rank: u32| {
        Command::new(env::current_exe().unwrap())
            .args(["--exact", test_name, "--nocapture"])
            .env(RANK_VARIABLE, rank.to_string())
            .env(PORT_VARIABLE, port.to_string())
            .stdin(Stdio::null())
            .spawn()
            .unwrap()
    };
    let mut ranks: Vec<Child> = (0..WORLD_SIZE).map(start_rank).collect();
    let survivors: Vec<_> = ranks
        .iter_mut()
        .take(VICTIM as usize)
        .map(|child| child.wait().unwrap())
        .collect();
    // A stopped victim has to be ended; a dead one has gone already.
    ranks[VICTIM as usize].kill().unwrap();
    let victim = ranks[VICTIM as usize].wait().unwrap();
    assert!(
        survivors.iter().all(std::process::ExitStatus::success),
        "{survivors:?}"
    );
    assert!(!victim.success(), "the victim was meant to die");
}

/// Builds the group of all ranks, lets the victim raise `signal` in it, and returns what a survivor sees.
fn lose_the_victim(rank: Rank, store: &Store, timeout: Duration, signal: Signal) -> (ErrorKind, Duration) {
    let store = store.prefix("generation-1").unwrap();
    let recorder = FlightRecorder::default();
    let options = GroupOptions {
        roll_call: Some(RollCall::new(&store).unwrap()),
        recorder: recorder.clone(),
        first_timeout: LONG,
        ..GroupOptions::gloo(HOST, timeout)
    };
    let group = ProcessGroup::connect(&store, rank, WorldSize(WORLD_SIZE), &options).unwrap();
    let tensor = Tensor::ones([1 << 16], tch::kind::FLOAT_CPU);
    group.all_reduce_sum(&tensor, "while all live").unwrap();
    assert_eq!(
        tensor.sum(tch::Kind::Int64).int64_value(&[]),
        tensor.numel() as i64 * i64::from(WORLD_SIZE)
    );
    if rank.0 == VICTIM {
        raise(signal).unwrap();
        unreachable!("the victim does not go on");
    }
    let start = Instant::now();
    let error = group.all_reduce_sum(&tensor, "after the loss").unwrap_err();
    println!("rank {rank}: {error}");
    assert!(
        error.to_string().contains("all_reduce of `after the loss`"),
        "{error}"
    );
    assert_eq!(error.missing(), [Rank(VICTIM)], "{error}");
    assert!(
        error
            .to_string()
            .contains("ranks 0 and 1 had arrived, rank 2 had not"),
        "{error}"
    );
    let (last, _) = recorder.latest().unwrap();
    assert_eq!(
        (last.operation, last.what.as_str()),
        ("all_reduce", "after the loss")
    );
    assert!(last.finished.is_none() && last.error.is_some(), "{last:?}");
    let again = group.barrier("on a dead group").unwrap_err();
    assert_eq!(again.kind(), error.kind());
    (error.kind(), start.elapsed())
}

fn continue_without_the_victim(rank: Rank, store: &Store) {
    let store = store.prefix("generation-2").unwrap();
    let group = ProcessGroup::gloo(&store, rank, WorldSize(WORLD_SIZE - 1), HOST, LONG).unwrap();
    let tensor = Tensor::from(i64::from(rank.0) + 1);
    group.all_reduce_sum(&tensor, "after the recovery").unwrap();
    assert_eq!(tensor.int64_value(&[]), 3);
    group.barrier("end").unwrap();
}

/// Goal: a killed peer is noticed long before the timeout, as a lost peer, and the survivors form a new group.
#[test]
fn a_killed_peer_is_lost_quickly() {
    in_processes("a_killed_peer_is_lost_quickly", |rank, store| {
        let (kind, elapsed) = lose_the_victim(rank, store, LONG, Signal::SIGKILL);
        assert_eq!(kind, ErrorKind::PeerLost);
        assert!(elapsed < LONG / 6, "took {elapsed:?}");
        continue_without_the_victim(rank, store);
    });
}

/// Goal: a peer that hangs is noticed at the timeout, and the survivors form a new group. Only the first survivor to
/// give up can see the timeout itself; it then closes its own connections, which the other may see first.
#[test]
fn a_stopped_peer_times_out() {
    let timeout = Duration::from_secs(2);
    in_processes("a_stopped_peer_times_out", |rank, store| {
        let (kind, elapsed) = lose_the_victim(rank, store, timeout, Signal::SIGSTOP);
        assert!(
            matches!(kind, ErrorKind::Timeout | ErrorKind::PeerLost),
            "{kind:?}"
        );
        assert!(elapsed >= timeout / 2, "gave up after {elapsed:?}");
        assert!(elapsed < LONG / 6, "took {elapsed:?}");
        continue_without_the_victim(rank, store);
    });
}

/// Goal: a peer that is killed between its own gradients and the others' sums is named, with the bucket and the step.
#[test]
fn a_peer_killed_in_backward_is_named() {
    in_processes("a_peer_killed_in_backward_is_named", |rank, store| {
        {
            let store = store.prefix("generation-1").unwrap();
            let options = GroupOptions {
                roll_call: Some(RollCall::new(&store).unwrap()),
                ..GroupOptions::gloo(HOST, LONG)
            };
            let group = ProcessGroup::connect(&store, rank, WorldSize(WORLD_SIZE), &options).unwrap();
            let params: Vec<Tensor> = (0..3)
                .map(|_| Tensor::ones([1 << 16], tch::kind::FLOAT_CPU).set_requires_grad(true))
                .collect();
            let specs = params.iter().enumerate().map(|(index, param)| BucketSpec {
                name: format!("gradients {index}"),
                group: Some(&group),
                params: vec![param],
            });
            let reducer = GradientReducer::new(&specs.collect::<Vec<_>>()).unwrap();
            reducer.begin("step 17", &[BucketPlan::AsReady; 3]).unwrap();
            // The victim gets as far as the first gradient.
            let used = if rank.0 == VICTIM { 1 } else { 3 };
            let losses: Vec<Tensor> = params[..used].iter().map(Tensor::square).collect();
            Tensor::cat(&losses, 0).sum(tch::Kind::Float).backward();
            if rank.0 == VICTIM {
                raise(Signal::SIGKILL).unwrap();
            }
            let error = reducer.finish().unwrap_err();
            println!("rank {rank}: {error}");
            assert_eq!(error.kind(), ErrorKind::PeerLost, "{error}");
            assert_eq!(error.missing(), [Rank(VICTIM)], "{error}");
            let message = error.to_string();
            assert!(message.contains("of step 17` on rank"), "{message}");
        }
        continue_without_the_victim(rank, store);
    });
}

/// Rank 0 serves the store and raises `signal`; what the others see must name it, in bounded time.
fn lose_the_server(test_name: &str, signal: Signal) {
    const ANNOUNCEMENT: &str = "the store is at port ";
    let timeout = Duration::from_secs(2);
    let Ok(rank) = env::var(RANK_VARIABLE) else {
        let start_rank = |rank: u32, port: &str, output: Stdio| {
            Command::new(env::current_exe().unwrap())
                .args(["--exact", test_name, "--nocapture"])
                .env(RANK_VARIABLE, rank.to_string())
                .env(PORT_VARIABLE, port)
                .stdin(Stdio::null())
                .stdout(output)
                .spawn()
                .unwrap()
        };
        let mut server = start_rank(0, "", Stdio::piped());
        let mut lines = BufReader::new(server.stdout.take().unwrap()).lines();
        let port = lines
            .find_map(|line| Some(line.unwrap().split_once(ANNOUNCEMENT)?.1.to_owned()))
            .unwrap();
        let mut others: Vec<Child> = (1..WORLD_SIZE)
            .map(|rank| start_rank(rank, &port, Stdio::inherit()))
            .collect();
        let ends: Vec<_> = others.iter_mut().map(|child| child.wait().unwrap()).collect();
        server.kill().unwrap();
        server.wait().unwrap();
        assert!(ends.iter().all(std::process::ExitStatus::success), "{ends:?}");
        return;
    };
    let rank = Rank(rank.parse().unwrap());
    let store = if rank.0 == 0 {
        let (store, port) = Store::serve(HOST, LONG).unwrap();
        println!("{ANNOUNCEMENT}{port}");
        store
    } else {
        Store::connect(HOST, env::var(PORT_VARIABLE).unwrap().parse().unwrap(), LONG).unwrap()
    };
    let options = GroupOptions {
        roll_call: Some(RollCall::new(&store).unwrap()),
        first_timeout: LONG,
        ..GroupOptions::gloo(HOST, timeout)
    };
    let group = ProcessGroup::connect(&store, rank, WorldSize(WORLD_SIZE), &options).unwrap();
    group.barrier("while all live").unwrap();
    if rank.0 == 0 {
        raise(signal).unwrap();
    }
    let start = Instant::now();
    let error = group.barrier("after the loss").unwrap_err();
    println!("rank {rank}: {error}");
    assert_eq!(error.missing(), [Rank(0)], "{error}");
    let message = error.to_string();
    assert!(
        message.contains("rank 0, which serves the store, does not answer"),
        "{message}"
    );
    assert!(start.elapsed() < LONG / 6, "took {:?}", start.elapsed());
}

/// Goal: when the rank that serves the store is killed, the others say so and accuse nobody else.
#[test]
fn a_killed_server_is_named() {
    lose_the_server("a_killed_server_is_named", Signal::SIGKILL);
}

/// Goal: likewise when it is stopped and the store hangs: nobody hangs with it.
#[test]
fn a_stopped_server_is_named() {
    lose_the_server("a_stopped_server_is_named", Signal::SIGSTOP);
}
