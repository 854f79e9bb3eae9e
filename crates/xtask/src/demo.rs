//! `cargo xtask corpus` and `cargo xtask model`: run the scripts of crates/zipper-demo in the environment `.deps/python`.

use clap::ValueEnum;

use crate::setup::python::{Environment, System};
use crate::workspace::{self, Workspace};

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
            let mut build = workspace.cargo();
            workspace::run(build.args(["build", "--release", "--package", "zipper-demo"]))?;
            corpus(workspace, Corpus::Numbers)?;
            language_model(workspace)
        }
    }
}

/// Pretrains the quickstart's language model with `target/release/zipper-demo`.
pub(crate) fn language_model(workspace: &Workspace) -> anyhow::Result<()> {
    let program = workspace.root().join("target/release/zipper-demo");
    workspace::run(
        workspace
            .command(program)
            .arg("pretrain-lm")
            .args(["--words", "demo/numbers/words.tsv"])
            .args(["--output", "demo/models/numbers-lm"]),
    )
}

fn script(workspace: &Workspace, name: &str) -> anyhow::Result<()> {
    let environment = Environment::open(workspace, &System::find()?)?;
    environment.install_demo_packages(workspace)?;
    let script = workspace.root().join("crates/zipper-demo/scripts").join(name);
    workspace::run(environment.python(workspace).arg(script))
}
