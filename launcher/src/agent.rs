//! The agent of one node: starts its workers, watches how they end, ends with them.

use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tonic::transport::{Channel, Endpoint};
use zipper_cli::{ExitStatus, when_parent_is_gone};
use zipper_proto::v1;
use zipper_proto::v1::worker_service_client::WorkerServiceClient;
use zipper_types::WorkerId;

use crate::processes::{beside, command, last_lines};

const REPORT_TIMEOUT: Duration = Duration::from_secs(5);

#[derive(Debug, clap::Args)]
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
    /// Folder for the workers' logs.
    #[arg(long)]
    logs: PathBuf,
}

pub(crate) async fn run(arguments: &Arguments) -> anyhow::Result<ExitStatus> {
    let worker = beside("zipper-worker")?;
    let channel = Endpoint::from_shared(arguments.coordinator.clone())
        .context("the coordinator's address")?
        .timeout(REPORT_TIMEOUT)
        .connect_lazy();
    let mut workers = JoinSet::new();
    for (local_rank, device) in (0..).zip(&arguments.devices) {
        let log = arguments
            .logs
            .join(format!("node{}-worker{local_rank}.log", arguments.node_rank));
        let mut child = command(&worker, &log)?
            .args([
                "train",
                "--run",
                &arguments.run,
                "--coordinator",
                &arguments.coordinator,
            ])
            .args([
                "--node-rank",
                &arguments.node_rank.to_string(),
                "--local-rank",
                &local_rank.to_string(),
            ])
            .args(["--threads", &arguments.threads.to_string()])
            .args(["--device", device, "--backend", &arguments.backend])
            // c10d warns of what the worker reports itself.
            .env("TORCH_CPP_LOG_LEVEL", "ERROR")
            // A failed collective is an error that the worker tells of, not a reason to kill the process.
            .env("TORCH_NCCL_ASYNC_ERROR_HANDLING", "0")
            .env("TORCH_NCCL_ENABLE_MONITORING", "0")
            .spawn()
            .with_context(|| {
                format!(
                    "worker {local_rank} of node {} cannot be started",
                    arguments.node_rank
                )
            })?;
        // Waiting closes stdin, which would tell the worker that this agent is gone.
        let stdin = child.stdin.take();
        workers.spawn(async move {
            let ended = child.wait().await;
            drop(stdin);
            (local_rank, log, ended)
        });
    }
    let (gone, mut parent_gone) = oneshot::channel();
    when_parent_is_gone(|| {
        let _ = gone.send(());
    });
    let mut status = ExitStatus::Done;
    loop {
        tokio::select! {
            ended = workers.join_next() => {
                let Some(ended) = ended else { return Ok(status) };
                let (local_rank, log, ended) = ended.context("a worker could not be waited for")?;
                let ended = ended.context("a worker could not be waited for")?;
                if !ended.success() && ended.code() != Some(i32::from(ExitStatus::Stopped.code())) {
                    status = ExitStatus::Failed;
                    let worker = WorkerId::new(arguments.node_rank, local_rank);
                    report(&channel, &arguments.name, worker, ended, last_lines(&log)).await;
                }
            },
            _ = &mut parent_gone => {
                // Dropping the workers ends them.
                return Ok(ExitStatus::Failed);
            }
        }
    }
}

/// Tells the coordinator that a worker ended; it may have ended itself by then.
async fn report(
    channel: &Channel,
    run: &str,
    worker: WorkerId,
    ended: std::process::ExitStatus,
    last_lines: Vec<String>,
) {
    tracing::warn!("worker `{worker}` ended: {ended}");
    let member = v1::MemberContext {
        run: run.to_owned(),
        worker_id: worker.0,
        incarnation: 0,
        generation: None,
    };
    let request = v1::ReportWorkerExitRequest {
        member: Some(member),
        exit_code: ended.code(),
        signal: ended.signal(),
        last_lines,
    };
    if let Err(status) = WorkerServiceClient::new(channel.clone())
        .report_worker_exit(request)
        .await
    {
        tracing::debug!("the coordinator does not take the report: {status}");
    }
}
