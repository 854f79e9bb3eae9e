//! The training thread of a worker: it joins, and does what the coordinator says.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep};
use tonic::{Code, Status};
use zipper_checkpoint::layout;
use zipper_proto::v1;
use zipper_proto::v1::assignment::Origin;
use zipper_proto::v1::complete_task_request::Outcome;
use zipper_proto::v1::worker_service_server::WorkerService;
use zipper_types::{Advised, Generation, Rank, Step};

use super::beside::{Report, Upload};
use super::memory::Memory;
use super::{Ended, PAUSE, POLL, Shared, is_away};
use crate::fabric::{Meeting, Place, Votes};
use crate::invariants::{COMPLETE, EXACT};
use crate::model::{LANGUAGES, Partial};
use crate::world::stage_of;

/// How long a rank waits for the others.
const PATIENCE: Duration = Duration::from_secs(20);
/// Steps from one snapshot to the next.
const SNAPSHOT_EVERY: u64 = 2;
/// The pause before a checkpoint is read again.
const READ_PAUSE: Duration = Duration::from_millis(500);

/// The training thread.
pub(super) struct Worker {
    shared: Rc<Shared>,
    rng: ChaCha8Rng,
    memory: Memory,
    uploads: mpsc::UnboundedSender<Upload>,
    reports: mpsc::UnboundedSender<Report>,
}

/// Why a worker leaves its generation.
enum Left {
    Finished,
    Over,
    GivenUp,
}

impl Left {
    /// For what reason the coordinator's refusal ends it.
    fn after(status: &Status) -> Self {
        match status.code() {
            Code::Aborted => Self::Over,
            _ => Self::GivenUp,
        }
    }
}

/// A generation as this rank sees it.
struct Team {
    /// The claim of the coordinator that formed it, or took it over.
    epoch: u64,
    place: Place,
    /// First and last owner of each bank.
    owners: Vec<(u32, u32)>,
}

impl Team {
    fn of(epoch: u64, assignment: &v1::Assignment) -> Self {
        let placement = assignment.placement.clone().unwrap_or_default();
        let owners = placement.owners.iter();
        Self {
            epoch,
            place: Place {
                generation: Generation(assignment.generation),
                rank: Rank(assignment.rank),
                world_size: assignment.world_size,
            },
            owners: owners
                .map(|owners| (owners.first_rank, owners.last_rank))
                .collect(),
        }
    }

    fn owns(&self, rank: Rank, language: usize) -> bool {
        let (first, last) = self.owners[language];
        (first..=last).contains(&rank.0)
    }

    /// Whether nobody else has a bank that `rank` has.
    fn alone(&self, rank: Rank, language: usize) -> bool {
        self.owners[language] == (rank.0, rank.0)
    }
}

impl Worker {
    pub(super) fn new(
        shared: Rc<Shared>,
        uploads: mpsc::UnboundedSender<Upload>,
        reports: mpsc::UnboundedSender<Report>,
    ) -> Self {
        Self {
            rng: ChaCha8Rng::seed_from_u64(shared.world.seed.rotate_left(48) ^ shared.incarnation),
            shared,
            memory: Memory::default(),
            uploads,
            reports,
        }
    }

    pub(super) async fn run(mut self) -> Ended {
        let loading = self.rng.random_range(200..3000);
        sleep(Duration::from_millis(loading)).await;
        loop {
            let (epoch, assignment) = match self.join().await {
                Ok(Some(joined)) => joined,
                Ok(None) => return Ended::Over,
                Err(_) => return Ended::Failed,
            };
            let team = Team::of(epoch, &assignment);
            let Place { generation, rank, .. } = team.place;
            let shared = &self.shared;
            let truth = &shared.world.truth;
            truth.seated(generation, rank, &shared.worker, shared.incarnation);
            shared.generation.set(Some(generation));
            shared.regroup.set(false);
            shared.stored.borrow_mut().clear();
            let left = self.take_part(&team, &assignment).await;
            self.memory.end();
            self.shared.over.set(self.shared.over.get().max(Some(generation)));
            self.shared.leave();
            match left {
                Left::Finished => return Ended::Over,
                Left::GivenUp => return Ended::Failed,
                Left::Over if self.shared.given_up.get() => return Ended::Failed,
                Left::Over => {}
            }
        }
    }

    /// Asks to join until there is a place, or the run is over.
    async fn join(&self) -> Result<Option<(u64, v1::Assignment)>, Status> {
        let shared = &self.shared;
        let held = self.memory.held().into_iter().map(|partial| v1::HeldState {
            step: partial.step.0,
            stage: v1::Stage::from(stage_of(partial.step)).into(),
            shared: partial.shared.is_some(),
            banks: partial.banks.keys().map(|&language| language as u32).collect(),
        });
        let request = v1::JoinRequest {
            member: Some(shared.member(shared.over.get())),
            node_rank: shared.node,
            store_address: format!("host{}:1", shared.node),
            hostname: format!("host{}", shared.node),
            held: held.collect(),
            ..v1::JoinRequest::default()
        };
        let since = Instant::now();
        loop {
            let answer = shared
                .ways
                .link
                .call(POLL, request.clone(), |services, request| async move {
                    services.join(request).await
                });
            match answer.await {
                Ok(joined) if joined.verdict.is_some() => return Ok(None),
                Ok(joined) => {
                    if let Some(assignment) = joined.assignment {
                        return Ok(Some((joined.epoch, assignment)));
                    }
                }
                Err(status) if is_away(&status, since) => sleep(PAUSE).await,
                Err(status) => return Err(status),
            }
        }
    }

    async fn take_part(&mut self, team: &Team, assignment: &v1::Assignment) -> Left {
        let step = Step(assignment.step);
        if team.place.rank == Rank(0) {
            self.shared
                .world
                .truth
                .starts(team.epoch, team.place.generation, step);
        }
        let Some(live) = self.regroup(team, step, assignment.origin.as_ref()).await else {
            return self.report_loss().await;
        };
        self.check(&live);
        self.memory.begin(live);
        self.progressed(step);
        let mut completed: Option<(u64, Outcome)> = None;
        loop {
            let task = match self.next_task(completed.as_ref()).await {
                Ok(task) => task,
                Err(left) => return left,
            };
            let outcome = match task.kind {
                Some(v1::task::Kind::Train(train)) => match self.train(team, &train).await {
                    Some(outcome) => outcome,
                    None => return self.report_loss().await,
                },
                Some(v1::task::Kind::Save(_)) => {
                    self.save(team);
                    Outcome::Saved(v1::Saved {})
                }
                Some(v1::task::Kind::Evaluate(_)) => {
                    sleep(Duration::from_millis(500)).await;
                    Outcome::Evaluated(v1::Evaluated {
                        utterances: Vec::new(),
                    })
                }
                _ => return Left::Finished,
            };
            if self.shared.is_over() {
                return Left::Over;
            }
            if let Err(left) = self.complete(task.id, outcome.clone()).await {
                return left;
            }
            completed = Some((task.id, outcome));
        }
    }

    fn progressed(&self, step: Step) {
        self.shared.step.set(step);
        self.shared.since.set(Instant::now());
    }

    /// The state that the generation starts from; nothing if a peer is lost.
    async fn regroup(&self, team: &Team, step: Step, origin: Option<&Origin>) -> Option<Partial> {
        let fabric = &self.shared.world.fabric;
        let place = team.place;
        let meeting = fabric.meet(
            place,
            Meeting::Regroup,
            Votes::default(),
            self.memory.held(),
            PATIENCE,
        );
        meeting.await.ok()?;
        match origin {
            Some(Origin::Memory(memory)) => {
                let given = |rank: u32| {
                    let brought = fabric.brought(place.generation, Meeting::Regroup, Rank(rank));
                    brought.into_iter().find(|partial| partial.step == step)
                };
                let shared = given(memory.shared_rank).and_then(|partial| partial.shared);
                let mine = (0..LANGUAGES).filter(|&language| team.owns(place.rank, language));
                let bank = |language: usize| {
                    let rank = memory
                        .bank_ranks
                        .get(language)
                        .copied()
                        .unwrap_or(memory.shared_rank);
                    Some((language, given(rank)?.banks.remove(&language)?))
                };
                let banks: Option<BTreeMap<usize, String>> = if memory.bank_ranks.is_empty() {
                    // In a stage without banks they are the initial ones, which everybody makes.
                    let initial = Partial::initial();
                    Some(
                        mine.map(|language| (language, initial.banks[&language].clone()))
                            .collect(),
                    )
                } else {
                    mine.map(bank).collect()
                };
                let (Some(shared), Some(banks)) = (shared, banks) else {
                    let Place { generation, rank, .. } = place;
                    let seen = format!(
                        "rank {rank} of generation {generation} was promised step {step}, and nobody has it"
                    );
                    self.shared.world.truth.violated(EXACT, seen);
                    return None;
                };
                let shared = Some(shared);
                Some(Partial { step, shared, banks })
            }
            Some(Origin::Checkpoint(_)) => self.load(team, step).await,
            _ => Some(Partial::initial().with_banks(|language| team.owns(place.rank, language))),
        }
    }

    /// Reads a checkpoint, however often the store has to be asked.
    async fn load(&self, team: &Team, step: Step) -> Option<Partial> {
        let shared = Some(self.read(team, step, layout::SHARED).await?);
        let mut banks = BTreeMap::new();
        for language in 0..LANGUAGES {
            if team.owns(team.place.rank, language) {
                banks.insert(language, self.read(team, step, &self.bank(language)).await?);
            }
        }
        Some(Partial { step, shared, banks })
    }

    fn bank(&self, language: usize) -> String {
        layout::bank(&self.shared.world.config.data.languages[language])
    }

    async fn read(&self, team: &Team, step: Step, name: &str) -> Option<String> {
        let checkpoints = self.shared.ways.store.checkpoints();
        let read = async || {
            let manifest = checkpoints.load_manifest(step).await?;
            match manifest.parts.iter().find(|part| part.path == name) {
                Some(part) => checkpoints.read_part(step, part).await,
                None => Ok(Bytes::new()),
            }
        };
        while !self.shared.is_over() {
            match read().await {
                Ok(bytes) => return Some(String::from_utf8_lossy(&bytes).into_owned()),
                Err(error) if error.is_retryable() => sleep(READ_PAUSE).await,
                // It is over, and the checkpoint was retired.
                Err(_) if self.shared.is_over() || !self.shared.world.truth.has_run(team.epoch) => {
                    return None;
                }
                Err(error) => {
                    let generation = team.place.generation;
                    let seen = format!("generation {generation} is to go on from step {step}: {error}");
                    self.shared.world.truth.violated(COMPLETE, seen);
                    return None;
                }
            }
        }
        None
    }

    /// A state that this rank works with is the one that there is of its step.
    fn check(&self, partial: &Partial) {
        let expected = self.shared.world.model(partial.step);
        if expected.with_banks(|language| partial.banks.contains_key(&language)) != *partial {
            let seen = format!("`{}` has {partial:?}, expected {expected:?}", self.shared.worker);
            self.shared.world.truth.violated(EXACT, seen);
        }
    }

    async fn next_task(&self, completed: Option<&(u64, Outcome)>) -> Result<v1::Task, Left> {
        let shared = &self.shared;
        let since = Instant::now();
        loop {
            if shared.is_over() {
                return Err(Left::Over);
            }
            let request = v1::NextTaskRequest {
                member: Some(shared.member(shared.generation.get())),
                completed_task: completed.map(|(id, _)| *id),
            };
            let answer = shared
                .ways
                .link
                .call(POLL, request, |services, request| async move {
                    services.next_task(request).await
                });
            match answer.await {
                Ok(response) => {
                    if let Some(task) = response.task {
                        return Ok(task);
                    }
                    if let Some((id, outcome)) = completed.filter(|_| response.resend_outcome) {
                        self.complete(*id, outcome.clone()).await?;
                    }
                }
                Err(status) if is_away(&status, since) => sleep(PAUSE).await,
                Err(status) => return Err(Left::after(&status)),
            }
        }
    }

    async fn complete(&self, task_id: u64, outcome: Outcome) -> Result<(), Left> {
        let (done, sent) = oneshot::channel();
        if self.reports.send(Report::Flush(done)).is_ok() {
            // The task that sends metrics lives as long as this one.
            let _ = sent.await;
        }
        let shared = &self.shared;
        let request = || v1::CompleteTaskRequest {
            member: Some(shared.member(shared.generation.get())),
            task_id,
            outcome: Some(outcome.clone()),
        };
        let told = shared.insist(request, |services, request| async move {
            services.complete_task(request).await
        });
        told.await.map(drop).map_err(|status| Left::after(&status))
    }

    /// A peer was lost: tells the coordinator.
    async fn report_loss(&self) -> Left {
        let shared = &self.shared;
        if shared.is_over() {
            return Left::Over;
        }
        let generation = shared.generation.get();
        let request = || v1::ReportFailureRequest {
            member: Some(shared.member(generation)),
            message: "a peer was lost".to_owned(),
            failed_collective: Some(v1::CollectiveState::default()),
            ..v1::ReportFailureRequest::default()
        };
        let told = shared.insist(request, |services, request| async move {
            services.report_failure(request).await
        });
        match told.await {
            Ok(_) => Left::Over,
            Err(status) => Left::after(&status),
        }
    }

    /// Trains up to a step; nothing if a peer is lost, or the generation over.
    async fn train(&mut self, team: &Team, task: &v1::TrainTask) -> Option<Outcome> {
        let world = Rc::clone(&self.shared.world);
        loop {
            let step = self.memory.live.as_ref()?.step;
            if step.0 >= task.until_step {
                let reached_step = step.0;
                return Some(Outcome::Trained(v1::Trained { reached_step }));
            }
            let work = self.rng.random_range(20..200);
            sleep(Duration::from_millis(work)).await;
            self.shared.ways.pause.pass().await;
            if self.shared.is_over() {
                return None;
            }
            let votes = Votes {
                stop: self.shared.stop.get(),
                regroup: self.shared.regroup.get(),
            };
            let meeting = world.fabric.meet(
                team.place,
                Meeting::Step(step.next()),
                votes,
                Vec::new(),
                PATIENCE,
            );
            let votes = meeting.await.ok()?;
            let step = self.memory.update()?;
            self.snapshot(team, step).await?;
            self.progressed(step);
            let last = step.0 == task.until_step;
            if team.place.rank == Rank(0) {
                self.report(team, step);
            }
            let due = step.0.is_multiple_of(world.config.checkpoint.every_steps);
            if due || votes.stop || (last && task.checkpoint_at_end) {
                self.save(team);
            }
            let reached_step = step.0;
            if votes.stop {
                return Some(Outcome::Stopped(v1::Stopped { reached_step }));
            }
            if votes.regroup && !last {
                return Some(Outcome::Yielded(v1::Yielded { reached_step }));
            }
        }
    }

    fn report(&self, team: &Team, step: Step) {
        let metrics = v1::StepMetrics {
            step: step.0,
            stage: v1::Stage::from(stage_of(step)).into(),
            loss: 1.0 / step.0 as f64,
            world_size: team.place.world_size,
            ..v1::StepMetrics::default()
        };
        // Without the task that sends them the process is ending.
        let _ = self.reports.send(Report::Step(Box::new(metrics)));
    }

    /// If one is due: remembers this state, and gives copies of banks that nobody else has to the next rank.
    async fn snapshot(&mut self, team: &Team, step: Step) -> Option<()> {
        let place = team.place;
        if place.world_size == 1 {
            self.memory.settled();
            return Some(());
        }
        if self.memory.has_snapshot() && !step.0.is_multiple_of(SNAPSHOT_EVERY) {
            return Some(());
        }
        let fabric = self.shared.world.fabric.clone();
        let mut snapshot = self.memory.live.clone()?;
        let meeting = Meeting::Copies(step);
        let brings = vec![snapshot.clone()];
        fabric
            .meet(place, meeting, Votes::default(), brings, PATIENCE)
            .await
            .ok()?;
        let before = Rank((place.rank.0 + place.world_size - 1) % place.world_size);
        for given in fabric.brought(place.generation, meeting, before) {
            snapshot.extend(given.with_banks(|language| team.alone(before, language)));
        }
        self.memory.snapshot(snapshot);
        Some(())
    }

    /// Leaves this rank's part of a checkpoint to be stored.
    fn save(&self, team: &Team) {
        let Some(live) = &self.memory.live else { return };
        let Place { generation, rank, .. } = team.place;
        let shared = live.shared.iter().filter(|_| rank == Rank(0));
        let mut parts: Vec<(String, String)> = shared
            .map(|shared| (layout::SHARED.to_owned(), shared.clone()))
            .collect();
        for (&language, bank) in &live.banks {
            // Each bank is written once.
            if team.owners[language].0 == rank.0 {
                parts.push((self.bank(language), bank.clone()));
            }
        }
        // Without an uploader the process is ending.
        let _ = self.uploads.send(Upload {
            generation,
            step: live.step,
            parts,
        });
    }
}
