//! The agent of one node: starts its workers, watches how they end, starts them again as the coordinator says.

use std::collections::BTreeMap;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::Context;
use backon::{ExponentialBuilder, Retryable};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::process::{Child, ChildStdin};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tonic::Status;
use tonic::transport::Channel;
use zipper_cli::{ExitStatus, die_with_parent, hostname, when_parent_is_gone};
use zipper_proto::v1::advice::What;
use zipper_proto::v1::agent_service_client::AgentServiceClient;
use zipper_proto::v1::run_service_client::RunServiceClient;
use zipper_proto::v1::watch_response::Event;
use zipper_proto::{is_away, v1};
use zipper_tls::Credentials;
use zipper_types::WorkerId;

use crate::cores;
use crate::processes::{beside, command, last_lines};
use crate::route::own_address_towards;

const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(1);
/// How long workers may take to end by themselves after the verdict.
const FAREWELL: Duration = Duration::from_secs(10);
/// How long the last reports of workers' ends may take after the verdict.
const LAST_REPORTS: Duration = Duration::from_secs(2);

#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Arguments {
    /// Run URL.
    #[arg(long)]
    run: String,
    /// Name of the run.
    #[arg(long)]
    name: String,
    /// The coordinator's address.
    #[arg(long)]
    coordinator: String,
    /// How long to wait for a coordinator that is away.
    #[arg(long, value_parser = humantime::parse_duration)]
    patience: Duration,
    /// This node's index.
    #[arg(long)]
    node_rank: u32,
    /// The device of each worker, in the order of their local ranks: `cuda:0,cuda:1`.
    #[arg(long, value_delimiter = ',', required = true)]
    devices: Vec<String>,
    /// What sums gradients: `gloo` or `nccl`.
    #[arg(long)]
    backend: String,
    /// Torch threads of each worker.
    #[arg(long)]
    threads: usize,
    /// Give each worker cores of its own, a share of the machine's among this many workers.
    #[arg(long, value_name = "WORKERS")]
    pin_cores: Option<usize>,
    /// Folder for the workers' logs.
    #[arg(long)]
    logs: PathBuf,
    /// Changes to the run's configuration.
    #[arg(long = "set", value_name = "KEY.PATH=VALUE")]
    overrides: Vec<String>,
}

impl Arguments {
    /// The worker's option for the cores that it may use, if it is to have its own. Agents that share a machine have nodes that follow each
    /// other.
    fn cores_of(&self, local_rank: u32) -> anyhow::Result<Option<String>> {
        let Some(workers) = self.pin_cores else {
            return Ok(None);
        };
        let index = self.node_rank as usize * self.devices.len() + local_rank as usize;
        let cores = cores::of_this_process()?;
        let own = cores::share(&cores, index % workers, workers).iter();
        let own: Vec<String> = own.map(ToString::to_string).collect();
        Ok(Some(format!("--cores={}", own.join(","))))
    }
}

/// What the main loop is told by the tasks beside it.
enum Happened {
    /// A worker process ended.
    Ended(u32, std::process::ExitStatus),
    /// What the coordinator says about a slot whose worker ended.
    Advised(u32, v1::Advice),
    /// The answer to a heartbeat.
    Heard(v1::AgentHeartbeatResponse),
    /// The coordinator was away for too long.
    Alone(Status),
    /// The run has its verdict.
    Over,
    /// Workers have had their time to end.
    Late,
}

/// A worker process.
struct Running {
    incarnation: u64,
    pid: Pid,
    /// Its end tells the worker that this agent is gone.
    _stdin: Option<ChildStdin>,
}

struct Agent {
    arguments: Arguments,
    context: v1::AgentContext,
    channel: Channel,
    /// Without the deadline of requests.
    unhurried: Channel,
    host: String,
    workers: BTreeMap<u32, Running>,
    /// Reports of workers' ends that are under way.
    reports: JoinSet<()>,
    /// Whether the run has ended.
    over: bool,
    happened: mpsc::UnboundedSender<Happened>,
}

pub(crate) async fn run(arguments: &Arguments) -> anyhow::Result<ExitStatus> {
    die_with_parent().context("this process cannot be tied to zipper-launch")?;
    let (gone, mut parent_gone) = oneshot::channel();
    when_parent_is_gone(|| {
        let _ = gone.send(());
    });
    let node = ("node", arguments.node_rank.to_string());
    zipper_cli::describe_process(&arguments.run, "zipper-launch agent", &[node]);
    let credentials = Credentials::of_this_process()?;
    let endpoint = credentials.endpoint(&arguments.coordinator)?;
    let (happened, mut events) = mpsc::unbounded_channel();
    let mut agent = Agent {
        context: v1::AgentContext {
            run: arguments.name.clone(),
            node_rank: arguments.node_rank,
            incarnation: incarnation(),
        },
        host: own_address(&arguments.coordinator)?,
        arguments: arguments.clone(),
        channel: endpoint.clone().timeout(REQUEST_TIMEOUT).connect_lazy(),
        unhurried: endpoint.connect_lazy(),
        workers: BTreeMap::new(),
        reports: JoinSet::new(),
        over: false,
        happened,
    };
    let advice = agent.register().await?;
    agent.pass_signals_on()?;
    for local_rank in (0..).take(arguments.devices.len()) {
        if !agent.follow(local_rank, advice.as_ref())? {
            return Ok(ExitStatus::Done);
        }
    }
    tokio::spawn(agent.heartbeats());
    tokio::spawn(agent.verdict());
    loop {
        let happened = tokio::select! {
            happened = events.recv() => happened.context("the agent's own tasks are gone")?,
            _ = &mut parent_gone => {
                // Dropping the workers' pipes ends them.
                return Ok(ExitStatus::Failed);
            }
        };
        agent.react(happened)?;
        if agent.over && agent.workers.is_empty() {
            // A coordinator that is gone already misses nothing.
            let reports = std::mem::take(&mut agent.reports);
            let _ = tokio::time::timeout(LAST_REPORTS, reports.join_all()).await;
            return Ok(ExitStatus::Done);
        }
    }
}

impl Agent {
    fn client(&self) -> AgentServiceClient<Channel> {
        AgentServiceClient::new(self.channel.clone())
    }

    async fn register(&self) -> anyhow::Result<Option<v1::Advice>> {
        let request = v1::RegisterNodeRequest {
            agent: Some(self.context.clone()),
            hostname: hostname(),
        };
        let registered = patiently(self.arguments.patience, || {
            let (mut client, request) = (self.client(), request.clone());
            async move { client.register_node(request).await }
        });
        let response = registered
            .await
            .context("the coordinator does not take this node in")?;
        Ok(response.into_inner().advice)
    }

    /// Does what follows from what happened.
    ///
    /// # Errors
    /// If a worker cannot be started, or the coordinator was away for too long.
    fn react(&mut self, happened: Happened) -> anyhow::Result<()> {
        match happened {
            Happened::Ended(local_rank, status) => {
                if is_over(status) {
                    self.run_is_over();
                }
                self.ended(local_rank, status);
            }
            Happened::Advised(local_rank, advice) if !self.over => {
                self.follow(local_rank, Some(&advice))?;
            }
            Happened::Advised(..) => {}
            Happened::Heard(heard) => {
                self.kill(&heard.kill);
                if heard.verdict.is_some() {
                    self.run_is_over();
                }
            }
            Happened::Over => self.run_is_over(),
            Happened::Late => self.kill_all(),
            Happened::Alone(_) if self.over => {}
            Happened::Alone(status) => {
                self.kill_all();
                anyhow::bail!(
                    "this agent waited {} for the coordinator: {status}",
                    humantime::format_duration(self.arguments.patience)
                );
            }
        }
        Ok(())
    }

    /// A signal to this process stops the whole run: Slurm sends it to every task.
    fn pass_signals_on(&self) -> anyhow::Result<()> {
        for (kind, name) in [
            (SignalKind::terminate(), "SIGTERM"),
            (SignalKind::interrupt(), "SIGINT"),
            (SignalKind::user_defined1(), "SIGUSR1"),
        ] {
            let mut signals = signal(kind).with_context(|| format!("{name} cannot be handled"))?;
            let mut client = RunServiceClient::new(self.channel.clone());
            let reason = format!("{name} to the agent of node {}", self.arguments.node_rank);
            tokio::spawn(async move {
                while signals.recv().await.is_some() {
                    let reason = reason.clone();
                    if let Err(status) = client.stop(v1::StopRequest { reason }).await {
                        tracing::warn!("the coordinator did not take the request to stop: {status}");
                    }
                }
            });
        }
        Ok(())
    }

    /// Does what the coordinator says about a slot; whether that is to start a worker.
    fn follow(&mut self, local_rank: u32, advice: Option<&v1::Advice>) -> anyhow::Result<bool> {
        match advice.and_then(|advice| advice.what.as_ref()) {
            Some(What::Start(start)) => {
                let pause = zipper_proto::duration(start.after).unwrap_or_default();
                self.start_after(local_rank, pause)?;
                Ok(true)
            }
            Some(What::Leave(leave)) => {
                tracing::warn!(
                    "worker {local_rank} of node {} is not started: {}",
                    self.arguments.node_rank,
                    leave.reason
                );
                Ok(false)
            }
            None => Ok(false),
        }
    }

    fn start_after(&mut self, local_rank: u32, pause: Duration) -> anyhow::Result<()> {
        if pause.is_zero() {
            return self.start(local_rank);
        }
        let happened = self.happened.clone();
        tokio::spawn(async move {
            tokio::time::sleep(pause).await;
            let now = v1::Advice {
                what: Some(What::Start(v1::StartAdvice { after: None })),
            };
            // The agent may have ended.
            let _ = happened.send(Happened::Advised(local_rank, now));
        });
        Ok(())
    }

    fn start(&mut self, local_rank: u32) -> anyhow::Result<()> {
        let arguments = &self.arguments;
        let node = arguments.node_rank;
        let incarnation = incarnation();
        let log = log(arguments, local_rank);
        let mut child = command(&beside("zipper-worker")?, &log)?
            .args(["train", "--run", &arguments.run])
            .args(["--coordinator", &arguments.coordinator])
            .args(["--node-rank", &node.to_string()])
            .args(["--local-rank", &local_rank.to_string()])
            .args(["--incarnation", &incarnation.to_string()])
            .args(["--threads", &arguments.threads.to_string()])
            .args(arguments.cores_of(local_rank)?)
            .args(["--host", &self.host])
            .args(["--device", &arguments.devices[local_rank as usize]])
            .args(["--backend", &arguments.backend])
            .args(arguments.overrides.iter().map(|change| format!("--set={change}")))
            // c10d warns of what the worker reports itself.
            .env("TORCH_CPP_LOG_LEVEL", "ERROR")
            // A failed collective is an error that the worker tells of, not a reason to kill the process.
            .env("TORCH_NCCL_ASYNC_ERROR_HANDLING", "0")
            .env("TORCH_NCCL_ENABLE_MONITORING", "0")
            .spawn()
            .with_context(|| format!("worker {local_rank} of node {node} cannot be started"))?;
        let pid = child.id().context("a process that has just started has an id")?;
        let running = Running {
            incarnation,
            pid: Pid::from_raw(pid.cast_signed()),
            // Waiting closes stdin, which would tell the worker that this agent is gone.
            _stdin: child.stdin.take(),
        };
        self.workers.insert(local_rank, running);
        tokio::spawn(wait(child, local_rank, self.happened.clone()));
        Ok(())
    }

    /// Tells the coordinator how a worker ended, and asks what now.
    fn ended(&mut self, local_rank: u32, status: std::process::ExitStatus) {
        let Some(running) = self.workers.remove(&local_rank) else {
            return;
        };
        let worker = WorkerId::new(self.arguments.node_rank, local_rank);
        if is_over(status) {
            return;
        }
        tracing::warn!("worker `{worker}` ended: {status}");
        let request = v1::ReportWorkerExitRequest {
            agent: Some(self.context.clone()),
            worker: Some(v1::WorkerProcess {
                worker_id: worker.0,
                incarnation: running.incarnation,
            }),
            exit_code: status.code(),
            signal: status.signal(),
            last_lines: last_lines(&log(&self.arguments, local_rank)),
        };
        let (client, patience) = (self.client(), self.arguments.patience);
        let happened = self.happened.clone();
        self.reports.spawn(async move {
            let reported = patiently(patience, || {
                let (mut client, request) = (client.clone(), request.clone());
                async move { client.report_worker_exit(request).await }
            });
            let answer = match reported.await {
                Ok(response) => match response.into_inner().advice {
                    Some(advice) => Happened::Advised(local_rank, advice),
                    None => return,
                },
                Err(status) => Happened::Alone(status),
            };
            let _ = happened.send(answer);
        });
    }

    /// A task that gives signs of life and passes on what is answered.
    fn heartbeats(&self) -> impl Future<Output = ()> + Send + 'static {
        let (mut client, context) = (self.client(), self.context.clone());
        let (happened, patience) = (self.happened.clone(), self.arguments.patience);
        async move {
            let mut ticks = tokio::time::interval(HEARTBEAT_INTERVAL);
            let mut heard = Instant::now();
            loop {
                ticks.tick().await;
                let request = v1::AgentHeartbeatRequest {
                    agent: Some(context.clone()),
                };
                let event = match client.agent_heartbeat(request).await {
                    Ok(response) => {
                        heard = Instant::now();
                        Happened::Heard(response.into_inner())
                    }
                    Err(status) if heard.elapsed() > patience => Happened::Alone(status),
                    Err(_) => continue,
                };
                if happened.send(event).is_err() {
                    return;
                }
            }
        }
    }

    /// A task that waits for the verdict: the coordinator does not stay for the next heartbeat.
    fn verdict(&self) -> impl Future<Output = ()> + Send + 'static {
        // It lasts as long as the run.
        let mut client = RunServiceClient::new(self.unhurried.clone());
        let happened = self.happened.clone();
        async move {
            loop {
                if let Ok(events) = client.watch(v1::WatchRequest::default()).await {
                    let mut events = events.into_inner();
                    while let Ok(Some(response)) = events.message().await {
                        if let Some(Event::Verdict(_)) = response.event {
                            let _ = happened.send(Happened::Over);
                            return;
                        }
                    }
                }
                tokio::time::sleep(HEARTBEAT_INTERVAL).await;
            }
        }
    }

    /// The run has ended: workers are given their time to do so too.
    fn run_is_over(&mut self) {
        if std::mem::replace(&mut self.over, true) {
            return;
        }
        let happened = self.happened.clone();
        tokio::spawn(async move {
            tokio::time::sleep(FAREWELL).await;
            let _ = happened.send(Happened::Late);
        });
    }

    /// Ends workers that the coordinator has given up.
    fn kill(&self, given_up: &[v1::WorkerProcess]) {
        for running in self.workers.values() {
            if given_up
                .iter()
                .any(|process| process.incarnation == running.incarnation)
            {
                let _ = kill(running.pid, Signal::SIGKILL);
            }
        }
    }

    fn kill_all(&self) {
        for running in self.workers.values() {
            let _ = kill(running.pid, Signal::SIGKILL);
        }
    }
}

/// Whether a worker ended because the run has: only then it ends in order.
fn is_over(status: std::process::ExitStatus) -> bool {
    status.success() || status.code() == Some(i32::from(ExitStatus::Stopped.code()))
}

async fn wait(mut child: Child, local_rank: u32, happened: mpsc::UnboundedSender<Happened>) {
    match child.wait().await {
        Ok(status) => {
            let _ = happened.send(Happened::Ended(local_rank, status));
        }
        Err(error) => tracing::error!("worker {local_rank} cannot be waited for: {error}"),
    }
}

fn log(arguments: &Arguments, local_rank: u32) -> PathBuf {
    let name = format!("node{}-worker{local_rank}.log", arguments.node_rank);
    arguments.logs.join(name)
}

/// Repeats a request while the coordinator is away.
async fn patiently<T, F>(patience: Duration, request: impl Fn() -> F) -> Result<T, Status>
where
    F: Future<Output = Result<T, Status>>,
{
    let pauses = ExponentialBuilder::default()
        .with_min_delay(Duration::from_millis(100))
        .with_max_delay(Duration::from_secs(2))
        .with_total_delay(Some(patience))
        .without_max_times()
        .with_jitter();
    request.retry(pauses).when(is_away).await
}

/// Higher for every process: no two are started in the same nanosecond.
fn incarnation() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_nanos() as u64)
}

/// The address of this machine on the way to the coordinator: there other nodes reach its workers.
fn own_address(coordinator: &str) -> anyhow::Result<String> {
    let url = url::Url::parse(coordinator).context("the coordinator's address")?;
    let (host, port) = (url.host_str().unwrap_or_default(), url.port().unwrap_or_default());
    let address = own_address_towards(host.trim_matches(['[', ']']), port);
    let address = address.with_context(|| format!("there is no way to the coordinator at {coordinator}"))?;
    Ok(address.to_string())
}
