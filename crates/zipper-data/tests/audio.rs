//! Goal: whatever the container, codec and rate, `decode` gives the sound itself at 16 kHz: right pitch, level,
//! length and alignment, and an error instead of less than the file states.
//! Method: WAV files written here are compared with the ideal; the fixtures (`golden/make_audio_golden.py`) with
//! what libsndfile and soxr make of them.

use std::f64::consts::TAU;
use std::fs;
use std::path::{Path, PathBuf};

use safetensors::SafeTensors;
use tempfile::TempDir;
use zipper_data::{AudioProblem, decode};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures")
        .join(name)
}

/// Writes a 16-bit WAV file; `sample(frame, channel)` is in `[-1, 1]`.
fn write_wav(path: &Path, rate: u32, channels: u16, frames: usize, sample: impl Fn(usize, u16) -> f64) {
    let spec = hound::WavSpec {
        channels,
        sample_rate: rate,
        bits_per_sample: 16,
        sample_format: hound::SampleFormat::Int,
    };
    let mut writer = hound::WavWriter::create(path, spec).expect("temporary folder");
    for frame in 0..frames {
        for channel in 0..channels {
            writer
                .write_sample((sample(frame, channel) * 32767.0).round() as i16)
                .expect("temporary folder");
        }
    }
    writer.finalize().expect("temporary folder");
}

fn largest_difference(found: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(found.len(), expected.len());
    found
        .iter()
        .zip(expected)
        .map(|(a, b)| (a - b).abs())
        .fold(0.0, f32::max)
}

/// A sine at the file's rate comes out as the sine at 16 kHz, on time to a small part of a sample.
#[test]
fn sines_of_every_rate_come_out_as_the_ideal() {
    let folder = TempDir::new().expect("temporary folder");
    for rate in [
        8_000, 11_025, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000, 96_000,
    ] {
        for frequency in [200.0, 1234.5, 3300.0] {
            let path = folder.path().join("sine.wav");
            let frames = rate as usize * 61 / 100 + 7;
            let end = frames as f64 / f64::from(rate);
            let sine = |seconds: f64| {
                0.5 * (TAU * frequency * seconds).sin() * (TAU / 2.0 * seconds / end).sin().powi(2)
            };
            // The channels' average is the sine; each alone is not.
            let stereo = |frame: usize, channel: u16| {
                sine(frame as f64 / f64::from(rate)) * if channel == 0 { 1.5 } else { 0.5 }
            };
            write_wav(&path, rate, 2, frames, stereo);
            let found = decode(&path, 0.0, None).expect("a good file");
            let length = (frames as f64 * 16_000.0 / f64::from(rate)).round() as usize;
            assert_eq!(found.len(), length, "{rate} Hz");
            let expected: Vec<f32> = (0..length).map(|n| sine(n as f64 / 16_000.0) as f32).collect();
            let error = largest_difference(&found, &expected);
            // Two steps of 16 bits.
            assert!(error < 6e-5, "{rate} Hz, {frequency} Hz: off by {error}");
        }
    }
}

/// What 16 kHz cannot hold must vanish, not come back as another tone.
#[test]
fn tones_above_8_khz_do_not_alias() {
    let folder = TempDir::new().expect("temporary folder");
    let path = folder.path().join("high.wav");
    for (rate, frequency) in [(22_050, 8_600.0), (44_100, 8_600.0), (48_000, 15_000.0)] {
        write_wav(&path, rate, 1, rate as usize / 2, |frame, _| {
            0.5 * (TAU * frequency * frame as f64 / f64::from(rate)).sin()
        });
        let found = decode(&path, 0.0, None).expect("a good file");
        let loudest = found[400..found.len() - 400]
            .iter()
            .fold(0.0, |max: f32, sample| max.max(sample.abs()));
        assert!(loudest < 1e-3, "{frequency} Hz at {rate} Hz leaves {loudest}");
    }
}

/// A click in the first and the last millisecond is still there, at its place.
#[test]
fn both_ends_are_kept() {
    let folder = TempDir::new().expect("temporary folder");
    let path = folder.path().join("clicks.wav");
    for rate in [8_000_u32, 44_100, 48_000] {
        let frames = rate as usize / 4;
        let click = |at: usize, frame: usize| {
            let milliseconds = (frame as f64 - at as f64) / f64::from(rate) * 1000.0;
            0.8 * (-milliseconds * milliseconds * 20.0).exp()
        };
        let (first, last) = (rate as usize / 1000, frames - rate as usize / 1000);
        write_wav(&path, rate, 1, frames, |frame, _| {
            click(first, frame) + click(last, frame)
        });
        let found = decode(&path, 0.0, None).expect("a good file");
        assert_eq!(found.len(), 4000);
        for at in [16, 4000 - 16] {
            assert!((found[at] - 0.8).abs() < 0.02, "{rate} Hz: {} at {at}", found[at]);
        }
    }
}

#[test]
fn every_codec_sounds_as_libsndfile_and_soxr_say() {
    let golden = SafeTensors::deserialize(include_bytes!("golden/audio.safetensors")).expect("golden file");
    assert_eq!(golden.len(), 6);
    for (name, tensor) in golden.tensors() {
        let expected: Vec<f32> = tensor
            .data()
            .as_chunks()
            .0
            .iter()
            .map(|bytes| f32::from_le_bytes(*bytes))
            .collect();
        let found = decode(&fixture(&name), 0.0, None).expect("a good file");
        let error = largest_difference(&found, &expected);
        // Decoders of Opus may differ in the last bits; the others follow their format to the letter.
        let tolerance = if name.contains("opus") { 2e-3 } else { 5e-5 };
        assert!(error < tolerance, "{name}: off by {error}");
    }
}

/// A cut is the same samples as that part of the whole, also where the reader seeks or starts in mid-packet.
#[test]
fn cuts_are_parts_of_the_whole() {
    for name in [
        "chirp.flac",
        "chirp.mp3",
        "chirp_stereo.mp3",
        "chirp.ogg",
        "chirp.opus",
        "chirp_stereo.opus",
    ] {
        let whole = decode(&fixture(name), 0.0, None).expect("a good file");
        // 0.16 s are whole samples at all rates of the fixtures.
        let cut = decode(&fixture(name), 0.16, Some(0.2)).expect("a good file");
        assert_eq!(cut.len(), 3200, "{name}");
        // The resampler hears silence around the cut, so its ends differ.
        let error = largest_difference(&cut[300..2900], &whole[2560 + 300..2560 + 2900]);
        assert!(error < 1e-4, "{name}: off by {error}");
    }
    let folder = TempDir::new().expect("temporary folder");
    let path = folder.path().join("long.wav");
    write_wav(&path, 16_000, 1, 48_000, |frame, _| {
        (frame as f64 * 0.37).sin() * 0.9
    });
    let whole = decode(&path, 0.0, None).expect("a good file");
    assert_eq!(
        decode(&path, 1.3, Some(0.25)).expect("a good file"),
        whole[20_800..24_800]
    );
    assert_eq!(
        decode(&path, 2.5, Some(9.0)).expect("a good file"),
        whole[40_000..],
        "the rest, no more"
    );
}

/// The bytes decide, not the name.
#[test]
fn a_wrong_extension_does_not_matter() {
    let folder = TempDir::new().expect("temporary folder");
    let path = folder.path().join("really_flac.mp3");
    fs::copy(fixture("chirp.flac"), &path).expect("temporary folder");
    assert_eq!(decode(&path, 0.0, None).expect("a good file").len(), 7520);
}

/// The problem of a file with these bytes; the message must name the file.
fn problem(bytes: &[u8]) -> AudioProblem {
    let folder = TempDir::new().expect("temporary folder");
    let path = folder.path().join("utterance.wav");
    fs::write(&path, bytes).expect("temporary folder");
    problem_of(&path)
}

fn problem_of(path: &Path) -> AudioProblem {
    let error = decode(path, 0.0, None).expect_err("a bad file");
    assert!(
        error.to_string().starts_with(&format!("`{}`: ", path.display())),
        "{error}"
    );
    error.problem
}

#[test]
fn what_is_not_audio_is_said_to_be_not_audio() {
    assert!(matches!(
        problem(&b"one two three\n".repeat(50)),
        AudioProblem::NotAudio
    ));
    assert!(matches!(problem(b"<html>404</html>"), AudioProblem::NotAudio));
    assert!(matches!(problem(b"x"), AudioProblem::NotAudio));
    assert!(matches!(problem(b""), AudioProblem::Empty));
    let folder = TempDir::new().expect("temporary folder");
    assert!(matches!(problem_of(folder.path()), AudioProblem::Io(_)));
    assert!(matches!(
        problem_of(&folder.path().join("missing.wav")),
        AudioProblem::Io(_)
    ));
    let no_samples = folder.path().join("no_samples.wav");
    write_wav(&no_samples, 16_000, 1, 0, |_, _| 0.0);
    assert!(matches!(problem_of(&no_samples), AudioProblem::Empty));
}

/// GSM in WAV: a known container with a codec that is not there.
#[test]
fn an_unknown_codec_is_named_with_what_to_do() {
    let folder = TempDir::new().expect("temporary folder");
    let path = folder.path().join("gsm.wav");
    write_wav(&path, 8000, 1, 100, |_, _| 0.0);
    let mut bytes = fs::read(&path).expect("a good file");
    assert_eq!(bytes[20..22], [1, 0], "the format tag is here");
    bytes[20] = 0x31;
    let problem = problem(&bytes);
    assert!(matches!(problem, AudioProblem::UnsupportedCodec(_)), "{problem}");
    assert!(
        problem.to_string().contains("convert it to WAV, FLAC, MP3"),
        "{problem}"
    );
}

/// A file that ends early is never taken for a shorter utterance.
#[test]
fn truncated_files_are_refused() {
    let folder = TempDir::new().expect("temporary folder");
    let wav = folder.path().join("whole.wav");
    write_wav(&wav, 16_000, 1, 16_000, |frame, _| (frame as f64 * 0.1).sin());
    for path in [wav, fixture("chirp.flac"), fixture("chirp.mp3")] {
        let bytes = fs::read(&path).expect("a good file");
        let problem = problem(&bytes[..=bytes.len() / 2]);
        let AudioProblem::Truncated { found, expected } = problem else {
            panic!("{}: {problem}", path.display())
        };
        assert!(
            found < 0.7 * expected,
            "{}: {found} of {expected}",
            path.display()
        );
    }
}

/// The Ogg reader drops a page whose checksum is wrong; the hole must not go unnoticed.
#[test]
fn a_damaged_page_of_ogg_is_refused() {
    let mut bytes = fs::read(fixture("chirp.opus")).expect("a good file");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0xff;
    let problem = problem(&bytes);
    assert!(matches!(problem, AudioProblem::Damaged { .. }), "{problem}");
}

#[test]
fn samples_that_are_no_numbers_are_refused() {
    let folder = TempDir::new().expect("temporary folder");
    let path = folder.path().join("nan.wav");
    let spec = hound::WavSpec {
        channels: 1,
        sample_rate: 8000,
        bits_per_sample: 32,
        sample_format: hound::SampleFormat::Float,
    };
    let mut writer = hound::WavWriter::create(&path, spec).expect("temporary folder");
    for frame in 0..8000 {
        writer
            .write_sample(if frame == 6000 { f32::NAN } else { 0.1 })
            .expect("temporary folder");
    }
    writer.finalize().expect("temporary folder");
    let problem = problem_of(&path);
    let AudioProblem::Damaged { seconds, .. } = problem else {
        panic!("{problem}")
    };
    assert!((seconds - 0.75).abs() < 1e-9);
}

#[test]
fn a_cut_after_the_end_is_refused() {
    for name in ["chirp.flac", "chirp.ogg"] {
        let error = decode(&fixture(name), 3.0, Some(1.0)).expect_err("a cut of nothing");
        let AudioProblem::OffsetBeyondEnd { end, .. } = error.problem else {
            panic!("{error}")
        };
        assert!((end - 0.47).abs() < 1e-3, "{name} ends at {end}");
    }
}

/// A channel mask with its highest bit set overflows in the WAV reader: a panic where overflow is checked.
/// It must come back as this file's error, or as audio, never as a crash of the program.
#[test]
fn a_panic_of_the_reader_is_an_error_of_the_file() {
    let folder = TempDir::new().expect("temporary folder");
    let path = folder.path().join("mask.wav");
    let spec = hound::WavSpec {
        channels: 2,
        sample_rate: 16_000,
        bits_per_sample: 24,
        sample_format: hound::SampleFormat::Int,
    };
    let mut writer = hound::WavWriter::create(&path, spec).expect("temporary folder");
    for _ in 0..200 {
        writer.write_sample(1).expect("temporary folder");
    }
    writer.finalize().expect("temporary folder");
    let mut bytes = fs::read(&path).expect("a good file");
    assert_eq!(bytes[40..44], [3, 0, 0, 0], "the channel mask is here");
    bytes[40..44].copy_from_slice(&[0, 0, 0, 0x80]);
    fs::write(&path, bytes).expect("temporary folder");
    match decode(&path, 0.0, None) {
        Ok(samples) => assert_eq!(samples.len(), 100),
        Err(error) => assert!(error.to_string().ends_with("the decoder panicked"), "{error}"),
    }
}
