//! One optimizer step of one rank (docs/decisions/0002): the global batch's gradient is the same whatever the world size.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tch::Tensor;
use zipper_config::schema::Schedule;
use zipper_data::Utterance;
use zipper_model::param::{Param, ParamScope};
use zipper_plan::{GlobalBatch, LearningRate, Shape, UtteranceRef, micro_batches};
use zipper_types::{Stage, Step, Variant};

use crate::TrainError;
use crate::judge::Judged;
use crate::optimizer::{LearningRates, clip_factor, squared_norm};
use crate::parts::{StepParts, Stopwatch};
use crate::reading::Reading;
use crate::reduction::{StepLanguages, Traffic};
use crate::replica::{Pass, Seeds};
use crate::seeds::StepSeeds;
use crate::session::{Dealt, Session, Upcoming};

/// What a step did; the same on all ranks, except for what begins with `own` and the time for memory.
#[derive(Debug, Clone, PartialEq)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "facts of a step that do not depend on each other"
)]
pub struct StepReport {
    /// The step that was made.
    pub step: Step,
    /// Its stage.
    pub stage: Stage,
    /// Negative log-likelihood per target token of the global batch, in nats.
    pub loss: f64,
    /// CTC of the transcripts likewise; nothing where it has no weight.
    pub ctc: Option<f64>,
    /// Learning rate of LoRA.
    pub lr: f64,
    /// Norm of the gradient before clipping.
    pub grad_norm: f64,
    /// Target tokens of the global batch.
    pub tokens: u64,
    /// Seconds of audio in the global batch.
    pub audio_seconds: f64,
    /// Whether the update was left out, because a gradient was not finite or the loss a spike.
    pub skipped: bool,
    /// Whether the loss was far above those before; never with `training.on_loss_spike: ignore`.
    pub spike: bool,
    /// Whether some rank was asked to stop: then all stop after this step.
    pub stop: bool,
    /// Whether some rank was asked to let others in: then all leave after this step.
    pub regroup: bool,
    /// Work that was expected of this rank, in the units of the work model.
    pub own_work: f64,
    /// Time of this rank's forward and backward passes.
    pub own_compute: Duration,
    /// Time of this rank for the parts of the step.
    pub own_parts: StepParts,
    /// Time of this rank for remembering the step before, and for copies to and from peers.
    pub memory: Duration,
    /// Loss by language code.
    pub by_language: BTreeMap<String, LanguageLoss>,
    /// What it cost.
    pub cost: StepCost,
}

/// What a rank was asked, and brings into the next step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Votes {
    /// Stop after the step.
    pub stop: bool,
    /// Leave after the step, because others wait to take part.
    pub regroup: bool,
}

/// What a step cost; the same on all ranks, except where it says otherwise.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct StepCost {
    /// Bytes of shared gradients that each rank put into all-reduces over the world.
    pub shared_bytes: u64,
    /// Bytes of gradients of banks that all ranks together put into all-reduces between owners.
    pub bank_bytes: u64,
    /// Time for which a rank waited for collectives: for gradients on average over the ranks, for the step's last exchange
    /// on this one.
    pub exposed: Duration,
    /// Buckets of this rank whose reduction had to wait for the end of the backward pass.
    pub late_buckets: usize,
    /// Time of forward and backward passes, summed over the ranks.
    pub compute: Duration,
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

/// What this rank's passes have lost, summed, in nats.
#[derive(Debug, Default)]
struct OwnLosses {
    by_language: BTreeMap<usize, LanguageLoss>,
    ctc: f64,
}

impl Session {
    /// Makes one optimizer step.
    ///
    /// # Collective
    /// Every rank of the team calls it, with its own votes.
    ///
    /// # Errors
    /// [`TrainError::Collective`] if a peer is lost, [`TrainError::NonFinite`] and [`TrainError::LossSpike`] as configured,
    /// [`TrainError::Audio`] if an utterance became unreadable.
    pub fn train_step(&mut self, votes: Votes) -> Result<StepReport, TrainError> {
        let step = self.step.next();
        let Dealt { batch, mine, .. } = self.next_batch();
        self.read_ahead(step.next())?;
        let corpus = Arc::clone(&self.corpus);
        let utterances = utterances_of(&corpus, &batch);
        let in_batch = languages_of(&utterances);
        let mine: Vec<&Utterance> = mine.into_iter().map(|index| utterances[index]).collect();

        // What was decoded since the last step is none of this one's.
        self.replica.frames().take_times();
        let backward = Stopwatch::default();
        let started = Instant::now();
        let losses = self.accumulate_gradients(step, &mine, &in_batch, &backward)?;
        let compute = started.elapsed();
        let mut parts = self.parts_of_passes(compute, &backward);
        let exchanging = Instant::now();
        let traffic = self.reduction().finish()?;
        let sums = self.sum_over_ranks(step, &in_batch, &losses, compute, traffic, votes)?;
        parts.exchange = exchanging.elapsed();

        let loss = sums.nll / sums.tokens;
        let grad_norm = sums.squared_norm.sqrt() / sums.tokens;
        let Judged { spike, skipped } = self.judge(step, loss, grad_norm, &in_batch)?;
        let rates = self.rates(step);
        let mut memory = self.keep_this_step();
        if skipped {
            self.skipped_updates += 1;
        } else {
            let updating = Instant::now();
            self.update(&in_batch, sums.tokens, grad_norm, rates)?;
            parts.update = updating.elapsed();
        }
        self.step = step;
        self.recent_losses.push(loss);
        self.boundary = Some(self.train_state());
        memory += self.give_and_take_copies(step);
        Ok(StepReport {
            step,
            stage: self.replica.stage(),
            loss,
            ctc: (self.replica.config().model.projector.ctc_weight > 0.0).then(|| sums.ctc / sums.tokens),
            lr: rates.lora,
            grad_norm,
            tokens: sums.tokens as u64,
            audio_seconds: utterances.iter().map(|utterance| utterance.duration).sum(),
            skipped,
            spike,
            stop: sums.stop_votes > 0.0,
            regroup: sums.regroup_votes > 0.0,
            own_work: mine.iter().map(|utterance| self.team().cost(utterance)).sum(),
            own_compute: compute,
            own_parts: parts,
            memory,
            by_language: self.name_languages(&sums.by_language, &utterances),
            cost: sums.cost,
        })
    }

    /// The global batch of this step, and this rank's part.
    fn next_batch(&mut self) -> Dealt {
        let to_owners = self.replica.has_banks();
        match self.upcoming.take() {
            Some(Upcoming { dealt, .. }) if dealt.to_owners == to_owners => dealt,
            // A stage has begun since it was dealt.
            Some(Upcoming { dealt, .. }) => self.deal(dealt.batch),
            None => {
                let batch = self.sampler.next_batch();
                self.deal(batch)
            }
        }
    }

    fn deal(&self, batch: GlobalBatch) -> Dealt {
        let to_owners = self.replica.has_banks();
        let mine = self.team().deal(&utterances_of(&self.corpus, &batch), to_owners);
        Dealt {
            batch,
            to_owners,
            mine,
        }
    }

    /// Draws the batch of `step`, the one after this, and begins to read this rank's part of it in another thread.
    fn read_ahead(&mut self, step: Step) -> Result<(), TrainError> {
        let drawn_from = self.sampler.state();
        let batch = self.sampler.next_batch();
        let dealt = self.deal(batch);
        let config = self.replica.config();
        let seeds = StepSeeds { config, step };
        let seed = |at: UtteranceRef| seeds.augment(&self.corpus[at.language][at.index].id);
        let mine = dealt.mine.iter().map(|&index| dealt.batch.utterances[index]);
        self.replica.frames().read_ahead(Reading {
            corpus: Arc::clone(&self.corpus),
            utterances: mine.map(|at| (at, seed(at))).collect(),
            augment: config.training.augment.clone(),
        })?;
        self.upcoming = Some(Upcoming { drawn_from, dealt });
        Ok(())
    }

    /// Forward and backward passes that took `compute` together, taken apart.
    fn parts_of_passes(&self, compute: Duration, backward: &Stopwatch) -> StepParts {
        let (data, encoder) = self.replica.frames().take_times();
        let parts = StepParts {
            data,
            encoder,
            backward: backward.take(),
            ..StepParts::default()
        };
        StepParts {
            forward: compute.saturating_sub(parts.data + parts.encoder + parts.backward),
            ..parts
        }
    }

    /// Before the update: remembers the state as it is, for ranks that do not get so far. Alone there are none; and before the
    /// first step of a stage the end of the one before is remembered already.
    fn keep_this_step(&mut self) -> Duration {
        let started = Instant::now();
        if self.team().placement().world_size().0 > 1
            && let Some(state) = self.boundary.take()
        {
            self.memory.keep(state, &self.replica.params(), &self.optimizer);
        }
        started.elapsed()
    }

    /// After the update: copies of banks to and from peers, if they are due.
    fn give_and_take_copies(&mut self, step: Step) -> Duration {
        let started = Instant::now();
        if let Err(error) = self.snapshot_if_due(step) {
            // The step is made, and this rank says so; with a lost peer the next one fails.
            tracing::warn!(step = step.0, "copies of banks could not be made: {error}");
        }
        started.elapsed()
    }

    /// Forward and backward over this rank's part of the batch; gradients of the *summed* loss end up in the parameters,
    /// and are on their way to the other ranks when the last backward pass ends.
    fn accumulate_gradients(
        &self,
        step: Step,
        mine: &[&Utterance],
        in_batch: &BTreeSet<usize>,
        backward: &Stopwatch,
    ) -> Result<OwnLosses, TrainError> {
        let config = self.replica.config();
        // Gradients of other banks are looked at by nobody: with many languages most of memory is theirs.
        self.reduction().zero(in_batch);
        let languages: Vec<usize> = languages_of(mine).into_iter().collect();
        let mut losses = OwnLosses::default();
        let merged = self.replica.adapters().merge(&languages);
        let mut last_pass = merged.last_pass(self.replica.adapters());
        if config.runtime.recompute_activations {
            last_pass = last_pass.layer_by_layer();
        }
        let seconds: Vec<f64> = mine.iter().map(|utterance| utterance.duration).collect();
        let mut micro_batches = micro_batches(&seconds, config.training.micro_batch_audio_seconds);
        let last = micro_batches.pop();
        for micro_batch in micro_batches {
            self.accumulate(
                step,
                &pick(mine, &micro_batch),
                Pass::Gather(&merged),
                &mut losses,
                backward,
                || Ok(()),
            )?;
        }
        let last = pick(mine, &last.unwrap_or_default());
        let in_last_pass = match config.adapter.variant {
            // Nothing is merged: other languages have their gradients already.
            Variant::Independent => languages_of(&last),
            _ => languages.into_iter().collect(),
        };
        let begin = || {
            let languages = StepLanguages {
                in_batch,
                in_last_pass: &in_last_pass,
            };
            Ok(self.reduction().begin(step, &languages)?)
        };
        if last.is_empty() {
            begin()?;
        } else {
            self.accumulate(step, &last, Pass::Last(&last_pass), &mut losses, backward, begin)?;
        }
        Ok(losses)
    }

    /// Forward and backward over one micro batch, with `before_backward` between them.
    fn accumulate(
        &self,
        step: Step,
        micro_batch: &[&Utterance],
        pass: Pass<'_>,
        losses: &mut OwnLosses,
        backward: &Stopwatch,
        before_backward: impl FnOnce() -> Result<(), TrainError>,
    ) -> Result<(), TrainError> {
        let config = self.replica.config();
        let of_step = StepSeeds { config, step };
        let ids = micro_batch.iter().map(|utterance| &utterance.id);
        let dropout: Option<Vec<u64>> = ids.clone().map(|id| of_step.dropout(id)).collect();
        let augment: Option<Vec<u64>> = ids.map(|id| of_step.augment(id)).collect();
        let seeds = Seeds {
            dropout: dropout.as_deref(),
            augment: augment.as_deref(),
        };
        let of_pass = self.replica.losses(micro_batch, pass, seeds)?;
        let (sums, tokens) = (of_pass.nll.sums.shallow_clone(), of_pass.nll.tokens.clone());
        let ctc = of_pass.nll.ctc.as_ref().map(Tensor::detach);
        before_backward()?;
        backward.time(|| self.replica.backward(micro_batch, pass, seeds, of_pass))?;
        let sums = Vec::<f64>::try_from(sums.to_kind(tch::Kind::Double))?;
        for ((utterance, nll), tokens) in micro_batch.iter().zip(sums).zip(tokens) {
            let loss = losses.by_language.entry(utterance.language).or_default();
            loss.nll += nll;
            loss.tokens += tokens as u64;
        }
        if let Some(ctc) = ctc {
            losses.ctc += f64::try_from(&ctc)?;
        }
        Ok(())
    }

    /// Adds up what every rank knows for itself. The one exchange of a step besides gradients: its size depends on the
    /// languages in the batch, not on how many there are.
    fn sum_over_ranks(
        &self,
        step: Step,
        in_batch: &BTreeSet<usize>,
        losses: &OwnLosses,
        compute: Duration,
        traffic: Traffic,
        votes: Votes,
    ) -> Result<Sums, TrainError> {
        let params = self.replica.params();
        let mut values = vec![
            f64::from(u8::from(votes.stop)),
            f64::from(u8::from(votes.regroup)),
            compute.as_secs_f64(),
            traffic.exposed.as_secs_f64(),
            traffic.bank_bytes as f64,
            losses.ctc,
        ];
        for &language in in_batch {
            values.extend(self.own_sums_of(language, &params, losses));
        }
        let values = Tensor::from_slice(&values).to_device(self.replica.device());
        let started = Instant::now();
        self.team()
            .world()
            .all_reduce_sum(&values, &format!("losses, norms and stop votes of step {step}"))?;
        let waited = started.elapsed();
        let values = Vec::<f64>::try_from(values)?;
        let (&[stop_votes, regroup_votes, compute, exposed, bank_bytes, ctc], of_languages) =
            values.split_first_chunk::<6>().expect("as many as were put in");
        let world_size = self.team().placement().world_size();
        let mut sums = Sums {
            stop_votes,
            regroup_votes,
            ctc,
            squared_norm: squared_norm_of(&params, ParamScope::Shared),
            cost: StepCost {
                shared_bytes: traffic.shared_bytes,
                bank_bytes: bank_bytes as u64,
                exposed: Duration::from_secs_f64(exposed / f64::from(world_size.0)) + waited,
                late_buckets: traffic.late_buckets,
                compute: Duration::from_secs_f64(compute),
            },
            ..Sums::default()
        };
        for (&language, of_language) in in_batch.iter().zip(of_languages.chunks_exact(3)) {
            let loss = LanguageLoss {
                nll: of_language[0],
                tokens: of_language[1] as u64,
                utterances: 0,
            };
            sums.nll += loss.nll;
            sums.tokens += of_language[1];
            sums.squared_norm += of_language[2];
            sums.by_language.insert(language, loss);
        }
        Ok(sums)
    }

    /// What this rank knows of one language: loss, target tokens, and the squared norm of the gradient of its bank.
    fn own_sums_of(&self, language: usize, params: &[&Param], losses: &OwnLosses) -> [f64; 3] {
        let loss = losses.by_language.get(&language).copied().unwrap_or_default();
        // A bank is counted once, however many ranks have a copy.
        let counts_bank = self.team().placement().first_owner(language) == self.team().rank();
        let bank = if counts_bank {
            squared_norm_of(params, ParamScope::Bank(language))
        } else {
            0.0
        };
        [loss.nll, loss.tokens as f64, bank]
    }

    /// Divides the gradients by the tokens of the global batch, clips them, and makes the optimizer step. Banks of
    /// languages that do not occur in the batch stay as they are.
    fn update(
        &mut self,
        in_batch: &BTreeSet<usize>,
        tokens: f64,
        grad_norm: f64,
        rates: LearningRates,
    ) -> Result<(), TrainError> {
        let params = self.replica.params();
        let mut updated = BTreeSet::from([ParamScope::Shared]);
        if self.replica.has_banks() {
            updated.extend(in_batch.iter().map(|&language| ParamScope::Bank(language)));
        }
        let factor = clip_factor(grad_norm, self.replica.config().training.clip_grad_norm) / tokens;
        let gradients = params
            .iter()
            .filter(|param| updated.contains(&param.scope))
            .map(|param| param.tensor.grad());
        zipper_aten::mul(&gradients.collect::<Vec<_>>(), factor)?;
        self.optimizer.step(&params, &updated, rates)?;
        let settled = !self.makes_snapshots();
        self.memory.updated(&updated, settled);
        Ok(())
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
            Schedule::InverseSqrt => Shape::InverseSqrt,
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
            lora: rate(settings.lr),
            projector: rate(settings.projector_lr.unwrap_or(settings.lr)),
            router: rate(settings.router_lr.unwrap_or(settings.lr)),
        }
    }

    /// The losses by language code, with the number of utterances of each.
    fn name_languages(
        &self,
        by_language: &BTreeMap<usize, LanguageLoss>,
        utterances: &[&Utterance],
    ) -> BTreeMap<String, LanguageLoss> {
        let codes = &self.replica.config().data.languages;
        let of_language = |language| {
            utterances
                .iter()
                .filter(|utterance| utterance.language == language)
                .count() as u64
        };
        by_language
            .iter()
            .map(|(&language, &loss)| {
                let utterances = of_language(language);
                (codes[language].clone(), LanguageLoss { utterances, ..loss })
            })
            .collect()
    }
}

/// What all ranks together know about a step.
#[derive(Debug, Default)]
struct Sums {
    nll: f64,
    ctc: f64,
    tokens: f64,
    stop_votes: f64,
    regroup_votes: f64,
    /// Of the gradient of the summed loss, over shared parameters and banks, each counted once.
    squared_norm: f64,
    by_language: BTreeMap<usize, LanguageLoss>,
    cost: StepCost,
}

/// The sum of the squares of the gradients of one scope.
fn squared_norm_of(params: &[&Param], scope: ParamScope) -> f64 {
    squared_norm(params.iter().copied().filter(|param| param.scope == scope))
}

fn utterances_of<'a>(corpus: &'a [Vec<Utterance>], batch: &GlobalBatch) -> Vec<&'a Utterance> {
    let refs = batch.utterances.iter();
    refs.map(|at| &corpus[at.language][at.index]).collect()
}

fn languages_of(utterances: &[&Utterance]) -> BTreeSet<usize> {
    utterances.iter().map(|utterance| utterance.language).collect()
}

/// Those of one language side by side, whose adapter is then one multiplication.
fn pick<'a>(utterances: &[&'a Utterance], indices: &[usize]) -> Vec<&'a Utterance> {
    let mut picked: Vec<&Utterance> = indices.iter().map(|&index| utterances[index]).collect();
    picked.sort_by_key(|utterance| utterance.language);
    picked
}
