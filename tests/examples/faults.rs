//! The fault campaign, `cargo xtask faults`: many real runs of a tiny job, each with a random fault, each compared with the run
//! without.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use tokio::signal::unix::{SignalKind, signal};
use zipper_tests::faults::{Kind, Plan, Report, Round, Site, Size, Soak, SoakPlan};

#[derive(Debug, Parser)]
struct Arguments {
    /// How many faults.
    #[arg(long, default_value_t = 20)]
    rounds: u64,
    /// Of everything random.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// The first round, to play a later one again.
    #[arg(long, default_value_t = 0)]
    first: u64,
    /// Only this kind of fault; can be given several times.
    #[arg(long = "only", value_parser = kind)]
    only: Vec<Kind>,
    /// Steps of each stage.
    #[arg(long, default_value_t = Size::default().steps_of_a_stage)]
    steps: u64,
    /// Instead of rounds: one run that lasts this many minutes, with a fault
    #[arg(long)]
    soak_minutes: Option<u64>,
    /// every so many.
    #[arg(long, default_value_t = 6)]
    every_minutes: u64,
    /// Let nothing happen to node 0, so that growth of its processes can be seen.
    #[arg(long)]
    leave_first_node: bool,
    /// Steps from one line of metrics to the next, all of which a run keeps.
    #[arg(long, default_value_t = Size::default().log_every)]
    log_every: u64,
    /// Where the report goes, and what runs leave.
    #[arg(long, default_value = "target/faults")]
    output: PathBuf,
}

fn kind(name: &str) -> Result<Kind, String> {
    let known = || Kind::ALL.map(|kind| kind.to_string()).join(", ");
    Kind::named(name).ok_or_else(|| format!("the kinds are {}", known()))
}

#[tokio::main]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let output = match std::path::absolute(&arguments.output) {
        Ok(output) => output.join(format!("seed-{}", arguments.seed)),
        Err(error) => return failed(&error.to_string()),
    };
    let work = async {
        match arguments.soak_minutes {
            Some(minutes) => soak(&arguments, minutes, output).await,
            None => campaign(&arguments, output).await,
        }
    };
    // Dropping the work ends its processes, and takes its hosts and disks away.
    let done = tokio::select! {
        done = work => done,
        signal = interrupted() => signal,
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => failed(&error),
    }
}

/// Waits for a signal to end.
async fn interrupted() -> Result<(), String> {
    let mut terminate = signal(SignalKind::terminate()).map_err(|error| error.to_string())?;
    tokio::select! {
        result = tokio::signal::ctrl_c() => result.map_err(|error| error.to_string())?,
        _ = terminate.recv() => {}
    }
    Err("interrupted".to_owned())
}

fn failed(error: &str) -> ExitCode {
    eprintln!("error: {error}");
    ExitCode::FAILURE
}

/// The faults that are asked for and can be made here, and why others cannot.
fn kinds(site: &Site, arguments: &Arguments) -> Result<(Vec<Kind>, Vec<String>), String> {
    let (mut kinds, left_out) = site.kinds();
    if !arguments.only.is_empty() {
        kinds.retain(|kind| arguments.only.contains(kind));
    }
    if kinds.is_empty() {
        return Err(format!("nothing is left to do: {}", left_out.join("; ")));
    }
    Ok((kinds, left_out))
}

async fn campaign(arguments: &Arguments, output: PathBuf) -> Result<(), String> {
    let job = Size {
        steps_of_a_stage: arguments.steps,
        log_every: arguments.log_every,
        ..Size::default()
    };
    let site = Site::open(&output, job);
    let (kinds, left_out) = kinds(&site, arguments)?;
    site.expected().await?;
    let mut report = Report {
        seed: arguments.seed,
        left_out,
        rounds: Vec::new(),
    };
    for round in arguments.first..arguments.first + arguments.rounds {
        let plan = Plan::draw(arguments.seed, round, &kinds, job.nodes, site.steps());
        let round = Round::play(&site, plan).await;
        show(&round);
        report.rounds.push(round);
        // After each, so that a campaign that is cut short is not lost.
        let json = serde_json::to_vec_pretty(&report).map_err(|error| error.to_string())?;
        let write = |name: &str, content: &[u8]| {
            std::fs::write(output.join(name), content).map_err(|error| format!("{name}: {error}"))
        };
        write("report.json", &json)?;
        write("report.md", report.markdown().as_bytes())?;
    }
    println!("\n{}\n{}", report.markdown(), output.display());
    match report.failed() {
        0 => Ok(()),
        failed => Err(format!("{failed} rounds did not go well")),
    }
}

fn show(round: &Round) {
    let Plan {
        round: number,
        kind,
        after_step,
        node,
        ..
    } = round.plan;
    let recovery = round
        .recovery
        .map_or("none".to_owned(), |time| format!("{time:.1} s"));
    let result = if round.problems.is_empty() {
        "well"
    } else {
        "NOT WELL"
    };
    println!(
        "{number:>4} {kind:<20} step {after_step:>3} node {node}  next step after {recovery:>6}  broken {} again {} \
         {:>5.1} s  {result}",
        round.broken, round.repeated_steps, round.seconds
    );
    for problem in &round.problems {
        println!("       {}", problem.replace('\n', "\n       "));
    }
}

async fn soak(arguments: &Arguments, minutes: u64, output: PathBuf) -> Result<(), String> {
    let job = Size {
        // More than there is time for.
        steps_of_a_stage: 10_000_000,
        checkpoint_every: 500,
        keep_last: 3,
        log_every: arguments.log_every,
        // However many it takes.
        restarts_of_a_node: 1000,
        ..Size::default()
    };
    let site = Site::open(&output, job);
    let plan = SoakPlan {
        kinds: kinds(&site, arguments)?.0,
        lasts: Duration::from_mins(minutes),
        every: Duration::from_mins(arguments.every_minutes),
        seed: arguments.seed,
        leave_first_node: arguments.leave_first_node,
    };
    let soak = Soak::run(&site, &plan).await?;
    let json = serde_json::to_string_pretty(&soak).map_err(|error| error.to_string())?;
    println!(
        "{}\n{:.0} s of training in {:.0} s and {} steps; seen from outside {:.0} s; effective training time: {:.2} %",
        soak.holdings(),
        soak.productive,
        soak.total,
        soak.steps,
        soak.useful,
        100.0 * soak.effective()
    );
    for problem in &soak.problems {
        println!("{problem}");
    }
    std::fs::write(output.join("soak.json"), json).map_err(|error| error.to_string())?;
    match soak.problems.len() {
        0 => Ok(()),
        problems => Err(format!("{problems} things were not as they should have been")),
    }
}
