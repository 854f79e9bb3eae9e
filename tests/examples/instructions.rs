//! One hot path of the crates without libtorch, for `cargo xtask instructions` to count its instructions.
//!
//! ```text
//! instructions                      the names of the paths, one a line
//! instructions --kind               what else the counts depend on: the processor as this program sees it, and the build
//! instructions NAME                 makes what the path needs from a seed, and goes it once
//! instructions NAME --only-set-up   the same without going it
//! ```
//!
//! The difference of the last two is the path alone. Nothing here runs in more than one thread or depends on the time.

use std::error::Error;
use std::fs;
use std::hint::black_box;
use std::path::Path;

use bytes::Bytes;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tokio::runtime::Builder;
use zipper_checkpoint::{PartRecord, RunStore, layout};
use zipper_data::{DurationLimits, LogMel, Padding, SAMPLE_RATE, decode, load_corpus};
use zipper_plan::{Placement, PlacementProblem, Sampler, SamplerProblem};
use zipper_score::{ReportBuilder, score};
use zipper_tests::manifest;
use zipper_types::{Generation, Scoring, Step, WorldSize};

const SEED: u64 = 1;
const SECONDS: usize = 10;
const OTHER_RATE: u32 = 44_100;
const MANIFEST_LINES: usize = 10_000;
const LANGUAGES: usize = 1_000;
const RANKS: WorldSize = WorldSize(64);
const BATCHES: usize = 100;
const PLACEMENTS: usize = 100;
const SCORED: usize = 1_000;

/// What is counted.
type Work = Box<dyn FnOnce()>;
/// Makes what a path needs, in a folder of its own if it needs files.
type SetUp = fn(&Path) -> Work;

/// The hot paths. What a name means does not change: another path gets another name.
const PATHS: [(&str, SetUp); 7] = [
    ("log_mel_10_s", log_mel),
    ("decode_10_s_of_44100_hz", decode_and_resample),
    ("manifest_of_10000_lines", read_manifest),
    ("100_batches_of_1000_languages_for_64_ranks", draw_and_deal),
    ("100_placements_of_1000_languages_on_64_ranks", place),
    ("scores_of_1000_utterances", score_utterances),
    ("checkpoint_manifest_of_1000_languages", publish_and_load),
];

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let (name, goes) = match arguments.as_slice() {
        [] => {
            for (name, _) in PATHS {
                println!("{name}");
            }
            return Ok(());
        }
        ["--kind"] => {
            println!("{}", kind());
            return Ok(());
        }
        [name] => (name, true),
        [name, "--only-set-up"] => (name, false),
        _ => return Err("usage: instructions [--kind | NAME [--only-set-up]]".into()),
    };
    let path = PATHS.iter().find(|(other, _)| other == name);
    let (_, set_up) = path.ok_or_else(|| format!("there is no path `{name}`"))?;
    let folder = tempfile::tempdir()?;
    let work = set_up(folder.path());
    if goes {
        work();
    }
    Ok(())
}

/// The processor's extensions by which dependencies choose their kernels, and the build.
fn kind() -> String {
    #[cfg(target_arch = "x86_64")]
    let extensions = [
        ("sse4.1", std::arch::is_x86_feature_detected!("sse4.1")),
        ("avx", std::arch::is_x86_feature_detected!("avx")),
        ("avx2", std::arch::is_x86_feature_detected!("avx2")),
        ("fma", std::arch::is_x86_feature_detected!("fma")),
        ("avx512f", std::arch::is_x86_feature_detected!("avx512f")),
    ];
    #[cfg(not(target_arch = "x86_64"))]
    let extensions: [(&str, bool); 0] = [];
    let mut kind = std::env::consts::ARCH.to_owned();
    for (name, _) in extensions.iter().filter(|(_, there)| *there) {
        kind = format!("{kind} {name}");
    }
    let build = if cfg!(debug_assertions) { "dev" } else { "release" };
    format!("{kind}, {build} build")
}

fn random() -> ChaCha8Rng {
    ChaCha8Rng::seed_from_u64(SEED)
}

/// Noise, no louder than half of what is possible.
fn noise(samples: usize) -> Vec<f32> {
    let mut random = random();
    (0..samples).map(|_| random.random_range(-0.5..0.5)).collect()
}

fn log_mel(_: &Path) -> Work {
    let samples = noise(SECONDS * SAMPLE_RATE as usize);
    let extractor = LogMel::new(80);
    Box::new(move || {
        black_box(extractor.compute(&samples, Padding::None));
    })
}

fn decode_and_resample(folder: &Path) -> Work {
    let path = folder.join("noise.wav");
    let spec = hound::WavSpec {
        channels: 1,
        sample_rate: OTHER_RATE,
        bits_per_sample: 16,
        sample_format: hound::SampleFormat::Int,
    };
    let mut writer = hound::WavWriter::create(&path, spec).expect("the folder is writable");
    for sample in noise(SECONDS * OTHER_RATE as usize) {
        let sample = (sample * f32::from(i16::MAX)) as i16;
        writer.write_sample(sample).expect("the folder is writable");
    }
    writer.finalize().expect("the folder is writable");
    Box::new(move || {
        black_box(decode(&path, 0.0, None).expect("it was written well"));
    })
}

fn read_manifest(folder: &Path) -> Work {
    let mut random = random();
    let words = words();
    let languages: Vec<String> = (0..100).map(|language| format!("l{language}")).collect();
    let mut text = String::new();
    for line in 0..MANIFEST_LINES {
        let language = &languages[random.random_range(0..languages.len())];
        let spoken = sentence(&mut random, &words);
        let line = serde_json::json!({
            "id": format!("{language}-{line}"), "audio_filepath": format!("clips/{language}/{line}.flac"),
            "duration": random.random_range(1.0..20.0), "text": spoken, "lang": language,
        });
        text += &line.to_string();
        text.push('\n');
    }
    let path = folder.join("train.jsonl");
    fs::write(&path, text).expect("the folder is writable");
    let limits = DurationLimits {
        min_seconds: 0.5,
        max_seconds: 19.0,
    };
    Box::new(move || {
        black_box(load_corpus(&[path], &languages, limits).expect("it was written well"));
    })
}

/// Seconds of every utterance: the first language has 40 of them, the last ones have a few.
fn durations() -> Vec<Vec<f64>> {
    let mut random = random();
    let of_language = |language: usize| {
        let utterances = 4 + 36 * (LANGUAGES - language) / LANGUAGES;
        (0..utterances).map(|_| random.random_range(2.0..15.0)).collect()
    };
    (0..LANGUAGES).map(of_language).collect()
}

fn place_problem(durations: &[Vec<f64>], max_banks_per_rank: Option<u32>) -> PlacementProblem {
    PlacementProblem {
        work: durations.iter().map(|durations| durations.iter().sum()).collect(),
        world_size: RANKS,
        max_banks_per_rank,
    }
}

fn solve(problem: &PlacementProblem) -> Placement {
    Placement::solve(problem).expect("all banks have room")
}

fn draw_and_deal(_: &Path) -> Work {
    let durations = durations();
    let placement = solve(&place_problem(&durations, None));
    let mut sampler = Sampler::new(SamplerProblem {
        seed: SEED,
        temperature: 1.5,
        // Two minutes for each rank.
        batch_seconds: 120.0 * f64::from(RANKS.0),
        durations: durations.clone(),
    })
    .expect("there are utterances");
    Box::new(move || {
        for _ in 0..BATCHES {
            let batch = sampler.next_batch();
            let costs: Vec<(usize, f64)> = batch
                .utterances
                .iter()
                .map(|at| (at.language, durations[at.language][at.index]))
                .collect();
            black_box(placement.deal(&costs));
        }
    })
}

fn place(_: &Path) -> Work {
    let durations = durations();
    // With 16 banks a rank memory is short: the smallest share has to be searched for.
    let problems = [
        place_problem(&durations, None),
        place_problem(&durations, Some(16)),
    ];
    Box::new(move || {
        for _ in 0..PLACEMENTS / problems.len() {
            for problem in &problems {
                black_box(solve(problem).shares(&problem.work));
            }
        }
    })
}

/// Words that normalizers do something about, and others.
const WORDS: &str = "the colour of twenty-five horses won't change Mr. Miller said (softly) and 3 percent hm went über \
                     Straße naïve harbour four hundred let's go";

fn words() -> Vec<&'static str> {
    WORDS.split(' ').collect()
}

fn sentence(random: &mut ChaCha8Rng, words: &[&str]) -> String {
    let length = random.random_range(5..20);
    let spoken: Vec<&str> = (0..length)
        .map(|_| words[random.random_range(0..words.len())])
        .collect();
    spoken.join(" ") + "."
}

/// `reference` as it might have been understood: a tenth of its words are lost, and a tenth are others.
fn misheard(random: &mut ChaCha8Rng, words: &[&str], reference: &str) -> String {
    let mut heard = Vec::new();
    for spoken in reference.split(' ') {
        match random.random_range(0..10) {
            0 => {}
            1 => heard.push(words[random.random_range(0..words.len())]),
            _ => heard.push(spoken),
        }
    }
    heard.join(" ")
}

fn score_utterances(_: &Path) -> Work {
    let mut random = random();
    let words = words();
    let utterances: Vec<(String, String)> = (0..SCORED)
        .map(|_| {
            let reference = sentence(&mut random, &words);
            let hypothesis = misheard(&mut random, &words, &reference);
            (reference, hypothesis)
        })
        .collect();
    let languages = ["en", "de"];
    for lang in languages {
        // Patterns and tables are made once.
        black_box(score(Scoring::of_language(lang), WORDS, WORDS));
    }
    Box::new(move || {
        let mut report = ReportBuilder::new::<&str>(&[]);
        for (index, (reference, hypothesis)) in utterances.iter().enumerate() {
            let lang = languages[index % languages.len()];
            report.add(lang, score(Scoring::of_language(lang), reference, hypothesis));
        }
        black_box(report.finish());
    })
}

fn publish_and_load(_: &Path) -> Work {
    let (step, generation) = (Step(500), Generation(1));
    let runtime = Builder::new_current_thread().enable_time().build();
    let runtime = runtime.expect("a runtime without threads can be made");
    let checkpoints = RunStore::in_memory().checkpoints();
    let names = (0..LANGUAGES).flat_map(|language| {
        let language = format!("l{language}");
        [layout::bank(&language), layout::optimizer_bank(&language)]
    });
    let records: Vec<PartRecord> = names
        .map(|name| {
            let put = checkpoints.put_part(step, "", &name, Bytes::from(name.clone()));
            runtime.block_on(put).expect("memory has room")
        })
        .collect();
    let manifest = manifest(step, generation, records);
    Box::new(move || {
        let published = runtime.block_on(checkpoints.publish(&manifest));
        published.expect("memory has room");
        let loaded = runtime.block_on(checkpoints.load_manifest(step));
        black_box(loaded.expect("it was published"));
    })
}
