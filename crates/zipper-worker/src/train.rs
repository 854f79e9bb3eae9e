//! `zipper-worker train`: joins a run, then does what the coordinator asks until it says to finish.

use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use nix::sched::{CpuSet, sched_setaffinity};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tch::Device;
use tokio::runtime::{Handle, Runtime};
use tokio::signal::unix::{SignalKind, signal};
use zipper_checkpoint::{RunStore, StoreOptions, layout};
use zipper_cli::{
    ExitStatus, UserError, describe_process, die_with_parent, hostname, in_words, status_of,
    when_parent_is_gone,
};
use zipper_collectives::memory::gpu_peak_bytes;
use zipper_collectives::{Backend, FlightRecorder, GroupOptions, RollCall, Store};
use zipper_config::RunConfig;
use zipper_data::{Corpus, DurationLimits, Utterance, corpus_fingerprint, load_corpus, stored_fingerprint};
use zipper_proto::v1::complete_task_request::Outcome;
use zipper_proto::v1::{self, evaluate_task, task, verdict};
use zipper_tls::Credentials;
use zipper_train::TrainError;
use zipper_train::evaluate::{DecodeOptions, decode};
use zipper_train::replica::Replica;
use zipper_train::session::{Origin, Session};
use zipper_train::team::Team;
use zipper_types::{Rank, Stage, Step, WorkerId};

use crate::checkpoint::Parts;
use crate::control::{Control, Failure, Identity, Joined, Refused};
use crate::diagnosis;
use crate::model::user_error_if_config;
use crate::start;
use crate::wire;

#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Run URL.
    #[arg(long)]
    run: String,
    /// The coordinator's address, `https://127.0.0.1:41234`.
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
    /// The cores that it may use, by number. Left out: those that zipper-launch may use.
    #[arg(long, value_delimiter = ',')]
    cores: Vec<usize>,
    /// Which process of its slot this is: higher than all before it.
    #[arg(long)]
    incarnation: u64,
    /// Address of this machine that other workers can reach.
    #[arg(long, default_value = "127.0.0.1")]
    host: String,
    /// Changes to the run's configuration that hold for this launch.
    #[arg(long = "set", value_name = "KEY.PATH=VALUE")]
    overrides: Vec<String>,
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

/// Lets this thread, and all that it starts, run on `cores` only; anywhere if there are none.
fn keep_to(cores: &[usize]) -> anyhow::Result<()> {
    if cores.is_empty() {
        return Ok(());
    }
    let mut set = CpuSet::new();
    for &core in cores {
        set.set(core).with_context(|| format!("core {core}"))?;
    }
    sched_setaffinity(Pid::from_raw(0), &set).with_context(|| format!("the cores {cores:?} cannot be taken"))
}

pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<ExitStatus> {
    keep_to(&arguments.cores)?;
    tch::set_num_threads(arguments.threads);
    die_with_parent().context("this process cannot be tied to its node agent")?;
    when_parent_is_gone(|| {
        tracing::error!("the node agent is gone");
        // Not `exit`: it would tear libtorch down under the training thread.
        let _ = kill(Pid::this(), Signal::SIGKILL);
    });
    let runtime = Runtime::new().context("the async runtime cannot start")?;
    let store = RunStore::open(&arguments.run).map_err(|error| UserError::new(error.to_string()))?;
    let (config, data) = runtime.block_on(read_run(&store, &arguments.overrides))?;
    let options = StoreOptions {
        multipart_bytes: config.checkpoint.multipart_mib << 20,
        ..StoreOptions::default()
    };
    let store = RunStore::open_with(store.url(), &options)?;
    let recorder = FlightRecorder::default();
    let identity = Identity {
        run: config.name.clone(),
        worker: WorkerId::new(arguments.node_rank, arguments.local_rank).to_string(),
        incarnation: arguments.incarnation,
        node_rank: arguments.node_rank,
        local_rank: arguments.local_rank,
        hostname: hostname(),
    };
    describe_process(
        store.url(),
        "zipper-worker",
        &[("worker", identity.worker.clone())],
    );
    let control = Control::start(
        runtime.handle().clone(),
        &arguments.coordinator,
        Credentials::of_this_process()?,
        identity,
        &config,
        &store,
        recorder.clone(),
    )?;
    stop_on_signals(&runtime, &control)?;
    let mut worker = Worker {
        runtime: runtime.handle().clone(),
        store,
        config,
        data,
        control,
        recorder,
        place: Place {
            node: arguments.node_rank,
            host: arguments.host.clone(),
            device: arguments.device,
            backend: arguments.backend,
        },
    };
    worker.work()
}

/// A signal to one worker stops the whole run at the next step, with a checkpoint.
fn stop_on_signals(runtime: &Runtime, control: &Control) -> anyhow::Result<()> {
    let _entered = runtime.enter();
    for (kind, name) in [
        (SignalKind::terminate(), "SIGTERM"),
        (SignalKind::interrupt(), "SIGINT"),
        (SignalKind::user_defined1(), "SIGUSR1"),
    ] {
        let mut signals = signal(kind).with_context(|| format!("{name} cannot be handled"))?;
        let shared = Arc::clone(control.shared());
        runtime.spawn(async move {
            while signals.recv().await.is_some() {
                tracing::info!("{name}: asking for a stop at the next step");
                shared.request_stop();
            }
        });
    }
    Ok(())
}

/// The resolved configuration, and what the launcher wrote down of the training data.
async fn read_run(store: &RunStore, overrides: &[String]) -> anyhow::Result<(RunConfig, RunData)> {
    let config = store.get(layout::RUN_CONFIG).await?;
    let config = std::str::from_utf8(&config).context("run.yaml is not UTF-8")?;
    let config = zipper_config::from_str(config, layout::RUN_CONFIG, overrides)?;
    let skipped = match store.get_if_there(layout::SKIPPED).await? {
        Some(ids) => serde_json::from_slice(&ids).context(layout::SKIPPED)?,
        None => HashSet::new(),
    };
    let fingerprint = match store.get_if_there(layout::CORPUS_REPORT).await? {
        Some(report) => stored_fingerprint(&report).context(layout::CORPUS_REPORT)?,
        None => None,
    };
    Ok((config, RunData { skipped, fingerprint }))
}

/// What a run wrote down of its data when it was begun.
struct RunData {
    /// Ids of utterances that are left out because of their audio.
    skipped: HashSet<String>,
    /// Of the training corpus without them; runs of earlier versions have none.
    fingerprint: Option<String>,
}

/// One worker process: a rank of one generation after the other.
struct Worker {
    runtime: Handle,
    store: RunStore,
    config: RunConfig,
    data: RunData,
    control: Control,
    recorder: FlightRecorder,
    place: Place,
}

/// What a worker is given for all its generations.
struct Place {
    /// Its node's index.
    node: u32,
    host: String,
    device: Device,
    backend: Backend,
}

/// Why a worker leaves its generation.
enum Left {
    /// The run has ended.
    Finished(v1::Verdict),
    /// The generation is over.
    Over,
}

impl Worker {
    /// Loads the model, then works in one generation after the other until the run ends.
    fn work(&mut self) -> anyhow::Result<ExitStatus> {
        // Serves the rendezvous of the process groups while this is rank 0; must outlive them.
        let (_own_store, port) = Store::serve(&self.place.host, self.config.runtime.collective_timeout)?;
        let store_address = format!("{}:{port}", self.place.host);
        self.control.shared().set_doing("loading the model");
        let mut session = match self.load() {
            Ok(session) => session,
            Err(error) => return Err(self.fail(error, false)),
        };
        loop {
            let held: Vec<v1::HeldState> = session.held().iter().map(wire::held).collect();
            let assignment = match self.control.join(&store_address, &held)? {
                Joined::Assigned(assignment) => assignment,
                Joined::Finished(verdict) => return exit_status(&verdict),
            };
            let rank = Rank(assignment.rank);
            let (generation, world_size) = (assignment.generation, assignment.world_size);
            let _span = tracing::info_span!("generation", generation, rank = rank.0, world_size).entered();
            tracing::info!(
                "joined generation {} as rank {rank} of {}, from step {}",
                assignment.generation,
                assignment.world_size,
                assignment.step
            );
            let left = self.take_part(&mut session, &assignment);
            if let Err(error) = &left {
                self.record_flight(rank, error);
            }
            session.leave();
            match left {
                Ok(Left::Finished(verdict)) => {
                    self.control.leave();
                    return exit_status(&verdict);
                }
                Ok(Left::Over) => tracing::info!("generation {} is over", assignment.generation),
                Err(error) if is_over(&error) => {
                    tracing::info!("generation {} is over: {error:#}", assignment.generation);
                }
                Err(error) if diagnosis::failed_collective(&error).is_some() => {
                    tracing::warn!("generation {} is broken: {error:#}", assignment.generation);
                    self.report(&error, false)?;
                }
                Err(error) => return Err(self.fail(error, true)),
            }
            self.control.leave();
        }
    }

    fn load(&self) -> anyhow::Result<Session> {
        let corpus = self.training_corpus()?;
        let replica = Replica::load(&self.config, Stage::Align, self.place.device, BTreeSet::new())
            .map_err(user_error_if_config)?;
        Session::new(replica, corpus.utterances).map_err(user_error_if_config)
    }

    /// Works in one generation until it is over.
    fn take_part(&mut self, session: &mut Session, assignment: &v1::Assignment) -> anyhow::Result<Left> {
        self.control.shared().set_doing("meeting the others");
        let step = Step(assignment.step);
        let team = self.form_team(assignment)?;
        self.control.shared().abort_when_over(team.abort_handles());
        // It may have ended before there was anything to abort.
        if self.control.shared().is_over() {
            return Ok(Left::Over);
        }
        let origin = wire::origin(assignment)?;
        session
            .regroup(team, step, &origin)
            .map_err(user_error_if_config)?;
        if origin == Origin::Checkpoint {
            let checkpoints = self.store.checkpoints();
            let manifest = self.runtime.block_on(checkpoints.load_manifest(step))?;
            let parts = Parts::new(self.runtime.clone(), checkpoints, manifest);
            session
                .restore(|names| parts.read(names))
                .map_err(|error: anyhow::Error| match error.downcast::<TrainError>() {
                    Ok(error) => user_error_if_config(error),
                    Err(error) => error,
                })
                .with_context(|| format!("checkpoint of step {step}"))?;
            tracing::info!("resumed from the checkpoint of step {step}");
        }
        if origin == Origin::Fresh
            && let Some(start) = start::read(&self.config, &self.runtime)?
        {
            session.start_from(&start).map_err(user_error_if_config)?;
        }
        if matches!(origin, Origin::Memory { shared, .. } if shared.0 == assignment.rank) {
            self.control.repeat_steps();
        }
        let mut completed = None;
        loop {
            let task = self.control.next_task(completed)?;
            let kind = task
                .kind
                .context("the coordinator gave a task of a kind that this worker does not know")?;
            let outcome = match kind {
                task::Kind::Train(train) => self.train(session, &train)?,
                task::Kind::Evaluate(evaluate) => self.evaluate(session, &evaluate)?,
                task::Kind::Save(_) => {
                    self.control.upload(session.capture()?);
                    Some(Outcome::Saved(v1::Saved {}))
                }
                task::Kind::Finish(finish) => return Ok(Left::Finished(finish.verdict.unwrap_or_default())),
            };
            let Some(outcome) = outcome else {
                return Ok(Left::Over);
            };
            self.control.flush_reports();
            self.control.complete_task(task.id, outcome)?;
            completed = Some(task.id);
        }
    }

    /// Stores what this rank last did with the others, if that is what failed.
    fn record_flight(&self, rank: Rank, error: &anyhow::Error) {
        if diagnosis::failed_collective(error).is_some() {
            let bytes = diagnosis::flight_file(&self.recorder);
            if let Err(error) = self.control.write_flight_record(rank, bytes) {
                tracing::warn!("the flight record cannot be written: {error:#}");
            }
        }
    }

    /// Tells the coordinator what went wrong.
    fn report(&self, error: &anyhow::Error, fatal: bool) -> Result<(), Refused> {
        self.control.report_failure(Failure {
            config: status_of(error) == ExitStatus::Usage,
            fatal,
            message: in_words(error.as_ref()),
            collective: diagnosis::failed_collective(error),
        })
    }

    /// Tells the coordinator that this process ends, and waits for what becomes of the run if that ends it, too.
    fn fail(&self, error: anyhow::Error, training: bool) -> anyhow::Error {
        if matches!(
            error.downcast_ref(),
            Some(Refused::GivenUp(_) | Refused::Away { .. })
        ) {
            return error;
        }
        let fatal = training && error.downcast_ref().is_some_and(TrainError::ends_run);
        let config = status_of(&error) == ExitStatus::Usage;
        if let Err(unreported) = self.report(&error, fatal) {
            tracing::warn!("the failure cannot be reported: {unreported}");
        } else if fatal || config {
            let _ = self.control.verdict_after_failure();
        }
        error
    }

    /// Trains up to a step; nothing if the generation is over.
    fn train(&mut self, session: &mut Session, task: &v1::TrainTask) -> anyhow::Result<Option<Outcome>> {
        let stage = zipper_proto::stage(task.stage)?;
        let shared = Arc::clone(self.control.shared());
        shared.task_begins(session.step(), "training");
        session.enter(stage).map_err(user_error_if_config)?;
        let rank = session.team().rank();
        let world_size = session.team().placement().world_size();
        let checkpoint_every = self.config.checkpoint.every_steps;
        let mut held_up = Duration::ZERO;
        while session.step().0 < task.until_step {
            if shared.is_over() {
                return Ok(None);
            }
            let started = Instant::now();
            let _span = tracing::info_span!("step", step = session.step().0 + 1).entered();
            let report = session.train_step(shared.votes()).map_err(user_error_if_config)?;
            shared.completed(&report);
            let last = report.step.0 == task.until_step;
            let leaves = report.stop || (report.regroup && !last);
            let is_logged = report.step.0.is_multiple_of(self.config.training.log_every);
            if is_logged || last || leaves || report.skipped || report.spike {
                let gates = session.replica().adapters().gate_shares();
                let gates = gates.map(|gates| wire::gates(gates, &self.config.data.languages));
                let line = v1::StepMetrics {
                    gates,
                    memory_peak_bytes: peak_memory(session.replica().device()).unwrap_or_default(),
                    ..wire::metrics(&report, started.elapsed(), held_up, world_size)
                };
                held_up = Duration::ZERO;
                if rank.0 == 0 {
                    self.control.report_step(line);
                } else {
                    self.control.remember_step(line);
                }
            }
            let due = checkpoint_every > 0 && report.step.0.is_multiple_of(checkpoint_every);
            if due || report.stop || (last && task.checkpoint_at_end) {
                let capturing = Instant::now();
                self.control.upload(session.capture()?);
                held_up += capturing.elapsed();
            }
            if report.stop {
                return Ok(Some(Outcome::Stopped(v1::Stopped {
                    reached_step: report.step.0,
                })));
            }
            if leaves {
                return Ok(Some(Outcome::Yielded(v1::Yielded {
                    reached_step: report.step.0,
                })));
            }
        }
        Ok(Some(Outcome::Trained(v1::Trained {
            reached_step: session.step().0,
        })))
    }

    /// Decodes this rank's part of a set; nothing if the generation is over.
    fn evaluate(&self, session: &mut Session, task: &v1::EvaluateTask) -> anyhow::Result<Option<Outcome>> {
        let shared = self.control.shared();
        shared.task_begins(session.step(), "evaluating");
        let (manifests, with_nll) = match task.set.as_ref().context("the task names no set to evaluate")? {
            evaluate_task::Set::Validation(_) => (self.config.data.validation.clone(), true),
            evaluate_task::Set::Test(name) => {
                let mut tests = self.config.evaluation.tests.iter();
                let test = tests
                    .find(|test| test.name == *name)
                    .with_context(|| format!("no test set is called `{name}`"))?;
                (vec![test.manifest.clone()], false)
            }
        };
        let corpus = self.corpus(&manifests)?;
        let utterances: Vec<&Utterance> = corpus.utterances.iter().collect();
        let mine = session.borrow_banks(&utterances)?;
        let options = DecodeOptions {
            silenced: task.silenced,
            with_nll,
            detect: false,
        };
        let go_on = |_| {
            shared.got_on();
            !shared.stop_requested() && !shared.is_over()
        };
        let decoded = decode(session.replica(), &mine, options, go_on);
        session.return_banks();
        let decoded = decoded?;
        Ok(match decoded {
            None if shared.is_over() => None,
            None => Some(Outcome::Stopped(v1::Stopped {
                reached_step: session.step().0,
            })),
            Some(utterances) => {
                let utterances = utterances.into_iter().map(|utterance| v1::Decoded {
                    id: utterance.id,
                    lang: utterance.lang,
                    reference: utterance.reference,
                    hypothesis: utterance.hypothesis,
                    nll: utterance.nll.map(|(nll, _)| nll),
                    tokens: utterance.nll.map(|(_, tokens)| tokens),
                });
                Some(Outcome::Evaluated(v1::Evaluated {
                    utterances: utterances.collect(),
                }))
            }
        })
    }

    fn form_team(&self, assignment: &v1::Assignment) -> anyhow::Result<Team> {
        let Place {
            node,
            host,
            device,
            backend,
        } = &self.place;
        let (placement, work) = wire::placement(assignment, self.config.data.languages.len())?;
        let runtime = &self.config.runtime;
        let address = &assignment.store_address;
        let (store_host, port) = address
            .rsplit_once(':')
            .and_then(|(host, port)| Some((host, port.parse().ok()?)))
            .with_context(|| format!("`{address}` is not host:port"))?;
        let store = Store::connect(store_host, port, runtime.collective_timeout)?
            .prefix(&format!("generation-{}", assignment.generation))?;
        let options = GroupOptions {
            backend: *backend,
            device: *device,
            first_timeout: match wire::origin(assignment)? {
                // Everyone has loaded its model and remembers something: nobody is waited for longer than usual.
                Origin::Memory { .. } => runtime.collective_timeout,
                Origin::Fresh | Origin::Checkpoint => runtime.first_collective_timeout,
            },
            check: runtime.check_collectives,
            recorder: self.recorder.clone(),
            roll_call: Some(RollCall::new(&store)?),
            ..GroupOptions::gloo(host, runtime.collective_timeout)
        };
        let rank = Rank(assignment.rank);
        Ok(Team::form(
            &store,
            rank,
            *node,
            &self.config,
            placement,
            work,
            &options,
        )?)
    }

    /// What is trained on: refused if it is not what the run was begun with, because this rank would draw other batches than its peers.
    fn training_corpus(&self) -> anyhow::Result<Corpus> {
        let data = &self.config.data;
        let corpus = self.corpus(&data.train)?;
        if let Some(of_run) = &self.data.fingerprint
            && *of_run != corpus_fingerprint(&data.languages, &corpus.utterances)
        {
            let message = format!(
                "the training data on {} are not those that the run in `{}` was begun with: the manifests of `data.train` \
                 name other utterances, durations or another order there; give them as they were, on every machine",
                hostname(),
                self.store.url()
            );
            return Err(UserError::new(message).into());
        }
        Ok(corpus)
    }

    fn corpus(&self, manifests: &[std::path::PathBuf]) -> anyhow::Result<Corpus> {
        let data = &self.config.data;
        let limits = DurationLimits::from(data);
        let mut corpus = load_corpus(manifests, &data.languages, limits)
            .map_err(|error| UserError::new(error.to_string()))?;
        corpus
            .utterances
            .retain(|utterance| !self.data.skipped.contains(&utterance.id));
        Ok(corpus)
    }
}

/// Whether the coordinator says that the generation is over.
fn is_over(error: &anyhow::Error) -> bool {
    matches!(error.downcast_ref(), Some(Refused::Over(_)))
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

/// The most memory that this rank has had so far: of tensors on its GPU, or of the process where it works on the CPU.
fn peak_memory(device: Device) -> Option<u64> {
    if let Device::Cuda(index) = device {
        return gpu_peak_bytes(index);
    }
    let status = procfs::process::Process::myself().and_then(|process| process.status());
    Some(status.ok()?.vmhwm? * 1024)
}
