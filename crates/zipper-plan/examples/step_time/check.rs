//! The formulas with the parameters of CPUs, beside what was measured on them.

use std::collections::BTreeMap;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::Value;
use zipper_plan::{Sampler, SamplerProblem};

use crate::simulation::place;

/// Prints that table for the runs in the file `path`, which `measured` is.
pub(crate) fn check(path: &str, measured: &Value) {
    println!("\nChecked against {path}\n");
    match measured["command"].as_str().unwrap_or_default() {
        "cargo xtask bench overlap" => check_overlap(measured),
        "cargo xtask bench training" => check_training(measured),
        other => println!(
            "It holds `{other}`, not runs of `cargo xtask bench overlap` or `cargo xtask bench training`."
        ),
    }
}

/// Seconds of forward and backward of the rank that computes longest, for `work` core seconds on `workers` ranks with a thread each:
/// cores are shared where there are fewer, and then those of ranks that are done help the slowest.
fn on_cores(work: f64, workers: f64, cores: f64, imbalance: f64) -> f64 {
    work * (imbalance / workers).max(1.0 / workers.min(cores))
}

/// A row of overlap.json's table.
struct Measured {
    workers: u32,
    stage: String,
    overlap: bool,
    step: f64,
    waiting: f64,
    /// Bytes that a rank puts into sums: shared, and of banks on average.
    bytes: [f64; 2],
}

/// Two parts are taken from rows with two workers and without overlap: core seconds of each stage, and the speed of Gloo. The rest is
/// predicted.
fn check_overlap(measured: &Value) {
    let cores = measured["machine"]["cores"].as_f64().unwrap_or(1.0);
    let rows = rows_of_overlap(measured);
    let calibration = |stage: &str| {
        rows.iter()
            .find(|row| row.workers == 2 && row.stage == stage && !row.overlap)
    };
    let (Some(align), Some(zipper)) = (calibration("align"), calibration("zipper")) else {
        println!("It has no rows with two workers and without overlap, from which speeds would be taken.");
        return;
    };
    let summed = |row: &Measured| {
        let workers = f64::from(row.workers);
        // A bank has two owners as a rule. Gloo sums on the cores that compute.
        let sent = 2.0 * (workers - 1.0) / workers * row.bytes[0] + row.bytes[1];
        sent * (workers / cores).max(1.0)
    };
    let speed = summed(align) / align.waiting;
    let slowest = |row: &Measured| {
        if row.stage == "align" {
            1.0
        } else {
            overlap_imbalance(row.workers)
        }
    };
    let work_of = |row: &Measured| {
        let workers = f64::from(row.workers);
        (row.step - summed(row) / speed) / on_cores(1.0, workers, cores, slowest(row))
    };
    let work = [work_of(align), work_of(zipper)];
    println!(
        "Taken from the two rows marked *: {:.2} and {:.2} core seconds a step, {:.0} MB/s of Gloo between two processes. Imbalance of \
         stage zipper simulated: {:.2} with 2, {:.2} with 4 workers.\n",
        work[0],
        work[1],
        speed / 1e6,
        overlap_imbalance(2),
        overlap_imbalance(4)
    );
    println!(
        "| workers | stage | overlap | step, s: measured | predicted | difference | waiting, s: measured | predicted |"
    );
    println!("|{}", " --- |".repeat(8));
    for row in &rows {
        let workers = f64::from(row.workers);
        let work = work[usize::from(row.stage != "align")];
        let longest = on_cores(work, workers, cores, slowest(row));
        let waiting = summed(row) / speed + longest - on_cores(work, workers, cores, 1.0);
        // Nothing is hidden where sums are made by the cores that compute.
        let step = longest + summed(row) / speed;
        let star = if row.workers == 2 && !row.overlap { "*" } else { "" };
        println!(
            "| {}{star} | {} | {} | {:.3} | {step:.3} | {:+.0} % | {:.3} | {waiting:.3} |",
            row.workers,
            row.stage,
            if row.overlap { "yes" } else { "no" },
            row.step,
            100.0 * (step / row.step - 1.0),
            row.waiting,
        );
    }
    println!(
        "\nThis file has no runs of one process. `--measured docs/benchmarks/training-quickstart.json` has them."
    );
}

fn rows_of_overlap(measured: &Value) -> Vec<Measured> {
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let runs = list(&measured["steps"]);
    let table = list(&measured["table"]);
    let row = |row: &Value| {
        let workers = row["workers"].as_u64()? as u32;
        let same = |run: &&Value| {
            ["workers", "stage", "overlap"]
                .iter()
                .all(|key| run[*key] == row[*key])
        };
        let of_banks: Vec<f64> = runs
            .iter()
            .filter(same)
            .flat_map(|run| list(&run["comm_bytes_banks"]))
            .filter_map(|bytes| bytes.as_f64())
            .collect();
        let banks = of_banks.iter().sum::<f64>() / of_banks.len().max(1) as f64 / f64::from(workers);
        Some(Measured {
            workers,
            stage: row["stage"].as_str()?.to_owned(),
            overlap: row["overlap"].as_bool()?,
            step: row["step_seconds"]["median"].as_f64()?,
            waiting: row["exposed_seconds"]["median"].as_f64()?,
            bytes: [row["shared_bytes"].as_f64()?, banks],
        })
    };
    table.iter().filter_map(row).collect()
}

/// How much longer than the mean the slowest of `workers` computes on the corpus of that benchmark.
fn overlap_imbalance(workers: u32) -> f64 {
    const STEPS: u32 = 200;
    let mut random = ChaCha8Rng::seed_from_u64(9);
    let durations: Vec<Vec<f64>> = [100, 60, 40]
        .map(|count| (0..count).map(|_| random.random_range(0.7..0.9)).collect())
        .into();
    let amounts: Vec<f64> = durations.iter().map(|of| of.iter().sum::<f64>()).collect();
    let work: Vec<f64> = amounts.iter().map(|seconds| seconds.powf(1.0 / 1.5)).collect();
    let placement = place(&work, workers);
    let mut sampler = Sampler::new(SamplerProblem {
        seed: 5,
        temperature: 1.5,
        batch_seconds: 16.0,
        durations: durations.clone(),
    })
    .expect("there is data");
    let mut sum = 0.0;
    for _ in 0..STEPS {
        let batch = sampler.next_batch().utterances;
        let costs: Vec<(usize, f64)> = batch
            .iter()
            .map(|at| (at.language, durations[at.language][at.index]))
            .collect();
        let hands = placement.deal(&costs);
        let loads = hands
            .iter()
            .map(|hand| hand.iter().map(|&index| costs[index].1).sum::<f64>());
        let total: f64 = costs.iter().map(|(_, seconds)| seconds).sum();
        sum += loads.fold(0.0, f64::max) / (total / f64::from(workers));
    }
    sum / f64::from(STEPS)
}

/// Core seconds are taken from the fewest processes of one thread each that have all cores; the file tells neither bytes nor waiting.
fn check_training(measured: &Value) {
    let cores = measured["machine"]["cores"].as_u64().unwrap_or(1).max(1);
    // As the benchmark shares cores out: fewer processes have several threads each.
    let busy = |processes: u64| (processes * (cores / processes.max(1)).max(1)).min(cores) as f64;
    let mut groups: BTreeMap<[String; 3], BTreeMap<u64, Vec<f64>>> = BTreeMap::new();
    for run in measured["runs"].as_array().into_iter().flatten() {
        let text = |key: &str| run[key].as_str().unwrap_or_default().to_owned();
        if !text("program").starts_with("zipper") {
            continue;
        }
        let seconds = run["seconds"].as_array().into_iter().flatten();
        let seconds = seconds.filter_map(Value::as_f64);
        let processes = run["processes"].as_u64().unwrap_or(0);
        let group = [text("size"), text("variant"), text("program")];
        let of_group = groups.entry(group).or_default();
        of_group.entry(processes).or_default().extend(seconds);
    }
    println!(
        "Core seconds are those of the runs with (*), whose processes have a thread each. Not in this file are what fewer processes lose by \
         their threads, and what more of them take for gradients, imbalance and the update of each rank: that is the difference.\n"
    );
    println!("| size | variant | program | processes | step, s: measured | predicted | difference |");
    println!("|{}", " --- |".repeat(7));
    for ([size, variant, program], runs) in groups {
        let Some((&base, of_base)) = runs.range(cores..).next().or(runs.last_key_value()) else {
            continue;
        };
        let core_seconds = median(of_base) * busy(base);
        for (processes, seconds) in &runs {
            let (found, star) = (median(seconds), if *processes == base { "*" } else { "" });
            let predicted = core_seconds / busy(*processes);
            let difference = 100.0 * (predicted / found - 1.0);
            println!(
                "| {size} | {variant} | {program} | {processes}{star} | {found:.3} | {predicted:.3} | {difference:+.0} % |"
            );
        }
    }
}

fn median(values: &[f64]) -> f64 {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}
