//! The runs of a comparison as Slurm jobs: each one a job of its own, handed in at once. Those that begin with a stage 1 wait for its job
//! to succeed, and are cancelled by Slurm if it does not.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, bail};
use bytes::Bytes;
use serde_json::Value;
use tokio::process::Command;
use zipper_checkpoint::RunStore;
use zipper_cli::UserError;
use zipper_config::RunConfig;

use super::{Place, has_result};
use crate::preflight;
use crate::processes::this_program;

/// Which job each run was handed in as, by the run's URL; beside the comparison's runs.
const JOBS: &str = "jobs.json";
/// How long Slurm may take to answer.
const ASK_TIMEOUT: Duration = Duration::from_mins(1);

impl Place {
    /// Hands in every run that has no result and no job in Slurm's queue; returns a line for each run that has none.
    pub(super) async fn submit(&self, flags: &[String]) -> anyhow::Result<String> {
        let store = RunStore::open(&self.url)?;
        let mut jobs: BTreeMap<String, String> = match store.get_if_there(JOBS).await? {
            Some(bytes) => serde_json::from_slice(&bytes).with_context(|| store.object_url(JOBS))?,
            None => BTreeMap::new(),
        };
        let folder = self.config_folder(&store)?;
        let mut lines = Vec::new();
        for (url, config) in self.in_order() {
            if has_result(&url, &config).await? {
                continue;
            }
            if let Some(job) = jobs.get(&url)
                && is_queued(job).await?
            {
                lines.push(format!("job {job:<10} in the queue  {url}"));
                continue;
            }
            let start = config.training.start_from.as_ref();
            let first = start.and_then(|start| start.run.as_ref());
            // A stage 1 that has a result has no job here by now.
            let waits_for = match first.and_then(|first| jobs.get(first)) {
                Some(job) if is_queued(job).await? => Some(job.clone()),
                _ => None,
            };
            let job = self
                .hand_in(&folder, &url, &config, waits_for.as_deref(), flags)
                .await?;
            lines.push(format!("job {job:<10} handed in     {url}"));
            jobs.insert(url, job);
            // At once: what is known of is not handed in twice.
            let bytes = serde_json::to_vec_pretty(&jobs).context("numbers of jobs are JSON")?;
            store.put(JOBS, Bytes::from(bytes)).await?;
        }
        if lines.is_empty() {
            lines.push("every run has its result; `--report` writes the report".to_owned());
        }
        Ok(lines.join("\n"))
    }

    /// Where jobs read their configurations: beside the comparison, or where it is a bucket, below the folder of this command.
    fn config_folder(&self, store: &RunStore) -> anyhow::Result<PathBuf> {
        let beside = preflight::local_folder(store);
        let beside = beside.unwrap_or_else(|| PathBuf::from("sweeps").join(&self.sweep.name));
        let folder = std::path::absolute(beside.join("configs")).context("the current folder is gone")?;
        std::fs::create_dir_all(&folder)
            .map_err(|error| UserError::new(format!("cannot make `{}`: {error}", folder.display())))?;
        Ok(folder)
    }

    /// Hands in one run by `zipper-launch submit`; the number of its job.
    async fn hand_in(
        &self,
        folder: &std::path::Path,
        url: &str,
        config: &RunConfig,
        waits_for: Option<&str>,
        flags: &[String],
    ) -> anyhow::Result<String> {
        let file = folder.join(format!("{}.yaml", config.name));
        std::fs::write(&file, config.to_yaml())
            .with_context(|| format!("cannot write `{}`", file.display()))?;
        let mut command = Command::new(this_program()?);
        command
            .arg("submit")
            .arg("--config")
            .arg(&file)
            .args(["--run", url])
            .args(flags);
        if let Some(job) = waits_for {
            command.arg(format!("--sbatch=--dependency=afterok:{job}"));
            command.arg("--sbatch=--kill-on-invalid-dep=yes");
        }
        let output = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .output()
            .await
            .context("zipper-launch cannot be started")?;
        let said = String::from_utf8_lossy(&output.stderr);
        let said = said.trim();
        if !output.status.success() {
            let message = format!(
                "`{}` could not be handed in: {}",
                config.name,
                said.trim_start_matches("error: ")
            );
            // What another run would be refused for, too.
            return Err(UserError::new(message).into());
        }
        let printed = String::from_utf8_lossy(&output.stdout);
        job_of(&printed)
            .with_context(|| format!("zipper-launch submit did not say the number of the job: {said}"))
    }
}

/// The number of the job in what `zipper-launch submit` printed, which is a document if `--json` is one of the flags.
fn job_of(printed: &str) -> Option<String> {
    let job = match serde_json::from_str(printed) {
        Ok(Value::Object(document)) => match document.get("job")? {
            Value::String(job) => job.clone(),
            job => job.to_string(),
        },
        _ => printed.trim().to_owned(),
    };
    // A script, of `--print`, is none.
    let is_job = !job.is_empty() && !job.contains(char::is_whitespace);
    is_job.then_some(job)
}

/// Whether a job waits or runs. One that Slurm does not know is over.
async fn is_queued(job: &str) -> anyhow::Result<bool> {
    let mut squeue = Command::new("squeue");
    squeue
        .args(["--noheader", "--format=%T", "--jobs", job])
        .kill_on_drop(true);
    let output = tokio::time::timeout(ASK_TIMEOUT, squeue.output()).await;
    let output = output
        .with_context(|| format!("zipper-launch waited {ASK_TIMEOUT:?} for `squeue`"))?
        .map_err(|error| {
            UserError::new(format!("`squeue` cannot be started: {error}"))
                .hint("call this where jobs are submitted")
        })?;
    if output.status.success() {
        return Ok(!String::from_utf8_lossy(&output.stdout).trim().is_empty());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    if said.contains("Invalid job id") {
        return Ok(false);
    }
    bail!("`squeue` failed ({}): {}", output.status, said.trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_of_the_job_is_found_in_both_forms() {
        for (printed, job) in [
            ("4711\n", Some("4711")),
            (
                "{\"job\": 4711, \"run\": \"s3://b/r\", \"script\": \"#!/bin/bash\"}\n",
                Some("4711"),
            ),
            ("{\"job\": \"a1\"}", Some("a1")),
            ("{\"script\": \"#!/bin/bash\"}", None),
            ("#!/bin/bash\necho 1\n", None),
            ("\n", None),
        ] {
            assert_eq!(job_of(printed).as_deref(), job, "{printed}");
        }
    }
}
