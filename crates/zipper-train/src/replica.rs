//! One copy of the model: encoder, Speech-LLM and the adapters of the current stage.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

use tch::{Device, Kind, Tensor};
use zipper_config::schema::{Dtype, RunConfig};
use zipper_data::{Augmentation, Utterance};
use zipper_model::adapter::{AdaptedRows, AdapterPlace, AdapterSpec, Adapters, LastPass, MergedAdapters};
use zipper_model::generate::GenerateOptions;
use zipper_model::lid_head::LidHead;
use zipper_model::linear::{LinearDelta, LoraSite};
use zipper_model::param::{Param, ParamScope, trainable_kind};
use zipper_model::speech_llm::{Example, Nll, SpeechLlm, Total};
use zipper_types::Stage;

use crate::frames::{Frames, Heard};
use crate::{TrainError, state};

/// One copy of the model on one device.
pub struct Replica {
    config: RunConfig,
    place: AdapterPlace,
    frames: Frames,
    speech: SpeechLlm,
    lid_head: Option<LidHead>,
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

/// What is random in a training pass: one seed for each utterance, or nothing where it is off. By default nothing is random, as
/// outside of training.
#[derive(Debug, Clone, Copy, Default)]
pub struct Seeds<'a> {
    /// Of dropout.
    pub dropout: Option<&'a [u64]>,
    /// Of augmentation.
    pub augment: Option<&'a [u64]>,
}

impl Pass<'_> {
    fn rows(&self, languages: &[usize], dropout_seeds: Option<&[u64]>) -> AdaptedRows<'_> {
        match self {
            Self::Gather(merged) => merged.rows(languages, dropout_seeds),
            Self::Last(last) => last.rows(languages, dropout_seeds),
        }
    }

    fn carried_so_far(&self) -> Option<Tensor> {
        match self {
            Self::Gather(_) => None,
            Self::Last(last) => last.carried_so_far(),
        }
    }
}

/// Losses of one micro batch.
#[derive(Debug)]
pub struct Losses {
    /// Of the transcripts.
    pub nll: Nll,
    /// `[]`: cross-entropy of the LID head, summed over the utterances; nothing without one.
    pub lid: Option<Tensor>,
}

/// Speech that belongs to no manifest.
#[derive(Debug, Clone, Copy)]
pub struct Clip<'a> {
    /// 16 kHz mono, at least 10 ms.
    pub samples: &'a [f32],
    /// Ordinal of its language in the run's: what the prompt says.
    pub language: usize,
    /// Which of the merged adapters it is heard with: a language, or the number of a mixture.
    pub adapter: usize,
}

impl Replica {
    /// Loads the frozen models and initialises projector and adapters for `stage` from the run's seed; of the banks only
    /// those of the languages `banks`.
    ///
    /// # Errors
    /// [`TrainError::Model`] if a directory cannot be used, [`TrainError::Adapter`] if an adapter cannot have this shape.
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
        let mut frames = Frames::load(&config.model.encoder, device, kind)?;
        let mut speech = SpeechLlm::load(&config.model, frames.width(), config.seed, device, kind)?;
        if config.runtime.recompute_activations {
            speech.recompute_activations();
        }
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
            lid_head: new_lid_head(config, frames.width(), &place),
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
            .chain(self.lid_head.iter().flat_map(LidHead::params))
            .chain(self.adapters.params())
            .collect()
    }

    /// Makes projector, LID head and adapters of `stage` anew from the run's seed, of the banks only `banks`; the frozen models stay.
    ///
    /// # Errors
    /// [`TrainError::Adapter`] if an adapter cannot have this shape.
    pub fn rebuild(&mut self, stage: Stage, banks: BTreeSet<usize>) -> Result<(), TrainError> {
        self.place.banks = banks;
        self.speech.reset_projector(&self.config.model, self.config.seed);
        self.lid_head = new_lid_head(&self.config, self.frames.width(), &self.place);
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
    /// (Initial-B). The projector stays.
    ///
    /// # Errors
    /// [`TrainError::Adapter`] if an adapter cannot have this shape.
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

    /// Overwrites the parameters with those of a checkpoint of this stage, whose parts `read` returns by name.
    ///
    /// # Errors
    /// What `read` returns, or [`TrainError::State`] if a parameter is missing or has another shape.
    pub fn restore<E: From<TrainError>>(
        &mut self,
        read: impl FnOnce(&[String]) -> Result<Vec<Vec<u8>>, E>,
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

    /// Losses of one micro batch, differentiable; of the transcripts in the form in which they are learnt (`data.text_normalization`).
    ///
    /// # Errors
    /// [`TrainError::Audio`] if an utterance's audio became unreadable.
    pub fn losses(
        &self,
        utterances: &[&Utterance],
        pass: Pass<'_>,
        seeds: Seeds<'_>,
    ) -> Result<Losses, TrainError> {
        let frames = self.frames_of(utterances, pass, seeds)?;
        let rules = &self.config.data.text_normalization;
        let targets: Vec<Cow<'_, str>> = utterances
            .iter()
            .map(|utterance| {
                let rule = rules.get(&utterance.lang).unwrap_or_default();
                zipper_score::target(rule, &utterance.text)
            })
            .collect();
        let texts: Vec<&str> = targets.iter().map(AsRef::as_ref).collect();
        let languages = languages(utterances);
        let rows = match pass {
            // History is made when layers are computed again.
            Pass::Last(last) if self.config.runtime.recompute_activations => {
                last.merged().rows(&languages, seeds.dropout)
            }
            _ => pass.rows(&languages, seeds.dropout),
        };
        let examples = self.examples(&languages, &frames);
        Ok(Losses {
            nll: self.speech.nll(&examples, &texts, Some(&rows))?,
            lid: self.lid_head.as_ref().map(|head| head.loss(&frames, &languages)),
        })
    }

    /// The backward pass of `losses`, which are of the same utterances, pass and seeds, each with its configured weight. Gradients are added
    /// to those of the parameters, and in a pass that gathers to those of the merged matrices.
    ///
    /// # Errors
    /// [`TrainError::Torch`] if it fails.
    pub fn backward(
        &self,
        utterances: &[&Utterance],
        pass: Pass<'_>,
        seeds: Seeds<'_>,
        losses: Losses,
    ) -> Result<(), TrainError> {
        let model = &self.config.model;
        // Of the encoder's layers, whose forward pass is over; their backward pass comes last.
        let carried_below = pass.carried_so_far();
        let mut loss = match losses.nll.total {
            Total::Whole(total) => total,
            Total::Recomputed(recomputed) => {
                let rows = pass.rows(&languages(utterances), seeds.dropout);
                self.speech
                    .take_back(recomputed, Some(&rows), || pass.carried_so_far())?
            }
        };
        if let Some(ctc) = losses.nll.ctc {
            loss += ctc * model.projector.ctc_weight;
        }
        if let (Some(lid), Some(head)) = (losses.lid, &model.lid_head) {
            loss += lid * head.loss_weight;
        }
        let Pass::Last(last) = pass else {
            return Ok(loss.f_backward()?);
        };
        for carried in [carried_below, last.carried()].into_iter().flatten() {
            loss += carried;
        }
        loss.f_backward()?;
        if let Some(routers) = last.routers() {
            routers.f_backward()?;
        }
        Ok(())
    }

    /// Whether the run trains a head that tells languages apart.
    pub fn detects_languages(&self) -> bool {
        self.lid_head.is_some()
    }

    /// How likely each language is for each utterance, by the LID head.
    ///
    /// # Shapes
    /// - returns: `[utterances][L]`, each row adds up to 1
    ///
    /// # Errors
    /// [`TrainError::Audio`] if an utterance's audio became unreadable.
    ///
    /// # Panics
    /// If there is no head; see [`Replica::detects_languages`].
    pub fn detect(&self, utterances: &[&Utterance]) -> Result<Vec<Vec<f64>>, TrainError> {
        let heard: Vec<Heard<'_>> = utterances.iter().map(|&utterance| (utterance, None)).collect();
        self.posteriors(&self.frames.frozen(&heard)?)
    }

    /// Like [`Replica::detect`], of speech that belongs to no manifest: 16 kHz mono, at least 10 ms each.
    ///
    /// # Errors
    /// [`TrainError::Model`] if some are longer than the encoder's positions.
    ///
    /// # Panics
    /// If there is no head.
    pub fn detect_samples(&self, clips: &[&[f32]]) -> Result<Vec<Vec<f64>>, TrainError> {
        self.posteriors(&tch::no_grad(|| self.frames.of_samples(clips, None))?)
    }

    fn posteriors(&self, frames: &[Tensor]) -> Result<Vec<Vec<f64>>, TrainError> {
        let head = self.lid_head.as_ref().expect("the run has a LID head");
        let posteriors = tch::no_grad(|| head.logits(frames).softmax(-1, Kind::Double));
        Ok(Vec::<Vec<f64>>::try_from(posteriors)?)
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
        let mut frames = self.frames_of(utterances, pass, Seeds::default())?;
        if silenced {
            frames = frames.iter().map(Tensor::zeros_like).collect();
        }
        let options = GenerateOptions {
            beam: self.config.evaluation.beam,
            max_new_tokens: self.config.evaluation.max_new_tokens,
        };
        let languages = languages(utterances);
        self.write(&languages, &languages, &frames, pass, options)
    }

    /// The transcripts that the model writes for `clips`, which may be in different languages.
    ///
    /// # Errors
    /// [`TrainError::Model`] if a clip is longer than the encoder's positions.
    ///
    /// # Panics
    /// If `merged` lacks the adapter of a clip.
    pub fn transcribe_samples(
        &self,
        clips: &[Clip<'_>],
        merged: &MergedAdapters,
        options: GenerateOptions,
    ) -> Result<Vec<String>, TrainError> {
        let pass = Pass::Gather(merged);
        let (languages, adapters): (Vec<_>, Vec<_>) =
            clips.iter().map(|clip| (clip.language, clip.adapter)).unzip();
        let rows = self.adapts_encoder().then(|| pass.rows(&adapters, None));
        let in_encoder = rows.as_ref().map(|rows| rows as &dyn LinearDelta);
        let samples: Vec<&[f32]> = clips.iter().map(|clip| clip.samples).collect();
        let frames = self.frames.of_samples(&samples, in_encoder)?;
        self.write(&languages, &adapters, &frames, pass, options)
    }

    /// The transcripts of `frames`, one for each of `languages` and of `adapters`.
    fn write(
        &self,
        languages: &[usize],
        adapters: &[usize],
        frames: &[Tensor],
        pass: Pass<'_>,
        options: GenerateOptions,
    ) -> Result<Vec<String>, TrainError> {
        // Beam search continues every utterance in `beam` consecutive rows.
        let repeated: Vec<usize> = adapters
            .iter()
            .flat_map(|&adapter| std::iter::repeat_n(adapter, options.beam))
            .collect();
        let rows = pass.rows(&repeated, None);
        Ok(self
            .speech
            .generate(&self.examples(languages, frames), Some(&rows), &options)?)
    }

    /// Encoder outputs as the Speech-LLM sees them, one for each of `languages`.
    fn examples<'a>(&'a self, languages: &[usize], frames: &'a [Tensor]) -> Vec<Example<'a>> {
        let codes = &self.config.data.languages;
        languages
            .iter()
            .zip(frames)
            .map(|(&language, frames)| Example {
                frames,
                language: &codes[language],
            })
            .collect()
    }

    /// Whether frames depend on adapters.
    fn adapts_encoder(&self) -> bool {
        self.sites.len() > self.num_llm_sites
    }

    /// What stands before the projector.
    pub(crate) fn frames(&self) -> &Frames {
        &self.frames
    }

    /// Encoder frames of each utterance, with the encoder's adapters where there are any.
    fn frames_of(
        &self,
        utterances: &[&Utterance],
        pass: Pass<'_>,
        seeds: Seeds<'_>,
    ) -> Result<Vec<Tensor>, TrainError> {
        let config = &self.config.training.augment;
        let augmentation = |row: usize| {
            let seed = seeds.augment.map(|seeds| seeds[row])?;
            Some(Augmentation::new(config, seed))
        };
        let rows = utterances.iter().enumerate();
        let heard: Vec<Heard<'_>> = rows
            .map(|(row, &utterance)| (utterance, augmentation(row)))
            .collect();
        if !self.adapts_encoder() {
            return self.frames.frozen(&heard);
        }
        let adapters = pass.rows(&languages(utterances), seeds.dropout);
        self.frames.adapted(&heard, &adapters)
    }
}

/// The head that tells languages apart, if there is to be one.
fn new_lid_head(config: &RunConfig, d_encoder: i64, place: &AdapterPlace) -> Option<LidHead> {
    let languages = config.data.languages.len();
    let head = config.model.lid_head.as_ref();
    head.map(|_| LidHead::new(languages, d_encoder, config.seed, place.device, place.kind))
}

/// The language of each utterance.
fn languages(utterances: &[&Utterance]) -> Vec<usize> {
    utterances.iter().map(|utterance| utterance.language).collect()
}

/// What the adapters of `stage` look like.
pub(crate) fn spec(config: &RunConfig, stage: Stage) -> AdapterSpec {
    let num_languages = config.data.languages.len();
    match stage {
        Stage::Align => AdapterSpec::for_align(&config.adapter, num_languages),
        Stage::Zipper => AdapterSpec::from_config(&config.adapter, num_languages),
    }
}
