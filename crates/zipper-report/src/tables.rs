//! The tables of a comparison, as text in rows: what Markdown and HTML both show.

use crate::Comparison;
use crate::bootstrap::{Interval, RESAMPLES, mean_rate, relative_change};
use crate::comparison::Cell;

/// What others are compared with.
pub(crate) const BASELINES: [&str; 2] = ["shared", "independent"];
/// Of the bootstrap: the same runs give the same report.
const SEED: u64 = 1;

/// A table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    /// What is above it.
    pub title: String,
    /// What is below its title.
    pub note: String,
    /// Names of the columns; the first ones are axes.
    pub header: Vec<String>,
    /// Rows as wide as the header.
    pub rows: Vec<Vec<String>>,
}

/// Error rates of a group with their interval, and the changes against both baselines.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct GroupFigures {
    /// Mean over the languages of the group, all seeds together.
    pub(crate) rate: Option<Interval>,
    /// Against each of [`BASELINES`]; nothing for a baseline itself.
    pub(crate) changes: [Option<Interval>; 2],
}

/// What is said of a cell's group in a test set.
pub(crate) fn figures(comparison: &Comparison, cell: &Cell, set: &str, languages: &[String]) -> GroupFigures {
    let sample = cell.tests.get(set);
    GroupFigures {
        rate: rate(cell, set, languages),
        changes: BASELINES.map(|variant| {
            let baseline = comparison.baseline(cell, variant)?.tests.get(set)?;
            relative_change(sample?, baseline, languages, RESAMPLES, SEED)
        }),
    }
}

/// The error rate of a cell's group in a test set, with its interval.
pub(crate) fn rate(cell: &Cell, set: &str, languages: &[String]) -> Option<Interval> {
    mean_rate(cell.tests.get(set)?, languages, RESAMPLES, SEED)
}

/// Every table, in reading order.
pub fn tables(comparison: &Comparison) -> Vec<Table> {
    let sets = comparison.sets();
    let mut tables: Vec<Table> = sets.iter().map(|set| by_group(comparison, set)).collect();
    tables.extend(sets.iter().map(|set| by_language(comparison, set)));
    tables.push(costs(comparison));
    tables
}

fn by_group(comparison: &Comparison, set: &str) -> Table {
    let mut header = comparison.axes.clone();
    header.push("seeds".to_owned());
    for group in &comparison.groups {
        header.extend([
            group.name.clone(),
            "seeds from..to".to_owned(),
            format!("{}, to shared", group.name),
            format!("{}, to independent", group.name),
        ]);
    }
    let row = |cell: &Cell| {
        let mut row = cell.values.clone();
        row.push(cell.seeds.to_string());
        for group in &comparison.groups {
            let figures = figures(comparison, cell, set, &group.languages);
            let spread = cell.spread(set, &group.languages);
            row.push(figures.rate.map_or_else(String::new, |rate| {
                format!(
                    "{} ({}..{})",
                    percent(rate.value),
                    percent(rate.low),
                    percent(rate.high)
                )
            }));
            row.push(spread.map_or_else(String::new, |(low, high)| {
                format!("{}..{}", percent(low), percent(high))
            }));
            row.extend(figures.changes.map(|change| {
                change.map_or_else(String::new, |change| {
                    let [value, low, high] = [change.value, change.low, change.high].map(signed);
                    format!("{value} ({low}..{high})")
                })
            }));
        }
        row
    };
    Table {
        title: format!("Test set `{set}`, by group of languages"),
        note: "Error rates in % (WER, or CER where that is a language's headline): mean over the languages of the group, with a 95 % \
               bootstrap interval over utterances; the lowest and highest of the seeds; relative change in % against the two baselines \
               with the same other settings, negative is better."
            .to_owned(),
        header,
        rows: comparison.cells.iter().map(row).collect(),
    }
}

fn by_language(comparison: &Comparison, set: &str) -> Table {
    let languages: Vec<&String> = comparison
        .groups
        .iter()
        .flat_map(|group| &group.languages)
        .filter(|lang| {
            let has = |cell: &Cell| {
                cell.tests
                    .get(set)
                    .is_some_and(|sample| sample.rate(lang).is_some())
            };
            comparison.cells.iter().any(has)
        })
        .collect();
    let mut header = comparison.axes.clone();
    header.push("speech".to_owned());
    header.extend(languages.iter().map(|lang| (*lang).clone()));
    let row = |cell: &Cell, silenced: bool| {
        let tests = if silenced { &cell.silenced } else { &cell.tests };
        let sample = tests.get(set)?;
        let mut row = cell.values.clone();
        row.push(if silenced { "silenced" } else { "heard" }.to_owned());
        row.extend(
            languages
                .iter()
                .map(|lang| sample.rate(lang).map_or_else(String::new, percent)),
        );
        Some(row)
    };
    let rows = comparison.cells.iter();
    Table {
        title: format!("Test set `{set}`, by language"),
        note:
            "Error rates in %, all seeds together. Silenced: the control without audio, what can be guessed."
                .to_owned(),
        header,
        rows: rows
            .flat_map(|cell| [row(cell, false), row(cell, true)])
            .flatten()
            .collect(),
    }
}

fn costs(comparison: &Comparison) -> Table {
    let common = comparison.common_loss();
    let mut header = comparison.axes.clone();
    header.extend(
        [
            "trainable parameters",
            "seconds of audio a second",
            "peak memory, MiB",
            "training loss at the end",
            "steps of stage 2 to the common loss",
        ]
        .map(str::to_owned),
    );
    let row = |cell: &Cell| {
        let mut row = cell.values.clone();
        row.push(cell.costs.parameters.map_or_else(String::new, thousands));
        row.push(format!("{:.1}", cell.costs.throughput));
        row.push(cell.costs.memory.map_or_else(String::new, |bytes| {
            format!("{:.0}", bytes as f64 / f64::from(1 << 20))
        }));
        row.push(
            cell.losses
                .last()
                .map_or_else(String::new, |(_, loss)| format!("{loss:.4}")),
        );
        let steps = common.and_then(|loss| cell.steps_to(loss));
        row.push(steps.map_or_else(String::new, |steps| steps.to_string()));
        row
    };
    Table {
        title: "Cost and speed".to_owned(),
        note: common.map_or_else(String::new, |loss| {
            format!(
                "The common loss is {loss:.4} nats a token, which all of them reach: the highest of their training losses at the end \
                 (smoothed over five logged steps, mean over the seeds). Parameters are those of stage 2 with the banks of all \
                 languages. Memory is rank 0's: of its GPU, or of its process where it works on the CPU."
            )
        }),
        header,
        rows: comparison.cells.iter().map(row).collect(),
    }
}

fn percent(fraction: f64) -> String {
    format!("{:.1}", 100.0 * fraction)
}

fn signed(fraction: f64) -> String {
    format!("{:+.1}", 100.0 * fraction)
}

/// `1,234,567`.
fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}
