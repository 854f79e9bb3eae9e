//! Goal: before a run starts, every utterance with bad audio is found and told by id, and no good one is.
//! Method: short WAV files, of which manifests say what is true and what is not.

use std::fs;
use std::path::Path;
use std::sync::Mutex;

use tempfile::TempDir;
use zipper_data::{Utterance, check_audio};

fn write_seconds(path: &Path, seconds: f64) {
    let spec = hound::WavSpec {
        channels: 1,
        sample_rate: 8000,
        bits_per_sample: 16,
        sample_format: hound::SampleFormat::Int,
    };
    let mut writer = hound::WavWriter::create(path, spec).expect("temporary folder");
    for frame in 0..(seconds * 8000.0) as i32 {
        writer
            .write_sample((frame % 100) as i16)
            .expect("temporary folder");
    }
    writer.finalize().expect("temporary folder");
}

#[test]
fn bad_audio_is_found_and_good_audio_is_not() {
    let folder = TempDir::new().expect("temporary folder");
    let utterance = |id: &str, file: &str, offset, duration| Utterance {
        id: id.to_owned(),
        audio_filepath: folder.path().join(file),
        offset,
        duration,
        text: "x".to_owned(),
        language: 0,
        lang: "en".to_owned(),
    };
    write_seconds(&folder.path().join("3s.wav"), 3.0);
    write_seconds(&folder.path().join("5ms.wav"), 0.005);
    fs::write(folder.path().join("text.wav"), "not audio").expect("temporary folder");
    let utterances = [
        utterance("whole", "3s.wav", None, 3.0),
        utterance("rounded", "3s.wav", None, 3.4),
        utterance("longer than stated", "3s.wav", None, 2.0),
        utterance("shorter than stated", "3s.wav", None, 4.0),
        utterance("first cut", "3s.wav", Some(0.0), 1.0),
        utterance("last cut", "3s.wav", Some(2.0), 1.01),
        utterance("cut over the end", "3s.wav", Some(2.5), 1.0),
        utterance("cut after the end", "3s.wav", Some(3.5), 1.0),
        utterance("blip", "5ms.wav", None, 0.12),
        utterance("end of the last cut", "3s.wav", Some(2.995), 0.05),
        utterance("text", "text.wav", None, 1.0),
        utterance("missing", "missing.wav", None, 1.0),
    ];
    let progress = Mutex::new(Vec::new());
    let bad = check_audio(&utterances, 2, |done| {
        progress.lock().expect("no panic").push(done);
    });

    let mut progress = progress.into_inner().expect("no panic");
    progress.sort_unstable();
    assert_eq!(progress, (1..=12).collect::<Vec<_>>());
    let prefix = format!("`{}/", folder.path().display());
    let found: Vec<String> = bad
        .iter()
        .map(|bad| bad.to_string().replace(&prefix, "`"))
        .collect();
    let expected = [
        "utterance `longer than stated`: `3s.wav`: the manifest states 2.00 s, but the file has 3.00 s; for a part of a file give `offset` too",
        "utterance `shorter than stated`: `3s.wav`: the manifest states 4.00 s, but the file has 3.00 s; for a part of a file give `offset` too",
        "utterance `cut over the end`: `3s.wav`: the cut ends at 3.50 s, but the audio ends at 3.00 s",
        "utterance `cut after the end`: `3s.wav`: the cut starts at 3.50 s, but the audio ends at 3.00 s",
        "utterance `blip`: `5ms.wav`: 5.0 ms of audio are less than a frame of features, which takes 10 ms",
        "utterance `end of the last cut`: `3s.wav`: 5.0 ms of audio are less than a frame of features, which takes 10 ms",
        "utterance `text`: `text.wav`: this is not audio that can be read: no WAV, FLAC, MP3 or Ogg data in it",
        "utterance `missing`: `missing.wav`: cannot read the file: No such file or directory (os error 2)",
    ];
    assert_eq!(found, expected);
}

/// An utterance as long as its manifest says is what training decodes, whatever the file's own end is.
#[test]
fn decoding_keeps_to_the_stated_duration() {
    let folder = TempDir::new().expect("temporary folder");
    let path = folder.path().join("3s.wav");
    write_seconds(&path, 3.0);
    let mut utterance = Utterance {
        id: "a".to_owned(),
        audio_filepath: path,
        offset: None,
        duration: 2.75,
        text: "x".to_owned(),
        language: 0,
        lang: "en".to_owned(),
    };
    assert_eq!(utterance.decode().expect("a good file").len(), 44_000);
    utterance.duration = 3.2;
    assert_eq!(utterance.decode().expect("a good file").len(), 48_000);
    utterance.offset = Some(1.0);
    utterance.duration = 0.5;
    assert_eq!(utterance.decode().expect("a good file").len(), 8_000);
}
