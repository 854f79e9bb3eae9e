//! Runs of two workers over real gRPC with a run on disk. One test function plays all workers in turn, so nothing depends on
//! timing.

use std::time::Duration;

use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tonic::Code;
use tonic::transport::Channel;
use zipper_checkpoint::{RunStore, layout};
use zipper_cli::ExitStatus;
use zipper_config::RunConfig;
use zipper_coordinator::server::{Job, JournalEntry, serve};
use zipper_proto::v1::complete_task_request::Outcome;
use zipper_proto::v1::run_service_client::RunServiceClient;
use zipper_proto::v1::task::Kind;
use zipper_proto::v1::watch_response::Event;
use zipper_proto::v1::worker_service_client::WorkerServiceClient;
use zipper_proto::v1::{self, verdict};
use zipper_types::{Generation, Step, WorkerId, WorldSize};

const WORKERS: u32 = 2;
const CHECKPOINT_EVERY: u64 = 2;

fn config() -> RunConfig {
    let yaml = "
name: tiny
model: {encoder: {path: w}, llm: {path: q}}
data: {languages: [en, de], train: [train.jsonl], validation: [validation.jsonl], temperature: 1.0}
training:
  align: {steps: 3}
  zipper: {steps: 2}
  batch_audio_seconds: 8
checkpoint: {every_steps: 2}
evaluation:
  tests: [{name: t, manifest: t.jsonl}]
  untrained: true
  no_audio_control: true
";
    zipper_config::from_str(yaml, "test", &[]).expect("a valid configuration")
}

/// A run of which the launcher has counted the data: 2 hours of English, 1 of German.
fn run_in(directory: &TempDir) -> RunStore {
    let report = r#"{"languages": [
        {"lang": "en", "utterances": 720, "seconds": 7200.0, "characters": 36000},
        {"lang": "de", "utterances": 360, "seconds": 3600.0, "characters": 18000}
    ]}"#;
    let folder = directory.path().join("data");
    std::fs::create_dir_all(&folder).expect("the folder can be written");
    std::fs::write(folder.join("report.json"), report).expect("the folder can be written");
    RunStore::open(&format!("file://{}", directory.path().display())).expect("a folder can be a run")
}

/// A coordinator on a port that the system chose.
struct Coordinator {
    channel: Channel,
    serving: JoinHandle<anyhow::Result<ExitStatus>>,
    /// What the launcher holds.
    stop: oneshot::Sender<String>,
}

impl Coordinator {
    async fn start(store: &RunStore, config: RunConfig, resume: u64) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("a bound socket has an address");
        let (stop, stopped) = oneshot::channel();
        let job = Job {
            store: store.clone(),
            config,
            world_size: WorldSize(WORKERS),
            resume: Step(resume),
            bank_bytes: None,
        };
        let serving = tokio::spawn(serve(listener, job, stopped));
        let channel = Channel::from_shared(format!("http://{address}"))
            .expect("an address")
            .connect()
            .await
            .expect("the coordinator listens");
        Self {
            channel,
            serving,
            stop,
        }
    }

    fn workers(&self) -> WorkerServiceClient<Channel> {
        WorkerServiceClient::new(self.channel.clone())
    }

    fn run(&self) -> RunServiceClient<Channel> {
        RunServiceClient::new(self.channel.clone())
    }

    async fn ended(self) -> ExitStatus {
        self.serving
            .await
            .expect("the coordinator does not panic")
            .expect("the run's store can be written")
    }
}

fn member(local_rank: u32) -> v1::MemberContext {
    v1::MemberContext {
        run: "tiny".to_owned(),
        worker_id: WorkerId::new(0, local_rank).to_string(),
        incarnation: 1,
        generation: None,
    }
}

fn join_request(local_rank: u32) -> v1::JoinRequest {
    v1::JoinRequest {
        member: Some(member(local_rank)),
        node_rank: 0,
        local_rank,
        store_address: format!("127.0.0.1:{}", 7000 + local_rank),
        hostname: "host".to_owned(),
        pid: 1,
    }
}

/// All workers of a run, after the rendezvous.
struct Fleet {
    client: WorkerServiceClient<Channel>,
    store: RunStore,
    /// In the order of their ranks.
    members: Vec<v1::MemberContext>,
    completed: Option<u64>,
}

impl Fleet {
    async fn join(coordinator: &Coordinator, store: &RunStore) -> Self {
        let joins = (0..WORKERS).map(|local_rank| {
            let mut client = coordinator.workers();
            async move { client.join(join_request(local_rank)).await }
        });
        let mut members = Vec::new();
        for (rank, joined) in (0..).zip(futures::future::join_all(joins).await) {
            let joined = joined.expect("all workers come").into_inner();
            assert_eq!((joined.rank, joined.world_size), (rank, WORKERS));
            assert_eq!(joined.store_address, "127.0.0.1:7000", "the store of rank 0");
            let placement = joined.placement.expect("workers are told where the banks are");
            let owners: Vec<(u32, u32)> = placement
                .owners
                .iter()
                .map(|owners| (owners.first_rank, owners.last_rank))
                .collect();
            assert_eq!(owners, [(0, 1), (1, 1)]);
            let work = placement.work.expect("and what utterances cost");
            assert_eq!((work.measured, work.tokens_per_character.len()), (false, 2));
            let generation = Some(joined.generation);
            members.push(v1::MemberContext {
                generation,
                ..member(rank)
            });
        }
        Self {
            client: coordinator.workers(),
            store: store.clone(),
            members,
            completed: None,
        }
    }

    fn generation(&self) -> Option<u64> {
        self.members[0].generation
    }

    /// The next task, which is the same for all ranks.
    async fn next(&mut self) -> (u64, Kind) {
        let mut tasks = Vec::new();
        for member in &self.members {
            let request = v1::NextTaskRequest {
                member: Some(member.clone()),
                completed_task: self.completed,
            };
            let response = self.client.next_task(request).await.expect("members may ask");
            tasks.push(response.into_inner().task.expect("there is a task"));
        }
        assert_eq!(tasks[0], tasks[1]);
        let task = tasks.remove(0);
        (task.id, task.kind.expect("of a known kind"))
    }

    async fn complete(&mut self, task_id: u64, outcome: impl Fn(usize) -> Outcome) {
        for (rank, member) in self.members.iter().enumerate() {
            let request = v1::CompleteTaskRequest {
                member: Some(member.clone()),
                task_id,
                outcome: Some(outcome(rank)),
            };
            self.client
                .complete_task(request)
                .await
                .expect("members may complete");
        }
        self.completed = Some(task_id);
    }

    /// Makes steps up to `reached`, with their metrics and checkpoints.
    async fn train(&mut self, task: &v1::TrainTask, reached: u64, loss: f64) {
        for step in task.from_step + 1..=reached {
            let metrics = v1::StepMetrics {
                step,
                stage: task.stage,
                loss,
                ..v1::StepMetrics::default()
            };
            let request = v1::ReportStepRequest {
                member: Some(self.members[0].clone()),
                metrics: Some(metrics),
            };
            self.client
                .report_step(request)
                .await
                .expect("members may report");
            let last = step == reached && (task.checkpoint_at_end || reached < task.until_step);
            if last || step.is_multiple_of(CHECKPOINT_EVERY) {
                self.checkpoint(step, task.stage).await;
            }
        }
    }

    async fn checkpoint(&mut self, step: u64, stage: i32) {
        for (rank, member) in self.members.iter().enumerate() {
            let (path, bytes) = (format!("part{rank}"), format!("step {step}"));
            let checkpoints = self.store.checkpoints();
            let part = checkpoints
                .put_part(Step(step), &path, bytes.into())
                .await
                .expect("the checkpoint is not published");
            let part = v1::CheckpointPart {
                path: part.path,
                bytes: part.bytes,
                blake3: part.blake3,
            };
            let request = v1::ReportCheckpointPartsRequest {
                member: Some(member.clone()),
                step,
                stage,
                parts: vec![part],
            };
            self.client
                .report_checkpoint_parts(request)
                .await
                .expect("members may report");
        }
    }

    /// Does tasks to their ends until there is one that `wanted` wants.
    async fn work_until(&mut self, wanted: impl Fn(&Kind) -> bool) -> (u64, Kind) {
        loop {
            let (id, kind) = self.next().await;
            if wanted(&kind) {
                return (id, kind);
            }
            match kind {
                Kind::Train(task) => {
                    self.train(&task, task.until_step, 1.0).await;
                    let reached_step = task.until_step;
                    self.complete(id, |_| Outcome::Trained(v1::Trained { reached_step }))
                        .await;
                }
                Kind::Evaluate(_) => self.complete(id, evaluated).await,
                Kind::Finish(finish) => panic!("the run ended: {finish:?}"),
            }
        }
    }

    async fn verdict(&mut self) -> v1::Verdict {
        match self.work_until(|kind| matches!(kind, Kind::Finish(_))).await {
            (_, Kind::Finish(finish)) => finish.verdict.expect("a run ends somehow"),
            (_, other) => panic!("{other:?} is no verdict"),
        }
    }

    async fn train_task(&mut self) -> (u64, v1::TrainTask) {
        match self.work_until(|kind| matches!(kind, Kind::Train(_))).await {
            (id, Kind::Train(task)) => (id, task),
            (_, other) => panic!("{other:?} is no training"),
        }
    }

    async fn heartbeat(&mut self) -> v1::HeartbeatResponse {
        let request = v1::HeartbeatRequest {
            member: Some(self.members[0].clone()),
            last_completed_step: 0,
            latest_collective: None,
        };
        let response = self.client.heartbeat(request).await.expect("members may");
        response.into_inner()
    }
}

/// Rank 0 hears every word, rank 1 half of them.
fn evaluated(rank: usize) -> Outcome {
    let utterance = v1::Decoded {
        id: format!("u{rank}"),
        lang: ["en", "de"][rank].to_owned(),
        reference: "red tree".to_owned(),
        hypothesis: ["red tree", "red"][rank].to_owned(),
        nll: Some(3.0),
        tokens: Some(2),
    };
    Outcome::Evaluated(v1::Evaluated {
        utterances: vec![utterance],
    })
}

fn word(event: &Event) -> String {
    match event {
        Event::GenerationFormed(formed) => {
            format!("generation {} of {}", formed.generation, formed.world_size)
        }
        Event::TrainingStarted(task) => format!("training {}-{}", task.from_step, task.until_step),
        Event::Step(step) => format!("step {}", step.step),
        Event::EvaluationStarted(evaluation) => format!("evaluating {}", evaluation.name),
        Event::EvaluationDone(done) => format!("{}@{}: wer {}", done.name, done.step, done.wer),
        Event::CheckpointCommitted(checkpoint) => format!("checkpoint {}", checkpoint.step),
        Event::Verdict(verdict) => format!("{:?}", verdict.outcome()),
    }
}

/// Everything a watcher is told, to the end of its stream.
async fn watch(coordinator: &Coordinator) -> JoinHandle<Vec<String>> {
    let response = coordinator.run().watch(v1::WatchRequest {}).await;
    let mut events = response.expect("anybody may watch").into_inner();
    tokio::spawn(async move {
        let mut words = Vec::new();
        while let Some(told) = events.message().await.expect("the stream is not cut") {
            words.push(word(&told.event.expect("of a known kind")));
        }
        words
    })
}

async fn metric_lines(store: &RunStore) -> Vec<(u64, f64)> {
    let bytes = store
        .get(layout::TRAIN_METRICS)
        .await
        .expect("metrics were written");
    let text = std::str::from_utf8(&bytes).expect("UTF-8");
    let lines = text.lines().map(|line| {
        let line: serde_json::Value = serde_json::from_str(line).expect("JSON");
        let (step, loss) = (line["step"].as_u64(), line["loss"].as_f64());
        (step.expect("a step"), loss.expect("a loss"))
    });
    lines.collect()
}

#[tokio::test]
async fn a_whole_run_leaves_everything_and_tells_everybody() {
    let directory = TempDir::new().expect("a folder");
    let store = run_in(&directory);
    let coordinator = Coordinator::start(&store, config(), 0).await;
    let early = watch(&coordinator).await;
    let mut fleet = Fleet::join(&coordinator, &store).await;
    fleet
        .work_until(|kind| matches!(kind, Kind::Train(task) if task.from_step == 3))
        .await;
    let late = watch(&coordinator).await;
    assert_eq!(fleet.verdict().await.outcome(), verdict::Outcome::Done);

    let told = early.await.expect("the watcher does not panic");
    assert_eq!(
        told,
        [
            "generation 1 of 2",
            "evaluating t, untrained",
            "t, untrained@0: wer 0.25",
            "training 0-3",
            "step 1",
            "step 2",
            "checkpoint 2",
            "step 3",
            "checkpoint 3",
            "evaluating validation",
            "validation@3: wer 0.25",
            "training 3-5",
            "step 4",
            "checkpoint 4",
            "step 5",
            "checkpoint 5",
            "evaluating validation",
            "validation@5: wer 0.25",
            "evaluating t",
            "t@5: wer 0.25",
            "evaluating t, silenced",
            "t, silenced@5: wer 0.25",
            "Done",
        ]
    );
    assert_eq!(late.await.expect("the watcher does not panic"), told);
    assert_eq!(coordinator.ended().await, ExitStatus::Done);

    for step in 2..=5 {
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
            JournalEntry::Generation {
                generation, banks, ..
            } => format!("generation {generation}: {banks:?}"),
            JournalEntry::Checkpoint { step, .. } => format!("checkpoint {step}"),
            JournalEntry::End { verdict, .. } => format!("end {verdict}"),
        })
        .collect();
    assert_eq!(
        kinds,
        [
            "generation 1: {\"de\": (Rank(1), Rank(1)), \"en\": (Rank(0), Rank(1))}",
            "checkpoint 2",
            "checkpoint 3",
            "checkpoint 4",
            "checkpoint 5",
            "end Done"
        ]
    );
}

#[tokio::test]
async fn a_stopped_run_goes_on_from_an_earlier_checkpoint() {
    let directory = TempDir::new().expect("a folder");
    let store = run_in(&directory);
    let mut config = config();
    config.training.align.steps = 9;
    for (resume, stopped_at, loss, generation) in [(0, 5, 1.0, 1), (4, 6, 2.0, 2)] {
        let coordinator = Coordinator::start(&store, config.clone(), resume).await;
        let mut fleet = Fleet::join(&coordinator, &store).await;
        assert_eq!(
            fleet.generation(),
            Some(generation),
            "no generation is used twice"
        );
        let (id, task) = fleet.train_task().await;
        assert_eq!(task.from_step, resume);
        assert!(!fleet.heartbeat().await.stop_requested);
        let reason = "enough".to_owned();
        coordinator
            .run()
            .stop(v1::StopRequest { reason })
            .await
            .expect("anybody may stop it");
        assert!(fleet.heartbeat().await.stop_requested);
        fleet.train(&task, stopped_at, loss).await;
        let reached_step = stopped_at;
        fleet
            .complete(id, |_| Outcome::Stopped(v1::Stopped { reached_step }))
            .await;
        let verdict = fleet.verdict().await;
        assert_eq!(verdict.outcome(), verdict::Outcome::Stopped);
        assert_eq!(verdict.reason, "enough");
        assert_eq!(coordinator.ended().await, ExitStatus::Stopped);
        let latest = store
            .checkpoints()
            .latest()
            .await
            .expect("the folder can be read");
        assert_eq!(latest, Some(Step(stopped_at)));
        // As if the last checkpoint were damaged: the run goes on from the one before.
        store
            .checkpoints()
            .remove(Step(5))
            .await
            .expect("the folder can be written");
    }
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
    let coordinator = Coordinator::start(&store, config(), 2).await;
    let mut fleet = Fleet::join(&coordinator, &store).await;
    let (id, _) = fleet.train_task().await;
    fleet.complete(id, |_| failed(false)).await;
    fleet.verdict().await;
    assert_eq!(coordinator.ended().await, ExitStatus::Failed);
    assert_eq!(metric_lines(&store).await, [(1, 1.0), (2, 1.0)]);
}

fn failed(config: bool) -> Outcome {
    Outcome::Failed(v1::Failed {
        config,
        message: "no model there".to_owned(),
        failed_collective: None,
        collective: false,
    })
}

#[tokio::test]
async fn a_worker_with_a_bad_configuration_ends_the_run_with_exit_code_2() {
    let directory = TempDir::new().expect("a folder");
    let store = run_in(&directory);
    let coordinator = Coordinator::start(&store, config(), 0).await;
    let mut fleet = Fleet::join(&coordinator, &store).await;
    let (id, _) = fleet.next().await;
    fleet.complete(id, |_| failed(true)).await;
    let heard = fleet.heartbeat().await.verdict;
    let verdict = fleet.verdict().await;
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
    let coordinator = Coordinator::start(&store, config(), 0).await;
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
            Code::FailedPrecondition,
            "generation 1",
        ),
        (
            with(&|member| member.generation = None),
            Code::FailedPrecondition,
            "generation 1",
        ),
        (
            with(&|member| member.incarnation = 2),
            Code::FailedPrecondition,
            "node0/1",
        ),
        (
            with(&|member| member.run = "other".to_owned()),
            Code::FailedPrecondition,
            "`tiny`, not `other`",
        ),
        (
            with(&|member| member.worker_id = "node9/9".to_owned()),
            Code::NotFound,
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
        let heartbeat = client
            .heartbeat(v1::HeartbeatRequest {
                member: member.clone(),
                last_completed_step: 0,
                latest_collective: None,
            })
            .await;
        let completed = client
            .complete_task(v1::CompleteTaskRequest {
                member: member.clone(),
                task_id: 0,
                outcome: Some(failed(false)),
            })
            .await;
        for status in [asked.err(), heartbeat.err(), completed.err()] {
            let status = status.expect("it is refused");
            assert_eq!(status.code(), code, "{status}");
            assert!(status.message().contains(words), "{status}");
        }
    }
    let mut again = join_request(1);
    again.member = with(&|member| member.incarnation = 2);
    let status = client.join(again).await.expect_err("the generation is complete");
    assert_eq!(status.code(), Code::FailedPrecondition, "{status}");
    // Nothing of that did anything: the run goes on, and the same process may ask for its place again.
    let joined = client.join(join_request(1)).await.expect("joining is idempotent");
    assert_eq!(joined.into_inner().rank, 1);
}

#[tokio::test]
async fn a_rendezvous_that_is_not_complete_in_time_is_refused() {
    let directory = TempDir::new().expect("a folder");
    let store = run_in(&directory);
    let mut config = config();
    config.runtime.rendezvous_timeout = Duration::from_millis(50);
    let coordinator = Coordinator::start(&store, config, 0).await;
    let mut client = coordinator.workers();
    let status = client
        .join(join_request(1))
        .await
        .expect_err("rank 0 never comes");
    assert_eq!(status.code(), Code::DeadlineExceeded, "{status}");
    assert!(status.message().contains("for 2 workers, but only"), "{status}");
    let exit = v1::ReportWorkerExitRequest {
        member: Some(member(0)),
        exit_code: Some(1),
        ..v1::ReportWorkerExitRequest::default()
    };
    client.report_worker_exit(exit).await.expect("agents may report");
    assert_eq!(coordinator.ended().await, ExitStatus::Failed);
}

#[tokio::test]
async fn a_run_whose_launcher_is_gone_before_all_joined_is_stopped() {
    let directory = TempDir::new().expect("a folder");
    let store = run_in(&directory);
    let coordinator = Coordinator::start(&store, config(), 0).await;
    let mut client = coordinator.workers();
    coordinator
        .stop
        .send("zipper-launch is gone".to_owned())
        .expect("the coordinator listens");
    let status = client
        .join(join_request(0))
        .await
        .expect_err("the run is stopped");
    assert_eq!(
        (status.code(), status.message()),
        (Code::Aborted, "zipper-launch is gone")
    );
    client
        .join(join_request(1))
        .await
        .expect_err("the run is stopped");
    let ended = coordinator.serving.await.expect("the coordinator does not panic");
    assert_eq!(ended.expect("the store can be written"), ExitStatus::Stopped);
}
