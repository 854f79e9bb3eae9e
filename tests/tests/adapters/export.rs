//! Goal: what is exported does in transformers and PEFT what the run's own model does, for every variant, and merged weights do the
//! same again. Method: a short real run of each variant, with learning rates that make banks and gates differ; `zipper-worker export`
//! and `zipper-worker eval`; the same utterances through transformers and PEFT (`tests/scripts/peft_parity.py`): equal transcripts by
//! greedy search, and equal log-likelihoods of the references, which need equal logits.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;
use zipper_tests::Fixture;

use crate::{export, printed, python, script, worker};

const VARIANTS: [&str; 5] = ["shared", "independent", "static", "hard", "soft"];
/// The variant whose encoder is adapted, too.
const WITH_ENCODER: &str = "hard";
/// Nats per token: what logits that are equal to 1e-4 may differ in.
const TOLERANCE: f64 = 1e-4;

/// Trains `variant` for a few steps and returns the run's URL. Every step encodes windows of 30 s, and for the variant [`WITH_ENCODER`] they
/// take a backward pass, too.
fn train(fixture: &Fixture, variant: &str) -> String {
    let cache = format!("    cache: {}/cache\n", fixture.path().display());
    fixture.train(variant, |text| {
        let text = text
            .replace("variant: soft", &format!("variant: {variant}"))
            .replace(&cache, "    context: padded_30s\n")
            .replace("lr: 1.0e-3, router_lr: 1.0e-2", "lr: 2.0e-2, router_lr: 2.0e-1");
        if variant == WITH_ENCODER {
            text.replace("  rank: 4\n", "  rank: 4\n  encoder_targets: [q_proj, fc1]\n")
        } else {
            text
        }
    })
}

/// The training utterances whose audio Python reads without another resampler, as a manifest.
fn manifest(fixture: &Fixture) -> PathBuf {
    let corpus = fixture.path().join("corpus");
    let text = fs::read_to_string(corpus.join("train.jsonl")).expect("the fixture has it");
    let at_16_khz = |line: &&str| {
        let line: Value = serde_json::from_str(line).expect("a manifest has JSON lines");
        let path = corpus.join(line["audio_filepath"].as_str().expect("a path"));
        let wav = fs::read(path).expect("the audio is there");
        // Bytes 24 to 27 of a WAV file.
        wav[24..28] == 16_000_u32.to_le_bytes()
    };
    let lines: Vec<&str> = text.lines().filter(at_16_khz).collect();
    let path = corpus.join("parity.jsonl");
    fs::write(&path, lines.join("\n") + "\n").expect("the fixture is writable");
    path
}

/// Transcript, loss and tokens of each utterance, by the run's own model.
fn own(url: &str, manifest: &Path) -> BTreeMap<String, (String, f64, f64)> {
    let manifest = manifest.display().to_string();
    let finished = worker(&["eval", "--json", "--run", url, "--manifest", &manifest]);
    assert_eq!(finished.code, Some(0), "{}", finished.stderr);
    let document: Value = serde_json::from_str(&finished.stdout).expect("one JSON document");
    let utterances = document["utterances"].as_array().expect("utterances");
    let of = |utterance: &Value| {
        let text = |key: &str| utterance[key].as_str().expect("a text").to_owned();
        let number = |key: &str| utterance[key].as_f64().expect("a number");
        (text("id"), (text("hypothesis"), number("nll"), number("tokens")))
    };
    utterances.iter().map(of).collect()
}

#[test]
fn exported_adapters_do_the_same_in_peft() {
    let Some(python) = python() else { return };
    let fixture = Fixture::new();
    let manifest = manifest(&fixture);
    let mut exports = Vec::new();
    let mut expected = BTreeMap::new();
    for variant in VARIANTS {
        let url = train(&fixture, variant);
        exports.push(export(&fixture, &url, variant, &[]));
        let own = own(&url, &manifest);
        if variant == "soft" {
            exports.push(export(&fixture, &url, "merged", &["--merge", "--language", "en"]));
            let english = own.iter().filter(|(id, _)| id.contains("-en-"));
            let english: BTreeMap<_, _> = english.map(|(id, own)| (id.clone(), own.clone())).collect();
            expected.insert("merged".to_owned(), english);
        }
        expected.insert(variant.to_owned(), own);
    }
    let mut arguments = vec![
        fixture.path().display().to_string(),
        manifest.display().to_string(),
    ];
    arguments.extend(exports);
    let stdout = printed(&mut script(&python, "peft_parity.py", &arguments));
    let mut compared = BTreeMap::<String, usize>::new();
    for line in stdout.lines() {
        let theirs: Value = serde_json::from_str(line).expect("a JSON line");
        let name = theirs["export"].as_str().expect("a name");
        let Some((hypothesis, nll, tokens)) = expected[name].get(theirs["id"].as_str().expect("an id"))
        else {
            continue;
        };
        // Transcripts are without space around them.
        let said = theirs["hypothesis"].as_str().map(str::trim);
        assert_eq!(said, Some(hypothesis.as_str()), "{name}: {line}");
        let difference = (theirs["nll"].as_f64().expect("a number") - nll).abs() / tokens;
        assert!(difference < TOLERANCE, "{name}: {nll} and {line}");
        *compared.entry(name.to_owned()).or_default() += 1;
    }
    for (name, own) in &expected {
        assert_eq!(compared.get(name), Some(&own.len()), "`{name}` was compared");
    }
    // Adapters of languages are not the same, or all of this shows nothing.
    for variant in VARIANTS.into_iter().filter(|variant| *variant != "shared") {
        let weights = |language: &str| {
            let folder = fixture.path().join("exports").join(variant).join(language);
            fs::read(folder.join("adapter_model.safetensors")).expect("it was exported")
        };
        assert_ne!(weights("en"), weights("de"), "{variant}");
    }
}

/// What is wrong is named, with exit code 2, and nothing is left where the output was to be.
#[test]
fn what_cannot_be_exported_is_refused() {
    let fixture = Fixture::new();
    let url = fixture.train("run", |text| text);
    let output = fixture.path().join("out");
    let place = output.display().to_string();
    let refused = |more: &[&str], words: &[&str]| {
        let finished = worker(&[&["export", "--run", &url, "--output", &place], more].concat());
        assert_eq!(finished.code, Some(2), "{}", finished.stderr);
        for word in words {
            assert!(
                finished.stderr.contains(word),
                "no `{word}` in:\n{}",
                finished.stderr
            );
        }
    };
    refused(&["--language", "fr"], &["no language `fr`", "en, de, vi"]);
    refused(&["--merge"], &["exactly one `--language`"]);
    refused(&["--checkpoint", "999"], &["step-00000999"]);
    let llm = fixture.path().join("llm/model.safetensors");
    let whole = fs::read(&llm).expect("the fixture has it");
    fs::write(&llm, &whole[..whole.len() / 2]).expect("the fixture is writable");
    refused(&["--merge", "--language", "de"], &["model.safetensors"]);
    fs::write(&llm, &whole).expect("the fixture is writable");
    assert!(!output.exists(), "nothing is left");
    let left = fs::read_dir(fixture.path())
        .expect("the fixture is there")
        .flatten();
    let left: Vec<_> = left
        .filter(|entry| entry.file_name().to_string_lossy().starts_with(".export"))
        .collect();
    assert!(left.is_empty(), "{left:?}");

    fs::create_dir(&output).expect("the fixture is writable");
    fs::write(output.join("mine"), "mine").expect("the fixture is writable");
    refused(&[], &["is there already"]);
    assert!(output.join("mine").exists());
}
