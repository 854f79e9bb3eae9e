//! What is real here: the sampler, the placement and the dealing of zipper-plan, over an assumed corpus, and how long they take.

use std::time::Instant;

use zipper_plan::{
    LanguageAmount, Placement, PlacementProblem, Sampler, SamplerProblem, UtteranceRef, WorkModel,
    expected_work,
};
use zipper_types::{Rank, WorldSize};

use crate::assumed::CHARACTERS_PER_SECOND;
use crate::flags::Flags;

/// A run on `world` GPUs that draws and deals batches, and does nothing else.
pub(crate) struct Simulation<'a> {
    /// Seconds of every utterance, by language.
    durations: &'a [Vec<f64>],
    model: WorkModel,
    sampler: Sampler,
    pub(crate) placement: Placement,
    /// Banks of each rank.
    pub(crate) owned: Vec<usize>,
}

/// The batch of one step.
pub(crate) struct Dealt {
    pub(crate) batch: Vec<UtteranceRef>,
    /// Places in the batch, by rank.
    pub(crate) hands: Vec<Vec<usize>>,
    /// Seconds for drawing the batch, dealing it to owners, and dealing it where there are no banks.
    pub(crate) draw: f64,
    pub(crate) deal: f64,
    pub(crate) deal_without_banks: f64,
}

impl<'a> Simulation<'a> {
    pub(crate) fn new(flags: &Flags, world: u32, durations: &'a [Vec<f64>]) -> Self {
        let batch_seconds = flags.of("rank-seconds") * f64::from(world);
        let model = WorkModel::unmeasured(durations.len());
        let amounts: Vec<LanguageAmount> = durations
            .iter()
            .map(|durations| LanguageAmount {
                utterances: durations.len(),
                seconds: durations.iter().sum(),
                characters: (durations.iter().sum::<f64>() * CHARACTERS_PER_SECOND) as usize,
            })
            .collect();
        let temperature = flags.of("temperature");
        let work = expected_work(&amounts, temperature, batch_seconds, &model).expect("there is data");
        let placement = place(&work, world);
        let sampler = Sampler::new(SamplerProblem {
            seed: 1,
            temperature,
            batch_seconds,
            durations: durations.to_vec(),
        })
        .expect("there is data");
        let owned = (0..world)
            .map(|rank| placement.languages_of(Rank(rank)).len())
            .collect();
        Self {
            durations,
            model,
            sampler,
            placement,
            owned,
        }
    }

    /// As zipper-train does it: every rank draws and deals the whole batch before it computes.
    pub(crate) fn next_step(&mut self) -> Dealt {
        let began = Instant::now();
        let batch = self.sampler.next_batch().utterances;
        let draw = began.elapsed().as_secs_f64();
        let began = Instant::now();
        let costs: Vec<(usize, f64)> = batch
            .iter()
            .map(|at| {
                let seconds = self.seconds(at);
                let characters = (seconds * CHARACTERS_PER_SECOND) as usize;
                (at.language, self.model.cost(at.language, seconds, characters))
            })
            .collect();
        let hands = self.placement.deal(&costs);
        let deal = began.elapsed().as_secs_f64();
        let began = Instant::now();
        let everywhere = Placement::everywhere(self.placement.num_languages(), self.placement.world_size());
        let without_banks = everywhere.deal(&costs);
        let deal_without_banks = began.elapsed().as_secs_f64();
        assert_eq!(without_banks.len(), hands.len(), "a hand for each rank");
        Dealt {
            batch,
            hands,
            draw,
            deal,
            deal_without_banks,
        }
    }

    pub(crate) fn seconds(&self, utterance: &UtteranceRef) -> f64 {
        self.durations[utterance.language][utterance.index]
    }
}

/// A placement where memory is no limit.
pub(crate) fn place(work: &[f64], world: u32) -> Placement {
    Placement::solve(&PlacementProblem {
        work: work.to_vec(),
        world_size: WorldSize(world),
        max_banks_per_rank: None,
    })
    .expect("memory is no limit")
}
