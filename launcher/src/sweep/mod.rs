//! `zipper-launch sweep`: the runs of a comparison, one after another or as Slurm jobs, and the report of what came out.
//!
//! Every run is an ordinary one in a folder of its own, made by a zipper-launch of its own: whatever holds for runs holds here. Runs that
//! have their result are not made again, so the same command goes on after anything.

mod gather;
mod jobs;

use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::Context;
use bytes::Bytes;
use tokio::process::Command;
use zipper_checkpoint::RunStore;
use zipper_cli::{ExitStatus, UserError, unusable};
use zipper_config::RunConfig;
use zipper_config::sweep::{Sweep, SweepConfig, SweepRun};
use zipper_report::render;
use zipper_types::Step;

use crate::processes::this_program;
use crate::run::print;
use crate::signals::Signals;

/// Folders below that of the comparison.
const STAGE_1: &str = "stage1";
const RUNS: &str = "runs";
const REPORT: &str = "report";

#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// The comparison's YAML file: a configuration, and the keys in which its runs differ.
    #[arg(long)]
    config: PathBuf,
    /// Where everything is kept: a folder, `file:///dir` or `s3://bucket/prefix`. Left out: `./sweeps/<name>`.
    #[arg(long)]
    output: Option<String>,
    /// Show the runs, and which have a result; start nothing.
    #[arg(long, conflicts_with = "report")]
    print: bool,
    /// Write the report of what there is; start nothing.
    #[arg(long)]
    report: bool,
    /// Hand each run in as a Slurm job of its own, instead of making them here. Those that begin with a stage 1 wait for its job. The same
    /// command hands in again what has neither a result nor a job in the queue.
    #[arg(long, conflicts_with_all = ["print", "report"])]
    submit: bool,
    /// Flags for the zipper-launch of every run, behind `--`: `-- --nodes 2 --workers-per-node 4`; with `--submit` those of
    /// `zipper-launch submit`.
    #[arg(last = true)]
    launch: Vec<String>,
}

/// A comparison and where it is kept.
struct Place {
    sweep: Sweep,
    /// Without a slash at its end.
    url: String,
}

/// What became of the runs.
enum Made {
    All,
    /// Names of those that failed.
    Failed(Vec<String>),
    /// With this exit code by the user's wish, or because no other run could be made either.
    Ended(ExitStatus),
}

pub(crate) async fn run(arguments: &Arguments) -> anyhow::Result<ExitStatus> {
    let place = Place::of(arguments)?;
    if arguments.print {
        print(&place.describe().await?)?;
        return Ok(ExitStatus::Done);
    }
    if arguments.submit {
        print(&place.submit(&arguments.launch).await?)?;
        return Ok(ExitStatus::Done);
    }
    let made = if arguments.report {
        Made::All
    } else {
        place.make(&arguments.launch).await?
    };
    if let Made::Ended(status) = made {
        return Ok(status);
    }
    print(&place.report().await?)?;
    Ok(match made {
        Made::Failed(names) => {
            eprintln!(
                "error: failed: {}; the same command makes them again",
                names.join(", ")
            );
            ExitStatus::Failed
        }
        _ => ExitStatus::Done,
    })
}

impl Place {
    fn of(arguments: &Arguments) -> anyhow::Result<Self> {
        let user = |error: &dyn std::error::Error| UserError::new(error.to_string());
        let config = SweepConfig::load(&arguments.config).map_err(|error| user(&error))?;
        let sweep = config.expand(&arguments.config).map_err(|error| user(&error))?;
        let output = arguments
            .output
            .clone()
            .unwrap_or_else(|| format!("./sweeps/{}", sweep.name));
        let store = RunStore::open(&output).map_err(unusable)?;
        Ok(Self {
            sweep,
            url: store.url().trim_end_matches('/').to_owned(),
        })
    }

    fn stage_1_url(&self, run: &SweepRun) -> String {
        format!("{}/{STAGE_1}/{}", self.url, run.name)
    }

    fn run_url(&self, run: &SweepRun) -> String {
        format!("{}/{RUNS}/{}", self.url, run.name)
    }

    /// Every run with its URL and the configuration that it is made with, in the order in which they can be made: each stage 1 before
    /// the first run that begins with it.
    fn in_order(&self) -> Vec<(String, RunConfig)> {
        let mut known = vec![false; self.sweep.stage_1.len()];
        let mut order = Vec::new();
        for run in &self.sweep.runs {
            let config = match run.begins_with {
                Some(index) => {
                    let first = &self.sweep.stage_1[index];
                    let url = self.stage_1_url(first);
                    if !std::mem::replace(&mut known[index], true) {
                        order.push((url.clone(), first.config.clone()));
                    }
                    Sweep::after_stage_1(run, &url)
                }
                None => run.config.clone(),
            };
            order.push((self.run_url(run), config));
        }
        order
    }

    async fn describe(&self) -> anyhow::Result<String> {
        let order = self.in_order();
        let mut lines = Vec::new();
        for (url, config) in &order {
            let steps = config.training.align.steps + config.training.zipper.steps;
            let state = if has_result(url, config).await? {
                "done"
            } else {
                "to do"
            };
            lines.push(format!("{state:<6} {steps:>7} steps  {url}"));
        }
        let steps = order
            .iter()
            .map(|(_, config)| config.training.align.steps + config.training.zipper.steps);
        lines.push(format!("{} runs, {} steps", order.len(), steps.sum::<u64>()));
        Ok(lines.join("\n"))
    }

    /// Makes every run that has no result yet.
    async fn make(&self, flags: &[String]) -> anyhow::Result<Made> {
        let mut signals = Signals::new()?;
        let mut failed = Vec::new();
        let order = self.in_order();
        for (index, (url, config)) in order.iter().enumerate() {
            if has_result(url, config).await? {
                continue;
            }
            let begins_with_failed = config
                .training
                .start_from
                .as_ref()
                .and_then(|start| start.run.as_ref());
            if begins_with_failed.is_some_and(|first| failed.contains(first)) {
                failed.push(url.clone());
                continue;
            }
            eprintln!("run {} of {}: {url}", index + 1, order.len());
            match launch(url, config, flags, &mut signals).await? {
                ExitStatus::Done => {}
                ExitStatus::Failed => failed.push(url.clone()),
                status => return Ok(Made::Ended(status)),
            }
        }
        Ok(if failed.is_empty() {
            Made::All
        } else {
            Made::Failed(failed)
        })
    }

    /// Writes the report; returns its table, and where it is.
    async fn report(&self) -> anyhow::Result<String> {
        let comparison = gather::comparison(self).await?;
        let store = RunStore::open(&self.url).map_err(unusable)?;
        for (name, contents) in render::files(&comparison)? {
            store
                .put(&format!("{REPORT}/{name}"), Bytes::from(contents))
                .await
                .map_err(unusable)?;
        }
        Ok(format!(
            "{}\n{}",
            render::text(&comparison),
            ["md", "csv", "html"]
                .map(|kind| store.object_url(&format!("{REPORT}/report.{kind}")))
                .join("\n")
        ))
    }
}

/// Whether a run has come to its end: with a checkpoint of its last step and, if it has test sets, its table.
async fn has_result(url: &str, config: &RunConfig) -> anyhow::Result<bool> {
    let store = RunStore::open(url).map_err(unusable)?;
    let last = Step(config.training.align.steps + config.training.zipper.steps);
    if store.checkpoints().latest().await.map_err(unusable)? != Some(last) {
        return Ok(false);
    }
    Ok(config.evaluation.tests.is_empty()
        || gather::table(&store)
            .await?
            .is_some_and(|table| table.step == last))
}

/// Makes one run by a zipper-launch of its own, which gets the signals that this one gets.
async fn launch(
    url: &str,
    config: &RunConfig,
    flags: &[String],
    signals: &mut Signals,
) -> anyhow::Result<ExitStatus> {
    let file = tempfile::Builder::new()
        .prefix("zipper-")
        .suffix(".yaml")
        .tempfile();
    let file = file.context("no temporary file can be made")?;
    std::fs::write(file.path(), config.to_yaml()).context("the configuration cannot be written")?;
    let mut child = Command::new(this_program()?)
        .args([
            Path::new("--config"),
            file.path(),
            Path::new("--run"),
            Path::new(url),
        ])
        .args(flags)
        .stdin(Stdio::null())
        // Ctrl-C of a terminal would reach it twice, and the second one ends it at once.
        .process_group(0)
        .spawn()
        .context("zipper-launch cannot be started")?;
    let mut asked_to_stop = false;
    loop {
        tokio::select! {
            ended = child.wait() => {
                let code = ended.context("zipper-launch was lost")?.code();
                let status = code.and_then(status_of).unwrap_or(ExitStatus::Failed);
                // Whatever became of this run, no other is to be made now.
                return Ok(if asked_to_stop { ExitStatus::Stopped } else { status });
            }
            signal = signals.next() => {
                asked_to_stop = true;
                if let Some(pid) = child.id() {
                    signal.pass_on(pid);
                }
            }
        }
    }
}

fn status_of(code: i32) -> Option<ExitStatus> {
    [
        ExitStatus::Done,
        ExitStatus::Failed,
        ExitStatus::Usage,
        ExitStatus::Stopped,
    ]
    .into_iter()
    .find(|status| i32::from(status.code()) == code)
}
