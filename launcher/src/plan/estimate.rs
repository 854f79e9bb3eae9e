//! The numbers of a plan: one structure, which is also the JSON document.

use serde::Serialize;
use zipper_cli::UserError;
use zipper_config::RunConfig;
use zipper_data::{Corpus, sampler_problem};
use zipper_plan::{
    Inventory, LanguageAmount, MeasuredStep, Placement, PlacementProblem, PlanError, Sampler, WorkModel,
    banks_that_fit, expected_epochs, expected_work, succession,
};
use zipper_types::{Rank, Stage, Variant, WorldSize};

/// Global batches that are drawn and dealt to see how uneven single steps are.
const SIMULATED_STEPS: usize = 300;

/// A whole plan.
#[derive(Debug, Serialize)]
pub(crate) struct Estimate {
    pub(crate) name: String,
    pub(crate) variant: Variant,
    pub(crate) world_size: WorldSize,
    /// Whether work is in seconds; else in positions of the LLM.
    pub(crate) measured: bool,
    /// The frozen models on each worker, at the least.
    pub(crate) frozen_bytes: u64,
    pub(crate) languages: Vec<LanguagePlan>,
    pub(crate) align: StagePlan,
    pub(crate) zipper: StagePlan,
    /// Banks that ranks get from elsewhere when a worker is lost; absent for a single worker.
    pub(crate) banks_moved_when_one_is_lost: Option<usize>,
    /// The same when one joins.
    pub(crate) banks_moved_when_one_joins: usize,
}

/// One language.
#[derive(Debug, Serialize)]
pub(crate) struct LanguagePlan {
    pub(crate) lang: String,
    pub(crate) hours: f64,
    pub(crate) utterances: usize,
    /// How often its utterances are heard in stage 1, on average.
    pub(crate) epochs_align: f64,
    /// The same in stage 2.
    pub(crate) epochs_zipper: f64,
    /// Expected work per step.
    pub(crate) work: f64,
    /// Ranks that own its bank; absent if there are no banks.
    pub(crate) owners: Option<(u32, u32)>,
    /// Bytes of its bank's gradients that each of several owners sums at a step with the language.
    pub(crate) all_reduce_bytes: u64,
}

/// One stage.
#[derive(Debug, Serialize)]
pub(crate) struct StagePlan {
    pub(crate) shared_parameters: u64,
    pub(crate) shared_bytes: u64,
    /// Parameters of one bank; 0 where there are none.
    pub(crate) bank_parameters: u64,
    pub(crate) bank_bytes: u64,
    /// Bytes of shared gradients that every rank sums with all others at every step.
    pub(crate) all_reduce_bytes: u64,
    /// Tensors of a checkpoint.
    pub(crate) checkpoint_bytes: u64,
    pub(crate) balance: Balance,
    pub(crate) ranks: Vec<RankPlan>,
}

/// How long the slowest rank takes, relative to the mean.
#[derive(Debug, Serialize)]
pub(crate) struct Balance {
    /// Of the expected work.
    pub(crate) expected: f64,
    /// Mean over simulated steps.
    pub(crate) simulated_mean: f64,
    /// Of 95 % of the simulated steps.
    pub(crate) simulated_p95: f64,
    pub(crate) simulated_steps: usize,
}

/// One rank.
#[derive(Debug, Serialize)]
pub(crate) struct RankPlan {
    pub(crate) rank: Rank,
    /// Languages whose banks it owns; empty where there are no banks.
    pub(crate) languages: Vec<String>,
    /// Expected work per step.
    pub(crate) work: f64,
    /// Weights of the banks.
    pub(crate) bank_bytes: u64,
    /// Gradients of shared parameters and banks.
    pub(crate) gradient_bytes: u64,
    /// Optimizer state of both.
    pub(crate) optimizer_bytes: u64,
    /// What is remembered of both, and of banks of other ranks, so that a loss needs no checkpoint: at the most.
    pub(crate) remembered_bytes: u64,
}

impl Estimate {
    /// # Errors
    /// If the data cannot feed the workers, the banks do not fit, or a model directory is not one.
    pub(crate) fn new(
        config: &RunConfig,
        train: &Corpus,
        world_size: WorldSize,
        steps: &[MeasuredStep],
    ) -> anyhow::Result<Self> {
        let problem = sampler_problem(config, &train.utterances);
        problem
            .check_world_size(world_size)
            .map_err(|error| user(&error))?;
        let amounts = amounts(train);
        let model = WorkModel::measured_by(&config.data.languages, &amounts, steps);
        let batch_seconds = config.training.batch_audio_seconds;
        let temperature = config.data.temperature;
        let work =
            expected_work(&amounts, temperature, batch_seconds, &model).map_err(|error| user(&error))?;
        let epochs = |steps| {
            expected_epochs(&amounts, temperature, batch_seconds, steps).map_err(|error| user(&error))
        };
        let epochs_align = epochs(config.training.align.steps)?;
        let epochs_zipper = epochs(config.training.zipper.steps)?;
        let align = crate::plan::inventory(config, Stage::Align)?;
        let zipper = crate::plan::inventory(config, Stage::Zipper)?;
        let place = |world_size| place(config, &zipper, &work, world_size).map_err(|error| user(&error));
        let placement = place(world_size)?;
        let everywhere = Placement::everywhere(work.len(), world_size);
        let has_banks = config.adapter.variant != Variant::Shared;

        let batches = simulate(&problem, train, &model)?;
        let stage = |inventory: &Inventory, placement: &Placement, banks: bool| {
            stage(config, inventory, placement, banks, &work, &batches)
        };
        let moved = |world_size| -> anyhow::Result<usize> {
            let next = place(world_size)?;
            Ok(if has_banks {
                succession(&placement, &next).moved
            } else {
                0
            })
        };
        Ok(Self {
            name: config.name.clone(),
            variant: config.adapter.variant,
            world_size,
            measured: model.measured,
            frozen_bytes: super::frozen_bytes(config)?,
            languages: languages(
                config,
                &amounts,
                [&epochs_align, &epochs_zipper],
                &work,
                &placement,
                &zipper,
            ),
            align: stage(&align, &everywhere, false),
            zipper: stage(&zipper, &placement, has_banks),
            // Where one worker less could not hold the banks, the run cannot go on without it.
            banks_moved_when_one_is_lost: (world_size.0 > 1)
                .then(|| moved(WorldSize(world_size.0 - 1)).ok())
                .flatten(),
            banks_moved_when_one_joins: moved(WorldSize(world_size.0 + 1))?,
        })
    }
}

fn user(error: &PlanError) -> UserError {
    UserError::new(error.to_string())
}

/// What there is of each language, in the order of `data.languages`.
fn amounts(train: &Corpus) -> Vec<LanguageAmount> {
    let languages = train.report.languages.iter();
    let amounts = languages.map(|language| LanguageAmount {
        utterances: language.utterances,
        seconds: language.seconds,
        characters: language.characters,
    });
    amounts.collect()
}

/// The plan of each language; `epochs` are those of both stages.
fn languages(
    config: &RunConfig,
    amounts: &[LanguageAmount],
    epochs: [&[f64]; 2],
    work: &[f64],
    placement: &Placement,
    zipper: &Inventory,
) -> Vec<LanguagePlan> {
    let [epochs_align, epochs_zipper] = epochs;
    let has_banks = config.adapter.variant != Variant::Shared;
    let plan = |(language, lang): (usize, &String)| {
        let owners = placement.owners(language);
        LanguagePlan {
            lang: lang.clone(),
            hours: amounts[language].seconds / 3600.0,
            utterances: amounts[language].utterances,
            epochs_align: epochs_align[language],
            epochs_zipper: epochs_zipper[language],
            work: work[language],
            owners: has_banks.then(|| (*owners.start(), *owners.end())),
            all_reduce_bytes: if owners.start() < owners.end() {
                zipper.bank_bytes()
            } else {
                0
            },
        }
    };
    config.data.languages.iter().enumerate().map(plan).collect()
}

/// The placement of stage 2; without banks every rank does everything.
fn place(
    config: &RunConfig,
    inventory: &Inventory,
    work: &[f64],
    world_size: WorldSize,
) -> Result<Placement, PlanError> {
    if config.adapter.variant == Variant::Shared {
        return Ok(Placement::everywhere(work.len(), world_size));
    }
    let memory = config.runtime.bank_memory_mib;
    Placement::solve(&PlacementProblem {
        work: work.to_vec(),
        world_size,
        max_banks_per_rank: memory.map(|mib| banks_that_fit(mib, inventory.bank_memory())),
    })
}

/// Language and cost of every utterance of some global batches, as training would draw them.
fn simulate(
    problem: &zipper_plan::SamplerProblem,
    train: &Corpus,
    model: &WorkModel,
) -> anyhow::Result<Vec<Vec<(usize, f64)>>> {
    let mut costs: Vec<Vec<f64>> = vec![Vec::new(); problem.durations.len()];
    for utterance in &train.utterances {
        let characters = utterance.text.chars().count();
        let cost = model.cost(utterance.language, utterance.duration, characters);
        costs[utterance.language].push(cost);
    }
    let mut sampler = Sampler::new(problem.clone()).map_err(|error| user(&error))?;
    let batch = |_| {
        let batch = sampler.next_batch();
        let cost = |at: &zipper_plan::UtteranceRef| (at.language, costs[at.language][at.index]);
        batch.utterances.iter().map(cost).collect()
    };
    Ok((0..SIMULATED_STEPS).map(batch).collect())
}

fn stage(
    config: &RunConfig,
    inventory: &Inventory,
    placement: &Placement,
    has_banks: bool,
    work: &[f64],
    batches: &[Vec<(usize, f64)>],
) -> StagePlan {
    let shares = placement.shares(work);
    let ranks = (0..).map(Rank).zip(&shares).map(|(rank, &work)| {
        let banks = if has_banks {
            placement.languages_of(rank)
        } else {
            Vec::new()
        };
        let bank_bytes = banks.len() as u64 * inventory.bank_bytes();
        let weights = inventory.shared_bytes() + bank_bytes;
        RankPlan {
            rank,
            languages: banks
                .iter()
                .map(|&bank| config.data.languages[bank].clone())
                .collect(),
            work,
            bank_bytes,
            gradient_bytes: weights,
            optimizer_bytes: Inventory::optimizer_bytes(weights),
            remembered_bytes: remembered_bytes(config, inventory, banks.len() as u64, shares.len() as u64),
        }
    });
    StagePlan {
        shared_parameters: inventory.shared,
        shared_bytes: inventory.shared_bytes(),
        bank_parameters: inventory.bank,
        bank_bytes: inventory.bank_bytes(),
        all_reduce_bytes: if shares.len() > 1 {
            inventory.shared_bytes()
        } else {
            0
        },
        checkpoint_bytes: inventory.checkpoint_bytes(work.len() as u64),
        balance: balance(placement, &shares, batches),
        ranks: ranks.collect(),
    }
}

/// What a rank with `banks` banks remembers, if it is not alone: at the most, when it keeps as many banks of others as it has.
pub(crate) fn remembered_bytes(
    config: &RunConfig,
    inventory: &Inventory,
    banks: u64,
    world_size: u64,
) -> u64 {
    if world_size < 2 {
        return 0;
    }
    let weights = inventory.shared_bytes() + banks * inventory.bank_bytes();
    let snapshots = banks > 0 && config.elastic.snapshot_every > 0;
    inventory.remembered_bytes(weights, banks, snapshots)
}

fn balance(placement: &Placement, shares: &[f64], batches: &[Vec<(usize, f64)>]) -> Balance {
    let slowest_to_mean = |loads: &[f64]| {
        let mean = loads.iter().sum::<f64>() / loads.len() as f64;
        loads.iter().copied().fold(0.0, f64::max) / mean.max(f64::MIN_POSITIVE)
    };
    let mut steps: Vec<f64> = batches
        .iter()
        .map(|batch| {
            let hands = placement.deal(batch);
            let load = |hand: &Vec<usize>| hand.iter().map(|&index| batch[index].1).sum();
            slowest_to_mean(&hands.iter().map(load).collect::<Vec<f64>>())
        })
        .collect();
    steps.sort_by(f64::total_cmp);
    Balance {
        expected: slowest_to_mean(shares),
        simulated_mean: steps.iter().sum::<f64>() / steps.len() as f64,
        simulated_p95: steps[(steps.len() * 95 / 100).min(steps.len() - 1)],
        simulated_steps: steps.len(),
    }
}
