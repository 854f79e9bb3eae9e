//! `zipper-launch stop`: ends a run with a checkpoint, from any machine that reaches its store.
//!
//! What is asked for is written beside the claim of the run's coordinator, which finds it there: who may write in the run may
//! stop it, and nothing has to be reached.

use std::time::{Duration, SystemTime};

use anyhow::{Context, bail};
use nix::unistd::{Uid, User};
use serde::Serialize;
use tokio::time::{Instant, sleep};
use zipper_checkpoint::RunStore;
use zipper_checkpoint::lease::{self, Claim, StopRequest};
use zipper_cli::{ExitStatus, hostname, unusable};
use zipper_config::RunConfig;

use crate::run::print;
use crate::status::{look, open};

const LOOK_EVERY: Duration = Duration::from_secs(1);

#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Run URL: a folder, `file:///dir` or `s3://bucket/prefix`.
    #[arg(long)]
    run: String,
    /// How long to wait for its end.
    #[arg(long, default_value = "10m", value_parser = humantime::parse_duration)]
    timeout: Duration,
    /// Print one JSON document.
    #[arg(long)]
    json: bool,
}

/// What is printed as JSON.
#[derive(Debug, Serialize)]
struct Document {
    run: String,
    /// Somebody made the run when it was asked to stop.
    was_running: bool,
    /// As `status` has it.
    state: &'static str,
    detail: String,
    /// Completed steps.
    step: u64,
    /// The step of the newest checkpoint.
    checkpoint: Option<u64>,
}

/// What became of the request.
enum Outcome {
    /// Nobody made the run.
    Idle,
    /// Its coordinator has ended it.
    Ended,
    /// Its coordinator gave no sign of life.
    Silent,
}

pub(crate) async fn run(arguments: &Arguments) -> anyhow::Result<ExitStatus> {
    let (store, config) = open(&arguments.run).await?;
    let outcome = stop(&store, &config, arguments.timeout).await?;
    let (past, _) = look(&store, &config).await?;
    let picture = past.picture;
    let document = Document {
        run: store.url().to_owned(),
        was_running: matches!(outcome, Outcome::Ended),
        state: picture.phase.name(),
        detail: picture.detail.clone(),
        step: picture.step,
        checkpoint: picture.checkpoints.last().map(|checkpoint| checkpoint.step),
    };
    print(&if arguments.json {
        serde_json::to_string(&document).context("the result cannot be written as JSON")?
    } else {
        document.describe(&outcome)
    })?;
    Ok(ExitStatus::Done)
}

impl Document {
    fn describe(&self, outcome: &Outcome) -> String {
        let begun = match outcome {
            Outcome::Idle => "nobody makes this run: there is nothing to stop; it is ",
            Outcome::Silent => {
                "the run's coordinator gives no sign of life: there is nothing to stop; the run is "
            }
            Outcome::Ended => "",
        };
        let step = self.step;
        let checkpoint = match self.checkpoint {
            Some(checkpoint) => format!("its newest checkpoint is that of step {checkpoint}"),
            None => "it has no checkpoint".to_owned(),
        };
        format!("{begun}{} after step {step}; {checkpoint}", self.state)
    }
}

/// Whether somebody asked the newest coordinator of a run to stop it.
///
/// # Errors
/// If the store fails.
pub(crate) async fn was_asked_for(store: &RunStore) -> anyhow::Result<bool> {
    Ok(match lease::newest(store).await? {
        Some(claim) => lease::stop_request(store, claim.epoch).await?.is_some(),
        None => false,
    })
}

/// Asks for the end of the run and waits for it.
async fn stop(store: &RunStore, config: &RunConfig, patience: Duration) -> anyhow::Result<Outcome> {
    let request = StopRequest {
        user: user(),
        host: hostname(),
        at: humantime::format_rfc3339_seconds(SystemTime::now()).to_string(),
    };
    let started = Instant::now();
    let mut asked: Option<(Claim, Instant)> = None;
    loop {
        let claim = lease::newest(store).await.map_err(unusable)?;
        let Some(claim) = claim.filter(|claim| !claim.released) else {
            return Ok(if asked.is_some() {
                Outcome::Ended
            } else {
                Outcome::Idle
            });
        };
        asked = match asked {
            Some((before, since)) if before == claim => {
                // As long as another coordinator would wait before it took the run.
                if since.elapsed() > config.elastic.lease_ttl {
                    return Ok(Outcome::Silent);
                }
                Some((before, since))
            }
            before => {
                if before.is_none_or(|(before, _)| before.epoch != claim.epoch) {
                    lease::ask_to_stop(store, claim.epoch, &request)
                        .await
                        .map_err(unusable)?;
                    eprintln!(
                        "asked the coordinator on {} (process {}) to stop the run with a checkpoint",
                        claim.holder.host, claim.holder.pid
                    );
                }
                Some((claim, Instant::now()))
            }
        };
        if started.elapsed() > patience
            && let Some((Claim { holder, .. }, _)) = asked
        {
            bail!(
                "the coordinator on {} (process {}) was asked to stop the run {patience:?} ago and has not ended it: `zipper-launch \
                 status --run {}` says what it does",
                holder.host,
                holder.pid,
                store.url()
            );
        }
        sleep(LOOK_EVERY).await;
    }
}

/// Who runs this program.
fn user() -> String {
    let uid = Uid::effective();
    match User::from_uid(uid) {
        Ok(Some(user)) => user.name,
        _ => format!("user {uid}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn people_are_told_what_a_stop_has_done() {
        let document = |checkpoint| Document {
            run: "file:///runs/a".to_owned(),
            was_running: true,
            state: "stopped",
            detail: String::new(),
            step: 12,
            checkpoint,
        };
        for (outcome, checkpoint, told) in [
            (
                Outcome::Ended,
                Some(12),
                "stopped after step 12; its newest checkpoint is that of step 12",
            ),
            (
                Outcome::Idle,
                Some(8),
                "nobody makes this run: there is nothing to stop; it is stopped after step 12; its newest checkpoint is that of step 8",
            ),
            (
                Outcome::Silent,
                None,
                "the run's coordinator gives no sign of life: there is nothing to stop; the run is stopped after step 12; it has no \
                 checkpoint",
            ),
        ] {
            assert_eq!(document(checkpoint).describe(&outcome), told);
        }
    }
}
