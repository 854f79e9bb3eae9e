//! Goal: `--average N` is the mean of the N best checkpoints by validation, and says which they are. Method: a short real run that
//! validates at every checkpoint; each one exported alone, and their mean taken here in f64, as numpy takes it.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use safetensors::SafeTensors;
use serde_json::Value;
use zipper_tests::{Fixture, Launched};

use crate::{export, worker};

const LANGUAGES: [&str; 3] = ["en", "de", "vi"];

/// A run of variant `shared` with five checkpoints in stage 2, which learns in such large steps that the newest need not be the best.
fn train(fixture: &Fixture) -> String {
    let config = fixture.write_config("average.yaml", |text| {
        text.replace("variant: soft", "variant: shared")
            .replace(
                "zipper: {steps: 6, lr: 1.0e-3, router_lr: 1.0e-2, schedule: cosine}",
                "zipper: {steps: 10, lr: 1.0e-1, schedule: constant}",
            )
            .replace("untrained: true", "untrained: false")
            .replace(
                "  max_new_tokens: 12\n",
                "  max_new_tokens: 4\n  every_steps: 2\n",
            )
            .replace("  every_steps: 4\n", "  every_steps: 2\n")
    });
    let url = fixture.run_url("run");
    let config = config.display().to_string();
    let finished = Launched::run(&["--nodes", "1", "--config", &config, "--run", &url]);
    assert_eq!(finished.code, Some(0), "{}", finished.stderr);
    url
}

/// The steps of stage 2, lowest validation loss first.
fn by_validation(fixture: &Fixture) -> Vec<u64> {
    let mut found: Vec<(f64, u64)> = (8..=16)
        .step_by(2)
        .map(|step| {
            let path = fixture
                .path()
                .join(format!("run/eval/validation-step-{step:08}.json"));
            let text =
                fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
            let scored: Value = serde_json::from_str(&text).expect("scores are JSON");
            (scored["loss"].as_f64().expect("a loss"), step)
        })
        .collect();
    found.sort_by(|a, b| a.0.total_cmp(&b.0));
    found.into_iter().map(|(_, step)| step).collect()
}

fn names(steps: &[u64]) -> Vec<String> {
    steps.iter().map(|step| format!("step-{step:08}")).collect()
}

/// Every tensor that was exported, by file and name.
fn tensors(export: &str) -> BTreeMap<String, Vec<f32>> {
    let mut found = BTreeMap::new();
    let adapters = LANGUAGES.map(|language| format!("{language}/adapter_model.safetensors"));
    for file in adapters
        .into_iter()
        .chain(["projector/projector.safetensors".to_owned()])
    {
        let bytes = fs::read(Path::new(export).join(&file)).expect("it was exported");
        let tensors = SafeTensors::deserialize(&bytes).expect("a safetensors file");
        for (name, tensor) in tensors.tensors() {
            let values = tensor
                .data()
                .as_chunks()
                .0
                .iter()
                .map(|bytes| f32::from_le_bytes(*bytes));
            found.insert(format!("{file}: {name}"), values.collect());
        }
    }
    found
}

#[test]
fn the_average_is_the_mean_of_the_best_by_validation() {
    let fixture = Fixture::new();
    let url = train(&fixture);
    let best = by_validation(&fixture);
    let alone: Vec<_> = best
        .iter()
        .take(3)
        .map(|step| {
            tensors(&export(
                &fixture,
                &url,
                &format!("{step}"),
                &["--checkpoint", &step.to_string()],
            ))
        })
        .collect();
    let mean = tensors(&export(&fixture, &url, "mean", &["--average", "3"]));
    assert!(mean.keys().eq(alone[0].keys()));
    for (name, values) in &mean {
        for (index, value) in values.iter().enumerate() {
            let sum: f64 = alone.iter().map(|tensors| f64::from(tensors[name][index])).sum();
            assert_eq!(value.to_bits(), ((sum / 3.0) as f32).to_bits(), "{name}[{index}]");
        }
    }
    assert!(
        mean.iter().any(|(name, values)| values != &alone[0][name]),
        "it is not the best one alone"
    );
    let card = fs::read_to_string(fixture.path().join("exports/mean/de/README.md")).expect("a card");
    assert!(
        card.contains(&format!("mean of {}", names(&best[..3]).join(", "))),
        "{card}"
    );

    // The best one alone is a mean, too.
    let only = tensors(&export(&fixture, &url, "only", &["--average", "1"]));
    assert_eq!(only, alone[0]);

    let manifest = fixture
        .path()
        .join("corpus/validation.jsonl")
        .display()
        .to_string();
    let eval =
        |more: &[&str]| worker(&[&["eval", "--json", "--run", &url, "--manifest", &manifest], more].concat());
    let checkpoints = |more: &[&str]| -> Value {
        let finished = eval(more);
        assert_eq!(finished.code, Some(0), "{}", finished.stderr);
        let mut document: Value = serde_json::from_str(&finished.stdout).expect("one JSON document");
        document["checkpoints"].take()
    };
    assert_eq!(
        checkpoints(&["--average", "2"]),
        serde_json::json!(names(&best[..2]))
    );
    assert_eq!(
        checkpoints(&[]),
        serde_json::json!(names(&[16])),
        "else the newest"
    );

    // What is damaged is left out, and the next best takes its place.
    let damaged = fixture
        .path()
        .join(format!("run/checkpoints/step-{:08}/shared.safetensors", best[0]));
    fs::write(&damaged, "no tensors").expect("the run is writable");
    assert_eq!(
        checkpoints(&["--average", "4"]),
        serde_json::json!(names(&best[1..]))
    );

    for (more, expected) in [
        (
            &["--average", "5"][..],
            &[
                "--average 5",
                "stage `zipper`",
                "has 4",
                "evaluation.every_steps",
                "checkpoint.keep_best",
            ][..],
        ),
        (&["--average", "0"], &["--average"]),
        (
            &["--average", "2", "--checkpoint", "16"],
            &["cannot be used with"],
        ),
    ] {
        let finished = eval(more);
        assert_eq!(finished.code, Some(2), "{}", finished.stderr);
        for word in expected {
            assert!(
                finished.stderr.contains(word),
                "no `{word}` in:\n{}",
                finished.stderr
            );
        }
    }
}
