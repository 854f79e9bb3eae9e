//! Goal: what `zipper-launch plan` promises is what a run then holds, sends and writes.
//! Method: the plan of a tiny job as JSON, beside what a real run of it left in its folder.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use safetensors::SafeTensors;
use serde_json::Value;
use zipper_tests::{Finished, Fixture, Launched};

const VARIANTS: [&str; 5] = ["shared", "independent", "static", "hard", "soft"];

fn launch(arguments: &[&str]) -> Finished {
    Launched::run(arguments)
}

fn json(finished: &Finished) -> Value {
    assert_eq!(finished.code, Some(0), "{}", finished.stderr);
    serde_json::from_str(&finished.stdout).expect("stdout is one JSON document")
}

/// Elements of each safetensors file below `folder`, by its path there.
fn elements(folder: &Path) -> BTreeMap<String, u64> {
    let parts = ["", "banks", "optimizer", "optimizer/banks"];
    let mut elements = BTreeMap::new();
    for part in parts {
        let Ok(entries) = fs::read_dir(folder.join(part)) else {
            continue;
        };
        for entry in entries {
            let path = entry.expect("the folder can be listed").path();
            if path.extension().is_none_or(|ending| ending != "safetensors") {
                continue;
            }
            let bytes = fs::read(&path).expect("the file can be read");
            let file = SafeTensors::deserialize(&bytes).expect("it is a safetensors file");
            let count: usize = file
                .tensors()
                .iter()
                .map(|(_, view)| view.shape().iter().product::<usize>())
                .sum();
            let name = path
                .strip_prefix(folder)
                .expect("it is inside")
                .display()
                .to_string();
            elements.insert(name, count as u64);
        }
    }
    elements
}

/// The lines of a run's metrics.
fn metrics(run: &Path) -> Vec<Value> {
    let text = fs::read_to_string(run.join("metrics/train.jsonl")).expect("metrics are written");
    let line = |line| serde_json::from_str(line).expect("metrics are JSON lines");
    text.lines().map(line).collect()
}

/// Every part of the checkpoints at the end of both stages has as many numbers as planned.
fn assert_checkpoints(plan: &Value, run: &Path, variant: &str, last_step: u64) {
    for (stage, step) in [("align", 2), ("zipper", last_step)] {
        let planned = &plan[stage];
        let number = |key: &str| planned[key].as_u64().expect("a number");
        let found = elements(&run.join(format!("checkpoints/step-{step:08}")));
        assert_eq!(
            found["shared.safetensors"],
            number("shared_parameters"),
            "{variant} {stage}"
        );
        let banks = found.iter().filter(|(name, _)| name.starts_with("banks/"));
        let mut count = 0;
        for (name, elements) in banks {
            assert_eq!(*elements, number("bank_parameters"), "{variant} {stage} {name}");
            count += 1;
        }
        assert_eq!(
            count,
            if number("bank_parameters") > 0 { 3 } else { 0 },
            "{variant} {stage}"
        );
        let bytes: u64 = found.values().map(|elements| elements * 4).sum();
        assert_eq!(bytes, number("checkpoint_bytes"), "{variant} {stage}");
    }
}

/// Every step sums as many bytes as planned, over all ranks and between owners.
fn assert_traffic(plan: &Value, run: &Path, variant: &str) {
    let owners = |language: &Value| Some((language["owners"][0].as_u64()?, language["owners"][1].as_u64()?));
    let languages = plan["languages"].as_array().expect("a list");
    for line in metrics(run) {
        let stage = line["stage"].as_str().expect("a stage");
        let summed = line["comm_bytes_shared"].as_u64().expect("bytes");
        assert_eq!(
            Some(summed),
            plan[stage]["all_reduce_bytes"].as_u64(),
            "{variant} {line}"
        );
        // Each of several owners of a language in the batch puts its gradients in.
        let in_batch = line["by_language"].as_object().expect("a map");
        let of_banks = languages
            .iter()
            .filter(|language| in_batch.contains_key(language["lang"].as_str().expect("a code")))
            .filter_map(|language| {
                let (first, last) = owners(language)?;
                let bytes = language["all_reduce_bytes"].as_u64()?;
                Some(bytes * (last - first + 1))
            })
            .sum::<u64>();
        let expected = if stage == "zipper" { of_banks } else { 0 };
        assert_eq!(
            line["comm_bytes_banks"].as_u64(),
            Some(expected),
            "{variant} {line}"
        );
    }
}

/// Parameters, checkpoint bytes, owners and bytes on the wire of each variant, on four workers.
#[test]
fn the_plan_is_what_happens() {
    let fixture = Fixture::new();
    let config = fixture.path().join("run.yaml").display().to_string();
    for variant in VARIANTS {
        let set = format!("adapter.variant={variant}");
        // Enough steps of one variant that its work counts as measured.
        let steps = if variant == "soft" { 8 } else { 3 };
        let zipper_steps = format!("training.zipper.steps={steps}");
        let settings = [
            "--config",
            &config,
            "--nodes",
            "4",
            "--workers-per-node",
            "1",
            "--set",
            &set,
            "--set",
            "training.align.steps=2",
            "--set",
            &zipper_steps,
            "--set",
            "evaluation.tests=[]",
            "--set",
            "data.validation=[]",
            // One of them also learns to tell languages apart.
            "--set",
            if variant == "hard" {
                "model.lid_head={loss_weight: 0.5}"
            } else {
                "model.lid_head=null"
            },
        ];
        let plan = json(&launch(&[&["plan", "--json"], &settings[..]].concat()));
        let run_url = fixture.run_url(variant);
        let finished = launch(&[&settings[..], &["--run", &run_url]].concat());
        assert_eq!(finished.code, Some(0), "{}", finished.stderr);
        let run = fixture.path().join(variant);

        assert_checkpoints(&plan, &run, variant, 2 + steps);
        assert_traffic(&plan, &run, variant);

        // With the run's own measurements, if there are enough, work is in seconds: of all ranks together about what steps took.
        let measured = json(&launch(
            &[&["plan", "--json", "--run", &run_url], &settings[..]].concat(),
        ));
        assert_eq!(plan["measured"], false);
        assert_eq!(measured["measured"], steps >= 6);
        if steps >= 6 {
            let lines = metrics(&run);
            let mut took: Vec<f64> = lines
                .iter()
                .filter_map(|line| line["compute_seconds"].as_f64())
                .collect();
            took.sort_by(f64::total_cmp);
            let usual = took[took.len() / 2];
            let ranks = measured["zipper"]["ranks"].as_array().expect("a list");
            let expected: f64 = ranks.iter().filter_map(|rank| rank["work"].as_f64()).sum();
            assert!(
                expected > usual / 10.0 && expected < usual * 10.0,
                "{expected} s for {usual} s"
            );
        }
    }
}

/// A plan for one worker sums nothing, moves nothing and does not warn of losing another.
#[test]
fn one_worker_has_everything() {
    let fixture = Fixture::new();
    let config = fixture.path().join("run.yaml").display().to_string();
    let arguments = [
        "plan",
        "--config",
        &config,
        "--nodes",
        "1",
        "--workers-per-node",
        "1",
    ];
    let plan = json(&launch(&[&arguments[..], &["--json"]].concat()));
    assert_eq!(plan["zipper"]["all_reduce_bytes"], 0);
    assert_eq!(
        plan["zipper"]["ranks"][0]["languages"],
        serde_json::json!(["en", "de", "vi"])
    );
    assert_eq!(plan["banks_moved_when_one_is_lost"], Value::Null);
    assert_eq!(plan["zipper"]["ranks"][0]["remembered_bytes"], 0);
    let epochs = |language: &Value| language["epochs_zipper"].as_f64();
    let languages = plan["languages"].as_array().expect("a list");
    assert!(
        languages.iter().filter_map(epochs).all(|epochs| epochs > 0.0),
        "{plan}"
    );
    let table = launch(&arguments).stdout;
    assert!(table.contains("there is no other worker"), "{table}");
    assert!(table.contains("Memory of a worker: frozen models "), "{table}");
}

/// Wrong input ends with exit code 2 and a message that says what to mend; nothing is written.
#[test]
fn a_plan_that_cannot_be_made_says_why() {
    let fixture = Fixture::new();
    let config = fixture.path().join("run.yaml").display().to_string();
    let refused = |more: &[&str], words: &[&str]| {
        let finished = launch(
            &[
                &[
                    "plan",
                    "--config",
                    &config,
                    "--nodes",
                    "2",
                    "--workers-per-node",
                    "1",
                ],
                more,
            ]
            .concat(),
        );
        assert_eq!(finished.code, Some(2), "{}", finished.stderr);
        assert!(finished.stdout.is_empty(), "{}", finished.stdout);
        for word in words {
            assert!(
                finished.stderr.contains(word),
                "no `{word}` in:\n{}",
                finished.stderr
            );
        }
    };
    refused(&["--set", "adapter.variant=sof"], &["did you mean `soft`?"]);
    refused(
        &["--set", "runtime.bank_memory_mib=0.001"],
        &["the banks of 3 languages do not fit", "runtime.bank_memory_mib"],
    );
    let nowhere = fixture.run_url("nowhere");
    refused(&["--run", &nowhere], &["nowhere", "metrics/train.jsonl"]);
    let llm = fixture.path().join("llm/model.safetensors");
    fs::write(&llm, b"no header").expect("the fixture is writable");
    refused(&[], &["model.safetensors", "is not a safetensors file"]);
    fs::remove_file(&llm).expect("it was there");
    refused(&[], &["there is no *.safetensors file"]);
    assert!(!fixture.path().join("runs").exists() && !Path::new("runs/tiny").exists());
}
