//! `zipper-worker train`: joins a run, then does what the coordinator asks until it says to finish.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::Context;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tch::Device;
use tokio::runtime::{Handle, Runtime};
use zipper_checkpoint::{RunStore, layout};
use zipper_cli::{ExitStatus, UserError, when_parent_is_gone};
use zipper_collectives::{Backend, FlightRecorder, GroupOptions, RollCall, Store};
use zipper_config::RunConfig;
use zipper_data::{Corpus, DurationLimits, Utterance, load_corpus};
use zipper_plan::{Placement, WorkModel};
use zipper_proto::v1::complete_task_request::Outcome;
use zipper_proto::v1::{self, evaluate_task, task, verdict};
use zipper_train::evaluate::{DecodeOptions, decode};
use zipper_train::replica::Replica;
use zipper_train::session::Session;
use zipper_train::step::StepReport;
use zipper_train::team::Team;
use zipper_types::{Generation, Rank, Stage, Step, WorkerId, WorldSize};

use crate::checkpoint::Parts;
use crate::control::{self, Control};
use crate::diagnosis;
use crate::eval::user_error_if_config;

#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Run URL.
    #[arg(long)]
    run: String,
    /// The coordinator's address, `http://127.0.0.1:41234`.
    #[arg(long)]
    coordinator: String,
    /// This node's index.
    #[arg(long)]
    node_rank: u32,
    /// This worker's index on its node.
    #[arg(long)]
    local_rank: u32,
    /// Torch threads.
    #[arg(long)]
    threads: i32,
    /// Address of this machine that other workers can reach.
    #[arg(long, default_value = "127.0.0.1")]
    host: String,
    /// Where the tensors are: `cpu` or `cuda:0`.
    #[arg(long, default_value = "cpu", value_parser = device)]
    device: Device,
    /// What sums gradients: `gloo` or `nccl`.
    #[arg(long, default_value = "gloo", value_parser = backend)]
    backend: Backend,
}

fn device(text: &str) -> Result<Device, String> {
    let cuda = |index: &str| index.parse().ok().map(Device::Cuda);
    match text {
        "cpu" => Ok(Device::Cpu),
        _ => text
            .strip_prefix("cuda:")
            .and_then(cuda)
            .ok_or_else(|| "expected `cpu` or `cuda:N`".to_owned()),
    }
}

fn backend(text: &str) -> Result<Backend, String> {
    match text {
        "gloo" => Ok(Backend::Gloo),
        "nccl" => Ok(Backend::Nccl),
        _ => Err("expected `gloo` or `nccl`".to_owned()),
    }
}

pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<ExitStatus> {
    tch::set_num_threads(arguments.threads);
    when_parent_is_gone(|| {
        tracing::error!("the node agent is gone");
        // Not `exit`: it would tear libtorch down under the training thread.
        let _ = kill(Pid::this(), Signal::SIGKILL);
    });
    let runtime = Runtime::new().context("the async runtime cannot start")?;
    let store = RunStore::open(&arguments.run).map_err(|error| UserError::new(error.to_string()))?;
    let (config, skipped) = runtime.block_on(read_run(&store))?;
    let mut worker = Worker::join(arguments, runtime.handle(), store, config, skipped)?;
    let verdict = worker.work();
    let finished = worker.control.finish();
    let verdict = verdict?;
    finished?;
    Ok(verdict)
}

/// The resolved configuration and the ids of utterances that the launcher found to be unreadable.
async fn read_run(store: &RunStore) -> anyhow::Result<(RunConfig, Vec<String>)> {
    let config = store.get(layout::RUN_CONFIG).await?;
    let config = std::str::from_utf8(&config).context("run.yaml is not UTF-8")?;
    let config = zipper_config::from_str(config, layout::RUN_CONFIG, &[])?;
    let skipped = if store.exists(layout::SKIPPED).await? {
        serde_json::from_slice(&store.get(layout::SKIPPED).await?).context(layout::SKIPPED)?
    } else {
        Vec::new()
    };
    Ok((config, skipped))
}

/// One rank of one generation.
struct Worker {
    runtime: Handle,
    store: RunStore,
    config: RunConfig,
    skipped: Vec<String>,
    control: Control,
    recorder: FlightRecorder,
    /// Serves the rendezvous of the process groups if this is rank 0; must outlive the groups.
    _own_store: Store,
    rendezvous: Rendezvous,
    /// Loaded with the first task, so that a broken model is reported as that task's failure.
    session: Option<Session>,
}

/// This rank's place among the others, and where they meet.
struct Rendezvous {
    rank: Rank,
    generation: Generation,
    placement: Placement,
    work: WorkModel,
    store_address: String,
    host: String,
    device: Device,
    backend: Backend,
}

impl Worker {
    fn join(
        arguments: &Arguments,
        runtime: &Handle,
        store: RunStore,
        config: RunConfig,
        skipped: Vec<String>,
    ) -> anyhow::Result<Self> {
        let (own_store, port) = Store::serve(&arguments.host, config.runtime.collective_timeout)?;
        let mut client = runtime.block_on(control::connect(&arguments.coordinator))?;
        let incarnation = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |since| since.as_nanos() as u64);
        let mut member = v1::MemberContext {
            run: config.name.clone(),
            worker_id: WorkerId::new(arguments.node_rank, arguments.local_rank).to_string(),
            incarnation,
            generation: None,
        };
        let request = v1::JoinRequest {
            member: Some(member.clone()),
            node_rank: arguments.node_rank,
            local_rank: arguments.local_rank,
            store_address: format!("{}:{port}", arguments.host),
            hostname: hostname(),
            pid: std::process::id(),
        };
        let joined = runtime.block_on(control::join(
            &mut client,
            request,
            config.runtime.rendezvous_timeout,
        ))?;
        member.generation = Some(joined.generation);
        tracing::info!(
            "joined generation {} as rank {} of {}",
            joined.generation,
            joined.rank,
            joined.world_size
        );
        let recorder = FlightRecorder::default();
        let latest = {
            let recorder = recorder.clone();
            move || diagnosis::latest(&recorder)
        };
        let control = Control::start(runtime.clone(), client, member, &config.runtime, &store, latest);
        let (placement, work) = placement(&joined, config.data.languages.len())?;
        Ok(Self {
            runtime: runtime.clone(),
            store,
            config,
            skipped,
            control,
            recorder,
            _own_store: own_store,
            rendezvous: Rendezvous {
                rank: Rank(joined.rank),
                generation: Generation(joined.generation),
                placement,
                work,
                store_address: joined.store_address,
                host: arguments.host.clone(),
                device: arguments.device,
                backend: arguments.backend,
            },
            session: None,
        })
    }

    /// Does one task after the other.
    fn work(&mut self) -> anyhow::Result<ExitStatus> {
        let mut completed = None;
        loop {
            let task = self.control.next_task(completed)?;
            let outcome = match task
                .kind
                .context("the coordinator gave a task of a kind that this worker does not know")?
            {
                task::Kind::Train(train) => self.train(&train),
                task::Kind::Evaluate(evaluate) => self.evaluate(&evaluate),
                task::Kind::Finish(finish) => return exit_status(&finish.verdict.unwrap_or_default()),
            };
            match outcome {
                Ok(outcome) => {
                    self.control.flush_reports();
                    self.control.complete_task(task.id, outcome)?;
                }
                Err(error) => return Err(self.fail(task.id, error)),
            }
            completed = Some(task.id);
        }
    }

    /// Tells the coordinator that a task has failed. If a collective did, another worker is probably the cause: what the
    /// coordinator finds out is added to the error.
    fn fail(&self, task: u64, error: anyhow::Error) -> anyhow::Error {
        let failed_collective = diagnosis::failed_collective(&error);
        let collective = failed_collective.is_some();
        if collective {
            let bytes = diagnosis::flight_file(&self.recorder);
            if let Err(error) = self.control.write_flight_record(self.rendezvous.rank, bytes) {
                tracing::warn!("the flight record cannot be written: {error:#}");
            }
        }
        let failed = v1::Failed {
            config: error.chain().any(<dyn std::error::Error>::is::<UserError>),
            message: format!("{error:#}"),
            collective,
            failed_collective,
        };
        if let Err(unreported) = self.control.complete_task(task, Outcome::Failed(failed)) {
            tracing::warn!("the failure cannot be reported: {unreported:#}");
            return error;
        }
        match self.control.verdict_after_failure().filter(|_| collective) {
            Some(verdict) => error.context(format!("the run ended: {}", control::first_line(&verdict))),
            None => error,
        }
    }

    fn train(&mut self, task: &v1::TrainTask) -> anyhow::Result<Outcome> {
        let stage = zipper_proto::stage(task.stage)?;
        self.go_to(Step(task.from_step))?;
        let rank = self.rendezvous.rank;
        let session = self.session.as_mut().context("a worker trains with a session")?;
        session.enter(stage).map_err(user_error_if_config)?;
        let checkpoint_every = self.config.checkpoint.every_steps;
        while session.step().0 < task.until_step {
            let started = Instant::now();
            let report = session
                .train_step(self.control.shared().stop_requested())
                .map_err(user_error_if_config)?;
            self.control.shared().completed(report.step);
            let last = report.step.0 == task.until_step;
            if rank.0 == 0
                && (report.step.0.is_multiple_of(self.config.training.log_every) || last || report.stop)
            {
                let world_size = session.team().placement().world_size();
                self.control
                    .report_step(metrics(&report, started.elapsed(), world_size));
            }
            let due = checkpoint_every > 0 && report.step.0.is_multiple_of(checkpoint_every);
            if due || report.stop || (last && task.checkpoint_at_end) {
                self.control.upload(report.step, stage, session.parts()?)?;
            }
            if report.stop {
                return Ok(Outcome::Stopped(v1::Stopped {
                    reached_step: report.step.0,
                }));
            }
        }
        Ok(Outcome::Trained(v1::Trained {
            reached_step: session.step().0,
        }))
    }

    fn evaluate(&mut self, task: &v1::EvaluateTask) -> anyhow::Result<Outcome> {
        self.go_to(Step(task.step))?;
        let (manifests, with_nll) = match task.set.as_ref().context("the task names no set to evaluate")? {
            evaluate_task::Set::Validation(_) => (self.config.data.validation.clone(), true),
            evaluate_task::Set::Test(name) => {
                let test = self
                    .config
                    .evaluation
                    .tests
                    .iter()
                    .find(|test| test.name == *name);
                (
                    vec![
                        test.with_context(|| format!("no test set is called `{name}`"))?
                            .manifest
                            .clone(),
                    ],
                    false,
                )
            }
        };
        let corpus = self.corpus(&manifests)?;
        let session = self
            .session
            .as_mut()
            .context("a worker evaluates with a session")?;
        let utterances: Vec<&Utterance> = corpus.utterances.iter().collect();
        let mine = session.borrow_banks(&utterances)?;
        let options = DecodeOptions {
            silenced: task.silenced,
            with_nll,
        };
        let shared = self.control.shared();
        let decoded = decode(session.replica(), &mine, options, |_| !shared.stop_requested());
        session.return_banks();
        let decoded = decoded?;
        Ok(match decoded {
            None => Outcome::Stopped(v1::Stopped {
                reached_step: session.step().0,
            }),
            Some(utterances) => {
                let utterances = utterances.into_iter().map(|utterance| v1::Decoded {
                    id: utterance.id,
                    lang: utterance.lang,
                    reference: utterance.reference,
                    hypothesis: utterance.hypothesis,
                    nll: utterance.nll.map(|(nll, _)| nll),
                    tokens: utterance.nll.map(|(_, tokens)| tokens),
                });
                Outcome::Evaluated(v1::Evaluated {
                    utterances: utterances.collect(),
                })
            }
        })
    }

    /// Loads model and data if that has not been done, and the checkpoint of `step` if this rank stands elsewhere.
    fn go_to(&mut self, step: Step) -> anyhow::Result<()> {
        if self.session.is_none() {
            let Rendezvous {
                rank,
                placement,
                device,
                ..
            } = &self.rendezvous;
            let banks = placement.languages_of(*rank).into_iter().collect();
            let replica =
                Replica::load(&self.config, Stage::Align, *device, banks).map_err(user_error_if_config)?;
            let corpus = self.corpus(&self.config.data.train)?;
            let team = self.form_team()?;
            self.control.abort_on_failure(team.abort_handles());
            let session = Session::new(replica, corpus.utterances, team);
            self.session = Some(session.map_err(user_error_if_config)?);
        }
        let session = self.session.as_mut().context("the session was just made")?;
        if session.step() != step {
            let checkpoints = self.store.checkpoints();
            let manifest = self.runtime.block_on(checkpoints.load_manifest(step))?;
            let parts = Parts::new(self.runtime.clone(), checkpoints, manifest);
            session
                .restore(|name| parts.read(name))
                .with_context(|| format!("checkpoint of step {step}"))?;
            self.control.shared().completed(step);
            tracing::info!("resumed from the checkpoint of step {step}");
        }
        Ok(())
    }

    fn form_team(&self) -> anyhow::Result<Team> {
        let Rendezvous {
            rank,
            generation,
            placement,
            work,
            store_address,
            host,
            device,
            backend,
        } = &self.rendezvous;
        let runtime = &self.config.runtime;
        let (store_host, port) = store_address
            .rsplit_once(':')
            .and_then(|(host, port)| Some((host, port.parse().ok()?)))
            .with_context(|| format!("`{store_address}` is not host:port"))?;
        let store = Store::connect(store_host, port, runtime.collective_timeout)?
            .prefix(&format!("generation-{generation}"))?;
        let options = GroupOptions {
            backend: *backend,
            device: *device,
            first_timeout: runtime.first_collective_timeout,
            check: runtime.check_collectives,
            recorder: self.recorder.clone(),
            roll_call: Some(RollCall::new(&store)?),
            ..GroupOptions::gloo(host, runtime.collective_timeout)
        };
        let team = Team::form(
            &store,
            *rank,
            &self.config,
            placement.clone(),
            work.clone(),
            &options,
        )?;
        Ok(team)
    }

    fn corpus(&self, manifests: &[std::path::PathBuf]) -> anyhow::Result<Corpus> {
        let data = &self.config.data;
        let limits = DurationLimits {
            min_seconds: data.min_seconds,
            max_seconds: data.max_seconds,
        };
        let mut corpus = load_corpus(manifests, &data.languages, limits)
            .map_err(|error| UserError::new(error.to_string()))?;
        corpus
            .utterances
            .retain(|utterance| !self.skipped.contains(&utterance.id));
        Ok(corpus)
    }
}

/// The coordinator's placement.
fn placement(joined: &v1::JoinResponse, num_languages: usize) -> anyhow::Result<(Placement, WorkModel)> {
    let world_size = WorldSize(joined.world_size);
    let sent = joined.placement.clone().unwrap_or_default();
    let placement = if sent.owners.is_empty() {
        Placement::everywhere(num_languages, world_size)
    } else {
        let owners: Vec<(u32, u32)> = sent
            .owners
            .iter()
            .map(|owners| (owners.first_rank, owners.last_rank))
            .collect();
        Placement::from_owners(owners, world_size)?
    };
    let work = match sent.work {
        Some(work) => WorkModel {
            per_audio_second: work.per_audio_second,
            per_token: work.per_token,
            tokens_per_character: work.tokens_per_character,
            measured: work.measured,
        },
        None => WorkModel::unmeasured(num_languages),
    };
    anyhow::ensure!(
        placement.num_languages() == num_languages && work.tokens_per_character.len() == num_languages,
        "the coordinator placed {} languages and weighed {}, the configuration has {num_languages}",
        placement.num_languages(),
        work.tokens_per_character.len()
    );
    Ok((placement, work))
}

fn exit_status(verdict: &v1::Verdict) -> anyhow::Result<ExitStatus> {
    match verdict.outcome() {
        verdict::Outcome::Done => Ok(ExitStatus::Done),
        verdict::Outcome::Stopped => Ok(ExitStatus::Stopped),
        verdict::Outcome::Config => Err(UserError::new(format!("the run ended: {}", verdict.reason)).into()),
        verdict::Outcome::Failed | verdict::Outcome::Unspecified => {
            Err(anyhow::anyhow!("the run ended: {}", verdict.reason))
        }
    }
}

fn metrics(report: &StepReport, seconds: Duration, world_size: WorldSize) -> v1::StepMetrics {
    let by_language = report.by_language.iter().map(|(lang, loss)| {
        let loss = v1::LanguageMetrics {
            nll: loss.nll,
            tokens: loss.tokens,
            utterances: loss.utterances,
        };
        (lang.clone(), loss)
    });
    v1::StepMetrics {
        step: report.step.0,
        stage: v1::Stage::from(report.stage).into(),
        loss: report.loss,
        lr: report.lr,
        grad_norm: report.grad_norm,
        tokens: report.tokens,
        audio_seconds: report.audio_seconds,
        seconds: seconds.as_secs_f64(),
        skipped: report.skipped,
        by_language: by_language.collect(),
        comm_bytes_shared: report.cost.shared_bytes,
        comm_bytes_banks: report.cost.bank_bytes,
        comm_exposed_seconds: report.cost.exposed.as_secs_f64(),
        compute_seconds: report.cost.compute.as_secs_f64(),
        world_size: world_size.0,
    }
}

fn hostname() -> String {
    std::fs::read_to_string("/proc/sys/kernel/hostname")
        .map_or_else(|_| "unknown".to_owned(), |name| name.trim().to_owned())
}
