//! What is trained: the models and the corpus of a size, what both sides begin with, and the configuration of a run.

use std::error::Error;
use std::fs;
use std::path::PathBuf;

use serde_json::{Value, json};
use zipper_config::RunConfig;
use zipper_config::schema::{EncoderContext, EvaluationConfig, Schedule, StageConfig};
use zipper_data::{DurationLimits, Utterance, load_corpus};
use zipper_tests::{DemoSize, value_name};

use crate::{Adapters, Bench, Side};

/// So small that a step changes nothing: zero is no learning rate.
const NO_RATE: f64 = 1e-30;

/// Utterances by language.
type Corpus = Vec<Vec<Utterance>>;

/// A size with what belongs to it.
pub(crate) struct Job {
    pub(crate) size: DemoSize,
    config: RunConfig,
    /// By language ordinal.
    pub(crate) corpus: Corpus,
    /// A checkpoint's file with the projector that both sides begin with.
    pub(crate) projector: PathBuf,
    /// Loss of the first step at native length, and with windows of 30 s if that is measured.
    pub(crate) native_loss: f64,
    pub(crate) padded_loss: Option<f64>,
}

impl Bench {
    /// Reads a size, lets Zipper make the projector that both sides begin with, and fill its cache.
    pub(crate) fn prepare(&self, size: DemoSize) -> Result<Job, Box<dyn Error>> {
        let selection = &self.arguments.selection;
        let (config, corpus) = self.read(size)?;
        let mut job = Job {
            size,
            config,
            corpus,
            projector: self
                .folder
                .path()
                .join(format!("{}.safetensors", value_name(size))),
            native_loss: f64::NAN,
            padded_loss: None,
        };
        let wants = |side| selection.programs.contains(&side);
        println!("{}: initial values", value_name(size));
        let cached = wants(Side::ZipperCached);
        let steps = if cached {
            selection.steps_of(size, Side::ZipperCached)
        } else {
            1
        };
        let config = without_learning(job.configuration(Adapters::Shared, steps, self.cores, cached));
        let checkpoint = format!("checkpoints/step-{steps:08}/shared.safetensors");
        job.native_loss = self
            .run_zipper(&config, 1, |run| {
                fs::copy(run.join(checkpoint), &job.projector)?;
                Ok(())
            })?
            .first_loss()?;
        if wants(Side::PytorchPadded) {
            println!("{}: the loss with windows of 30 s", value_name(size));
            let mut config = without_learning(job.configuration(Adapters::Shared, 1, self.cores, false));
            config.model.encoder.context = EncoderContext::Padded30s;
            job.padded_loss = Some(self.run_zipper(&config, 1, |_| Ok(()))?.first_loss()?);
        }
        Ok(job)
    }

    /// The configuration of a size, and its corpus by language: what PyTorch's side can read, too.
    fn read(&self, size: DemoSize) -> Result<(RunConfig, Corpus), Box<dyn Error>> {
        let mut config = zipper_config::load(size.config(), &[])?;
        let needed = [&config.model.encoder.path, &config.model.llm.path]
            .into_iter()
            .chain(&config.data.train);
        size.require(needed)?;
        let limits = DurationLimits::from(&config.data);
        let mut utterances = load_corpus(&config.data.train, &config.data.languages, limits)?.utterances;
        let is_wav = |utterance: &Utterance| {
            utterance
                .audio_filepath
                .extension()
                .is_some_and(|ending| ending == "wav")
        };
        if !utterances.iter().all(is_wav) {
            utterances.retain(is_wav);
            let manifest = self.folder.path().join(format!("{}.jsonl", value_name(size)));
            fs::write(&manifest, manifest_of(&utterances))?;
            let all = std::mem::take(&mut config.data.languages);
            let is_left = |lang: &String| utterances.iter().any(|utterance| utterance.lang == *lang);
            config.data.languages = all.into_iter().filter(is_left).collect();
            config.data.train = vec![manifest];
            // Once more: a language's ordinal is another one now.
            utterances = load_corpus(&config.data.train, &config.data.languages, limits)?.utterances;
        }
        let mut corpus: Vec<Vec<Utterance>> = config.data.languages.iter().map(|_| Vec::new()).collect();
        for utterance in utterances {
            corpus[utterance.language].push(utterance);
        }
        Ok((config, corpus))
    }
}

impl Job {
    /// The configuration of a run that does nothing but `steps` steps, all of them in one stage.
    pub(crate) fn configuration(
        &self,
        variant: Adapters,
        steps: usize,
        threads: usize,
        cached: bool,
    ) -> RunConfig {
        let mut config = self.config.clone();
        let stage = |of_run: &StageConfig, steps: usize| StageConfig {
            steps: steps as u64,
            warmup_steps: 0,
            schedule: Schedule::Constant,
            ..of_run.clone()
        };
        let (align, zipper) = match variant {
            Adapters::Shared => (steps, 0),
            Adapters::Independent => (0, steps),
        };
        config.training.align = stage(&config.training.align, align);
        config.training.zipper = stage(&config.training.zipper, zipper);
        config.training.log_every = 1;
        config.adapter.variant = variant.of_run();
        if !cached {
            config.model.encoder.cache = None;
        }
        config.data.validation.clear();
        config.evaluation = EvaluationConfig::default();
        config.checkpoint.every_steps = 0;
        config.runtime.threads_per_worker = Some(threads);
        config
    }

    pub(crate) fn to_json(&self) -> Value {
        json!({
            "size": value_name(self.size), "config": self.size.config(), "languages": self.config.data.languages,
            "utterances": self.corpus.iter().map(Vec::len).sum::<usize>(),
            "first_loss_of_zipper": {"native": self.native_loss, "padded_30s": self.padded_loss},
        })
    }
}

/// The same run with steps that change nothing.
fn without_learning(mut config: RunConfig) -> RunConfig {
    for stage in [&mut config.training.align, &mut config.training.zipper] {
        stage.lr = NO_RATE;
        stage.projector_lr = None;
        stage.router_lr = None;
    }
    config
}

/// Utterances as lines of JSON, with absolute paths.
fn manifest_of(utterances: &[Utterance]) -> String {
    let line = |utterance: &Utterance| {
        let line = json!({
            "id": utterance.id, "audio_filepath": utterance.audio_filepath, "offset": utterance.offset,
            "duration": utterance.duration, "text": utterance.text, "lang": utterance.lang,
        });
        format!("{line}\n")
    };
    utterances.iter().map(line).collect()
}
