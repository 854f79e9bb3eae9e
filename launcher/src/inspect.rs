//! `zipper-launch inspect`: pictures and tables of what a run's router learnt.

use std::process::Stdio;

use anyhow::Context;
use bytes::Bytes;
use tokio::process::Command;
use zipper_checkpoint::RunStore;
use zipper_checkpoint::layout::checkpoint_id;
use zipper_cli::{ExitStatus, unusable};
use zipper_report::insight::{self, Insight};
use zipper_types::Step;

use crate::processes::beside;
use crate::run::print;

/// Folder of the reports, below the run.
const INSPECT: &str = "inspect";

#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Run URL: a folder, `file:///dir` or `s3://bucket/prefix`.
    #[arg(long)]
    run: String,
    /// Checkpoint, `step-00000500` or `500`. Left out: the newest that is whole.
    #[arg(long)]
    checkpoint: Option<String>,
    /// Look at the mean of the N best checkpoints, as `zipper-worker eval --average` does.
    #[arg(long, value_name = "N", conflicts_with = "checkpoint")]
    average: Option<u32>,
    /// Print all gates and similarities as one JSON document; write nothing.
    #[arg(long)]
    json: bool,
}

pub(crate) async fn run(arguments: &Arguments) -> anyhow::Result<ExitStatus> {
    // Checkpoints are read by the program that knows tensors.
    let mut worker = Command::new(beside("zipper-worker")?);
    worker.args(["inspect", "--run", &arguments.run]);
    if let Some(checkpoint) = &arguments.checkpoint {
        worker.args(["--checkpoint", checkpoint]);
    }
    if let Some(count) = arguments.average {
        worker.args(["--average", &count.to_string()]);
    }
    let output = worker
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .kill_on_drop(true)
        .spawn()
        .context("zipper-worker cannot be started")?
        .wait_with_output()
        .await
        .context("zipper-worker was lost")?;
    match output.status.code() {
        Some(0) => {}
        // It has said why.
        Some(code) if code == i32::from(ExitStatus::Usage.code()) => return Ok(ExitStatus::Usage),
        _ => anyhow::bail!("zipper-worker inspect ended with {}", output.status),
    }
    let text = String::from_utf8(output.stdout).context("zipper-worker inspect did not print text")?;
    if arguments.json {
        print(text.trim_end())?;
        return Ok(ExitStatus::Done);
    }
    let insight: Insight =
        serde_json::from_str(&text).context("zipper-worker inspect printed something else")?;
    let store = RunStore::open(&arguments.run).map_err(unusable)?;
    let folder = format!("{INSPECT}/{}", checkpoint_id(Step(insight.step)));
    for (name, contents) in insight::files(&insight)? {
        store
            .put(&format!("{folder}/{name}"), Bytes::from(contents))
            .await
            .map_err(unusable)?;
    }
    print(&insight::summary(&insight))?;
    let file = |name: &str| store.object_url(&format!("{folder}/{name}"));
    print(&format!("{}\n{}", file("inspect.html"), file("gates.csv")))?;
    Ok(ExitStatus::Done)
}
