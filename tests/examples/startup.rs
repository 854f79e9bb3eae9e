//! How long it takes to the first completed step, with zipper-launch and with torchrun: `cargo xtask bench startup`.
//!
//! The same tiny models, corpus and batch on four workers of this machine, in turns. What is measured is what someone waits who
//! types the command: from then until the line that tells of step 1 has come out of it. A third program under torchrun does
//! nothing but import torch, join the group and sum a number: no other is sooner at its first step. A round that is not counted
//! comes first: it leaves files in the page cache and Python's compiled modules on disk.

use std::error::Error;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{ChildStderr, ChildStdout, Command, Stdio};
use std::thread::available_parallelism;
use std::time::Instant;

use clap::Parser;
use serde_json::{Value, json};
use zipper_tests::{TorchSide, cpu, load, profile, program, spread, write_corpus, write_llm, write_whisper};

const WORKERS: &str = "4";
const ROUNDS: usize = 7;
/// As in the script of PyTorch's side.
const CONFIG: &str = "name: startup
seed: 5
model:
  encoder: {path: FOLDER/whisper, context: padded_30s}
  projector: {kind: stack, stack: 5, hidden: 20}
  llm: {path: FOLDER/llm}
  prompt: {template: \"<{lang}>\"}
adapter: {variant: soft, rank: 4, alpha: 8}
data: {languages: [en, de, vi], train: [FOLDER/corpus/train.jsonl]}
training:
  align: {steps: 1, lr: 2.0e-3}
  zipper: {steps: 1, lr: 2.0e-3}
  batch_audio_seconds: 4
  clip_grad_norm: 1.0
  log_every: 1
checkpoint: {every_steps: 0}
runtime: {threads_per_worker: 1}
";

/// Measures start-up.
#[derive(Debug, Parser)]
struct Arguments {
    /// The file that takes what was measured.
    output: PathBuf,
    #[command(flatten)]
    torch_side: TorchSide,
}

/// One start of each.
struct Round {
    load: Option<f64>,
    zipper: f64,
    torchrun: f64,
    floor: f64,
    /// What the script says of its parts.
    parts: Value,
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments = Arguments::parse();
    let folder = tempfile::tempdir()?;
    let folder = folder.path();
    write_whisper(&folder.join("whisper"), 7);
    write_llm(&folder.join("llm"), 8);
    write_corpus(&folder.join("corpus"), 9);
    let config = CONFIG.replace("FOLDER", &folder.display().to_string());
    fs::write(folder.join("run.yaml"), config)?;

    let mut rounds = Vec::new();
    for number in 0..=ROUNDS {
        let load = load();
        let zipper = zipper(folder, number)?;
        let (torchrun, parts) = under_torchrun(&arguments.torch_side, "startup.py", folder)?;
        let (floor, _) = under_torchrun(&arguments.torch_side, "startup_floor.py", folder)?;
        let what = if number == 0 { " (not counted)" } else { "" };
        println!(
            "round {number}{what}: zipper-launch {zipper:.2} s, torchrun {torchrun:.2} s, torchrun without a model {floor:.2} s"
        );
        rounds.push(Round {
            load,
            zipper,
            torchrun,
            floor,
            parts,
        });
    }
    let counted = &rounds[1..];
    let rows = [
        ("zipper_seconds", of(counted, |round| round.zipper)),
        ("torchrun_seconds", of(counted, |round| round.torchrun)),
        ("floor_seconds", of(counted, |round| round.floor)),
        (
            "torchrun_to_zipper",
            of(counted, |round| round.torchrun / round.zipper),
        ),
        ("floor_to_zipper", of(counted, |round| round.floor / round.zipper)),
    ];
    println!("\n| to the first step | min | median | max |\n| --- | --- | --- | --- |");
    for (name, [min, median, max]) in rows {
        println!("| {name} | {min:.2} | {median:.2} | {max:.2} |");
    }
    let table = rows.map(|(name, [min, median, max])| {
        let value = json!({"min": min, "median": median, "max": max});
        (name.to_owned(), value)
    });
    let report = json!({
        "command": "cargo xtask bench startup",
        "machine": {"cpu": cpu(), "cores": available_parallelism()?.get()},
        "profile": profile(),
        "config": CONFIG,
        "table": serde_json::Map::from_iter(table),
        "rounds": counted.iter().map(|round| json!({
            "load_before": round.load, "zipper_seconds": round.zipper, "torchrun_seconds": round.torchrun,
            "floor_seconds": round.floor, "parts_of_rank_0": round.parts,
        })).collect::<Vec<_>>(),
    });
    fs::write(&arguments.output, serde_json::to_string_pretty(&report)? + "\n")?;
    println!("\nwritten: {}", arguments.output.display());
    Ok(())
}

fn of(rounds: &[Round], value: impl Fn(&Round) -> f64) -> [f64; 3] {
    let values: Vec<f64> = rounds.iter().map(value).collect();
    spread(&values)
}

/// Seconds until zipper-launch tells of its first step.
fn zipper(folder: &Path, number: usize) -> Result<f64, Box<dyn Error>> {
    let run = folder.join(format!("run-{number}"));
    let mut command = Command::new(program("zipper-launch"));
    command
        .args(["--local", "--nodes", WORKERS, "--workers-per-node", "1"])
        .args(["--backend", "gloo"])
        .arg("--config")
        .arg(folder.join("run.yaml"))
        .arg("--run")
        .arg(&run)
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    let (seconds, _) = first_line(&mut command, |line| line.contains(" step 1/"))?;
    fs::remove_dir_all(&run)?;
    Ok(seconds)
}

/// Seconds until a script under torchrun tells of its first step, and what it tells.
fn under_torchrun(
    torch_side: &TorchSide,
    script: &str,
    folder: &Path,
) -> Result<(f64, Value), Box<dyn Error>> {
    // One thread is what torchrun would give a worker, with a warning.
    let mut command = torch_side.python(1);
    command
        .args(["-m", "torch.distributed.run", "--standalone"])
        .args(["--nproc-per-node", WORKERS])
        .arg(torch_side.script(script))
        .arg(folder)
        .stdout(Stdio::piped())
        .stderr(Stdio::null());
    let (seconds, line) = first_line(&mut command, |line| line.starts_with('{'))?;
    Ok((seconds, serde_json::from_str(&line)?))
}

/// Starts a command, waits for the first such line of what it says, then for its end.
fn first_line(command: &mut Command, wanted: impl Fn(&str) -> bool) -> Result<(f64, String), Box<dyn Error>> {
    let begun = Instant::now();
    let mut child = command.stdin(Stdio::null()).spawn()?;
    let (stdout, stderr): (Option<ChildStdout>, Option<ChildStderr>) =
        (child.stdout.take(), child.stderr.take());
    let said: Box<dyn BufRead> = match (stdout, stderr) {
        (Some(stdout), _) => Box::new(BufReader::new(stdout)),
        (_, Some(stderr)) => Box::new(BufReader::new(stderr)),
        _ => return Err("the command says nothing".into()),
    };
    let (mut found, mut all) = (None, String::new());
    for line in said.lines() {
        let line = line?;
        if found.is_none() && wanted(&line) {
            found = Some((begun.elapsed().as_secs_f64(), line.clone()));
        }
        all.push_str(&line);
        all.push('\n');
    }
    let status = child.wait()?;
    match found {
        Some(found) if status.success() => Ok(found),
        _ => Err(format!("{command:?} ended with {status}:\n{all}").into()),
    }
}
