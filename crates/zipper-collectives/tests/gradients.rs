//! Goal: gradients that are summed in buckets while backward runs are those of one rank with all the data, and whatever
//! goes wrong on the way ends in an error.
//! Method: the ranks are threads of this process with Gloo between them; each has its own copy of the parameters of a
//! chain of layers.

use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use tch::{Device, Kind, Tensor};
use zipper_collectives::{
    BucketPlan, BucketSpec, CollectiveError, ErrorKind, FlightRecorder, GradientReducer, GroupOptions,
    ProcessGroup, ReduceReport, RollCall, Store,
};
use zipper_types::{Rank, WorldSize};

const HOST: &str = "127.0.0.1";
const TIMEOUT: Duration = Duration::from_secs(30);
const LAYERS: usize = 4;
const WIDTH: i64 = 6;

/// One rank: its groups, and a copy of the parameters.
struct Member {
    rank: u32,
    world: ProcessGroup,
    params: Vec<Tensor>,
}

fn options(roll_call: Option<RollCall>) -> GroupOptions {
    GroupOptions {
        roll_call,
        recorder: FlightRecorder::default(),
        ..GroupOptions::gloo(HOST, TIMEOUT)
    }
}

/// A group of all ranks that compares their calls, as release builds do only when asked to.
fn checked_group(member: &Member, store: &Store) -> ProcessGroup {
    let options = GroupOptions {
        check: true,
        ..options(None)
    };
    let store = store.prefix("checked").unwrap();
    ProcessGroup::connect(&store, Rank(member.rank), member.world.world_size(), &options).unwrap()
}

/// Runs `body` on `world_size` threads that are the ranks of a group; returns the results in rank order.
fn on_ranks<T: Send>(world_size: u32, kind: Kind, body: impl Fn(&Member, &Store) -> T + Sync) -> Vec<T> {
    let (_server, port) = Store::serve(HOST, TIMEOUT).unwrap();
    thread::scope(|scope| {
        let body = &body;
        let ranks: Vec<_> = (0..world_size)
            .map(|rank| {
                scope.spawn(move || {
                    tch::set_num_threads(1);
                    let store = Store::connect(HOST, port, TIMEOUT).unwrap();
                    let options = options(Some(RollCall::new(&store).unwrap()));
                    let world = store.prefix("world").unwrap();
                    let world =
                        ProcessGroup::connect(&world, Rank(rank), WorldSize(world_size), &options).unwrap();
                    let member = Member {
                        rank,
                        world,
                        params: params(kind),
                    };
                    body(&member, &store)
                })
            })
            .collect();
        ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
    })
}

/// The same values everywhere.
fn params(kind: Kind) -> Vec<Tensor> {
    let matrix = |layer: usize| {
        let values = Tensor::arange(WIDTH * WIDTH, (kind, Device::Cpu)) * 0.37 + layer as f64;
        (values.sin() * 0.5)
            .reshape([WIDTH, WIDTH])
            .set_requires_grad(true)
    };
    (0..LAYERS).map(matrix).collect()
}

/// The loss of one micro batch of one rank; `only` leaves later layers out.
fn loss(params: &[Tensor], rank: u32, micro_batch: u32) -> Tensor {
    let kind = params[0].kind();
    let x = Tensor::arange(3 * WIDTH, (kind, Device::Cpu)) * 0.11 + f64::from(10 * rank + micro_batch);
    let mut x = x.cos().reshape([3, WIDTH]);
    for param in params {
        x = x.matmul(param).tanh();
    }
    x.square().sum(kind)
}

/// Buckets as backward completes them: the last layer first.
fn buckets<'a>(params: &'a [Tensor], group: Option<&'a ProcessGroup>) -> Vec<BucketSpec<'a>> {
    params
        .iter()
        .enumerate()
        .rev()
        .map(|(layer, param)| BucketSpec {
            name: format!("layer {layer}"),
            group,
            params: vec![param],
        })
        .collect()
}

fn gradients(params: &[Tensor]) -> Vec<Tensor> {
    params.iter().map(|param| param.grad().copy()).collect()
}

/// What one rank with all the data computes.
fn expected(kind: Kind, ranks: &[u32], micro_batches: u32) -> Vec<Tensor> {
    let params = params(kind);
    for &rank in ranks {
        for micro_batch in 0..micro_batches {
            loss(&params, rank, micro_batch).backward();
        }
    }
    gradients(&params)
}

fn assert_close(found: &[Tensor], expected: &[Tensor], tolerance: f64, what: &str) {
    assert_eq!(found.len(), expected.len());
    for (layer, (found, expected)) in found.iter().zip(expected).enumerate() {
        let error = (found - expected).abs().max().double_value(&[]);
        let norm = expected.abs().max().double_value(&[]);
        assert!(
            error <= tolerance * norm,
            "{what}: layer {layer} is off by {error:e} of {norm:e}"
        );
    }
}

/// Two micro batches, of which the second is reduced as it goes.
fn step(
    reducer: &GradientReducer,
    member: &Member,
    plan: BucketPlan,
) -> Result<ReduceReport, CollectiveError> {
    reducer.zero(|_| true);
    loss(&member.params, member.rank, 0).backward();
    let last = loss(&member.params, member.rank, 1);
    reducer.begin("step 1", &[plan; LAYERS])?;
    last.backward();
    reducer.finish()
}

#[test]
fn sums_are_those_of_one_rank_with_all_the_data() {
    for (kind, tolerance) in [(Kind::Float, 1e-6), (Kind::Double, 1e-14)] {
        for world_size in 1..=3 {
            for plan in [BucketPlan::AsReady, BucketPlan::AtEnd] {
                let ranks = on_ranks(world_size, kind, |member, _| {
                    let reducer =
                        GradientReducer::new(&buckets(&member.params, Some(&member.world))).unwrap();
                    let mut report = ReduceReport::default();
                    // Twice: what the first step left behind must not be in the second.
                    for _ in 0..2 {
                        report = step(&reducer, member, plan).unwrap();
                    }
                    let bytes = (WIDTH * WIDTH) as u64 * kind.elt_size_in_bytes() as u64;
                    assert_eq!(report.bytes_by_bucket, [bytes; LAYERS]);
                    let early = if plan == BucketPlan::AsReady { LAYERS } else { 0 };
                    assert_eq!(report.launched_in_backward, early, "{plan:?}");
                    gradients(&member.params)
                });
                let all: Vec<u32> = (0..world_size).collect();
                let expected = expected(kind, &all, 2);
                for found in ranks {
                    assert_close(
                        &found,
                        &expected,
                        tolerance,
                        &format!("{kind:?}, {world_size} ranks, {plan:?}"),
                    );
                }
            }
        }
    }
}

/// A rank without utterances takes part with zeros and makes nobody wait for a backward pass that does not come.
#[test]
fn an_idle_rank_adds_nothing() {
    let ranks = on_ranks(3, Kind::Double, |member, _| {
        let reducer = GradientReducer::new(&buckets(&member.params, Some(&member.world))).unwrap();
        if member.rank == 1 {
            reducer.zero(|_| true);
            reducer.begin("step 1", &[BucketPlan::Now; LAYERS]).unwrap();
            reducer.finish().unwrap();
        } else {
            step(&reducer, member, BucketPlan::AsReady).unwrap();
        }
        gradients(&member.params)
    });
    let expected = expected(Kind::Double, &[0, 2], 2);
    for found in ranks {
        assert_close(&found, &expected, 1e-14, "an idle rank");
    }
}

/// Shared parameters go over the world, a bank over its owners, and a bank that nobody else owns nowhere; what is
/// skipped keeps this rank's own gradient.
#[test]
fn groups_sum_among_themselves() {
    let ranks = on_ranks(3, Kind::Double, |member, store| {
        // Ranks 1 and 2 own the last layer together; layer 2 is everyone's own; layer 1 is skipped.
        let owners = (member.rank > 0).then(|| {
            let options = GroupOptions {
                name: "owners".to_owned(),
                members: vec![Rank(1), Rank(2)],
                ..options(None)
            };
            let store = store.prefix("owners").unwrap();
            ProcessGroup::connect(&store, Rank(member.rank - 1), WorldSize(2), &options).unwrap()
        });
        let groups = [Some(&member.world), Some(&member.world), None, owners.as_ref()];
        let specs: Vec<BucketSpec<'_>> = buckets(&member.params, None)
            .into_iter()
            .zip(groups.into_iter().rev())
            .map(|(spec, group)| BucketSpec { group, ..spec })
            .collect();
        let reducer = GradientReducer::new(&specs).unwrap();
        reducer.zero(|_| true);
        let plans = [
            BucketPlan::AsReady,
            BucketPlan::AsReady,
            BucketPlan::Skip,
            BucketPlan::AsReady,
        ];
        let loss = loss(&member.params, member.rank, 0);
        reducer.begin("step 1", &plans).unwrap();
        loss.backward();
        let report = reducer.finish().unwrap();
        let bytes = (WIDTH * WIDTH * 8) as u64;
        let of_owners = if owners.is_some() { bytes } else { 0 };
        assert_eq!(report.bytes_by_bucket, [of_owners, 0, 0, bytes]);
        gradients(&member.params)
    });
    let (all, owners) = (
        expected(Kind::Double, &[0, 1, 2], 1),
        expected(Kind::Double, &[1, 2], 1),
    );
    for (rank, found) in (0..).zip(&ranks) {
        let own = expected(Kind::Double, &[rank], 1);
        let last = if rank > 0 { &owners } else { &own };
        let wanted = [&all[0], &own[1], &own[2], &last[3]].map(Tensor::shallow_clone);
        assert_close(found, &wanted, 1e-14, &format!("rank {rank}"));
    }
}

/// A parameter that gets no gradient after all does not hang the others: its bucket is summed in the end.
#[test]
fn a_gradient_that_does_not_come_is_zero() {
    let ranks = on_ranks(2, Kind::Double, |member, _| {
        let reducer = GradientReducer::new(&buckets(&member.params, Some(&member.world))).unwrap();
        reducer.zero(|_| true);
        // Rank 0 uses all layers, rank 1 only the first two.
        let used = if member.rank == 0 { LAYERS } else { 2 };
        let loss = loss(&member.params[..used], member.rank, 0);
        reducer.begin("step 1", &[BucketPlan::AsReady; LAYERS]).unwrap();
        loss.backward();
        let report = reducer.finish().unwrap();
        let early = if member.rank == 0 { LAYERS } else { 0 };
        assert_eq!(
            report.launched_in_backward, early,
            "the first bucket of rank 1 never came"
        );
        gradients(&member.params)
    });
    let whole = expected(Kind::Double, &[0], 1);
    let half = {
        let params = params(Kind::Double);
        loss(&params[..2], 1, 0).backward();
        params
    };
    let wanted = [
        &whole[0] + half[0].grad(),
        &whole[1] + half[1].grad(),
        whole[2].shallow_clone(),
        whole[3].shallow_clone(),
    ];
    for found in ranks {
        assert_close(&found, &wanted, 1e-14, "a missing gradient");
    }
}

/// A peer that goes away during the backward pass ends in an error that names it, and the same parameters train on in a
/// new group.
#[test]
fn a_lost_peer_is_named_and_the_parameters_live_on() {
    on_ranks(3, Kind::Double, |member, store| {
        if member.rank == 2 {
            let reducer = GradientReducer::new(&buckets(&member.params, Some(&member.world))).unwrap();
            step(&reducer, member, BucketPlan::AsReady).unwrap();
            member.world.abort_handle().abort();
            return;
        }
        {
            let reducer = GradientReducer::new(&buckets(&member.params, Some(&member.world))).unwrap();
            step(&reducer, member, BucketPlan::AsReady).unwrap();
            let error = step(&reducer, member, BucketPlan::AsReady).unwrap_err();
            assert!(
                matches!(
                    error.kind(),
                    ErrorKind::PeerLost | ErrorKind::Timeout | ErrorKind::Network
                ),
                "{error}"
            );
            assert_eq!(error.missing(), [Rank(2)], "{error}");
            let message = error.to_string();
            assert!(
                message.contains("step 1") && message.contains("rank 2 had not"),
                "{message}"
            );
        }
        let store = store.prefix("again").unwrap();
        let group = ProcessGroup::connect(&store, Rank(member.rank), WorldSize(2), &options(None)).unwrap();
        let reducer = GradientReducer::new(&buckets(&member.params, Some(&group))).unwrap();
        step(&reducer, member, BucketPlan::AsReady).unwrap();
        let found = gradients(&member.params);
        assert_close(
            &found,
            &expected(Kind::Double, &[0, 1], 2),
            1e-14,
            "after the loss",
        );
    });
}

/// Ranks that lay their gradients out differently are told so before anything is summed.
#[test]
fn different_layouts_are_refused() {
    let kinds = on_ranks(2, Kind::Double, |member, store| {
        let group = checked_group(member, store);
        let mut specs = buckets(&member.params, Some(&group));
        if member.rank == 1 {
            specs.swap(0, 1);
        }
        let error = GradientReducer::new(&specs).err().unwrap();
        let message = error.to_string();
        assert!(
            message.contains("rank 0: ") && message.contains("rank 1: "),
            "{message}"
        );
        error.kind()
    });
    assert_eq!(kinds, [ErrorKind::Mismatch; 2]);
}

/// Ranks that would not sum the same buckets are told so before anything is summed.
#[test]
fn different_plans_are_refused() {
    let kinds = on_ranks(2, Kind::Double, |member, store| {
        let group = checked_group(member, store);
        let reducer = GradientReducer::new(&buckets(&member.params, Some(&group))).unwrap();
        let mut plans = [BucketPlan::Now; LAYERS];
        if member.rank == 1 {
            plans[2] = BucketPlan::Skip;
        }
        let error = reducer.begin("step 1", &plans).unwrap_err();
        assert!(error.to_string().contains("gradients of step 1"), "{error}");
        error.kind()
    });
    assert_eq!(kinds, [ErrorKind::Mismatch; 2]);
}

/// What cannot be in a bucket is refused: a parameter twice, one that is frozen, one of another kind, none at all.
#[test]
fn impossible_buckets_are_refused() {
    let params = params(Kind::Double);
    let frozen = Tensor::zeros([2], (Kind::Double, Device::Cpu));
    let float = Tensor::zeros([2], (Kind::Float, Device::Cpu)).set_requires_grad(true);
    let cases = [
        (vec![&params[0], &params[0]], "in one bucket only"),
        (vec![&params[0], &frozen], "requires a gradient"),
        (vec![&params[0], &float], "one kind"),
        (vec![], "at least one parameter"),
    ];
    for (params, expected) in cases {
        let spec = BucketSpec {
            name: "impossible".to_owned(),
            group: None,
            params,
        };
        let error = GradientReducer::new(&[spec]).err().unwrap();
        assert_eq!(error.kind(), ErrorKind::Other, "{error}");
        assert!(error.to_string().contains(expected), "{error}");
    }
}

/// A rank whose backward pass fails lets go of its reducer: the others learn of it now and not at their timeout, in every
/// group of the step, and both go on in new groups.
#[test]
fn a_step_that_is_given_up_frees_the_others() {
    on_ranks(3, Kind::Double, |member, store| {
        let owners = (member.rank > 0).then(|| {
            let options = GroupOptions {
                name: "owners".to_owned(),
                members: vec![Rank(1), Rank(2)],
                ..options(None)
            };
            let store = store.prefix("owners").unwrap();
            ProcessGroup::connect(&store, Rank(member.rank - 1), WorldSize(2), &options).unwrap()
        });
        let mut specs = buckets(&member.params, Some(&member.world));
        specs[3].group = owners.as_ref();
        let reducer = GradientReducer::new(&specs).unwrap();
        reducer.zero(|_| true);
        reducer.begin("step 1", &[BucketPlan::AsReady; LAYERS]).unwrap();
        if member.rank == 0 {
            let wrong = Tensor::zeros([2], (Kind::Double, Device::Cpu));
            wrong.f_backward().unwrap_err();
            drop(reducer);
            let error = member.world.barrier("after the failure").unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Aborted);
        } else {
            loss(&member.params, member.rank, 0).backward();
            let start = Instant::now();
            let error = reducer.finish().unwrap_err();
            assert!(start.elapsed() < TIMEOUT / 2, "took {:?}", start.elapsed());
            assert_eq!(error.missing(), [Rank(0)], "{error}");
            // Whoever comes back gets the same answer from every group of the step.
            let first = error.to_string();
            let again = [
                reducer.begin("step 2", &[BucketPlan::Skip; LAYERS]).unwrap_err(),
                member.world.barrier("step 2").unwrap_err(),
                owners.as_ref().unwrap().barrier("step 2").unwrap_err(),
            ];
            assert_eq!(
                again.map(|error| error.to_string()),
                [(); 3].map(|()| first.clone())
            );
            drop(reducer);
        }
        let store = store.prefix("again").unwrap();
        let group = ProcessGroup::connect(&store, Rank(member.rank), WorldSize(3), &options(None)).unwrap();
        let reducer = GradientReducer::new(&buckets(&member.params, Some(&group))).unwrap();
        step(&reducer, member, BucketPlan::AsReady).unwrap();
        let wanted = expected(Kind::Double, &[0, 1, 2], 2);
        assert_close(&gradients(&member.params), &wanted, 1e-14, "after the failure");
    });
}

/// The recorder tells of each bucket when it began and ended, and an error names its bucket also when there are more than
/// the recorder keeps.
#[test]
fn buckets_are_recorded() {
    on_ranks(2, Kind::Float, |member, store| {
        let recorder = FlightRecorder::default();
        let options = GroupOptions {
            name: "recorded".to_owned(),
            recorder: recorder.clone(),
            ..options(None)
        };
        let store = store.prefix("recorded").unwrap();
        let group = ProcessGroup::connect(&store, Rank(member.rank), WorldSize(2), &options).unwrap();
        let params: Vec<Tensor> = (0..250)
            .map(|_| Tensor::ones([2], (Kind::Float, Device::Cpu)).set_requires_grad(true))
            .collect();
        let specs = params.iter().enumerate().map(|(index, param)| BucketSpec {
            name: format!("bucket {index}"),
            group: Some(&group),
            params: vec![param],
        });
        let reducer = GradientReducer::new(&specs.collect::<Vec<_>>()).unwrap();
        reducer.begin("step 1", &[BucketPlan::Now; 250]).unwrap();
        assert_eq!(reducer.finish().unwrap().launched_in_backward, 250);
        let records = recorder.records();
        let last = records.last().unwrap();
        assert_eq!((last.group.as_str(), last.operation), ("recorded", "all_reduce"));
        assert_eq!(
            (last.what.as_str(), last.bytes, last.tensor.as_str()),
            ("bucket 249 of step 1", 8, "Float [2]")
        );
        for pair in records.windows(2) {
            assert!(pair[0].started <= pair[1].started && pair[0].sequence + 1 == pair[1].sequence);
        }
        assert!(records.iter().all(|record| record.finished >= record.started));
        group.barrier("before the end").unwrap();
        reducer.begin("step 2", &[BucketPlan::AtEnd; 250]).unwrap();
        if member.rank == 0 {
            return;
        }
        let error = reducer.finish().unwrap_err().to_string();
        assert!(
            error.starts_with("all_reduce of `bucket 0 of step 2` on rank 1"),
            "{error}"
        );
    });
}

/// The group of ranks 0 and 1 and that of ranks 1 and 2, where `rank` is a member.
fn groups_that_share_rank_1(rank: u32, store: &Store) -> (Option<ProcessGroup>, Option<ProcessGroup>) {
    let group = |name: &str, members: [u32; 2]| {
        let index = members.iter().position(|&member| member == rank)?;
        let options = GroupOptions {
            name: name.to_owned(),
            members: members.map(Rank).to_vec(),
            ..options(None)
        };
        let store = store.prefix(name).unwrap();
        Some(ProcessGroup::connect(&store, Rank(index as u32), WorldSize(2), &options).unwrap())
    };
    (group("first", [0, 1]), group("second", [1, 2]))
}

/// A rank whose step fails in one group frees those that wait for it in another, although it keeps that group: they have
/// done nothing wrong and hear of it at once.
#[test]
fn a_failure_in_one_group_frees_the_others() {
    let all_have_seen_it = Barrier::new(2);
    on_ranks(3, Kind::Double, |member, store| {
        let (first, second) = groups_that_share_rank_1(member.rank, store);
        if member.rank == 0 {
            first.unwrap().abort_handle().abort();
            return;
        }
        let specs: Vec<BucketSpec<'_>> = [&first, &second]
            .into_iter()
            .flatten()
            .map(|group| BucketSpec {
                name: "gradients".to_owned(),
                group: Some(group),
                params: vec![&member.params[usize::from(group.rank().0 == 0)]],
            })
            .collect();
        let start = Instant::now();
        let outcome = GradientReducer::new(&specs).and_then(|reducer| {
            // What rank 1 has launched before its failure still arrives; the next step does not.
            for what in ["step 1", "step 2"] {
                reducer.begin(what, &vec![BucketPlan::Now; specs.len()])?;
                reducer.finish()?;
            }
            Ok(())
        });
        let elapsed = start.elapsed();
        all_have_seen_it.wait();
        let error = outcome.unwrap_err();
        assert!(elapsed < TIMEOUT / 2, "took {elapsed:?}: {error}");
    });
}

/// The same where a group has died between two steps, in a call that is no reducer's.
#[test]
fn a_group_that_is_dead_before_a_step_frees_the_others() {
    let (all_are_laid_out, all_have_seen_it) = (Barrier::new(3), Barrier::new(2));
    on_ranks(3, Kind::Double, |member, store| {
        let (first, second) = groups_that_share_rank_1(member.rank, store);
        let groups = [&first, &second].into_iter().flatten();
        let specs = groups.zip(&member.params).map(|(group, param)| BucketSpec {
            name: "gradients".to_owned(),
            group: Some(group),
            params: vec![param],
        });
        let reducer = GradientReducer::new(&specs.collect::<Vec<_>>());
        all_are_laid_out.wait();
        let reducer = reducer.unwrap();
        match (&first, &second) {
            (Some(first), None) => first.abort_handle().abort(),
            (None, Some(second)) => {
                let start = Instant::now();
                let outcome = second.barrier("step 1");
                let elapsed = start.elapsed();
                all_have_seen_it.wait();
                let error = outcome.unwrap_err();
                assert!(elapsed < TIMEOUT / 2, "took {elapsed:?}: {error}");
            }
            (Some(first), Some(second)) => {
                let before = first.barrier("before step 1");
                let begun = reducer.begin("step 1", &[BucketPlan::Now; 2]);
                let after = second.barrier("step 1");
                all_have_seen_it.wait();
                let error = before.unwrap_err().to_string();
                assert_eq!(begun.unwrap_err().to_string(), error);
                assert_eq!(after.unwrap_err().to_string(), error);
            }
            (None, None) => unreachable!("every rank is in a group"),
        }
    });
}
