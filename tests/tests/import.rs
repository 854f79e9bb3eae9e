//! Goal: `zipper-launch data import` makes a manifest, says what it left out, and leaves nothing behind when it refuses.
//! Method: the real program, on the fixture's audio in the layout of LibriSpeech.

use std::fmt::Write;
use std::fs;
use std::path::Path;

use zipper_tests::{Finished, Fixture, Launched};

/// Makes a part of LibriSpeech of the fixture's English audio and returns the ids in it.
fn librispeech(fixture: &Fixture) -> Vec<String> {
    let corpus = fixture.path().join("corpus");
    let chapter = fixture.path().join("LibriSpeech/train/7/70");
    fs::create_dir_all(&chapter).expect("the fixture is writable");
    let text = fs::read_to_string(corpus.join("train.jsonl")).expect("the fixture has it");
    let (mut ids, mut transcripts) = (Vec::new(), String::new());
    for line in text.lines() {
        let line: serde_json::Value = serde_json::from_str(line).expect("a manifest has JSON lines");
        let audio = corpus.join(line["audio_filepath"].as_str().expect("a path"));
        if line["lang"] != "en" || audio.extension().is_none_or(|kind| kind != "wav") {
            continue;
        }
        let id = format!("7-70-{:04}", ids.len());
        fs::copy(audio, chapter.join(format!("{id}.wav"))).expect("the fixture is writable");
        let text = line["text"].as_str().expect("a text").to_uppercase();
        let _ = writeln!(transcripts, "{id} {text}");
        ids.push(id);
    }
    fs::write(chapter.join("7-70.trans.txt"), transcripts).expect("the fixture is writable");
    ids
}

fn import(fixture: &Fixture, more: &[&str]) -> Finished {
    let (root, output) = (
        fixture.path().join("LibriSpeech").display().to_string(),
        output(fixture).display().to_string(),
    );
    let first = [
        "data",
        "import",
        "--from",
        "libri-speech",
        "--language",
        "en",
        "--lowercase",
    ];
    Launched::run(&[&first, &[root.as_str(), "--output", &output][..], more].concat())
}

fn output(fixture: &Fixture) -> std::path::PathBuf {
    fixture.path().join("imported.jsonl")
}

fn left(fixture: &Fixture) -> Vec<String> {
    let entries = fs::read_dir(fixture.path())
        .expect("the fixture is there")
        .flatten();
    let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
    names
        .filter(|name| name.contains("imported") || name.starts_with(".tmp"))
        .collect()
}

#[test]
fn an_imported_manifest_has_its_hours() {
    let fixture = Fixture::new();
    let ids = librispeech(&fixture);
    assert!(ids.len() > 1, "the fixture has English audio");
    let list = fixture.path().join("ids.txt");
    fs::write(&list, format!("{}\n{0}\n{}\n", ids[1], ids[0])).expect("the fixture is writable");
    let finished = import(&fixture, &["--ids", &list.display().to_string()]);
    assert_eq!(finished.code, Some(0), "{}", finished.stderr);
    assert!(
        finished
            .stderr
            .contains(&format!("1 ids more than once; each was taken once: {}", ids[1])),
        "{}",
        finished.stderr
    );
    let manifest = fs::read_to_string(output(&fixture)).expect("it was written");
    let lines: Vec<serde_json::Value> = manifest
        .lines()
        .map(|line| serde_json::from_str(line).expect("a manifest has JSON lines"))
        .collect();
    let found: Vec<&str> = lines.iter().filter_map(|line| line["id"].as_str()).collect();
    assert_eq!(found, [ids[1].as_str(), ids[0].as_str()]);
    let mut hours = 0.0;
    for line in &lines {
        let file = line["audio_filepath"].as_str().expect("a path");
        let wav = hound::WavReader::open(file).expect("its audio is there");
        let seconds = f64::from(wav.duration()) / f64::from(wav.spec().sample_rate);
        assert!((line["duration"].as_f64().expect("a length") - seconds).abs() < 1e-6);
        let text = line["text"].as_str().expect("a text");
        assert_eq!(text, text.to_lowercase());
        hours += seconds / 3600.0;
    }
    assert!(
        finished.stdout.contains(&format!("{hours:.2}")),
        "{}",
        finished.stdout
    );
    let report = fs::read_to_string(fixture.path().join("imported.jsonl.report.json")).expect("a report");
    let report: serde_json::Value = serde_json::from_str(&report).expect("the report is JSON");
    assert_eq!(report["languages"]["en"]["utterances"], 2);
}

#[test]
fn what_is_missing_is_refused_unless_the_user_says_so() {
    let fixture = Fixture::new();
    let ids = librispeech(&fixture);
    let list = fixture.path().join("ids.txt");
    fs::write(&list, format!("{}\n7-70-9999\n", ids[0])).expect("the fixture is writable");
    let list = list.display().to_string();
    let refused = |more: &[&str], word: &str| {
        let finished = import(&fixture, more);
        assert_eq!(finished.code, Some(2), "{}", finished.stderr);
        assert!(
            finished.stderr.contains(word),
            "no `{word}` in:\n{}",
            finished.stderr
        );
        assert_eq!(left(&fixture), Vec::<String>::new());
    };
    refused(
        &["--ids", &list],
        "names 1 ids that the corpus has not: 7-70-9999",
    );
    refused(&["--split", "dev"], "LibriSpeech/dev: cannot be read");
    let audio = Path::new("LibriSpeech/train/7/70").join(format!("{}.wav", ids[0]));
    fs::write(fixture.path().join(audio), "not audio").expect("the fixture is writable");
    refused(&[], "the audio of 1 utterances cannot be used: 7-70-0000");

    let finished = import(&fixture, &["--ids", &list, "--allow-missing", "--skip-bad-audio"]);
    assert_eq!(
        finished.code,
        Some(2),
        "nothing is left of the list: {}",
        finished.stderr
    );
    let finished = import(&fixture, &["--skip-bad-audio"]);
    assert_eq!(finished.code, Some(0), "{}", finished.stderr);
    refused_again(&fixture);
}

/// What is there is not written over.
fn refused_again(fixture: &Fixture) {
    let before = fs::read(output(fixture)).expect("it was written");
    let finished = import(fixture, &["--skip-bad-audio"]);
    assert_eq!(finished.code, Some(2), "{}", finished.stderr);
    assert_eq!(fs::read(output(fixture)).expect("it was written"), before);
}
