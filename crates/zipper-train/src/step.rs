//! One optimizer step of one rank (DESIGN 3): the global batch's gradient is the same whatever the world size.

use std::collections::{BTreeMap, BTreeSet};

use tch::{Kind, Tensor};
use zipper_collectives::ProcessGroup;
use zipper_config::schema::{OnNonFinite, Schedule};
use zipper_data::Utterance;
use zipper_model::param::{Param, ParamScope};
use zipper_plan::{LearningRate, Shape, deal, micro_batches};
use zipper_types::{Stage, Step};

use crate::TrainError;
use crate::optimizer::{LearningRates, clip_grad_norm};
use crate::session::Session;

/// What a step did; the same on all ranks.
#[derive(Debug, Clone, PartialEq)]
pub struct StepReport {
    /// The step that was made.
    pub step: Step,
    /// Its stage.
    pub stage: Stage,
    /// Negative log-likelihood per target token of the global batch, in nats.
    pub loss: f64,
    /// Learning rate of projector and LoRA.
    pub lr: f64,
    /// Norm of the gradient before clipping.
    pub grad_norm: f64,
    /// Target tokens of the global batch.
    pub tokens: u64,
    /// Seconds of audio in the global batch.
    pub audio_seconds: f64,
    /// Whether the update was left out because a gradient was not finite.
    pub skipped: bool,
    /// Whether some rank was asked to stop: then all stop after this step.
    pub stop: bool,
    /// Loss by language code.
    pub by_language: BTreeMap<String, LanguageLoss>,
}

/// One language's part of a global batch.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct LanguageLoss {
    /// Summed negative log-likelihood, in nats.
    pub nll: f64,
    /// Target tokens.
    pub tokens: u64,
    /// Utterances.
    pub utterances: u64,
}

impl Session {
    /// Makes one optimizer step.
    ///
    /// # Collective
    /// Every rank of `group` calls it, with its own answer to `stop_requested`.
    ///
    /// # Errors
    /// [`TrainError::Collective`] if a peer is lost, [`TrainError::NonFinite`] as configured,
    /// [`TrainError::Audio`] if an utterance became unreadable.
    pub fn train_step(
        &mut self,
        group: &ProcessGroup,
        stop_requested: bool,
    ) -> Result<StepReport, TrainError> {
        let step = self.step.next();
        let batch = self.sampler.next_batch();
        let utterances: Vec<&Utterance> = batch
            .utterances
            .iter()
            .map(|at| &self.corpus[at.language][at.index])
            .collect();
        let seconds: Vec<f64> = utterances.iter().map(|utterance| utterance.duration).collect();
        let mine = &deal(&seconds, group.world_size())[group.rank().0 as usize];
        let mine: Vec<&Utterance> = mine.iter().map(|&index| utterances[index]).collect();

        let losses = self.accumulate_gradients(&mine, step)?;
        let (totals, votes) = self.reduce_losses(group, step, &losses, stop_requested, &utterances)?;
        let in_batch: BTreeSet<usize> = utterances.iter().map(|utterance| utterance.language).collect();
        let tokens: u64 = totals.iter().map(|language| language.tokens).sum();
        let mut gradients = self.reduce_gradients(group, step, &in_batch, tokens)?;
        let loss = totals.iter().map(|language| language.nll).sum::<f64>() / tokens as f64;
        let grad_norm = clip_grad_norm(&mut gradients, self.replica.config().training.clip_grad_norm);

        let skipped = !(loss.is_finite() && grad_norm.is_finite());
        let rates = self.rates(step);
        if skipped {
            self.refuse_or_count(step, loss, &in_batch)?;
        } else {
            self.optimizer.step(&self.replica.params(), &gradients, rates);
        }
        self.step = step;
        Ok(StepReport {
            step,
            stage: self.replica.stage(),
            loss,
            lr: rates.model,
            grad_norm,
            tokens,
            audio_seconds: seconds.iter().sum(),
            skipped,
            stop: votes > 0,
            by_language: self.name_languages(&totals, &in_batch),
        })
    }

    /// Forward and backward over this rank's part of the batch; gradients of the *summed* loss end up in the leaves.
    fn accumulate_gradients(&self, mine: &[&Utterance], step: Step) -> Result<Vec<LanguageLoss>, TrainError> {
        let config = self.replica.config();
        for param in self.replica.params() {
            param.tensor.shallow_clone().zero_grad();
        }
        let mut losses = vec![LanguageLoss::default(); config.data.languages.len()];
        let languages: BTreeSet<usize> = mine.iter().map(|utterance| utterance.language).collect();
        let languages: Vec<usize> = languages.into_iter().collect();
        let merged = self.replica.adapters().merge(&languages);
        let seconds: Vec<f64> = mine.iter().map(|utterance| utterance.duration).collect();
        for micro_batch in micro_batches(&seconds, config.training.micro_batch_audio_seconds) {
            let micro_batch: Vec<&Utterance> = micro_batch.iter().map(|&index| mine[index]).collect();
            let seeds: Option<Vec<u64>> = (config.adapter.dropout > 0.0).then(|| {
                micro_batch
                    .iter()
                    .map(|utterance| dropout_seed(config.seed, step, &utterance.id))
                    .collect()
            });
            let nll = self.replica.nll(&micro_batch, &merged, seeds.as_deref())?;
            nll.sums.sum(Kind::Float).backward();
            let sums = nll.sums.detach().to_kind(Kind::Double);
            for (row, utterance) in micro_batch.iter().enumerate() {
                let loss = &mut losses[utterance.language];
                loss.nll += sums.double_value(&[row as i64]);
                loss.tokens += nll.tokens[row] as u64;
            }
        }
        merged.backward();
        Ok(losses)
    }

    /// Adds up losses and stop votes over all ranks.
    fn reduce_losses(
        &self,
        group: &ProcessGroup,
        step: Step,
        losses: &[LanguageLoss],
        stop_requested: bool,
        utterances: &[&Utterance],
    ) -> Result<(Vec<LanguageLoss>, u64), TrainError> {
        let mut values: Vec<f64> = losses
            .iter()
            .flat_map(|loss| [loss.nll, loss.tokens as f64])
            .collect();
        values.push(f64::from(u8::from(stop_requested)));
        let values = Tensor::from_slice(&values).to_device(self.replica.device());
        group.all_reduce_sum(&values, &format!("losses and stop votes of step {step}"))?;
        let at = |index: usize| values.double_value(&[index as i64]);
        let mut totals: Vec<LanguageLoss> = (0..losses.len())
            .map(|language| LanguageLoss {
                nll: at(2 * language),
                tokens: at(2 * language + 1) as u64,
                utterances: 0,
            })
            .collect();
        for utterance in utterances {
            totals[utterance.language].utterances += 1;
        }
        Ok((totals, at(2 * losses.len()) as u64))
    }

    /// Adds up the gradients over all ranks and divides by the tokens of the global batch. Banks of languages that do
    /// not occur in the batch get none.
    fn reduce_gradients(
        &self,
        group: &ProcessGroup,
        step: Step,
        in_batch: &BTreeSet<usize>,
        tokens: u64,
    ) -> Result<Vec<Option<Tensor>>, TrainError> {
        let params = self.replica.params();
        let takes_part = |param: &Param| match param.scope {
            ParamScope::Shared => true,
            ParamScope::Bank(language) => in_batch.contains(&language),
        };
        let flat: Vec<Tensor> = params
            .iter()
            .filter(|param| takes_part(param))
            .map(|param| flat_gradient(param))
            .collect();
        let mut flat = Tensor::cat(&flat, 0);
        group.all_reduce_sum(&flat, &format!("gradients of step {step}"))?;
        let _ = flat.g_div_scalar_(tokens as f64);
        let mut offset = 0;
        let gradients = params.iter().map(|param| {
            takes_part(param).then(|| {
                let length = param.tensor.numel() as i64;
                let gradient = flat
                    .narrow(0, offset, length)
                    .view(param.tensor.size().as_slice());
                offset += length;
                gradient
            })
        });
        Ok(gradients.collect())
    }

    fn rates(&self, step: Step) -> LearningRates {
        let (stage, settings) = self.stage();
        let steps_before = match stage {
            Stage::Align => 0,
            Stage::Zipper => self.replica.config().training.align.steps,
        };
        let step_in_stage = step.0 - steps_before;
        let shape = match settings.schedule {
            Schedule::Constant => Shape::Constant,
            Schedule::Linear => Shape::Linear,
            Schedule::Cosine => Shape::Cosine,
        };
        let rate = |peak| {
            let rate = LearningRate {
                peak,
                warmup_steps: settings.warmup_steps,
                total_steps: settings.steps,
                shape,
                final_ratio: settings.final_lr_ratio,
            };
            rate.at(step_in_stage)
        };
        LearningRates {
            model: rate(settings.lr),
            router: rate(settings.router_lr.unwrap_or(settings.lr)),
        }
    }

    fn refuse_or_count(
        &mut self,
        step: Step,
        loss: f64,
        in_batch: &BTreeSet<usize>,
    ) -> Result<(), TrainError> {
        let codes = &self.replica.config().data.languages;
        let languages: Vec<&str> = in_batch
            .iter()
            .map(|&language| codes[language].as_str())
            .collect();
        let languages = languages.join(" ");
        let what = if loss.is_finite() { "gradient" } else { "loss" };
        match self.replica.config().training.on_non_finite {
            OnNonFinite::Stop => Err(TrainError::NonFinite {
                step: step.0,
                what,
                languages,
            }),
            OnNonFinite::Skip => {
                tracing::warn!(
                    step = step.0,
                    what,
                    languages,
                    "not finite: the update is left out"
                );
                self.skipped_updates += 1;
                Ok(())
            }
        }
    }

    fn name_languages(
        &self,
        totals: &[LanguageLoss],
        in_batch: &BTreeSet<usize>,
    ) -> BTreeMap<String, LanguageLoss> {
        let codes = &self.replica.config().data.languages;
        in_batch
            .iter()
            .map(|&language| (codes[language].clone(), totals[language]))
            .collect()
    }
}

/// The gradient of `param` as one row; zeros where this rank had nothing to add.
fn flat_gradient(param: &Param) -> Tensor {
    let gradient = param.tensor.grad();
    if gradient.defined() {
        gradient.detach().reshape([-1])
    } else {
        param.tensor.detach().zeros_like().reshape([-1])
    }
}

/// The seed of an utterance's dropout masks at a step: the same on whichever rank the utterance lands.
fn dropout_seed(seed: u64, step: Step, id: &str) -> u64 {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&seed.to_le_bytes());
    hasher.update(&step.0.to_le_bytes());
    hasher.update(id.as_bytes());
    let mut bytes = [0; 8];
    hasher.finalize_xof().fill(&mut bytes);
    u64::from_le_bytes(bytes)
}
