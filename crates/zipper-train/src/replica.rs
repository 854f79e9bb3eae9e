//! One copy of the model: encoder, Speech-LLM and the adapters of the current stage.

use std::collections::BTreeMap;

use tch::{Device, Kind, Tensor};
use zipper_config::schema::{Dtype, RunConfig};
use zipper_data::Utterance;
use zipper_model::adapter::{AdaptedRows, AdapterSpec, Adapters, MergedAdapters};
use zipper_model::generate::GenerateOptions;
use zipper_model::linear::LoraSite;
use zipper_model::param::{Param, ParamScope};
use zipper_model::speech_llm::{Example, Nll, SpeechLlm};
use zipper_types::Stage;

use crate::frames::Frames;
use crate::{TrainError, state};

/// One copy of the model on one device.
pub struct Replica {
    config: RunConfig,
    device: Device,
    frames: Frames,
    speech: SpeechLlm,
    sites: Vec<LoraSite>,
    encoder_adapted: bool,
    stage: Stage,
    adapters: Adapters,
}

impl Replica {
    /// Loads the frozen models and initialises projector and adapters for `stage` from the run's seed.
    ///
    /// # Errors
    /// [`TrainError::Model`] if a directory cannot be used or an adapter cannot have this shape.
    pub fn load(config: &RunConfig, stage: Stage, device: Device) -> Result<Self, TrainError> {
        let kind = match config.model.dtype {
            Dtype::F32 => Kind::Float,
            Dtype::Bf16 => Kind::BFloat16,
        };
        let mut frames = Frames::load(&config.model.encoder, device)?;
        let mut speech = SpeechLlm::load(&config.model, frames.width(), config.seed, device, kind)?;
        let mut sites = speech.lora_sites(&config.adapter.targets)?;
        let encoder_adapted = !config.adapter.encoder_targets.is_empty();
        if encoder_adapted {
            sites.extend(frames.adapt(&config.adapter.encoder_targets, sites.len())?);
        }
        let adapters = Adapters::new(spec(config, stage), &sites, config.seed, device)?;
        Ok(Self {
            config: config.clone(),
            device,
            frames,
            speech,
            sites,
            encoder_adapted,
            stage,
            adapters,
        })
    }

    /// The configuration it was loaded with.
    pub fn config(&self) -> &RunConfig {
        &self.config
    }

    /// Where its tensors are.
    pub fn device(&self) -> Device {
        self.device
    }

    /// The stage its adapters belong to.
    pub fn stage(&self) -> Stage {
        self.stage
    }

    /// The adapters of the current stage.
    pub fn adapters(&self) -> &Adapters {
        &self.adapters
    }

    /// Every trainable parameter, in an order that is the same on all ranks.
    pub fn params(&self) -> Vec<&Param> {
        self.speech
            .projector()
            .params()
            .iter()
            .chain(self.adapters.params())
            .collect()
    }

    /// Goes from stage 1 to stage 2: new adapters of the configured variant, started from those of stage 1
    /// (Initial-B, DESIGN 2). The projector stays.
    ///
    /// # Errors
    /// [`TrainError::Model`] if an adapter cannot have this shape.
    pub fn enter_zipper_stage(&mut self) -> Result<(), TrainError> {
        let mut adapters = Adapters::new(
            spec(&self.config, Stage::Zipper),
            &self.sites,
            self.config.seed,
            self.device,
        )?;
        adapters.initial_b(&self.adapters)?;
        self.adapters = adapters;
        self.stage = Stage::Zipper;
        Ok(())
    }

    /// The parameters of `scope` as a safetensors file.
    ///
    /// # Errors
    /// [`TrainError::State`] if the file cannot be built.
    pub fn scope_to_bytes(&self, scope: ParamScope) -> Result<Vec<u8>, TrainError> {
        let params = self.params();
        let of_scope = params.iter().filter(|param| param.scope == scope);
        state::to_safetensors(of_scope.map(|param| (param.name.clone(), &param.tensor)))
    }

    /// Overwrites the parameters with those of a checkpoint of this stage, whose parts `read` returns by name.
    ///
    /// # Errors
    /// What `read` returns, or [`TrainError::State`] if a parameter is missing or has another shape.
    pub fn restore<E: From<TrainError>>(
        &mut self,
        mut read: impl FnMut(&str) -> Result<Vec<u8>, E>,
    ) -> Result<(), E> {
        for (scope, name) in self.scopes() {
            let part = format!("{name}.safetensors");
            let tensors = state::from_safetensors(&part, &read(&part)?)?;
            for param in self.params().into_iter().filter(|param| param.scope == scope) {
                state::copy_into(&mut param.tensor.shallow_clone(), &param.name, &tensors)?;
            }
        }
        Ok(())
    }

    /// The scopes that have parameters in this stage, with the name of their part of a checkpoint.
    pub fn scopes(&self) -> BTreeMap<ParamScope, String> {
        let name = |scope| match scope {
            ParamScope::Shared => "shared".to_owned(),
            ParamScope::Bank(language) => format!("banks/{}", self.config.data.languages[language]),
        };
        self.params()
            .iter()
            .map(|param| (param.scope, name(param.scope)))
            .collect()
    }

    /// Summed negative log-likelihood of the transcripts of one micro batch, differentiable.
    ///
    /// `dropout_seeds` holds one seed for each utterance, or nothing where dropout is off.
    ///
    /// # Errors
    /// [`TrainError::Audio`] if an utterance's audio became unreadable.
    pub fn nll(
        &self,
        utterances: &[&Utterance],
        merged: &MergedAdapters,
        dropout_seeds: Option<&[u64]>,
    ) -> Result<Nll, TrainError> {
        let frames = self.frames_of(utterances, merged, dropout_seeds)?;
        let texts: Vec<&str> = utterances
            .iter()
            .map(|utterance| utterance.text.as_str())
            .collect();
        let rows = rows_of(utterances, merged, dropout_seeds);
        Ok(self
            .speech
            .nll(&examples(utterances, &frames), &texts, Some(&rows))?)
    }

    /// The transcripts that the model writes for `utterances`; with `silenced` it hears nothing.
    ///
    /// # Errors
    /// [`TrainError::Audio`] if an utterance's audio became unreadable.
    pub fn transcribe(
        &self,
        utterances: &[&Utterance],
        merged: &MergedAdapters,
        silenced: bool,
    ) -> Result<Vec<String>, TrainError> {
        let mut frames = self.frames_of(utterances, merged, None)?;
        if silenced {
            frames = frames.iter().map(Tensor::zeros_like).collect();
        }
        let options = GenerateOptions {
            beam: self.config.evaluation.beam,
            max_new_tokens: self.config.evaluation.max_new_tokens,
        };
        // Beam search continues every utterance in `beam` consecutive rows.
        let repeated: Vec<&Utterance> = utterances
            .iter()
            .flat_map(|&utterance| std::iter::repeat_n(utterance, options.beam))
            .collect();
        let rows = rows_of(&repeated, merged, None);
        Ok(self
            .speech
            .generate(&examples(utterances, &frames), Some(&rows), &options)?)
    }

    /// Encoder frames of each utterance, with the encoder's adapters where there are any.
    fn frames_of(
        &self,
        utterances: &[&Utterance],
        merged: &MergedAdapters,
        dropout_seeds: Option<&[u64]>,
    ) -> Result<Vec<Tensor>, TrainError> {
        if !self.encoder_adapted {
            return utterances
                .iter()
                .map(|utterance| self.frames.frozen(utterance))
                .collect();
        }
        let one_by_one = utterances.iter().enumerate().map(|(row, utterance)| {
            let rows = rows_of(
                &utterances[row..=row],
                merged,
                dropout_seeds.map(|seeds| &seeds[row..=row]),
            );
            self.frames.adapted(utterance, Some(&rows))
        });
        one_by_one.collect()
    }
}

/// The utterances as the Speech-LLM sees them.
fn examples<'a>(utterances: &[&'a Utterance], frames: &'a [Tensor]) -> Vec<Example<'a>> {
    utterances
        .iter()
        .zip(frames)
        .map(|(utterance, frames)| Example {
            frames,
            language: &utterance.lang,
        })
        .collect()
}

/// The adapters as the rows of one micro batch see them.
fn rows_of<'a>(
    utterances: &[&Utterance],
    merged: &'a MergedAdapters,
    dropout_seeds: Option<&[u64]>,
) -> AdaptedRows<'a> {
    let languages: Vec<usize> = utterances.iter().map(|utterance| utterance.language).collect();
    merged.rows(&languages, dropout_seeds)
}

/// What the adapters of `stage` look like.
fn spec(config: &RunConfig, stage: Stage) -> AdapterSpec {
    let num_languages = config.data.languages.len();
    match stage {
        Stage::Align => AdapterSpec::for_align(&config.adapter, num_languages),
        Stage::Zipper => AdapterSpec::from_config(&config.adapter, num_languages),
    }
}
