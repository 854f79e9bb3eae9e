//! What a campaign found, for people and for the record.

use std::collections::BTreeMap;
use std::fmt::Write;

use serde::{Deserialize, Serialize};

use super::{Kind, Round};

/// All rounds of a campaign.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Report {
    /// Of the plans.
    pub seed: u64,
    /// Kinds that could not be made, and why.
    pub left_out: Vec<String>,
    /// In the order in which they were played.
    pub rounds: Vec<Round>,
}

impl Report {
    /// Rounds in which something was not as it should have been.
    pub fn failed(&self) -> usize {
        self.rounds
            .iter()
            .filter(|round| !round.problems.is_empty())
            .count()
    }

    /// Totals and a table by kind of fault, in Markdown.
    pub fn markdown(&self) -> String {
        let sum = |of: fn(&Round) -> u64| -> u64 { self.rounds.iter().map(of).sum() };
        let worst = self
            .rounds
            .iter()
            .filter_map(|round| round.difference)
            .max_by(f64::total_cmp);
        let mut text = format!(
            "{} rounds, seed {}: {} as without faults, {} not; {} corrupt checkpoints; {} orphans; {} steps made again; \
             largest difference of final parameters {:.0e}.\n\n",
            self.rounds.len(),
            self.seed,
            self.rounds.len() - self.failed(),
            self.failed(),
            sum(|round| round.corrupt),
            sum(|round| round.orphans),
            sum(|round| round.repeated_steps),
            worst.unwrap_or(f64::NAN),
        );
        text += "| fault | rounds | well | next step after, median | worst | generations broken | steps made again, worst | \
                 from the store |\n| --- | --- | --- | --- | --- | --- | --- | --- |\n";
        let mut by_kind: BTreeMap<Kind, Vec<&Round>> = BTreeMap::new();
        for round in &self.rounds {
            by_kind.entry(round.plan.kind).or_default().push(round);
        }
        for (kind, rounds) in by_kind {
            row(&mut text, kind, &rounds);
        }
        for reason in &self.left_out {
            let _ = write!(text, "\nLeft out: {reason}.");
        }
        text
    }
}

fn row(text: &mut String, kind: Kind, rounds: &[&Round]) {
    let well = rounds.iter().filter(|round| round.problems.is_empty()).count();
    let mut times: Vec<f64> = rounds.iter().filter_map(|round| round.recovery).collect();
    times.sort_by(f64::total_cmp);
    let seconds = |time: Option<&f64>| time.map_or("none".to_owned(), |time| format!("{time:.1} s"));
    let (median, worst) = (seconds(times.get(times.len() / 2)), seconds(times.last()));
    let broken: u64 = rounds.iter().map(|round| round.broken).sum();
    let repeated = rounds.iter().map(|round| round.repeated_steps).max().unwrap_or(0);
    let from_store: u64 = rounds.iter().map(|round| round.from_store).sum();
    let number = rounds.len();
    let _ = writeln!(
        text,
        "| {kind} | {number} | {well} | {median} | {worst} | {broken} | {repeated} | {from_store} |"
    );
}
