//! `cargo xtask corpus` and `cargo xtask model`: run the scripts of crates/zipper-demo in the environment `.deps/python`.

use clap::ValueEnum;

use crate::setup::python::{Environment, System};
use crate::workspace::{self, Workspace};

/// Optimizer steps of the language models' pretraining.
const NUMBERS_LM_STEPS: u32 = 600;
const HUMAN_LM_STEPS: u32 = 1000;

/// A demo corpus.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum Corpus {
    /// Spoken numbers in 12 languages, of synthetic speech, and a test of human recordings (430 MB).
    Numbers,
    /// Open-vocabulary human speech in 11 languages (downloads 260 MB).
    Human,
}

/// A demo model.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum Model {
    /// The pretrained multilingual Whisper base (downloads 133 MB).
    WhisperBase,
    /// SmolLM2-135M-Instruct (downloads 93 MB).
    Smollm2,
    /// The quickstart's character-level language model, pretrained on the words of `corpus numbers`.
    NumbersLm,
    /// The same for open-vocabulary speech, pretrained on the training transcripts of `corpus human`.
    HumanLm,
}

pub(crate) fn corpus(workspace: &Workspace, corpus: Corpus) -> anyhow::Result<()> {
    script(
        workspace,
        match corpus {
            Corpus::Numbers => "corpus_numbers.py",
            Corpus::Human => "corpus_human.py",
        },
    )
}

pub(crate) fn model(workspace: &Workspace, model: Model) -> anyhow::Result<()> {
    match model {
        Model::WhisperBase => script(workspace, "whisper_base.py"),
        Model::Smollm2 => script(workspace, "smollm2.py"),
        Model::NumbersLm => {
            build(workspace)?;
            corpus(workspace, Corpus::Numbers)?;
            language_model(workspace)
        }
        Model::HumanLm => {
            build(workspace)?;
            corpus(workspace, Corpus::Human)?;
            pretrain(workspace, "human", HUMAN_LM_STEPS)
        }
    }
}

/// Pretrains the quickstart's language model with `target/release/zipper-demo`.
pub(crate) fn language_model(workspace: &Workspace) -> anyhow::Result<()> {
    pretrain(workspace, "numbers", NUMBERS_LM_STEPS)
}

fn build(workspace: &Workspace) -> anyhow::Result<()> {
    workspace::run(
        workspace
            .cargo()
            .args(["build", "--release", "--package", "zipper-demo"]),
    )
}

/// Makes `demo/models/<corpus>-lm` of `demo/<corpus>/words.tsv`.
fn pretrain(workspace: &Workspace, corpus: &str, steps: u32) -> anyhow::Result<()> {
    let program = workspace.root().join("target/release/zipper-demo");
    workspace::run(
        workspace
            .command(program)
            .arg("pretrain-lm")
            .args(["--words", &format!("demo/{corpus}/words.tsv")])
            .args(["--output", &format!("demo/models/{corpus}-lm")])
            .args(["--steps", &steps.to_string()]),
    )
}

fn script(workspace: &Workspace, name: &str) -> anyhow::Result<()> {
    let environment = Environment::open(workspace, &System::find()?)?;
    environment.install_demo_packages(workspace)?;
    let script = workspace.root().join("crates/zipper-demo/scripts").join(name);
    workspace::run(environment.python(workspace).arg(script))
}
