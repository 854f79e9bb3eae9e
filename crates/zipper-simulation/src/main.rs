//! `zipper-simulation`: plays many runs and says which seeds found something; `cargo xtask simulate` calls it.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Parser;
use zipper_simulation::run::{Outcome, plan_of};
use zipper_simulation::{invariants, simulate};

/// Plays runs of the coordinator with faults that a seed decides, on a virtual clock.
#[derive(Debug, Parser)]
struct Arguments {
    /// How many.
    #[arg(long, default_value_t = 100)]
    seeds: u64,
    /// The first one.
    #[arg(long, default_value_t = 0)]
    first: u64,
    /// Print everything that happens; `ZIPPER_LOG=debug` adds what the coordinator logs.
    #[arg(long)]
    trace: bool,
    /// Play with a bug that is to be found; ends after the first seed that finds it.
    #[cfg(feature = "seeded-bugs")]
    #[arg(long, value_parser = bug)]
    bug: Option<zipper_simulation::Bug>,
}

#[cfg(feature = "seeded-bugs")]
fn bug(name: &str) -> Result<zipper_simulation::Bug, String> {
    let named = |bug: &zipper_simulation::Bug| format!("{bug:?}") == name;
    let all = zipper_simulation::Bug::ALL;
    all.into_iter()
        .find(named)
        .ok_or_else(|| format!("the bugs are {all:?}"))
}

/// What many runs come to.
#[derive(Default)]
struct Totals {
    runs: u64,
    bad: u64,
    lasted: Duration,
    faults: BTreeMap<&'static str, u64>,
    ends: BTreeMap<String, u64>,
    takeovers: u64,
    losses: u64,
    generations: u64,
    checkpoints: u64,
}

impl Totals {
    fn add(&mut self, outcome: &Outcome) {
        self.runs += 1;
        self.bad += u64::from(!outcome.violations.is_empty());
        self.lasted += outcome.lasted;
        for (kind, count) in &outcome.faults {
            *self.faults.entry(kind).or_default() += count;
        }
        *self.ends.entry(outcome.ended.clone()).or_default() += 1;
        self.takeovers += outcome.takeovers;
        self.losses += outcome.losses;
        self.generations += outcome.generations;
        self.checkpoints += outcome.checkpoints;
    }

    fn print(&self, took: Duration) {
        println!(
            "{} seeds, {} with a violation; {:.1} virtual hours in {:.0} s",
            self.runs,
            self.bad,
            self.lasted.as_secs_f64() / 3600.0,
            took.as_secs_f64()
        );
        println!("faults: {}", self.faults.values().sum::<u64>());
        for (kind, count) in &self.faults {
            println!("{count:8} {kind}");
        }
        println!(
            "generations: {} formed, {} lost; coordinators: {} took over; checkpoints at the ends, compared byte for byte: {}",
            self.generations, self.losses, self.takeovers, self.checkpoints
        );
        println!("ends:");
        for (end, count) in &self.ends {
            println!("{count:8} {end}");
        }
        if self.bad == 0 {
            println!("held in all of them:");
            for invariant in invariants::ALL {
                println!("  {}: {}", invariant.name, invariant.says);
            }
        }
    }
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if arguments.trace {
        zipper_cli::init_tracing("off");
    }
    #[cfg(feature = "seeded-bugs")]
    zipper_simulation::plant(arguments.bug);
    let begun = Instant::now();
    let mut totals = Totals::default();
    for seed in arguments.first..arguments.first + arguments.seeds {
        let outcome = simulate(seed, arguments.trace);
        totals.add(&outcome);
        if outcome.violations.is_empty() {
            continue;
        }
        println!(
            "seed {seed} ({}); to play it again: cargo xtask simulate --first {seed} --seeds 1 --trace",
            outcome.ended
        );
        for violation in outcome.violations.iter().take(5) {
            println!("  {violation}");
        }
        for planned in plan_of(seed) {
            println!(
                "  fault at {:.3} s: {:?}",
                planned.at.as_secs_f64(),
                planned.fault
            );
        }
        #[cfg(feature = "seeded-bugs")]
        if arguments.bug.is_some() {
            println!("found by seed {seed}, after {} seeds", totals.runs);
            return ExitCode::FAILURE;
        }
    }
    totals.print(begun.elapsed());
    ExitCode::from(u8::from(totals.bad > 0))
}
