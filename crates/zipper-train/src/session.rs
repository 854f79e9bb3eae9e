//! What one rank holds between two steps, and how it becomes the parts of a checkpoint and back. How it changes teams is in
//! `regroup`.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use zipper_collectives::CollectiveError;
use zipper_config::schema::StageConfig;
use zipper_data::{Utterance, corpus_fingerprint, sampler_problem};
use zipper_model::param::ParamScope;
use zipper_plan::{GlobalBatch, Placement, PlacementProblem, Sampler, SamplerState};
use zipper_types::{Rank, Stage, Step};

use crate::TrainError;
use crate::capture::Pool;
use crate::memory::{Memory, Remembered};
use crate::optimizer::AdamW;
use crate::reduction::Reduction;
use crate::replica::Replica;
use crate::spike::RecentLosses;
use crate::start::Start;
use crate::state::{self, TrainState};
use crate::team::Team;

/// The training state of one rank.
///
/// A session is made alone. [`Session::regroup`] takes it into a team, [`Session::leave`] out of it, and it remembers what it
/// had: so it can go on in another team, from the newest step that all of them remember.
pub struct Session {
    pub(crate) replica: Replica,
    /// The ranks that train together, and what sums their gradients; nothing outside of a team.
    pub(crate) team: Option<Team>,
    pub(crate) reduction: Option<Reduction>,
    pub(crate) optimizer: AdamW,
    pub(crate) sampler: Sampler,
    /// What was drawn before its turn.
    pub(crate) upcoming: Option<Upcoming>,
    /// Training utterances by language ordinal.
    pub(crate) corpus: Arc<Vec<Vec<Utterance>>>,
    /// Of the corpus. A state of another one is of other batches.
    corpus_fingerprint: String,
    pub(crate) step: Step,
    pub(crate) skipped_updates: u64,
    pub(crate) recent_losses: RecentLosses,
    /// Everything that is not a tensor after the last step. Nothing while parameters and optimizer are of no step: when a team
    /// was left, and between the entry into a stage and its first step.
    pub(crate) boundary: Option<TrainState>,
    pub(crate) memory: Memory,
    /// Host memory for checkpoints.
    pub(crate) pool: Pool,
}

/// The batch of the next step, drawn while this one is made.
pub(crate) struct Upcoming {
    /// Where the sampler stood before it was drawn: what a checkpoint of this step holds.
    pub(crate) drawn_from: SamplerState,
    pub(crate) dealt: Dealt,
}

/// A global batch and this rank's part of it.
pub(crate) struct Dealt {
    pub(crate) batch: GlobalBatch,
    /// Whether it was dealt to the owners of banks.
    pub(crate) to_owners: bool,
    /// Indices into the batch.
    pub(crate) mine: Vec<usize>,
}

/// Where the state of a new team comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// Initial values.
    Fresh,
    /// A checkpoint, which [`Session::restore`] reads.
    Checkpoint,
    /// What its ranks remember.
    Memory {
        /// The rank that gives the shared parameters to those who lack them.
        shared: Rank,
        /// The rank that gives each bank; empty in a stage without banks.
        banks: Vec<Rank>,
    },
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
    /// A run that has made no step, in no team yet.
    ///
    /// # Errors
    /// [`TrainError::Plan`] if no global batch can be drawn.
    pub fn new(replica: Replica, utterances: Vec<Utterance>) -> Result<Self, TrainError> {
        let config = replica.config();
        let mut corpus: Vec<Vec<Utterance>> = config.data.languages.iter().map(|_| Vec::new()).collect();
        for utterance in utterances {
            corpus[utterance.language].push(utterance);
        }
        let corpus_fingerprint = corpus_fingerprint(&config.data.languages, corpus.iter().flatten());
        let sampler = Sampler::new(sampler_problem(config, corpus.iter().flatten()))?;
        let optimizer = AdamW::new(&config.training.optimizer, &replica.params());
        Ok(Self {
            replica,
            team: None,
            reduction: None,
            optimizer,
            sampler,
            upcoming: None,
            corpus: Arc::new(corpus),
            corpus_fingerprint,
            step: Step(0),
            skipped_updates: 0,
            recent_losses: RecentLosses::default(),
            boundary: None,
            memory: Memory::default(),
            pool: Pool::default(),
        })
    }

    /// The copy of the model that is being trained.
    pub fn replica(&self) -> &Replica {
        &self.replica
    }

    /// The ranks that train together.
    ///
    /// # Panics
    /// Outside of a team.
    pub fn team(&self) -> &Team {
        self.team.as_ref().expect("a session works in a team")
    }

    pub(crate) fn reduction(&self) -> &Reduction {
        self.reduction.as_ref().expect("a session works in a team")
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
        // Weight, gradient and two moments.
        4 * of_banks.map(|param| param.bytes()).sum::<usize>() as u64
    }

    /// Bytes of everything trained on this rank, with its optimizer state.
    pub fn trained_bytes(&self) -> u64 {
        let params = self.replica.params();
        // Weight and two moments.
        3 * params.iter().map(|param| param.bytes()).sum::<usize>() as u64
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
    /// [`TrainError::Adapter`] if an adapter cannot have the configured shape, [`TrainError::Collective`] if a peer is lost.
    pub fn enter(&mut self, stage: Stage) -> Result<(), TrainError> {
        if stage == Stage::Zipper && self.replica.stage() == Stage::Align {
            if let Some(state) = self.boundary.take() {
                // Until the first step of the stage, others go on from the end of the one before.
                let ended = Remembered::of(state, &self.replica.params(), &self.optimizer);
                self.memory.enter_stage(ended);
            }
            self.replica.enter_zipper_stage()?;
            self.optimizer = AdamW::new(&self.replica.config().training.optimizer, &self.replica.params());
            self.reduction = Some(self.new_reduction(self.team())?);
        }
        Ok(())
    }

    /// Begins with the values of `start` instead of those from the seed; before the first step, in stage 1.
    ///
    /// # Errors
    /// [`TrainError::Start`] if they are not those of this configuration's parameters.
    pub fn start_from(&mut self, start: &Start) -> Result<(), TrainError> {
        let params = self.replica.params().into_iter();
        start.copy_into(params.map(|param| (param.name.as_str(), param.tensor.shallow_clone())))
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
            work[utterance.language] += self.team().cost(utterance);
        }
        let placement = Placement::solve(&PlacementProblem {
            work,
            world_size: self.team().placement().world_size(),
            max_banks_per_rank: None,
        })?;
        if self.replica.has_banks() {
            for language in 0..self.replica.config().data.languages.len() {
                self.lend(language, &placement)?;
            }
        }
        let mine = self.team().hand(&placement, utterances);
        Ok(mine.into_iter().map(|index| utterances[index]).collect())
    }

    /// Sends a bank to the ranks that need it and do not own it, if there are any.
    fn lend(&mut self, language: usize, needed: &Placement) -> Result<(), TrainError> {
        let owned = self.team().placement();
        if needed
            .owners(language)
            .all(|rank| owned.owns(Rank(rank), language))
        {
            return Ok(());
        }
        let (own, lender) = (self.team().rank(), owned.first_owner(language));
        let weights = if own == lender {
            self.replica.adapters().bank_weights(language)
        } else {
            self.replica.adapters().empty_bank()
        };
        let what = format!("bank {language} for decoding");
        self.team().world().broadcast(&weights, lender, &what)?;
        if needed.owns(own, language) && !self.replica.adapters().has_bank(language) {
            self.replica.adapters_mut().borrow_bank(language, &weights);
        }
        Ok(())
    }

    /// Lets go of the banks that were borrowed.
    pub fn return_banks(&mut self) {
        self.replica.adapters_mut().return_banks();
    }

    /// The parts of the checkpoint of this step that this rank writes, at once; see [`Session::capture`].
    ///
    /// # Errors
    /// [`TrainError::State`] if a part cannot be built.
    pub fn parts(&self) -> Result<Vec<Part>, TrainError> {
        self.capture()?.parts()
    }

    /// Goes to the state of a checkpoint, whose parts `read` returns by their names, in their order. Reads no bank but this rank's own.
    ///
    /// # Collective
    /// Every rank of the team calls it.
    ///
    /// # Errors
    /// What `read` returns, [`TrainError::State`] if a part does not fit this configuration, or [`TrainError::Corpus`] if the state is of
    /// another corpus.
    pub fn restore<E: From<TrainError>>(
        &mut self,
        mut read: impl FnMut(&[String]) -> Result<Vec<Vec<u8>>, E>,
    ) -> Result<(), E> {
        let saved = TrainState::read(&mut read)?;
        // Half a checkpoint is no state that others could go on from.
        self.boundary = None;
        self.rebuild(saved.stage, self.team().own_banks())?;
        self.replica.restore(&mut read)?;
        let scopes = self.replica.scopes();
        let parts: Vec<String> = scopes.values().map(|name| state::optimizer_part(name)).collect();
        for ((&scope, part), bytes) in scopes.keys().zip(&parts).zip(read(&parts)?) {
            let tensors = state::from_safetensors(part, &bytes)?;
            self.optimizer.restore(&self.replica.params(), scope, &tensors)?;
        }
        let step = saved.step;
        self.adopt(saved)?;
        self.reduction = Some(self.new_reduction(self.team()).map_err(TrainError::from)?);
        self.memory.forget_after(step);
        Ok(())
    }

    /// Makes parameters and optimizer of `stage` anew.
    pub(crate) fn rebuild(&mut self, stage: Stage, banks: BTreeSet<usize>) -> Result<(), TrainError> {
        // Its hooks are on the parameters that go.
        self.reduction = None;
        self.replica.rebuild(stage, banks)?;
        self.optimizer = AdamW::new(&self.replica.config().training.optimizer, &self.replica.params());
        Ok(())
    }

    /// Takes in everything that is not a tensor.
    ///
    /// # Errors
    /// [`TrainError::Corpus`] if it is of another corpus, where that is known; [`TrainError::Plan`] if it cannot be of this one.
    pub(crate) fn adopt(&mut self, saved: TrainState) -> Result<(), TrainError> {
        let of_state = saved.corpus_fingerprint.as_ref();
        if of_state.is_some_and(|fingerprint| *fingerprint != self.corpus_fingerprint) {
            return Err(TrainError::Corpus {
                run: self.replica.config().name.clone(),
            });
        }
        self.optimizer
            .restore_steps(ParamScope::Shared, saved.shared_optimizer_steps);
        for (language, code) in self.replica.config().data.languages.iter().enumerate() {
            if let Some(&steps) = saved.bank_optimizer_steps.get(code) {
                self.optimizer.restore_steps(ParamScope::Bank(language), steps);
            }
        }
        let problem = sampler_problem(self.replica.config(), self.corpus.iter().flatten());
        self.sampler = Sampler::restore(problem, saved.sampler.clone())?;
        self.upcoming = None;
        self.step = saved.step;
        self.skipped_updates = saved.skipped_updates;
        self.recent_losses = saved.recent_losses.clone();
        self.boundary = Some(saved);
        Ok(())
    }

    /// The state of a run that has made no step.
    pub(crate) fn initial_state(&self) -> Result<TrainState, TrainError> {
        let problem = sampler_problem(self.replica.config(), self.corpus.iter().flatten());
        Ok(TrainState {
            stage: Stage::Align,
            step: Step(0),
            sampler: Sampler::new(problem)?.state(),
            corpus_fingerprint: Some(self.corpus_fingerprint.clone()),
            shared_optimizer_steps: 0,
            bank_optimizer_steps: BTreeMap::new(),
            skipped_updates: 0,
            recent_losses: RecentLosses::default(),
        })
    }

    pub(crate) fn new_reduction(&self, team: &Team) -> Result<Reduction, CollectiveError> {
        let runtime = &self.replica.config().runtime;
        Reduction::new(
            &self.replica.params(),
            self.replica.num_llm_sites(),
            team,
            runtime,
        )
    }

    pub(crate) fn train_state(&self) -> TrainState {
        let languages = &self.replica.config().data.languages;
        let steps = self.optimizer.steps();
        TrainState {
            stage: self.replica.stage(),
            step: self.step,
            sampler: match &self.upcoming {
                Some(upcoming) => upcoming.drawn_from.clone(),
                None => self.sampler.state(),
            },
            corpus_fingerprint: Some(self.corpus_fingerprint.clone()),
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
            recent_losses: self.recent_losses.clone(),
        }
    }
}
