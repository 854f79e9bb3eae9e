//! Goal: whoever talks to a coordinator is told what the state machine decides, and what it decides is in the run.
//! Method: runs of two workers over real gRPC with a run on disk. One test function plays all workers in turn, so nothing depends on
//! timing.

mod agents;
mod fleet;
mod hostile;
mod shown;
mod strangers;

use std::time::Duration;

use tempfile::TempDir;
use tokio::sync::mpsc;
use tonic::{Code, Request};
use zipper_checkpoint::layout;
use zipper_cli::{ExitStatus, status_of};
use zipper_coordinator::journal::JournalEntry;
use zipper_coordinator::server::start;
use zipper_coordinator::state::Event;
use zipper_proto::v1::agent_service_server::AgentService;
use zipper_proto::v1::complete_task_request::Outcome;
use zipper_proto::v1::task::Kind;
use zipper_proto::v1::{self, verdict};
use zipper_types::{Generation, Step};

use agents::register;
use fleet::{
    Coordinator, Fleet, agent, config, job, join_request, member, metric_lines, run_in, watch, watch_from,
};

#[tokio::test]
async fn a_whole_run_leaves_everything_and_tells_everybody() {
    let directory = TempDir::new().expect("a folder");
    let store = run_in(&directory);
    let coordinator = Coordinator::start(&store, config()).await;
    let early = watch(&coordinator).await;
    let mut fleet = Fleet::join(&coordinator, &store).await;
    fleet
        .work_until(|kind| matches!(kind, Kind::Train(task) if task.from_step == 3))
        .await;
    let late = watch(&coordinator).await;
    assert_eq!(fleet.verdict().await.outcome(), verdict::Outcome::Done);

    let told = early.await.expect("the watcher does not panic");
    // Checkpoints are published beside the rest.
    let (checkpoints, others): (Vec<&str>, Vec<&str>) = told
        .iter()
        .map(String::as_str)
        .partition(|word| word.starts_with("checkpoint"));
    assert_eq!(
        checkpoints,
        ["checkpoint 2", "checkpoint 3", "checkpoint 4", "checkpoint 5"]
    );
    assert_eq!(
        others,
        [
            "generation 1 of 2",
            "evaluating t, untrained",
            "t, untrained@0: wer 0.25",
            "training 0-3",
            "step 1",
            "step 2",
            "step 3",
            "evaluating validation",
            "validation@3: wer 0.25",
            "training 3-5",
            "step 4",
            "step 5",
            "evaluating validation",
            "validation@5: wer 0.25",
            "evaluating t",
            "t@5: wer 0.25",
            "evaluating t, silenced",
            "t, silenced@5: wer 0.25",
            "summary",
            "Done",
        ]
    );
    assert_eq!(late.await.expect("the watcher does not panic"), told);
    assert_eq!(coordinator.ended().await, ExitStatus::Done);

    // Of the newest three and the ends of stages, that of step 2 is none.
    for step in 3..=5 {
        let manifest = store
            .checkpoints()
            .verify(Step(step))
            .await
            .expect("a sound checkpoint");
        assert_eq!((manifest.parts.len(), manifest.generation), (2, Generation(1)));
    }
    let steps: Vec<u64> = metric_lines(&store).await.iter().map(|(step, _)| *step).collect();
    assert_eq!(steps, [1, 2, 3, 4, 5]);
    let written = store.list("eval").await.expect("the folder can be read");
    let mut expected = vec!["eval/table.json".to_owned()];
    for stem in ["t-silenced-step-00000005", "t-step-00000000", "t-step-00000005"]
        .into_iter()
        .chain(["validation-step-00000003", "validation-step-00000005"])
    {
        expected.extend([format!("eval/{stem}.json"), format!("eval/{stem}.jsonl")]);
    }
    expected.sort();
    assert_eq!(written, expected);
    let table = store.get("eval/table.json").await.expect("it is there");
    let table: serde_json::Value = serde_json::from_slice(&table).expect("JSON");
    let languages = &table["sets"][0]["languages"];
    assert_eq!(languages[0]["lang"], "en", "most hours of training first");
    assert_eq!(languages[1]["train_hours"], 1.0);
    assert_eq!(languages[1]["trained"]["wer"], 0.5);
    let journal: Vec<(u64, JournalEntry)> = store.journal().read_all().await.expect("it is readable");
    let kinds: Vec<String> = journal
        .iter()
        .map(|(_, entry)| match entry {
            JournalEntry::Coordinator { reserved, .. } => format!("reserved up to {reserved}"),
            JournalEntry::Generation {
                generation, banks, ..
            } => format!("generation {generation}: {banks:?}"),
            JournalEntry::Checkpoint { step, .. } => format!("checkpoint {step}"),
            JournalEntry::End { verdict, .. } => format!("end {verdict:?}"),
            JournalEntry::Broken { .. } => "broken".to_owned(),
            _ => String::new(),
        })
        .filter(|words| !words.is_empty())
        .collect();
    assert_eq!(
        kinds,
        [
            "reserved up to 8",
            "generation 1: {\"de\": (Rank(1), Rank(1)), \"en\": (Rank(0), Rank(1))}",
            "checkpoint 2",
            "checkpoint 3",
            "checkpoint 4",
            "checkpoint 5",
            "end Some(Done)"
        ]
    );
}

/// Goal: who was cut off is told the rest by this coordinator, and everything by another one.
#[tokio::test]
async fn nobody_is_told_twice() {
    let directory = TempDir::new().expect("a folder");
    let store = run_in(&directory);
    let coordinator = Coordinator::start(&store, config()).await;
    let mut fleet = Fleet::join(&coordinator, &store).await;
    fleet
        .work_until(|kind| matches!(kind, Kind::Train(task) if task.from_step == 3))
        .await;
    let whole = watch_from(&coordinator, v1::WatchRequest::default()).await;
    // The run's first coordinator has claim 1 on it.
    let cut_off = |epoch| watch_from(&coordinator, v1::WatchRequest { epoch, seen: 5 });
    let (rest, of_another) = (cut_off(1).await, cut_off(7).await);
    assert_eq!(fleet.verdict().await.outcome(), verdict::Outcome::Done);

    let told = whole.await.expect("the watcher does not panic");
    assert_eq!(rest.await.expect("the watcher does not panic"), told[5..]);
    assert_eq!(of_another.await.expect("the watcher does not panic"), told);
    assert_eq!(coordinator.ended().await, ExitStatus::Done);
}

#[tokio::test]
async fn a_stopped_run_goes_on_from_an_earlier_checkpoint() {
    let directory = TempDir::new().expect("a folder");
    let store = run_in(&directory);
    let mut config = config();
    config.training.align.steps = 9;
    let resumed = "resumed from 4, past [\"step 5\"]";
    for (claim, first_word, resume, stopped_at, loss) in
        [(1, "generation 1 of 2", 0, 5, 1.0), (2, resumed, 4, 6, 2.0)]
    {
        let coordinator = Coordinator::start(&store, config.clone()).await;
        let told = watch(&coordinator).await;
        let mut fleet = Fleet::join(&coordinator, &store).await;
        assert_eq!(fleet.generation(), Some(claim), "no generation is used twice");
        let (id, task) = fleet.train_task().await;
        assert_eq!(
            id >> 32,
            claim,
            "no task has the number of one that was given out before"
        );
        assert_eq!(task.from_step, resume);
        assert!(!fleet.heartbeat().await.stop_requested);
        coordinator.ask_to_stop("enough").await;
        assert!(fleet.heartbeat().await.stop_requested);
        fleet.stop_at(id, &task, stopped_at, loss).await;
        let verdict = fleet.verdict().await;
        assert_eq!(verdict.outcome(), verdict::Outcome::Stopped);
        assert_eq!(verdict.reason, "enough");
        assert_eq!(coordinator.ended().await, ExitStatus::Stopped);
        assert_eq!(told.await.expect("the watcher does not panic")[0], first_word);
        let latest = store
            .checkpoints()
            .latest()
            .await
            .expect("the folder can be read");
        assert_eq!(latest, Some(Step(stopped_at)));
        if stopped_at == 5 {
            // Damaged on the disk: it makes room, and the run goes on from the one before.
            let damage = store.put("checkpoints/step-00000005/part0", "x".into());
            damage.await.expect("the folder can be written");
        }
    }
    let list = store.checkpoints().list().await.expect("the folder can be read");
    let steps: Vec<Step> = list
        .checkpoints
        .iter()
        .map(|checkpoint| checkpoint.manifest.step)
        .collect();
    assert!(!steps.contains(&Step(5)), "{steps:?}");
    let lines = metric_lines(&store).await;
    assert_eq!(
        lines,
        [(1, 1.0), (2, 1.0), (3, 1.0), (4, 1.0), (5, 2.0), (6, 2.0)],
        "step 5 is the one that was made again"
    );
}

#[tokio::test]
async fn metrics_after_the_step_of_resumption_go_at_once() {
    let directory = TempDir::new().expect("a folder");
    let store = run_in(&directory);
    let lines = "{\"step\":1,\"loss\":1.0}\n{\"step\":2,\"loss\":1.0}\n{\"step\":3,\"loss\":1.0}\n";
    store
        .put(layout::TRAIN_METRICS, lines.into())
        .await
        .expect("the folder can be written");
    let coordinator = Coordinator::start(&store, config()).await;
    let mut fleet = Fleet::join(&coordinator, &store).await;
    let request = failed(&fleet.members[0], false);
    let mut client = coordinator.workers();
    client.report_failure(request).await.expect("anybody may report");
    fleet.verdict().await;
    assert_eq!(coordinator.ended().await, ExitStatus::Failed);
    assert_eq!(metric_lines(&store).await, [], "the run begins anew");
}

/// What can never be published is not tried for ever.
#[tokio::test]
async fn a_checkpoint_without_its_parts_ends_the_run() {
    let directory = TempDir::new().expect("a folder");
    let store = run_in(&directory);
    let coordinator = Coordinator::start(&store, config()).await;
    let mut fleet = Fleet::join(&coordinator, &store).await;
    fleet.train_task().await;
    for (rank, member) in fleet.members.clone().into_iter().enumerate() {
        let part = v1::CheckpointPart {
            path: format!("nowhere{rank}"),
            bytes: 3,
            blake3: "0".repeat(64),
            object: None,
        };
        let request = v1::ReportCheckpointPartsRequest {
            member: Some(member),
            step: 2,
            stage: v1::Stage::Align.into(),
            parts: vec![part],
        };
        let reported = fleet.client.report_checkpoint_parts(request).await;
        reported.expect("members may report");
    }
    let stop = async {
        while !fleet.heartbeat().await.stop_requested {
            tokio::task::yield_now().await;
        }
    };
    let asked = tokio::time::timeout(Duration::from_secs(30), stop).await;
    asked.expect("workers are asked to stop");
    let verdict = fleet.verdict().await;
    assert!(verdict.reason.contains("cannot be published"), "{verdict:?}");
    assert_eq!(coordinator.ended().await, ExitStatus::Failed);
}

fn failed(member: &v1::MemberContext, config: bool) -> v1::ReportFailureRequest {
    v1::ReportFailureRequest {
        member: Some(member.clone()),
        config,
        fatal: !config,
        message: "no model there".to_owned(),
        failed_collective: None,
    }
}

#[tokio::test]
async fn a_worker_with_a_bad_configuration_ends_the_run_with_exit_code_2() {
    let directory = TempDir::new().expect("a folder");
    let store = run_in(&directory);
    let coordinator = Coordinator::start(&store, config()).await;
    let mut fleet = Fleet::join(&coordinator, &store).await;
    let request = failed(&fleet.members[0], true);
    let reported = fleet.client.report_failure(request).await;
    reported.expect("anybody may report");
    let heard = fleet.heartbeat().await.verdict;
    let outside = v1::NextTaskRequest {
        member: Some(member(1)),
        completed_task: None,
    };
    let told = fleet.client.next_task(outside).await;
    let told = told.expect("whoever asks learns how the run ended").into_inner();
    let told = match told.task.and_then(|task| task.kind) {
        Some(Kind::Finish(finish)) => finish.verdict,
        other => panic!("{other:?} is no verdict"),
    };
    let verdict = fleet.verdict().await;
    assert_eq!(told.as_ref(), Some(&verdict));
    assert_eq!(
        heard.as_ref(),
        Some(&verdict),
        "who hangs in a task hears of it, too"
    );
    assert_eq!(verdict.outcome(), verdict::Outcome::Config);
    assert_eq!(
        verdict.reason,
        "worker `node0/0` (rank 0) on host: no model there"
    );
    let status = coordinator.ended().await;
    assert_eq!((status, status.code()), (ExitStatus::Usage, 2));
}

#[tokio::test]
async fn only_members_of_the_generation_are_heard() {
    let directory = TempDir::new().expect("a folder");
    let store = run_in(&directory);
    let coordinator = Coordinator::start(&store, config()).await;
    let fleet = Fleet::join(&coordinator, &store).await;
    let good = fleet.members[1].clone();
    let with = |change: &dyn Fn(&mut v1::MemberContext)| {
        let mut member = good.clone();
        change(&mut member);
        Some(member)
    };
    let refused = [
        (
            with(&|member| member.generation = Some(0)),
            Code::Aborted,
            "generation 0, which is over",
        ),
        (
            with(&|member| member.generation = None),
            Code::Aborted,
            "no generation",
        ),
        (
            with(&|member| member.incarnation = 0),
            Code::FailedPrecondition,
            "`node0/1` was given up",
        ),
        (
            with(&|member| member.run = "other".to_owned()),
            Code::FailedPrecondition,
            "`tiny`, not `other`",
        ),
        (
            with(&|member| member.worker_id = "node9/9".to_owned()),
            Code::InvalidArgument,
            "node9/9",
        ),
        (None, Code::InvalidArgument, "`member`"),
    ];
    let mut client = coordinator.workers();
    for (member, code, words) in refused {
        let asked = client
            .next_task(v1::NextTaskRequest {
                member: member.clone(),
                completed_task: None,
            })
            .await;
        let completed = client
            .complete_task(v1::CompleteTaskRequest {
                member: member.clone(),
                task_id: 0,
                outcome: Some(Outcome::Saved(v1::Saved {})),
            })
            .await;
        let began = client
            .begin_checkpoint(v1::BeginCheckpointRequest {
                member: member.clone(),
                step: 2,
            })
            .await;
        for status in [asked.err(), completed.err(), began.err()] {
            let status = status.expect("it is refused");
            assert_eq!(status.code(), code, "{status}");
            assert!(status.message().contains(words), "{status}");
        }
    }
    let sign = |member| v1::HeartbeatRequest {
        member,
        local_rank: 1,
        ..v1::HeartbeatRequest::default()
    };
    for (member, over) in [
        (Some(good.clone()), false),
        (with(&|member| member.generation = Some(0)), true),
        (with(&|member| member.generation = None), false),
    ] {
        let heard = client.heartbeat(sign(member.clone())).await;
        let heard = heard.expect("all may say that they live").into_inner();
        assert_eq!(heard.generation_over, over, "{member:?}");
    }
    // Nothing of that did anything: the run goes on, and the same process may ask for its place again.
    let joined = client.join(join_request(1)).await.expect("joining is idempotent");
    let assignment = joined.into_inner().assignment.expect("it has a place");
    assert_eq!(assignment.rank, 1);
}

/// Every rank asks where to write, and one claim is made; another generation would write elsewhere.
#[tokio::test]
async fn a_checkpoint_is_claimed_once() {
    let directory = TempDir::new().expect("a folder");
    let store = run_in(&directory);
    store
        .checkpoints()
        .begin(Step(4), Generation(0))
        .await
        .expect("the folder can be written");
    let coordinator = Coordinator::start(&store, config()).await;
    let fleet = Fleet::join(&coordinator, &store).await;
    let mut client = coordinator.workers();
    for (step, prefix) in [(2, ""), (4, "generation-1/"), (2, "")] {
        for member in &fleet.members {
            let request = v1::BeginCheckpointRequest {
                member: Some(member.clone()),
                step,
            };
            let response = client.begin_checkpoint(request).await.expect("members may");
            let response = response.into_inner();
            assert_eq!((response.prefix.as_str(), response.published), (prefix, false));
        }
    }
}

/// Who is done with a task waits for those who are not, and is not told to do it again.
#[tokio::test]
async fn who_is_done_waits_for_the_others() {
    let directory = TempDir::new().expect("a folder");
    let store = run_in(&directory);
    let coordinator = Coordinator::start(&store, config()).await;
    let mut fleet = Fleet::join(&coordinator, &store).await;
    let (id, _) = fleet.next().await;
    let members = fleet.members.clone();
    let done = |rank: usize| v1::CompleteTaskRequest {
        member: Some(members[rank].clone()),
        task_id: id,
        outcome: Some(fleet::evaluated(rank)),
    };
    let mut client = coordinator.workers();
    client.complete_task(done(0)).await.expect("members may complete");
    let asks = v1::NextTaskRequest {
        member: Some(members[0].clone()),
        completed_task: Some(id),
    };
    let next = tokio::spawn({
        let mut client = coordinator.workers();
        async move { client.next_task(asks).await }
    });
    // On the same connection: by then it has asked.
    for _ in 0..8 {
        fleet.heartbeat().await;
    }
    client.complete_task(done(1)).await.expect("members may complete");
    let next = next.await.expect("it does not panic").expect("members may ask");
    let task = next.into_inner().task.expect("there is another one");
    assert!(task.id > id, "{task:?}");
}

/// Goal: a coordinator that is dropped is gone as if its process had ended: nobody goes on for it.
#[tokio::test]
async fn a_coordinator_that_is_dropped_answers_no_more() {
    let directory = TempDir::new().expect("a folder");
    let store = run_in(&directory);
    let (_stop, stopped) = mpsc::channel(1);
    let running = start(job(&store, config()).await, stopped).await;
    let running = running.expect("it starts");
    let services = running.services();
    let ask = || {
        let agent = Some(agent(1));
        services.agent_heartbeat(Request::new(v1::AgentHeartbeatRequest { agent }))
    };
    ask().await.expect("agents may");
    drop(running);
    let status = ask().await.expect_err("nobody is there");
    assert_eq!(status.code(), Code::Unavailable, "{status}");
}

/// A worker that has done more tasks than the coordinator knows was given them by one that had no time to note it. It would wait
/// for ever for the next one, so it has to join again.
#[tokio::test]
async fn a_worker_that_is_ahead_of_the_journal_joins_again() {
    let directory = TempDir::new().expect("a folder");
    let store = run_in(&directory);
    let coordinator = Coordinator::start(&store, config()).await;
    let fleet = Fleet::join(&coordinator, &store).await;
    let request = v1::NextTaskRequest {
        member: Some(fleet.members[0].clone()),
        completed_task: Some(u64::MAX - 1),
    };
    let status = coordinator.workers().next_task(request).await;
    assert_eq!(status.expect_err("there is no such task").code(), Code::Aborted);
}

/// The last write of a coordinator that was killed may arrive after the next one has read the journal. That one has not lost the
/// run (exit 2): it ends as if it had crashed, and the one after it reads the journal again.
#[tokio::test]
async fn an_entry_that_arrives_late_ends_a_coordinator_and_not_the_run() {
    let directory = TempDir::new().expect("a folder");
    let store = run_in(&directory);
    let coordinator = Coordinator::start(&store, config()).await;
    // Now it has read the journal. Its own entries are its beginning and its ledger.
    register(&mut coordinator.agents()).await;
    let late = JournalEntry::Broken {
        generation: Generation(7),
        step: Step(2),
        reason: "an earlier coordinator said so".to_owned(),
        at: "2026-01-02T03:04:05Z".to_owned(),
    };
    store
        .put(
            "journal/000000000002.json",
            serde_json::to_vec(&late).expect("plain data").into(),
        )
        .await
        .expect("the folder can be written");
    let stop = coordinator.stop.send(Event::Abandoned).await;
    stop.expect("the coordinator is there");
    let ended = coordinator.serving.await.expect("the coordinator does not panic");
    let error = ended.expect_err("it knows less than the journal");
    assert_eq!(status_of(&error), ExitStatus::Failed, "{error}");
    assert!(
        error.to_string().contains("has written to the journal meanwhile"),
        "{error}"
    );
}

#[tokio::test]
async fn a_rendezvous_that_is_not_complete_in_time_ends_the_run() {
    let directory = TempDir::new().expect("a folder");
    let store = run_in(&directory);
    let mut config = config();
    config.runtime.rendezvous_timeout = Duration::from_secs(2);
    let coordinator = Coordinator::start(&store, config).await;
    let mut client = coordinator.workers();
    let joined = client.join(join_request(1)).await.expect("it may ask");
    let verdict = joined.into_inner().verdict.expect("rank 0 never comes");
    assert_eq!(verdict.outcome(), verdict::Outcome::Failed);
    assert!(verdict.reason.contains("for 2 workers, but only"), "{verdict:?}");
    assert_eq!(coordinator.ended().await, ExitStatus::Failed);
}

#[tokio::test]
async fn a_run_whose_launcher_is_gone_before_all_joined_is_stopped() {
    let directory = TempDir::new().expect("a folder");
    let store = run_in(&directory);
    let coordinator = Coordinator::start(&store, config()).await;
    let mut client = coordinator.workers();
    // Until its agent knows, the coordinator does not go.
    let mut agents = coordinator.agents();
    let (agent, _) = register(&mut agents).await;
    coordinator
        .stop
        .send(Event::Abandoned)
        .await
        .expect("the coordinator listens");
    let joined = client.join(join_request(0)).await.expect("it may ask");
    let verdict = joined.into_inner().verdict.expect("the run is stopped");
    assert_eq!(
        (verdict.outcome(), verdict.reason.as_str()),
        (verdict::Outcome::Stopped, "zipper-launch is gone")
    );
    let request = v1::AgentHeartbeatRequest { agent: Some(agent) };
    let heard = agents.agent_heartbeat(request).await.expect("agents may");
    assert_eq!(heard.into_inner().verdict, Some(verdict));
    let ended = coordinator.serving.await.expect("the coordinator does not panic");
    assert_eq!(ended.expect("the store can be written"), ExitStatus::Stopped);
}
