//! Goal: what no peer of this version can mean is refused, by name, and everything else is taken.

use v1::complete_task_request::Outcome;

use super::*;
use crate::schedule::tests::config;

fn bounds() -> Bounds {
    let crew = Crew {
        min_workers: 2,
        max_workers: 4,
        nodes: 2,
        workers_per_node: 2,
    };
    Bounds::new(&config(""), crew)
}

fn member(worker: &str) -> v1::MemberContext {
    v1::MemberContext {
        worker_id: worker.to_owned(),
        ..v1::MemberContext::default()
    }
}

fn agent(node_rank: u32) -> v1::AgentContext {
    v1::AgentContext {
        node_rank,
        ..v1::AgentContext::default()
    }
}

fn refused<T>(words: &str) -> Result<T, String> {
    Err(words.to_owned())
}

#[test]
fn agents_speak_of_their_own_node() {
    let bounds = bounds();
    let mut exit = v1::ReportWorkerExitRequest {
        agent: Some(agent(1)),
        worker: Some(v1::WorkerProcess {
            worker_id: "node1/0".to_owned(),
            incarnation: 1,
        }),
        ..v1::ReportWorkerExitRequest::default()
    };
    assert_eq!(exit.check(&bounds), Ok(()));
    exit.agent = Some(agent(0));
    assert_eq!(
        exit.check(&bounds),
        refused("the agent of node 0 reports of worker `node1/0`")
    );
    let mut beyond = v1::AgentHeartbeatRequest {
        agent: Some(agent(2)),
    };
    assert_eq!(
        beyond.check(&bounds),
        refused("there is no node 2 in a run of 2 nodes")
    );
}

#[test]
fn numbers_are_finite_and_not_negative() {
    assert_eq!(number("work", 0.0), Ok(()));
    for other in [-1.0, f64::INFINITY, f64::NAN] {
        let expected = refused(&format!("`work` = {other} is no amount"));
        assert_eq!(number("work", other), expected);
    }
}

#[test]
fn only_slots_of_the_run_are_workers() {
    let bounds = bounds();
    assert_eq!(bounds.slot("node1/0"), Ok((1, 0)));
    for other in [
        "node2/0",
        "node0/2",
        "node00/1",
        "node+1/0",
        "node0",
        "0/0",
        "",
        "node0/0/0",
    ] {
        let expected = refused(&format!("`{other}` is no worker of this run"));
        assert_eq!(bounds.slot(other), expected);
    }
    let mut elsewhere = v1::JoinRequest {
        member: Some(member("node1/0")),
        node_rank: 0,
        ..v1::JoinRequest::default()
    };
    assert_eq!(
        elsewhere.check(&bounds),
        refused("worker `node1/0` says that it is worker 0 of node 0")
    );
    elsewhere.node_rank = 1;
    assert_eq!(elsewhere.check(&bounds), Ok(()));
}

/// A step is counted up to: one of a number with twenty digits would take for ever.
#[test]
fn steps_and_amounts_are_those_of_the_run() {
    let bounds = bounds();
    let mut heartbeat = v1::HeartbeatRequest {
        last_completed_step: bounds.last_step,
        ..heartbeat()
    };
    assert_eq!(heartbeat.check(&bounds), Ok(()));
    heartbeat.last_completed_step += 1;
    assert_eq!(
        heartbeat.check(&bounds),
        refused("there is no step 10 in a run of 9 steps")
    );
    heartbeat.last_completed_step = 0;
    heartbeat.work = f64::NAN;
    assert_eq!(heartbeat.check(&bounds), refused("`work` = NaN is no amount"));
}

#[test]
fn parts_stay_below_their_checkpoint() {
    for good in ["shared.safetensors", "generation-2/banks/zh-CN.safetensors"] {
        assert_eq!(path(good), Ok(()), "{good}");
    }
    let long = "a/".repeat(PATH) + "a";
    for bad in [
        "",
        "/etc/passwd",
        "../x",
        "a/../b",
        "a//b",
        "a\\b",
        "a\0b",
        "s3://b",
        &long,
    ] {
        let why = path(bad).expect_err("it leads elsewhere");
        assert!(why.ends_with(" is no path of a part"), "{bad:?}: {why}");
    }
}

/// What a worker says is printed on terminals.
#[test]
fn texts_are_cut_and_cannot_move_the_cursor() {
    let mut text = "one\u{1b}[2Jtwo\nthree".to_owned();
    cut(&mut text, NAME);
    assert_eq!(text, "one [2Jtwo\nthree");
    let mut long = "ä".repeat(NAME);
    cut(&mut long, NAME - 1);
    assert_eq!(long.chars().count(), NAME / 2 - 1);
}

/// What comes of checking `request` after `change`.
fn after<T: Bounded + Clone>(request: &T, change: impl FnOnce(&mut T)) -> Result<(), String> {
    let mut request = request.clone();
    change(&mut request);
    request.check(&bounds())
}

fn join() -> v1::JoinRequest {
    v1::JoinRequest {
        member: Some(member("node0/0")),
        ..v1::JoinRequest::default()
    }
}

fn heartbeat() -> v1::HeartbeatRequest {
    v1::HeartbeatRequest {
        member: Some(member("node0/0")),
        ..v1::HeartbeatRequest::default()
    }
}

fn completed(outcome: Outcome) -> v1::CompleteTaskRequest {
    v1::CompleteTaskRequest {
        member: Some(member("node0/0")),
        outcome: Some(outcome),
        ..v1::CompleteTaskRequest::default()
    }
}

fn decoded(change: impl FnOnce(&mut v1::Decoded)) -> v1::CompleteTaskRequest {
    let mut utterance = v1::Decoded {
        lang: "en".to_owned(),
        ..v1::Decoded::default()
    };
    change(&mut utterance);
    completed(Outcome::Evaluated(v1::Evaluated {
        utterances: vec![utterance],
    }))
}

fn failure() -> v1::ReportFailureRequest {
    v1::ReportFailureRequest {
        member: Some(member("node0/0")),
        failed_collective: Some(v1::CollectiveState::default()),
        ..v1::ReportFailureRequest::default()
    }
}

fn split(metrics: &mut v1::StepMetrics) -> &mut v1::StepParts {
    metrics.parts.get_or_insert_default()
}

fn english(metrics: &mut v1::StepMetrics) -> &mut v1::LanguageMetrics {
    metrics.by_language.entry("en".to_owned()).or_default()
}

/// The report of a step after `change`.
fn step(change: impl FnOnce(&mut v1::StepMetrics)) -> v1::ReportStepRequest {
    let mut metrics = v1::StepMetrics {
        by_language: [("en".to_owned(), v1::LanguageMetrics::default())].into(),
        parts: Some(v1::StepParts::default()),
        gates: Some(v1::GateShares {
            layers: vec!["0".to_owned(), "1".to_owned()],
            by_language: [("de".to_owned(), v1::LayerShares { shares: vec![0.5; 2] })].into(),
        }),
        ..v1::StepMetrics::default()
    };
    change(&mut metrics);
    v1::ReportStepRequest {
        member: Some(member("node0/0")),
        metrics: Some(metrics),
    }
}

fn parts(change: impl FnOnce(&mut v1::CheckpointPart)) -> v1::ReportCheckpointPartsRequest {
    let mut part = v1::CheckpointPart {
        path: "shared.safetensors".to_owned(),
        bytes: 3,
        blake3: "0".repeat(64),
        object: None,
    };
    change(&mut part);
    v1::ReportCheckpointPartsRequest {
        member: Some(member("node0/0")),
        parts: vec![part],
        ..v1::ReportCheckpointPartsRequest::default()
    }
}

#[test]
fn whoever_asks_is_of_the_run() {
    let other = || Some(member("node9/9"));
    let begin = v1::BeginCheckpointRequest {
        member: other(),
        ..v1::BeginCheckpointRequest::default()
    };
    let next = v1::NextTaskRequest {
        member: other(),
        ..v1::NextTaskRequest::default()
    };
    let saved = completed(Outcome::Saved(v1::Saved {}));
    for checked in [
        after(&join(), |request| request.member = other()),
        after(&next, |_| {}),
        after(&saved, |request| request.member = other()),
        after(&failure(), |request| request.member = other()),
        after(&heartbeat(), |request| request.member = other()),
        after(&step(|_| {}), |request| request.member = other()),
        after(&begin, |_| {}),
        after(&parts(|_| {}), |request| request.member = other()),
    ] {
        assert_eq!(checked, refused("`node9/9` is no worker of this run"));
    }
    let registers = v1::RegisterNodeRequest {
        agent: Some(agent(2)),
        ..v1::RegisterNodeRequest::default()
    };
    let exits = v1::ReportWorkerExitRequest {
        agent: Some(agent(2)),
        ..v1::ReportWorkerExitRequest::default()
    };
    for checked in [after(&registers, |_| {}), after(&exits, |_| {})] {
        assert_eq!(checked, refused("there is no node 2 in a run of 2 nodes"));
    }
    assert_eq!(
        after(&heartbeat(), |request| request.local_rank = 1),
        refused("worker `node0/0` says that it is worker 1 of node 0")
    );
}

#[test]
fn every_step_is_one_of_the_run() {
    let held = |step| v1::HeldState {
        step,
        ..v1::HeldState::default()
    };
    let at = |reached_step: u64| {
        [
            after(&join(), |request| {
                request.held = vec![held(0), held(reached_step)];
            }),
            after(&completed(Outcome::Trained(v1::Trained { reached_step })), |_| {}),
            after(&completed(Outcome::Stopped(v1::Stopped { reached_step })), |_| {}),
            after(&completed(Outcome::Yielded(v1::Yielded { reached_step })), |_| {}),
            after(&step(|metrics| metrics.step = reached_step), |_| {}),
            after(
                &v1::BeginCheckpointRequest {
                    step: reached_step,
                    ..v1::BeginCheckpointRequest::default()
                },
                |_| {},
            ),
            after(&parts(|_| {}), |request| request.step = reached_step),
        ]
    };
    assert_eq!(at(9), [const { Ok(()) }; 7]);
    for checked in at(10) {
        assert_eq!(checked, refused("there is no step 10 in a run of 9 steps"));
    }
}

#[test]
fn every_language_is_one_of_the_run() {
    let shares = || v1::LayerShares { shares: vec![0.5; 2] };
    for checked in [
        after(&decoded(|utterance| utterance.lang = "xx".to_owned()), |_| {}),
        after(
            &step(|metrics| {
                let language = v1::LanguageMetrics::default();
                metrics.by_language.insert("xx".to_owned(), language);
            }),
            |_| {},
        ),
        after(
            &step(|metrics| {
                let gates = metrics.gates.as_mut().expect("it has some");
                gates.by_language.insert("xx".to_owned(), shares());
            }),
            |_| {},
        ),
    ] {
        assert_eq!(checked, refused("`xx` is no language of this run"));
    }
}

#[test]
fn every_rank_is_one_of_the_run() {
    let collective = |missing, arrived| v1::CollectiveState {
        missing,
        arrived,
        ..v1::CollectiveState::default()
    };
    let of = |missing: Vec<u32>, arrived: Vec<u32>| {
        let state = Some(collective(missing, arrived));
        let beat = after(&heartbeat(), |request| {
            request.latest_collective.clone_from(&state);
        });
        let failed = after(&failure(), |request| request.failed_collective = state);
        assert_eq!(beat, failed);
        beat
    };
    assert_eq!(of(vec![3], vec![0, 1]), Ok(()));
    let beyond = refused("there is no rank 4 in a run of 4 workers");
    assert_eq!(of(vec![1, 4], vec![]), beyond);
    assert_eq!(of(vec![], vec![1, 4]), beyond);
    assert_eq!(after(&step(|metrics| metrics.world_size = 4), |_| {}), Ok(()));
    let checked = after(&step(|metrics| metrics.world_size = 5), |_| {});
    assert_eq!(checked, refused("there are no 5 ranks"));
}

#[test]
fn amounts_can_be_computed_with() {
    type Field<N> = fn(&mut v1::StepMetrics) -> &mut N;
    let amounts: [(&str, Field<f64>); 12] = [
        ("audio_seconds", |metrics| &mut metrics.audio_seconds),
        ("seconds", |metrics| &mut metrics.seconds),
        ("comm_exposed_seconds", |metrics| {
            &mut metrics.comm_exposed_seconds
        }),
        ("compute_seconds", |metrics| &mut metrics.compute_seconds),
        ("checkpoint_seconds", |metrics| &mut metrics.checkpoint_seconds),
        ("memory_seconds", |metrics| &mut metrics.memory_seconds),
        ("parts.data", |metrics| &mut split(metrics).data),
        ("parts.encoder", |metrics| &mut split(metrics).encoder),
        ("parts.forward", |metrics| &mut split(metrics).forward),
        ("parts.backward", |metrics| &mut split(metrics).backward),
        ("parts.exchange", |metrics| &mut split(metrics).exchange),
        ("parts.update", |metrics| &mut split(metrics).update),
    ];
    for (name, field) in amounts {
        let checked = after(&step(|metrics| *field(metrics) = -1.0), |_| {});
        assert_eq!(checked, refused(&format!("`{name}` = -1 is no amount")));
    }
    let beat = |change: fn(&mut v1::HeartbeatRequest)| after(&heartbeat(), change);
    let endless = beat(|request| request.compute_seconds = f64::INFINITY);
    assert_eq!(endless, refused("`compute_seconds` = inf is no amount"));

    let counts: [(&str, Field<u64>); 5] = [
        ("tokens", |metrics| &mut metrics.tokens),
        ("comm_bytes_shared", |metrics| &mut metrics.comm_bytes_shared),
        ("comm_bytes_banks", |metrics| &mut metrics.comm_bytes_banks),
        ("tokens", |metrics| &mut english(metrics).tokens),
        ("utterances", |metrics| &mut english(metrics).utterances),
    ];
    let too_many = |name: &str| refused(&format!("`{name}` = 1099511627777 is too many"));
    for (name, field) in counts {
        let checked = after(&step(|metrics| *field(metrics) = MOST + 1), |_| {});
        assert_eq!(checked, too_many(name));
    }
    assert_eq!(
        beat(|request| request.store_reads = MOST + 1),
        too_many("store_reads")
    );
    assert_eq!(beat(|request| request.store_reads = MOST), Ok(()));
    let utterance = decoded(|utterance| utterance.tokens = Some(MOST + 1));
    assert_eq!(after(&utterance, |_| {}), too_many("tokens"));
    assert_eq!(
        after(&parts(|part| part.bytes = MOST + 1), |_| {}),
        too_many("bytes")
    );
}

/// Goal: what a message repeats is not more than a worker can have to say.
#[test]
fn lists_have_an_end() {
    let hold = |states: usize, banks: usize| {
        let held = v1::HeldState {
            banks: vec![0; banks],
            ..v1::HeldState::default()
        };
        after(&join(), |request| request.held = vec![held; states])
    };
    assert_eq!(hold(HELD, 2), Ok(()));
    assert_eq!(hold(65, 2), refused("`held` has 65 entries, more than 64"));
    assert_eq!(hold(1, 3), refused("`held.banks` has 3 entries, more than 2"));
    let many = after(&parts(|_| {}), |request| {
        let part = request.parts[0].clone();
        request.parts = vec![part; 16_385];
    });
    assert_eq!(many, refused("`parts` has 16385 entries, more than 16384"));
    let layers = |layers: usize, shares: usize| {
        let metrics = step(|metrics| {
            let gates = metrics.gates.as_mut().expect("it has some");
            gates.layers = vec!["0".to_owned(); layers];
            for language in gates.by_language.values_mut() {
                language.shares = vec![0.5; shares];
            }
        });
        after(&metrics, |_| {})
    };
    assert_eq!(layers(4096, 4096), Ok(()));
    assert_eq!(layers(2, 3), refused("there are no 3 layers"));
    assert_eq!(
        layers(4097, 4097),
        refused("`layers` has 4097 entries, more than 4096")
    );
}

#[test]
fn parts_are_named_and_hashed() {
    assert_eq!(after(&parts(|_| {}), |_| {}), Ok(()));
    let beside = parts(|part| part.object = Some("generation-2/shared.safetensors".to_owned()));
    assert_eq!(after(&beside, |_| {}), Ok(()));
    let outside = refused("`../x` is no path of a part");
    assert_eq!(
        after(&parts(|part| part.path = "../x".to_owned()), |_| {}),
        outside
    );
    let object = parts(|part| part.object = Some("../x".to_owned()));
    assert_eq!(after(&object, |_| {}), outside);
    for hash in ["0".repeat(63), "0".repeat(65), "g".repeat(64)] {
        let checked = after(&parts(|part| part.blake3.clone_from(&hash)), |_| {});
        assert_eq!(checked, refused(&format!("`{}` is no BLAKE3 hash", short(&hash))));
    }
    let longest = "a".repeat(PATH);
    assert_eq!(path(&longest), Ok(()));
}

/// Goal: every text that a message has is short enough to be kept, and cannot move a cursor.
#[test]
fn every_text_is_cut() {
    let long = || "\u{1b}".repeat(TEXT + 1);
    let name = " ".repeat(NAME);
    let text = " ".repeat(TEXT);

    let mut join = v1::JoinRequest {
        hostname: long(),
        store_address: long(),
        ..join()
    };
    join.check(&bounds()).expect("it makes sense");
    assert_eq!([join.hostname, join.store_address], [name.clone(), name.clone()]);

    let mut failure = v1::ReportFailureRequest {
        message: long(),
        failed_collective: Some(v1::CollectiveState {
            group: long(),
            operation: long(),
            what: long(),
            ..v1::CollectiveState::default()
        }),
        ..failure()
    };
    failure.check(&bounds()).expect("it makes sense");
    assert_eq!(failure.message, text);
    let collective = failure.failed_collective.expect("it is there");
    for cut in [collective.group, collective.operation, collective.what] {
        assert_eq!(cut, name);
    }

    let mut heartbeat = v1::HeartbeatRequest {
        doing: long(),
        hostname: long(),
        trouble: Some(v1::StoreTrouble {
            message: long(),
            ..v1::StoreTrouble::default()
        }),
        ..heartbeat()
    };
    heartbeat.check(&bounds()).expect("it makes sense");
    assert_eq!(
        [heartbeat.doing, heartbeat.hostname],
        [name.clone(), name.clone()]
    );
    assert_eq!(
        heartbeat.trouble.map(|trouble| trouble.message),
        Some(text.clone())
    );

    let mut evaluation = decoded(|utterance| {
        utterance.id = long();
        utterance.reference = long();
        utterance.hypothesis = long();
    });
    evaluation.check(&bounds()).expect("it makes sense");
    let Some(Outcome::Evaluated(evaluated)) = evaluation.outcome else {
        panic!("it is another one: {:?}", evaluation.outcome);
    };
    let utterance = &evaluated.utterances[0];
    for cut in [&utterance.id, &utterance.reference, &utterance.hypothesis] {
        assert_eq!(*cut, text);
    }

    let mut step = step(|metrics| metrics.gates.as_mut().expect("it has some").layers[1] = long());
    step.check(&bounds()).expect("it makes sense");
    let gates = step.metrics.and_then(|metrics| metrics.gates);
    assert_eq!(
        gates.map(|gates| gates.layers),
        Some(vec!["0".to_owned(), name.clone()])
    );

    let mut registers = v1::RegisterNodeRequest {
        agent: Some(agent(0)),
        hostname: long(),
    };
    registers.check(&bounds()).expect("it makes sense");
    assert_eq!(registers.hostname, name);

    let mut exit = v1::ReportWorkerExitRequest {
        agent: Some(agent(0)),
        last_lines: vec![long(); LINES + 1],
        ..v1::ReportWorkerExitRequest::default()
    };
    exit.check(&bounds()).expect("it makes sense");
    assert_eq!(exit.last_lines, vec![text; LINES]);

    let mut request = v1::StopRequest { reason: long() };
    request.check(&bounds()).expect("it makes sense");
    assert_eq!(request.reason, name);
}
