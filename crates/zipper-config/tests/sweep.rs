//! Goal: a comparison has a run for each combination that differs in something, and one stage 1 for all that would make the same; what
//! is wrong in its file is named. Method: small comparisons, whose runs are counted by hand.

use std::path::PathBuf;

use tempfile::TempDir;
use zipper_config::sweep::{Sweep, SweepConfig};
use zipper_types::Variant;

const RUN: &str = "
name: tiny
model: {encoder: {path: w}, llm: {path: q}}
data: {languages: [en, de], train: [train.jsonl]}
training:
  align: {steps: 3, warmup_steps: 2}
  zipper: {steps: 4}
  batch_audio_seconds: 8
evaluation: {tests: [{name: numbers, manifest: test.jsonl}]}
";
const AXES: &str = "
  - {key: adapter.variant, values: [shared, independent, soft]}
  - {key: adapter.init, values: [stage1, zero]}
  - {key: model.encoder.context, values: [native, chunked]}
  - {key: seed, values: [1, 2]}
";

/// A folder with both files, and the comparison's.
fn files(axes: &str, more: &str) -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let run = folder.path().join("run.yaml");
    std::fs::write(&run, RUN).expect("the folder is writable");
    let path = folder.path().join("compare.yaml");
    let text = format!("name: compare\nconfig: {}\naxes: {axes}\n{more}\n", run.display());
    std::fs::write(&path, text).expect("the folder is writable");
    (folder, path)
}

fn sweep(axes: &str, more: &str) -> Result<Sweep, String> {
    let (_folder, path) = files(axes, more);
    let config = SweepConfig::load(&path).map_err(|error| error.to_string())?;
    config.expand(&path).map_err(|error| error.to_string())
}

#[test]
fn every_combination_has_a_run_and_equal_ones_share_it() {
    let sweep = sweep(AXES, "set: [training.zipper.steps=9]").expect("it is valid");
    assert_eq!(sweep.members.len(), 3 * 2 * 2 * 2);
    // `shared` has no banks: both values of `adapter.init` are the same run.
    assert_eq!(sweep.runs.len(), (1 + 2 + 2) * 4);
    let of = |values: [&str; 4]| {
        let member = sweep.members.iter().find(|member| member.values == values);
        member.expect("it is a combination").run
    };
    assert_eq!(
        of(["shared", "stage1", "native", "2"]),
        of(["shared", "zero", "native", "2"])
    );
    let run = &sweep.runs[of(["soft", "zero", "chunked", "2"])];
    assert_eq!(run.name, "soft-zero-chunked-2");
    assert_eq!((run.config.adapter.variant, run.config.seed), (Variant::Soft, 2));
    assert_eq!(run.config.training.zipper.steps, 9);
}

#[test]
fn stage_1_is_made_once_for_all_runs_that_have_the_same() {
    let sweep = sweep(AXES, "").expect("it is valid");
    let names: Vec<&str> = sweep.stage_1.iter().map(|run| run.name.as_str()).collect();
    assert_eq!(
        names,
        [
            "stage1-native-1",
            "stage1-native-2",
            "stage1-chunked-1",
            "stage1-chunked-2"
        ]
    );
    for run in &sweep.runs {
        let stage_1 = &sweep.stage_1[run.begins_with.expect("all have a stage 1")].config;
        assert_eq!(stage_1.seed, run.config.seed);
        assert_eq!(stage_1.model, run.config.model);
        assert_eq!(stage_1.training.zipper.steps, 0);
        let after = Sweep::after_stage_1(run, "s3://bucket/first");
        let start = after.training.start_from.expect("it begins with stage 1");
        assert_eq!(
            (start.run.as_deref(), start.step),
            (Some("s3://bucket/first"), Some(3))
        );
        assert_eq!(after.training.align.steps, 0);
    }
}

#[test]
fn what_both_stages_have_gives_each_run_its_own_stage_1() {
    let axes = "[{key: adapter.rank, values: [4, 8]}, {key: adapter.variant, values: [soft, hard]}]";
    let sweep = sweep(axes, "").expect("it is valid");
    assert_eq!((sweep.runs.len(), sweep.stage_1.len()), (4, 2));
}

/// Shows that runs which differ in how they are evaluated have the same stage 1, which is there once.
#[test]
fn what_is_evaluated_makes_no_stage_1_of_its_own() {
    let axes = "[{key: evaluation.beam, values: [1, 5]}, {key: adapter.variant, values: [soft, hard]}]";
    let sweep = sweep(
        axes,
        "set: [evaluation.every_steps=2, evaluation.no_audio_control=true]",
    )
    .expect("it is valid");
    assert_eq!(sweep.runs.len(), 4);
    let names: Vec<&str> = sweep.stage_1.iter().map(|run| run.name.as_str()).collect();
    assert_eq!(names, ["stage1"]);
    assert!(sweep.runs.iter().all(|run| run.begins_with == Some(0)));
    let beams: Vec<usize> = sweep.runs.iter().map(|run| run.config.evaluation.beam).collect();
    assert_eq!(beams, [1, 1, 5, 5]);
    let stage_1 = &sweep.stage_1[0].config;
    assert_eq!(stage_1.evaluation.every_steps, 2);
    assert!(stage_1.warnings().is_empty(), "{:?}", stage_1.warnings());
}

#[test]
fn problems_are_named() {
    let table = [
        ("[]", "", "axes: empty: there is nothing to compare"),
        ("[{key: seed, values: []}]", "", "axes[0].values: empty"),
        (
            "[{key: seed, values: [1]}, {key: seed, values: [2]}]",
            "",
            "axes[1].key: `seed` is there twice",
        ),
        (
            "[{key: seed, value: [1]}]",
            "",
            "axes[0].value: unknown key; did you mean `values`?",
        ),
        (
            "[{key: sed, values: [1]}]",
            "",
            "sed: unknown key; did you mean `seed`?",
        ),
        (
            "[{key: seed, values: [1]}]",
            "groups: [{name: low, languages: [de, fr]}]",
            "groups[0].languages: `fr` is not in `data.languages`",
        ),
        (
            "[{key: seed, values: [1]}]",
            "set: [\"evaluation.tests=[]\"]",
            "config: `evaluation.tests` is empty in the configuration: there would be nothing to compare by",
        ),
        (
            "[{key: seed, values: [{[1]: 2}]}]",
            "",
            "axes[0].values: keys in a value have to be words",
        ),
    ];
    for (axes, more, expected) in table {
        let error = sweep(axes, more).expect_err("it is wrong");
        assert!(error.contains(expected), "{axes} {more}: {error}");
    }
}
