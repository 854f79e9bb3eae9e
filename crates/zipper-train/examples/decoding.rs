//! How fast transcripts are written, against `generate` of transformers: `cargo xtask bench decoding`.
//!
//! Greedy decoding of batches of utterances in several languages and of different lengths. Both sides begin with the same encoder
//! outputs, which were computed beforehand, and with the same projector and adapters; what is measured is the way from there to the
//! tokens: projector, prompt, and the language model's reading and writing. Zipper's side is `SpeechLlm::generate_tokens` in this
//! process, PyTorch's side `tests/baseline/decode.py`. They take turns, with as many threads each. In an uncounted turn before, and in
//! every other, both must write the same tokens, or the measurement fails.
//!
//! Projector and adapters have random values: nothing is learnt, so that most rows are as long as they may be. Run in the root of the
//! repository, with the demo's data and models; a part is measured in a minute with `--sizes quickstart --adapters plain --batch-sizes 8
//! --rounds 1`.

use std::collections::BTreeMap;
use std::error::Error;
use std::fs;
use std::path::PathBuf;
use std::thread::available_parallelism;
use std::time::Instant;

use clap::{Parser, ValueEnum};
use serde::Deserialize;
use serde_json::{Value, json};
use tch::{Device, Kind, Tensor};
use zipper_config::RunConfig;
use zipper_config::schema::{Dtype, EncoderConfig};
use zipper_data::{DurationLimits, Utterance, load_corpus};
use zipper_model::adapter::{AdapterSpec, Adapters, MergedAdapters};
use zipper_model::generate::GenerateOptions;
use zipper_model::linear::{LinearDelta, LoraSite};
use zipper_model::speech_llm::{Example, SpeechLlm};
use zipper_tests::{
    DemoSize, Script, TorchSide, comma_list, cpu, file_of_part, load, profile, spread_json, spread_text,
    value_name,
};
use zipper_train::frames::Frames;
use zipper_train::state::to_safetensors;
use zipper_types::Variant;

/// Deviation of the random values in LoRA's B: an adapter then changes a layer's output by a tenth or so.
const DEVIATION: f64 = 0.02;

/// Measures decoding.
#[derive(Debug, Parser)]
struct Arguments {
    /// The file that takes what was measured: `decoding-quickstart.json` and `decoding-smollm2.json` beside `decoding.json`.
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
    /// What is added to the language model's layers.
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = Lora::value_variants().to_vec())]
    adapters: Vec<Lora>,
    /// Utterances that are decoded together.
    #[arg(long, value_delimiter = ',', default_values_t = [1, 8, 32])]
    batch_sizes: Vec<usize>,
    /// Utterances that are decoded, of every language as many.
    #[arg(long, default_value_t = 32)]
    utterances: usize,
    /// Most batches of a turn: with small ones not all utterances are decoded.
    #[arg(long, default_value_t = 4)]
    batches: usize,
    /// Longest transcript, in tokens.
    #[arg(long, default_value_t = 64)]
    max_new_tokens: usize,
    /// How often each side has its turn.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Threads of each side. Left out: all cores.
    #[arg(long)]
    threads: Option<usize>,
}

/// What is added to the language model's layers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Lora {
    /// Nothing: as fast as a model into whose weights an adapter was merged.
    Plain,
    /// One LoRA adapter for all languages.
    Shared,
    /// One for each language, several in a batch.
    Independent,
}

/// Models with the utterances that they hear.
struct Job {
    size: DemoSize,
    config: RunConfig,
    utterances: Vec<Utterance>,
    /// Encoder outputs of each.
    frames: Vec<Tensor>,
    speech: SpeechLlm,
    sites: Vec<LoraSite>,
}

/// What one side did in its turn.
#[derive(Debug, Deserialize)]
struct Turn {
    seconds: f64,
    /// Of each utterance, without the one that ended them.
    tokens: Vec<Vec<i64>>,
    /// How far each token's score was ahead of the next best, where that was asked for.
    #[serde(default)]
    leads: Vec<Vec<f64>>,
}

/// Both sides' turns in a round.
struct Run {
    size: DemoSize,
    lora: Lora,
    batch_size: usize,
    round: usize,
    load_before: Option<f64>,
    zipper_seconds: f64,
    transformers_seconds: f64,
    utterances: usize,
    /// In all transcripts.
    tokens: usize,
    /// In all transcripts, if every one were as long as the longest of its batch.
    places: usize,
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments = Arguments::parse();
    let selection = &arguments.selection;
    let threads = match selection.threads {
        Some(threads) => threads,
        None => available_parallelism()?.get(),
    };
    tch::set_num_threads(i32::try_from(threads)?);
    for &size in &selection.sizes {
        let job = Job::load(size, selection.utterances)?;
        let output = file_of_part(&arguments.output, &value_name(size));
        let mut runs = Vec::new();
        for &lora in &selection.adapters {
            runs.extend(measure(&arguments, &job, lora, threads)?);
            // What is measured so far is kept if a later part fails.
            let report = report(selection, threads, &job, &runs)?;
            fs::write(&output, serde_json::to_string_pretty(&report)? + "\n")?;
        }
        print(&table(&runs));
        println!("\nwritten: {}", output.display());
    }
    Ok(())
}

/// All turns with one job and its adapters.
fn measure(arguments: &Arguments, job: &Job, lora: Lora, threads: usize) -> Result<Vec<Run>, Box<dyn Error>> {
    let selection = &arguments.selection;
    let merged = job.adapters(lora)?;
    let mut script = job.start(&arguments.torch_side, lora, merged.as_ref(), threads)?;
    let mut runs = Vec::new();
    for &batch_size in &selection.batch_sizes {
        let places: Vec<usize> = (0..job.utterances.len()).collect();
        let batches: Vec<&[usize]> = places.chunks(batch_size).take(selection.batches).collect();
        let place = format!(
            "{}, {}, batches of {batch_size}",
            value_name(job.size),
            value_name(lora)
        );
        for round in 0..=selection.rounds {
            let load_before = load();
            let ours = job.decode(merged.as_ref(), &batches, selection.max_new_tokens)?;
            let question = json!({
                "batches": batches, "max_new_tokens": selection.max_new_tokens, "leads": round == 0,
            });
            let theirs: Turn = serde_json::from_value(script.ask(&question)?)?;
            compare(job, &batches, &ours, &theirs).map_err(|error| format!("{place}: {error}"))?;
            let tokens = ours.tokens.iter().map(Vec::len).sum();
            let run = Run {
                size: job.size,
                lora,
                batch_size,
                round,
                load_before,
                zipper_seconds: ours.seconds,
                transformers_seconds: theirs.seconds,
                utterances: ours.tokens.len(),
                tokens,
                places: places_of(&batches, &ours.tokens),
            };
            let what = if round == 0 { " (not counted)" } else { "" };
            println!(
                "{place}, round {round}{what}: {tokens} tokens in {:.2} s, transformers {:.2} s",
                run.zipper_seconds, run.transformers_seconds
            );
            if round > 0 {
                runs.push(run);
            }
        }
    }
    Ok(runs)
}

/// Sees that both sides wrote the same.
fn compare(job: &Job, batches: &[&[usize]], ours: &Turn, theirs: &Turn) -> Result<(), String> {
    let places: Vec<usize> = batches.concat();
    if theirs.tokens.len() != places.len() {
        return Err(format!("{} transcripts of {}", theirs.tokens.len(), places.len()));
    }
    for (row, &place) in places.iter().enumerate() {
        let (zipper, transformers) = (&ours.tokens[row], &theirs.tokens[row]);
        if zipper == transformers {
            continue;
        }
        let same = zipper
            .iter()
            .zip(transformers)
            .take_while(|(a, b)| a == b)
            .count();
        let id = &job.utterances[place].id;
        let lead = theirs.leads.get(row).and_then(|leads| leads.get(same));
        let lead = lead.map_or_else(String::new, |lead| {
            format!("; there the score of transformers' token is ahead of the next best by {lead:.1e}")
        });
        return Err(format!(
            "`{id}`: the first {same} tokens are the same, then Zipper writes {:?}, transformers {:?}{lead}",
            &zipper[same..],
            &transformers[same..]
        ));
    }
    Ok(())
}

/// Tokens, if every transcript were as long as the longest of its batch.
fn places_of(batches: &[&[usize]], tokens: &[Vec<i64>]) -> usize {
    let mut rows = tokens.iter();
    let places = batches.iter().map(|batch| {
        let of_batch = rows.by_ref().take(batch.len());
        batch.len() * of_batch.map(Vec::len).max().unwrap_or(0)
    });
    places.sum()
}

impl Job {
    /// Loads models and corpus, and computes encoder outputs.
    fn load(size: DemoSize, count: usize) -> Result<Self, Box<dyn Error>> {
        let config = zipper_config::load(size.config(), &[])?;
        let model = &config.model;
        size.require(
            [&model.encoder.path, &model.llm.path]
                .into_iter()
                .chain(&config.data.train),
        )?;
        if model.dtype != Dtype::F32 {
            return Err(format!("`{}` is not of f32", value_name(size)).into());
        }
        println!("{}: encoder outputs", value_name(size));
        let utterances = of_all_languages(&config, count)?;
        let encoder = Frames::load(
            &EncoderConfig {
                cache: None,
                ..model.encoder.clone()
            },
            Device::Cpu,
            Kind::Float,
        )?;
        let heard: Vec<_> = utterances.iter().map(|utterance| (utterance, None)).collect();
        let frames = encoder.frozen(&heard)?;
        let mut speech = SpeechLlm::load(model, encoder.width(), config.seed, Device::Cpu, Kind::Float)?;
        let sites = speech.lora_sites(&config.adapter.targets)?;
        Ok(Self {
            size,
            config,
            utterances,
            frames,
            speech,
            sites,
        })
    }

    /// Adapters with random values, merged for all languages.
    fn adapters(&self, lora: Lora) -> Result<Option<MergedAdapters>, Box<dyn Error>> {
        let Some(variant) = lora.variant() else {
            return Ok(None);
        };
        let num_languages = self.config.data.languages.len();
        let spec = AdapterSpec {
            variant,
            ..AdapterSpec::from_config(&self.config.adapter, num_languages)
        };
        let adapters = Adapters::new(spec, &self.sites, self.config.seed, Device::Cpu)?;
        tch::manual_seed(i64::try_from(self.config.seed)?);
        let every: Vec<usize> = (0..num_languages).collect();
        Ok(Some(tch::no_grad(|| {
            for param in adapters.params() {
                // A is random already, and B is zero.
                if param.name.rsplit('.').next() != Some("A") {
                    let _ = param.tensor.shallow_clone().normal_(0.0, DEVIATION);
                }
            }
            adapters.merge(&every)
        })))
    }

    /// Starts PyTorch's side, and waits until it has read everything.
    fn start(
        &self,
        torch_side: &TorchSide,
        lora: Lora,
        merged: Option<&MergedAdapters>,
        threads: usize,
    ) -> Result<Script, Box<dyn Error>> {
        let folder = tempfile::tempdir()?;
        let (plan, tensors) = (
            folder.path().join("plan.json"),
            folder.path().join("tensors.safetensors"),
        );
        let languages = &self.config.data.languages;
        let names = lora.names(languages);
        let around = |lang: &String| (lang.clone(), self.config.model.prompt.around_speech(lang));
        let prompts: BTreeMap<_, _> = languages.iter().map(around).collect();
        let spoken: Vec<&str> = self
            .utterances
            .iter()
            .map(|utterance| utterance.lang.as_str())
            .collect();
        let sites: Vec<&str> = self.sites.iter().map(|site| site.name.as_str()).collect();
        let about = json!({
            "config": self.config, "prompts": prompts, "threads": threads, "languages": spoken, "adapters": names,
            "sites": sites,
        });
        fs::write(&plan, about.to_string())?;

        let mut all: Vec<(String, Tensor)> = Vec::new();
        for (place, frames) in self.frames.iter().enumerate() {
            all.push((format!("frames.{place}"), frames.shallow_clone()));
        }
        for param in self.speech.projector().params() {
            all.push((param.name.clone(), param.tensor.shallow_clone()));
        }
        if let Some(merged) = merged {
            for (language, name) in names.iter().enumerate() {
                for (id, site) in self.sites.iter().enumerate() {
                    let pair = merged.pair(id, language);
                    all.push((format!("lora.{name}.{}.A", site.name), pair.a));
                    all.push((format!("lora.{name}.{}.B", site.name), pair.b));
                }
            }
        }
        let bytes = to_safetensors(all.iter().map(|(name, tensor)| (name.clone(), tensor)))?;
        fs::write(&tensors, bytes)?;

        let mut command = torch_side.python(threads);
        command
            .arg(torch_side.script("decode.py"))
            .arg(&plan)
            .arg("--tensors")
            .arg(&tensors);
        let (script, _) = Script::start(&mut command)?;
        Ok(script)
    }

    /// One turn of Zipper.
    fn decode(
        &self,
        merged: Option<&MergedAdapters>,
        batches: &[&[usize]],
        max_new_tokens: usize,
    ) -> Result<Turn, Box<dyn Error>> {
        let options = GenerateOptions {
            beam: 1,
            max_new_tokens,
        };
        let (mut seconds, mut tokens) = (0.0, Vec::new());
        for batch in batches {
            let begun = Instant::now();
            let examples: Vec<Example<'_>> = batch
                .iter()
                .map(|&place| Example {
                    frames: &self.frames[place],
                    language: &self.utterances[place].lang,
                })
                .collect();
            let languages: Vec<usize> = batch
                .iter()
                .map(|&place| self.utterances[place].language)
                .collect();
            let rows = merged.map(|merged| merged.rows(&languages, None));
            let adapters = rows.as_ref().map(|rows| rows as &dyn LinearDelta);
            let written = tch::no_grad(|| self.speech.generate_tokens(&examples, adapters, &options))?;
            seconds += begun.elapsed().as_secs_f64();
            tokens.extend(written);
        }
        Ok(Turn {
            seconds,
            tokens,
            leads: Vec::new(),
        })
    }

    fn to_json(&self) -> Value {
        let durations: Vec<f64> = self
            .utterances
            .iter()
            .map(|utterance| utterance.duration)
            .collect();
        json!({
            "size": value_name(self.size), "config": self.size.config(), "languages": self.config.data.languages,
            "utterances": self.utterances.iter().map(|utterance| &utterance.id).collect::<Vec<_>>(),
            "audio_seconds": spread_json(&durations),
        })
    }
}

/// Utterances of all languages in turn, of each from all over its part of the corpus.
fn of_all_languages(config: &RunConfig, count: usize) -> Result<Vec<Utterance>, Box<dyn Error>> {
    let data = &config.data;
    let limits = DurationLimits::from(data);
    let corpus = load_corpus(&data.train, &data.languages, limits)?.utterances;
    let mut by_language: Vec<Vec<Utterance>> = data.languages.iter().map(|_| Vec::new()).collect();
    for utterance in corpus {
        by_language[utterance.language].push(utterance);
    }
    by_language.retain(|utterances| !utterances.is_empty());
    let of_each = count.div_ceil(by_language.len());
    let chosen = (0..of_each).flat_map(|number| {
        let one_of =
            move |utterances: &Vec<Utterance>| utterances[number * utterances.len() / of_each].clone();
        by_language.iter().map(one_of)
    });
    Ok(chosen.take(count).collect())
}

impl Lora {
    fn variant(self) -> Option<Variant> {
        match self {
            Self::Plain => None,
            Self::Shared => Some(Variant::Shared),
            Self::Independent => Some(Variant::Independent),
        }
    }

    /// What PEFT calls the adapters.
    fn names(self, languages: &[String]) -> Vec<String> {
        match self {
            Self::Plain => Vec::new(),
            Self::Shared => vec!["shared".to_owned()],
            Self::Independent => languages.to_vec(),
        }
    }
}

impl Run {
    fn zipper_rate(&self) -> f64 {
        self.tokens as f64 / self.zipper_seconds
    }

    fn transformers_rate(&self) -> f64 {
        self.tokens as f64 / self.transformers_seconds
    }

    fn to_json(&self) -> Value {
        json!({
            "size": value_name(self.size), "adapters": value_name(self.lora), "batch_size": self.batch_size,
            "round": self.round, "load_before": self.load_before, "utterances": self.utterances, "tokens": self.tokens,
            "tokens_if_all_were_as_long_as_the_longest_of_their_batch": self.places,
            "zipper_seconds": self.zipper_seconds, "transformers_seconds": self.transformers_seconds,
        })
    }
}

/// A row for all that was measured of one kind, in the order of the runs.
fn table(runs: &[Run]) -> Vec<Value> {
    let same = |a: &Run, b: &Run| (a.size, a.lora, a.batch_size) == (b.size, b.lora, b.batch_size);
    runs.chunk_by(same).map(row).collect()
}

fn row(rounds: &[Run]) -> Value {
    let over = |value: fn(&Run) -> f64| spread_json(&rounds.iter().map(value).collect::<Vec<_>>());
    let run = &rounds[0];
    json!({
        "size": value_name(run.size), "adapters": value_name(run.lora), "batch_size": run.batch_size,
        "utterances": run.utterances, "tokens": run.tokens,
        "tokens_if_all_were_as_long_as_the_longest_of_their_batch": run.places,
        "zipper_tokens_per_second": over(Run::zipper_rate),
        "transformers_tokens_per_second": over(Run::transformers_rate),
        "ratio": over(|run| run.transformers_seconds / run.zipper_seconds),
    })
}

fn report(selection: &Selection, threads: usize, job: &Job, runs: &[Run]) -> Result<Value, Box<dyn Error>> {
    Ok(json!({
        "command": "cargo xtask bench decoding",
        "flags": selection.flags(),
        "machine": {"cpu": cpu(), "cores": available_parallelism()?.get()},
        "profile": profile(),
        "threads": threads,
        "job": job.to_json(),
        "table": table(runs),
        "runs": runs.iter().map(Run::to_json).collect::<Vec<_>>(),
    }))
}

impl Selection {
    /// The selection as it is typed.
    fn flags(&self) -> String {
        let flags = format!(
            "--sizes {} --adapters {} --batch-sizes {} --utterances {} --batches {} --max-new-tokens {} --rounds {}",
            comma_list(&self.sizes, |&size| value_name(size)),
            comma_list(&self.adapters, |&lora| value_name(lora)),
            comma_list(&self.batch_sizes, usize::to_string),
            self.utterances,
            self.batches,
            self.max_new_tokens,
            self.rounds
        );
        match self.threads {
            None => flags,
            Some(threads) => format!("{flags} --threads {threads}"),
        }
    }
}

fn print(rows: &[Value]) {
    println!(
        "\n| size | adapters | batch | utterances | tokens | tokens a second: Zipper, transformers | Zipper / transformers: min / median / max |"
    );
    println!("|{}", " --- |".repeat(7));
    for row in rows {
        let text = |key: &str| row[key].as_str().unwrap_or_default();
        let median = |key: &str| row[key]["median"].as_f64().unwrap_or(f64::NAN);
        println!(
            "| {} | {} | {} | {} | {} | {:.0}, {:.0} | {} |",
            text("size"),
            text("adapters"),
            row["batch_size"],
            row["utterances"],
            row["tokens"],
            median("zipper_tokens_per_second"),
            median("transformers_tokens_per_second"),
            spread_text(&row["ratio"]),
        );
    }
}
