//! `zipper-launch node`: one task of the Slurm step that holds a run's node agents. Starts the agent of its node, and starts
//! it again when it ends before the run does, as zipper-launch does with agents of its own machine.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep};
use zipper_cli::{ExitStatus, die_with_parent, when_parent_is_gone};

use crate::processes::{command, this_program};
use crate::restarts::Restarts;
use crate::signals::Signals;

#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// This node's index.
    #[arg(long, env = "SLURM_NODEID")]
    node_rank: u32,
    /// Folder for logs; it is made where it is not shared.
    #[arg(long)]
    logs: PathBuf,
    /// Ends of the agent count for this long.
    #[arg(long, value_parser = humantime::parse_duration)]
    restart_window: Duration,
    /// Pause before the agent is started again.
    #[arg(long, value_parser = humantime::parse_duration)]
    restart_backoff: Duration,
    /// Arguments of the agent.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    agent: Vec<String>,
}

pub(crate) async fn run(arguments: &Arguments) -> anyhow::Result<ExitStatus> {
    die_with_parent().context("this process cannot be tied to Slurm's")?;
    let (gone, mut parent_gone) = oneshot::channel();
    when_parent_is_gone(|| {
        let _ = gone.send(());
    });
    let mut signals = Signals::new()?;
    let logs = &arguments.logs;
    std::fs::create_dir_all(logs).with_context(|| format!("cannot make `{}`", logs.display()))?;
    let mut restarts = Restarts::new(arguments.restart_window, arguments.restart_backoff);
    let this = this_program()?;
    let node = arguments.node_rank;
    loop {
        let mut agent = command(&this, &logs.join(format!("node{node}-agent.log")))?
            .args(["agent", "--node-rank", &node.to_string(), "--logs"])
            .arg(logs)
            .args(&arguments.agent)
            .spawn()
            .with_context(|| format!("the agent of node {node} cannot be started"))?;
        let pid = agent.id().context("a process that has just started has an id")?;
        // Waiting closes stdin, which would tell the agent that this process is gone.
        let _stdin = agent.stdin.take();
        let status = loop {
            tokio::select! {
                status = agent.wait() => break status.context("the agent cannot be waited for")?,
                _ = &mut parent_gone => return Ok(ExitStatus::Failed),
                // Slurm may have told the agent already; it does not matter how often.
                asked = signals.next() => asked.pass_on(pid),
            }
        };
        if status.success() {
            return Ok(ExitStatus::Done);
        }
        let (_, pause) = restarts.note(Instant::now());
        tracing::warn!("the agent of node {node} ended ({status}); starting another");
        tokio::select! {
            () = sleep(pause) => {}
            _ = &mut parent_gone => return Ok(ExitStatus::Failed),
        }
    }
}
