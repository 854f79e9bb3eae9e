//! One copy of the model: encoder, Speech-LLM and the adapters of the current stage.

use std::collections::{BTreeMap, BTreeSet};

use tch::{Device, Kind, Tensor};
use zipper_config::schema::{Dtype, RunConfig};
use zipper_data::Utterance;
use zipper_model::adapter::{AdaptedRows, AdapterPlace, AdapterSpec, Adapters, LastPass, MergedAdapters};
use zipper_model::generate::GenerateOptions;
use zipper_model::linear::LoraSite;
use zipper_model::param::{Param, ParamScope, trainable_kind};
use zipper_model::speech_llm::{Example, Nll, SpeechLlm};
use zipper_types::Stage;

use crate::frames::Frames;
use crate::{TrainError, state};

/// One copy of the model on one device.
pub struct Replica {
    config: RunConfig,
    place: AdapterPlace,
    frames: Frames,
    speech: SpeechLlm,
    /// Those of the LLM, then those of the encoder.
    sites: Vec<LoraSite>,
    num_llm_sites: usize,
    stage: Stage,
    adapters: Adapters,
}

/// The adapters of one micro batch: of any but the last of a step, or of the last.
#[derive(Clone, Copy)]
pub enum Pass<'a> {
    /// Gradients gather in the merged matrices.
    Gather(&'a MergedAdapters),
    /// Gradients go on to the parameters.
    Last(&'a LastPass<'a>),
}

impl Pass<'_> {
    fn rows(&self, utterances: &[&Utterance], dropout_seeds: Option<&[u64]>) -> AdaptedRows<'_> {
        let languages: Vec<usize> = utterances.iter().map(|utterance| utterance.language).collect();
        match self {
            Self::Gather(merged) => merged.rows(&languages, dropout_seeds),
            Self::Last(last) => last.rows(&languages, dropout_seeds),
        }
    }
}

impl Replica {
    /// Loads the frozen models and initialises projector and adapters for `stage` from the run's seed; of the banks only
    /// those of the languages `banks`.
    ///
    /// # Errors
    /// [`TrainError::Model`] if a directory cannot be used or an adapter cannot have this shape.
    pub fn load(
        config: &RunConfig,
        stage: Stage,
        device: Device,
        banks: BTreeSet<usize>,
    ) -> Result<Self, TrainError> {
        let kind = match config.model.dtype {
            Dtype::F32 => Kind::Float,
            Dtype::Bf16 => Kind::BFloat16,
            Dtype::F64 => Kind::Double,
        };
        let mut frames = Frames::load(&config.model.encoder, device)?;
        let mut speech = SpeechLlm::load(&config.model, frames.width(), config.seed, device, kind)?;
        let mut sites = speech.lora_sites(&config.adapter.targets)?;
        let num_llm_sites = sites.len();
        if !config.adapter.encoder_targets.is_empty() {
            sites.extend(frames.adapt(&config.adapter.encoder_targets, num_llm_sites)?);
        }
        let place = AdapterPlace {
            device,
            kind: trainable_kind(kind),
            banks,
        };
        let adapters = Adapters::sharded(spec(config, stage), &sites, config.seed, place.clone())?;
        Ok(Self {
            config: config.clone(),
            place,
            frames,
            speech,
            sites,
            num_llm_sites,
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
        self.place.device
    }

    /// Adapted layers of the LLM; those of the encoder come after them.
    pub(crate) fn num_llm_sites(&self) -> usize {
        self.num_llm_sites
    }

    /// The stage its adapters belong to.
    pub fn stage(&self) -> Stage {
        self.stage
    }

    /// The adapters of the current stage.
    pub fn adapters(&self) -> &Adapters {
        &self.adapters
    }

    /// Whether the current stage has parameters of single languages.
    pub fn has_banks(&self) -> bool {
        self.adapters.spec().bank_columns() > 0
    }

    pub(crate) fn adapters_mut(&mut self) -> &mut Adapters {
        &mut self.adapters
    }

    /// Every trainable parameter that is on this rank: the shared ones in an order that is the same on all ranks, then
    /// the banks.
    pub fn params(&self) -> Vec<&Param> {
        self.speech
            .projector()
            .params()
            .iter()
            .chain(self.adapters.params())
            .collect()
    }

    /// Makes projector and adapters of `stage` anew from the run's seed, of the banks only `banks`; the frozen models stay.
    ///
    /// # Errors
    /// [`TrainError::Model`] if an adapter cannot have this shape.
    pub fn rebuild(&mut self, stage: Stage, banks: BTreeSet<usize>) -> Result<(), TrainError> {
        self.place.banks = banks;
        self.speech.reset_projector(&self.config.model, self.config.seed);
        self.adapters = Adapters::sharded(
            spec(&self.config, stage),
            &self.sites,
            self.config.seed,
            self.place.clone(),
        )?;
        self.stage = stage;
        Ok(())
    }

    /// Goes from stage 1 to stage 2: new adapters of the configured variant, started from those of stage 1
    /// (Initial-B, DESIGN 2). The projector stays.
    ///
    /// # Errors
    /// [`TrainError::Model`] if an adapter cannot have this shape.
    pub fn enter_zipper_stage(&mut self) -> Result<(), TrainError> {
        let mut adapters = Adapters::sharded(
            spec(&self.config, Stage::Zipper),
            &self.sites,
            self.config.seed,
            self.place.clone(),
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
        read: impl FnMut(&str) -> Result<Vec<u8>, E>,
    ) -> Result<(), E> {
        state::restore(&self.params(), &self.config.data.languages, read)
    }

    /// The scopes that have parameters on this rank in this stage, with the name of their part of a checkpoint.
    pub fn scopes(&self) -> BTreeMap<ParamScope, String> {
        let languages = &self.config.data.languages;
        self.params()
            .iter()
            .map(|param| (param.scope, state::scope_name(param.scope, languages)))
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
        pass: Pass<'_>,
        dropout_seeds: Option<&[u64]>,
    ) -> Result<Nll, TrainError> {
        let frames = self.frames_of(utterances, pass, dropout_seeds)?;
        let texts: Vec<&str> = utterances
            .iter()
            .map(|utterance| utterance.text.as_str())
            .collect();
        let rows = pass.rows(utterances, dropout_seeds);
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
        let pass = Pass::Gather(merged);
        let mut frames = self.frames_of(utterances, pass, None)?;
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
        let rows = pass.rows(&repeated, None);
        Ok(self
            .speech
            .generate(&examples(utterances, &frames), Some(&rows), &options)?)
    }

    /// Encoder frames of each utterance, with the encoder's adapters where there are any.
    fn frames_of(
        &self,
        utterances: &[&Utterance],
        pass: Pass<'_>,
        dropout_seeds: Option<&[u64]>,
    ) -> Result<Vec<Tensor>, TrainError> {
        if self.sites.len() == self.num_llm_sites {
            return utterances
                .iter()
                .map(|utterance| self.frames.frozen(utterance))
                .collect();
        }
        let one_by_one = utterances.iter().enumerate().map(|(row, utterance)| {
            let seeds = dropout_seeds.map(|seeds| &seeds[row..=row]);
            let rows = pass.rows(&utterances[row..=row], seeds);
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

/// What the adapters of `stage` look like.
pub(crate) fn spec(config: &RunConfig, stage: Stage) -> AdapterSpec {
    let num_languages = config.data.languages.len();
    match stage {
        Stage::Align => AdapterSpec::for_align(&config.adapter, num_languages),
        Stage::Zipper => AdapterSpec::from_config(&config.adapter, num_languages),
    }
}
