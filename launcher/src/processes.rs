//! The processes of a run on this machine: one coordinator, one agent for each node.
//!
//! Each has a process group of its own, so that Ctrl-C in a terminal reaches zipper-launch alone, and a pipe as stdin, whose
//! end tells it that zipper-launch is gone.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, bail};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

use crate::preflight::Prepared;

/// How long the coordinator may take until it listens.
const START_TIMEOUT: Duration = Duration::from_mins(1);
const LAST_LINES: usize = 20;

/// Running processes; dropping them ends them.
pub(crate) struct Processes {
    coordinator: Child,
    agents: Vec<Child>,
    address: String,
    logs: PathBuf,
}

impl Processes {
    pub(crate) async fn start(prepared: &Prepared) -> anyhow::Result<Self> {
        let crew = &prepared.crew;
        let world_size = crew.workers();
        let run = prepared.store.url();
        let mut coordinator = command(
            &beside("zipper-coordinator")?,
            &prepared.logs.join("coordinator.log"),
        )?
        .args(["--run", run, "--world-size", &world_size.to_string()])
        .args(["--resume-step", &prepared.resume.to_string()])
        .args(prepared.bank_memory.map(|bytes| format!("--bank-bytes={bytes}")))
        .stdout(Stdio::piped())
        .spawn()
        .context("the coordinator cannot be started")?;
        let address = read_address(&mut coordinator).await.with_context(|| {
            let log = prepared.logs.join("coordinator.log");
            format!(
                "the coordinator did not start; the end of its log `{}`:\n{}",
                log.display(),
                last_lines(&log).join("\n")
            )
        })?;
        let address = format!("http://{address}");
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let threads = prepared
            .config
            .runtime
            .threads_per_worker
            .unwrap_or_else(|| (cores / world_size as usize).max(1));
        let this = std::env::current_exe().context("zipper-launch does not know its own path")?;
        let agents = (0..crew.nodes)
            .map(|node| {
                command(&this, &prepared.logs.join(format!("node{node}-agent.log")))?
                    .args([
                        "agent",
                        "--run",
                        run,
                        "--name",
                        &prepared.config.name,
                        "--coordinator",
                        &address,
                    ])
                    .args(["--node-rank", &node.to_string()])
                    .args(["--devices", &crew.devices_of(node).join(",")])
                    .args(["--backend", crew.backend])
                    .args(["--threads", &threads.to_string()])
                    .arg("--logs")
                    .arg(&prepared.logs)
                    .spawn()
                    .with_context(|| format!("the agent of node {node} cannot be started"))
            })
            .collect::<anyhow::Result<Vec<_>>>()?;
        Ok(Self {
            coordinator,
            agents,
            address,
            logs: prepared.logs.clone(),
        })
    }

    pub(crate) fn coordinator_address(&self) -> &str {
        &self.address
    }

    pub(crate) fn coordinator_log(&self) -> PathBuf {
        self.logs.join("coordinator.log")
    }

    pub(crate) fn end_of_coordinator_log(&self) -> String {
        last_lines(&self.coordinator_log()).join("\n")
    }

    /// Waits for all to end by themselves; ends those that do not within `patience`.
    pub(crate) async fn wait(&mut self, patience: Duration) {
        // Waiting closes stdin, which would tell a process that zipper-launch is gone.
        let mut children: Vec<&mut Child> = self.agents.iter_mut().chain([&mut self.coordinator]).collect();
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
        .process_group(0)
        .kill_on_drop(true);
    Ok(command)
}

/// The program called `name` beside this one.
pub(crate) fn beside(name: &str) -> anyhow::Result<PathBuf> {
    let this = std::env::current_exe().context("zipper-launch does not know its own path")?;
    let path = this.with_file_name(name);
    if !path.exists() {
        bail!(
            "`{}` is missing: build the workspace with `cargo build`, or install all three programs together",
            path.display()
        );
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

/// The address that the coordinator prints once it listens.
async fn read_address(coordinator: &mut Child) -> anyhow::Result<String> {
    let stdout = coordinator
        .stdout
        .take()
        .context("the coordinator has no stdout")?;
    let mut line = String::new();
    let mut reader = BufReader::new(stdout);
    let reading = reader.read_line(&mut line);
    tokio::time::timeout(START_TIMEOUT, reading)
        .await
        .with_context(|| format!("zipper-launch waited {START_TIMEOUT:?} for the coordinator's address"))??;
    let value: serde_json::Value = serde_json::from_str(&line)
        .with_context(|| format!("it printed `{}` instead of its address", line.trim()))?;
    Ok(value["address"]
        .as_str()
        .context("its first line has no address")?
        .to_owned())
}
