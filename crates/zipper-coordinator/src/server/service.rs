//! The gRPC services: requests to events, long polls, and nothing else.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures::{Stream, StreamExt, stream};
use tokio::sync::{Mutex, mpsc, oneshot, watch};
use tonic::{Request, Response, Status};
use zipper_checkpoint::lease::Lease;
use zipper_checkpoint::{Checkpoints, PartRecord};
use zipper_proto::MissingField;
use zipper_proto::v1;
use zipper_proto::v1::agent_service_server::AgentService;
use zipper_proto::v1::run_service_server::RunService;
use zipper_proto::v1::watch_response::Event as Watched;
use zipper_proto::v1::worker_service_server::WorkerService;
use zipper_types::{Generation, Incarnation, Rank, Step, WorkerId};

use super::bounds::Bounds;
use super::history::{History, Recent};
use super::owner::{Message, View};
use super::watcher::Watcher;
use super::wire;
use crate::placement;
use crate::state::{
    Advice, Agent, Ended, Event, Failure, HeldState, Joining, Sign, Standing, State, Trouble, Verdict,
};

/// Longest that a long poll stays open; the worker asks again.
const POLL: Duration = Duration::from_secs(30);

/// All services of one run.
#[derive(Clone)]
pub struct Services {
    messages: mpsc::Sender<Message>,
    views: watch::Receiver<View>,
    history: History,
    run: String,
    checkpoints: Checkpoints,
    lease: Arc<Lease>,
    bounds: Arc<Bounds>,
    /// Where the newest generation writes the objects of its checkpoints: each is claimed once.
    prefixes: Arc<Mutex<BTreeMap<(Generation, Step), String>>>,
}

/// Who sends a request.
#[derive(Debug, Clone)]
struct Claim {
    worker: WorkerId,
    incarnation: Incarnation,
    generation: Option<Generation>,
}

impl Services {
    pub(super) fn new(
        messages: mpsc::Sender<Message>,
        views: watch::Receiver<View>,
        history: History,
        run: String,
        bounds: Bounds,
        checkpoints: Checkpoints,
        lease: Arc<Lease>,
    ) -> Self {
        Self {
            messages,
            views,
            history,
            run,
            checkpoints,
            lease,
            bounds: Arc::new(bounds),
            prefixes: Arc::default(),
        }
    }

    /// For those who show the run to people.
    pub(super) fn watcher(&self) -> Watcher {
        Watcher::new(self.messages.clone(), self.history.clone())
    }

    async fn send(&self, message: Message) -> Result<(), Status> {
        self.messages.send(message).await.map_err(|_| ending())
    }

    async fn apply(&self, event: Event) -> Result<(), Status> {
        let (done, taken) = oneshot::channel();
        self.send(Message::Event(Box::new(event), done)).await?;
        taken.await.map_err(|_| ending())
    }

    /// Asks the state something.
    async fn ask<T: Send + 'static>(
        &self,
        question: impl FnOnce(&State) -> T + Send + 'static,
    ) -> Result<T, Status> {
        let (answer, answered) = oneshot::channel();
        let question = move |state: &State| {
            // Who asked may be gone.
            let _ = answer.send(question(state));
        };
        self.send(Message::Ask(Box::new(question))).await?;
        answered.await.map_err(|_| ending())
    }

    fn check_run(&self, run: &str) -> Result<(), Status> {
        if run == self.run {
            return Ok(());
        }
        Err(Status::failed_precondition(format!(
            "this coordinator serves run `{}`, not `{run}`",
            self.run
        )))
    }

    fn claim(&self, member: Option<v1::MemberContext>) -> Result<Claim, Status> {
        let member = member.ok_or(MissingField("member"))?;
        self.check_run(&member.run)?;
        Ok(Claim {
            worker: WorkerId(member.worker_id),
            incarnation: Incarnation(member.incarnation),
            generation: member.generation.map(Generation),
        })
    }

    async fn standing(&self, claim: &Claim) -> Result<Standing, Status> {
        let Claim {
            worker,
            incarnation,
            generation,
        } = claim.clone();
        self.ask(move |state| state.standing(&worker, incarnation, generation))
            .await
    }

    /// Refuses everyone but the members of the newest generation (GEN-1).
    async fn check(&self, member: Option<v1::MemberContext>) -> Result<(Claim, Rank), Status> {
        let claim = self.claim(member)?;
        match self.standing(&claim).await? {
            Standing::Member(rank) => Ok((claim, rank)),
            Standing::Outside => Err(over(&claim)),
            Standing::GivenUp => Err(given_up(&claim)),
        }
    }

    /// Waits until a worker that asked to join has a place, or will have none. `views` are those since it asked.
    async fn place_of(&self, claim: &Claim, mut views: watch::Receiver<View>) -> Result<Answer, Status> {
        loop {
            let Claim {
                worker, incarnation, ..
            } = claim.clone();
            let answer = self
                .ask(move |state| match state.verdict() {
                    Some(verdict) => Answer::Over(verdict.clone()),
                    None if state.standing(&worker, incarnation, None) == Standing::GivenUp => {
                        Answer::GivenUp
                    }
                    None => state
                        .assignment(&worker, incarnation)
                        .map_or(Answer::Wait, |assignment| {
                            let placement = placement::wire(state.placement(), state.basis().model());
                            Answer::Assigned(Box::new(wire::assignment(assignment, placement)))
                        }),
                })
                .await?;
            match answer {
                Answer::Wait => views.changed().await.map_err(|_| ending())?,
                answer => return Ok(answer),
            }
        }
    }
}

fn ending() -> Status {
    Status::unavailable("the coordinator is ending")
}

fn over(claim: &Claim) -> Status {
    let generation = claim.generation.map_or_else(
        || "no generation".to_owned(),
        |generation| format!("generation {generation}"),
    );
    Status::aborted(format!(
        "worker `{}` speaks of {generation}, which is over or was formed without it: it has to join again",
        claim.worker
    ))
}

fn given_up(claim: &Claim) -> Status {
    Status::failed_precondition(format!(
        "this process of worker `{}` was given up: another one may take its place",
        claim.worker
    ))
}

#[tonic::async_trait]
impl WorkerService for Services {
    async fn join(&self, request: Request<v1::JoinRequest>) -> Result<Response<v1::JoinResponse>, Status> {
        let request = self.bounds.checked(request)?;
        let claim = self.claim(request.member)?;
        let held: Result<Vec<HeldState>, MissingField> = request.held.iter().map(wire::held).collect();
        let joining = Joining {
            worker: claim.worker.clone(),
            incarnation: claim.incarnation,
            generation: claim.generation,
            node_rank: request.node_rank,
            local_rank: request.local_rank,
            store_address: request.store_address,
            hostname: request.hostname,
            held: held?,
        };
        let mut views = self.views.clone();
        views.mark_unchanged();
        self.apply(Event::Joined(joining)).await?;
        let answer = tokio::time::timeout(POLL, self.place_of(&claim, views))
            .await
            .unwrap_or(Ok(Answer::Wait))?;
        let mut response = v1::JoinResponse {
            assignment: None,
            verdict: None,
            epoch: self.lease.epoch(),
        };
        match answer {
            Answer::Wait => {}
            Answer::Assigned(assignment) => response.assignment = Some(*assignment),
            Answer::GivenUp => return Err(given_up(&claim)),
            Answer::Over(verdict) => {
                self.send(Message::TookVerdict(claim.worker)).await?;
                response.verdict = Some(wire::verdict(&verdict));
            }
        }
        Ok(Response::new(response))
    }

    async fn next_task(
        &self,
        request: Request<v1::NextTaskRequest>,
    ) -> Result<Response<v1::NextTaskResponse>, Status> {
        let request = self.bounds.checked(request)?;
        let mut views = self.views.clone();
        let completed = request.completed_task;
        let (claim, rank) = match self.check(request.member).await {
            // Whoever asks learns how the run ended.
            Err(status) if views.borrow().verdict.is_none() => return Err(status),
            Err(_) => (None, Rank(0)),
            Ok((claim, rank)) => (Some(claim), rank),
        };
        let mut response = v1::NextTaskResponse {
            task: None,
            epoch: self.lease.epoch(),
            resend_outcome: false,
        };
        if let (Some(task), Some(claim)) = (completed, &claim)
            && self.ask(move |state| state.is_ahead(task)).await?
        {
            // It has done more than is known here: it joins again, with what it remembers.
            return Err(over(claim));
        }
        if let Some(task) = completed
            && !self.ask(move |state| state.knows_outcome(rank, task)).await?
        {
            response.resend_outcome = true;
            return Ok(Response::new(response));
        }
        let generation = claim.as_ref().and_then(|claim| claim.generation);
        let is_next = |task: &v1::Task| completed.is_none_or(|completed| task.id > completed);
        let waiting = views.wait_for(|view| {
            view.verdict.is_some() || view.generation != generation || view.task.as_ref().is_some_and(is_next)
        });
        let view = match tokio::time::timeout(POLL, waiting).await {
            Err(_) => return Ok(Response::new(response)),
            Ok(view) => view.map_err(|_| ending())?.clone(),
        };
        if let Some(verdict) = &view.verdict {
            if let Some(claim) = claim {
                self.send(Message::TookVerdict(claim.worker)).await?;
            }
            let finish = v1::FinishTask {
                verdict: Some(wire::verdict(verdict)),
            };
            response.task = Some(v1::Task {
                id: u64::MAX,
                kind: Some(v1::task::Kind::Finish(finish)),
            });
        } else if view.generation != generation {
            return Err(claim.as_ref().map_or_else(ending, over));
        } else {
            response.task = view.task.filter(is_next);
        }
        Ok(Response::new(response))
    }

    async fn complete_task(
        &self,
        request: Request<v1::CompleteTaskRequest>,
    ) -> Result<Response<v1::CompleteTaskResponse>, Status> {
        let request = self.bounds.checked(request)?;
        let (_, rank) = self.check(request.member).await?;
        let outcome = wire::outcome(request.outcome.ok_or(MissingField("outcome"))?);
        self.apply(Event::Completed {
            rank,
            task: request.task_id,
            outcome,
        })
        .await?;
        Ok(Response::new(v1::CompleteTaskResponse {}))
    }

    async fn report_failure(
        &self,
        request: Request<v1::ReportFailureRequest>,
    ) -> Result<Response<v1::ReportFailureResponse>, Status> {
        let request = self.bounds.checked(request)?;
        let claim = self.claim(request.member)?;
        self.apply(Event::Failed(Failure {
            worker: claim.worker,
            incarnation: claim.incarnation,
            generation: claim.generation,
            config: request.config,
            fatal: request.fatal,
            message: request.message,
            collective: request.failed_collective.map(wire::collective),
        }))
        .await?;
        Ok(Response::new(v1::ReportFailureResponse {}))
    }

    async fn heartbeat(
        &self,
        request: Request<v1::HeartbeatRequest>,
    ) -> Result<Response<v1::HeartbeatResponse>, Status> {
        let request = self.bounds.checked(request)?;
        let claim = self.claim(request.member)?;
        self.apply(Event::Heartbeat(Sign {
            worker: claim.worker.clone(),
            incarnation: claim.incarnation,
            generation: claim.generation,
            node_rank: request.node_rank,
            local_rank: request.local_rank,
            hostname: request.hostname,
            step: Step(request.last_completed_step),
            idle: zipper_proto::duration(request.idle).unwrap_or_default(),
            collective: request.latest_collective.map(wire::collective),
            compute_seconds: request.compute_seconds,
            work: request.work,
            store_reads: request.store_reads,
            trouble: request.trouble.map(|trouble| Trouble {
                lasting: zipper_proto::duration(trouble.lasting).unwrap_or_default(),
                message: trouble.message,
            }),
            doing: request.doing,
        }))
        .await?;
        let standing = self.standing(&claim).await?;
        let view = self.views.borrow().clone();
        if standing == Standing::GivenUp && view.verdict.is_none() {
            return Err(given_up(&claim));
        }
        Ok(Response::new(v1::HeartbeatResponse {
            stop_requested: view.stop_requested,
            regroup_requested: view.regroup_requested,
            generation_over: claim.generation.is_some() && !matches!(standing, Standing::Member(_)),
            verdict: view.verdict.as_ref().map(wire::verdict),
            epoch: self.lease.epoch(),
            committed_step: view.committed.map(|step| step.0),
        }))
    }

    async fn report_step(
        &self,
        request: Request<v1::ReportStepRequest>,
    ) -> Result<Response<v1::ReportStepResponse>, Status> {
        let request = self.bounds.checked(request)?;
        self.check(request.member).await?;
        let metrics = request.metrics.ok_or(MissingField("metrics"))?;
        self.send(Message::Step(Box::new(metrics))).await?;
        Ok(Response::new(v1::ReportStepResponse {}))
    }

    async fn begin_checkpoint(
        &self,
        request: Request<v1::BeginCheckpointRequest>,
    ) -> Result<Response<v1::BeginCheckpointResponse>, Status> {
        let request = self.bounds.checked(request)?;
        let (claim, _) = self.check(request.member).await?;
        let generation = claim.generation.unwrap_or_default();
        let step = Step(request.step);
        // Others that ask for the same step wait here for the one claim.
        let mut prefixes = self.prefixes.lock().await;
        if let Some(prefix) = prefixes.get(&(generation, step)) {
            return Ok(Response::new(v1::BeginCheckpointResponse {
                prefix: prefix.clone(),
                published: false,
            }));
        }
        let unavailable = |error: anyhow::Error| Status::unavailable(format!("{error:#}"));
        self.lease
            .check()
            .await
            .map_err(|lost| unavailable(lost.into()))?;
        let published = self.checkpoints.is_published(step).await;
        if published.map_err(|error| unavailable(error.into()))? {
            return Ok(Response::new(v1::BeginCheckpointResponse {
                prefix: String::new(),
                published: true,
            }));
        }
        let prefix = self.checkpoints.begin(step, generation).await;
        let prefix = prefix.map_err(|error| unavailable(error.into()))?;
        // Those of earlier generations are not asked for any more.
        prefixes.retain(|(of, _), _| *of == generation);
        prefixes.insert((generation, step), prefix.clone());
        Ok(Response::new(v1::BeginCheckpointResponse {
            prefix,
            published: false,
        }))
    }

    async fn report_checkpoint_parts(
        &self,
        request: Request<v1::ReportCheckpointPartsRequest>,
    ) -> Result<Response<v1::ReportCheckpointPartsResponse>, Status> {
        let request = self.bounds.checked(request)?;
        let (claim, rank) = self.check(request.member).await?;
        let stage = zipper_proto::stage(request.stage)?;
        let parts = request
            .parts
            .into_iter()
            .map(|part| PartRecord {
                path: part.path,
                object: part.object,
                bytes: part.bytes,
                blake3: part.blake3,
            })
            .collect();
        self.apply(Event::PartsStored {
            rank,
            generation: claim.generation.unwrap_or_default(),
            step: Step(request.step),
            stage,
            parts,
        })
        .await?;
        Ok(Response::new(v1::ReportCheckpointPartsResponse {}))
    }
}

/// What a worker is told that asks to join.
enum Answer {
    Wait,
    Assigned(Box<v1::Assignment>),
    GivenUp,
    Over(Verdict),
}

impl Services {
    fn agent(&self, agent: Option<v1::AgentContext>) -> Result<(u32, Incarnation), Status> {
        let agent = agent.ok_or(MissingField("agent"))?;
        self.check_run(&agent.run)?;
        Ok((agent.node_rank, Incarnation(agent.incarnation)))
    }

    /// Advice as the wire has it; after the end of the run, nothing is started any more.
    async fn advise(
        &self,
        advice: impl FnOnce(&State) -> Option<Advice> + Send + 'static,
    ) -> Result<Option<v1::Advice>, Status> {
        use v1::advice::What;
        let advice = self
            .ask(move |state| match state.verdict() {
                Some(_) => Advice::Leave {
                    reason: "the run is over".to_owned(),
                },
                None => advice(state).unwrap_or(Advice::Leave {
                    reason: "another agent serves this node".to_owned(),
                }),
            })
            .await?;
        let what = match advice {
            Advice::Start { after } => What::Start(v1::StartAdvice {
                after: Some(zipper_proto::wire_duration(after)),
            }),
            Advice::Leave { reason } => What::Leave(v1::LeaveAdvice { reason }),
        };
        Ok(Some(v1::Advice { what: Some(what) }))
    }
}

#[tonic::async_trait]
impl AgentService for Services {
    async fn register_node(
        &self,
        request: Request<v1::RegisterNodeRequest>,
    ) -> Result<Response<v1::RegisterNodeResponse>, Status> {
        let request = self.bounds.checked(request)?;
        let (node, incarnation) = self.agent(request.agent)?;
        self.apply(Event::NodeRegistered(Agent {
            node,
            incarnation,
            hostname: request.hostname,
        }))
        .await?;
        let advice = self
            .advise(move |state| state.advice_for_node(node, incarnation).cloned())
            .await?;
        Ok(Response::new(v1::RegisterNodeResponse { advice }))
    }

    async fn agent_heartbeat(
        &self,
        request: Request<v1::AgentHeartbeatRequest>,
    ) -> Result<Response<v1::AgentHeartbeatResponse>, Status> {
        let (node, incarnation) = self.agent(self.bounds.checked(request)?.agent)?;
        self.apply(Event::AgentAlive { node, incarnation }).await?;
        let kill = self.ask(move |state| state.to_kill(node)).await?;
        let kill = kill.into_iter().map(|(worker, incarnation)| v1::WorkerProcess {
            worker_id: worker.0,
            incarnation: incarnation.0,
        });
        let verdict = self.views.borrow().verdict.as_ref().map(wire::verdict);
        if verdict.is_some() {
            self.send(Message::AgentTookVerdict(node)).await?;
        }
        Ok(Response::new(v1::AgentHeartbeatResponse {
            kill: kill.collect(),
            verdict,
        }))
    }

    async fn report_worker_exit(
        &self,
        request: Request<v1::ReportWorkerExitRequest>,
    ) -> Result<Response<v1::ReportWorkerExitResponse>, Status> {
        let request = self.bounds.checked(request)?;
        let (node, incarnation) = self.agent(request.agent)?;
        // This may be the first that a coordinator hears of a node.
        self.apply(Event::AgentAlive { node, incarnation }).await?;
        let process = request.worker.ok_or(MissingField("worker"))?;
        let (worker, ended) = (WorkerId(process.worker_id), Incarnation(process.incarnation));
        self.apply(Event::Exited(Ended {
            node,
            worker: worker.clone(),
            incarnation: ended,
            exit_code: request.exit_code,
            signal: request.signal,
            last_lines: request.last_lines,
        }))
        .await?;
        let advice = self
            .advise(move |state| state.advice_for_worker(node, &worker, ended).cloned())
            .await?;
        Ok(Response::new(v1::ReportWorkerExitResponse { advice }))
    }
}

#[tonic::async_trait]
impl RunService for Services {
    async fn stop(&self, request: Request<v1::StopRequest>) -> Result<Response<v1::StopResponse>, Status> {
        self.apply(Event::StopRequested {
            reason: self.bounds.checked(request)?.reason,
        })
        .await?;
        Ok(Response::new(v1::StopResponse {}))
    }

    type WatchStream = Pin<Box<dyn Stream<Item = Result<v1::WatchResponse, Status>> + Send>>;

    async fn watch(&self, request: Request<v1::WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let v1::WatchRequest { epoch, seen } = request.into_inner();
        let seen = if epoch == self.lease.epoch() {
            seen as usize
        } else {
            0
        };
        // Of all that was told until now, the first `seen` events have been sent; the verdict is the last one.
        let more = |(mut history, seen, ended): (watch::Receiver<Recent>, usize, bool)| async move {
            if ended {
                return None;
            }
            let (new, seen) = {
                let told = history.wait_for(|told| told.count() > seen).await.ok()?;
                (told.after(seen), told.count())
            };
            let ended = matches!(new.last(), Some(Watched::Verdict(_)));
            let responses = new
                .into_iter()
                .map(|event| Ok(v1::WatchResponse { event: Some(event) }));
            Some((stream::iter(responses), (history, seen, ended)))
        };
        let responses = stream::unfold((self.history.subscribe(), seen, false), more).flatten();
        Ok(Response::new(Box::pin(responses)))
    }
}
