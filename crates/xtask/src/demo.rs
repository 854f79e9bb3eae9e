//! `cargo xtask corpus` and `cargo xtask model`: run the scripts of crates/zipper-demo in the environment `.deps/python`.

use clap::ValueEnum;

use crate::setup::python::{Environment, System};
use crate::workspace::{self, Workspace};

/// How a language model is pretrained.
struct Pretraining {
    /// Of `corpus`, and of the model's folder.
    name: &'static str,
    /// Optimizer steps.
    steps: u32,
    /// Share of rows that are dictation, without which a model of this size does not learn to listen to open-vocabulary speech.
    dictation: f64,
}

const NUMBERS_LM: Pretraining = Pretraining {
    name: "numbers",
    steps: 600,
    dictation: 0.0,
};
const HUMAN_LM: Pretraining = Pretraining {
    name: "human",
    steps: 3000,
    dictation: 0.9,
};

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
    /// The same for open-vocabulary speech, pretrained on the training transcripts of `corpus human` and on dictation (40 minutes on 2 cores).
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
            workspace.programs()?;
            corpus(workspace, Corpus::Numbers)?;
            language_model(workspace)
        }
        Model::HumanLm => {
            workspace.programs()?;
            corpus(workspace, Corpus::Human)?;
            pretrain(workspace, &HUMAN_LM)
        }
    }
}

/// Pretrains the quickstart's language model with `target/release/zipper-demo`.
pub(crate) fn language_model(workspace: &Workspace) -> anyhow::Result<()> {
    pretrain(workspace, &NUMBERS_LM)
}

/// Makes `demo/models/<name>-lm` of `demo/<name>/words.tsv`.
fn pretrain(workspace: &Workspace, pretraining: &Pretraining) -> anyhow::Result<()> {
    let Pretraining {
        name,
        steps,
        dictation,
    } = pretraining;
    let program = workspace.root().join("target/release/zipper-demo");
    workspace::run(
        workspace
            .command(program)
            .arg("pretrain-lm")
            .args(["--words", &format!("demo/{name}/words.tsv")])
            .args(["--output", &format!("demo/models/{name}-lm")])
            .args(["--steps", &steps.to_string()])
            .args(["--dictation", &dictation.to_string()]),
    )
}

fn script(workspace: &Workspace, name: &str) -> anyhow::Result<()> {
    let environment = Environment::open(workspace, &System::find()?)?;
    environment.install_demo_packages(workspace)?;
    let script = workspace.root().join("crates/zipper-demo/scripts").join(name);
    workspace::run(environment.python(workspace).arg(script))
}
