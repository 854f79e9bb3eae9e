//! Goal: a worker that is lost in the middle of training is named, with the operation at which the others missed it; where it may
//! not be started again the run ends with that message, flight records stay in the run, and no process is left.
//! Method: the real programs, three workers, one of which gets a signal at whatever it is doing.

use std::fs;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::sys::stat::Mode;
use nix::unistd::{Pid, mkfifo};
use zipper_tests::{Finished, Fixture, Launched, processes, wait_until};

/// Starts a long run with the settings `more`, sends `signal` to the worker of `node`, which is its rank, in the middle of it, and
/// waits for its end; returns it with how long that took.
fn lose(node: u32, fixture: &Fixture, signal: Signal, more: &[&str]) -> (Finished, Duration) {
    fixture.write_config("long.yaml", |text| {
        text.replace("steps: 6,", "steps: 5000,")
            .replace("untrained: true", "untrained: false")
    });
    let config = fixture.path().join("long.yaml").display().to_string();
    let run = fixture.run_url("run");
    let mut arguments = vec!["--nodes", "3", "--config", &config, "--run", &run];
    arguments.extend(["--set", "elastic.restarts_per_node=0"]);
    arguments.extend(more.iter().flat_map(|set| ["--set", set]));
    let launched = Launched::start(&arguments);
    let checkpoint = fixture.path().join("run/checkpoints/step-00000004/MANIFEST.json");
    wait_until("the first checkpoint is written", || checkpoint.exists());
    let worker = processes(&["zipper-worker", "train", &run, &format!("--node-rank\u{0}{node}")]);
    kill(Pid::from_raw(worker[0]), signal).expect("the worker is running");
    let since = Instant::now();
    let finished = launched.wait();
    let took = since.elapsed();
    wait_until("no process of the run is left", || processes(&[&run]).is_empty());
    (finished, took)
}

fn assert_named(node: u32, finished: &Finished, fixture: &Fixture, cause: &str) {
    let name = format!("worker `node{node}/0` (rank {node})");
    let stderr = &finished.stderr;
    assert_eq!(finished.code, Some(1), "{stderr}");
    for words in [
        &format!("error: {name} on "),
        cause,
        "it had completed step ",
        "So the collective operation `",
        " of step ",
        " had come to it",
        "`flight/generation-1` of the run",
    ] {
        assert!(stderr.contains(words), "no `{words}` in:\n{stderr}");
    }
    for survivor in (0..3).filter(|&rank| rank != node) {
        let log = fixture
            .path()
            .join(format!("run/logs/node{survivor}-worker0.log"));
        let log = fs::read_to_string(log).expect("every worker has a log");
        assert!(
            log.contains(&format!("the run ended: {name}")),
            "rank {survivor} does not know why it ends:\n{log}"
        );
        let record = fixture
            .path()
            .join(format!("run/flight/generation-1/rank-{survivor}.json"));
        let record = fs::read(&record).unwrap_or_else(|error| panic!("{}: {error}\n{log}", record.display()));
        let record: serde_json::Value = serde_json::from_slice(&record).expect("JSON");
        assert!(!record.is_null(), "a flight record has content");
    }
}

#[test]
fn a_killed_worker_is_named_by_everyone() {
    let fixture = Fixture::new();
    let (finished, _) = lose(1, &fixture, Signal::SIGKILL, &[]);
    assert_named(1, &finished, &fixture, " was ended by signal 9;");
}

/// Rank 0 serves the store in which ranks look for each other: without it they find out all the same.
#[test]
fn a_killed_rank_0_is_named_by_everyone() {
    let fixture = Fixture::new();
    let (finished, _) = lose(0, &fixture, Signal::SIGKILL, &[]);
    assert_named(0, &finished, &fixture, " was ended by signal 9;");
}

/// A stopped process keeps its connections, so only the lack of its heartbeats tells; the others wait in a collective whose
/// deadline is far away, and are freed from it.
#[test]
fn a_stopped_worker_is_found_by_its_missing_heartbeats() {
    let fixture = Fixture::new();
    let settings = ["runtime.heartbeat_timeout=3s", "runtime.collective_timeout=50s"];
    let (finished, took) = lose(1, &fixture, Signal::SIGSTOP, &settings);
    assert_named(1, &finished, &fixture, ": no heartbeat for ");
    assert!(
        took < Duration::from_secs(50),
        "the collective's deadline passed first: {took:?}"
    );
}

/// Thread 2 of docs/testing.md. Where heartbeats may be missing for longer than a collective may take, the collective's deadline
/// tells, and says who did not come to which operation.
#[test]
fn thread_2_a_stopped_worker_is_named_when_a_collective_times_out() {
    let fixture = Fixture::new();
    let settings = [
        "runtime.heartbeat_timeout=100s",
        "runtime.collective_timeout=3s",
        // It lives, so it is waited for before it is given up.
        "elastic.regroup_timeout=10s",
    ];
    let (finished, took) = lose(1, &fixture, Signal::SIGSTOP, &settings);
    assert_named(1, &finished, &fixture, " did not come");
    assert!(
        took < Duration::from_secs(100),
        "heartbeats told of it first: {took:?}"
    );
}

/// Heartbeats go on, and a file is opened that never opens, as on a mount that is dead: no collective misses the worker, and no step. It is
/// named and replaced, and the evaluation is made.
#[test]
fn a_worker_that_hangs_in_an_evaluation_is_replaced() {
    let fixture = Fixture::new();
    let config = fixture.write_config("long.yaml", |text| {
        text.replace("steps: 6,", "steps: 100,")
            .replace("untrained: true", "untrained: false")
            .replace("no_audio_control: true", "no_audio_control: false")
    });
    let config = config.display().to_string();
    let run = fixture.run_url("run");
    let mut arguments = vec!["--nodes", "2", "--config", &config, "--run", &run];
    for set in [
        "model.encoder.cache=null",
        "data.validation=[]",
        "runtime.first_collective_timeout=20s",
        "elastic.hang_min=5s",
    ] {
        arguments.extend(["--set", set]);
    }
    let launched = Launched::start(&arguments);
    let at = |name: &str| fixture.path().join(name);
    let checkpoint = at("run/checkpoints/step-00000004/MANIFEST.json");
    wait_until("the first checkpoint is written", || checkpoint.exists());
    // zipper-launch has read all audio by now.
    let (audio, kept, pipe) = (
        at("corpus/test-en-00.wav"),
        at("corpus/kept.wav"),
        at("corpus/pipe"),
    );
    fs::copy(&audio, &kept).expect("the corpus is there");
    mkfifo(&pipe, Mode::S_IRUSR | Mode::S_IWUSR).expect("the folder is writable");
    fs::rename(&pipe, &audio).expect("the folder is writable");
    let log = at("run/logs/coordinator.log");
    wait_until("the hang is found", || {
        fs::read_to_string(&log).is_ok_and(|log| log.contains("nothing was decoded for"))
    });
    fs::rename(&kept, &audio).expect("the folder is writable");
    let finished = launched.wait();
    let stderr = &finished.stderr;
    assert_eq!(finished.code, Some(0), "{stderr}");
    assert!(
        stderr.contains("nothing was decoded for") && stderr.contains(" lives, but does not get on: "),
        "{stderr}"
    );
    assert!(at("run/eval/table.json").exists());
}
