//! A coordinator, its workers and its watchers, as the tests play them.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tonic::transport::{Channel, Endpoint};
use zipper_checkpoint::lease::{Holder, Lease, LeaseOptions};
use zipper_checkpoint::{RunStore, layout};
use zipper_cli::ExitStatus;
use zipper_config::RunConfig;
use zipper_coordinator::clock::Clock;
use zipper_coordinator::server::{Job, serve};
use zipper_coordinator::state::{self as coordinator, Crew};
use zipper_proto::v1;
use zipper_proto::v1::agent_service_client::AgentServiceClient;
use zipper_proto::v1::complete_task_request::Outcome;
use zipper_proto::v1::run_service_client::RunServiceClient;
use zipper_proto::v1::task::Kind;
use zipper_proto::v1::watch_response::Event;
use zipper_proto::v1::worker_service_client::WorkerServiceClient;
use zipper_tls::{Authority, Role};
use zipper_types::{Step, WorkerId};

pub(crate) const WORKERS: u32 = 2;
pub(crate) const CHECKPOINT_EVERY: u64 = 2;

pub(crate) fn config() -> RunConfig {
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
pub(crate) fn run_in(directory: &TempDir) -> RunStore {
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
pub(crate) struct Coordinator {
    pub(crate) channel: Channel,
    pub(crate) address: SocketAddr,
    /// Issues what it believes.
    pub(crate) authority: Authority,
    pub(crate) serving: JoinHandle<anyhow::Result<ExitStatus>>,
    /// What happens to the process itself.
    pub(crate) stop: mpsc::Sender<coordinator::Event>,
}

impl Coordinator {
    pub(crate) async fn start(store: &RunStore, config: RunConfig) -> Self {
        Self::of(job(store, config).await).await
    }

    pub(crate) async fn of(job: Job) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("a bound socket has an address");
        let (stop, stopped) = mpsc::channel(1);
        let authority = authority("tiny");
        let own = authority.issue(Role::Coordinator).expect("there is randomness");
        let serving = tokio::spawn(async move { serve(listener, &own, None, job, stopped).await });
        let channel = endpoint(&authority, Role::Node, address)
            .connect()
            .await
            .expect("the coordinator listens");
        Self {
            channel,
            address,
            authority,
            serving,
            stop,
        }
    }

    pub(crate) fn workers(&self) -> WorkerServiceClient<Channel> {
        WorkerServiceClient::new(self.channel.clone())
    }

    pub(crate) fn run(&self) -> RunServiceClient<Channel> {
        RunServiceClient::new(self.channel.clone())
    }

    pub(crate) fn agents(&self) -> AgentServiceClient<Channel> {
        AgentServiceClient::new(self.channel.clone())
    }

    /// Asks for the end of the run.
    pub(crate) async fn ask_to_stop(&self, reason: &str) {
        let reason = reason.to_owned();
        let asked = self.run().stop(v1::StopRequest { reason }).await;
        asked.expect("anybody may stop it");
    }

    pub(crate) async fn ended(self) -> ExitStatus {
        self.serving
            .await
            .expect("the coordinator does not panic")
            .expect("the run's store can be written")
    }
}

/// Two workers on one node.
pub(crate) async fn job(store: &RunStore, config: RunConfig) -> Job {
    Job {
        store: store.clone(),
        config,
        crew: Crew {
            min_workers: WORKERS,
            max_workers: WORKERS,
            nodes: 1,
            workers_per_node: WORKERS,
        },
        bank_bytes: None,
        lease: claim(store).await,
        adopt: false,
        clock: Clock::system(),
    }
}

/// The authority of some launch.
pub(crate) fn authority(run: &str) -> Authority {
    Authority::new(run, Duration::from_hours(1)).expect("there is randomness")
}

/// The way to a coordinator for someone whom `authority` gave credentials.
pub(crate) fn endpoint(authority: &Authority, role: Role, address: SocketAddr) -> Endpoint {
    let credentials = authority.issue(role).expect("there is randomness");
    credentials
        .endpoint(&format!("https://{address}"))
        .expect("an address")
}

/// The claim of a coordinator that nobody contests. Each is another process, as a claim of the same one would be taken for a request
/// that was made twice.
async fn claim(store: &RunStore) -> Lease {
    static PROCESSES: AtomicU32 = AtomicU32::new(1);
    let holder = Holder {
        host: "host".to_owned(),
        pid: PROCESSES.fetch_add(1, Ordering::Relaxed),
        since: "2026-01-02T03:04:05Z".to_owned(),
        address: "http://127.0.0.1:1".to_owned(),
    };
    let options = LeaseOptions {
        ttl: Duration::from_secs(15),
    };
    let claimed = Lease::acquire(store, holder, options, None).await;
    claimed
        .expect("the folder can be written")
        .expect("nobody else has the run")
}

pub(crate) fn member(local_rank: u32) -> v1::MemberContext {
    v1::MemberContext {
        run: "tiny".to_owned(),
        worker_id: WorkerId::new(0, local_rank).to_string(),
        incarnation: 1,
        generation: None,
    }
}

/// The agent of the first node.
pub(crate) fn agent(incarnation: u64) -> v1::AgentContext {
    v1::AgentContext {
        run: "tiny".to_owned(),
        node_rank: 0,
        incarnation,
    }
}

pub(crate) fn join_request(local_rank: u32) -> v1::JoinRequest {
    v1::JoinRequest {
        member: Some(member(local_rank)),
        node_rank: 0,
        local_rank,
        store_address: format!("127.0.0.1:{}", 7000 + local_rank),
        hostname: "host".to_owned(),
        held: Vec::new(),
    }
}

/// All workers of a run, after the rendezvous.
pub(crate) struct Fleet {
    pub(crate) client: WorkerServiceClient<Channel>,
    pub(crate) store: RunStore,
    /// In the order of their ranks.
    pub(crate) members: Vec<v1::MemberContext>,
    pub(crate) completed: Option<u64>,
}

impl Fleet {
    pub(crate) async fn join(coordinator: &Coordinator, store: &RunStore) -> Self {
        let joins = (0..WORKERS).map(|local_rank| {
            let mut client = coordinator.workers();
            async move { client.join(join_request(local_rank)).await }
        });
        let mut members = Vec::new();
        for (rank, joined) in (0..).zip(futures::future::join_all(joins).await) {
            let joined = joined.expect("all workers come").into_inner();
            let joined = joined.assignment.expect("the generation is formed");
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

    pub(crate) fn generation(&self) -> Option<u64> {
        self.members[0].generation
    }

    /// The next task, which is the same for all ranks.
    pub(crate) async fn next(&mut self) -> (u64, Kind) {
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

    pub(crate) async fn complete(&mut self, task_id: u64, outcome: impl Fn(usize) -> Outcome) {
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
    pub(crate) async fn train(&mut self, task: &v1::TrainTask, reached: u64, loss: f64) {
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

    /// Makes steps of task `id` up to `reached`, where the workers were asked to stop.
    pub(crate) async fn stop_at(&mut self, id: u64, task: &v1::TrainTask, reached: u64, loss: f64) {
        self.train(task, reached, loss).await;
        let reached_step = reached;
        self.complete(id, |_| Outcome::Stopped(v1::Stopped { reached_step }))
            .await;
    }

    pub(crate) async fn checkpoint(&mut self, step: u64, stage: i32) {
        for (rank, member) in self.members.iter().enumerate() {
            let (path, bytes) = (format!("part{rank}"), format!("step {step}"));
            let checkpoints = self.store.checkpoints();
            let part = checkpoints
                .put_part(Step(step), "", &path, bytes.into())
                .await
                .expect("the folder can be written");
            let part = v1::CheckpointPart {
                path: part.path,
                bytes: part.bytes,
                blake3: part.blake3,
                object: part.object,
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
    pub(crate) async fn work_until(&mut self, wanted: impl Fn(&Kind) -> bool) -> (u64, Kind) {
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
                Kind::Save(task) => {
                    self.checkpoint(task.step, task.stage).await;
                    self.complete(id, |_| Outcome::Saved(v1::Saved {})).await;
                }
                Kind::Evaluate(_) => self.complete(id, evaluated).await,
                Kind::Finish(finish) => panic!("the run ended: {finish:?}"),
            }
        }
    }

    pub(crate) async fn verdict(&mut self) -> v1::Verdict {
        match self.work_until(|kind| matches!(kind, Kind::Finish(_))).await {
            (_, Kind::Finish(finish)) => finish.verdict.expect("a run ends somehow"),
            (_, other) => panic!("{other:?} is no verdict"),
        }
    }

    pub(crate) async fn train_task(&mut self) -> (u64, v1::TrainTask) {
        match self.work_until(|kind| matches!(kind, Kind::Train(_))).await {
            (id, Kind::Train(task)) => (id, task),
            (_, other) => panic!("{other:?} is no training"),
        }
    }

    pub(crate) async fn heartbeat(&mut self) -> v1::HeartbeatResponse {
        let request = v1::HeartbeatRequest {
            member: Some(self.members[0].clone()),
            ..v1::HeartbeatRequest::default()
        };
        let response = self.client.heartbeat(request).await.expect("members may");
        response.into_inner()
    }
}

/// Rank 0 hears every word, rank 1 half of them.
pub(crate) fn evaluated(rank: usize) -> Outcome {
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

pub(crate) fn word(event: &Event) -> String {
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
        Event::Summary(summary) => {
            let (total, productive) = (summary.total, summary.productive);
            let times = [total, productive].map(|time| zipper_proto::duration(time).expect("a time"));
            assert!(times[0] > Duration::ZERO && times[1] <= times[0], "{summary:?}");
            "summary".to_owned()
        }
        Event::Resumed(resumed) => {
            let steps = resumed.damaged.iter().map(|damage| damage.split(':').next());
            let steps: Vec<&str> = steps.flatten().collect();
            format!("resumed from {}, past {steps:?}", resumed.step)
        }
        other => format!("{other:?}"),
    }
}

/// Everything a watcher is told, to the end of its stream, but how many nodes and workers there are: that is looked at from time to
/// time, so when it is told is not certain.
pub(crate) async fn watch(coordinator: &Coordinator) -> JoinHandle<Vec<String>> {
    let told = watch_from(coordinator, v1::WatchRequest::default()).await;
    tokio::spawn(async move {
        let mut words = told.await.expect("the watcher does not panic");
        words.retain(|word| !word.starts_with("Membership"));
        words
    })
}

/// Everything, from where a watcher was cut off.
pub(crate) async fn watch_from(coordinator: &Coordinator, from: v1::WatchRequest) -> JoinHandle<Vec<String>> {
    let response = coordinator.run().watch(from).await;
    let mut events = response.expect("anybody may watch").into_inner();
    tokio::spawn(async move {
        let mut words = Vec::new();
        while let Some(told) = events.message().await.expect("the stream is not cut") {
            words.push(word(&told.event.expect("of a known kind")));
        }
        words
    })
}

pub(crate) async fn metric_lines(store: &RunStore) -> Vec<(u64, f64)> {
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
