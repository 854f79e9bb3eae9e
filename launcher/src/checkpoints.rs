//! `zipper-launch checkpoints`: what a run can be resumed from.

use comfy_table::{Table, presets};
use zipper_checkpoint::RunStore;
use zipper_cli::{ExitStatus, UserError};

use crate::run::print;

#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Run URL: `file:///dir` or a folder.
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
struct Line {
    id: String,
    stage: String,
    created: String,
    bytes: u64,
    state: String,
}

pub(crate) async fn run(arguments: &Arguments) -> anyhow::Result<ExitStatus> {
    let store = RunStore::open(&arguments.run).map_err(|error| UserError::new(error.to_string()))?;
    let checkpoints = store.checkpoints();
    let list = checkpoints.list().await?;
    let mut damaged = !list.unreadable.is_empty();
    let mut lines = Vec::new();
    for checkpoint in &list.checkpoints {
        let manifest = &checkpoint.manifest;
        let state = if arguments.verify {
            match checkpoints.verify(manifest.step).await {
                Ok(_) => "verified".to_owned(),
                Err(error) => {
                    damaged = true;
                    format!("damaged: {error}")
                }
            }
        } else {
            "whole".to_owned()
        };
        lines.push(Line {
            id: checkpoint.id.clone(),
            stage: manifest.stage.to_string(),
            created: manifest.created.clone(),
            bytes: manifest.parts.iter().map(|part| part.bytes).sum(),
            state,
        });
    }
    for (step, error) in &list.unreadable {
        lines.push(Line {
            id: format!("step-{:08}", step.0),
            stage: "-".to_owned(),
            created: "-".to_owned(),
            bytes: 0,
            state: format!("damaged: {error}"),
        });
    }
    for leftover in &list.leftovers {
        lines.push(Line {
            id: format!("step-{:08}", leftover.step.0),
            stage: "-".to_owned(),
            created: "-".to_owned(),
            bytes: leftover.bytes,
            state: "interrupted: no manifest".to_owned(),
        });
    }
    print(&if arguments.json {
        json(&lines)
    } else {
        table(&lines)
    })?;
    Ok(if damaged {
        ExitStatus::Failed
    } else {
        ExitStatus::Done
    })
}

fn json(lines: &[Line]) -> String {
    let lines: Vec<_> = lines
        .iter()
        .map(|line| {
            serde_json::json!({"id": line.id, "stage": line.stage, "created": line.created, "bytes": line.bytes,
                               "state": line.state})
        })
        .collect();
    serde_json::json!({ "checkpoints": lines }).to_string()
}

fn table(lines: &[Line]) -> String {
    let mut table = Table::new();
    table.load_style(presets::UTF8_HORIZONTAL_ONLY);
    table.set_header(["checkpoint", "stage", "created", "bytes", "state"]);
    for line in lines {
        table.add_row([
            &line.id,
            &line.stage,
            &line.created,
            &line.bytes.to_string(),
            &line.state,
        ]);
    }
    table.to_string()
}
