//! How long workers wait for gradients, with and without overlap: `cargo xtask bench overlap`.
//!
//! Real runs of zipper-launch on this machine, on a made-up model whose shared gradients are tens of MiB. Runs with and
//! without overlap take turns, so that whatever else the machine does meets both. The numbers are those of
//! `metrics/train.jsonl`: a step's `comm_exposed_seconds` is the time for which a worker did nothing but wait for
//! collectives, on average over the workers. Waiting for a slower worker is part of it.

use std::error::Error;
use std::fs;
use std::path::Path;
use std::thread::available_parallelism;

use serde_json::{Value, json};
use zipper_tests::{BENCHMARK_LLM, Launched, benchmark_config, cpu, load, spread, write_benchmark};

const WORKERS: [u32; 2] = [2, 4];
const REPEATS: usize = 3;
const STAGES: [&str; 2] = ["align", "zipper"];
const STEPS_OF_A_STAGE: usize = 13;
/// Steps at the beginning of a stage that are not counted: buffers are made, encoder outputs are computed.
const WARM_UP: usize = 3;
const LORA_RANK: u32 = 128;
/// The counted steps of one stage of one run.
struct Measured {
    workers: u32,
    overlap: bool,
    stage: &'static str,
    exposed_seconds: Vec<f64>,
    seconds: Vec<f64>,
    shared_bytes: u64,
    bank_bytes: Vec<u64>,
}

fn main() -> Result<(), Box<dyn Error>> {
    let output = std::env::args_os().nth(1).ok_or("usage: overlap OUTPUT.json")?;
    let folder = tempfile::tempdir()?;
    write_benchmark(folder.path());
    let more = "checkpoint: {every_steps: 0}\nruntime: {threads_per_worker: 1, bucket_mib: 4}";
    let config = benchmark_config("overlap", LORA_RANK, [STEPS_OF_A_STAGE as u64; 2], more);
    let here = config.replace("FOLDER", &folder.path().display().to_string());
    fs::write(folder.path().join("run.yaml"), here)?;

    let (mut measured, mut loads) = (Vec::new(), Vec::new());
    for repeat in 0..REPEATS {
        for workers in WORKERS {
            for overlap in [true, false] {
                println!(
                    "run {} of {REPEATS}: {workers} workers, overlap {overlap}",
                    repeat + 1
                );
                loads.push(load());
                measured.extend(run(folder.path(), workers, overlap, repeat)?);
            }
        }
    }
    let rows = table(&measured);
    print(&rows);
    let report = json!({
        "command": "cargo xtask bench overlap",
        "machine": {"cpu": cpu(), "cores": available_parallelism()?.get(), "load_before_each_run": loads},
        "llm": {
            "width": BENCHMARK_LLM.width, "ffn": BENCHMARK_LLM.ffn, "layers": BENCHMARK_LLM.layers, "lora_rank": LORA_RANK,
        },
        "config": config,
        "uncounted_steps_of_a_stage": WARM_UP,
        "runs": REPEATS,
        "table": rows,
        "steps": measured.iter().map(Measured::to_json).collect::<Vec<_>>(),
    });
    fs::write(&output, serde_json::to_string_pretty(&report)? + "\n")?;
    println!("\nwritten: {}", Path::new(&output).display());
    Ok(())
}

/// One whole run of zipper-launch: what it measured in each stage.
fn run(
    folder: &Path,
    workers: u32,
    overlap: bool,
    repeat: usize,
) -> Result<impl Iterator<Item = Measured>, Box<dyn Error>> {
    let run = folder.join(format!("run-{workers}-{overlap}-{repeat}"));
    let finished = Launched::run(&[
        "--nodes",
        &workers.to_string(),
        "--workers-per-node",
        "1",
        "--backend",
        "gloo",
        "--config",
        &folder.join("run.yaml").display().to_string(),
        "--run",
        &format!("file://{}", run.display()),
        "--set",
        &format!("runtime.overlap={overlap}"),
    ]);
    if finished.code != Some(0) {
        return Err(format!("zipper-launch failed:\n{}", finished.stderr).into());
    }
    let text = fs::read_to_string(run.join("metrics/train.jsonl"))?;
    let lines = text
        .lines()
        .map(serde_json::from_str)
        .collect::<Result<Vec<Value>, _>>()?;
    fs::remove_dir_all(&run)?;
    if lines.len() != STAGES.len() * STEPS_OF_A_STAGE {
        return Err(format!("{} steps are in the metrics", lines.len()).into());
    }
    Ok(STAGES.into_iter().map(move |stage| {
        let of_stage = lines.iter().filter(|line| line["stage"] == stage);
        let counted: Vec<&Value> = of_stage.skip(WARM_UP).collect();
        let number = |key: &str| counted.iter().filter_map(|line| line[key].as_f64()).collect();
        let bytes =
            |key: &str| -> Vec<u64> { counted.iter().filter_map(|line| line[key].as_u64()).collect() };
        Measured {
            workers,
            overlap,
            stage,
            exposed_seconds: number("comm_exposed_seconds"),
            seconds: number("seconds"),
            shared_bytes: bytes("comm_bytes_shared").into_iter().max().unwrap_or(0),
            bank_bytes: bytes("comm_bytes_banks"),
        }
    }))
}

impl Measured {
    fn to_json(&self) -> Value {
        json!({
            "workers": self.workers, "overlap": self.overlap, "stage": self.stage,
            "comm_exposed_seconds": self.exposed_seconds, "seconds": self.seconds,
            "comm_bytes_shared": self.shared_bytes, "comm_bytes_banks": self.bank_bytes,
        })
    }
}

/// A row for each number of workers, stage and setting, over all runs.
fn table(measured: &[Measured]) -> Vec<Value> {
    let mut rows = Vec::new();
    for workers in WORKERS {
        for stage in STAGES {
            let of = |overlap: bool| {
                let runs = measured
                    .iter()
                    .filter(move |run| (run.workers, run.stage, run.overlap) == (workers, stage, overlap));
                let runs: Vec<&Measured> = runs.collect();
                let exposed = spread(runs.iter().flat_map(|run| &run.exposed_seconds));
                let seconds = spread(runs.iter().flat_map(|run| &run.seconds));
                let shared = runs.iter().map(|run| run.shared_bytes).max();
                (exposed, seconds, shared)
            };
            let without = of(false).0[1];
            for overlap in [false, true] {
                let (exposed, seconds, shared) = of(overlap);
                rows.push(json!({
                    "workers": workers, "stage": stage, "overlap": overlap,
                    "exposed_seconds": {"min": exposed[0], "median": exposed[1], "max": exposed[2]},
                    "step_seconds": {"min": seconds[0], "median": seconds[1], "max": seconds[2]},
                    "exposed_relative_to_none": exposed[1] / without,
                    "shared_bytes": shared,
                }));
            }
        }
    }
    rows
}

fn print(rows: &[Value]) {
    println!(
        "\n| workers | stage | overlap | waiting per step, s: min / median / max | relative | whole step, s: median | shared MiB |"
    );
    println!("| --- | --- | --- | --- | --- | --- | --- |");
    for row in rows {
        let number = |pointer: &str| row.pointer(pointer).and_then(Value::as_f64).unwrap_or(f64::NAN);
        println!(
            "| {} | {} | {} | {:.3} / {:.3} / {:.3} | {:.2} | {:.2} | {:.1} |",
            row["workers"],
            row["stage"].as_str().unwrap_or_default(),
            if row["overlap"] == true { "yes" } else { "no" },
            number("/exposed_seconds/min"),
            number("/exposed_seconds/median"),
            number("/exposed_seconds/max"),
            number("/exposed_relative_to_none"),
            number("/step_seconds/median"),
            number("/shared_bytes") / f64::from(1 << 20),
        );
    }
}
