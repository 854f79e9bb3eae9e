//! Goal: the main job end to end, with the real programs: `zipper-launch` starts coordinator, node agents and workers, which
//! talk gRPC and c10d on this machine, train both stages, write checkpoints, evaluate, and end with a table.
//! Method: a tiny Speech-LLM with random weights and real audio files, in a temporary folder.

use std::collections::BTreeSet;
use std::fs;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use procfs::process::Process;
use zipper_tests::{Finished, Fixture, Launched, processes, program, wait_until};

fn launch(fixture: &Fixture, config: &str, run: &str, more: &[&str]) -> Vec<String> {
    let config = fixture.path().join(config).display().to_string();
    let mut arguments = vec![
        "--config".to_owned(),
        config,
        "--run".to_owned(),
        fixture.run_url(run),
    ];
    arguments.extend(more.iter().map(ToString::to_string));
    arguments
}

fn run(arguments: &[String]) -> Finished {
    Launched::run(&arguments.iter().map(String::as_str).collect::<Vec<_>>())
}

fn assert_code(finished: &Finished, code: i32) {
    assert_eq!(
        finished.code,
        Some(code),
        "stdout:\n{}\nstderr:\n{}",
        finished.stdout,
        finished.stderr
    );
}

#[test]
fn a_whole_run_ends_with_a_table_and_everything_on_disk() {
    let fixture = Fixture::new();
    let finished = run(&launch(&fixture, "run.yaml", "run", &["--nodes", "2"]));
    assert_code(&finished, 0);
    for word in ["numbers", "en", "de", "vi", "WER", "CER"] {
        assert!(
            finished.stdout.contains(word),
            "no `{word}` in the table:\n{}",
            finished.stdout
        );
    }
    let steps: Vec<u64> = fixture.losses("run").into_iter().map(|(step, _)| step).collect();
    assert_eq!(
        steps,
        (1..=12).collect::<Vec<_>>(),
        "one line of metrics for each step of both stages"
    );
    let run = fixture.path().join("run");
    for step in [4, 6, 8, 12] {
        let folder = run.join(format!("checkpoints/step-{step:08}"));
        assert!(
            folder.join("MANIFEST.json").exists(),
            "no checkpoint of step {step}"
        );
        assert_eq!(
            folder.join("banks/de.safetensors").exists(),
            step > 6,
            "banks belong to stage 2"
        );
    }
    assert!(run.join("run.yaml").exists() && run.join("eval/table.json").exists());
    eval_repeats_the_figures_of(&fixture);
}

/// `zipper-worker eval` on the last checkpoint gives the figures that the run itself reported.
fn eval_repeats_the_figures_of(fixture: &Fixture) {
    let eval = |more: &[&str]| {
        let output = std::process::Command::new(program("zipper-worker"))
            .args([
                "eval",
                "--run",
                &fixture.run_url("run"),
                "--threads",
                "1",
                "--manifest",
            ])
            .arg(fixture.path().join("corpus/test.jsonl"))
            .args(more)
            .output()
            .expect("zipper-worker can be started");
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        (
            String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr,
            output.status.code(),
        )
    };
    let (document, stderr, code) = eval(&["--json"]);
    assert_eq!(code, Some(0), "{stderr}");
    let document: serde_json::Value =
        serde_json::from_str(&document).expect("one JSON document and nothing else");
    let reported = fs::read(fixture.path().join("run/eval/numbers-step-00000012.json")).expect("a report");
    let reported: serde_json::Value = serde_json::from_slice(&reported).expect("JSON");
    assert_eq!(document["report"], reported["report"]);
    assert_eq!(document["step"], 12);
    let (table, _, _) = eval(&["--checkpoint", "step-00000006"]);
    assert!(table.contains("WER") && table.contains("vi"), "{table}");
    let (_, message, code) = eval(&["--checkpoint", "step-00000099"]);
    assert!(code == Some(2) && message.contains("step-00000099"), "{message}");
}

/// With `runtime.pin_cores` workers on one machine have cores of their own, or share them evenly where there are too few.
#[test]
fn workers_have_cores_of_their_own() {
    let fixture = Fixture::new();
    let cores = std::thread::available_parallelism()
        .expect("there are cores")
        .get();
    let arguments = [
        "--nodes",
        "2",
        "--set",
        "runtime.pin_cores=true",
        "--set",
        "training.align.steps=100000",
    ];
    let arguments = launch(&fixture, "run.yaml", "run", &arguments);
    let running = Launched::start(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
    wait_until("a step is made", || {
        fixture.path().join("run/metrics/train.jsonl").exists()
    });
    let of_workers = processes(&["zipper-worker", "train", &fixture.run_url("run")]);
    let of_workers = of_workers.into_iter().map(|pid| {
        let tasks = Process::new(pid)
            .and_then(|process| process.tasks())
            .expect("it trains");
        // Every thread, libtorch's and tokio's too. Some may end meanwhile.
        let allowed = tasks
            .flatten()
            .filter_map(|task| task.status().ok()?.cpus_allowed_list);
        let allowed: BTreeSet<_> = allowed.collect();
        assert_eq!(allowed.len(), 1, "all threads are on the same cores: {allowed:?}");
        allowed
    });
    let of_workers: Vec<_> = of_workers.collect();
    assert_eq!(of_workers.len(), 2);
    assert_eq!(of_workers[0] == of_workers[1], cores == 1, "{of_workers:?}");
    kill(Pid::from_raw(running.pid().cast_signed()), Signal::SIGTERM).expect("it runs");
    assert_code(&running.wait(), 75);
}

/// Starts the run `run`, kills the worker of node 1 when the first checkpoint is written and `before` is done, and waits for the end.
fn lose_worker_1(fixture: &Fixture, arguments: &[String], before: impl FnOnce()) -> Finished {
    let launched = Launched::start(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
    let checkpoint = fixture.path().join("run/checkpoints/step-00000004/MANIFEST.json");
    wait_until("the first checkpoint is written", || checkpoint.exists());
    before();
    let run_url = fixture.run_url("run");
    let worker = processes(&["zipper-worker", "train", &run_url, "--node-rank\u{0}1"]);
    kill(Pid::from_raw(worker[0]), Signal::SIGKILL).expect("the worker is running");
    let finished = launched.wait();
    wait_until("no process of the run is left", || {
        processes(&[&run_url]).is_empty()
    });
    finished
}

fn assert_says(finished: &Finished, words: &[&str]) {
    for words in words {
        assert!(
            finished.stderr.contains(words),
            "no `{words}` in:\n{}",
            finished.stderr
        );
    }
}

/// Where no worker may be started again, one that is killed ends the run with exit code 1 and its name, and `--resume` goes on
/// from the last checkpoint.
#[test]
fn a_lost_worker_is_named_and_the_run_can_be_resumed() {
    let fixture = Fixture::new();
    fixture.write_config("long.yaml", |text| {
        text.replace("steps: 6,", "steps: 60,")
            .replace("untrained: true", "untrained: false")
    });
    let once = ["--nodes", "2", "--set", "elastic.restarts_per_node=0"];
    let arguments = launch(&fixture, "long.yaml", "run", &once);
    let finished = lose_worker_1(&fixture, &arguments, || ());
    assert_code(&finished, 1);
    assert_says(
        &finished,
        &["worker `node1/0` (rank 1)", "signal 9", "--resume auto"],
    );
    assert_code(&run(&arguments), 0);
    assert_eq!(fixture.losses("run").len(), 120, "every step is there once");
}

/// Nothing outlives a zipper-launch that is killed.
#[test]
fn a_killed_launcher_leaves_no_process_behind() {
    let fixture = Fixture::new();
    fixture.write_config("long.yaml", |text| text.replace("steps: 6,", "steps: 5000,"));
    let arguments = launch(&fixture, "long.yaml", "run", &["--nodes", "2"]);
    let launched = Launched::start(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
    let metrics = fixture.path().join("run/metrics/train.jsonl");
    wait_until("the run makes steps", || metrics.exists());
    let run_url = fixture.run_url("run");
    assert!(
        processes(&[&run_url]).len() >= 6,
        "launcher, coordinator, two agents, two workers"
    );
    launched.kill();
    wait_until("no process of the run is left", || {
        processes(&[&run_url]).is_empty()
    });
}

/// Thread 4 of docs/testing.md. A pre-emption notice ends the run with a checkpoint and exit code 75; called again it goes on from
/// exactly there, among all its checkpoints, keeps its metrics and logs, and has the losses of a run that was not stopped.
#[test]
fn thread_4_a_requeued_run_goes_on_from_its_newest_checkpoint() {
    let fixture = Fixture::new();
    fixture.write_config("long.yaml", |text| {
        text.replace("steps: 6,", "steps: 60,")
            .replace("every_steps: 4", "every_steps: 10")
            .replace("untrained: true", "untrained: false")
    });
    assert_code(
        &run(&launch(&fixture, "long.yaml", "whole", &["--nodes", "2"])),
        0,
    );

    let arguments = launch(&fixture, "long.yaml", "stopped", &["--nodes", "2"]);
    let launched = Launched::start(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
    let metrics = fixture.path().join("stopped/metrics/train.jsonl");
    wait_until("the first metrics are written", || metrics.exists());
    kill(Pid::from_raw(launched.pid() as i32), Signal::SIGUSR1).expect("zipper-launch is running");
    let finished = launched.wait();
    assert_code(&finished, 75);
    let before = fixture.losses("stopped");
    let stopped_at = before.last().expect("some steps were made").0;
    assert!(stopped_at < 120, "the run was over before it was stopped");

    let log = fixture.path().join("stopped/logs/node0-worker0.log");
    let logged = fs::read_to_string(&log).expect("every worker has a log");

    // Another number of workers goes on: nothing of a checkpoint belongs to a rank.
    let resumed = run(&launch(&fixture, "long.yaml", "stopped", &["--nodes", "1"]));
    assert_code(&resumed, 0);
    let from = format!("going on from the checkpoint of step {stopped_at}\n");
    assert!(
        resumed.stderr.contains(&from),
        "no `{from}` in:\n{}",
        resumed.stderr
    );
    let log = fs::read_to_string(&log).expect("it is there still");
    assert!(log.starts_with(&logged) && log.len() > logged.len(), "{log}");
    let (whole, resumed) = (fixture.losses("whole"), fixture.losses("stopped"));
    assert_eq!(whole.len(), resumed.len(), "every step is there once");
    for ((step, whole), (again, resumed)) in whole.iter().zip(&resumed) {
        assert_eq!(step, again);
        let difference = (whole - resumed).abs() / whole;
        assert!(
            difference < 1e-4,
            "step {step} (stopped at {stopped_at}): {whole} and {resumed}"
        );
    }
}

/// A run goes on with the utterances that it was begun with: what it left out because of its audio stays left out when that was mended, and
/// neither other audio that is bad nor another manifest is gone on with. The launches that are refused change nothing.
#[test]
fn a_run_keeps_the_utterances_that_it_was_begun_with() {
    let fixture = Fixture::new();
    fixture.write_config("long.yaml", |text| {
        text.replace("steps: 6,", "steps: 60,")
            .replace("every_steps: 4", "every_steps: 10")
            .replace("untrained: true", "untrained: false")
            .replace("  temperature: 2.0", "  temperature: 2.0\n  on_bad_audio: skip")
    });
    let corpus = fixture.path().join("corpus");
    let spoil = |name: &str, content: &str| {
        let path = corpus.join(name);
        let before = fs::read(&path).expect("the corpus has it");
        fs::write(path, content).expect("the corpus is writable");
        before
    };
    let mend = |name: &str, content: &[u8]| fs::write(corpus.join(name), content).expect("it is writable");
    let first = spoil("train-en-00.wav", "not audio");
    let arguments = launch(&fixture, "long.yaml", "run", &["--nodes", "1"]);
    let launched = Launched::start(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
    let metrics = fixture.path().join("run/metrics/train.jsonl");
    wait_until("the first metrics are written", || metrics.exists());
    kill(Pid::from_raw(launched.pid() as i32), Signal::SIGUSR1).expect("zipper-launch is running");
    assert_code(&launched.wait(), 75);
    let written = || {
        let path = |name: &str| fixture.path().join(format!("run/data/{name}.json"));
        ["skipped", "report"].map(|name| fs::read_to_string(path(name)).expect("it is written"))
    };
    let begun = written();
    assert_eq!(begun[0], r#"["train-en-00"]"#);

    mend("train-en-00.wav", &first);
    let second = spoil("train-en-01.wav", "not audio");
    let refused = run(&arguments);
    assert_code(&refused, 2);
    let why = "utterance `train-en-01`";
    assert!(refused.stderr.contains(why), "{}", refused.stderr);
    mend("train-en-01.wav", &second);
    let manifest = fs::read_to_string(corpus.join("train.jsonl")).expect("the corpus has it");
    let (fewer, _) = manifest.trim_end().rsplit_once('\n').expect("it has lines");
    spoil("train.jsonl", fewer);
    let refused = run(&arguments);
    assert_code(&refused, 2);
    let why = "not those that its newest checkpoint was written with";
    assert!(refused.stderr.contains(why), "{}", refused.stderr);
    mend("train.jsonl", manifest.as_bytes());

    let resumed = run(&arguments);
    assert_code(&resumed, 0);
    let left_out = "stay left out:\n  train-en-00";
    assert!(resumed.stderr.contains(left_out), "{}", resumed.stderr);
    assert_eq!(written(), begun, "it is written once");
}

/// A worker that is started again and finds another manifest than its peers did would draw other batches: the run ends, and says so.
#[test]
fn a_worker_that_finds_another_manifest_ends_the_run() {
    let fixture = Fixture::new();
    fixture.write_config("long.yaml", |text| text.replace("steps: 6,", "steps: 5000,"));
    let arguments = launch(&fixture, "long.yaml", "run", &["--nodes", "2"]);
    let finished = lose_worker_1(&fixture, &arguments, || {
        let path = fixture.path().join("corpus/train.jsonl");
        let manifest = fs::read_to_string(&path).expect("the corpus has it");
        let (fewer, _) = manifest.trim_end().rsplit_once('\n').expect("it has lines");
        fs::write(&path, fewer).expect("the corpus is writable");
    });
    assert_code(&finished, 2);
    assert_says(
        &finished,
        &["worker `node1/0`", "the training data on", "was begun with"],
    );
}

/// `zipper-launch stop` ends a run that it reaches by its store alone, with a checkpoint and exit code 75; what nobody makes is stopped.
#[test]
fn a_run_can_be_stopped_from_elsewhere() {
    let fixture = Fixture::new();
    fixture.write_config("long.yaml", |text| text.replace("steps: 6,", "steps: 5000,"));
    let arguments = launch(&fixture, "long.yaml", "run", &["--nodes", "2"]);
    let launched = Launched::start(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
    let metrics = fixture.path().join("run/metrics/train.jsonl");
    wait_until("the first metrics are written", || metrics.exists());
    let stop = || {
        let finished = Launched::run(&["stop", "--json", "--run", &fixture.run_url("run")]);
        assert_code(&finished, 0);
        serde_json::from_str::<serde_json::Value>(&finished.stdout)
            .expect("one JSON document and nothing else")
    };
    let stopped = stop();
    let finished = launched.wait();
    assert_code(&finished, 75);
    assert!(
        finished.stderr.contains("`zipper-launch stop`"),
        "{}",
        finished.stderr
    );
    assert_eq!(
        (&stopped["was_running"], &stopped["state"]),
        (&true.into(), &"stopped".into())
    );
    assert_eq!(stopped["checkpoint"], stopped["step"], "{stopped}");
    let again = stop();
    assert_eq!(
        (&again["was_running"], &again["step"]),
        (&false.into(), &stopped["step"])
    );

    let nothing = Launched::run(&["stop", "--run", &fixture.run_url("nothing")]);
    assert_code(&nothing, 2);
}

/// What only a worker can find out still ends with exit code 2 and a message that says what to mend.
#[test]
fn faults_of_the_model_directory_are_configuration_errors() {
    let fixture = Fixture::new();
    let expect = |name: &str, nodes: &str, set: &str, words: &[&str]| {
        let finished = run(&launch(
            &fixture,
            "run.yaml",
            name,
            &["--nodes", nodes, "--set", set],
        ));
        assert_code(&finished, 2);
        assert_says(&finished, words);
    };
    let broken = fixture.path().join("broken-llm");
    copy(&fixture.path().join("llm"), &broken);
    let config = fs::read_to_string(broken.join("config.json")).expect("a config.json");
    fs::write(
        broken.join("config.json"),
        config.replace("\"intermediate_size\":40", "\"intermediate_size\":41"),
    )
    .expect("the fixture is writable");
    let set = format!("model.llm.path={}", broken.display());
    // Also where two find it out at the same time.
    expect("shape", "2", &set, &["gate_proj.weight", "[40, 24]", "[41, 24]"]);

    fs::remove_file(broken.join("model.safetensors")).expect("the file was there");
    expect("missing", "1", &set, &["no *.safetensors file", "broken-llm"]);
    expect("rank", "1", "adapter.rank=13", &["adapter.rank", "13", "12"]);
    expect("target", "1", "adapter.targets=[q_prj]", &["q_prj", "q_proj"]);
}

fn copy(from: &std::path::Path, to: &std::path::Path) {
    fs::create_dir_all(to).expect("the fixture is writable");
    for entry in fs::read_dir(from).expect("the folder is there") {
        let entry = entry.expect("it can be listed");
        fs::copy(entry.path(), to.join(entry.file_name())).expect("it can be copied");
    }
}
