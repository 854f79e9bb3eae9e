//! Goal: what `inspect` shows of a run's router is what the checkpoint's tensors say, live metrics tell the same, and what cannot be
//! shown is refused. Method: short real runs of each variant; gates computed again from the checkpoint's own file.

use std::fs;
use std::path::PathBuf;

use safetensors::SafeTensors;
use serde_json::Value;
use zipper_tests::{Finished, Fixture, Launched};

const LANGUAGES: [&str; 3] = ["en", "de", "vi"];
const LAST_STEP: u64 = 12;

fn train(fixture: &Fixture, variant: &str) -> String {
    fixture.train(variant, |text| {
        text.replace("variant: soft", &format!("variant: {variant}"))
            .replace("lr: 1.0e-3, router_lr: 1.0e-2", "lr: 2.0e-2, router_lr: 2.0e-1")
    })
}

fn inspect(url: &str, more: &[&str]) -> Finished {
    Launched::run(&[&["inspect", "--run", url], more].concat())
}

fn document(url: &str) -> Value {
    let finished = inspect(url, &["--json"]);
    assert_eq!(finished.code, Some(0), "{}", finished.stderr);
    serde_json::from_str(&finished.stdout).expect("one JSON document and nothing else")
}

/// A matrix of f32 in a checkpoint.
fn matrix(file: &SafeTensors<'_>, name: &str) -> Vec<Vec<f64>> {
    let view = file.tensor(name).expect("the checkpoint has it");
    let width = *view.shape().last().expect("it has a shape");
    let values: Vec<f64> = view
        .data()
        .chunks_exact(4)
        .map(|bytes| f64::from(f32::from_le_bytes(bytes.try_into().expect("four bytes"))))
        .collect();
    values.chunks(width).map(<[f64]>::to_vec).collect()
}

/// `sigmoid(W e_l + b)` of one router, `[L][r]`.
fn gates(file: &SafeTensors<'_>, unit: &str) -> Vec<Vec<f64>> {
    let weight = matrix(file, &format!("router.{unit}.weight"));
    let bias = &matrix(file, &format!("router.{unit}.bias"))[0];
    let gate = |lid: &[f64], weight: &[f64], bias: f64| {
        let logit: f64 = lid.iter().zip(weight).map(|(a, b)| a * b).sum::<f64>() + bias;
        1.0 / (1.0 + (-logit).exp())
    };
    let of = |lid: &Vec<f64>| {
        let ranks = weight.iter().zip(bias);
        ranks.map(|(weight, &bias)| gate(lid, weight, bias)).collect()
    };
    matrix(file, "lid.weight").iter().map(of).collect()
}

fn run_folder(fixture: &Fixture, variant: &str) -> PathBuf {
    fixture.path().join(variant)
}

#[test]
fn gates_are_those_of_the_checkpoint_and_of_the_metrics() {
    let fixture = Fixture::new();
    for variant in ["soft", "hard"] {
        let url = train(&fixture, variant);
        let folder = run_folder(&fixture, variant);
        let bytes = fs::read(folder.join(format!("checkpoints/step-{LAST_STEP:08}/shared.safetensors")))
            .expect("the run ended with a checkpoint");
        let file = SafeTensors::deserialize(&bytes).expect("a safetensors file");
        let shown = document(&url);
        assert_eq!(shown["languages"], serde_json::json!(LANGUAGES));
        let units = shown["units"].as_array().expect("units");
        assert!(units.len() > 1, "{shown}");
        let mut shares = [0.0; 3];
        for unit in units {
            let name = unit["name"].as_str().expect("a name");
            let expected = gates(&file, name);
            for (language, expected) in expected.iter().enumerate() {
                for (rank, gate) in expected.iter().enumerate() {
                    let found = unit["gates"][language][rank].as_f64().expect("a gate");
                    assert!(
                        (found - gate).abs() < 1e-5,
                        "{variant} {name}: {found} and {gate}"
                    );
                    let taken = if variant == "hard" {
                        f64::from(u8::from(found >= 0.5))
                    } else {
                        found
                    };
                    shares[language] += taken / (expected.len() * units.len()) as f64;
                }
            }
        }
        let metrics = fs::read_to_string(folder.join("metrics/train.jsonl")).expect("the run has metrics");
        let lines: Vec<Value> = metrics
            .lines()
            .map(|line| serde_json::from_str(line).expect("JSON"))
            .collect();
        let in_align = lines.iter().filter(|line| line["stage"] == "align");
        assert!(in_align.clone().count() > 0 && in_align.clone().all(|line| line["gates"].is_null()));
        let last = lines.last().expect("there are steps");
        for (language, share) in LANGUAGES.iter().zip(shares) {
            let told = last["gates"][language]
                .as_f64()
                .expect("the newest step tells of gates");
            assert!(
                (told - share).abs() < 1e-5,
                "{variant} {language}: {told} and {share}"
            );
        }
        // Languages differ, or all of this shows nothing.
        assert!((shares[0] - shares[1]).abs() > 1e-3, "{shares:?}");

        let finished = inspect(&url, &[]);
        assert_eq!(finished.code, Some(0), "{}", finished.stderr);
        let report = folder.join(format!("inspect/step-{LAST_STEP:08}"));
        let read = |name: &str| {
            let text = fs::read_to_string(report.join(name));
            text.unwrap_or_else(|error| panic!("{name}: {error}"))
        };
        for name in ["shares.svg", "similarity-gates.svg", "similarity-banks.svg"] {
            assert!(read(name).starts_with("<svg"), "{name}");
            assert!(read("inspect.md").contains(&format!("({name})")), "{name}");
        }
        let page = read("inspect.html");
        assert_eq!(page.matches("<svg").count(), 3 + units.len());
        assert!(
            !page.contains("src=") && !page.contains("href="),
            "it needs no network"
        );
        let gates = units.len() * LANGUAGES.len() * 4;
        assert_eq!(read("gates.csv").lines().count(), 1 + gates);
        let first = finished.stdout.lines().find(|line| line.starts_with("en "));
        let told = format!("{:.3}", shares[0]);
        assert!(
            first.is_some_and(|line| line.contains(&told)),
            "no {told} in\n{}",
            finished.stdout
        );
    }
}

#[test]
fn variants_without_a_router_say_so_and_stage_1_is_refused() {
    let fixture = Fixture::new();
    let fixed = document(&train(&fixture, "static"));
    assert_eq!(fixed["units"].as_array().map(Vec::len), Some(1));
    assert_eq!(
        fixed["units"][0]["gates"][0],
        serde_json::json!([1.0, 1.0, 0.0, 0.0])
    );
    let similarity = fixed["bank_similarity"].as_array().expect("there are banks");
    for (index, row) in similarity.iter().enumerate() {
        assert!(
            (row[index].as_f64().expect("a number") - 1.0).abs() < 1e-9,
            "{row}"
        );
    }

    let url = train(&fixture, "shared");
    let shared = document(&url);
    assert_eq!(
        (&shared["units"], &shared["bank_similarity"]),
        (&serde_json::json!([]), &Value::Null)
    );
    let finished = inspect(&url, &[]);
    assert!(finished.stdout.contains("nothing to see"), "{}", finished.stdout);

    for (more, words) in [
        (["--checkpoint", "4"], "stage 1"),
        (["--checkpoint", "999"], "step-00000999"),
    ] {
        let refused = inspect(&url, &more);
        assert_eq!(refused.code, Some(2), "{}", refused.stderr);
        assert!(refused.stderr.contains(words), "{}", refused.stderr);
        assert_eq!(refused.stdout, "");
    }
    let nowhere = inspect(&fixture.run_url("nowhere"), &[]);
    assert_eq!(nowhere.code, Some(2), "{}", nowhere.stderr);
}
