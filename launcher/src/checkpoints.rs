//! `zipper-launch checkpoints`: what a run can be resumed from.

use anyhow::Context;
use serde::Serialize;
use zipper_checkpoint::{CheckpointError, CheckpointSummary, Checkpoints, ErrorKind, RunStore, layout};
use zipper_cli::{ExitStatus, unusable};
use zipper_types::Step;

use crate::run::print;

#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Run URL: a folder, `file:///dir` or `s3://bucket/prefix`.
    #[arg(long)]
    run: String,
    /// Read every byte again and compare it with the manifest.
    #[arg(long)]
    verify: bool,
    /// Print one JSON document.
    #[arg(long)]
    json: bool,
}

/// One line of the list.
#[derive(Debug, Serialize)]
struct Line {
    id: String,
    stage: Option<String>,
    created: Option<String>,
    /// How many workers wrote it.
    world_size: Option<u32>,
    bytes: u64,
    state: String,
}

/// What is there.
#[derive(Debug, Serialize)]
struct Report {
    checkpoints: Vec<Line>,
    /// The one that `--resume` would go on from, as far as it is known without reading it.
    newest: Option<String>,
}

pub(crate) async fn run(arguments: &Arguments) -> anyhow::Result<ExitStatus> {
    let store = RunStore::open(&arguments.run).map_err(unusable)?;
    let checkpoints = store.checkpoints();
    let list = checkpoints.list().await.map_err(unusable)?;
    let mut damaged = !list.unreadable.is_empty();
    let mut lines = Vec::new();
    let mut newest = None;
    for checkpoint in &list.checkpoints {
        let state = if arguments.verify {
            eprintln!("reading {}", checkpoint.id);
            match verify(&checkpoints, checkpoint).await? {
                Verified::Whole => "verified".to_owned(),
                Verified::Retired => continue,
                Verified::Damaged(error) => {
                    damaged = true;
                    lines.push(line(checkpoint, format!("damaged: {error}")));
                    continue;
                }
            }
        } else {
            "whole".to_owned()
        };
        newest = Some(checkpoint.id.clone());
        lines.push(line(checkpoint, state));
    }
    let newest_step = list.checkpoints.last().map(|checkpoint| checkpoint.manifest.step);
    lines.extend(
        list.unreadable
            .iter()
            .map(|(step, error)| line_without_manifest(*step, 0, format!("damaged: {error}"))),
    );
    lines.extend(list.leftovers.iter().map(|leftover| {
        let state = if newest_step.is_some_and(|newest| leftover.step < newest) {
            "interrupted: no manifest"
        } else {
            "interrupted or being written: no manifest"
        };
        line_without_manifest(leftover.step, leftover.bytes, state.to_owned())
    }));
    lines.sort_by(|a, b| a.id.len().cmp(&b.id.len()).then_with(|| a.id.cmp(&b.id)));
    let report = Report {
        checkpoints: lines,
        newest,
    };
    print(&if arguments.json {
        serde_json::to_string(&report).context("the list cannot be written as JSON")?
    } else {
        table(&report)
    })?;
    Ok(if damaged {
        ExitStatus::Failed
    } else {
        ExitStatus::Done
    })
}

/// What reading a checkpoint again has shown.
enum Verified {
    Whole,
    Damaged(CheckpointError),
    /// The run has retired it meanwhile.
    Retired,
}

async fn verify(checkpoints: &Checkpoints, checkpoint: &CheckpointSummary) -> anyhow::Result<Verified> {
    match checkpoints.verify(checkpoint.manifest.step).await {
        Ok(_) => Ok(Verified::Whole),
        Err(error) => match error.kind() {
            ErrorKind::Damaged => Ok(Verified::Damaged(error)),
            ErrorKind::NotFound => Ok(Verified::Retired),
            // What the store does not give is not damaged.
            _ => Err(unusable(error)),
        },
    }
}

fn line(checkpoint: &CheckpointSummary, state: String) -> Line {
    let manifest = &checkpoint.manifest;
    Line {
        id: checkpoint.id.clone(),
        stage: Some(manifest.stage.to_string()),
        created: Some(manifest.created.clone()),
        world_size: Some(manifest.world_size.0),
        bytes: manifest.total_bytes(),
        state,
    }
}

/// The line of a checkpoint whose manifest is not there or cannot be read.
fn line_without_manifest(step: Step, bytes: u64, state: String) -> Line {
    Line {
        id: layout::checkpoint_id(step),
        stage: None,
        created: None,
        world_size: None,
        bytes,
        state,
    }
}

fn table(report: &Report) -> String {
    let mut table = zipper_cli::table(
        ["checkpoint", "stage", "created", "workers", "bytes", "state"],
        [3, 4],
    );
    let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
    for line in &report.checkpoints {
        table.add_row([
            line.id.clone(),
            or_dash(line.stage.clone()),
            or_dash(line.created.clone()),
            or_dash(line.world_size.map(|workers| workers.to_string())),
            line.bytes.to_string(),
            line.state.clone(),
        ]);
    }
    let newest = report
        .newest
        .as_deref()
        .map_or("there is nothing to resume from".to_owned(), |id| {
            format!("a resumed run goes on from {id}")
        });
    format!("{table}\n{newest}")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: what is known of a checkpoint is in its row, and what cannot be known is a dash.
    #[test]
    fn rows_say_what_is_known() {
        let whole = Line {
            stage: Some("zipper".to_owned()),
            created: Some("2026-01-02T03:04:05Z".to_owned()),
            world_size: Some(4),
            ..line_without_manifest(Step(500), 1234, "verified".to_owned())
        };
        let left = line_without_manifest(Step(600), 77, "interrupted: no manifest".to_owned());
        let mut report = Report {
            checkpoints: vec![whole, left],
            newest: Some("step-00000500".to_owned()),
        };
        let printed = table(&report);
        let row = |id: &str| -> Vec<&str> {
            let line = printed.lines().find(|line| line.contains(id));
            line.unwrap_or_default().split_whitespace().collect()
        };
        assert_eq!(
            row("step-00000500"),
            [
                "step-00000500",
                "zipper",
                "2026-01-02T03:04:05Z",
                "4",
                "1234",
                "verified"
            ]
        );
        assert_eq!(row("step-00000600")[..5], ["step-00000600", "-", "-", "-", "77"]);
        assert!(
            printed.ends_with("a resumed run goes on from step-00000500"),
            "{printed}"
        );
        report.newest = None;
        assert!(table(&report).ends_with("there is nothing to resume from"));
    }
}
