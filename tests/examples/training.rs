//! How fast a step is and how much memory it takes, against transformers, PEFT and DistributedDataParallel: `cargo xtask bench training`.
//!
//! Real runs of zipper-launch on this machine, and `tests/baseline/train.py` under torchrun, in turns, so that whatever else the machine
//! does meets both. Both train the same models on the same batches, dealt to the same ranks: the sampler and the dealing of
//! `zipper-plan` write them down for the script. Both begin with the same projector and with LoRA that does nothing yet, so that the
//! loss of the first step says whether both do the same work; if not, the measurement fails.
//!
//! Zipper runs at native length, without and with its cache of encoder outputs (filled beforehand). PyTorch's side runs with windows of
//! 30 s, at native length, and with encoder outputs that lie in memory. Run in the root of the repository, with the demo's data and
//! models; a part is measured in a minute with `--sizes quickstart --variants shared --programs zipper-cached,pytorch-cached
//! --processes 1 --rounds 1`.

use std::collections::BTreeMap;
use std::error::Error;
use std::fmt::Write;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread::{available_parallelism, sleep};
use std::time::Duration;

use clap::{Parser, ValueEnum};
use procfs::process::Process;
use serde::Deserialize;
use serde_json::{Value, json};
use zipper_config::RunConfig;
use zipper_config::schema::{EncoderContext, EvaluationConfig, Schedule, StageConfig};
use zipper_data::{DurationLimits, Utterance, load_corpus};
use zipper_plan::{
    LanguageAmount, Placement, PlacementProblem, Sampler, SamplerProblem, WorkModel, expected_work,
    micro_batches,
};
use zipper_tests::{DemoSize, TorchSide, comma_list, cpu, load, profile, program, spread, value_name};
use zipper_types::language::language_name;
use zipper_types::{Variant, WorldSize};

/// Steps at the beginning of a run that are not counted.
const WARM_UP: usize = 2;
/// The same with windows of 30 s, where a step takes so long that what is done once does not matter.
const WARM_UP_PADDED: usize = 1;
/// Nats per token that the losses of the first step may differ by.
const SAME_LOSS: f64 = 1e-3;
/// So small that a step changes nothing: zero is no learning rate.
const NO_RATE: f64 = 1e-30;
/// How often memory is looked at.
const WATCH: Duration = Duration::from_millis(100);
/// What is compared: Zipper with what it would replace.
const PAIRS: [(Side, Side); 5] = [
    (Side::ZipperNative, Side::PytorchPadded),
    (Side::ZipperNative, Side::PytorchNative),
    (Side::ZipperCached, Side::PytorchPadded),
    (Side::ZipperCached, Side::PytorchNative),
    (Side::ZipperCached, Side::PytorchCached),
];

/// Measures training.
#[derive(Debug, Parser)]
struct Arguments {
    /// The file that takes what was measured.
    output: PathBuf,
    #[command(flatten)]
    torch_side: TorchSide,
    #[command(flatten)]
    selection: Selection,
}

/// What of it is measured.
#[derive(Debug, clap::Args)]
struct Selection {
    /// Models and data.
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = DemoSize::value_variants().to_vec())]
    sizes: Vec<DemoSize>,
    /// How languages share adapters.
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = Adapters::value_variants().to_vec())]
    variants: Vec<Adapters>,
    /// What takes turns.
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = Side::value_variants().to_vec())]
    programs: Vec<Side>,
    /// Numbers of processes.
    #[arg(long, value_delimiter = ',', default_values_t = [1, 2, 4])]
    processes: Vec<u32>,
    /// How often each has its turn.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Counted steps of a run. Left out: 10 with quickstart, 3 with smollm2, whose steps are slow.
    #[arg(long)]
    steps: Option<usize>,
    /// Counted steps of a run with windows of 30 s.
    #[arg(long, default_value_t = 2)]
    padded_steps: usize,
}

/// Utterances by language.
type Corpus = Vec<Vec<Utterance>>;

/// How languages share adapters: what PEFT has, too.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Adapters {
    /// One for all.
    Shared,
    /// One for each.
    Independent,
}

/// A program and where its encoder outputs come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Side {
    ZipperNative,
    #[value(name = "pytorch-padded_30s")]
    PytorchPadded,
    PytorchNative,
    ZipperCached,
    PytorchCached,
}

/// One step as both sides tell it.
#[derive(Debug, Deserialize)]
struct Step {
    seconds: f64,
    audio_seconds: f64,
    tokens: u64,
    loss: f64,
}

/// What a run did.
struct Finished {
    steps: Vec<Step>,
    /// The most memory of each process, in KiB.
    peak_kib: Vec<u64>,
}

/// One run of one side.
struct Run {
    size: DemoSize,
    variant: Adapters,
    processes: u32,
    round: usize,
    side: Side,
    load_before: Option<f64>,
    /// Seconds of audio for each second.
    audio_rate: f64,
    token_rate: f64,
    /// Of the largest process, in MiB.
    peak_mib: f64,
    finished: Finished,
}

/// A size with what belongs to it.
struct Job {
    size: DemoSize,
    config: RunConfig,
    /// By language ordinal.
    corpus: Vec<Vec<Utterance>>,
    /// A checkpoint's file with the projector that both sides begin with.
    projector: PathBuf,
    /// Loss of the first step at native length, and with windows of 30 s if that is measured.
    native_loss: f64,
    padded_loss: Option<f64>,
}

/// Where runs are made.
struct Bench {
    arguments: Arguments,
    folder: tempfile::TempDir,
    cores: usize,
}

fn main() -> Result<(), Box<dyn Error>> {
    let bench = Bench {
        arguments: Arguments::parse(),
        folder: tempfile::tempdir()?,
        cores: available_parallelism()?.get(),
    };
    let selection = &bench.arguments.selection;
    let (mut jobs, mut runs) = (Vec::new(), Vec::new());
    for &size in &selection.sizes {
        let job = bench.prepare(size)?;
        jobs.push(job.to_json());
        for &variant in &selection.variants {
            for &processes in &selection.processes {
                for round in 0..selection.rounds {
                    for &side in &selection.programs {
                        runs.push(bench.measure(&job, variant, processes, round, side)?);
                    }
                }
                // What is measured so far is kept if a later run fails.
                bench.write(&jobs, &runs)?;
            }
        }
    }
    print(&bench.table(&runs));
    println!("\nwritten: {}", bench.arguments.output.display());
    Ok(())
}

impl Bench {
    /// Reads a size, lets Zipper make the projector that both sides begin with, and fill its cache.
    fn prepare(&self, size: DemoSize) -> Result<Job, Box<dyn Error>> {
        let selection = &self.arguments.selection;
        let (config, corpus) = self.read(size)?;
        let mut job = Job {
            size,
            config,
            corpus,
            projector: self
                .folder
                .path()
                .join(format!("{}.safetensors", value_name(size))),
            native_loss: f64::NAN,
            padded_loss: None,
        };
        let wants = |side| selection.programs.contains(&side);
        println!("{}: initial values", value_name(size));
        let cached = wants(Side::ZipperCached);
        let steps = if cached {
            selection.steps_of(size, Side::ZipperCached)
        } else {
            1
        };
        let config = without_learning(job.configuration(Adapters::Shared, steps, self.cores, cached));
        let checkpoint = format!("checkpoints/step-{steps:08}/shared.safetensors");
        job.native_loss = self
            .run_zipper(&config, 1, |run| {
                fs::copy(run.join(checkpoint), &job.projector)?;
                Ok(())
            })?
            .first_loss()?;
        if wants(Side::PytorchPadded) {
            println!("{}: the loss with windows of 30 s", value_name(size));
            let mut config = without_learning(job.configuration(Adapters::Shared, 1, self.cores, false));
            config.model.encoder.context = EncoderContext::Padded30s;
            job.padded_loss = Some(self.run_zipper(&config, 1, |_| Ok(()))?.first_loss()?);
        }
        Ok(job)
    }

    /// The configuration of a size, and its corpus by language: what PyTorch's side can read, too.
    fn read(&self, size: DemoSize) -> Result<(RunConfig, Corpus), Box<dyn Error>> {
        let mut config = zipper_config::load(size.config(), &[])?;
        let needed = [&config.model.encoder.path, &config.model.llm.path]
            .into_iter()
            .chain(&config.data.train);
        size.require(needed)?;
        let limits = DurationLimits {
            min_seconds: config.data.min_seconds,
            max_seconds: config.data.max_seconds,
        };
        let mut utterances = load_corpus(&config.data.train, &config.data.languages, limits)?.utterances;
        let is_wav = |utterance: &Utterance| {
            utterance
                .audio_filepath
                .extension()
                .is_some_and(|ending| ending == "wav")
        };
        if !utterances.iter().all(is_wav) {
            utterances.retain(is_wav);
            let manifest = self.folder.path().join(format!("{}.jsonl", value_name(size)));
            fs::write(&manifest, manifest_of(&utterances))?;
            let all = std::mem::take(&mut config.data.languages);
            let is_left = |lang: &String| utterances.iter().any(|utterance| utterance.lang == *lang);
            config.data.languages = all.into_iter().filter(is_left).collect();
            config.data.train = vec![manifest];
            // Once more: a language's ordinal is another one now.
            utterances = load_corpus(&config.data.train, &config.data.languages, limits)?.utterances;
        }
        let mut corpus: Vec<Vec<Utterance>> = config.data.languages.iter().map(|_| Vec::new()).collect();
        for utterance in utterances {
            corpus[utterance.language].push(utterance);
        }
        Ok((config, corpus))
    }

    /// One run, which must begin with the loss that all have.
    fn measure(
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
            finished,
        };
        println!(
            "{place}: {:.2} s of audio a second, {:.0} MiB, first loss {found:.5}",
            run.audio_rate, run.peak_mib
        );
        Ok(run)
    }

    /// A run of zipper-launch; `look` sees its folder before that is removed.
    fn run_zipper(
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

    /// A row for each pair that was measured.
    fn table(&self, runs: &[Run]) -> Vec<Value> {
        let selection = &self.arguments.selection;
        let mut rows = Vec::new();
        for &size in &selection.sizes {
            for &variant in &selection.variants {
                for &processes in &selection.processes {
                    for (zipper, pytorch) in PAIRS {
                        let of = |side| {
                            let of_side = move |run: &&Run| {
                                (run.size, run.variant, run.processes, run.side)
                                    == (size, variant, processes, side)
                            };
                            runs.iter().filter(of_side).collect::<Vec<_>>()
                        };
                        let (ours, theirs) = (of(zipper), of(pytorch));
                        if !ours.is_empty() && !theirs.is_empty() {
                            rows.push(row(&ours, &theirs));
                        }
                    }
                }
            }
        }
        rows
    }

    fn write(&self, jobs: &[Value], runs: &[Run]) -> Result<(), Box<dyn Error>> {
        let report = json!({
            "command": "cargo xtask bench training",
            "flags": self.arguments.selection.flags(),
            "machine": {"cpu": cpu(), "cores": self.cores},
            "profile": profile(),
            "uncounted_steps": {"padded_30s": WARM_UP_PADDED, "others": WARM_UP},
            "sizes": jobs,
            "table": self.table(runs),
            "runs": runs.iter().map(Run::to_json).collect::<Vec<_>>(),
        });
        fs::write(
            &self.arguments.output,
            serde_json::to_string_pretty(&report)? + "\n",
        )?;
        Ok(())
    }
}

impl Selection {
    /// All steps of a run.
    fn steps_of(&self, size: DemoSize, program: Side) -> usize {
        let counted = match (program, size) {
            (Side::PytorchPadded, _) => self.padded_steps,
            (_, DemoSize::Quickstart) => self.steps.unwrap_or(10),
            (_, DemoSize::Smollm2) => self.steps.unwrap_or(3),
        };
        program.warm_up() + counted.max(1)
    }

    /// The selection as it is typed.
    fn flags(&self) -> String {
        let mut flags = format!(
            "--sizes {} --variants {} --programs {} --processes {} --rounds {} --padded-steps {}",
            comma_list(&self.sizes, |&size| value_name(size)),
            comma_list(&self.variants, |&variant| value_name(variant)),
            comma_list(&self.programs, |&side| value_name(side)),
            comma_list(&self.processes, u32::to_string),
            self.rounds,
            self.padded_steps
        );
        if let Some(steps) = self.steps {
            let _ = write!(flags, " --steps {steps}");
        }
        flags
    }
}

impl Side {
    /// What PyTorch's script calls it; nothing for Zipper.
    fn encoder(self) -> Option<&'static str> {
        match self {
            Self::ZipperNative | Self::ZipperCached => None,
            Self::PytorchPadded => Some("padded_30s"),
            Self::PytorchNative => Some("native"),
            Self::PytorchCached => Some("cached"),
        }
    }

    fn warm_up(self) -> usize {
        if self == Self::PytorchPadded {
            WARM_UP_PADDED
        } else {
            WARM_UP
        }
    }
}

impl Job {
    /// The configuration of a run that does nothing but `steps` steps, all of them in one stage.
    fn configuration(&self, variant: Adapters, steps: usize, threads: usize, cached: bool) -> RunConfig {
        let mut config = self.config.clone();
        let stage = |of_run: &StageConfig, steps: usize| StageConfig {
            steps: steps as u64,
            warmup_steps: 0,
            schedule: Schedule::Constant,
            ..of_run.clone()
        };
        let (align, zipper) = match variant {
            Adapters::Shared => (steps, 0),
            Adapters::Independent => (0, steps),
        };
        config.training.align = stage(&config.training.align, align);
        config.training.zipper = stage(&config.training.zipper, zipper);
        config.training.log_every = 1;
        config.adapter.variant = variant.of_run();
        if !cached {
            config.model.encoder.cache = None;
        }
        config.data.validation.clear();
        config.evaluation = EvaluationConfig::default();
        config.checkpoint.every_steps = 0;
        config.runtime.threads_per_worker = Some(threads);
        config
    }

    /// What PyTorch's side is to do: the batches that Zipper draws, dealt as Zipper deals them.
    fn plan(
        &self,
        config: &RunConfig,
        variant: Adapters,
        processes: u32,
        steps: usize,
    ) -> Result<Value, Box<dyn Error>> {
        let corpus = &self.corpus;
        let mut sampler = Sampler::new(SamplerProblem {
            seed: config.seed,
            temperature: config.data.temperature,
            batch_seconds: config.training.batch_audio_seconds,
            durations: corpus
                .iter()
                .map(|utterances| utterances.iter().map(|utterance| utterance.duration).collect())
                .collect(),
        })?;
        let model = WorkModel::unmeasured(corpus.len());
        let world_size = WorldSize(processes);
        let (placement, stage) = match variant {
            Adapters::Shared => (
                Placement::everywhere(corpus.len(), world_size),
                &config.training.align,
            ),
            Adapters::Independent => {
                let amounts: Vec<LanguageAmount> =
                    corpus.iter().map(|utterances| amount(utterances)).collect();
                let (temperature, seconds) = (config.data.temperature, config.training.batch_audio_seconds);
                let problem = PlacementProblem {
                    work: expected_work(&amounts, temperature, seconds, &model)?,
                    world_size,
                    max_banks_per_rank: None,
                };
                (Placement::solve(&problem)?, &config.training.zipper)
            }
        };
        let steps: Vec<Vec<Vec<Vec<&str>>>> = (0..steps)
            .map(|_| {
                let batch = sampler.next_batch().utterances;
                let batch: Vec<&Utterance> = batch.iter().map(|at| &corpus[at.language][at.index]).collect();
                let cost = |utterance: &Utterance| {
                    model.cost(
                        utterance.language,
                        utterance.duration,
                        utterance.text.chars().count(),
                    )
                };
                let costs: Vec<(usize, f64)> = batch
                    .iter()
                    .map(|utterance| (utterance.language, cost(utterance)))
                    .collect();
                let hands = placement.deal(&costs).into_iter().map(|hand| {
                    let seconds: Vec<f64> = hand.iter().map(|&index| batch[index].duration).collect();
                    let cut = micro_batches(&seconds, config.training.micro_batch_audio_seconds);
                    let ids = |places: Vec<usize>| {
                        places
                            .iter()
                            .map(|&place| batch[hand[place]].id.as_str())
                            .collect()
                    };
                    cut.into_iter().map(ids).collect()
                });
                hands.collect()
            })
            .collect();
        let languages = config.data.languages.iter();
        let prompts = languages.map(|lang| {
            let language = language_name(lang).ok_or_else(|| format!("`{lang}` is no language"))?;
            let template = &config.model.prompt.template;
            let prompt = template.replace("{language}", language).replace("{lang}", lang);
            Ok((lang.clone(), Value::from(prompt)))
        });
        let prompts = prompts.collect::<Result<serde_json::Map<_, _>, String>>()?;
        Ok(json!({"config": config, "prompts": prompts, "lr": stage.lr, "steps": steps}))
    }

    fn to_json(&self) -> Value {
        json!({
            "size": value_name(self.size), "config": self.size.config(), "languages": self.config.data.languages,
            "utterances": self.corpus.iter().map(Vec::len).sum::<usize>(),
            "first_loss_of_zipper": {"native": self.native_loss, "padded_30s": self.padded_loss},
        })
    }
}

impl Adapters {
    fn of_run(self) -> Variant {
        match self {
            Self::Shared => Variant::Shared,
            Self::Independent => Variant::Independent,
        }
    }
}

impl Finished {
    fn first_loss(&self) -> Result<f64, Box<dyn Error>> {
        let first = self.steps.first().ok_or("no step was made")?;
        Ok(first.loss)
    }
}

impl Run {
    fn to_json(&self) -> Value {
        json!({
            "size": value_name(self.size), "variant": value_name(self.variant), "processes": self.processes, "round": self.round + 1,
            "program": value_name(self.side), "load_before": self.load_before,
            "audio_seconds_per_second": self.audio_rate, "tokens_per_second": self.token_rate,
            "peak_kib": self.finished.peak_kib,
            "seconds": self.finished.steps.iter().map(|step| step.seconds).collect::<Vec<_>>(),
            "losses": self.finished.steps.iter().map(|step| step.loss).collect::<Vec<_>>(),
        })
    }
}

/// How one side compares with the other, round by round.
fn row(ours: &[&Run], theirs: &[&Run]) -> Value {
    let over_rounds = |value: &dyn Fn(&Run, &Run) -> f64| {
        let values: Vec<f64> = ours
            .iter()
            .zip(theirs)
            .map(|(ours, theirs)| value(ours, theirs))
            .collect();
        let [min, median, max] = spread(&values);
        json!({"min": min, "median": median, "max": max})
    };
    let run = ours[0];
    json!({
        "size": value_name(run.size), "variant": value_name(run.variant), "processes": run.processes,
        "zipper": value_name(run.side), "pytorch": value_name(theirs[0].side),
        "zipper_audio_seconds_per_second": over_rounds(&|ours, _| ours.audio_rate),
        "pytorch_audio_seconds_per_second": over_rounds(&|_, theirs| theirs.audio_rate),
        "audio_ratio": over_rounds(&|ours, theirs| ours.audio_rate / theirs.audio_rate),
        "token_ratio": over_rounds(&|ours, theirs| ours.token_rate / theirs.token_rate),
        "zipper_peak_mib": over_rounds(&|ours, _| ours.peak_mib),
        "pytorch_peak_mib": over_rounds(&|_, theirs| theirs.peak_mib),
        "memory_ratio": over_rounds(&|ours, theirs| ours.peak_mib / theirs.peak_mib),
        "first_losses": {"zipper": run.finished.steps[0].loss, "pytorch": theirs[0].finished.steps[0].loss},
    })
}

fn print(rows: &[Value]) {
    println!(
        "\n| size | variant | processes | Zipper | PyTorch | audio seconds a second: Zipper, PyTorch | Zipper / PyTorch: min / \
         median / max | tokens a second, likewise | peak MiB of a process: Zipper, PyTorch | Zipper / PyTorch, likewise |"
    );
    println!("|{}", " --- |".repeat(10));
    for row in rows {
        let text = |key: &str| row[key].as_str().unwrap_or_default();
        let number = |key: &str, part: &str| row[key][part].as_f64().unwrap_or(f64::NAN);
        let ratio = |key: &str| {
            let [min, median, max] = ["min", "median", "max"].map(|part| number(key, part));
            format!("{min:.2} / **{median:.2}** / {max:.2}")
        };
        println!(
            "| {} | {} | {} | {} | {} | {:.1}, {:.1} | {} | {} | {:.0}, {:.0} | {} |",
            text("size"),
            text("variant"),
            row["processes"],
            text("zipper").trim_start_matches("zipper-"),
            text("pytorch").trim_start_matches("pytorch-"),
            number("zipper_audio_seconds_per_second", "median"),
            number("pytorch_audio_seconds_per_second", "median"),
            ratio("audio_ratio"),
            ratio("token_ratio"),
            number("zipper_peak_mib", "median"),
            number("pytorch_peak_mib", "median"),
            ratio("memory_ratio"),
        );
    }
}

/// The same run with steps that change nothing.
fn without_learning(mut config: RunConfig) -> RunConfig {
    for stage in [&mut config.training.align, &mut config.training.zipper] {
        stage.lr = NO_RATE;
        stage.router_lr = None;
    }
    config
}

fn amount(utterances: &[Utterance]) -> LanguageAmount {
    LanguageAmount {
        utterances: utterances.len(),
        seconds: utterances.iter().map(|utterance| utterance.duration).sum(),
        characters: utterances
            .iter()
            .map(|utterance| utterance.text.chars().count())
            .sum(),
    }
}

/// Utterances as lines of JSON, with absolute paths.
fn manifest_of(utterances: &[Utterance]) -> String {
    let line = |utterance: &Utterance| {
        let line = json!({
            "id": utterance.id, "audio_filepath": utterance.audio_filepath, "offset": utterance.offset,
            "duration": utterance.duration, "text": utterance.text, "lang": utterance.lang,
        });
        format!("{line}\n")
    };
    utterances.iter().map(line).collect()
}

fn steps(lines: &str) -> Result<Vec<Step>, serde_json::Error> {
    lines.lines().map(serde_json::from_str).collect()
}

/// The most memory that a process ever had, if it is there.
fn peak_kib(pid: i32) -> Option<u64> {
    Process::new(pid).ok()?.status().ok()?.vmhwm
}
