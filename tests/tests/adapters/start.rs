//! Goal: a run can begin with the result of stage 1 that another run or PEFT has made (`training.start_from`). Method: real runs with
//! learning rates that change nothing, so that what they export is what they began with.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::Stdio;

use safetensors::SafeTensors;
use zipper_tests::{Finished, Fixture, Launched};

use crate::{export, python, script};

/// The sections of stages in the fixture's configuration.
const STAGES: &str = "  align: {steps: 6, lr: 2.0e-3, warmup_steps: 2}\n  zipper: {steps: 6, lr: 1.0e-3, router_lr: 1.0e-2, schedule: \
                      cosine}\n";
/// Steps that leave every parameter as it is.
const STILL: &str = "lr: 1.0e-20";

/// Runs the fixture's job with other stages and returns how it ended, with the run's URL.
fn launch(
    fixture: &Fixture,
    name: &str,
    stages: &str,
    edit: impl Fn(String) -> String,
) -> (Finished, String) {
    let config = fixture.write_config(&format!("{name}.yaml"), |text| {
        assert!(text.contains(STAGES), "the fixture has changed");
        edit(
            text.replace(STAGES, stages)
                .replace("untrained: true", "untrained: false"),
        )
    });
    let url = fixture.run_url(name);
    let config = config.display().to_string();
    // Nobody reads what the run says of itself.
    let silent = ["--set", "evaluation.tests=[]", "--set", "data.validation=[]"];
    let launch = ["--nodes", "1", "--config", &config, "--run", &url];
    let finished = Launched::run(&[&launch[..], &silent].concat());
    (finished, url)
}

/// A run that only has stage 1.
fn stage_1(fixture: &Fixture) -> String {
    let (finished, url) = launch(
        fixture,
        "first",
        "  align: {steps: 6, lr: 2.0e-2}\n  zipper: {steps: 0}\n",
        |text| text,
    );
    assert_eq!(finished.code, Some(0), "{}", finished.stderr);
    url
}

/// The matrices in an exported adapter.
fn matrices(folder: &Path) -> BTreeMap<String, Vec<f32>> {
    let bytes = fs::read(folder.join("adapter_model.safetensors")).expect("it was exported");
    let file = SafeTensors::deserialize(&bytes).expect("an export is a safetensors file");
    let values = |data: &[u8]| {
        data.as_chunks::<4>()
            .0
            .iter()
            .map(|bytes| f32::from_le_bytes(*bytes))
            .collect()
    };
    file.tensors()
        .into_iter()
        .map(|(name, view)| (name, values(view.data())))
        .collect()
}

#[test]
fn stage_2_begins_where_stage_1_of_another_run_ended() {
    let fixture = Fixture::new();
    let first = stage_1(&fixture);
    let start = format!(
        "  start_from: {{run: \"{first}\", step: 6}}\n  align: {{steps: 0}}\n  zipper: {{steps: 2, {STILL}}}\n"
    );
    // With twice the scale, every B is half as large.
    let (finished, second) = launch(&fixture, "second", &start, |text| {
        text.replace("alpha: 8", "alpha: 16")
    });
    assert_eq!(finished.code, Some(0), "{}", finished.stderr);

    let expected = export(&fixture, &first, "first", &[]);
    let expected = matrices(&Path::new(&expected).join("en"));
    let begun = export(&fixture, &second, "second", &[]);
    let largest = |values: &[f32]| values.iter().fold(0.0_f32, |most, value| most.max(value.abs()));
    for language in ["en", "de", "vi"] {
        let begun = matrices(&Path::new(&begun).join(language));
        assert_eq!(begun.len(), expected.len());
        for (name, values) in &expected {
            let factor = if name.ends_with("lora_B.weight") { 2.0 } else { 1.0 };
            let apart: Vec<f32> = values
                .iter()
                .zip(&begun[name])
                .map(|(a, b)| a - factor * b)
                .collect();
            assert!(largest(values) > 1e-3, "stage 1 trained {name}");
            assert!(largest(&apart) < 1e-6, "{language}: {name}");
        }
    }
}

#[test]
fn a_lora_of_peft_is_a_result_of_stage_1() {
    let Some(python) = python() else { return };
    let fixture = Fixture::new();
    let folder = fixture.path().display();
    let arguments = [folder.to_string(), format!("{folder}/peft")];
    let mut peft = script(&python, "peft_start.py", &arguments);
    let mut peft = peft
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("an installed Python can be started");
    let stdout = peft.stdout.take().expect("stdout is piped");
    let mut lines = BufReader::new(stdout).lines().map_while(Result::ok);
    assert_eq!(lines.next().as_deref(), Some("made"), "stderr says why not");
    let start = format!(
        "  start_from: {{peft: {folder}/peft}}\n  align: {{steps: 1, {STILL}}}\n  zipper: {{steps: 0}}\n"
    );
    let (finished, url) = launch(&fixture, "imported", &start, |text| {
        text.replace("  rank: 4\n", "  rank: 3\n  targets: [q_proj, down_proj]\n")
    });
    assert_eq!(finished.code, Some(0), "{}", finished.stderr);
    let exported = export(&fixture, &url, "imported", &["--language", "vi"]);
    let mut stdin = peft.stdin.take().expect("stdin is piped");
    writeln!(stdin, "{exported}/vi").expect("the script reads it");
    let printed = lines.next().expect("the script goes on");
    assert!(peft.wait().expect("it can be waited for").success());
    let numbers: Vec<f64> = printed
        .split_whitespace()
        .map(|word| word.parse().expect("a number"))
        .collect();
    let [changed, apart] = numbers[..] else {
        panic!("{printed}")
    };
    assert!(changed > 0.1, "the adapter does something: {changed}");
    assert!(apart < 1e-4, "logits are {apart} apart");
}

/// Exit code 2 and what is wrong, in words.
#[test]
fn what_a_run_cannot_begin_with_is_refused() {
    let fixture = Fixture::new();
    let first = stage_1(&fixture);
    let peft = export(&fixture, &first, "first", &["--language", "de"]);
    let refused = |name: &str, start: &str, words: &[&str], edit: &dyn Fn(String) -> String| {
        let stages = format!("  start_from: {start}\n  align: {{steps: 2}}\n  zipper: {{steps: 0}}\n");
        let (finished, _) = launch(&fixture, name, &stages, edit);
        assert_eq!(finished.code, Some(2), "{name}: {}", finished.stderr);
        for word in words {
            assert!(
                finished.stderr.contains(word),
                "{name}: no `{word}` in:\n{}",
                finished.stderr
            );
        }
    };
    let same = |text: String| text;
    refused(
        "no-step",
        &format!("{{run: \"{first}\", step: 5}}"),
        &["training.start_from.step", "zipper-launch checkpoints"],
        &same,
    );
    refused(
        "no-folder",
        "{peft: /nowhere}",
        &["training.start_from.peft", "/nowhere"],
        &same,
    );
    let de = format!("{{peft: {peft}/de}}");
    refused(
        "rank",
        &de,
        &["adapter_config.json", "set `adapter.rank: 4`"],
        &|text| text.replace("  rank: 4\n", "  rank: 2\n"),
    );
    refused(
        "targets",
        &de,
        &["is there, and this configuration does not train it"],
        &|text| text.replace("  rank: 4\n", "  rank: 4\n  targets: [q_proj]\n"),
    );
    let config = Path::new(&peft).join("de/adapter_config.json");
    let text = fs::read_to_string(&config).expect("it was exported");
    fs::write(&config, text.replace("\"r\"", "\"use_dora\": true, \"r\"")).expect("the fixture is writable");
    refused("dora", &de, &["adapter_config.json", "`use_dora` is true"], &same);
}
