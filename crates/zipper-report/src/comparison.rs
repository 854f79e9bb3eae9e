//! What is compared: runs that differ only in their seed are one cell, and a cell is laid beside the baselines that differ from it only
//! in the adapter's variant.

use std::collections::BTreeMap;

use crate::Sample;

/// The axis over which results are put together.
const SEED: &str = "seed";
/// The axis of the baselines.
const VARIANT: &str = "adapter.variant";
/// The axis that a variant without banks does not have.
const INIT: &str = "adapter.init";
/// Logged steps over whose mean a loss is smoothed.
const WINDOW: usize = 5;

/// Languages that are put together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group {
    /// `low`.
    pub name: String,
    /// Codes.
    pub languages: Vec<String>,
}

/// What one run came to.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Run {
    /// Its value of each axis.
    pub values: Vec<String>,
    /// Each test set.
    pub tests: BTreeMap<String, Sample>,
    /// The same with silenced speech.
    pub silenced: BTreeMap<String, Sample>,
    /// Training loss in nats per token after so many steps of stage 2, in the order of the steps.
    pub losses: Vec<(u64, f64)>,
    /// What it took.
    pub costs: Costs,
}

/// What a run took; in a cell the mean over the seeds, of memory the most.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Costs {
    /// Trainable parameters of stage 2, banks of all languages included; the same for every seed. Nothing if not known.
    pub parameters: Option<u64>,
    /// Seconds of audio trained on in a second.
    pub throughput: f64,
    /// The most memory of rank 0, in bytes: its GPU's, or its process's where it works on the CPU. Nothing if not known.
    pub memory: Option<u64>,
}

/// Runs that differ only in their seed.
#[derive(Debug, Clone, PartialEq)]
pub struct Cell {
    /// Values of the axes of [`Comparison::axes`].
    pub values: Vec<String>,
    /// How many runs it has.
    pub seeds: usize,
    /// Each test set, with the errors of all seeds.
    pub tests: BTreeMap<String, Sample>,
    /// The same with silenced speech.
    pub silenced: BTreeMap<String, Sample>,
    /// The test sets of each seed by itself.
    pub by_seed: Vec<BTreeMap<String, Sample>>,
    /// Smoothed training loss by step of stage 2, mean over the seeds.
    pub losses: Vec<(u64, f64)>,
    /// Mean over the seeds.
    pub costs: Costs,
}

/// Everything that is compared.
#[derive(Debug, Clone, PartialEq)]
pub struct Comparison {
    /// Its name.
    pub name: String,
    /// The axes but for the seed.
    pub axes: Vec<String>,
    /// Groups of languages.
    pub groups: Vec<Group>,
    /// In the order of their first runs.
    pub cells: Vec<Cell>,
    /// Runs that have no result, by name.
    pub missing: Vec<String>,
}

impl Comparison {
    /// Puts runs together. Without groups all languages are one.
    pub fn new(name: &str, axes: &[String], groups: Vec<Group>, runs: &[Run], missing: Vec<String>) -> Self {
        let kept: Vec<usize> = (0..axes.len()).filter(|&axis| axes[axis] != SEED).collect();
        let mut cells: Vec<(Vec<String>, Vec<&Run>)> = Vec::new();
        for run in runs {
            let values: Vec<String> = kept.iter().map(|&axis| run.values[axis].clone()).collect();
            match cells.iter_mut().find(|(known, _)| *known == values) {
                Some((_, of_cell)) => of_cell.push(run),
                None => cells.push((values, vec![run])),
            }
        }
        let groups = if groups.is_empty() {
            let mut languages: Vec<String> = runs
                .iter()
                .flat_map(|run| run.tests.values())
                .flat_map(Sample::languages)
                .map(str::to_owned)
                .collect();
            languages.sort_unstable();
            languages.dedup();
            vec![Group {
                name: "all".to_owned(),
                languages,
            }]
        } else {
            groups
        };
        Self {
            name: name.to_owned(),
            axes: kept.iter().map(|&axis| axes[axis].clone()).collect(),
            groups,
            cells: cells
                .into_iter()
                .map(|(values, runs)| cell(values, &runs))
                .collect(),
            missing,
        }
    }

    /// The names of all test sets.
    pub fn sets(&self) -> Vec<&str> {
        let mut sets: Vec<&str> = self
            .cells
            .iter()
            .flat_map(|cell| cell.tests.keys())
            .map(String::as_str)
            .collect();
        sets.sort_unstable();
        sets.dedup();
        sets
    }

    /// The cell that differs from `cell` in nothing but the variant, which is `variant`: `shared` has one for all values of
    /// `adapter.init`. Nothing for a baseline itself.
    pub fn baseline(&self, cell: &Cell, variant: &str) -> Option<&Cell> {
        let axis = self.axes.iter().position(|axis| axis == VARIANT)?;
        let alike = |other: &&Cell| {
            let pairs = self.axes.iter().zip(other.values.iter().zip(&cell.values));
            other.values[axis] == variant
                && pairs
                    .filter(|(key, _)| *key != VARIANT && *key != INIT)
                    .all(|(_, (a, b))| a == b)
        };
        if cell.values[axis] == variant {
            return None;
        }
        let init = self.axes.iter().position(|axis| axis == INIT);
        let same_init = |other: &&Cell| init.is_none_or(|init| other.values[init] == cell.values[init]);
        let found = self.cells.iter().filter(alike).find(same_init);
        found.or_else(|| self.cells.iter().find(alike))
    }

    /// The loss that every cell reaches: the highest of those at their ends.
    pub fn common_loss(&self) -> Option<f64> {
        let ends = self.cells.iter().filter_map(|cell| cell.losses.last());
        ends.map(|(_, loss)| *loss).max_by(f64::total_cmp)
    }
}

impl Cell {
    /// The first step of stage 2 after which the smoothed training loss is at most `loss`.
    pub fn steps_to(&self, loss: f64) -> Option<u64> {
        let reached = self.losses.iter().find(|(_, now)| *now <= loss);
        reached.map(|(step, _)| *step)
    }

    /// Lowest and highest mean error rate of `languages` among its seeds.
    pub fn spread(&self, set: &str, languages: &[String]) -> Option<(f64, f64)> {
        let rates = self
            .by_seed
            .iter()
            .filter_map(|tests| tests.get(set)?.mean_rate(languages));
        rates.fold(None, |spread, rate| match spread {
            None => Some((rate, rate)),
            Some((low, high)) => Some((f64::min(low, rate), f64::max(high, rate))),
        })
    }
}

fn cell(values: Vec<String>, runs: &[&Run]) -> Cell {
    let mut tests: BTreeMap<String, Sample> = BTreeMap::new();
    let mut silenced: BTreeMap<String, Sample> = BTreeMap::new();
    for run in runs {
        for (all, own) in [(&mut tests, &run.tests), (&mut silenced, &run.silenced)] {
            for (set, sample) in own {
                all.entry(set.clone()).or_default().merge(sample);
            }
        }
    }
    Cell {
        values,
        seeds: runs.len(),
        tests,
        silenced,
        by_seed: runs.iter().map(|run| run.tests.clone()).collect(),
        losses: mean_losses(runs),
        costs: Costs {
            parameters: runs.first().and_then(|run| run.costs.parameters),
            throughput: runs.iter().map(|run| run.costs.throughput).sum::<f64>() / runs.len() as f64,
            memory: runs.iter().filter_map(|run| run.costs.memory).max(),
        },
    }
}

/// Smoothed, at the steps at which all runs have logged a loss. One that was no number (`training.on_non_finite: skip`) is none.
fn mean_losses(runs: &[&Run]) -> Vec<(u64, f64)> {
    let mut sums: BTreeMap<u64, (f64, usize)> = BTreeMap::new();
    for run in runs {
        let losses = run.losses.iter().copied();
        let losses: Vec<(u64, f64)> = losses.filter(|(_, loss)| loss.is_finite()).collect();
        for end in 1..=losses.len() {
            let window = &losses[end.saturating_sub(WINDOW)..end];
            let mean = window.iter().map(|(_, loss)| loss).sum::<f64>() / window.len() as f64;
            let (sum, count) = sums.entry(losses[end - 1].0).or_default();
            *sum += mean;
            *count += 1;
        }
    }
    sums.into_iter()
        .filter(|(_, (_, count))| *count == runs.len())
        .map(|(step, (sum, count))| (step, sum / count as f64))
        .collect()
}
