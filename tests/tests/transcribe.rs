//! Goal: `zipper-worker transcribe` writes down what the run's model hears in audio files: the same whatever is decoded together, in
//! the formats that others read, and what cannot be done is named. Method: short real runs with an adapted encoder and learning rates
//! that make languages differ; the corpus's audio, alone, together, and put together into long files; `zipper-worker eval`.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::Value;
use zipper_tests::{Finished, Fixture, LANGUAGES, Launched, program, sing_languages};

const SAMPLE_RATE: u32 = 16_000;

/// Trains a few steps of the variant `soft`, whose frames depend on the language, too, and returns the run's URL.
///
/// `seed` is one with which a model that has learnt next to nothing shows what the test is about.
fn train(fixture: &Fixture, seed: u64) -> String {
    let cache = format!("    cache: {}/cache\n", fixture.path().display());
    fixture.train("run", |text| {
        text.replace(&cache, "")
            .replace("  rank: 4\n", "  rank: 4\n  encoder_targets: [q_proj, fc1]\n")
            .replace("lr: 1.0e-3, router_lr: 1.0e-2", "lr: 2.0e-2, router_lr: 2.0e-1")
            .replace("seed: 3", &format!("seed: {seed}"))
    })
}

fn transcribe(url: &str, arguments: &[&str]) -> Finished {
    let mut command = Command::new(program("zipper-worker"));
    Launched::start_command(command.args(["transcribe", "--run", url]).args(arguments)).wait()
}

/// What was printed by a call that did everything.
fn stdout(url: &str, arguments: &[&str]) -> String {
    let finished = transcribe(url, arguments);
    assert_eq!(finished.code, Some(0), "{}", finished.stderr);
    finished.stdout
}

/// The text of each file, by its path.
fn texts(url: &str, arguments: &[&str]) -> BTreeMap<String, String> {
    let document = stdout(url, &[&["--format", "json"], arguments].concat());
    let document: Value = serde_json::from_str(&document).expect("one JSON document and nothing else");
    let files = document["files"].as_array().expect("files").iter();
    let text = |value: &Value| value.as_str().expect("a text").to_owned();
    files
        .map(|file| (text(&file["path"]), text(&file["text"])))
        .collect()
}

/// Lines of the fixture's training manifest: path, language and id of each utterance.
fn utterances(fixture: &Fixture) -> Vec<[String; 3]> {
    let corpus = fixture.path().join("corpus");
    let manifest = fs::read_to_string(corpus.join("train.jsonl")).expect("the fixture has it");
    let utterance = |line: &str| {
        let line: Value = serde_json::from_str(line).expect("a manifest has JSON lines");
        let text = |key: &str| line[key].as_str().expect("a text").to_owned();
        let path = corpus.join(text("audio_filepath")).display().to_string();
        [path, text("lang"), text("id")]
    };
    manifest.lines().map(utterance).collect()
}

/// All languages in one batch give what each gives alone, one file at a time or many, greedily and with a beam; greedily also what
/// `eval` decodes.
#[test]
fn a_mixed_batch_writes_what_each_language_does_alone() {
    let fixture = Fixture::new();
    let url = train(&fixture, 5);
    let utterances = utterances(&fixture);
    // Of the order that a list has, languages take turns.
    let mut mixed = utterances.clone();
    mixed.sort_by_key(|[_, _, id]| id.rsplit('-').next().map(str::to_owned));
    let lines: Vec<String> = mixed
        .iter()
        .map(|[path, language, _]| format!("{path}\t{language}"))
        .collect();
    let list_path = fixture.path().join("list.tsv").display().to_string();
    fs::write(&list_path, lines.join("\n")).expect("the fixture is writable");

    for beam in ["1", "3"] {
        let together = texts(
            &url,
            &["--list", &list_path, "--beam", beam, "--batch-size", "24"],
        );
        assert_eq!(together.len(), utterances.len());
        let mut alone = BTreeMap::new();
        for (language, count) in LANGUAGES {
            let of_language = utterances.iter().filter(|[_, lang, _]| lang == language);
            let paths: Vec<&str> = of_language.map(|[path, ..]| path.as_str()).collect();
            assert_eq!(paths.len(), count);
            let options = ["--language", language, "--beam", beam, "--batch-size", "3"];
            alone.extend(texts(&url, &[&options[..], &paths].concat()));
        }
        assert_eq!(together, alone, "beam {beam}");
        // Or all of this shows nothing: the texts differ, and a language hears another text in the same file.
        let distinct: std::collections::BTreeSet<&String> = together.values().collect();
        assert!(
            distinct.len() > 3 && !distinct.contains(&String::new()),
            "{distinct:?}"
        );
        let paths: Vec<&str> = utterances.iter().map(|[path, ..]| path.as_str()).collect();
        let as_german = texts(
            &url,
            &[&["--language", "de", "--beam", beam][..], &paths].concat(),
        );
        let english = utterances.iter().filter(|[_, lang, _]| lang == "en");
        let changed = english.filter(|[path, ..]| as_german[path] != together[path]);
        assert!(changed.count() > 3, "languages differ");

        if beam == "1" {
            let manifest = fixture.path().join("corpus/train.jsonl").display().to_string();
            let mut eval = Command::new(program("zipper-worker"));
            eval.args(["eval", "--json", "--run", &url, "--manifest", &manifest]);
            let finished = Launched::start_command(&mut eval).wait();
            assert_eq!(finished.code, Some(0), "{}", finished.stderr);
            let document: Value = serde_json::from_str(&finished.stdout).expect("one JSON document");
            let decoded = document["utterances"].as_array().expect("utterances").iter();
            let decoded: BTreeMap<&str, &str> = decoded
                .map(|utterance| ["id", "hypothesis"].map(|key| utterance[key].as_str().expect("a text")))
                .map(|[id, hypothesis]| (id, hypothesis))
                .collect();
            for [path, _, id] in &utterances {
                assert_eq!(decoded[id.as_str()], together[path], "{id}");
            }
        }
    }
}

/// A second of three tones at once, as the corpus has them.
fn voice(hertz: [f64; 3]) -> Vec<f32> {
    let time = |sample: u32| f64::from(sample) / f64::from(SAMPLE_RATE);
    let tone = |hertz: f64, sample: u32| (hertz * time(sample) * std::f64::consts::TAU).sin() / 4.0;
    let sample = |sample: u32| hertz.map(|hertz| tone(hertz, sample)).iter().sum::<f64>();
    (0..SAMPLE_RATE).map(|n| sample(n) as f32).collect()
}

/// Seconds of silence.
fn silence(seconds: f64) -> Vec<f32> {
    vec![0.0; (seconds * f64::from(SAMPLE_RATE)) as usize]
}

fn write_wav(path: &Path, parts: &[Vec<f32>]) -> String {
    let spec = hound::WavSpec {
        channels: 1,
        sample_rate: SAMPLE_RATE,
        bits_per_sample: 32,
        sample_format: hound::SampleFormat::Float,
    };
    let mut writer = hound::WavWriter::create(path, spec).expect("the fixture is writable");
    for &sample in parts.iter().flatten() {
        writer.write_sample(sample).expect("the disk has room");
    }
    writer.finalize().expect("the disk has room");
    path.display().to_string()
}

/// Two voices in which the model hears something: if it can be, not the same.
fn two_audible(fixture: &Fixture, url: &str) -> [Vec<f32>; 2] {
    let pitches = (1..=24).map(|number| f64::from(number) * 100.0);
    let voices: Vec<Vec<f32>> = pitches
        .map(|pitch| voice([pitch, 1.7 * pitch % 2_900.0 + 120.0, 2_700.0 - pitch]))
        .collect();
    let numbered = voices.iter().enumerate();
    let paths: Vec<String> = numbered
        .map(|(number, voice)| {
            let path = fixture.path().join(format!("voice-{number}.wav"));
            write_wav(&path, &[silence(0.5), voice.clone(), silence(0.5)])
        })
        .collect();
    let options = ["--language", "de"].into_iter();
    let arguments: Vec<&str> = options.chain(paths.iter().map(String::as_str)).collect();
    let heard = texts(url, &arguments);
    let mut audible: Vec<usize> = (0..paths.len())
        .filter(|&number| !heard[&paths[number]].trim().is_empty())
        .collect();
    assert!(audible.len() > 1, "{heard:?}");
    let one = audible.remove(0);
    let another = |number: &usize| heard[&paths[*number]] != heard[&paths[one]];
    let two = audible.iter().copied().find(another).unwrap_or(audible[0]);
    [one, two].map(|number| voices[number].clone())
}

/// Two utterances in one file, with a pause between them, are two segments with the texts of the two in files of their own; every
/// format tells them as it does.
#[test]
fn a_long_file_is_cut_at_its_pauses_and_written_in_every_format() {
    let fixture = Fixture::new();
    let url = train(&fixture, 3);
    let wav = |name: &str, parts: &[Vec<f32>]| write_wav(&fixture.path().join(name), parts);
    let [one, two] = two_audible(&fixture, &url);
    let first = wav("first.wav", &[silence(0.5), one.clone(), silence(0.5)]);
    let second = wav("second.wav", &[silence(0.5), two.clone(), silence(0.5)]);
    let both = wav("both.wav", &[silence(0.5), one, silence(1.0), two, silence(0.5)]);
    let silent = wav("silent.wav", &[silence(2.0)]);
    let alone = texts(&url, &["--language", "de", &first, &second]);
    let (one, two) = (&alone[&first], &alone[&second]);

    let of_both = |more: &[&str]| stdout(&url, &[&["--language", "de", &both], more].concat());
    let document: Value = serde_json::from_str(&of_both(&["--format", "json"])).expect("JSON");
    let step = &document["step"];
    assert_eq!(step, 12);
    let segments = serde_json::json!([
        {"start": 0.3, "end": 1.7, "text": one},
        {"start": 2.3, "end": 3.7, "text": two},
    ]);
    let whole = serde_json::json!({
        "path": both, "language": "de", "duration": 4.0, "segments": segments, "text": format!("{one} {two}"),
    });
    assert_eq!(document, serde_json::json!({"step": step, "files": [whole]}));
    // No pause is that long.
    let uncut = of_both(&["--format", "json", "--pause", "1.5"]);
    let uncut: Value = serde_json::from_str(&uncut).expect("JSON");
    let segments = uncut["files"][0]["segments"].as_array().expect("segments");
    assert_eq!(segments.len(), 1);
    assert_eq!(
        (&segments[0]["start"], &segments[0]["end"]),
        (&0.3.into(), &3.7.into())
    );

    let one_line = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
    let (one, two) = (one_line(one), one_line(two));
    assert_eq!(of_both(&[]), format!("{one} {two}\n"));
    assert_eq!(
        of_both(&["--format", "srt"]),
        format!("1\n00:00:00,300 --> 00:00:01,700\n{one}\n\n2\n00:00:02,300 --> 00:00:03,700\n{two}\n\n")
    );
    let escaped = |text: &str| text.replace('<', "&lt;").replace('>', "&gt;");
    let vtt = format!(
        "WEBVTT\n\n00:00:00.300 --> 00:00:01.700\n{}\n\n00:00:02.300 --> 00:00:03.700\n{}\n\n",
        escaped(&one),
        escaped(&two)
    );
    assert_eq!(of_both(&["--format", "vtt"]), vtt);
    // Several files: a line each, in the order in which they were named, whatever their length.
    assert_eq!(
        stdout(&url, &["--language", "de", &both, &silent, &first]),
        format!("{both}\t{one} {two}\n{silent}\t\n{first}\t{one}\n")
    );

    // Into a folder, with the file of a list; what is not audio does not keep the others from being written.
    fs::write(fixture.path().join("noise.mp3"), "no audio at all").expect("the fixture is writable");
    let list = fixture.path().join("list.txt").display().to_string();
    fs::write(&list, "# talks\nnoise.mp3\tde\nfirst.wav\n").expect("the fixture is writable");
    let folder = fixture.path().join("subtitles");
    let arguments = [
        "--language",
        "de",
        "--format",
        "vtt",
        "--output",
        &folder.display().to_string(),
        "--list",
        &list,
        &both,
    ];
    let finished = transcribe(&url, &arguments);
    assert_eq!(finished.code, Some(1), "{}", finished.stderr);
    assert_eq!(finished.stdout, "");
    let named = finished.stderr.trim_end().lines().last().expect("an error");
    assert!(
        named.contains("noise.mp3") && named.contains("not audio"),
        "{}",
        finished.stderr
    );
    assert!(
        finished.stderr.contains("1 of 3 files could not be read"),
        "{}",
        finished.stderr
    );
    let mut written: Vec<String> = fs::read_dir(&folder)
        .expect("the folder was made")
        .map(|entry| {
            entry
                .expect("it can be read")
                .file_name()
                .to_string_lossy()
                .into_owned()
        })
        .collect();
    written.sort();
    assert_eq!(written, ["both.vtt", "first.vtt"], "and nothing half written");
    assert_eq!(
        fs::read_to_string(folder.join("both.vtt")).expect("it is there"),
        vtt
    );
    // Never over another file.
    let again = transcribe(&url, &arguments);
    assert_eq!(again.code, Some(2), "{}", again.stderr);
    assert!(
        again.stderr.contains('`') && again.stderr.contains("is there already"),
        "{}",
        again.stderr
    );
}

/// What is wrong is named, with exit code 2, before anything is decoded.
#[test]
fn what_cannot_be_transcribed_is_refused() {
    let fixture = Fixture::new();
    let url = train(&fixture, 3);
    let audio = &utterances(&fixture)[0][0];
    let path = |name: &str| fixture.path().join(name).display().to_string();
    let refused = |arguments: &[&str], words: &[&str]| {
        let finished = transcribe(&url, arguments);
        assert_eq!(finished.code, Some(2), "{}", finished.stderr);
        assert_eq!(finished.stdout, "");
        for word in words {
            assert!(
                finished.stderr.contains(word),
                "no `{word}` in:\n{}",
                finished.stderr
            );
        }
    };
    refused(&[], &["AUDIO"]);
    refused(&[audio], &["cannot detect", audio, "--language", "en, de, vi"]);
    refused(
        &["--language", "fr", audio],
        &["no language `fr`", audio, "en, de, vi"],
    );
    let (missing, corpus) = (path("missing.wav"), path("corpus"));
    refused(
        &["--language", "de", audio, &missing, &corpus],
        &["missing.wav`: No such file", &format!("`{corpus}` is a folder")],
    );
    refused(&["--list", &missing], &["cannot read the list", "missing.wav"]);
    let list = path("list.txt");
    fs::write(&list, "# nothing\n\n").expect("the fixture is writable");
    refused(&["--list", &list], &["list.txt` names no file"]);
    fs::write(&list, format!("{audio}\txx\n")).expect("the fixture is writable");
    refused(
        &["--list", &list, "--language", "de"],
        &["no language `xx`", audio],
    );
    let other = path("other.wav");
    fs::copy(audio, &other).expect("the fixture is writable");
    refused(
        &["--language", "de", "--format", "srt", audio, &other],
        &["cannot hold 2 files", "--output"],
    );
    let twin = path("twin/other.mp3");
    fs::create_dir(path("twin")).expect("the fixture is writable");
    fs::copy(audio, &twin).expect("the fixture is writable");
    let output = path("out");
    refused(
        &["--language", "de", "--output", &output, &other, &twin],
        &[&other, &twin, "would both be written to", "out/other.txt"],
    );
    assert!(!Path::new(&output).exists(), "nothing is left");
    refused(&["--language", "de", "--pause", "0", audio], &["--pause"]);
    refused(&["--language", "de", "--beam", "0", audio], &["--beam"]);
}

/// Trains a head that tells languages apart; after 300 steps of stage 1 it knows the training utterances of a tiny corpus.
fn train_with_head(fixture: &Fixture, variant: &str, align_steps: u64) -> String {
    fixture.train(variant, |text| {
        text.replace("variant: soft", &format!("variant: {variant}"))
            .replace(
                "    template: \"<{lang}>\"\n",
                "    template: \"<{lang}>\"\n  lid_head: {}\n",
            )
            .replace(
                "align: {steps: 6, lr: 2.0e-3,",
                &format!("align: {{steps: {align_steps}, lr: 1.0e-1,"),
            )
            .replace("lr: 1.0e-3, router_lr: 1.0e-2", "lr: 2.0e-2, router_lr: 2.0e-1")
            .replace("every_steps: 4", "every_steps: 0")
    })
}

/// Languages that nobody tells are detected, by the head that `eval` measures; what is then written is what is written if that language
/// is told. A mixture of adapters hears every file, too: what it is, the tests of adapters show.
#[test]
fn languages_are_detected_and_mixed() {
    let fixture = Fixture::new();
    sing_languages(&fixture.path().join("corpus"));
    let url = train_with_head(&fixture, "soft", 300);
    let utterances = utterances(&fixture);
    let paths: Vec<&str> = utterances.iter().map(|[path, ..]| path.as_str()).collect();

    let manifest = fixture.path().join("corpus/train.jsonl").display().to_string();
    let mut eval = Command::new(program("zipper-worker"));
    eval.args(["eval", "--json", "--run", &url, "--manifest", &manifest]);
    let evaluated = Launched::start_command(&mut eval).wait();
    assert_eq!(evaluated.code, Some(0), "{}", evaluated.stderr);
    let evaluated: Value = serde_json::from_str(&evaluated.stdout).expect("one JSON document");
    let accuracy = evaluated["language_identification"]["accuracy"]
        .as_f64()
        .expect("there is a head");
    let decoded = evaluated["utterances"].as_array().expect("utterances");
    let right = decoded
        .iter()
        .filter(|one| one["detected"] == one["lang"])
        .count();
    assert!((accuracy - right as f64 / decoded.len() as f64).abs() < 1e-9);
    // Always the most frequent language would be 14 of 24.
    assert!(accuracy > 0.7, "{accuracy}");

    let document = stdout(&url, &[&["--format", "json"][..], &paths].concat());
    let document: Value = serde_json::from_str(&document).expect("one JSON document and nothing else");
    let files = document["files"].as_array().expect("files");
    let mut told = BTreeMap::new();
    for language in ["en", "de", "vi"] {
        let of_language = files.iter().filter(|file| file["language"] == language);
        let paths: Vec<&str> = of_language
            .map(|file| file["path"].as_str().expect("a path"))
            .collect();
        assert!(!paths.is_empty(), "nothing was taken for {language}");
        told.extend(texts(&url, &[&["--language", language][..], &paths].concat()));
    }
    for file in files {
        let path = file["path"].as_str().expect("a path");
        assert_eq!(file["text"], told[path].as_str(), "{path}");
        let probability = file["probability"].as_f64().expect("it was detected");
        assert!((1.0 / 3.0..=1.0).contains(&probability), "{probability}");
    }
    let mixed = texts(&url, &[&["--mixture"][..], &paths].concat());
    assert!(mixed.keys().eq(told.keys()), "every file is heard");

    let silent = write_wav(&fixture.path().join("silent.wav"), &[silence(1.0)]);
    let document = stdout(&url, &["--format", "json", &silent]);
    assert!(document.contains("\"language\":\"und\""), "{document}");

    let refused = transcribe(&url, &["--mixture", "--language", "en", paths[0]]);
    assert_eq!(refused.code, Some(2), "{}", refused.stderr);
    let independent = train_with_head(&fixture, "independent", 6);
    let refused = transcribe(&independent, &["--mixture", paths[0]]);
    assert_eq!(refused.code, Some(2), "{}", refused.stderr);
    assert!(refused.stderr.contains("independent"), "{}", refused.stderr);
}
