//! What one rank holds between two steps, and how it becomes the parts of a checkpoint and back.

use std::sync::Arc;

use zipper_collectives::CollectiveError;
use zipper_config::schema::{RunConfig, StageConfig};
use zipper_data::Utterance;
use zipper_model::param::ParamScope;
use zipper_plan::{Placement, PlacementProblem, Sampler, SamplerProblem};
use zipper_types::{Rank, Stage, Step};

use crate::TrainError;
use crate::optimizer::AdamW;
use crate::reduction::Reduction;
use crate::replica::Replica;
use crate::state::{self, STATE_PART, TrainState};
use crate::team::Team;

/// The training state of one rank.
pub struct Session {
    pub(crate) replica: Replica,
    pub(crate) team: Team,
    pub(crate) reduction: Reduction,
    pub(crate) optimizer: AdamW,
    pub(crate) sampler: Sampler,
    /// Training utterances by language ordinal.
    pub(crate) corpus: Arc<Vec<Vec<Utterance>>>,
    pub(crate) step: Step,
    pub(crate) skipped_updates: u64,
}

/// One object of a checkpoint: its name below the checkpoint's folder and its contents.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// `banks/de.safetensors`.
    pub name: String,
    /// The whole object.
    pub bytes: Vec<u8>,
}

impl Session {
    /// A run that has made no step. `replica` has the banks that this rank owns in `team`.
    ///
    /// # Collective
    /// Every rank of the team calls it.
    ///
    /// # Errors
    /// [`TrainError::Plan`] if no global batch can be drawn, [`TrainError::Collective`] if a peer is lost.
    pub fn new(replica: Replica, utterances: Vec<Utterance>, team: Team) -> Result<Self, TrainError> {
        let config = replica.config();
        let mut corpus: Vec<Vec<Utterance>> = config.data.languages.iter().map(|_| Vec::new()).collect();
        for utterance in utterances {
            corpus[utterance.language].push(utterance);
        }
        let sampler = Sampler::new(sampler_problem(config, &corpus))?;
        let optimizer = AdamW::new(&config.training.optimizer, &replica.params());
        let reduction = reduction(&replica, &team)?;
        Ok(Self {
            replica,
            team,
            reduction,
            optimizer,
            sampler,
            corpus: Arc::new(corpus),
            step: Step(0),
            skipped_updates: 0,
        })
    }

    /// The copy of the model that is being trained.
    pub fn replica(&self) -> &Replica {
        &self.replica
    }

    /// The ranks that train together.
    pub fn team(&self) -> &Team {
        &self.team
    }

    /// Training utterances by language ordinal.
    pub fn corpus(&self) -> Arc<Vec<Vec<Utterance>>> {
        Arc::clone(&self.corpus)
    }

    /// The scope of everything that the optimizer holds on this rank.
    pub fn optimizer_scopes(&self) -> Vec<ParamScope> {
        self.optimizer.scopes()
    }

    /// Bytes of banks on this rank: weights, gradients and optimizer state.
    pub fn bank_bytes(&self) -> u64 {
        let params = self.replica.params();
        let of_banks = params.iter().filter(|param| param.scope != ParamScope::Shared);
        let bytes = of_banks.map(|param| param.tensor.numel() * param.tensor.kind().elt_size_in_bytes());
        // Weight, gradient and two moments.
        4 * bytes.sum::<usize>() as u64
    }

    /// Completed optimizer steps.
    pub fn step(&self) -> Step {
        self.step
    }

    /// The stage of the next step and its settings.
    pub fn stage(&self) -> (Stage, &StageConfig) {
        let training = &self.replica.config().training;
        match self.replica.stage() {
            Stage::Align => (Stage::Align, &training.align),
            Stage::Zipper => (Stage::Zipper, &training.zipper),
        }
    }

    /// Goes to `stage` if it is not there yet: new adapters by Initial-B, new optimizer state. The sampler goes on.
    ///
    /// # Collective
    /// Every rank of the team calls it.
    ///
    /// # Errors
    /// [`TrainError::Model`] if an adapter cannot have the configured shape, [`TrainError::Collective`] if a peer is lost.
    pub fn enter(&mut self, stage: Stage) -> Result<(), TrainError> {
        if stage == Stage::Zipper && self.replica.stage() == Stage::Align {
            self.replica.enter_zipper_stage()?;
            self.optimizer = AdamW::new(&self.replica.config().training.optimizer, &self.replica.params());
            self.reduction = reduction(&self.replica, &self.team)?;
        }
        Ok(())
    }

    /// This rank's part of a set of utterances that is to be decoded, under a placement made for that set: the same work
    /// for every rank, whoever trains their languages. Gets a copy of the banks that it takes and which are not here;
    /// give them back with [`Session::return_banks`].
    ///
    /// # Collective
    /// Every rank of the team calls it with the same utterances in the same order.
    ///
    /// # Errors
    /// [`TrainError::Collective`] if a peer is lost.
    pub fn borrow_banks<'a>(
        &mut self,
        utterances: &[&'a Utterance],
    ) -> Result<Vec<&'a Utterance>, TrainError> {
        let mut work = vec![0.0; self.replica.config().data.languages.len()];
        for utterance in utterances {
            work[utterance.language] += self.team.cost(utterance);
        }
        let placement = Placement::solve(&PlacementProblem {
            work,
            world_size: self.team.placement().world_size(),
            max_banks_per_rank: None,
        })?;
        if self.replica.has_banks() {
            for language in 0..self.replica.config().data.languages.len() {
                self.lend(language, &placement)?;
            }
        }
        Ok(self.team.hand(&placement, utterances))
    }

    /// Sends a bank to the ranks that need it and do not own it, if there are any.
    fn lend(&mut self, language: usize, needed: &Placement) -> Result<(), TrainError> {
        let owned = self.team.placement();
        if needed
            .owners(language)
            .all(|rank| owned.owns(Rank(rank), language))
        {
            return Ok(());
        }
        let (own, lender) = (self.team.rank(), owned.first_owner(language));
        let weights = if own == lender {
            self.replica.adapters().bank_weights(language)
        } else {
            self.replica.adapters().empty_bank()
        };
        let what = format!("bank {language} for decoding");
        self.team.world().broadcast(&weights, lender, &what)?;
        if needed.owns(own, language) && !self.replica.adapters().has_bank(language) {
            self.replica.adapters_mut().borrow_bank(language, &weights);
        }
        Ok(())
    }

    /// Lets go of the banks that were borrowed.
    pub fn return_banks(&mut self) {
        self.replica.adapters_mut().return_banks();
    }

    /// The parts of the checkpoint of this step that this rank writes: rank 0 the shared ones, the first owner of a bank
    /// that bank.
    ///
    /// # Errors
    /// [`TrainError::State`] if a part cannot be built.
    pub fn parts(&self) -> Result<Vec<Part>, TrainError> {
        let rank = self.team.rank();
        let params = self.replica.params();
        let mut parts = Vec::new();
        for (scope, name) in self.replica.scopes() {
            let writer = match scope {
                ParamScope::Shared => Rank(0),
                ParamScope::Bank(language) => self.team.placement().first_owner(language),
            };
            if writer != rank {
                continue;
            }
            let moments = self.optimizer.state(&params, scope);
            parts.push(Part {
                name: format!("{name}.safetensors"),
                bytes: self.replica.scope_to_bytes(scope)?,
            });
            parts.push(Part {
                name: format!("optimizer/{name}.safetensors"),
                bytes: state::to_safetensors(moments.iter().map(|(name, tensor)| (name.clone(), tensor)))?,
            });
        }
        if rank.0 == 0 {
            let bytes = serde_json::to_vec_pretty(&self.train_state())
                .map_err(|error| TrainError::State(error.to_string()))?;
            parts.push(Part {
                name: STATE_PART.to_owned(),
                bytes,
            });
        }
        Ok(parts)
    }

    /// Goes to the state of a checkpoint, whose parts `read` returns by name. Reads no bank but this rank's own.
    ///
    /// # Collective
    /// Every rank of the team calls it.
    ///
    /// # Errors
    /// What `read` returns, or [`TrainError::State`] if a part does not fit this configuration.
    pub fn restore<E: From<TrainError>>(
        &mut self,
        mut read: impl FnMut(&str) -> Result<Vec<u8>, E>,
    ) -> Result<(), E> {
        let saved = TrainState::read(&mut read)?;
        self.enter(saved.stage)?;
        self.replica.restore(&mut read)?;
        for (scope, name) in self.replica.scopes() {
            let part = format!("optimizer/{name}.safetensors");
            let tensors = state::from_safetensors(&part, &read(&part)?)?;
            self.optimizer.restore(&self.replica.params(), scope, &tensors)?;
        }
        self.optimizer
            .restore_steps(ParamScope::Shared, saved.shared_optimizer_steps);
        for (language, code) in self.replica.config().data.languages.iter().enumerate() {
            if let Some(&steps) = saved.bank_optimizer_steps.get(code) {
                self.optimizer.restore_steps(ParamScope::Bank(language), steps);
            }
        }
        let problem = sampler_problem(self.replica.config(), &self.corpus);
        self.sampler = Sampler::restore(problem, saved.sampler).map_err(TrainError::from)?;
        self.step = saved.step;
        self.skipped_updates = saved.skipped_updates;
        Ok(())
    }

    fn train_state(&self) -> TrainState {
        let languages = &self.replica.config().data.languages;
        let steps = self.optimizer.steps();
        TrainState {
            stage: self.replica.stage(),
            step: self.step,
            sampler: self.sampler.state(),
            shared_optimizer_steps: steps.get(&ParamScope::Shared).copied().unwrap_or(0),
            bank_optimizer_steps: languages
                .iter()
                .enumerate()
                .filter_map(|(language, code)| {
                    steps
                        .get(&ParamScope::Bank(language))
                        .map(|&steps| (code.clone(), steps))
                })
                .collect(),
            skipped_updates: self.skipped_updates,
        }
    }
}

fn reduction(replica: &Replica, team: &Team) -> Result<Reduction, CollectiveError> {
    let runtime = &replica.config().runtime;
    Reduction::new(&replica.params(), replica.num_llm_sites(), team, runtime)
}

fn sampler_problem(config: &RunConfig, corpus: &[Vec<Utterance>]) -> SamplerProblem {
    SamplerProblem {
        seed: config.seed,
        temperature: config.data.temperature,
        batch_seconds: config.training.batch_audio_seconds,
        durations: corpus
            .iter()
            .map(|utterances| utterances.iter().map(|utterance| utterance.duration).collect())
            .collect(),
    }
}
