//! What one rank holds between two steps, and how it becomes the parts of a checkpoint and back.

use zipper_config::schema::{RunConfig, StageConfig};
use zipper_data::Utterance;
use zipper_model::param::ParamScope;
use zipper_plan::{Sampler, SamplerProblem};
use zipper_types::{Rank, Stage, Step, WorldSize};

use crate::TrainError;
use crate::optimizer::AdamW;
use crate::replica::Replica;
use crate::state::{self, STATE_PART, TrainState};

/// The training state of one rank.
pub struct Session {
    pub(crate) replica: Replica,
    pub(crate) optimizer: AdamW,
    pub(crate) sampler: Sampler,
    /// Training utterances by language ordinal.
    pub(crate) corpus: Vec<Vec<Utterance>>,
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
    /// A run that has made no step.
    ///
    /// # Errors
    /// [`TrainError::Plan`] if no global batch can be drawn.
    pub fn new(replica: Replica, utterances: Vec<Utterance>) -> Result<Self, TrainError> {
        let config = replica.config();
        let mut corpus: Vec<Vec<Utterance>> = config.data.languages.iter().map(|_| Vec::new()).collect();
        for utterance in utterances {
            corpus[utterance.language].push(utterance);
        }
        let sampler = Sampler::new(sampler_problem(config, &corpus))?;
        let optimizer = AdamW::new(&config.training.optimizer, &replica.params());
        Ok(Self {
            replica,
            optimizer,
            sampler,
            corpus,
            step: Step(0),
            skipped_updates: 0,
        })
    }

    /// The copy of the model that is being trained.
    pub fn replica(&self) -> &Replica {
        &self.replica
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
    /// # Errors
    /// [`TrainError::Model`] if an adapter cannot have the configured shape.
    pub fn enter(&mut self, stage: Stage) -> Result<(), TrainError> {
        if stage == Stage::Zipper && self.replica.stage() == Stage::Align {
            self.replica.enter_zipper_stage()?;
            self.reset_optimizer();
        }
        Ok(())
    }

    /// The parts of the checkpoint of this step that `rank` writes: rank 0 the shared ones, banks in turn.
    ///
    /// # Errors
    /// [`TrainError::State`] if a part cannot be built.
    pub fn parts(&self, rank: Rank, world_size: WorldSize) -> Result<Vec<Part>, TrainError> {
        let params = self.replica.params();
        let mut parts = Vec::new();
        for (scope, name) in self.replica.scopes() {
            let writer = match scope {
                ParamScope::Shared => 0,
                ParamScope::Bank(language) => language as u32 % world_size.0,
            };
            if writer != rank.0 {
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

    /// Goes to the state of a checkpoint, whose parts `read` returns by name.
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
            let steps = match scope {
                ParamScope::Shared => saved.shared_optimizer_steps,
                ParamScope::Bank(language) => {
                    let code = &self.replica.config().data.languages[language];
                    saved.bank_optimizer_steps.get(code).copied().unwrap_or(0)
                }
            };
            self.optimizer
                .restore(&self.replica.params(), scope, &tensors, steps)?;
        }
        let problem = sampler_problem(self.replica.config(), &self.corpus);
        self.sampler = Sampler::restore(problem, saved.sampler).map_err(TrainError::from)?;
        self.step = saved.step;
        self.skipped_updates = saved.skipped_updates;
        Ok(())
    }

    fn reset_optimizer(&mut self) {
        let optimizer = AdamW::new(&self.replica.config().training.optimizer, &self.replica.params());
        self.optimizer = optimizer;
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
