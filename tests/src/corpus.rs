//! A tiny corpus: sums of sines as WAV files of several sampling rates, with short texts.

use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// The corpus's languages with their training utterances: unequal, as in life.
pub const LANGUAGES: [(&str, usize); 3] = [("en", 14), ("de", 7), ("vi", 3)];

const WORDS: [&str; 6] = ["one", "two", "eins", "zwei", "hai", "ba"];

/// Writes `train.jsonl`, `validation.jsonl`, `test.jsonl` and their audio into `folder`.
pub fn write_corpus(folder: &Path, seed: u64) {
    write_corpus_of(folder, seed, &LANGUAGES, 0.35..0.95);
}

/// The same with other numbers of utterances, which have this many seconds.
pub(crate) fn write_corpus_of(folder: &Path, seed: u64, languages: &[(&str, usize)], seconds: Range<f64>) {
    fs::create_dir_all(folder).expect("the folder can be made");
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    for (split, divisor) in [("train", 1), ("validation", 4), ("test", 3)] {
        let mut manifest = String::new();
        for &(language, count) in languages {
            for index in 0..count.div_ceil(divisor) {
                let id = format!("{split}-{language}-{index:02}");
                let seconds = random.random_range(seconds.clone());
                write_wav(&folder.join(format!("{id}.wav")), seconds, &mut random);
                let text = [0, 1]
                    .map(|_| WORDS[random.random_range(0..WORDS.len())])
                    .join(" ");
                let line = serde_json::json!({
                    "id": id, "audio_filepath": format!("{id}.wav"), "duration": seconds, "text": text,
                    "lang": language,
                });
                manifest.push_str(&line.to_string());
                manifest.push('\n');
            }
        }
        fs::write(folder.join(format!("{split}.jsonl")), manifest).expect("the folder is writable");
    }
}

/// Makes every recording of a corpus that [`write_corpus`] wrote a single tone, whose pitch tells the language.
pub fn sing_languages(folder: &Path) {
    for (&(language, _), pitch) in LANGUAGES.iter().zip([300.0, 900.0, 2_700.0]) {
        let entries = fs::read_dir(folder).expect("the corpus is there");
        let paths = entries.map(|entry| entry.expect("the folder can be listed").path());
        let of_language = |path: &PathBuf| {
            let stem = path
                .file_stem()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned();
            path.extension().is_some_and(|extension| extension == "wav")
                && stem.contains(&format!("-{language}-"))
        };
        for path in paths.filter(of_language) {
            let reader = hound::WavReader::open(&path).expect("it was written before");
            let (spec, samples) = (reader.spec(), reader.duration());
            let mut writer = hound::WavWriter::create(&path, spec).expect("the folder is writable");
            for sample in 0..samples {
                let time = f64::from(sample) / f64::from(spec.sample_rate);
                let value = (pitch * time * std::f64::consts::TAU).sin() / 2.0;
                writer
                    .write_sample((value * f64::from(i16::MAX)) as i16)
                    .expect("the disk has room");
            }
            writer.finalize().expect("the disk has room");
        }
    }
}

fn write_wav(path: &Path, seconds: f64, random: &mut ChaCha8Rng) {
    let sample_rate = [8_000, 16_000, 22_050][random.random_range(0..3)];
    let spec = hound::WavSpec {
        channels: 1,
        sample_rate,
        bits_per_sample: 16,
        sample_format: hound::SampleFormat::Int,
    };
    let mut writer = hound::WavWriter::create(path, spec).expect("the folder is writable");
    let tones: [f64; 3] = [0, 1, 2].map(|_| random.random_range(120.0..3_000.0));
    for sample in 0..(seconds * f64::from(sample_rate)).ceil() as u32 {
        let time = f64::from(sample) / f64::from(sample_rate);
        let value: f64 = tones
            .iter()
            .map(|tone| (tone * time * std::f64::consts::TAU).sin())
            .sum();
        writer
            .write_sample((value / 4.0 * f64::from(i16::MAX)) as i16)
            .expect("the disk has room");
    }
    writer.finalize().expect("the disk has room");
}
