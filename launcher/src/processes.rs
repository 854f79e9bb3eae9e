//! The processes of a run that zipper-launch starts: one coordinator, and one agent for each node of this machine, or the Slurm
//! step that holds those of an allocation.
//!
//! Each has a process group of its own, so that Ctrl-C in a terminal reaches zipper-launch alone, and a pipe as stdin, whose
//! end tells it that zipper-launch is gone (srun hands it on). A coordinator, an agent or a step that ends before the run does is
//! started again.

use std::fmt;
use std::fs::File;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, bail};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::time::{Instant, sleep};
use tonic::transport::Channel;
use zipper_cli::UserError;
use zipper_config::schema::ClusterConfig;
use zipper_tls::{CREDENTIALS, CREDENTIALS_FILE};

use crate::container;
use crate::credentials::Handout;
use crate::display::Display;
use crate::page::Page;
use crate::preflight::Prepared;
use crate::restarts::Restarts;
use crate::route::address_of;
use crate::run::Arguments;
use crate::slurm::{self, Allocation, VARIABLES_OF_THE_JOB};

/// How long the coordinator may take until it listens, besides the time for which another one's claim counts.
const START_TIMEOUT: Duration = Duration::from_mins(1);
/// How often to look whether all processes live.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// How long a coordinator that did not start may take to end.
const EXIT_TIMEOUT: Duration = Duration::from_secs(1);
const LAST_LINES: usize = 20;
/// By what NCCL knows the interface; Gloo is told the address.
const NCCL_INTERFACE: &str = "NCCL_SOCKET_IFNAME";

/// Where the processes run.
#[derive(Debug, Clone)]
pub(crate) struct Place {
    /// Address of the coordinator.
    pub(crate) listen: IpAddr,
    pub(crate) agents: AgentPlace,
}

/// Where the node agents run.
#[derive(Debug, Clone)]
pub(crate) enum AgentPlace {
    /// On this machine, behind these words; `{node}` is the node's number.
    Here(Vec<String>),
    /// In a step of the Slurm allocation.
    Slurm,
}

impl Place {
    /// Where the processes of a run in `allocation` run, or of one on this machine.
    ///
    /// # Errors
    /// If the nodes cannot be reached from here, or by the interface that the configuration names.
    pub(crate) async fn new(
        arguments: &Arguments,
        cluster: &ClusterConfig,
        allocation: Option<&Allocation>,
    ) -> anyhow::Result<Self> {
        let listen = match (arguments.listen, &cluster.interface, allocation) {
            (Some(address), _, _) => address,
            (None, Some(interface), _) => address_of(interface)?,
            (None, None, Some(allocation)) => allocation.own_address().await?,
            (None, None, None) => Ipv4Addr::LOCALHOST.into(),
        };
        let agents = if allocation.is_some() {
            AgentPlace::Slurm
        } else {
            let words = arguments.node_command.as_deref().unwrap_or_default();
            AgentPlace::Here(words.split_whitespace().map(ToOwned::to_owned).collect())
        };
        Ok(Self { listen, agents })
    }
}

/// Running processes; dropping them ends them.
pub(crate) struct Processes {
    starter: Starter,
    coordinator: Child,
    address: SocketAddr,
    /// The coordinator's claim on the run.
    epoch: u64,
    restarts: Restarts,
    agents: Vec<AgentSlot>,
}

/// What zipper-launch starts to have agents.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Agents {
    OfNode(u32),
    /// Those of all nodes.
    Step,
}

impl fmt::Display for Agents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OfNode(node) => write!(f, "the agent of node {node}"),
            Self::Step => f.write_str("the Slurm step of the node agents"),
        }
    }
}

/// Agents that run, or will again.
struct AgentSlot {
    agents: Agents,
    child: Option<Child>,
    restarts: Restarts,
    /// When to start another one.
    due: Option<Instant>,
}

/// How processes are started.
struct Starter {
    run: String,
    place: Place,
    logs: PathBuf,
    coordinator: Vec<String>,
    /// Words before the program of an agent: those of a container.
    container: Vec<String>,
    /// That program.
    program: PathBuf,
    /// Arguments of all agents.
    agents: Vec<String>,
    /// The devices of each node's workers.
    devices: Vec<String>,
    lease_ttl: Duration,
    max_restarts: u32,
    restart_window: Duration,
    restart_backoff: Duration,
    page: Page,
    credentials: Handout,
    /// The network interface between the nodes, if it is named.
    interface: Option<String>,
}

impl Processes {
    pub(crate) async fn start(prepared: &Prepared, place: Place) -> anyhow::Result<Self> {
        let starter = Starter::new(prepared, place)?;
        let listen = SocketAddr::new(starter.place.listen, 0);
        let (coordinator, address, epoch) = starter.coordinator(listen, None).await?;
        let agents = match starter.place.agents {
            AgentPlace::Here(_) => (0..prepared.crew.all_nodes()).map(Agents::OfNode).collect(),
            AgentPlace::Slurm => vec![Agents::Step],
        };
        let agents = agents
            .into_iter()
            .map(|agents| {
                let child = Some(starter.agents(agents, address)?);
                Ok(AgentSlot {
                    agents,
                    child,
                    restarts: starter.restarts(),
                    due: None,
                })
            })
            .collect::<anyhow::Result<Vec<_>>>()?;
        Ok(Self {
            restarts: starter.restarts(),
            starter,
            coordinator,
            address,
            epoch,
            agents,
        })
    }

    /// The status page.
    pub(crate) fn page(&self) -> &Page {
        &self.starter.page
    }

    /// The coordinator's claim on the run.
    pub(crate) fn epoch(&self) -> u64 {
        self.epoch
    }

    /// A connection to the coordinator.
    pub(crate) fn channel(&self) -> anyhow::Result<Channel> {
        let own = self.starter.credentials.launcher();
        Ok(own.endpoint(&format!("https://{}", self.address))?.connect_lazy())
    }

    /// Starts the coordinator again if it has ended.
    ///
    /// # Errors
    /// If it cannot be started, ends again and again, or another launch has the run.
    pub(crate) async fn mend_coordinator(&mut self, display: &Display) -> anyhow::Result<()> {
        self.tend_agents(display).await?;
        match self.coordinator.try_wait().context("the coordinator")? {
            Some(status) => self.restart_coordinator(status, display).await,
            None => Ok(()),
        }
    }

    /// Starts agents again that have ended, and returns after a while.
    ///
    /// # Errors
    /// If one cannot be started.
    ///
    /// # Cancel safety
    /// Nothing is lost: what has ended is found the next time.
    pub(crate) async fn tend_agents(&mut self, display: &Display) -> anyhow::Result<()> {
        sleep(LOOK_EVERY).await;
        for slot in &mut self.agents {
            if let Some(child) = &mut slot.child
                && let Some(status) = child.try_wait().context("an agent")?
            {
                slot.child = None;
                // One that ended in order was told to. Of a step that says nothing: srun is content with tasks that were lost.
                if !status.success() || slot.agents == Agents::Step {
                    let (_, pause) = slot.restarts.note(Instant::now());
                    slot.due = Some(Instant::now() + pause);
                    display.line(&format!("{} ended ({status}); starting another", slot.agents));
                }
            }
            if slot.due.is_some_and(|due| due <= Instant::now()) {
                slot.due = None;
                slot.child = Some(self.starter.agents(slot.agents, self.address)?);
            }
        }
        Ok(())
    }

    /// Workers go on without a coordinator; another one finds them by the journal.
    async fn restart_coordinator(&mut self, status: ExitStatus, display: &Display) -> anyhow::Result<()> {
        let log = self.starter.coordinator_log();
        let end = || {
            format!(
                "the end of its log `{}`:\n{}",
                log.display(),
                last_lines(&log).join("\n")
            )
        };
        if refused(status) {
            return Err(UserError::new(format!("the coordinator ended; {}", end())).into());
        }
        let (count, pause) = self.restarts.note(Instant::now());
        if count > self.starter.max_restarts as usize {
            bail!(
                "the coordinator ended {count} times within `elastic.restart_window` = {}; {}",
                humantime::format_duration(self.starter.restart_window),
                end()
            );
        }
        display.line(&format!("the coordinator ended ({status}); starting another"));
        if count > 1 {
            sleep(pause).await;
        }
        match self.starter.coordinator(self.address, Some(self.epoch)).await {
            Ok((coordinator, address, epoch)) => {
                self.coordinator = coordinator;
                self.address = address;
                self.epoch = epoch;
            }
            // Nothing that passes by itself.
            Err(error) if zipper_cli::status_of(&error) == zipper_cli::ExitStatus::Usage => {
                return Err(error);
            }
            // The next look finds the old one ended as before, and tries again: that counts, too.
            Err(error) => display.line(&format!("{error:#}")),
        }
        Ok(())
    }

    /// Waits for all to end by themselves; ends those that do not within `patience`.
    pub(crate) async fn wait(&mut self, patience: Duration) {
        let agents = self.agents.iter_mut().filter_map(|slot| slot.child.as_mut());
        // Waiting closes stdin, which would tell a process that zipper-launch is gone.
        let mut children: Vec<&mut Child> = agents.chain([&mut self.coordinator]).collect();
        let pipes: Vec<_> = children.iter_mut().map(|child| child.stdin.take()).collect();
        let everyone = async {
            for child in &mut children {
                let _ = child.wait().await;
            }
        };
        let ended = tokio::time::timeout(patience, everyone).await;
        drop(pipes);
        if ended.is_err() {
            tracing::warn!("some processes did not end within {patience:?} after the verdict: ending them");
        }
    }
}

impl Starter {
    fn new(prepared: &Prepared, place: Place) -> anyhow::Result<Self> {
        let crew = &prepared.crew;
        let config = &prepared.config;
        let text = |words: &[&str]| words.iter().map(ToString::to_string).collect::<Vec<String>>();
        let mut coordinator = text(&[
            "--min-workers",
            &crew.min_workers().to_string(),
            "--max-workers",
            &crew.workers().to_string(),
            "--nodes",
            &crew.all_nodes().to_string(),
            "--workers-per-node",
            &crew.workers_per_node.to_string(),
        ]);
        coordinator.extend(prepared.bank_memory.map(|bytes| format!("--bank-bytes={bytes}")));
        let changes: Vec<String> = prepared
            .changes
            .iter()
            .map(|change| format!("--set={change}"))
            .collect();
        coordinator.extend(changes.iter().cloned());
        let patience = humantime::format_duration(config.elastic.coordinator_timeout).to_string();
        let mut agents = text(&["--run", prepared.store.url(), "--name", &config.name]);
        agents.extend(text(&["--patience", &patience, "--backend", crew.backend]));
        agents.extend(text(&["--threads", &prepared.threads.to_string()]));
        if config.runtime.pin_cores {
            agents.extend(text(&["--pin-cores", &crew.workers_per_machine().to_string()]));
        }
        agents.extend(changes);
        let (container, program) = match &config.cluster.container {
            Some(container) => {
                let words = container::words_here(container, prepared.gpus_of_slurm)?;
                (words, PathBuf::from(&container.program))
            }
            None => (Vec::new(), this_program()?),
        };
        Ok(Self {
            page: Page::prepare(config, &prepared.logs)?,
            credentials: Handout::prepare(config, &prepared.logs)?,
            interface: config.cluster.interface.clone(),
            run: prepared.store.url().to_owned(),
            place,
            logs: prepared.logs.clone(),
            coordinator,
            container,
            program,
            agents,
            devices: (0..crew.all_nodes())
                .map(|node| crew.devices_of(node).join(","))
                .collect(),
            lease_ttl: config.elastic.lease_ttl,
            max_restarts: config.elastic.restarts_per_node,
            restart_window: config.elastic.restart_window,
            restart_backoff: config.elastic.restart_backoff,
        })
    }

    fn restarts(&self) -> Restarts {
        Restarts::new(self.restart_window, self.restart_backoff)
    }

    fn coordinator_log(&self) -> PathBuf {
        self.logs.join("coordinator.log")
    }

    /// Starts a coordinator; returns where it listens, and its claim on the run.
    async fn coordinator(
        &self,
        listen: SocketAddr,
        supersede: Option<u64>,
    ) -> anyhow::Result<(Child, SocketAddr, u64)> {
        let log = self.coordinator_log();
        let mut child = command(&beside("zipper-coordinator")?, &log)?
            .args(["--run", &self.run, "--listen", &listen.to_string()])
            .args(&self.coordinator)
            .args(supersede.map(|epoch| format!("--supersede={epoch}")))
            .args(self.page.arguments())
            .env(CREDENTIALS_FILE, self.credentials.of_coordinator())
            .stdout(Stdio::piped())
            .spawn()
            .context("the coordinator cannot be started")?;
        match read_address(&mut child, &self.page, START_TIMEOUT + 2 * self.lease_ttl).await {
            Ok((address, epoch)) => Ok((child, address, epoch)),
            Err(error) => {
                let end = last_lines(&log);
                let status = tokio::time::timeout(EXIT_TIMEOUT, child.wait()).await;
                if let Ok(Ok(status)) = status
                    && refused(status)
                {
                    return Err(said(&end).into());
                }
                Err(error).with_context(|| {
                    format!(
                        "the coordinator did not start; the end of its log `{}`:\n{}",
                        log.display(),
                        end.join("\n")
                    )
                })
            }
        }
    }

    fn agents(&self, agents: Agents, coordinator: SocketAddr) -> anyhow::Result<Child> {
        let mut command = match agents {
            Agents::OfNode(node) => self.agent_here(node)?,
            Agents::Step => self.step()?,
        };
        command
            .args(&self.agents)
            .args(["--coordinator", &format!("https://{coordinator}")])
            .envs(self.interface.iter().map(|name| (NCCL_INTERFACE, name)))
            .spawn()
            .with_context(|| format!("{agents} cannot be started"))
    }

    fn agent_here(&self, node: u32) -> anyhow::Result<Command> {
        let words = match &self.place.agents {
            AgentPlace::Here(words) => words.as_slice(),
            AgentPlace::Slurm => &[],
        };
        let words = words.iter().map(|word| word.replace("{node}", &node.to_string()));
        let words: Vec<String> = words.chain(self.container.iter().cloned()).collect();
        let log = self.logs.join(format!("node{node}-agent.log"));
        let mut command = self.program_behind(&words, &log)?;
        command
            .args(["agent", "--node-rank", &node.to_string(), "--devices"])
            .arg(&self.devices[node as usize])
            .arg("--logs")
            .arg(&self.logs)
            .env(CREDENTIALS_FILE, self.credentials.of_nodes());
        Ok(command)
    }

    /// One command line for all nodes: what differs between them they know by Slurm's variables.
    fn step(&self) -> anyhow::Result<Command> {
        let mut words = slurm::srun(slurm::AGENTS, self.devices.len() as u32);
        words.extend(self.container.iter().cloned());
        let text = |duration| humantime::format_duration(duration).to_string();
        let mut command = self.program_behind(&words, &self.logs.join("slurm-step.log"))?;
        for name in VARIABLES_OF_THE_JOB {
            command.env_remove(name);
        }
        command
            .args(["node", "--restart-window", &text(self.restart_window)])
            .args(["--restart-backoff", &text(self.restart_backoff), "--logs"])
            .arg(&self.logs)
            .args(["--", "--devices", &self.devices[0]])
            // There may be no folder that all nodes see.
            .env(CREDENTIALS, self.credentials.text_for_nodes());
        Ok(command)
    }

    /// The agents' program behind `words`, its output in `log`.
    fn program_behind(&self, words: &[String], log: &Path) -> anyhow::Result<Command> {
        let Some((first, others)) = words.split_first() else {
            return command(&self.program, log);
        };
        let mut command = command(Path::new(first), log)?;
        command.args(others).arg(&self.program);
        Ok(command)
    }
}

/// The file of zipper-launch itself.
pub(crate) fn this_program() -> anyhow::Result<PathBuf> {
    std::env::current_exe().context("zipper-launch does not know its own path")
}

/// Whether a program ended because what it was given is at fault: starting it again does not help.
fn refused(status: ExitStatus) -> bool {
    status.code() == Some(i32::from(zipper_cli::ExitStatus::Usage.code()))
}

/// What a coordinator that refused its arguments or its run said last: its `error:` and `hint:` lines.
fn said(end_of_log: &[String]) -> UserError {
    let after = |prefix: &str| {
        end_of_log
            .iter()
            .filter_map(|line| line.strip_prefix(prefix))
            .map(ToOwned::to_owned)
            .collect::<Vec<String>>()
    };
    let message = after("error: ").pop();
    let error = UserError::new(message.unwrap_or_else(|| end_of_log.join("\n")));
    after("hint: ").into_iter().fold(error, UserError::hint)
}

/// A command of which nothing outlives this process: a process group of its own, a pipe as stdin, its output in `log`.
pub(crate) fn command(program: &Path, log: &Path) -> anyhow::Result<Command> {
    let file = File::options()
        .create(true)
        .append(true)
        .open(log)
        .with_context(|| format!("cannot write `{}`", log.display()))?;
    let stdout = file
        .try_clone()
        .with_context(|| format!("cannot write `{}`", log.display()))?;
    let mut command = Command::new(program);
    command
        .stdin(Stdio::piped())
        .stdout(stdout)
        .stderr(file)
        .env(zipper_cli::LOG_FORMAT, zipper_cli::log_format().name())
        .process_group(0)
        .kill_on_drop(true);
    Ok(command)
}

/// The program called `name` in the folders of `PATH`.
pub(crate) fn in_path(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .map(|folder| folder.join(name))
        .find(|file| file.is_file())
}

/// The program called `name` beside this one.
pub(crate) fn beside(name: &str) -> anyhow::Result<PathBuf> {
    let path = this_program()?.with_file_name(name);
    if !path.exists() {
        let error = UserError::new(format!("`{}` is missing", path.display()));
        return Err(error
            .hint("build the workspace with `cargo build --release`, or install all three programs together")
            .into());
    }
    Ok(path)
}

/// The end of a log file.
pub(crate) fn last_lines(path: &Path) -> Vec<String> {
    let text = std::fs::read(path).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(LAST_LINES)..]
        .iter()
        .map(ToString::to_string)
        .collect()
}

/// The address that the coordinator prints once it listens, and its claim on the run.
async fn read_address(
    coordinator: &mut Child,
    page: &Page,
    timeout: Duration,
) -> anyhow::Result<(SocketAddr, u64)> {
    let stdout = coordinator
        .stdout
        .take()
        .context("the coordinator has no stdout")?;
    let mut line = String::new();
    let mut reader = BufReader::new(stdout);
    let reading = reader.read_line(&mut line);
    tokio::time::timeout(timeout, reading)
        .await
        .with_context(|| format!("zipper-launch waited {timeout:?} for the coordinator's address"))??;
    let value: serde_json::Value = serde_json::from_str(&line)
        .with_context(|| format!("it printed `{}` instead of its address", line.trim()))?;
    page.served(&value["page"]);
    let address = value["address"].as_str().and_then(|address| address.parse().ok());
    Ok((
        address.context("its first line has no address")?,
        value["epoch"].as_u64().context("its first line has no claim")?,
    ))
}

#[cfg(test)]
mod tests {
    use anyhow::Error;

    use super::*;

    #[test]
    fn the_coordinators_refusal_is_passed_through() {
        let log = [
            "2026-01-02T03:04:05Z  INFO something else",
            "error: the run is held by process 7 on `a` since 2026-01-02T03:04:05Z",
            "",
            "hint: stop that run first",
        ];
        let mut printed = Vec::new();
        let status = zipper_cli::report(&Error::new(said(&log.map(ToOwned::to_owned))), &mut printed);
        assert_eq!(status, zipper_cli::ExitStatus::Usage);
        assert_eq!(
            String::from_utf8_lossy(&printed),
            "error: the run is held by process 7 on `a` since 2026-01-02T03:04:05Z\n\nhint: stop that run first\n"
        );
    }
}
