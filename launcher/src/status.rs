//! `zipper-launch status`: how a run stands, whether a coordinator runs or not.

use std::fmt::Write;
use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

use anyhow::Context;
use comfy_table::{CellAlignment, Table, presets};
use serde::Serialize;
use tokio::net::TcpListener;
use tokio::time::sleep;
use zipper_checkpoint::lease;
use zipper_checkpoint::{ErrorKind, RunStore, layout};
use zipper_cli::{ExitStatus, UserError, unusable};
use zipper_config::RunConfig;
use zipper_watch::page::{self, Access, Shown};
use zipper_watch::picture::Phase;
use zipper_watch::{Past, Picture, events};

use crate::display::span;
use crate::preflight::no_run;
use crate::run::print;

/// A coordinator writes the picture every ten seconds: one that has not for so long is gone.
const SILENT_AFTER: Duration = Duration::from_mins(1);
/// How often the page looks again.
const LOOK_EVERY: Duration = Duration::from_secs(10);
/// Lines of the timeline that people are shown.
const NEWEST: usize = 8;

#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Run URL: a folder, `file:///dir` or `s3://bucket/prefix`.
    #[arg(long)]
    run: String,
    /// Print one JSON document.
    #[arg(long)]
    json: bool,
    /// Serve the status page from what the run has left, also of a run that is over, until Ctrl-C; on an address of loopback.
    #[arg(long, value_name = "ADDRESS", num_args = 0..=1, default_missing_value = "127.0.0.1:0", conflicts_with = "json")]
    page: Option<SocketAddr>,
}

/// What is printed as JSON.
#[derive(Debug, Serialize)]
struct Document<'a> {
    /// Whether the run's claim is held; who holds it may have crashed a moment ago.
    claimed: bool,
    /// Completed steps of both stages together.
    last_step: u64,
    /// Share of the time that was effective, 0 to 1.
    effective_training_ratio: Option<f64>,
    #[serde(flatten)]
    picture: &'a Picture,
}

pub(crate) async fn run(arguments: &Arguments) -> anyhow::Result<ExitStatus> {
    let (store, config) = open(&arguments.run).await?;
    if let Some(address) = arguments.page {
        return serve_page(&store, &config, address).await;
    }
    let (Past { picture, .. }, claimed) = look(&store, &config).await?;
    print(&if arguments.json {
        let document = Document {
            claimed,
            last_step: picture.last_step(),
            effective_training_ratio: picture.times.effective(),
            picture: &picture,
        };
        serde_json::to_string(&document).context("the status cannot be written as JSON")?
    } else {
        render(&picture)
    })?;
    Ok(ExitStatus::Done)
}

/// A run that exists, and its configuration.
///
/// # Errors
/// The user's to mend if there is no run at that URL.
pub(crate) async fn open(url: &str) -> anyhow::Result<(RunStore, RunConfig)> {
    let store = RunStore::open(url).map_err(unusable)?;
    let config = match store.get(layout::RUN_CONFIG).await {
        Ok(config) => config,
        Err(error) if error.kind() == ErrorKind::NotFound => {
            return Err(no_run(&store).into());
        }
        Err(error) => return Err(unusable(error)),
    };
    let config = std::str::from_utf8(&config).context("run.yaml is not UTF-8")?;
    let config = zipper_config::from_str(config, layout::RUN_CONFIG, &[])
        .map_err(|error| UserError::new(error.to_string()))?;
    Ok((store, config))
}

/// What the run has left, and whether its claim is held.
pub(crate) async fn look(store: &RunStore, config: &RunConfig) -> anyhow::Result<(Past, bool)> {
    let mut past = Past::read(store, config).await.map_err(unusable)?;
    let claim = lease::newest(store).await.map_err(unusable)?;
    let claimed = claim.is_some_and(|claim| !claim.released);
    if let Some(detail) = abandoned(&past.picture, claimed) {
        past.picture.ended(Phase::Abandoned, &detail);
    }
    Ok((past, claimed))
}

/// Serves the page until Ctrl-C, and looks again from time to time.
async fn serve_page(store: &RunStore, config: &RunConfig, address: SocketAddr) -> anyhow::Result<ExitStatus> {
    let access = Access::new(address, None).map_err(|problem| {
        UserError::new(problem).hint("give an address of loopback: `--page 127.0.0.1:8080`")
    })?;
    let (past, _) = look(store, config).await?;
    let shown = Shown::new(store.clone(), past.picture, past.series);
    let listener = TcpListener::bind(address)
        .await
        .with_context(|| format!("cannot listen on {address}"))?;
    let own = listener.local_addr().context("the listener has no address")?;
    eprintln!("status page: http://{own}/ (Ctrl-C ends it)");
    let mut server = tokio::spawn(page::serve(listener, shown.clone(), access));
    loop {
        tokio::select! {
            signal = tokio::signal::ctrl_c() => {
                signal.context("Ctrl-C cannot be handled")?;
                return Ok(ExitStatus::Done);
            }
            ended = &mut server => {
                ended.context("the status page")??;
                return Ok(ExitStatus::Failed);
            }
            () = sleep(LOOK_EVERY) => match look(store, config).await {
                Ok((past, _)) => shown.replace(past.picture, past.series),
                Err(error) => eprintln!("warning: {error:#}; the page shows what was there before"),
            },
        }
    }
}

/// Why nobody makes this run any more, if nobody does and none said how it ended.
fn abandoned(picture: &Picture, claimed: bool) -> Option<String> {
    if picture.phase.is_over() {
        return None;
    }
    if picture.coordinator.epoch == 0 {
        return Some("no coordinator has had it yet".to_owned());
    }
    let silent = humantime::parse_rfc3339(&picture.written)
        .ok()
        .and_then(|written| SystemTime::now().duration_since(written).ok())
        .filter(|silent| *silent > SILENT_AFTER);
    let since = match (claimed, silent) {
        (true, None) => return None,
        (true, Some(silent)) => format!(
            "its coordinator has been silent for {}",
            span(silent.as_secs_f64())
        ),
        (false, _) => "no coordinator has it, and none said how it ended".to_owned(),
    };
    Some(format!("{since}; `--resume auto` goes on"))
}

fn render(picture: &Picture) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    let mut row = |name: &str, text: String| {
        if !text.is_empty() {
            table.add_row([name.to_owned(), text]);
        }
    };
    row("run", format!("{} ({})", picture.run.name, picture.run.url));
    row("state", or(picture.phase.name(), ": ", &picture.detail));
    let stage = picture.stage.map(|stage| format!(", stage {stage}"));
    row(
        "step",
        format!(
            "{} of {}{}",
            picture.step,
            picture.last_step(),
            stage.unwrap_or_default()
        ),
    );
    row("time left", picture.eta_seconds.map(span).unwrap_or_default());
    if let Some(latest) = &picture.latest {
        let loss = latest
            .loss
            .map_or_else(|| "not finite".to_owned(), |loss| format!("{loss:.4}"));
        row(
            "training",
            format!(
                "loss {loss}, lr {:.1e}, {:.0} audio-s/s, {:.0} tokens/s, comm {:.0} %",
                latest.lr,
                latest.audio_per_second,
                latest.tokens_per_second,
                100.0 * latest.comm_share
            ),
        );
        let losses = picture.run.languages.iter().filter_map(|lang| {
            let loss = latest.by_language.get(lang)?;
            Some(format!("{lang} {loss:.3}"))
        });
        row("losses", losses.collect::<Vec<_>>().join(", "));
    }
    row("members", members(picture));
    if let Some(checkpoint) = picture.checkpoints.last() {
        row(
            "checkpoint",
            format!("step {}, {}", checkpoint.step, checkpoint.at),
        );
    }
    if picture.times.total_seconds > 0.0 {
        let text = events::effective_time(&picture.times);
        row(
            "time",
            text.trim_start_matches("effective training time: ").to_owned(),
        );
    }
    for alarm in &picture.alarms {
        row("ALARM", format!("{} (since {})", alarm.message, alarm.since));
    }
    if !picture.phase.is_over() {
        row(
            "status page",
            picture.coordinator.page.clone().unwrap_or_default(),
        );
    }
    row("as of", picture.written.clone());
    if let Some(names) = table.column_mut(0) {
        names.set_cell_alignment(CellAlignment::Right);
    }
    let mut text = table.to_string();
    let skipped = picture.timeline.len().saturating_sub(NEWEST);
    for line in &picture.timeline[skipped..] {
        let first = line.text.lines().next().unwrap_or_default();
        let _ = write!(text, "\n{}  {first}", line.at);
    }
    text
}

/// `4 workers in generation 2; nodes: 3 healthy, 1 silent`
fn members(picture: &Picture) -> String {
    if picture.generation == 0 {
        return String::new();
    }
    let nodes = picture.nodes.iter();
    let nodes: Vec<String> = nodes
        .map(|(state, number)| format!("{number} {}", state.replace('_', " ")))
        .collect();
    let mut text = format!(
        "{} in generation {}",
        events::workers(picture.world_size),
        picture.generation
    );
    if !nodes.is_empty() {
        let _ = write!(text, "; nodes: {}", nodes.join(", "));
    }
    text
}

fn or(first: &str, between: &str, second: &str) -> String {
    if second.is_empty() {
        first.to_owned()
    } else {
        format!("{first}{between}{second}")
    }
}

#[cfg(test)]
mod tests {
    use zipper_checkpoint::CheckpointError;

    use super::*;

    /// Goal: a bucket that is not there is the user's to make (exit code 2); one that was there may come back (1).
    #[test]
    fn what_may_pass_is_no_error_of_usage() {
        for (was_there, status) in [(false, ExitStatus::Usage), (true, ExitStatus::Failed)] {
            let error = unusable(CheckpointError::NoBucket {
                action: "read",
                object: "s3://bucket/runs/a/run.yaml".to_owned(),
                was_there,
            });
            let mut printed = Vec::new();
            assert_eq!(zipper_cli::report(&error, &mut printed), status);
            let printed = String::from_utf8(printed).expect("it is text");
            assert!(printed.contains("`s3://bucket/runs/a/run.yaml`"), "{printed}");
            assert_eq!(printed.contains("AWS_ENDPOINT_URL"), was_there, "{printed}");
        }
    }
}
