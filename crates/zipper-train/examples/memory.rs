//! What it costs to remember states and to capture checkpoints: `cargo xtask bench memory`.
//!
//! Two ranks, threads of this process with Gloo between them, train a made-up model whose trained state is tens of MiB, without
//! snapshots and with one after every step and every tenth. Worlds take turns, so that whatever else the machine does meets all. A
//! step's `memory` is the time of the training thread for the two-step history and for copies to and from the peer; `capture` is
//! all that a checkpoint takes from it.

use std::collections::BTreeSet;
use std::error::Error;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tch::Device;
use zipper_collectives::{GroupOptions, Store};
use zipper_config::schema::RunConfig;
use zipper_data::{DurationLimits, load_corpus};
use zipper_plan::{Placement, PlacementProblem, WorkModel};
use zipper_tests::{BENCHMARK_UTTERANCES, benchmark_config, spread, write_benchmark};
use zipper_train::replica::Replica;
use zipper_train::session::{Origin, Session};
use zipper_train::step::Votes;
use zipper_train::team::Team;
use zipper_types::{Rank, Stage, Step, WorldSize};

const HOST: &str = "127.0.0.1";
const TIMEOUT: Duration = Duration::from_mins(1);
const WORLD_SIZE: u32 = 2;
const REPEATS: usize = 2;
const SNAPSHOT_EVERY: [u64; 3] = [0, 1, 10];
/// Steps between checkpoints.
const CHECKPOINT_EVERY: u64 = 10;
/// Steps of stage 2 at the beginning that are not counted: buffers are made, encoder outputs are computed.
const WARM_UP: u64 = 10;
const COUNTED: u64 = 20;

/// One rank's counted steps.
#[derive(Default)]
struct Measured {
    seconds: Vec<f64>,
    memory: Vec<f64>,
    captures: Vec<f64>,
    trained_bytes: u64,
    remembered_bytes: u64,
}

fn main() -> Result<(), Box<dyn Error>> {
    let output = std::env::args_os().nth(1).ok_or("usage: memory OUTPUT.json")?;
    let folder = tempfile::tempdir()?;
    write_benchmark(folder.path());
    let text = benchmark_config("memory", 32, [1, 1000], "runtime: {threads_per_worker: 1}");
    let path = folder.path().join("run.yaml");
    std::fs::write(
        &path,
        text.replace("FOLDER", &folder.path().display().to_string()),
    )?;
    let config = zipper_config::load(&path, &[])?;

    let mut measured: Vec<(u64, Measured)> = Vec::new();
    for repeat in 0..REPEATS {
        for every in SNAPSHOT_EVERY {
            println!("run {} of {REPEATS}: snapshots every {every} steps", repeat + 1);
            let mut config = config.clone();
            config.elastic.snapshot_every = every;
            let ranks = run(&config);
            measured.extend(ranks.into_iter().map(|rank| (every, rank)));
        }
    }
    let rows: Vec<Value> = SNAPSHOT_EVERY
        .iter()
        .map(|&every| row(every, &measured))
        .collect();
    for row in &rows {
        println!("{row}");
    }
    let report = json!({
        "command": "cargo xtask bench memory",
        "machine": {"cores": thread::available_parallelism()?.get()},
        "ranks": WORLD_SIZE,
        "config": text,
        "counted_steps_of_a_rank_and_run": COUNTED,
        "runs": REPEATS,
        "table": rows,
    });
    std::fs::write(&output, serde_json::to_string_pretty(&report)? + "\n")?;
    println!("written: {}", Path::new(&output).display());
    Ok(())
}

/// Trains on all ranks.
fn run(config: &RunConfig) -> Vec<Measured> {
    let (_store, port) = Store::serve(HOST, TIMEOUT).expect("a port is free");
    thread::scope(|scope| {
        let ranks: Vec<_> = (0..WORLD_SIZE)
            .map(|rank| scope.spawn(move || measure(config, Rank(rank), port)))
            .collect();
        let done = ranks
            .into_iter()
            .map(|rank| rank.join().expect("a rank does not panic"));
        done.collect()
    })
}

fn measure(config: &RunConfig, rank: Rank, port: u16) -> Measured {
    tch::set_num_threads(1);
    let mut session = session(config, rank, port);
    session.train_step(Votes::default()).expect("stage 1 is one step");
    session.enter(Stage::Zipper).expect("stage 2 can begin");
    let mut measured = Measured::default();
    thread::scope(|scope| {
        for step in 1..=WARM_UP + COUNTED {
            let started = Instant::now();
            let report = session.train_step(Votes::default()).expect("a step can be made");
            let seconds = started.elapsed();
            let counts = step > WARM_UP;
            if counts {
                measured.seconds.push(seconds.as_secs_f64());
                measured.memory.push(report.memory.as_secs_f64());
            }
            if step.is_multiple_of(CHECKPOINT_EVERY) {
                let started = Instant::now();
                let capture = session.capture().expect("a step was made");
                if counts {
                    measured.captures.push(started.elapsed().as_secs_f64());
                }
                // As in a run: serialised while training goes on.
                scope.spawn(move || capture.parts().expect("parts can be built").len());
            }
        }
    });
    measured.trained_bytes = session.trained_bytes();
    measured.remembered_bytes = session.memory_bytes();
    measured
}

fn session(config: &RunConfig, rank: Rank, port: u16) -> Session {
    let limits = DurationLimits::from(&config.data);
    let corpus = load_corpus(&config.data.train, &config.data.languages, limits).expect("a valid manifest");
    let placement = Placement::solve(&PlacementProblem {
        work: BENCHMARK_UTTERANCES
            .iter()
            .map(|&(_, count)| count as f64)
            .collect(),
        world_size: WorldSize(WORLD_SIZE),
        max_banks_per_rank: None,
    })
    .expect("memory is no limit");
    let store = Store::connect(HOST, port, TIMEOUT).expect("the store answers");
    let options = GroupOptions::gloo(HOST, TIMEOUT);
    let work = WorkModel::unmeasured(BENCHMARK_UTTERANCES.len());
    let team = Team::form(&store, rank, rank.0, config, placement, work, &options).expect("the groups form");
    let replica = Replica::load(config, Stage::Align, Device::Cpu, BTreeSet::new()).expect("valid models");
    let mut session = Session::new(replica, corpus.utterances).expect("a batch can be drawn");
    session
        .regroup(team, Step(0), &Origin::Fresh)
        .expect("the ranks begin together");
    session
}

/// A line of the table: of all ranks and runs with snapshots every `every` steps.
fn row(every: u64, measured: &[(u64, Measured)]) -> Value {
    let of_row: Vec<&Measured> = measured
        .iter()
        .filter(|(of, _)| *of == every)
        .map(|(_, measured)| measured)
        .collect();
    let all = |values: fn(&Measured) -> &Vec<f64>| -> Vec<f64> {
        of_row
            .iter()
            .flat_map(|measured| values(measured).iter().copied())
            .collect()
    };
    let (seconds, memory, captures) = (
        all(|measured| &measured.seconds),
        all(|measured| &measured.memory),
        all(|measured| &measured.captures),
    );
    let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
    let mib = |bytes: fn(&Measured) -> u64| {
        let largest = of_row.iter().map(|measured| bytes(measured)).max().unwrap_or(0);
        largest as f64 / f64::from(1 << 20)
    };
    let capture_share = median(&captures) / (CHECKPOINT_EVERY as f64 * median(&seconds));
    json!({
        "snapshot_every": every,
        "step_seconds_median": median(&seconds),
        "memory_seconds_median": median(&memory),
        "memory_seconds_mean": mean(&memory),
        "memory_share_percent": 100.0 * mean(&memory) / mean(&seconds),
        "capture_seconds_median": median(&captures),
        "capture_seconds_max": captures.iter().copied().fold(0.0, f64::max),
        "capture_share_percent_every_10_steps": 100.0 * capture_share,
        "trained_mib": mib(|measured| measured.trained_bytes),
        "remembered_mib": mib(|measured| measured.remembered_bytes),
    })
}

fn median(values: &[f64]) -> f64 {
    spread(values)[1]
}
