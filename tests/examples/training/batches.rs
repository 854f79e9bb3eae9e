//! What PyTorch's side is told to train.

use std::collections::BTreeMap;
use std::error::Error;

use serde_json::{Value, json};
use zipper_config::RunConfig;
use zipper_data::{Utterance, sampler_problem};
use zipper_plan::{
    LanguageAmount, Placement, PlacementProblem, PlanError, Sampler, WorkModel, expected_work, micro_batches,
};
use zipper_types::WorldSize;

use crate::Adapters;
use crate::job::Job;

/// Ids of a batch: by rank, by micro batch.
type Dealt<'a> = Vec<Vec<Vec<&'a str>>>;

impl Job {
    /// What PyTorch's side is to do: the batches that Zipper draws, dealt as Zipper deals them.
    ///
    /// This says again what a run does by itself, so a change there is a change here: the sampler's problem is that of
    /// `crates/zipper-train/src/session.rs`, expected work and placement are those of `crates/zipper-coordinator/src/placement.rs` for a
    /// run that has measured nothing yet, dealing and micro batches those of `team.rs` and `step.rs` in zipper-train. If the first
    /// batches differ, so do the losses of the first step, and the measurement fails.
    pub(crate) fn plan(
        &self,
        config: &RunConfig,
        variant: Adapters,
        processes: u32,
        steps: usize,
    ) -> Result<Value, Box<dyn Error>> {
        let corpus = &self.corpus;
        let model = WorkModel::unmeasured(corpus.len());
        let world_size = WorldSize(processes);
        let (placement, stage) = match variant {
            Adapters::Shared => (
                Placement::everywhere(corpus.len(), world_size),
                &config.training.align,
            ),
            Adapters::Independent => (
                place(config, corpus, &model, world_size)?,
                &config.training.zipper,
            ),
        };
        let micro_batch_seconds = config.training.micro_batch_audio_seconds;
        let batches = self.batches(config, steps)?;
        let steps: Vec<Dealt<'_>> = batches
            .iter()
            .map(|batch| deal(batch, &placement, &model, micro_batch_seconds))
            .collect();
        let around = |lang: &String| (lang.clone(), config.model.prompt.around_speech(lang));
        let prompts: BTreeMap<_, _> = config.data.languages.iter().map(around).collect();
        Ok(json!({"config": config, "prompts": prompts, "lr": stage.lr, "steps": steps}))
    }
}

impl Job {
    /// The global batches of the first steps.
    pub(crate) fn batches(
        &self,
        config: &RunConfig,
        steps: usize,
    ) -> Result<Vec<Vec<&Utterance>>, PlanError> {
        let mut sampler = Sampler::new(sampler_problem(config, self.corpus.iter().flatten()))?;
        let mut batch = || {
            let refs = sampler.next_batch().utterances.into_iter();
            refs.map(|at| &self.corpus[at.language][at.index]).collect()
        };
        Ok((0..steps).map(|_| batch()).collect())
    }
}

/// The owners of banks.
fn place(
    config: &RunConfig,
    corpus: &[Vec<Utterance>],
    model: &WorkModel,
    world_size: WorldSize,
) -> Result<Placement, PlanError> {
    let amounts: Vec<LanguageAmount> = corpus.iter().map(|utterances| amount(utterances)).collect();
    let (temperature, seconds) = (config.data.temperature, config.training.batch_audio_seconds);
    Placement::solve(&PlacementProblem {
        work: expected_work(&amounts, temperature, seconds, model)?,
        world_size,
        max_banks_per_rank: None,
    })
}

fn deal<'a>(
    batch: &[&'a Utterance],
    placement: &Placement,
    model: &WorkModel,
    micro_batch_seconds: f64,
) -> Dealt<'a> {
    let cost = |utterance: &Utterance| {
        let characters = utterance.text.chars().count();
        model.cost(utterance.language, utterance.duration, characters)
    };
    let costs: Vec<(usize, f64)> = batch
        .iter()
        .map(|utterance| (utterance.language, cost(utterance)))
        .collect();
    let hands = placement.deal(&costs).into_iter().map(|hand| {
        let seconds: Vec<f64> = hand.iter().map(|&index| batch[index].duration).collect();
        let cut = micro_batches(&seconds, micro_batch_seconds);
        let ids = |places: Vec<usize>| {
            places
                .iter()
                .map(|&place| batch[hand[place]].id.as_str())
                .collect()
        };
        cut.into_iter().map(ids).collect()
    });
    hands.collect()
}

fn amount(utterances: &[Utterance]) -> LanguageAmount {
    LanguageAmount {
        utterances: utterances.len(),
        seconds: utterances.iter().map(|utterance| utterance.duration).sum(),
        characters: utterances
            .iter()
            .map(|utterance| utterance.text.chars().count())
            .sum(),
    }
}
