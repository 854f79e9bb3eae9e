//! `cargo xtask quickstart`: from a fresh clone to the table of word error rates.

use anyhow::Context;

use crate::demo::{self, Corpus, Model};
use crate::phases::Phases;
use crate::setup::{self, Flavor};
use crate::workspace::{self, Workspace};

const CONFIG: &str = "configs/quickstart.yaml";
const NODES: &str = "2";

/// # Errors
/// What a phase fails with, after its name.
pub(crate) fn run(workspace: &Workspace) -> anyhow::Result<()> {
    run_phases(workspace).context("the quickstart stopped; once mended, run it again: finished work is kept")
}

fn run_phases(workspace: &Workspace) -> anyhow::Result<()> {
    let mut phases = Phases::default();
    phases.run("set-up", || setup::run(workspace, Flavor::Cpu))?;
    phases.run("build", || workspace.programs())?;
    phases.run("corpus", || demo::corpus(workspace, Corpus::Numbers))?;
    phases.run("speech encoder", || demo::model(workspace, Model::WhisperBase))?;
    phases.run("language model", || demo::language_model(workspace))?;
    phases.run("training and evaluation", || train(workspace))?;
    phases.summarize();
    println!(
        "\nThe run is in runs/quickstart: run.yaml, metrics/train.jsonl, checkpoints/, the tables.\n\
         docs/quickstart.md says how to read the table and where to go from here."
    );
    Ok(())
}

fn train(workspace: &Workspace) -> anyhow::Result<()> {
    let program = workspace.root().join("target/release/zipper-launch");
    workspace::run(
        workspace
            .command(program)
            .args(["--local", "--nodes", NODES, "--workers-per-node", "1"])
            .args(["--config", CONFIG, "--resume", "auto"]),
    )
}
