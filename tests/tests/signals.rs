//! Goal: a signal to any process of a run stops the whole run with a checkpoint, from which the same command goes on; a second Ctrl-C
//! waits for nobody. `--json` says how it ended.
//! Method: the real programs; one of them does not answer any more when it comes to the second Ctrl-C.

use std::fs;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use zipper_tests::{Finished, Fixture, Launched, processes, wait_until};

/// A run on two nodes that would go on for hours.
struct Endless {
    fixture: Fixture,
    config: String,
    url: String,
}

impl Endless {
    fn new() -> Self {
        let fixture = Fixture::new();
        let config = fixture.write_endless_config(1_000_000);
        let url = fixture.run_url("run");
        Self {
            config: config.display().to_string(),
            fixture,
            url,
        }
    }

    /// Starts it, or goes on with it, and waits until steps are made.
    fn launch(&self) -> Launched {
        let arguments = [
            "--nodes",
            "2",
            "--config",
            &self.config,
            "--run",
            &self.url,
            "--json",
        ];
        let before = self.last_step();
        let launched = Launched::start(&arguments);
        wait_until("steps are made", || self.last_step() > before);
        launched
    }

    /// The last step of which there are metrics.
    fn last_step(&self) -> u64 {
        let lines = fs::read_to_string(self.fixture.path().join("run/metrics/train.jsonl"));
        let lines = lines.unwrap_or_default();
        // The last line may be half written.
        let steps = lines.lines().filter_map(|line| {
            let line: serde_json::Value = serde_json::from_str(line).ok()?;
            line["step"].as_u64()
        });
        steps.max().unwrap_or(0)
    }

    fn newest_checkpoint(&self) -> Option<String> {
        let folders = fs::read_dir(self.fixture.path().join("run/checkpoints")).ok()?;
        let names = folders.filter_map(|folder| folder.ok()?.file_name().into_string().ok());
        names.max()
    }

    /// The processes of the run that were started with these words.
    fn processes(&self, words: &[&str]) -> Vec<i32> {
        let words: Vec<&str> = words.iter().copied().chain([self.url.as_str()]).collect();
        processes(&words)
    }

    fn assert_ended(&self, finished: &Finished, code: i32, words: &str) {
        let stderr = &finished.stderr;
        assert_eq!(finished.code, Some(code), "{stderr}");
        assert!(stderr.contains(words), "no `{words}` in:\n{stderr}");
        let document: serde_json::Value =
            serde_json::from_str(&finished.stdout).expect("stdout is one JSON document");
        assert_eq!(document["outcome"], if code == 75 { "stopped" } else { "failed" });
        assert_eq!(document["run"], self.url);
        let reason = document["reason"].as_str().expect("a text");
        assert!(reason.contains(words), "no `{words}` in: {document}");
        wait_until("no process of the run is left", || self.processes(&[]).is_empty());
    }
}

fn send(process: i32, signal: Signal) {
    kill(Pid::from_raw(process), signal).expect("the process is there");
}

#[test]
fn a_signal_to_any_process_stops_the_run_with_a_checkpoint() {
    let endless = Endless::new();
    let mut before = None;
    for (process, words, reason) in [
        ("a worker", ["zipper-worker", "train"], "was asked to stop"),
        (
            "an agent",
            ["zipper-launch", "agent"],
            "SIGTERM to the agent of node ",
        ),
    ] {
        let launched = endless.launch();
        let found = endless.processes(&words);
        assert_eq!(found.len(), 2, "{process} on each node");
        send(found[1], Signal::SIGTERM);
        endless.assert_ended(&launched.wait(), 75, reason);
        let checkpoint = endless.newest_checkpoint();
        assert!(checkpoint > before, "{process}: {checkpoint:?} after {before:?}");
        before = checkpoint;
    }
}

#[test]
fn a_second_ctrl_c_ends_a_run_whose_worker_is_stuck() {
    let endless = Endless::new();
    let run = endless.launch();
    let workers = endless.processes(&["zipper-worker", "train"]);
    send(workers[0], Signal::SIGSTOP);
    let launcher = run.pid() as i32;
    send(launcher, Signal::SIGINT);
    // Signals of a kind that are not fetched yet are one signal.
    wait_until("the first one is fetched", || {
        run.said().contains("Ctrl-C once more ends the run at once")
    });
    let running = endless.processes(&["zipper-launch", "--nodes"]);
    assert_eq!(
        running,
        [launcher],
        "after the first one it waits for a checkpoint"
    );
    send(launcher, Signal::SIGINT);
    endless.assert_ended(&run.wait(), 1, "ended by a second Ctrl-C");
}
