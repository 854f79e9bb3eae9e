//! Goal: what cannot become a run is refused before anything is started: exit code 2, a message that says what to mend, nothing on
//! stdout and nothing written into the run.
//!
//! Method: the real program, in a folder with a small corpus of real WAV files, a configuration that would do, and one thing
//! wrong in each case. Model directories are empty: these checks only want them to be there.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use bytes::Bytes;
use tempfile::TempDir;
use tokio::runtime::Runtime;
use zipper_checkpoint::{FORMAT_VERSION, Manifest, RunStore, layout};
use zipper_data::{DurationLimits, corpus_fingerprint, load_corpus};
use zipper_types::{Generation, Stage, Step, WorldSize};

/// `FOLDER` stands for the test's folder.
const CONFIG: &str = "\
name: refused
seed: 3
model:
  encoder: {path: FOLDER/whisper}
  llm: {path: FOLDER/llm}
adapter:
  variant: soft
  rank: 4
data:
  languages: [en, de]
  train: [FOLDER/train.jsonl]
  on_bad_audio: fail
training:
  align: {steps: 2, lr: 1.0e-3}
  zipper: {steps: 2, lr: 1.0e-3}
  batch_audio_seconds: 1
";

/// Seconds of audio in every good file.
const SECONDS: f64 = 0.5;

/// A folder in which a run would be accepted: `run.yaml`, `train.jsonl` of 4 utterances, their audio, model directories.
fn folder() -> TempDir {
    let folder = tempfile::tempdir().expect("a folder can be made");
    let at = folder.path();
    for model in ["whisper", "llm"] {
        fs::create_dir(at.join(model)).expect("the folder is writable");
    }
    write(
        at,
        "run.yaml",
        &CONFIG.replace("FOLDER", &at.display().to_string()),
    );
    for (index, lang) in ["en", "en", "en", "de"].into_iter().enumerate() {
        let name = format!("{lang}-{index}");
        write_wav(&at.join(format!("{name}.wav")));
        add_line(at, &utterance(&name, &format!("{name}.wav"), lang));
    }
    folder
}

/// A line of a manifest.
fn utterance(id: &str, audio: &str, lang: &str) -> String {
    format!(
        r#"{{"id": "{id}", "audio_filepath": "{audio}", "duration": {SECONDS}, "text": "one two", "lang": "{lang}"}}"#
    )
}

fn write_wav(path: &Path) {
    let spec = hound::WavSpec {
        channels: 1,
        sample_rate: 8_000,
        bits_per_sample: 16,
        sample_format: hound::SampleFormat::Int,
    };
    let mut writer = hound::WavWriter::create(path, spec).expect("the folder is writable");
    for sample in 0..(SECONDS * 8_000.0) as i16 {
        writer.write_sample(sample % 40 * 100).expect("the disk has room");
    }
    writer.finalize().expect("the disk has room");
}

fn write(folder: &Path, name: &str, text: &str) {
    let path = folder.join(name);
    let parent = path.parent().expect("files are in the folder");
    fs::create_dir_all(parent).expect("the folder is writable");
    fs::write(path, text).expect("the folder is writable");
}

fn read(folder: &Path, name: &str) -> String {
    fs::read_to_string(folder.join(name)).expect("the file is there")
}

fn add_line(folder: &Path, line: &str) {
    let manifest = fs::read_to_string(folder.join("train.jsonl")).unwrap_or_default();
    write(folder, "train.jsonl", &format!("{manifest}{line}\n"));
}

/// Changes one place of the configuration.
fn edit(folder: &Path, from: &str, to: &str) {
    let text = read(folder, "run.yaml");
    assert!(text.contains(from), "`{from}` is not in run.yaml");
    write(folder, "run.yaml", &text.replacen(from, to, 1));
}

/// Leaves a run in `run`, begun with the configuration as it is now.
fn begin(folder: &Path) {
    let config = zipper_config::load(&folder.join("run.yaml"), &[]).expect("the configuration would do");
    write(folder, "run/run.yaml", &config.to_yaml());
}

/// Leaves in the run a checkpoint with nothing but this `state.json`.
fn save(folder: &Path, state: &str) {
    let run = folder.join("run").display().to_string();
    let checkpoints = RunStore::open(&run).expect("it is a folder").checkpoints();
    let state = Bytes::copy_from_slice(state.as_bytes());
    let saved = async {
        let part = checkpoints.put_part(Step(2), "", layout::STATE, state).await?;
        let manifest = Manifest {
            format_version: FORMAT_VERSION,
            step: Step(2),
            stage: Stage::Align,
            created: "2026-01-02T03:04:05Z".to_owned(),
            world_size: WorldSize(1),
            generation: Generation(1),
            parts: vec![part],
        };
        checkpoints.publish(&manifest).await
    };
    let runtime = Runtime::new().expect("threads can be started");
    runtime.block_on(saved).expect("the folder is writable");
}

/// JSON with the fingerprint of the corpus as it is now, as in `state.json` and `data/report.json`.
fn with_fingerprint(folder: &Path) -> String {
    let config = zipper_config::load(&folder.join("run.yaml"), &[]).expect("the configuration would do");
    let data = &config.data;
    let corpus = load_corpus(&data.train, &data.languages, DurationLimits::from(data));
    let utterances = corpus.expect("the manifest would do").utterances;
    let fingerprint = corpus_fingerprint(&data.languages, &utterances);
    format!(r#"{{"corpus_fingerprint": "{fingerprint}"}}"#)
}

fn launch(folder: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_zipper-launch"))
        .args(arguments)
        .current_dir(folder)
        .output()
        .expect("zipper-launch can be started")
}

/// Every file below `folder/run`, and what is in it.
fn files_of_run(folder: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut files = Vec::new();
    let mut folders = vec![folder.join("run")];
    while let Some(next) = folders.pop() {
        for entry in fs::read_dir(next).into_iter().flatten() {
            let path = entry.expect("the folder can be read").path();
            if path.is_dir() {
                folders.push(path);
            } else {
                let content = fs::read(&path).expect("the file can be read");
                files.push((path, content));
            }
        }
    }
    files.sort();
    files
}

/// One thing that is wrong.
struct Case {
    shows: &'static str,
    /// Makes it wrong, in a folder that was right.
    spoil: fn(&Path),
    /// Arguments after `--config run.yaml --run run`.
    arguments: &'static [&'static str],
    /// What stderr holds; `FOLDER` stands for the test's folder.
    says: &'static [&'static str],
}

/// Launches every case and tells all that went wrong, so that one run of the test shows everything.
fn all_refused(cases: &[Case]) {
    let mut faults = Vec::new();
    for Case {
        shows,
        spoil,
        arguments,
        says,
    } in cases
    {
        let folder = folder();
        let at = folder.path();
        spoil(at);
        let before = files_of_run(at);
        let mut all = vec!["--config", "run.yaml", "--run", "run"];
        all.extend(*arguments);
        let output = launch(at, &all);
        let stderr = String::from_utf8_lossy(&output.stderr).replace(&at.display().to_string(), "FOLDER");
        let mut fault = |what: String| faults.push(format!("{shows}: {what}; stderr:\n{stderr}"));
        if output.status.code() != Some(2) {
            fault(format!("ended with {}", output.status));
        }
        for text in says.iter().filter(|text| !stderr.contains(**text)) {
            fault(format!("does not say `{text}`"));
        }
        if !output.stdout.is_empty() {
            fault(format!("stdout: {}", String::from_utf8_lossy(&output.stdout)));
        }
        let after = files_of_run(at);
        if after != before {
            let paths: Vec<PathBuf> = after.into_iter().map(|(path, _)| path).collect();
            fault(format!("something else is in the run now: {paths:?}"));
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n\n"));
}

#[test]
fn thread_3_an_allocation_without_slurms_commands_is_refused() {
    // Goal: where a job's script calls zipper-launch inside a container, it says so instead of taking one machine for the cluster.
    let folder = folder();
    let output = Command::new(env!("CARGO_BIN_EXE_zipper-launch"))
        .args(["--config", "run.yaml", "--run", "run"])
        .env("SLURM_JOB_ID", "7")
        .env("PATH", "/nonexistent")
        .current_dir(folder.path())
        .output()
        .expect("zipper-launch can be started");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{stderr}");
    assert!(
        stderr.contains("`scontrol` cannot be started") && stderr.contains("inside a container"),
        "{stderr}"
    );
    assert!(files_of_run(folder.path()).is_empty());
}

#[test]
fn usage_errors_are_refused() {
    // Goal: what clap refuses ends with the exit code that the help promises, and names the argument.
    let folder = folder();
    for (arguments, says) in [
        (&[][..], "--config"),
        (&["--nodes", "2"], "--config"),
        (&["--config", "run.yaml", "--worker", "2"], "--worker"),
        (&["--config", "run.yaml", "--nodes", "0"], "--nodes"),
        (&["--config", "run.yaml", "--resume", "maybe"], "maybe"),
        (&["checkpoints"], "--run"),
    ] {
        let output = launch(folder.path(), arguments);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {stderr}");
        assert!(
            stderr.starts_with("error: ") && stderr.contains(says),
            "{arguments:?}: {stderr}"
        );
    }
}

#[test]
fn configurations_that_cannot_be_used_are_refused() {
    all_refused(&[
        Case {
            shows: "an unknown key, with the key that was meant",
            spoil: |at| edit(at, "  variant:", "  varient:"),
            arguments: &[],
            says: &[
                "`run.yaml`",
                "adapter.varient: unknown key",
                "did you mean `variant`?",
            ],
        },
        Case {
            shows: "a value of the wrong type",
            spoil: |at| edit(at, "rank: 4", "rank: four"),
            arguments: &[],
            says: &["adapter.rank: ", "\"four\""],
        },
        Case {
            shows: "both of them in one message",
            spoil: |at| {
                edit(at, "  variant:", "  varient:");
                edit(at, "rank: 4", "rank: four");
            },
            arguments: &[],
            says: &["has 2 problems", "adapter.varient: unknown key", "adapter.rank: "],
        },
        Case {
            shows: "a key, a value and a folder in one message",
            spoil: |at| {
                edit(at, "  variant:", "  varient:");
                edit(at, "rank: 4", "rank: 0");
                fs::remove_dir(at.join("llm")).expect("it is there");
            },
            arguments: &[],
            says: &[
                "has 3 problems",
                "adapter.varient: unknown key",
                "adapter.rank: 0 is not above 0",
                "model.llm.path: `FOLDER/llm` does not exist",
                "hint: paths are relative",
            ],
        },
        Case {
            shows: "no languages",
            spoil: |at| edit(at, "[en, de]", "[]"),
            arguments: &[],
            says: &["data.languages: empty", "at least one language"],
        },
        Case {
            shows: "text that is not YAML",
            spoil: |at| edit(at, "[en, de]", "[en, de"),
            arguments: &[],
            says: &["`run.yaml`: not YAML"],
        },
        Case {
            shows: "a configuration file that is not there",
            spoil: |at| fs::remove_file(at.join("run.yaml")).expect("it is there"),
            arguments: &[],
            says: &["error: `run.yaml`: cannot be read"],
        },
        Case {
            shows: "model directories that are not there, all of them",
            spoil: |at| {
                fs::remove_dir(at.join("whisper")).expect("it is there");
                fs::remove_dir(at.join("llm")).expect("it is there");
            },
            arguments: &[],
            says: &[
                "model.encoder.path: `FOLDER/whisper` does not exist",
                "model.llm.path: `FOLDER/llm` does not exist",
                "hint: ",
            ],
        },
        Case {
            shows: "an override without a value",
            spoil: |_| {},
            arguments: &["--set", "training.align.lr"],
            says: &["--set training.align.lr: expected key.path=value"],
        },
        Case {
            shows: "an override of an unknown key",
            spoil: |_| {},
            arguments: &["--set", "training.align.warmup=1"],
            says: &[
                "training.align.warmup: unknown key",
                "did you mean `warmup_steps`?",
            ],
        },
        Case {
            shows: "an override out of range",
            spoil: |_| {},
            arguments: &["--set", "adapter.dropout=1.5"],
            says: &["adapter.dropout: 1.5 is not in [0, 1)"],
        },
    ]);
}

#[test]
fn manifests_that_cannot_be_used_are_refused() {
    all_refused(&[
        Case {
            shows: "bad lines of a manifest, each with its place",
            spoil: |at| {
                add_line(at, "{\"id\": ");
                add_line(
                    at,
                    &utterance("late", "en-0.wav", "en").replace("\"text\"", "\"txt\""),
                );
            },
            arguments: &[],
            says: &[
                "2 problems in the manifests",
                "FOLDER/train.jsonl:5: not a JSON object",
                "FOLDER/train.jsonl:6: missing key `text` (found `txt`)",
            ],
        },
        Case {
            shows: "a language that the run has not",
            spoil: |at| add_line(at, &utterance("new", "en-0.wav", "fr")),
            arguments: &[],
            says: &["FOLDER/train.jsonl:5: unknown language `fr`", "en, de"],
        },
        Case {
            shows: "no utterances",
            spoil: |at| write(at, "train.jsonl", ""),
            arguments: &[],
            says: &["`FOLDER/train.jsonl` has no utterances", "error: "],
        },
        Case {
            shows: "a manifest that is not there",
            spoil: |at| fs::remove_file(at.join("train.jsonl")).expect("it is there"),
            arguments: &[],
            says: &["data.train[0]: `FOLDER/train.jsonl` does not exist"],
        },
    ]);
}

#[test]
fn bad_audio_and_too_many_workers_are_refused() {
    all_refused(&[
        Case {
            shows: "audio that is not audio, is not there, or has another length: each by its utterance",
            spoil: |at| {
                write(at, "en-1.wav", "not audio");
                fs::remove_file(at.join("en-2.wav")).expect("it is there");
                let manifest = read(at, "train.jsonl");
                let (head, last) = manifest.trim_end().rsplit_once('\n').expect("it has lines");
                let last = last.replace("\"duration\": 0.5", "\"duration\": 7.25");
                write(at, "train.jsonl", &format!("{head}\n{last}\n"));
            },
            arguments: &[],
            says: &[
                "3 of 4 utterances have bad audio",
                "utterance `en-1`: `FOLDER/en-1.wav`",
                "utterance `en-2`: `FOLDER/en-2.wav`",
                "utterance `de-3`: `FOLDER/de-3.wav`: the manifest states 7.25 s, but the file has 0.50 s",
                "hint: mend or remove them, or leave them out with `--set data.on_bad_audio=skip`",
            ],
        },
        Case {
            shows: "bad audio in a validation set too",
            spoil: |at| {
                write(at, "validation.jsonl", &utterance("held-out", "gone.wav", "en"));
            },
            arguments: &["--set", "data.validation=[validation.jsonl]"],
            says: &["1 of 5 utterances have bad audio", "utterance `held-out`: "],
        },
        Case {
            shows: "nothing left after bad audio is left out",
            spoil: |at| {
                for name in ["en-0", "en-1", "en-2", "de-3"] {
                    write(at, &format!("{name}.wav"), "not audio");
                }
            },
            arguments: &["--set", "data.on_bad_audio=skip"],
            says: &[
                "warning: 4 of 4 utterances have bad audio and are left out",
                "error: ",
            ],
        },
        Case {
            shows: "more workers than the batch has utterances for",
            spoil: |_| {},
            arguments: &["--nodes", "3", "--workers-per-node", "7"],
            says: &["error: ", "21 workers", "at most 2 workers"],
        },
        Case {
            shows: "more workers than can be counted",
            spoil: |_| {},
            arguments: &["--nodes", "4000000000", "--workers-per-node", "4000000000"],
            says: &["error: ", "at most 2 workers"],
        },
        Case {
            shows: "what is left out of a good corpus, by its reason (the workers stop the run here)",
            spoil: |at| {
                add_line(at, &utterance("en-0", "en-0.wav", "en"));
                add_line(at, &utterance("mute", "en-1.wav", "en").replace("one two", " "));
            },
            arguments: &["--nodes", "64"],
            says: &[
                "Training data:\nlanguage  utterances",
                "left out, repeated id: 1 (en-0)",
                "left out, empty text: 1 (mute)",
            ],
        },
    ]);
}

#[test]
fn runs_that_cannot_begin_or_go_on_are_refused() {
    all_refused(&[
        Case {
            shows: "--resume never where there is a run",
            spoil: begin,
            arguments: &["--resume", "never"],
            says: &[
                "--resume never: there is a run in `file://FOLDER/run` already",
                "hint: ",
            ],
        },
        Case {
            shows: "--resume require where there is none",
            spoil: |_| {},
            arguments: &["--resume", "require"],
            says: &[
                "--resume require: there is no run in `file://FOLDER/run`",
                "hint: ",
            ],
        },
        Case {
            shows: "--resume require where there is no checkpoint yet",
            spoil: begin,
            arguments: &["--resume", "require"],
            says: &[
                "--resume require: the run in `file://FOLDER/run` has no checkpoint to resume from",
                "hint: ",
            ],
        },
        Case {
            shows: "--resume require where every checkpoint is damaged; they stay as they are",
            spoil: |at| {
                begin(at);
                write(at, "run/checkpoints/step-00000002/MANIFEST.json", "{}");
            },
            arguments: &["--resume", "require"],
            says: &[
                "warning: the checkpoint of step 2 is damaged",
                "--resume require: the run in `file://FOLDER/run` has no checkpoint to resume from",
            ],
        },
        Case {
            shows: "damaged checkpoints stay too when something else is refused",
            spoil: |at| {
                begin(at);
                write(at, "run/checkpoints/step-00000002/MANIFEST.json", "{}");
            },
            arguments: &["--nodes", "64"],
            says: &[
                "warning: the checkpoint of step 2 is damaged",
                "error: ",
                "64 workers",
            ],
        },
        Case {
            shows: "checkpoints of a newer Zipper",
            spoil: |at| {
                begin(at);
                write(
                    at,
                    "run/checkpoints/step-00000002/MANIFEST.json",
                    r#"{"format_version": 1000}"#,
                );
            },
            arguments: &[],
            says: &["has format version 1000", "use the version that wrote it"],
        },
        Case {
            shows: "a run.yaml in the run that somebody damaged",
            spoil: |at| write(at, "run/run.yaml", "name: [refused"),
            arguments: &[],
            says: &[
                "file://FOLDER/run/run.yaml",
                "not YAML",
                "hint: no run can go on from there",
            ],
        },
    ]);
}

/// Leaves a run that leaves an utterance out because of its audio.
fn begin_without_en_1(folder: &Path) {
    edit(folder, "on_bad_audio: fail", "on_bad_audio: skip");
    begin(folder);
    write(folder, "run/data/skipped.json", r#"["en-1"]"#);
}

#[test]
fn other_data_than_the_run_was_begun_with_are_refused() {
    all_refused(&[
        Case {
            shows: "audio that is bad by now, beside that of what the run leaves out",
            spoil: |at| {
                begin_without_en_1(at);
                write(at, "en-1.wav", "not audio");
                write(at, "en-2.wav", "not audio");
            },
            arguments: &[],
            says: &[
                "error: 1 of 4 utterances have bad audio, and the run in `file://FOLDER/run` does not leave them out:\n  utterance \
                 `en-2`: `FOLDER/en-2.wav`",
                "hint: mend the files",
            ],
        },
        Case {
            shows: "what was left out stays so, although its audio is good by now (the workers stop the run here)",
            spoil: begin_without_en_1,
            arguments: &["--nodes", "64"],
            says: &[
                "warning: utterances that this run leaves out because of their audio: 1",
                "warning: 1 of them have good audio by now, and stay left out:\n  en-1\n",
                "64 workers",
            ],
        },
        Case {
            shows: "a manifest that was edited since the run was begun",
            spoil: |at| {
                begin(at);
                write(at, "run/data/skipped.json", "[]");
                write(at, "run/data/report.json", &with_fingerprint(at));
                add_line(at, &utterance("new", "en-0.wav", "en"));
            },
            arguments: &[],
            says: &[
                "error: the training data of the run in `file://FOLDER/run` are not those that it was begun with",
                "hint: give them as they were",
            ],
        },
        Case {
            shows: "a manifest that was edited since a checkpoint was written, where that is all that there is",
            spoil: |at| {
                begin(at);
                save(at, &with_fingerprint(at));
                add_line(at, &utterance("new", "en-0.wav", "en"));
            },
            arguments: &[],
            says: &[
                "error: the training data of the run in `file://FOLDER/run` are not those that its newest checkpoint was written with",
            ],
        },
        Case {
            shows: "the same data may go on (the workers stop the run here)",
            spoil: |at| {
                begin(at);
                write(at, "run/data/skipped.json", "[]");
                write(at, "run/data/report.json", &with_fingerprint(at));
                save(at, &with_fingerprint(at));
            },
            arguments: &["--nodes", "64"],
            says: &["64 workers"],
        },
        Case {
            shows: "earlier versions wrote no fingerprint: nothing is compared (the workers stop the run here)",
            spoil: |at| {
                begin(at);
                write(at, "run/data/skipped.json", "[]");
                write(at, "run/data/report.json", "{}");
                save(at, "{}");
                add_line(at, &utterance("new", "en-0.wav", "en"));
            },
            arguments: &["--nodes", "64"],
            says: &["64 workers"],
        },
    ]);
}

#[test]
fn other_configurations_are_refused_unless_they_train_the_same() {
    all_refused(&[
        Case {
            shows: "a run begun with another configuration, and every difference",
            spoil: begin,
            arguments: &[
                "--set",
                "seed=4",
                "--set",
                "training.zipper.lr=0.5",
                "--set",
                "data.languages=[en]",
            ],
            says: &[
                "the run in `file://FOLDER/run` was begun with another configuration",
                "\n  - seed: 3\n  + seed: 4\n",
                "\n  - training.zipper.lr: 0.001\n  + training.zipper.lr: 0.5\n",
                "\n  - data.languages: [\"en\",\"de\"]\n  + data.languages: [\"en\"]\n",
                "hint: undo the changes, or choose another `--run` for them",
            ],
        },
        Case {
            shows: "what says where and how the run is made may change and is shown (the workers stop the run here)",
            spoil: begin,
            arguments: &[
                "--set",
                "runtime.grace=30s",
                "--set",
                "checkpoint.keep_last=7",
                "--set",
                "evaluation.tests=[{name: held-out, manifest: train.jsonl}]",
                "--backend",
                "gloo",
                "--nodes",
                "64",
            ],
            says: &[
                "This launch differs from the run's configuration (- in the run, + now):\n  - checkpoint.keep_last: 3\n  + \
                 checkpoint.keep_last: 7\n",
                "  - evaluation.tests: []\n  + evaluation.tests: [{",
                "  - runtime.backend: \"auto\"\n  + runtime.backend: \"gloo\"\n",
                "  - runtime.grace: \"1m\"\n  + runtime.grace: \"30s\"\n",
                "error: ",
                "64 workers",
            ],
        },
        Case {
            shows: "of mixed changes only those that may not be made are refused",
            spoil: begin,
            arguments: &["--set", "seed=4", "--set", "runtime.grace=30s"],
            says: &[
                "begun with another configuration (- in the run, + now):\n  - seed: 3\n  + seed: 4\n\nhint: ",
            ],
        },
    ]);
}

#[test]
fn a_run_goes_on_with_its_own_configuration() {
    // Goal: where the file is not at hand the run's own is taken, with the same checks of what may change; and only a run that is
    // there has one. Method: 64 nodes are refused after the configuration was read.
    let folder = folder();
    let at = folder.path();
    let refused = |arguments: &[&str]| {
        let output = launch(at, &[&["--run", "run"], arguments].concat());
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {stderr}");
        stderr
    };
    let absent = refused(&[]);
    assert!(
        absent.contains("there is no run in `file://") && absent.contains("`--config FILE`"),
        "{absent}"
    );
    begin(at);
    fs::remove_file(at.join("run.yaml")).expect("it is there");
    let taken = refused(&["--nodes", "64"]);
    assert!(
        taken.contains("Training data:") && taken.contains("64 workers") && !taken.contains("differs"),
        "{taken}"
    );
    let changed = refused(&["--set", "seed=4"]);
    assert!(changed.contains("  - seed: 3\n  + seed: 4\n"), "{changed}");
    fs::remove_dir(at.join("llm")).expect("it is empty");
    let gone = refused(&[]);
    assert!(
        gone.contains("model.llm.path") && gone.contains("make them available here"),
        "{gone}"
    );
    let both = refused(&["--set", "adapter.rnk=4"]);
    assert!(
        both.contains("adapter.rnk: unknown key") && both.contains("model.llm.path"),
        "{both}"
    );
}

#[test]
fn run_urls_that_cannot_be_used_are_refused() {
    // Goal: a place that no run can be kept in is said before the audio is read.
    let folder = folder();
    for (url, says) in [
        ("ftp://host/run", "unknown scheme `ftp`"),
        ("train.jsonl", "it is a file, not a directory"),
    ] {
        let output = launch(folder.path(), &["--config", "run.yaml", "--run", url]);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{url}: {stderr}");
        assert!(stderr.contains(says), "{url}: {stderr}");
    }
}

#[test]
fn a_run_without_checkpoints_lists_none() {
    // Goal: the list of nothing is a list, for people and for programs, and no failure.
    let folder = tempfile::tempdir().expect("a folder can be made");
    let list = |arguments: &[&str]| {
        let output = launch(
            folder.path(),
            &[&["checkpoints", "--run", "."], arguments].concat(),
        );
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(0), "{arguments:?}: {stderr}");
        String::from_utf8(output.stdout).expect("lists are UTF-8")
    };
    let table = list(&[]);
    assert!(
        table.contains("checkpoint") && !table.contains("step-"),
        "{table}"
    );
    for arguments in [&["--json"][..], &["--json", "--verify"]] {
        let document: serde_json::Value = serde_json::from_str(&list(arguments)).expect("one JSON document");
        assert_eq!(document, serde_json::json!({"checkpoints": [], "newest": null}));
    }
}
