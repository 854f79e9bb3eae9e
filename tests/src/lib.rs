//! What the cross-crate tests share: a tiny Speech-LLM with random weights, a tiny corpus of real audio files, a
//! configuration for both, the programs under test, and rigs that make faults.
//!
//! Everything is written into a temporary folder from a seed; nothing is downloaded and nothing is checked in.

mod benchmark;
mod checkpoint;
mod compare;
mod corpus;
pub mod faults;
pub mod load;
mod models;
mod programs;
mod rigs;

use std::fs;
use std::path::{Path, PathBuf};

pub use benchmark::{
    BENCHMARK_LLM, BENCHMARK_UTTERANCES, DemoSize, Script, TorchSide, benchmark_config, comma_list, cpu,
    file_of_part, load, profile, spread, spread_json, spread_text, value_name, write_benchmark,
};
pub use checkpoint::manifest;
pub use compare::{Difference, Parameters};
pub use corpus::{LANGUAGES, sing_languages, write_corpus};
pub use models::{LlmShape, write_llm, write_whisper};
pub use programs::{Finished, Launched, processes, program, wait_until};
pub use rigs::{
    Browser, FalseClock, FaultProxy, Host, Mode, Namespaces, NotPermitted, S3Server, Slurm, SmallDisk,
    Terminal, everything_is_required, permitted,
};

/// A folder with models, audio, manifests and a configuration.
#[derive(Debug)]
pub struct Fixture {
    folder: tempfile::TempDir,
}

impl Fixture {
    /// Writes a whole tiny job: 3 languages, 2 + 2 layers, both stages, variant `soft`.
    pub fn new() -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        write_whisper(&folder.path().join("whisper"), 7);
        write_llm(&folder.path().join("llm"), 8);
        write_corpus(&folder.path().join("corpus"), 9);
        let fixture = Self { folder };
        fixture.write_config("run.yaml", |text| text);
        fixture
    }

    /// The fixture's folder.
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Writes the base configuration, changed by `edit`, under `name`, and returns its path.
    pub fn write_config(&self, name: &str, edit: impl Fn(String) -> String) -> PathBuf {
        let base = include_str!("run.yaml").replace("FIXTURE", &self.path().display().to_string());
        let path = self.path().join(name);
        fs::write(&path, edit(base)).expect("the fixture's folder is writable");
        path
    }

    /// Writes the configuration of a run that would go on for hours, with a checkpoint every `checkpoint_every` steps.
    pub fn write_endless_config(&self, checkpoint_every: u64) -> PathBuf {
        self.write_config("endless.yaml", |text| {
            text.replace("steps: 6,", "steps: 1000000,")
                .replace("every_steps: 4", &format!("every_steps: {checkpoint_every}"))
                .replace("untrained: true", "untrained: false")
        })
    }

    /// Makes a run of the base configuration, changed by `edit`, on one worker and without evaluations; returns its URL.
    ///
    /// # Panics
    /// If it fails.
    #[track_caller]
    pub fn train(&self, name: &str, edit: impl Fn(String) -> String) -> String {
        let config = self.write_config(&format!("{name}.yaml"), |text| {
            edit(text.replace("untrained: true", "untrained: false"))
        });
        let url = self.run_url(name);
        let config = config.display().to_string();
        let finished = Launched::run(&[
            "--nodes",
            "1",
            "--config",
            &config,
            "--run",
            &url,
            "--set",
            "evaluation.tests=[]",
            "--set",
            "data.validation=[]",
        ]);
        assert_eq!(finished.code, Some(0), "{}", finished.stderr);
        url
    }

    /// A run URL inside the fixture.
    pub fn run_url(&self, name: &str) -> String {
        format!("file://{}", self.path().join(name).display())
    }

    /// The loss of every step in a run's metrics, by step.
    pub fn losses(&self, run: &str) -> Vec<(u64, f64)> {
        let path = self.path().join(run).join("metrics/train.jsonl");
        let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let lines = text.lines().map(|line| {
            let line: serde_json::Value = serde_json::from_str(line).expect("metrics are JSON lines");
            (
                line["step"].as_u64().expect("a step"),
                line["loss"].as_f64().expect("a loss"),
            )
        });
        lines.collect()
    }
}

impl Default for Fixture {
    fn default() -> Self {
        Self::new()
    }
}
