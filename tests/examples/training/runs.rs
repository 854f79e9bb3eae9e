//! One run of one side, and what it did.

use std::collections::BTreeMap;
use std::error::Error;
use std::fs::{self, File};
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

use procfs::process::Process;
use serde::Deserialize;
use serde_json::{Value, json};
use zipper_config::RunConfig;
use zipper_tests::{DemoSize, load, program, value_name};

use crate::flops::Flops;
use crate::job::Job;
use crate::{Adapters, Bench, Side};

/// Nats per token that the losses of the first step may differ by.
const SAME_LOSS: f64 = 1e-3;
/// How often memory is looked at.
const WATCH: Duration = Duration::from_millis(100);

/// One step as both sides tell it.
#[derive(Debug, Deserialize)]
pub(crate) struct Step {
    seconds: f64,
    audio_seconds: f64,
    tokens: u64,
    pub(crate) loss: f64,
    /// Seconds of the parts of a step; empty for PyTorch's side.
    #[serde(default)]
    parts: BTreeMap<String, f64>,
}

/// What a run did.
pub(crate) struct Finished {
    pub(crate) steps: Vec<Step>,
    /// The most memory of each process, in KiB.
    peak_kib: Vec<u64>,
}

/// One run of one side.
pub(crate) struct Run {
    pub(crate) size: DemoSize,
    pub(crate) variant: Adapters,
    pub(crate) processes: u32,
    round: usize,
    pub(crate) side: Side,
    load_before: Option<f64>,
    /// Seconds of audio for each second.
    pub(crate) audio_rate: f64,
    pub(crate) token_rate: f64,
    /// Of the largest process, in MiB.
    pub(crate) peak_mib: f64,
    /// What Zipper computed, and how fast the machine can; nothing for PyTorch's side.
    pub(crate) operations: Option<Operations>,
    /// Shares of the counted steps' time; empty for PyTorch's side.
    pub(crate) parts: BTreeMap<String, f64>,
    pub(crate) finished: Finished,
}

/// Operations a second of matrix products.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Operations {
    /// In the counted steps of a run.
    pub(crate) of_run: f64,
    /// Of all cores together in one large product, just after the run.
    pub(crate) of_cores: f64,
}

impl Bench {
    /// One run, which must begin with the loss that all have.
    pub(crate) fn measure(
        &self,
        job: &Job,
        variant: Adapters,
        processes: u32,
        round: usize,
        side: Side,
    ) -> Result<Run, Box<dyn Error>> {
        let steps = self.arguments.selection.steps_of(job.size, side);
        let threads = (self.cores / processes as usize).max(1);
        let load_before = load();
        let config = job.configuration(variant, steps, threads, side == Side::ZipperCached);
        let finished = match side.encoder() {
            None => self.run_zipper(&config, processes, |_| Ok(()))?,
            Some(encoder) => {
                let plan = job.plan(&config, variant, processes, steps)?;
                self.run_pytorch(&plan, encoder, &job.projector, processes, threads)?
            }
        };
        let place = format!(
            "{}, {}, {processes} processes, round {}, {}",
            value_name(job.size),
            value_name(variant),
            round + 1,
            value_name(side)
        );
        let expected = if side == Side::PytorchPadded {
            job.padded_loss
        } else {
            Some(job.native_loss)
        };
        let (expected, found) = (expected.unwrap_or(f64::NAN), finished.first_loss()?);
        let same = (found - expected).abs() <= SAME_LOSS;
        if !same {
            let error =
                format!("{place}: the first loss is {found}, and not {expected}: not the same work is done");
            return Err(error.into());
        }
        if finished.steps.len() != steps || finished.peak_kib.len() != processes as usize {
            let error = format!(
                "{place}: {} steps of {steps} and the memory of {} processes are known",
                finished.steps.len(),
                finished.peak_kib.len()
            );
            return Err(error.into());
        }
        let counted = &finished.steps[side.warm_up()..];
        let seconds: f64 = counted.iter().map(|step| step.seconds).sum();
        let operations = match side.encoder() {
            None => {
                let flops = Flops::of(&config, side == Side::ZipperNative)?;
                let batches = job.batches(&config, steps)?;
                let counted = batches.iter().zip(&finished.steps).skip(side.warm_up());
                let operations: f64 = counted
                    .map(|(batch, step)| flops.of_step(batch, step.tokens))
                    .sum();
                Some(Operations {
                    of_run: operations / seconds,
                    of_cores: self.peak()?,
                })
            }
            Some(_) => None,
        };
        let run = Run {
            size: job.size,
            variant,
            processes,
            round,
            side,
            load_before,
            audio_rate: counted.iter().map(|step| step.audio_seconds).sum::<f64>() / seconds,
            token_rate: counted.iter().map(|step| step.tokens).sum::<u64>() as f64 / seconds,
            peak_mib: finished.peak_kib.iter().copied().max().unwrap_or(0) as f64 / 1024.0,
            operations,
            parts: shares(counted, seconds),
            finished,
        };
        println!(
            "{place}: {:.2} s of audio a second, {:.0} MiB, first loss {found:.5}",
            run.audio_rate, run.peak_mib
        );
        Ok(run)
    }

    /// Operations a second of all cores together in a matrix product, just now.
    fn peak(&self) -> Result<f64, Box<dyn Error>> {
        let torch_side = &self.arguments.torch_side;
        let mut command = torch_side.python(self.cores);
        let said = self.finish(command.arg(torch_side.script("peak.py")), || ())?;
        Ok(said.trim().parse()?)
    }

    /// A run of zipper-launch; `look` sees its folder before that is removed.
    pub(crate) fn run_zipper(
        &self,
        config: &RunConfig,
        processes: u32,
        look: impl FnOnce(&Path) -> Result<(), Box<dyn Error>>,
    ) -> Result<Finished, Box<dyn Error>> {
        let file = self.folder.path().join("run.yaml");
        // JSON is YAML.
        fs::write(&file, serde_json::to_string_pretty(config)?)?;
        let run = self.folder.path().join("run");
        let mut command = Command::new(program("zipper-launch"));
        command
            .args([
                "--local",
                "--nodes",
                &processes.to_string(),
                "--workers-per-node",
                "1",
            ])
            .args(["--backend", "gloo", "--resume", "never"])
            .arg("--config")
            .arg(&file)
            .arg("--run")
            .arg(&run)
            // A measurement that is made in a job is not about its allocation.
            .env_remove("SLURM_JOB_ID");
        let mut peaks = BTreeMap::new();
        let place = run.display().to_string();
        let output = self.finish(&mut command, || {
            for pid in zipper_tests::processes(&["zipper-worker", "train", &place]) {
                if let Some(kib) = peak_kib(pid) {
                    peaks.insert(pid, kib);
                }
            }
        });
        output?;
        let steps = steps(&fs::read_to_string(run.join("metrics/train.jsonl"))?)?;
        look(&run)?;
        fs::remove_dir_all(&run)?;
        Ok(Finished {
            steps,
            peak_kib: peaks.into_values().collect(),
        })
    }

    /// A run of the script under torchrun.
    fn run_pytorch(
        &self,
        plan: &Value,
        encoder: &str,
        projector: &Path,
        processes: u32,
        threads: usize,
    ) -> Result<Finished, Box<dyn Error>> {
        #[derive(Deserialize)]
        struct Memory {
            peak_kib: Vec<u64>,
        }
        let file = self.folder.path().join("plan.json");
        fs::write(&file, plan.to_string())?;
        let torch_side = &self.arguments.torch_side;
        let mut command = torch_side.python(threads);
        command
            .args(["-m", "torch.distributed.run", "--standalone"])
            .args(["--nproc-per-node", &processes.to_string()])
            .arg(torch_side.script("train.py"))
            .arg(&file)
            .arg("--projector")
            .arg(projector)
            .args(["--encoder", encoder]);
        let output = self.finish(&mut command, || ())?;
        let (lines, last) = output
            .trim_end()
            .rsplit_once('\n')
            .ok_or("the script made no step")?;
        let memory: Memory = serde_json::from_str(last)?;
        Ok(Finished {
            steps: steps(lines)?,
            peak_kib: memory.peak_kib,
        })
    }

    /// Runs a command to its end, with `watch` again and again meanwhile: what it said on stdout.
    fn finish(&self, command: &mut Command, mut watch: impl FnMut()) -> Result<String, Box<dyn Error>> {
        let file = |name: &str| self.folder.path().join(name);
        let mut child = command
            .stdin(Stdio::null())
            .stdout(File::create(file("stdout"))?)
            .stderr(File::create(file("stderr"))?)
            .spawn()?;
        let status = loop {
            if let Some(status) = child.try_wait()? {
                break status;
            }
            watch();
            sleep(WATCH);
        };
        if !status.success() {
            let said = fs::read_to_string(file("stderr"))?;
            return Err(format!("{command:?} ended with {status}:\n{said}").into());
        }
        Ok(fs::read_to_string(file("stdout"))?)
    }
}

impl Finished {
    pub(crate) fn first_loss(&self) -> Result<f64, Box<dyn Error>> {
        let first = self.steps.first().ok_or("no step was made")?;
        Ok(first.loss)
    }
}

impl Run {
    pub(crate) fn to_json(&self) -> Value {
        json!({
            "size": value_name(self.size), "variant": value_name(self.variant), "processes": self.processes, "round": self.round + 1,
            "program": value_name(self.side), "load_before": self.load_before,
            "audio_seconds_per_second": self.audio_rate, "tokens_per_second": self.token_rate,
            "peak_kib": self.finished.peak_kib, "shares_of_step": self.parts,
            "operations_per_second": self.operations.map(|operations| operations.of_run),
            "peak_operations_per_second": self.operations.map(|operations| operations.of_cores),
            "seconds": self.finished.steps.iter().map(|step| step.seconds).collect::<Vec<_>>(),
            "losses": self.finished.steps.iter().map(|step| step.loss).collect::<Vec<_>>(),
        })
    }
}

/// How much of `seconds` each part of the steps took.
fn shares(steps: &[Step], seconds: f64) -> BTreeMap<String, f64> {
    let mut shares = BTreeMap::new();
    for (part, of_step) in steps.iter().flat_map(|step| &step.parts) {
        *shares.entry(part.clone()).or_insert(0.0) += of_step / seconds;
    }
    shares
}

fn steps(lines: &str) -> Result<Vec<Step>, serde_json::Error> {
    lines.lines().map(serde_json::from_str).collect()
}

/// The most memory that a process ever had, if it is there.
fn peak_kib(pid: i32) -> Option<u64> {
    Process::new(pid).ok()?.status().ok()?.vmhwm
}
