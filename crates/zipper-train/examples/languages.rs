//! What more languages cost a step: `cargo xtask bench languages`.
//!
//! Two ranks, processes of this program with Gloo between them, train a made-up model on the same utterances, which are said to be in 1,
//! 12, 120 or 1,000 languages: the same audio, texts and batch, only the languages are others. All cases of a variant are there at the
//! same time and make their steps in turns, one step each, so that whatever else the machine does meets all.
//!
//! There is neither coordinator nor worker: a session is made of a configuration whose list of codes is as long as it has to be; beyond
//! a hundred, codes come again. Banks, owners, LID embeddings and the sampler go by a language's place in the list and never look at its
//! code. The prompt has no language in it.
//!
//! Of four utterances out of 12 languages some often have the same one, out of 1,000 hardly ever, and a rank may get all of them. That is
//! not what is asked. So each case has a seed with which many batches have four utterances of four languages, two of them for each rank,
//! and those steps are compared; all steps are reported, too.
//!
//! When a language comes for the first time, its gradients and moments and what is remembered of them are written for the first time, and the
//! kernel clears those pages. With `--known` only steps count whose languages have all come before, which takes a long warm-up.

use std::collections::{BTreeMap, BTreeSet};
use std::error::Error;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::thread::available_parallelism;
use std::time::{Duration, Instant};
use std::{env, fs};

use clap::Parser;
use serde_json::{Value, json};
use tch::Device;
use zipper_collectives::{GroupOptions, Store};
use zipper_config::schema::RunConfig;
use zipper_data::Utterance;
use zipper_plan::{Placement, PlacementProblem, Sampler, SamplerProblem, WorkModel};
use zipper_tests::{
    BENCHMARK_LLM, benchmark_config, cpu, file_of_part, load, spread, spread_json, spread_text,
    write_benchmark,
};
use zipper_train::replica::Replica;
use zipper_train::session::{Origin, Session};
use zipper_train::step::Votes;
use zipper_train::team::Team;
use zipper_types::language::language_codes;
use zipper_types::{Rank, Stage, Step, Variant, WorldSize};

const HOST: &str = "127.0.0.1";
const TIMEOUT: Duration = Duration::from_mins(3);
const RANKS: u32 = 2;
const LANGUAGES: [usize; 4] = [1, 12, 120, 1000];
/// What the others are compared with.
const REFERENCE: usize = 12;
const VARIANTS: [Variant; 2] = [Variant::Soft, Variant::Independent];
/// A bank is then as small beside the LLM as one of rank 16 beside Qwen2.5-7B: 0.3 %.
const LORA_RANK: u32 = 2;
/// As many for each language, whichever number of languages there is.
const UTTERANCES: usize = 3000;
const UTTERANCES_OF_A_BATCH: usize = 4;
const SECONDS: f64 = 6.0;
const CHARACTERS: usize = 40;
const RECORDINGS: usize = 24;
const SAMPLE_RATE: u32 = 16_000;
/// Seeds among which the best is looked for.
const SEEDS: u64 = 2000;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    match arguments.as_slice() {
        // One of the processes that a measurement starts.
        [command, task] if command == "rank" => train(&serde_json::from_str(task)?),
        _ => measure(&Arguments::parse()),
    }
}

/// Measures what more languages cost a step.
#[derive(Debug, Parser)]
struct Arguments {
    /// The file that takes what was measured; with `--known` the one beside it whose name ends so.
    output: PathBuf,
    /// How often each case has its turn.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Counted steps of a run.
    #[arg(long, default_value_t = 30)]
    steps: usize,
    /// Steps of stage 2 at the beginning that are not counted: buffers are made, and what is remembered.
    #[arg(long, default_value_t = 4)]
    warm_up: usize,
    /// Compare only steps whose languages have all come before. With 1,000 languages that takes a warm-up of some hundred steps.
    #[arg(long)]
    known: bool,
    /// Numbers of languages.
    #[arg(long, value_delimiter = ',', value_parser = number_of_languages, default_values_t = LANGUAGES)]
    languages: Vec<usize>,
    /// How languages share adapters.
    #[arg(long, value_delimiter = ',', value_parser = variant, default_values_t = VARIANTS)]
    variants: Vec<Variant>,
}

fn number_of_languages(text: &str) -> Result<usize, String> {
    let languages: usize = text.parse().map_err(|_| "not a number".to_owned())?;
    if languages == 0 || !UTTERANCES.is_multiple_of(languages) {
        return Err(format!(
            "{UTTERANCES} utterances cannot be shared out evenly among so many"
        ));
    }
    Ok(languages)
}

fn variant(text: &str) -> Result<Variant, String> {
    let known = VARIANTS.into_iter().find(|variant| variant.to_string() == text);
    known.ok_or_else(|| "it is `soft` or `independent`".to_owned())
}

/// A number of languages, and the batches that it gets.
struct Case {
    languages: usize,
    seed: u64,
    /// For each counted step whether its batch is one of those that are compared.
    alike: Vec<bool>,
    /// Languages of the counted batches, on average.
    in_batch: f64,
}

/// A run of a case.
struct Run {
    variant: Variant,
    languages: usize,
    round: usize,
    load_before: Option<f64>,
    /// What its ranks said.
    ranks: Vec<Value>,
}

fn measure(arguments: &Arguments) -> Result<(), Box<dyn Error>> {
    let folder = tempfile::tempdir()?;
    write_benchmark(folder.path());
    for index in 0..RECORDINGS {
        write_recording(&recording(folder.path(), index), index)?;
    }
    let text = benchmark_config(
        "languages",
        LORA_RANK,
        [1, 1000],
        "runtime: {threads_per_worker: 1}",
    );
    let here = text.replace("FOLDER", &folder.path().display().to_string());
    fs::write(folder.path().join("run.yaml"), here)?;

    let cases: Vec<Case> = arguments
        .languages
        .iter()
        .map(|&languages| Case::new(languages, arguments))
        .collect();
    let mut runs: Vec<Run> = Vec::new();
    for round in 0..arguments.rounds {
        for &variant in &arguments.variants {
            println!("round {} of {}: {variant}", round + 1, arguments.rounds);
            let load_before = load();
            let said = take_turns(folder.path(), &cases, variant, arguments)?;
            runs.extend(cases.iter().zip(said).map(|(case, ranks)| Run {
                variant,
                languages: case.languages,
                round,
                load_before,
                ranks,
            }));
        }
    }
    let rows = table(arguments, &cases, &runs);
    print(&rows);
    let report = json!({
        "command": "cargo xtask bench languages",
        "machine": {"cpu": cpu(), "cores": available_parallelism()?.get()},
        "llm": {
            "width": BENCHMARK_LLM.width, "ffn": BENCHMARK_LLM.ffn, "layers": BENCHMARK_LLM.layers, "lora_rank": LORA_RANK,
        },
        "config": text,
        "ranks": RANKS,
        "batch": {"utterances": UTTERANCES_OF_A_BATCH, "seconds_of_each": SECONDS, "characters_of_each": CHARACTERS},
        "utterances": UTTERANCES,
        "uncounted_steps_of_stage_2": arguments.warm_up,
        "compared_are_steps_of_known_languages": arguments.known,
        "rounds": arguments.rounds,
        "cases": cases.iter().map(Case::to_json).collect::<Vec<_>>(),
        "table": rows,
        "runs": runs.iter().map(Run::to_json).collect::<Vec<_>>(),
    });
    let output = if arguments.known {
        file_of_part(&arguments.output, "known")
    } else {
        arguments.output.clone()
    };
    fs::write(&output, serde_json::to_string_pretty(&report)? + "\n")?;
    println!("\nwritten: {}", output.display());
    Ok(())
}

impl Case {
    fn new(languages: usize, arguments: &Arguments) -> Self {
        let placement = placement(languages);
        let batches = |seed: u64| -> Vec<Batch> {
            let mut sampler = Sampler::new(SamplerProblem {
                seed,
                temperature: 1.0,
                batch_seconds: UTTERANCES_OF_A_BATCH as f64 * SECONDS,
                durations: vec![vec![SECONDS; UTTERANCES / languages]; languages],
            })
            .expect("there is data");
            let mut came = BTreeSet::new();
            // The one of stage 1 comes first; it leaves the banks alone.
            sampler.next_batch();
            let steps = arguments.warm_up + arguments.steps;
            let batches = (0..steps).map(|_| Batch::of(&mut sampler, &placement, &mut came));
            batches.skip(arguments.warm_up).collect()
        };
        let is_alike =
            |batch: &Batch| batch.is_even(languages) && (!arguments.known || batch.is_of_known_languages);
        let alike = |batches: &[Batch]| batches.iter().map(is_alike).collect();
        let best = (0..SEEDS).max_by_key(|&seed| {
            let alike: Vec<bool> = alike(&batches(seed));
            (
                alike.iter().filter(|alike| **alike).count(),
                std::cmp::Reverse(seed),
            )
        });
        let seed = best.unwrap_or(0);
        let batches = batches(seed);
        let in_batch: usize = batches.iter().map(|batch| batch.languages).sum();
        Self {
            languages,
            seed,
            alike: alike(&batches),
            in_batch: in_batch as f64 / batches.len().max(1) as f64,
        }
    }

    fn to_json(&self) -> Value {
        json!({
            "languages": self.languages, "seed": self.seed, "languages_in_a_batch": self.in_batch,
            "compared_steps_of_a_run": self.alike.iter().filter(|alike| **alike).count(), "compared": self.alike,
        })
    }
}

/// What matters of a batch.
struct Batch {
    languages: usize,
    /// Whether all of them came in an earlier batch.
    is_of_known_languages: bool,
    /// Utterances of each rank, and their languages.
    hands: Vec<(usize, usize)>,
}

impl Batch {
    /// The next batch, whose languages are from now on those that `came`.
    fn of(sampler: &mut Sampler, placement: &Placement, came: &mut BTreeSet<usize>) -> Self {
        let languages: Vec<usize> = sampler
            .next_batch()
            .utterances
            .iter()
            .map(|at| at.language)
            .collect();
        let is_of_known_languages = languages.iter().all(|language| came.contains(language));
        came.extend(&languages);
        let distinct = |languages: &mut dyn Iterator<Item = usize>| languages.collect::<BTreeSet<_>>().len();
        // All utterances are as long, so they cost the same.
        let costs: Vec<(usize, f64)> = languages.iter().map(|&language| (language, 1.0)).collect();
        let hands = placement.deal(&costs);
        Self {
            languages: distinct(&mut languages.iter().copied()),
            is_of_known_languages,
            hands: hands
                .iter()
                .map(|hand| {
                    (
                        hand.len(),
                        distinct(&mut hand.iter().map(|&index| languages[index])),
                    )
                })
                .collect(),
        }
    }

    /// Whether every rank has as many utterances as the others, all in languages of their own if there are enough.
    fn is_even(&self, languages: usize) -> bool {
        let utterances = UTTERANCES_OF_A_BATCH / RANKS as usize;
        self.hands
            .iter()
            .all(|&hand| hand == (utterances, utterances.min(languages)))
    }
}

impl Run {
    /// A figure of each counted step: that of the rank where it is largest.
    fn steps(&self, key: &str) -> Vec<f64> {
        let of_rank = |rank: &Value| -> Vec<f64> {
            let values = rank[key].as_array().into_iter().flatten();
            values.filter_map(Value::as_f64).collect()
        };
        let ranks: Vec<Vec<f64>> = self.ranks.iter().map(of_rank).collect();
        let steps = ranks.iter().map(Vec::len).min().unwrap_or(0);
        (0..steps)
            .map(|step| ranks.iter().map(|rank| rank[step]).fold(0.0, f64::max))
            .collect()
    }

    /// The same of the steps that are compared.
    fn compared(&self, key: &str, case: &Case) -> Vec<f64> {
        let steps = self.steps(key).into_iter().zip(&case.alike);
        steps
            .filter(|(_, alike)| **alike)
            .map(|(value, _)| value)
            .collect()
    }

    fn largest(&self, key: &str) -> f64 {
        let values = self.ranks.iter().filter_map(|rank| rank[key].as_f64());
        values.fold(0.0, f64::max)
    }

    fn to_json(&self) -> Value {
        json!({
            "variant": self.variant.to_string(), "languages": self.languages, "round": self.round + 1,
            "load_before": self.load_before, "ranks": self.ranks,
        })
    }
}

/// Trains all cases, a step each in turns; for each case, what each of its ranks says.
fn take_turns(
    folder: &Path,
    cases: &[Case],
    variant: Variant,
    arguments: &Arguments,
) -> Result<Vec<Vec<Value>>, Box<dyn Error>> {
    let started: Result<Vec<Ranks>, _> = cases
        .iter()
        .map(|case| Ranks::start(folder, case, variant, arguments))
        .collect();
    let mut of_cases = started?;
    for ranks in &mut of_cases {
        ranks.hear()?;
    }
    // The first one is that of stage 1.
    for turn in 0..=arguments.warm_up + arguments.steps {
        let first = turn % of_cases.len();
        for place in 0..of_cases.len() {
            let ranks = &mut of_cases[(first + place) % cases.len()];
            ranks.go_on()?;
            ranks.hear()?;
        }
    }
    of_cases.into_iter().map(Ranks::end).collect()
}

/// The processes of a case.
struct Ranks {
    processes: Vec<(Child, BufReader<ChildStdout>)>,
    _store: Store,
}

impl Ranks {
    fn start(
        folder: &Path,
        case: &Case,
        variant: Variant,
        arguments: &Arguments,
    ) -> Result<Self, Box<dyn Error>> {
        let (store, port) = Store::serve(HOST, TIMEOUT)?;
        let mut processes = Vec::new();
        for rank in 0..RANKS {
            let task = json!({
                "folder": folder, "languages": case.languages, "variant": variant.to_string(), "seed": case.seed,
                "warm_up": arguments.warm_up, "steps": arguments.steps, "rank": rank, "port": port,
            });
            let mut child = Command::new(env::current_exe()?)
                .args(["rank", &task.to_string()])
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()?;
            let said = child.stdout.take().ok_or("a rank has no stdout")?;
            processes.push((child, BufReader::new(said)));
        }
        Ok(Self {
            processes,
            _store: store,
        })
    }

    /// Lets every rank make a step.
    fn go_on(&mut self) -> Result<(), Box<dyn Error>> {
        for (child, _) in &mut self.processes {
            writeln!(child.stdin.as_mut().ok_or("a rank has no stdin")?)?;
        }
        Ok(())
    }

    /// The next line of every rank.
    fn hear(&mut self) -> Result<Vec<String>, Box<dyn Error>> {
        let lines = self
            .processes
            .iter_mut()
            .map(|(_, said)| -> Result<_, Box<dyn Error>> {
                let mut line = String::new();
                match said.read_line(&mut line)? {
                    0 => Err("a rank has ended".into()),
                    _ => Ok(line),
                }
            });
        lines.collect()
    }

    fn end(mut self) -> Result<Vec<Value>, Box<dyn Error>> {
        let lines = self.hear()?;
        for (mut child, _) in self.processes {
            let status = child.wait()?;
            if !status.success() {
                return Err(format!("a rank ended with {status}").into());
            }
        }
        let said = lines.iter().map(|line| serde_json::from_str(line));
        Ok(said.collect::<Result<_, _>>()?)
    }
}

/// One rank, a process of its own: says that it is there, makes a step for each line that it is given and says so, and at last what they took.
fn train(task: &Value) -> Result<(), Box<dyn Error>> {
    let number = |key: &str| task[key].as_u64().ok_or(format!("no `{key}`"));
    let folder = Path::new(task["folder"].as_str().ok_or("no `folder`")?);
    let languages = number("languages")? as usize;
    let variant = VARIANTS
        .into_iter()
        .find(|variant| task["variant"] == variant.to_string());
    let config = config(folder, languages, variant.ok_or("no `variant`")?, number("seed")?)?;
    tch::set_num_threads(1);
    let mut session = session(
        &config,
        folder,
        Rank(u32::try_from(number("rank")?)?),
        u16::try_from(number("port")?)?,
    )?;
    let mut turns = std::io::stdin().lines();
    let mut next_turn = |said: &str| -> Result<(), Box<dyn Error>> {
        writeln!(std::io::stdout(), "{said}")?;
        turns.next().ok_or("nobody waits for this rank")??;
        Ok(())
    };
    next_turn("ready")?;
    session.train_step(Votes::default())?;
    session.enter(Stage::Zipper)?;
    let mut steps: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
    let warm_up = number("warm_up")?;
    for step in 0..warm_up + number("steps")? {
        next_turn("a step is made")?;
        let started = Instant::now();
        let report = session.train_step(Votes::default())?;
        let seconds = started.elapsed();
        if step < warm_up {
            continue;
        }
        for (key, value) in [
            ("seconds", seconds.as_secs_f64()),
            ("compute_seconds", report.own_compute.as_secs_f64()),
            ("comm_exposed_seconds", report.cost.exposed.as_secs_f64()),
            ("memory_seconds", report.memory.as_secs_f64()),
            ("comm_bytes_shared", report.cost.shared_bytes as f64),
            ("comm_bytes_banks", report.cost.bank_bytes as f64),
        ] {
            steps.entry(key).or_default().push(value);
        }
    }
    writeln!(std::io::stdout(), "all steps are made")?;
    // Before what is looked at last.
    let peak = peak_bytes()?;
    let started = Instant::now();
    let gates = session.replica().adapters().gate_shares().is_some();
    let gate_shares = gates.then(|| started.elapsed().as_secs_f64());
    let mut said = json!({
        "peak_bytes": peak, "bank_bytes": session.bank_bytes(), "remembered_bytes": session.memory_bytes(),
        "banks": session.team().own_banks().len(), "gate_shares_seconds": gate_shares,
    });
    for (key, values) in steps {
        said[key] = json!(values);
    }
    writeln!(std::io::stdout(), "{said}")?;
    Ok(())
}

/// The configuration as it would be if there were so many languages.
fn config(folder: &Path, languages: usize, variant: Variant, seed: u64) -> Result<RunConfig, Box<dyn Error>> {
    let mut config = zipper_config::load(&folder.join("run.yaml"), &[])?;
    let codes: Vec<&str> = language_codes().collect();
    config.data.languages = codes
        .iter()
        .cycle()
        .take(languages)
        .map(ToString::to_string)
        .collect();
    config.data.temperature = 1.0;
    config.seed = seed;
    config.adapter.variant = variant;
    "listen".clone_into(&mut config.model.prompt.template);
    // The encoder is as tiny as its cache would be slow to fill.
    config.model.encoder.cache = None;
    config.training.batch_audio_seconds = UTTERANCES_OF_A_BATCH as f64 * SECONDS;
    config.training.micro_batch_audio_seconds = config.training.batch_audio_seconds;
    Ok(config)
}

fn session(config: &RunConfig, folder: &Path, rank: Rank, port: u16) -> Result<Session, Box<dyn Error>> {
    let languages = config.data.languages.len();
    let utterances = (0..UTTERANCES).map(|index| utterance(folder, index, &config.data.languages));
    let store = Store::connect(HOST, port, TIMEOUT)?;
    let options = GroupOptions::gloo(HOST, TIMEOUT);
    let work = WorkModel::unmeasured(languages);
    let placement = placement(languages);
    let team = Team::form(&store, rank, rank.0, config, placement, work, &options)?;
    let replica = Replica::load(config, Stage::Align, Device::Cpu, BTreeSet::new())?;
    let mut session = Session::new(replica, utterances.collect())?;
    session.regroup(team, Step(0), &Origin::Fresh)?;
    Ok(session)
}

/// Every language has the same work.
fn placement(languages: usize) -> Placement {
    Placement::solve(&PlacementProblem {
        work: vec![1.0; languages],
        world_size: WorldSize(RANKS),
        max_banks_per_rank: None,
    })
    .expect("memory is no limit")
}

/// One of the utterances, which are the same whatever their languages are called.
fn utterance(folder: &Path, index: usize, codes: &[String]) -> Utterance {
    let language = index % codes.len();
    let letter = |place: usize| char::from(b'a' + ((index + place * place) % 26) as u8);
    Utterance {
        id: format!("utterance-{index:04}"),
        audio_filepath: recording(folder, index % RECORDINGS),
        offset: None,
        duration: SECONDS,
        text: (0..CHARACTERS).map(letter).collect(),
        language,
        lang: codes[language].clone(),
    }
}

fn recording(folder: &Path, index: usize) -> PathBuf {
    folder.join(format!("recording-{index:02}.wav"))
}

/// A tone that rises, as a WAV file of 16-bit samples.
fn write_recording(path: &Path, index: usize) -> std::io::Result<()> {
    let samples = (SECONDS * f64::from(SAMPLE_RATE)) as u32;
    let bytes = 2 * samples;
    let mut file: Vec<u8> = Vec::with_capacity(44 + bytes as usize);
    file.extend(b"RIFF");
    file.extend((36 + bytes).to_le_bytes());
    file.extend(b"WAVEfmt ");
    file.extend(16_u32.to_le_bytes());
    // PCM, one channel.
    file.extend([1_u16, 1].map(u16::to_le_bytes).concat());
    file.extend([SAMPLE_RATE, 2 * SAMPLE_RATE].map(u32::to_le_bytes).concat());
    file.extend([2_u16, 16].map(u16::to_le_bytes).concat());
    file.extend(b"data");
    file.extend(bytes.to_le_bytes());
    for sample in 0..samples {
        let time = f64::from(sample) / f64::from(SAMPLE_RATE);
        let pitch = 200.0 + 40.0 * index as f64 + 50.0 * time;
        let value = (pitch * time * std::f64::consts::TAU).sin() / 4.0;
        file.extend(((value * f64::from(i16::MAX)) as i16).to_le_bytes());
    }
    fs::write(path, file)
}

/// The most memory that this process ever had.
fn peak_bytes() -> Result<u64, Box<dyn Error>> {
    let status = fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.and_then(|line| line.split_whitespace().next());
    Ok(1024
        * kib
            .ok_or("the kernel does not tell a process's peak of memory")?
            .parse::<u64>()?)
}

fn median<'a>(values: impl IntoIterator<Item = &'a f64>) -> f64 {
    spread(values)[1]
}

/// A row for each variant and number of languages, over all rounds.
fn table(arguments: &Arguments, cases: &[Case], runs: &[Run]) -> Vec<Value> {
    let mut rows = Vec::new();
    for &variant in &arguments.variants {
        for case in cases {
            let of = |languages: usize| {
                let runs = runs.iter();
                let runs: Vec<&Run> = runs
                    .filter(|run| (run.variant, run.languages) == (variant, languages))
                    .collect();
                runs
            };
            let (own, reference) = (of(case.languages), of(REFERENCE));
            let reference_case = cases.iter().find(|case| case.languages == REFERENCE);
            let ratio = |seconds: &dyn Fn(&Run, &Case) -> Vec<f64>| {
                let rounds = own.iter().zip(&reference);
                let ratios: Vec<f64> = rounds
                    .filter_map(|(run, of_reference)| {
                        let reference = median(&seconds(of_reference, reference_case?));
                        Some(median(&seconds(run, case)) / reference)
                    })
                    .collect();
                spread_json(&ratios)
            };
            let over_runs = |key: &str| -> f64 {
                let values: Vec<f64> = own.iter().flat_map(|run| run.compared(key, case)).collect();
                median(&values)
            };
            let largest = |key: &str| own.iter().map(|run| run.largest(key)).fold(0.0, f64::max);
            let all: Vec<f64> = own.iter().flat_map(|run| run.steps("seconds")).collect();
            rows.push(json!({
                "variant": variant.to_string(), "languages": case.languages,
                "compared_steps": own.iter().map(|run| run.compared("seconds", case).len()).sum::<usize>(),
                "step_seconds": over_runs("seconds"),
                "relative_to_12": ratio(&|run, case| run.compared("seconds", case)),
                "compute_seconds": over_runs("compute_seconds"),
                "comm_exposed_seconds": over_runs("comm_exposed_seconds"),
                "memory_seconds": over_runs("memory_seconds"),
                "all_steps": all.len(),
                "languages_in_a_batch_of_all": case.in_batch,
                "step_seconds_of_all": median(&all),
                "all_relative_to_12": ratio(&|run, _| run.steps("seconds")),
                "comm_bytes_shared": over_runs("comm_bytes_shared"),
                "comm_bytes_banks": over_runs("comm_bytes_banks"),
                "banks_of_a_worker": largest("banks"),
                "bank_bytes_of_a_worker": largest("bank_bytes"),
                "remembered_bytes_of_a_worker": largest("remembered_bytes"),
                "peak_bytes_of_a_worker": largest("peak_bytes"),
                "gate_shares_seconds": largest("gate_shares_seconds"),
            }));
        }
    }
    rows
}

fn print(rows: &[Value]) {
    println!(
        "\n| variant | languages | step, s | relative to 12: min / median / max | of it forward and backward, waiting, remembering, s | \
         all steps: languages in a batch | relative to 12, likewise | shared MiB summed | banks MiB summed | banks of a worker | \
         MiB of them | remembered MiB | peak MiB of a worker |"
    );
    println!("|{}", " --- |".repeat(13));
    for row in rows {
        let number = |key: &str| row[key].as_f64().unwrap_or(f64::NAN);
        let mib = |key: &str| number(key) / f64::from(1 << 20);
        let ratio = |key: &str| spread_text(&row[key]);
        println!(
            "| {} | {} | {:.3} | {} | {:.3}, {:.3}, {:.3} | {:.1} | {} | {:.3} | {:.3} | {} | {:.0} | {:.0} | {:.0} |",
            row["variant"].as_str().unwrap_or_default(),
            row["languages"],
            number("step_seconds"),
            ratio("relative_to_12"),
            number("compute_seconds"),
            number("comm_exposed_seconds"),
            number("memory_seconds"),
            number("languages_in_a_batch_of_all"),
            ratio("all_relative_to_12"),
            mib("comm_bytes_shared"),
            mib("comm_bytes_banks"),
            number("banks_of_a_worker"),
            mib("bank_bytes_of_a_worker"),
            mib("remembered_bytes_of_a_worker"),
            mib("peak_bytes_of_a_worker"),
        );
    }
}
