//! `zipper-worker train`: joins a run, then does what the coordinator asks until it says to finish.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::Context;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tch::Device;
use tokio::runtime::{Handle, Runtime};
use zipper_checkpoint::{RunStore, layout};
use zipper_cli::{ExitStatus, UserError, when_parent_is_gone};
use zipper_collectives::{CollectiveError, ProcessGroup, Store};
use zipper_config::RunConfig;
use zipper_data::{Corpus, DurationLimits, Utterance, load_corpus};
use zipper_proto::v1::complete_task_request::Outcome;
use zipper_proto::v1::{self, evaluate_task, task, verdict};
use zipper_train::TrainError;
use zipper_train::evaluate::{DecodeOptions, decode};
use zipper_train::replica::Replica;
use zipper_train::session::Session;
use zipper_train::step::StepReport;
use zipper_types::{Generation, Rank, Stage, Step, WorkerId, WorldSize};

use crate::checkpoint::Parts;
use crate::control::{self, Control};
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
    rank: Rank,
    world_size: WorldSize,
    /// Serves the rendezvous of the process group if this is rank 0; must outlive the group.
    _own_store: Store,
    rendezvous: Rendezvous,
    /// Loaded with the first task, so that a broken model is reported as that task's failure.
    session: Option<Session>,
    group: Option<ProcessGroup>,
}

/// Where the process group forms.
struct Rendezvous {
    store_address: String,
    generation: Generation,
    host: String,
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
        let control = Control::start(runtime.clone(), client, member, &config.runtime, &store);
        Ok(Self {
            runtime: runtime.clone(),
            store,
            config,
            skipped,
            control,
            rank: Rank(joined.rank),
            world_size: WorldSize(joined.world_size),
            _own_store: own_store,
            rendezvous: Rendezvous {
                store_address: joined.store_address,
                generation: Generation(joined.generation),
                host: arguments.host.clone(),
            },
            session: None,
            group: None,
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
                Err(error) => {
                    let config = error.chain().any(<dyn std::error::Error>::is::<UserError>);
                    let failed = v1::Failed {
                        config,
                        message: format!("{error:#}"),
                        collective: is_collective(&error),
                        failed_collective: None,
                    };
                    self.control.complete_task(task.id, Outcome::Failed(failed))?;
                    return Err(error);
                }
            }
            completed = Some(task.id);
        }
    }

    fn train(&mut self, task: &v1::TrainTask) -> anyhow::Result<Outcome> {
        let stage = zipper_proto::stage(task.stage)?;
        self.go_to(Step(task.from_step))?;
        self.form_group()?;
        let (Some(session), Some(group)) = (self.session.as_mut(), self.group.as_ref()) else {
            anyhow::bail!("a worker trains with a session and a group");
        };
        session.enter(stage).map_err(user_error_if_config)?;
        let checkpoint_every = self.config.checkpoint.every_steps;
        while session.step().0 < task.until_step {
            let started = Instant::now();
            let report = session
                .train_step(group, self.control.shared().stop_requested())
                .map_err(user_error_if_config)?;
            self.control.shared().completed(report.step);
            let last = report.step.0 == task.until_step;
            if self.rank.0 == 0
                && (report.step.0.is_multiple_of(self.config.training.log_every) || last || report.stop)
            {
                self.control.report_step(metrics(&report, started.elapsed()));
            }
            let due = checkpoint_every > 0 && report.step.0.is_multiple_of(checkpoint_every);
            if due || report.stop || (last && task.checkpoint_at_end) {
                self.control
                    .upload(report.step, stage, session.parts(self.rank, self.world_size)?)?;
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
        let session = self
            .session
            .as_ref()
            .context("a worker evaluates with a session")?;
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
        // Shortest first to each rank in turn, so that all have about the same to do.
        let mut utterances: Vec<&Utterance> = corpus.utterances.iter().collect();
        utterances.sort_by(|a, b| a.duration.total_cmp(&b.duration).then_with(|| a.id.cmp(&b.id)));
        let (rank, world_size) = (self.rank.0 as usize, self.world_size.0 as usize);
        let mine: Vec<&Utterance> = utterances.into_iter().skip(rank).step_by(world_size).collect();
        let options = DecodeOptions {
            silenced: task.silenced,
            with_nll,
        };
        let shared = self.control.shared();
        let decoded = decode(session.replica(), &mine, options, |_| !shared.stop_requested())?;
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
            let replica =
                Replica::load(&self.config, Stage::Align, Device::Cpu).map_err(user_error_if_config)?;
            let corpus = self.corpus(&self.config.data.train)?;
            self.session = Some(Session::new(replica, corpus.utterances).map_err(user_error_if_config)?);
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

    fn form_group(&mut self) -> anyhow::Result<()> {
        if self.group.is_some() {
            return Ok(());
        }
        let Rendezvous {
            store_address,
            generation,
            host,
        } = &self.rendezvous;
        let timeout = self.config.runtime.collective_timeout;
        let (store_host, port) = store_address
            .rsplit_once(':')
            .and_then(|(host, port)| Some((host, port.parse().ok()?)))
            .with_context(|| format!("`{store_address}` is not host:port"))?;
        let store = Store::connect(store_host, port, timeout)?.prefix(&format!("generation-{generation}"))?;
        self.group = Some(ProcessGroup::gloo(
            &store,
            self.rank,
            self.world_size,
            host,
            timeout,
        )?);
        Ok(())
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

/// Whether a collective operation failed, which is seldom the fault of the rank that notices.
fn is_collective(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        cause.is::<CollectiveError>()
            || matches!(
                cause.downcast_ref::<TrainError>(),
                Some(TrainError::Collective(_))
            )
    })
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

fn metrics(report: &StepReport, seconds: Duration) -> v1::StepMetrics {
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
        ..v1::StepMetrics::default()
    }
}

fn hostname() -> String {
    std::fs::read_to_string("/proc/sys/kernel/hostname")
        .map_or_else(|_| "unknown".to_owned(), |name| name.trim().to_owned())
}
