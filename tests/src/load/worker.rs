//! What a worker says, from its first sign of life to the verdict.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::watch;
use tonic::transport::Channel;
use tonic::{Code, Status};
use zipper_proto::v1;
use zipper_proto::v1::complete_task_request::Outcome;
use zipper_proto::v1::task::Kind;
use zipper_proto::v1::worker_service_client::WorkerServiceClient;
use zipper_types::WorkerId;

use super::fleet::{Fleet, RUN, hostname, refused};

/// A worker that trains nothing.
pub(super) struct Worker {
    sender: Sender,
    /// What heartbeats were answered with.
    heard: watch::Sender<v1::HeartbeatResponse>,
}

/// Who it is, and its line to the coordinator.
#[derive(Clone)]
struct Sender {
    fleet: Arc<Fleet>,
    node: u32,
    local: u32,
    incarnation: u64,
    client: WorkerServiceClient<Channel>,
    /// 0 before the first.
    generation: Arc<AtomicU64>,
}

/// Why training ended.
enum Left {
    /// The generation is over.
    Over,
    /// The run stops.
    Stopped,
}

impl Worker {
    pub(super) fn new(fleet: &Arc<Fleet>, node: u32, local: u32, incarnation: u64) -> Self {
        let index = node * fleet.load.workers_per_node + local;
        let sender = Sender {
            fleet: Arc::clone(fleet),
            node,
            local,
            incarnation,
            client: WorkerServiceClient::new(fleet.channel(index)),
            generation: Arc::default(),
        };
        Self {
            sender,
            heard: watch::channel(v1::HeartbeatResponse::default()).0,
        }
    }

    /// Lives until the run is over.
    pub(super) async fn work(self) -> Result<(), String> {
        let fleet = Arc::clone(&self.sender.fleet);
        let heartbeats = self.sender.clone().heartbeats(&self.heard);
        let worked = tokio::select! {
            failed = heartbeats => failed,
            done = self.train() => done,
        };
        fleet.note(worked)
    }

    async fn train(&self) -> Result<(), String> {
        let mut sender = self.sender.clone();
        sender.fleet.may_join().await;
        loop {
            let Some(rank) = sender.join().await? else {
                return Ok(());
            };
            self.heard.send_replace(v1::HeartbeatResponse::default());
            let mut completed = None;
            loop {
                let task = match sender.next_task(completed).await {
                    Ok(task) => task,
                    // The generation is over.
                    Err(status) if status.code() == Code::Aborted => break,
                    Err(status) => return Err(refused("a question for the next task", &status)),
                };
                match task.kind {
                    Some(Kind::Train(_)) => match self.left().await {
                        Left::Over => break,
                        Left::Stopped => sender.stop(rank, task.id).await?,
                    },
                    Some(Kind::Finish(_)) => return Ok(()),
                    kind => return Err(format!("a task that nobody asked for: {kind:?}")),
                }
                completed = Some(task.id);
            }
        }
    }

    /// Waits for the end of training.
    async fn left(&self) -> Left {
        let mut heard = self.heard.subscribe();
        let heard = heard.wait_for(|heard| heard.generation_over || heard.stop_requested);
        let heard = heard.await.expect("its sender is here");
        if heard.stop_requested {
            Left::Stopped
        } else {
            Left::Over
        }
    }
}

impl Sender {
    fn member(&self) -> v1::MemberContext {
        let generation = self.generation.load(Ordering::Relaxed);
        v1::MemberContext {
            run: RUN.to_owned(),
            worker_id: WorkerId::new(self.node, self.local).to_string(),
            incarnation: self.incarnation,
            generation: (generation > 0).then_some(generation),
        }
    }

    /// Gives signs of life for ever.
    async fn heartbeats(mut self, heard: &watch::Sender<v1::HeartbeatResponse>) -> Result<(), String> {
        let load = self.fleet.load;
        let index = self.node * load.workers_per_node + self.local;
        let mut ticks = self.fleet.heartbeats(index, load.workers);
        let mut first = true;
        loop {
            let due = ticks.tick().await;
            let member = self.member();
            let training = member.generation.is_some();
            let generation = member.generation;
            let request = v1::HeartbeatRequest {
                member: Some(member),
                last_completed_step: if training { self.fleet.step() } else { 0 },
                latest_collective: training.then(|| v1::CollectiveState {
                    group: "world".to_owned(),
                    sequence: self.fleet.step(),
                    operation: "allreduce".to_owned(),
                    what: "gradients 3".to_owned(),
                    finished: true,
                    ..v1::CollectiveState::default()
                }),
                compute_seconds: self.fleet.step() as f64,
                work: self.fleet.step() as f64,
                doing: if training { "training" } else { "loading the model" }.to_owned(),
                node_rank: self.node,
                local_rank: self.local,
                hostname: hostname(self.node),
                ..v1::HeartbeatRequest::default()
            };
            let answer = match self.client.heartbeat(request).await {
                Ok(answer) => answer,
                // Whoever knows how the run ended may be ahead of this one.
                Err(status) if status.code() == Code::Unavailable && self.fleet.stops() => continue,
                Err(status) => return Err(refused("a heartbeat", &status)),
            };
            self.fleet.answered(due);
            // What was said of a generation that it has left meanwhile is not news.
            if self.member().generation == generation {
                heard.send_replace(answer.into_inner());
            }
            if std::mem::take(&mut first) && self.incarnation == 1 {
                self.fleet.is_alive();
            }
        }
    }

    /// Joins the next generation, and returns its rank there; nothing if the run is over.
    async fn join(&mut self) -> Result<Option<u32>, String> {
        let held = v1::HeldState {
            step: self.fleet.step(),
            stage: v1::Stage::Align.into(),
            shared: true,
            banks: Vec::new(),
        };
        let remembers = self.generation.load(Ordering::Relaxed) > 0;
        loop {
            let request = v1::JoinRequest {
                member: Some(self.member()),
                node_rank: self.node,
                local_rank: self.local,
                store_address: format!("{}:{}", hostname(self.node), 29500 + self.local),
                hostname: hostname(self.node),
                held: if remembers { vec![held.clone()] } else { Vec::new() },
            };
            let answer = self.client.join(request).await;
            let answer = answer
                .map_err(|status| refused("a request to join", &status))?
                .into_inner();
            if answer.verdict.is_some() {
                return Ok(None);
            }
            if let Some(assignment) = answer.assignment {
                self.generation.store(assignment.generation, Ordering::Relaxed);
                self.fleet.joined(assignment.generation, assignment.rank);
                return Ok(Some(assignment.rank));
            }
        }
    }

    async fn next_task(&mut self, completed: Option<u64>) -> Result<v1::Task, Status> {
        loop {
            let request = v1::NextTaskRequest {
                member: Some(self.member()),
                completed_task: completed,
            };
            if let Some(task) = self.client.next_task(request).await?.into_inner().task {
                return Ok(task);
            }
        }
    }

    /// Stops after the last step, with a checkpoint of which rank 0 alone has a part.
    async fn stop(&mut self, rank: u32, task: u64) -> Result<(), String> {
        let reached = self.fleet.last_step();
        let request = v1::CompleteTaskRequest {
            member: Some(self.member()),
            task_id: task,
            outcome: Some(Outcome::Stopped(v1::Stopped {
                reached_step: reached,
            })),
        };
        let answer = self.client.complete_task(request).await;
        answer.map_err(|status| refused("the end of a task", &status))?;
        let request = v1::BeginCheckpointRequest {
            member: Some(self.member()),
            step: reached,
        };
        let begun = self.client.begin_checkpoint(request).await;
        let begun = begun
            .map_err(|status| refused("a checkpoint", &status))?
            .into_inner();
        let mut parts = Vec::new();
        if rank == 0 {
            parts.push(self.fleet.write_part(reached, &begun.prefix).await?);
        }
        let request = v1::ReportCheckpointPartsRequest {
            member: Some(self.member()),
            step: reached,
            stage: v1::Stage::Align.into(),
            parts,
        };
        let answer = self.client.report_checkpoint_parts(request).await;
        answer
            .map(drop)
            .map_err(|status| refused("parts of a checkpoint", &status))
    }
}
