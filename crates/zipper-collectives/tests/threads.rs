//! Goal: every collective gives the right numbers, a failed or aborted group says so, and wrong calls are refused.
//! Method: the ranks are threads of this process with real TCP connections between them. What needs a process to die
//! is in `processes.rs`.

use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use tch::{Kind, Tensor};
use zipper_collectives::{CollectiveError, ErrorKind, GroupOptions, ProcessGroup, RollCall, Store};
use zipper_types::{Rank, WorldSize};

const HOST: &str = "127.0.0.1";
const TIMEOUT: Duration = Duration::from_secs(30);

/// Runs `body` once for each rank of a group of `world_size` and returns the results in rank order.
fn in_threads<T: Send>(world_size: u32, body: impl Fn(&ProcessGroup) -> T + Sync) -> Vec<T> {
    let (_server, port) = Store::serve(HOST, TIMEOUT).unwrap();
    thread::scope(|scope| {
        let body = &body;
        let ranks: Vec<_> = (0..world_size)
            .map(|rank| {
                scope.spawn(move || {
                    let store = Store::connect(HOST, port, TIMEOUT).unwrap();
                    let group =
                        ProcessGroup::gloo(&store, Rank(rank), WorldSize(world_size), HOST, TIMEOUT).unwrap();
                    let result = body(&group);
                    group.barrier("end of the test").unwrap();
                    result
                })
            })
            .collect();
        ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
    })
}

fn values(tensor: &Tensor) -> Vec<f64> {
    Vec::try_from(tensor.to_kind(Kind::Double).flatten(0, -1)).unwrap()
}

/// Goal: sums are right in every kind that training uses, for worlds of one, two and three.
#[test]
fn all_reduce_sums_over_ranks() {
    for world_size in 1..=3 {
        for kind in [Kind::Float, Kind::BFloat16, Kind::Double, Kind::Int64] {
            let sums = in_threads(world_size, |group| {
                let tensor = (Tensor::arange(6, (kind, tch::Device::Cpu)) + i64::from(group.rank().0) * 10)
                    .reshape([2, 3])
                    .to_kind(kind);
                group.all_reduce_sum(&tensor, "numbers").unwrap();
                assert_eq!(tensor.kind(), kind);
                assert_eq!(tensor.size(), [2, 3]);
                values(&tensor)
            });
            let world = f64::from(world_size);
            let offset = 10.0 * world * (world - 1.0) / 2.0;
            let expected: Vec<f64> = (0..6).map(|i| f64::from(i) * world + offset).collect();
            for sum in sums {
                assert_eq!(sum, expected, "{kind:?} in a world of {world_size}");
            }
        }
    }
}

/// Goal: all ranks hold the same bits after a sum, and a second run gives them again.
#[test]
fn sums_are_reproducible() {
    let run = || {
        in_threads(3, |group| {
            // Of very different sizes, so that another order of additions would show.
            let tensor = Tensor::arange(1001, (Kind::Float, tch::Device::Cpu)) * 0.1
                + 1e-3 * 10f64.powi(3 * group.rank().0.cast_signed());
            group.all_reduce_sum(&tensor, "numbers").unwrap();
            Vec::<f32>::try_from(&tensor).unwrap()
        })
    };
    let first = run();
    assert_eq!(first[0], first[1]);
    assert_eq!(first[0], first[2]);
    assert_eq!(first, run());
}

/// Goal: every rank ends with the tensor of the root, whichever rank that is.
#[test]
fn broadcast_copies_the_root() {
    for root in 0..3 {
        let received = in_threads(3, |group| {
            let tensor = Tensor::full(
                [5],
                i64::from(group.rank().0) + 7,
                (Kind::Float, tch::Device::Cpu),
            );
            group.broadcast(&tensor, Rank(root), "parameters").unwrap();
            values(&tensor)
        });
        assert_eq!(received, vec![vec![f64::from(root) + 7.0; 5]; 3]);
    }
}

/// Goal: the gathered tensors come in rank order and the input stays as it was.
#[test]
fn all_gather_is_in_rank_order() {
    let gathered = in_threads(3, |group| {
        let tensor = Tensor::from_slice(&[i64::from(group.rank().0), 100]);
        let all = group.all_gather(&tensor, "counts").unwrap();
        assert_eq!(values(&tensor), [f64::from(group.rank().0), 100.0]);
        all.iter().map(values).collect::<Vec<_>>()
    });
    for all in gathered {
        assert_eq!(all, [[0.0, 100.0], [1.0, 100.0], [2.0, 100.0]]);
    }
}

/// Goal: exchanged tensors arrive at the rank that they were sent to, in their order, whoever else sends to whom at the same time;
/// large ones, too, in rings where every rank sends before it receives; and a rank may do nothing.
#[test]
fn exchange_sends_to_single_ranks() {
    for shift in 1..4 {
        let received = in_threads(4, |group| {
            let own = group.rank().0;
            let (to, from) = (Rank((own + shift) % 4), Rank((own + 4 - shift) % 4));
            let numbers =
                |count: i64| Tensor::full([count], i64::from(own), (Kind::Double, tch::Device::Cpu));
            let (large, small) = (numbers(1 << 20), numbers(3) + 0.5);
            let (into_large, into_small) = (large.zeros_like(), small.zeros_like());
            let sent = [(&large, to), (&small, to)];
            let taken = [(&into_large, from), (&into_small, from)];
            group.exchange(&sent, &taken, "copies").unwrap();
            // One rank gives to two others.
            match own {
                0 => group.exchange(&[(&small, Rank(1)), (&small, Rank(3))], &[], "copies"),
                1 | 3 => group.exchange(&[], &[(&into_small, Rank(0))], "copies"),
                _ => group.exchange(&[], &[], "copies"),
            }
            .unwrap();
            (
                into_large.min().double_value(&[]),
                into_large.max().double_value(&[]),
                values(&into_small),
            )
        });
        for (rank, (min, max, small)) in (0_u32..).zip(received) {
            let from = f64::from((rank + 4 - shift) % 4);
            assert_eq!((min, max), (from, from), "rank {rank}, from {shift} ranks before");
            let last = if rank % 2 == 1 { 0.5 } else { from + 0.5 };
            assert_eq!(small, vec![last; 3]);
        }
    }
}

/// Goal: a rank that cannot be sent to is refused by its number.
#[test]
fn exchange_needs_another_rank() {
    in_threads(2, |group| {
        let tensor = Tensor::zeros([1], (Kind::Float, tch::Device::Cpu));
        for rank in [group.rank(), Rank(2)] {
            let error = group
                .exchange(&[(&tensor, rank)], &[], "copies")
                .expect_err("not another rank");
            assert_eq!(error.kind(), ErrorKind::InvalidArgument);
            assert!(
                error
                    .to_string()
                    .contains(&format!("rank {rank} is not another rank")),
                "{error}"
            );
        }
    });
}

/// Goal: tensors without elements, as of a language that has no parameter here, pass through every collective.
#[test]
fn empty_tensors_pass() {
    in_threads(2, |group| {
        let empty = Tensor::zeros([0, 4], (Kind::Float, tch::Device::Cpu));
        group.all_reduce_sum(&empty, "nothing").unwrap();
        group.broadcast(&empty, Rank(1), "nothing").unwrap();
        let all = group.all_gather(&empty, "nothing").unwrap();
        assert_eq!(all.iter().map(Tensor::size).collect::<Vec<_>>(), [[0, 4], [0, 4]]);
    });
}

/// Goal: no rank leaves a barrier before the last one has come. Method: each rank announces itself before the barrier;
/// after it, all announcements have been made.
#[test]
fn barrier_waits_for_all() {
    let arrived = std::sync::atomic::AtomicU32::new(0);
    in_threads(3, |group| {
        arrived.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        group.barrier("everybody").unwrap();
        assert_eq!(arrived.load(std::sync::atomic::Ordering::SeqCst), 3);
    });
}

/// Goal: groups under two prefixes of one store do not see each other. Method: two worlds of two ranks, each with the
/// same ranks, built at the same time.
#[test]
fn prefixes_are_isolated() {
    let (_server, port) = Store::serve(HOST, TIMEOUT).unwrap();
    let sums: Vec<f64> = thread::scope(|scope| {
        let members: Vec<_> = [("a", 0u32), ("a", 1), ("b", 0), ("b", 1)]
            .into_iter()
            .map(|(prefix, rank)| {
                scope.spawn(move || {
                    let store = Store::connect(HOST, port, TIMEOUT)
                        .unwrap()
                        .prefix(prefix)
                        .unwrap();
                    let group = ProcessGroup::gloo(&store, Rank(rank), WorldSize(2), HOST, TIMEOUT).unwrap();
                    let tensor = Tensor::from(if prefix == "a" { 1.0 } else { 100.0 });
                    group.all_reduce_sum(&tensor, "prefix").unwrap();
                    group.barrier("end").unwrap();
                    tensor.double_value(&[])
                })
            })
            .collect();
        members.into_iter().map(|member| member.join().unwrap()).collect()
    });
    assert_eq!(sums, [2.0, 2.0, 200.0, 200.0]);
}

/// Goal: an aborted collective ends at once, says that it was aborted, and the peer sees a lost peer; both groups are
/// dead afterwards. Method: another thread aborts rank 0 while it waits in a collective that rank 1 never calls; many
/// rounds, because the abort may also come before the wait.
#[test]
fn abort_ends_a_waiting_collective() {
    let (_server, port) = Store::serve(HOST, TIMEOUT).unwrap();
    let connect = |round: u32, rank: u32| {
        let store = Store::connect(HOST, port, TIMEOUT)
            .unwrap()
            .prefix(&format!("round-{round}"))
            .unwrap();
        ProcessGroup::gloo(&store, Rank(rank), WorldSize(2), HOST, TIMEOUT).unwrap()
    };
    for round in 0..10 {
        let (send_handle, handles) = mpsc::channel();
        let (done, wait_done) = mpsc::channel::<()>();
        thread::scope(|scope| {
            let waiting = scope.spawn(move || {
                let group = connect(round, 0);
                send_handle.send(group.abort_handle()).unwrap();
                let start = Instant::now();
                let tensor = Tensor::ones([1000], tch::kind::FLOAT_CPU);
                let error = group.all_reduce_sum(&tensor, "gradients").unwrap_err();
                let again = group.barrier("later").unwrap_err();
                drop(group);
                done.send(()).unwrap();
                (error, again, start.elapsed())
            });
            let silent = scope.spawn(move || {
                let group = connect(round, 1);
                handles.recv().unwrap().abort();
                wait_done.recv().unwrap();
                group.barrier("after the abort").unwrap_err()
            });
            let (error, again, elapsed) = waiting.join().unwrap();
            assert_eq!(error.kind(), ErrorKind::Aborted, "{error}");
            assert_eq!(again.kind(), ErrorKind::Aborted, "{again}");
            assert!(elapsed < TIMEOUT / 3, "the abort took {elapsed:?}");
            let error = silent.join().unwrap();
            assert_eq!(error.kind(), ErrorKind::PeerLost, "{error}");
        });
    }
}

/// Goal: an aborted group of one rank, which never waits for anybody, is dead like any other.
#[test]
fn abort_of_a_single_rank_counts() {
    let (store, _) = Store::serve(HOST, TIMEOUT).unwrap();
    let group = ProcessGroup::gloo(&store, Rank(0), WorldSize(1), HOST, TIMEOUT).unwrap();
    group.barrier("before").unwrap();
    let handle = group.abort_handle();
    handle.abort();
    assert_eq!(group.barrier("after").unwrap_err().kind(), ErrorKind::Aborted);
    drop(group);
    handle.abort();
}

/// Goal: calls that cannot be right are refused before libtorch sees them, and the group goes on working.
#[test]
fn wrong_calls_are_refused() {
    let (store, port) = Store::serve(HOST, TIMEOUT).unwrap();
    let refused = |rank, world_size| {
        ProcessGroup::gloo(&store, Rank(rank), WorldSize(world_size), HOST, TIMEOUT)
            .err()
            .unwrap()
    };
    for error in [refused(0, 0), refused(2, 2)] {
        assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{error}");
    }
    assert!(
        refused(2, 2)
            .to_string()
            .contains("rank 2 is not in a world of 2 ranks")
    );

    let store = Store::connect(HOST, port, TIMEOUT).unwrap();
    let group = ProcessGroup::gloo(&store, Rank(0), WorldSize(1), "host.invalid", TIMEOUT).unwrap();
    let strided = Tensor::ones([3, 2], tch::kind::FLOAT_CPU).transpose(0, 1);
    let error = group
        .all_reduce_sum(&strided, "gradients of layer 3")
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidArgument);
    let message = error.to_string();
    assert!(
        message.contains("all_reduce of `gradients of layer 3` on rank 0 in group `world` of 1"),
        "{message}"
    );
    assert!(message.contains("not contiguous"), "{message}");
    let error = group.broadcast(&strided.contiguous(), Rank(1), "x").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidArgument);
    group.barrier("still alive").unwrap();
}

/// Goal: a store or an address that is not there is told apart from other failures, in bounded time.
#[test]
fn missing_stores_and_addresses_are_network_failures() {
    let brief = Duration::from_millis(300);
    let unused_port = std::net::TcpListener::bind((HOST, 0))
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let kind = |result: Result<Store, CollectiveError>| result.err().unwrap();

    let error = kind(Store::connect(HOST, unused_port, brief));
    assert!(
        matches!(error.kind(), ErrorKind::Timeout | ErrorKind::Network),
        "{error}"
    );
    assert!(
        error.to_string().contains(&format!("{HOST}:{unused_port}")),
        "{error}"
    );

    // An address of TEST-NET-1, which is nobody's.
    let error = kind(Store::serve("192.0.2.1", brief).map(|(store, _)| store));
    assert_eq!(error.kind(), ErrorKind::Network, "{error}");

    let (store, _) = Store::serve(HOST, brief).unwrap();
    let error = ProcessGroup::gloo(&store, Rank(0), WorldSize(2), "host.invalid", brief)
        .err()
        .unwrap();
    assert_eq!(error.kind(), ErrorKind::Network, "{error}");
}

/// Goal: a rank that nobody joins gives up at its timeout.
#[test]
fn a_group_that_nobody_joins_times_out() {
    let brief = Duration::from_millis(500);
    let (store, _) = Store::serve(HOST, brief).unwrap();
    let start = Instant::now();
    let error = ProcessGroup::gloo(&store, Rank(0), WorldSize(2), HOST, brief)
        .err()
        .unwrap();
    assert_eq!(error.kind(), ErrorKind::Timeout, "{error}");
    assert!(start.elapsed() < TIMEOUT, "took {:?}", start.elapsed());
}

/// Goal: ranks that call different things are told what each of them calls, instead of summing what does not belong
/// together or waiting for ever.
#[test]
fn different_calls_are_refused_on_every_rank() {
    type Call = fn(&ProcessGroup) -> Result<(), CollectiveError>;
    let calls: [(&str, Call, Call); 4] = [
        (
            "shape",
            |group| group.all_reduce_sum(&Tensor::ones([2], tch::kind::FLOAT_CPU), "x"),
            |group| group.all_reduce_sum(&Tensor::ones([3], tch::kind::FLOAT_CPU), "x"),
        ),
        (
            "order",
            |group| group.all_reduce_sum(&Tensor::ones([2], tch::kind::FLOAT_CPU), "first"),
            |group| group.all_reduce_sum(&Tensor::ones([2], tch::kind::FLOAT_CPU), "second"),
        ),
        (
            "operation",
            |group| group.barrier("x"),
            |group| group.broadcast(&Tensor::ones([2], tch::kind::FLOAT_CPU), Rank(0), "x"),
        ),
        (
            "root",
            |group| group.broadcast(&Tensor::ones([2], tch::kind::FLOAT_CPU), Rank(0), "x"),
            |group| group.broadcast(&Tensor::ones([2], tch::kind::FLOAT_CPU), Rank(1), "x"),
        ),
    ];
    for (what, first, second) in calls {
        let (_server, port) = Store::serve(HOST, TIMEOUT).unwrap();
        thread::scope(|scope| {
            for (rank, call) in (0..).zip([first, second]) {
                scope.spawn(move || {
                    let store = Store::connect(HOST, port, TIMEOUT).unwrap();
                    let options = GroupOptions {
                        check: true,
                        ..GroupOptions::gloo(HOST, TIMEOUT)
                    };
                    let group = ProcessGroup::connect(&store, Rank(rank), WorldSize(2), &options).unwrap();
                    let error = call(&group).unwrap_err();
                    assert_eq!(error.kind(), ErrorKind::Mismatch, "{what}: {error}");
                    let message = error.to_string();
                    assert!(
                        message.contains("rank 0: ") && message.contains("; rank 1: "),
                        "{what}: {message}"
                    );
                    assert_eq!(group.barrier("later").unwrap_err().kind(), ErrorKind::Mismatch);
                });
            }
        });
    }
}

/// Goal: the first collective may take as long as loading a model, later ones may not.
#[test]
fn the_first_collective_has_more_time() {
    let (short, long) = (Duration::from_millis(300), TIMEOUT);
    let (_server, port) = Store::serve(HOST, TIMEOUT).unwrap();
    let (late, is_late) = mpsc::channel::<()>();
    let group = |rank| {
        let store = Store::connect(HOST, port, TIMEOUT).unwrap();
        let options = GroupOptions {
            first_timeout: long,
            ..GroupOptions::gloo(HOST, short)
        };
        ProcessGroup::connect(&store, Rank(rank), WorldSize(2), &options).unwrap()
    };
    thread::scope(|scope| {
        scope.spawn(|| {
            let group = group(0);
            group.barrier("the first").unwrap();
            let error = group.barrier("the second").unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Timeout, "{error}");
            drop(late);
        });
        scope.spawn(move || {
            let group = group(1);
            // Later than the short timeout, and in time for the long one.
            assert!(
                is_late
                    .recv_timeout(short * 3)
                    .is_err_and(|error| error == mpsc::RecvTimeoutError::Timeout)
            );
            group.barrier("the first").unwrap();
            // The second never comes; the channel closes when the other has given up.
            assert!(is_late.recv().is_err());
        });
    });
}

/// Goal: of ranks that wait in different groups, the error says who was where: a rank that is elsewhere has not come, and is
/// not missing either. Method: ranks 0 and 2 wait for rank 1 in one group, rank 3 in another; rank 1 gives both up.
#[test]
fn ranks_that_wait_elsewhere_are_told_apart() {
    let (_server, port) = Store::serve(HOST, TIMEOUT).unwrap();
    thread::scope(|scope| {
        for rank in 0..4 {
            scope.spawn(move || {
                let store = Store::connect(HOST, port, TIMEOUT).unwrap();
                let group = |name: &str, members: &[u32]| {
                    let options = GroupOptions {
                        name: name.to_owned(),
                        members: members.iter().map(|&member| Rank(member)).collect(),
                        roll_call: Some(RollCall::new(&store).unwrap()),
                        ..GroupOptions::gloo(HOST, TIMEOUT)
                    };
                    let index = members.iter().position(|&member| member == rank).unwrap();
                    let size = WorldSize(members.len() as u32);
                    ProcessGroup::connect(&store.prefix(name).unwrap(), Rank(index as u32), size, &options)
                };
                let world = group("world", &[0, 1, 2, 3]).unwrap();
                let pair = (rank % 2 == 1).then(|| group("pair", &[1, 3]).unwrap());
                world.barrier("start").unwrap();
                let error = match (rank, &pair) {
                    (1, Some(pair)) => {
                        pair.abort_handle().abort();
                        world.abort_handle().abort();
                        return;
                    }
                    (_, Some(pair)) => pair.barrier("of the pair").unwrap_err(),
                    (_, None) => world.barrier("of all").unwrap_err(),
                };
                assert_eq!(error.missing(), [Rank(1)], "{error}");
                let message = error.to_string();
                if rank == 3 {
                    assert_eq!(error.arrived(), [Rank(3)], "{error}");
                    assert!(message.contains("in group `pair` of 2"), "{message}");
                } else {
                    assert_eq!(error.arrived(), [Rank(0), Rank(2)], "{error}");
                    let elsewhere = "rank 3 is at barrier 1 of `pair`, `of the pair`, rank 1 had not";
                    assert!(message.contains(elsewhere), "{message}");
                }
            });
        }
    });
}
