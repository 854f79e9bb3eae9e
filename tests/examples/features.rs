//! How fast audio files become log-mel features, against Python: `cargo xtask bench features`.
//!
//! Zipper's side is `zipper-data` as training uses it, in this process: decode, resample to 16 kHz, log-mel. Python's side is
//! `tests/baseline/features.py`: soundfile or `wave`, a resampler, transformers' WhisperFeatureExtractor. Both take one utterance after
//! the other, with one thread, in turns; a round that is not counted leaves the files in the page cache. The features of some
//! utterances are compared beforehand: if they differ, nothing is measured.
//!
//! What is counted is the time that a process had of a core, so that whatever else the machine does matters less; times on the wall
//! are written down, too. Run in the root of the repository, with the demo's data; a part is measured in seconds with
//! `--corpora numbers-16k --utterances 40 --rounds 1`.

use std::error::Error;
use std::fs;
use std::hint::black_box;
use std::path::{Path, PathBuf};
use std::thread::available_parallelism;
use std::time::Instant;

use clap::{Parser, ValueEnum};
use hound::{SampleFormat, WavSpec, WavWriter};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeVal;
use safetensors::SafeTensors;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use zipper_data::{DurationLimits, LogMel, Padding, SAMPLE_RATE, Utterance, load_corpus};
use zipper_tests::{
    DemoSize, Script, TorchSide, comma_list, cpu, load, profile, spread, spread_json, spread_text, value_name,
};

/// Mel bands of the features.
const MELS: usize = 80;
/// Utterances of a corpus whose features are compared.
const COMPARED: usize = 12;
/// What the features of an utterance may differ by: they are about within -1 and 1.
const SAME_FEATURES: Difference = Difference {
    greatest: 1e-4,
    mean: 1e-5,
};
/// The same where both sides resampled: in bands without speech there is little but the rounding of either, of which the logarithm
/// makes more than it is.
const SAME_RESAMPLED: Difference = Difference {
    greatest: 1e-2,
    mean: 5e-5,
};
/// What is compared: Zipper with what it would replace.
const PAIRS: [(Side, Side); 3] = [
    (Side::ZipperNative, Side::PythonNative),
    (Side::ZipperNative, Side::PythonPadded),
    (Side::ZipperPadded, Side::PythonPadded),
];

/// Measures the way from audio files to features.
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
    /// Audio files. What the demo's folder lacks is left out.
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = Corpus::value_variants().to_vec())]
    corpora: Vec<Corpus>,
    /// Utterances of each, from all over its manifest.
    #[arg(long, default_value_t = 400)]
    utterances: usize,
    /// How often each side has its turn.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
}

/// Audio files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Corpus {
    /// The quickstart's spoken numbers, written as WAV files of 16 kHz beforehand: nothing has to be resampled.
    #[value(name = "numbers-16k")]
    Numbers16k,
    /// The quickstart's spoken numbers: WAV files of 22.05 and of 8 kHz.
    Numbers,
    /// Recorded human speech: files of 8 kHz and more, those that Python can read.
    Human,
}

/// A program, and what it does with audio that is shorter than Whisper's window.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Side {
    ZipperNative,
    PythonNative,
    #[value(name = "zipper-padded_30s")]
    ZipperPadded,
    #[value(name = "python-padded_30s")]
    PythonPadded,
}

/// How far the features of both sides are apart.
#[derive(Debug, Clone, Copy, Default, Serialize)]
struct Difference {
    greatest: f64,
    mean: f64,
}

/// How long all utterances took, in seconds of a core but for the last.
#[derive(Debug, Deserialize)]
#[expect(clippy::struct_field_names, reason = "as the script calls them")]
struct Turn {
    /// Decoding and resampling.
    reading_seconds: f64,
    feature_seconds: f64,
    wall_seconds: f64,
}

/// What is said of a corpus, and its turns.
type Measured = (Value, Vec<Run>);

/// A counted turn.
struct Run {
    corpus: Corpus,
    round: usize,
    side: Side,
    load_before: Option<f64>,
    audio_seconds: f64,
    turn: Turn,
}

/// What is measured with.
struct Bench {
    arguments: Arguments,
    folder: tempfile::TempDir,
    log_mel: LogMel,
    python: Script,
    soundfile: bool,
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments = Arguments::parse();
    let mut command = arguments.torch_side.python(1);
    command
        .arg(arguments.torch_side.script("features.py"))
        .args(["--mels", &MELS.to_string()]);
    let (python, about) = Script::start(&mut command)?;
    let soundfile = about["soundfile"] == true;
    if !soundfile {
        println!("Python lacks soundfile: it reads WAV files only, with `wave`");
    }
    let mut bench = Bench {
        arguments,
        folder: tempfile::tempdir()?,
        log_mel: LogMel::new(MELS),
        python,
        soundfile,
    };
    let (mut corpora, mut runs) = (Vec::new(), Vec::new());
    for corpus in bench.arguments.selection.corpora.clone() {
        if let Some((about, measured)) = bench.measure(corpus)? {
            corpora.push(about);
            runs.extend(measured);
        }
    }
    let table = bench.table(&runs);
    bench.write(&corpora, &table, &runs)?;
    print(&table);
    println!("\nwritten: {}", bench.arguments.output.display());
    Ok(())
}

impl Bench {
    /// All turns with one corpus, and what is said of it; nothing if it is not there.
    fn measure(&mut self, corpus: Corpus) -> Result<Option<Measured>, Box<dyn Error>> {
        let name = value_name(corpus);
        let Some(utterances) = self.read(corpus)? else {
            return Ok(None);
        };
        let lines = lines_of(&utterances);
        let audio_seconds: f64 = utterances.iter().map(|utterance| utterance.duration).sum();
        let difference = self.compare(corpus, &utterances)?;
        println!(
            "{name}: {} utterances, {audio_seconds:.0} s; the features of {COMPARED} differ by {:.1e} at most, {:.1e} on average",
            utterances.len(),
            difference.greatest,
            difference.mean
        );
        let mut runs = Vec::new();
        for round in 0..=self.arguments.selection.rounds {
            for &side in Side::value_variants() {
                let load_before = load();
                let turn = if side.is_zipper() {
                    zipper(&self.log_mel, &utterances, side.padding())?
                } else {
                    let padding = padding_name(side.padding());
                    let question = json!({"utterances": lines, "padding": padding});
                    serde_json::from_value(self.python.ask(&question)?)?
                };
                let run = Run {
                    corpus,
                    round,
                    side,
                    load_before,
                    audio_seconds,
                    turn,
                };
                let what = if round == 0 { " (not counted)" } else { "" };
                println!(
                    "{name}, round {round}{what}, {}: {:.0} s of audio for each second of a core",
                    value_name(side),
                    run.rate()
                );
                if round > 0 {
                    runs.push(run);
                }
            }
        }
        let about = json!({
            "corpus": name, "utterances": utterances.len(), "audio_seconds": audio_seconds,
            "difference_of_features": difference,
        });
        Ok(Some((about, runs)))
    }

    /// The utterances of a corpus that are measured.
    fn read(&self, corpus: Corpus) -> Result<Option<Vec<Utterance>>, Box<dyn Error>> {
        let size = corpus.size();
        let config = zipper_config::load(size.config(), &[])?;
        if let Err(missing) = size.require(&config.data.train) {
            println!("{} is left out: {missing}", value_name(corpus));
            return Ok(None);
        }
        let limits = DurationLimits::from(&config.data);
        let mut all = load_corpus(&config.data.train, &config.data.languages, limits)?.utterances;
        all.retain(|utterance| self.soundfile || is_wav(utterance));
        let kept = spread_over(&all, self.arguments.selection.utterances);
        if corpus == Corpus::Numbers16k {
            return Ok(Some(at_16_khz(self.folder.path(), &kept)?));
        }
        Ok(Some(kept))
    }

    /// Sees that both sides have the same features: the greatest difference, and the greatest mean of an utterance.
    fn compare(&mut self, corpus: Corpus, utterances: &[Utterance]) -> Result<Difference, Box<dyn Error>> {
        let compared = spread_over(utterances, COMPARED);
        let file = self.folder.path().join("features.safetensors");
        let allowed = if corpus == Corpus::Numbers16k {
            SAME_FEATURES
        } else {
            SAME_RESAMPLED
        };
        let mut worst = Difference::default();
        for padding in [Padding::None, Padding::To30s] {
            let lines = lines_of(&compared);
            self.python
                .ask(&json!({"utterances": lines, "padding": padding_name(padding), "file": file}))?;
            let bytes = fs::read(&file)?;
            let theirs = SafeTensors::deserialize(&bytes)?;
            for (place, utterance) in compared.iter().enumerate() {
                let ours = self.log_mel.compute(&utterance.decode()?, padding);
                let theirs = theirs.tensor(&place.to_string())?;
                let id = &utterance.id;
                if theirs.shape() != [ours.n_mels, ours.frames] {
                    let (shape, frames) = (theirs.shape(), ours.frames);
                    return Err(format!("`{id}`: {frames} frames here, {shape:?} in Python").into());
                }
                let (values, _) = theirs.data().as_chunks::<4>();
                let found = Difference::between(&ours.data, values);
                // Not the other way round: it may be no number.
                let same = found.greatest <= allowed.greatest && found.mean <= allowed.mean;
                if !same {
                    let error =
                        format!("`{id}`: not the same features: {found:?}, where {allowed:?} is allowed");
                    return Err(error.into());
                }
                worst.greatest = worst.greatest.max(found.greatest);
                worst.mean = worst.mean.max(found.mean);
            }
        }
        Ok(worst)
    }

    /// A row for each pair and corpus.
    fn table(&self, runs: &[Run]) -> Vec<Value> {
        let mut rows = Vec::new();
        for &corpus in &self.arguments.selection.corpora {
            for (zipper, python) in PAIRS {
                let of = |side| {
                    let of_side = move |run: &&Run| run.corpus == corpus && run.side == side;
                    runs.iter().filter(of_side).collect::<Vec<_>>()
                };
                let (ours, theirs) = (of(zipper), of(python));
                if !ours.is_empty() {
                    rows.push(row(&ours, &theirs));
                }
            }
        }
        rows
    }

    fn write(&self, corpora: &[Value], table: &[Value], runs: &[Run]) -> Result<(), Box<dyn Error>> {
        let report = json!({
            "command": "cargo xtask bench features",
            "flags": self.arguments.selection.flags(),
            "machine": {"cpu": cpu(), "cores": available_parallelism()?.get()},
            "profile": profile(),
            "mel_bands": MELS,
            "soundfile": self.soundfile,
            "corpora": corpora,
            "table": table,
            "runs": runs.iter().map(Run::to_json).collect::<Vec<_>>(),
        });
        let output = &self.arguments.output;
        fs::write(output, serde_json::to_string_pretty(&report)? + "\n")?;
        Ok(())
    }
}

impl Difference {
    /// Of Zipper's features and of as many f32 as Python wrote them.
    fn between(ours: &[f32], theirs: &[[u8; 4]]) -> Self {
        let pairs = ours.iter().zip(theirs);
        let values: Vec<f64> = pairs
            .map(|(ours, theirs)| f64::from(ours - f32::from_le_bytes(*theirs)).abs())
            .collect();
        let [_, _, greatest] = spread(&values);
        Self {
            greatest,
            mean: values.iter().sum::<f64>() / values.len() as f64,
        }
    }
}

impl Selection {
    /// The selection as it is typed.
    fn flags(&self) -> String {
        format!(
            "--corpora {} --utterances {} --rounds {}",
            comma_list(&self.corpora, |&corpus| value_name(corpus)),
            self.utterances,
            self.rounds
        )
    }
}

impl Corpus {
    /// Whose training data it is.
    fn size(self) -> DemoSize {
        match self {
            Self::Numbers16k | Self::Numbers => DemoSize::Quickstart,
            Self::Human => DemoSize::Smollm2,
        }
    }
}

impl Side {
    fn is_zipper(self) -> bool {
        matches!(self, Self::ZipperNative | Self::ZipperPadded)
    }

    fn padding(self) -> Padding {
        match self {
            Self::ZipperNative | Self::PythonNative => Padding::None,
            Self::ZipperPadded | Self::PythonPadded => Padding::To30s,
        }
    }
}

impl Turn {
    fn core_seconds(&self) -> f64 {
        self.reading_seconds + self.feature_seconds
    }
}

impl Run {
    /// Seconds of audio for each second of a core.
    fn rate(&self) -> f64 {
        self.audio_seconds / self.turn.core_seconds()
    }

    fn to_json(&self) -> Value {
        json!({
            "corpus": value_name(self.corpus), "round": self.round, "program": value_name(self.side),
            "load_before": self.load_before, "reading_core_seconds": self.turn.reading_seconds,
            "feature_core_seconds": self.turn.feature_seconds, "wall_seconds": self.turn.wall_seconds,
            "audio_seconds_per_core_second": self.rate(),
        })
    }
}

/// What the script calls it.
fn padding_name(padding: Padding) -> &'static str {
    match padding {
        Padding::None => "native",
        Padding::To30s => "padded_30s",
    }
}

/// One turn of Zipper.
fn zipper(log_mel: &LogMel, utterances: &[Utterance], padding: Padding) -> Result<Turn, Box<dyn Error>> {
    let wall = Instant::now();
    let (mut reading_seconds, mut feature_seconds) = (0.0, 0.0);
    for utterance in utterances {
        let begun = core_seconds()?;
        let samples = utterance.decode()?;
        let read = core_seconds()?;
        black_box(log_mel.compute(&samples, padding));
        reading_seconds += read - begun;
        feature_seconds += core_seconds()? - read;
    }
    Ok(Turn {
        reading_seconds,
        feature_seconds,
        wall_seconds: wall.elapsed().as_secs_f64(),
    })
}

/// The time that this process had of cores so far.
fn core_seconds() -> Result<f64, nix::Error> {
    let usage = getrusage(UsageWho::RUSAGE_SELF)?;
    let seconds = |time: TimeVal| time.tv_sec() as f64 + time.tv_usec() as f64 * 1e-6;
    Ok(seconds(usage.user_time()) + seconds(usage.system_time()))
}

/// How one side compares with the other, round by round.
fn row(ours: &[&Run], theirs: &[&Run]) -> Value {
    let rounds = |value: &dyn Fn(&Run, &Run) -> f64| {
        let pairs = ours.iter().zip(theirs);
        let values: Vec<f64> = pairs.map(|(ours, theirs)| value(ours, theirs)).collect();
        spread_json(&values)
    };
    let ratio =
        |seconds: fn(&Turn) -> f64| rounds(&|ours, theirs| seconds(&theirs.turn) / seconds(&ours.turn));
    json!({
        "corpus": value_name(ours[0].corpus), "zipper": value_name(ours[0].side), "python": value_name(theirs[0].side),
        "zipper_audio_seconds_per_core_second": rounds(&|ours, _| ours.rate()),
        "python_audio_seconds_per_core_second": rounds(&|_, theirs| theirs.rate()),
        "ratio": ratio(Turn::core_seconds),
        "reading_ratio": ratio(|turn| turn.reading_seconds),
        "feature_ratio": ratio(|turn| turn.feature_seconds),
        "wall_ratio": ratio(|turn| turn.wall_seconds),
    })
}

fn print(rows: &[Value]) {
    println!(
        "\n| corpus | Zipper | Python | seconds of audio for each second of a core: Zipper, Python | Zipper / Python: min / median / max \
         | reading alone, likewise | features alone, likewise |"
    );
    println!("|{}", " --- |".repeat(7));
    for row in rows {
        let text = |key: &str| row[key].as_str().unwrap_or_default();
        let median = |key: &str| row[key]["median"].as_f64().unwrap_or(f64::NAN);
        println!(
            "| {} | {} | {} | {:.0}, {:.0} | {} | {} | {} |",
            text("corpus"),
            text("zipper").trim_start_matches("zipper-"),
            text("python").trim_start_matches("python-"),
            median("zipper_audio_seconds_per_core_second"),
            median("python_audio_seconds_per_core_second"),
            spread_text(&row["ratio"]),
            spread_text(&row["reading_ratio"]),
            spread_text(&row["feature_ratio"]),
        );
    }
}

fn is_wav(utterance: &Utterance) -> bool {
    let ending = utterance.audio_filepath.extension();
    ending.is_some_and(|ending| ending == "wav")
}

/// So many of them, in their order, from the first on at equal distances.
fn spread_over(utterances: &[Utterance], count: usize) -> Vec<Utterance> {
    let count = count.min(utterances.len());
    let places = (0..count).map(|number| number * utterances.len() / count);
    places.map(|place| utterances[place].clone()).collect()
}

/// The same utterances as WAV files of 16 kHz.
fn at_16_khz(folder: &Path, utterances: &[Utterance]) -> Result<Vec<Utterance>, Box<dyn Error>> {
    let spec = WavSpec {
        channels: 1,
        sample_rate: SAMPLE_RATE,
        bits_per_sample: 16,
        sample_format: SampleFormat::Int,
    };
    let mut written = Vec::with_capacity(utterances.len());
    for (number, utterance) in utterances.iter().enumerate() {
        let samples = utterance.decode()?;
        let audio_filepath = folder.join(format!("{number}.wav"));
        let mut file = WavWriter::create(&audio_filepath, spec)?;
        for sample in &samples {
            file.write_sample((sample * f32::from(i16::MAX)).round() as i16)?;
        }
        file.finalize()?;
        written.push(Utterance {
            audio_filepath,
            offset: None,
            duration: samples.len() as f64 / f64::from(SAMPLE_RATE),
            ..utterance.clone()
        });
    }
    Ok(written)
}

/// Utterances as the script reads them.
fn lines_of(utterances: &[Utterance]) -> Vec<Value> {
    let line = |utterance: &Utterance| {
        json!({
            "audio_filepath": utterance.audio_filepath, "offset": utterance.offset.unwrap_or(0.0),
            "duration": utterance.duration,
        })
    };
    utterances.iter().map(line).collect()
}
