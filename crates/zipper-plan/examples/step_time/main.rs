//! How long a step takes on machines that nobody here has: prints the tables of docs/scaling.md, "At scale, on paper".
//!
//! ```text
//! cargo run --release -p zipper-plan --example step_time
//! cargo run --release -p zipper-plan --example step_time -- --mfu 0.4 --inter-gb-s 20 --steps 100
//! cargo run --release -p zipper-plan --example step_time -- --measured docs/benchmarks/training-quickstart.json
//! cargo run --release -p zipper-plan --example step_time -- --help
//! ```
//!
//! Run in the root of the repository, where the measured files are.
//!
//! Sampler, placement and dealing are the real ones, and how long they take is measured here. Everything about GPUs, networks and
//! object stores is a number on the command line, of which the first table says where its default comes from. Then come, for all
//! numbers of GPUs and languages: a step and its parts, its planning, memory for banks, the coordinator, checkpoints, and which limit
//! comes first. The last table puts the same formulas beside runs on CPUs that were measured.
//!
//! Reading order: `flags` (the numbers), `assumed` (model and corpora), `simulation` (what is real: batches, placement, dealing),
//! `hardware` (formulas of GPUs and networks), `cell` (a step), then what is printed: `tables`, `coordinator`, `store`, `check`.

mod assumed;
mod cell;
mod check;
mod coordinator;
mod flags;
mod hardware;
mod simulation;
mod store;
mod tables;

use std::error::Error;
use std::fs;

use crate::cell::Cell;
use crate::flags::Flags;

const WORLDS: [u32; 4] = [8, 64, 512, 4096];
const LANGUAGES: [usize; 3] = [12, 120, 1000];

const MIB: f64 = 1024.0 * 1024.0;
const GIB: f64 = 1024.0 * MIB;

fn main() -> Result<(), Box<dyn Error>> {
    let (flags, measured) = Flags::parse();
    flags.print();
    let mut cells = Vec::new();
    for languages in LANGUAGES {
        let durations = assumed::durations(languages);
        for world in WORLDS {
            cells.push(Cell::new(&flags, world, &durations));
        }
    }
    cells.sort_by_key(|cell| (cell.world, cell.languages));
    tables::steps(&cells);
    tables::planning(&cells);
    tables::memory(&flags, &cells);
    coordinator::coordinator(&flags, &cells);
    store::store(&flags, &cells);
    tables::what_breaks(&flags, &cells);
    match fs::read_to_string(&measured) {
        Ok(text) => check::check(&measured, &serde_json::from_str(&text)?),
        Err(error) => println!("\nNot checked against measured runs: {measured}: {error}"),
    }
    Ok(())
}
