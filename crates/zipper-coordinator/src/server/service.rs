//! The gRPC services: wire to domain, long polls, and nothing else.

use std::pin::Pin;
use std::time::Duration;

use futures::{Stream, StreamExt, stream};
use tokio::sync::{mpsc, oneshot, watch};
use tonic::{Request, Response, Status};
use zipper_checkpoint::PartRecord;
use zipper_proto::v1;
use zipper_proto::v1::run_service_server::RunService;
use zipper_proto::v1::watch_response::Event as Told;
use zipper_proto::v1::worker_service_server::WorkerService;
use zipper_proto::{MissingField, v1::complete_task_request::Outcome as WireOutcome};
use zipper_types::{Generation, Incarnation, Rank, Step, WorkerId};

use super::{History, Message, View};
use crate::schedule::{EvaluationSet, Planned};
use crate::state::{Collective, Decoded, Ended, Event, Joining, Outcome, Refusal, Verdict};

/// Longest that a long poll stays open; the worker asks again.
const POLL: Duration = Duration::from_secs(30);

/// Both services of one run.
#[derive(Debug, Clone)]
pub(super) struct Services {
    messages: mpsc::Sender<Message>,
    views: watch::Receiver<View>,
    history: History,
    run: String,
}

/// A worker whose claim to membership was checked.
struct Checked {
    worker: WorkerId,
    rank: Rank,
}

impl Services {
    pub(super) fn new(
        messages: mpsc::Sender<Message>,
        views: watch::Receiver<View>,
        history: History,
        run: String,
    ) -> Self {
        Self {
            messages,
            views,
            history,
            run,
        }
    }

    async fn send(&self, message: Message) -> Result<(), Status> {
        self.messages.send(message).await.map_err(|_| ending())
    }

    async fn apply(&self, event: Event) -> Result<(), Status> {
        let (done, taken) = oneshot::channel();
        self.send(Message::Event(event, done)).await?;
        taken.await.map_err(|_| ending())
    }

    /// The worker and its incarnation, of the right run.
    fn identify(
        &self,
        member: Option<v1::MemberContext>,
    ) -> Result<(WorkerId, Incarnation, Option<Generation>), Status> {
        let member = member.ok_or(MissingField("member"))?;
        if member.run != self.run {
            return Err(Status::failed_precondition(format!(
                "this coordinator serves run `{}`, not `{}`",
                self.run, member.run
            )));
        }
        let generation = member.generation.map(Generation);
        Ok((
            WorkerId(member.worker_id),
            Incarnation(member.incarnation),
            generation,
        ))
    }

    /// Refuses everyone but the members of the current generation (GEN-1).
    async fn check(&self, member: Option<v1::MemberContext>) -> Result<Checked, Status> {
        let (worker, incarnation, generation) = self.identify(member)?;
        let (answer, answered) = oneshot::channel();
        self.send(Message::Member(worker.clone(), incarnation, generation, answer))
            .await?;
        match answered.await.map_err(|_| ending())? {
            Ok(rank) => Ok(Checked { worker, rank }),
            Err(refusal @ Refusal::Unknown(_)) => Err(Status::not_found(refusal.to_string())),
            Err(refusal @ Refusal::Stale { .. }) => Err(Status::failed_precondition(refusal.to_string())),
        }
    }
}

fn ending() -> Status {
    Status::unavailable("the coordinator is ending")
}

#[tonic::async_trait]
impl WorkerService for Services {
    async fn join(&self, request: Request<v1::JoinRequest>) -> Result<Response<v1::JoinResponse>, Status> {
        let request = request.into_inner();
        let (worker, incarnation, _) = self.identify(request.member)?;
        let joining = Joining {
            worker: worker.clone(),
            incarnation,
            node_rank: request.node_rank,
            local_rank: request.local_rank,
            store_address: request.store_address,
            hostname: request.hostname,
        };
        self.apply(Event::Joined(joining)).await?;
        let mut views = self.views.clone();
        let view = views
            .wait_for(|view| view.formed || view.verdict.is_some())
            .await
            .map_err(|_| ending())?
            .clone();
        if let Some(verdict) = view.verdict.filter(|_| !view.formed) {
            self.send(Message::TookVerdict(worker)).await?;
            let reason = wire_verdict(&verdict).reason;
            return Err(match verdict {
                Verdict::Done | Verdict::Failed(_) => Status::deadline_exceeded(reason),
                Verdict::Config(_) | Verdict::Stopped(_) => Status::aborted(reason),
            });
        }
        let (answer, answered) = oneshot::channel();
        self.send(Message::Assignment(worker.clone(), incarnation, answer))
            .await?;
        match answered.await.map_err(|_| ending())? {
            Some(response) => Ok(Response::new(response)),
            None => Err(Status::failed_precondition(format!(
                "the generation was formed without this process of worker `{worker}`"
            ))),
        }
    }

    async fn next_task(
        &self,
        request: Request<v1::NextTaskRequest>,
    ) -> Result<Response<v1::NextTaskResponse>, Status> {
        let request = request.into_inner();
        let checked = self.check(request.member).await?;
        let completed = request.completed_task;
        let is_next = |task: &v1::Task| completed.is_none_or(|completed| task.id > completed);
        let mut views = self.views.clone();
        let waiting =
            views.wait_for(|view| view.verdict.is_some() || view.task.as_ref().is_some_and(is_next));
        let view = match tokio::time::timeout(POLL, waiting).await {
            Err(_) => return Ok(Response::new(v1::NextTaskResponse { task: None })),
            Ok(view) => view.map_err(|_| ending())?.clone(),
        };
        let task = match &view.verdict {
            None => view.task,
            Some(verdict) => {
                self.send(Message::TookVerdict(checked.worker)).await?;
                let finish = v1::FinishTask {
                    verdict: Some(wire_verdict(verdict)),
                };
                Some(v1::Task {
                    id: u64::MAX,
                    kind: Some(v1::task::Kind::Finish(finish)),
                })
            }
        };
        Ok(Response::new(v1::NextTaskResponse { task }))
    }

    async fn complete_task(
        &self,
        request: Request<v1::CompleteTaskRequest>,
    ) -> Result<Response<v1::CompleteTaskResponse>, Status> {
        let request = request.into_inner();
        let Checked { rank, .. } = self.check(request.member).await?;
        let outcome = domain_outcome(request.outcome.ok_or(MissingField("outcome"))?);
        self.apply(Event::Completed {
            rank,
            task: request.task_id,
            outcome,
        })
        .await?;
        Ok(Response::new(v1::CompleteTaskResponse {}))
    }

    async fn heartbeat(
        &self,
        request: Request<v1::HeartbeatRequest>,
    ) -> Result<Response<v1::HeartbeatResponse>, Status> {
        let request = request.into_inner();
        let Checked { worker, .. } = self.check(request.member).await?;
        self.apply(Event::Heartbeat {
            worker,
            step: Step(request.last_completed_step),
            collective: request.latest_collective.map(collective),
        })
        .await?;
        let view = self.views.borrow();
        Ok(Response::new(v1::HeartbeatResponse {
            stop_requested: view.stop_requested,
            verdict: view.verdict.as_ref().map(wire_verdict),
        }))
    }

    async fn report_step(
        &self,
        request: Request<v1::ReportStepRequest>,
    ) -> Result<Response<v1::ReportStepResponse>, Status> {
        let request = request.into_inner();
        self.check(request.member).await?;
        let metrics = request.metrics.ok_or(MissingField("metrics"))?;
        self.send(Message::Step(Box::new(metrics))).await?;
        Ok(Response::new(v1::ReportStepResponse {}))
    }

    async fn report_checkpoint_parts(
        &self,
        request: Request<v1::ReportCheckpointPartsRequest>,
    ) -> Result<Response<v1::ReportCheckpointPartsResponse>, Status> {
        let request = request.into_inner();
        let Checked { rank, .. } = self.check(request.member).await?;
        let stage = zipper_proto::stage(request.stage)?;
        let parts = request
            .parts
            .into_iter()
            .map(|part| PartRecord {
                path: part.path,
                bytes: part.bytes,
                blake3: part.blake3,
            })
            .collect();
        self.apply(Event::PartsStored {
            rank,
            step: Step(request.step),
            stage,
            parts,
        })
        .await?;
        Ok(Response::new(v1::ReportCheckpointPartsResponse {}))
    }

    async fn report_worker_exit(
        &self,
        request: Request<v1::ReportWorkerExitRequest>,
    ) -> Result<Response<v1::ReportWorkerExitResponse>, Status> {
        let request = request.into_inner();
        let (worker, _, _) = self.identify(request.member)?;
        let ended = Ended {
            worker,
            exit_code: request.exit_code,
            signal: request.signal,
            last_lines: request.last_lines,
        };
        self.apply(Event::Exited(ended)).await?;
        Ok(Response::new(v1::ReportWorkerExitResponse {}))
    }
}

#[tonic::async_trait]
impl RunService for Services {
    async fn stop(&self, request: Request<v1::StopRequest>) -> Result<Response<v1::StopResponse>, Status> {
        self.apply(Event::StopRequested {
            reason: request.into_inner().reason,
        })
        .await?;
        Ok(Response::new(v1::StopResponse {}))
    }

    type WatchStream = Pin<Box<dyn Stream<Item = Result<v1::WatchResponse, Status>> + Send>>;

    async fn watch(&self, _: Request<v1::WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        // Of all that was told until now, the first `told` events have been sent; the verdict is the last one.
        let more = |(mut history, told, ended): (watch::Receiver<Vec<Told>>, usize, bool)| async move {
            if ended {
                return None;
            }
            let new = history.wait_for(|events| events.len() > told).await.ok()?[told..].to_vec();
            let ended = matches!(new.last(), Some(Told::Verdict(_)));
            let told = told + new.len();
            let responses = new
                .into_iter()
                .map(|event| Ok(v1::WatchResponse { event: Some(event) }));
            Some((stream::iter(responses), (history, told, ended)))
        };
        let responses = stream::unfold((self.history.0.subscribe(), 0, false), more).flatten();
        Ok(Response::new(Box::pin(responses)))
    }
}

/// A task as workers see it.
pub(super) fn wire_task(id: u64, planned: &Planned) -> v1::Task {
    let kind = match planned {
        Planned::Train {
            stage,
            from,
            until,
            ends_stage,
        } => v1::task::Kind::Train(v1::TrainTask {
            stage: v1::Stage::from(*stage).into(),
            from_step: from.0,
            until_step: until.0,
            checkpoint_at_end: *ends_stage,
        }),
        Planned::Evaluate { set, silenced, step } => v1::task::Kind::Evaluate(v1::EvaluateTask {
            step: step.0,
            set: Some(match set {
                EvaluationSet::Validation => v1::evaluate_task::Set::Validation(v1::ValidationSet {}),
                EvaluationSet::Test(name) => v1::evaluate_task::Set::Test(name.clone()),
            }),
            silenced: *silenced,
        }),
    };
    v1::Task { id, kind: Some(kind) }
}

/// A verdict as everybody else sees it.
pub(super) fn wire_verdict(verdict: &Verdict) -> v1::Verdict {
    use v1::verdict::Outcome;
    let (outcome, reason) = match verdict {
        Verdict::Done => (Outcome::Done, String::new()),
        Verdict::Failed(reason) => (Outcome::Failed, reason.clone()),
        Verdict::Config(reason) => (Outcome::Config, reason.clone()),
        Verdict::Stopped(reason) => (Outcome::Stopped, reason.clone()),
    };
    v1::Verdict {
        outcome: outcome.into(),
        reason,
    }
}

fn collective(wire: v1::CollectiveState) -> Collective {
    Collective {
        group: wire.group,
        sequence: wire.sequence,
        operation: wire.operation,
        what: wire.what,
        finished: wire.finished,
        age: zipper_proto::duration(wire.age).unwrap_or_default(),
        missing: wire.missing.into_iter().map(Rank).collect(),
        arrived: wire.arrived.into_iter().map(Rank).collect(),
    }
}

fn domain_outcome(outcome: WireOutcome) -> Outcome {
    match outcome {
        WireOutcome::Trained(trained) => Outcome::Trained {
            reached: Step(trained.reached_step),
        },
        WireOutcome::Stopped(stopped) => Outcome::Stopped {
            reached: Step(stopped.reached_step),
        },
        WireOutcome::Failed(failed) => Outcome::Failed {
            config: failed.config,
            message: failed.message,
            collective: failed.collective,
            state: failed.failed_collective.map(collective),
        },
        WireOutcome::Evaluated(evaluated) => {
            let utterances = evaluated.utterances.into_iter().map(|utterance| Decoded {
                id: utterance.id,
                lang: utterance.lang,
                reference: utterance.reference,
                hypothesis: utterance.hypothesis,
                nll: utterance.nll.zip(utterance.tokens),
            });
            Outcome::Evaluated(utterances.collect())
        }
    }
}
