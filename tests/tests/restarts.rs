//! Goal: what fails again and again is started again as often as the configuration allows and no more, however quickly it comes
//! back and whoever else is lost meanwhile; the others never hang for it, and the run's end says who failed and how.
//! Method: the real programs, whose processes are killed until the budgets are used up.

use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;
use zipper_proto::v1::GenerationFormed;
use zipper_proto::v1::watch_response::Event;
use zipper_tests::faults::{Ended, LiveRun};
use zipper_tests::{Fixture, processes, program};

/// A run that would go on for hours, and where it is.
struct Endless {
    fixture: Fixture,
    output: TempDir,
    run: LiveRun,
}

impl Endless {
    fn start(nodes: &str, settings: &[&str]) -> Self {
        let fixture = Fixture::new();
        let config = fixture.write_endless_config(50);
        let output = tempfile::tempdir().expect("a temporary folder can be made");
        let url = fixture.run_url("run");
        let mut command = std::process::Command::new(program("zipper-launch"));
        command.args(["--nodes", nodes, "--run", &url]).arg("--config");
        command.arg(config).current_dir(output.path());
        let settings = ["elastic.restart_backoff=200ms"].iter().chain(settings);
        command.args(settings.flat_map(|setting| ["--set", setting]));
        let run = LiveRun::start(&mut command, &url, output.path()).unwrap();
        Self { fixture, output, run }
    }

    /// Waits, a minute at most, until `found` has something.
    async fn wait_for<T>(&self, what: &str, mut found: impl FnMut(&LiveRun) -> Option<T>) -> T {
        let started = Instant::now();
        loop {
            if let Some(found) = found(&self.run) {
                return found;
            }
            let waited = started.elapsed();
            assert!(
                waited < Duration::from_mins(1),
                "waited {waited:?} until {what}: {}",
                self.stderr()
            );
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Kills a process of the run, and returns its successor as soon as there is one.
    async fn kill_until_it_is_back(&self, what: &str, process: impl Fn(&LiveRun) -> Option<i32>) -> i32 {
        let killed = self.wait_for(&format!("{what} is there"), &process).await;
        kill(Pid::from_raw(killed), Signal::SIGKILL).expect("it is there");
        let other = |run: &LiveRun| process(run).filter(|process| *process != killed);
        self.wait_for(&format!("{what} is there again"), other).await
    }

    /// Waits until `steps` more are made.
    async fn make_steps(&self, steps: u64) {
        let until = self.run.step() + steps;
        let made = |run: &LiveRun| (run.step() >= until).then_some(());
        self.wait_for(&format!("step {until} is made"), made).await;
    }

    /// Waits until a generation after the one numbered `before` has `size` members.
    async fn wait_for_size(&self, before: u64, size: u32) {
        let is_so = |run: &LiveRun| {
            newest(run).filter(|formed| formed.generation > before && formed.world_size == size)
        };
        self.wait_for(&format!("{size} workers train together again"), is_so)
            .await;
    }

    fn stderr(&self) -> String {
        std::fs::read_to_string(self.output.path().join("stderr.txt")).unwrap_or_default()
    }

    /// How it ended, by itself; nothing of it is left.
    async fn end(self) -> Ended {
        let ended = self.run.wait().await;
        let url = self.fixture.run_url("run");
        tokio::task::block_in_place(|| {
            zipper_tests::wait_until("no process of the run is left", || processes(&[&url]).is_empty());
        });
        ended
    }
}

/// The newest generation.
fn newest(run: &LiveRun) -> Option<GenerationFormed> {
    let events = run.events().into_iter().rev();
    events.map(|(_, event)| event).find_map(|event| match event {
        Event::GenerationFormed(formed) => Some(formed),
        _ => None,
    })
}

fn assert_ended(ended: &Ended, words: &[&str]) {
    assert_eq!(ended.code, Some(1), "{}", ended.last_words());
    for words in words {
        assert!(ended.stderr.contains(words), "no `{words}` in:\n{}", ended.stderr);
    }
}

/// Thread 1 of docs/testing.md. A node may fail twice. Once it is its worker, then its agent, then a worker that was not there long
/// enough to join: no way of failing is free, and a new coordinator knows of those before. The others train all the while, and
/// go on without the node; when another node is used up in the same way, too few are left.
#[tokio::test(flavor = "multi_thread")]
async fn thread_1_a_node_that_fails_again_and_again_is_left_out_and_the_others_never_hang() {
    let endless = Endless::start("2:3", &["elastic.restarts_per_node=2", "elastic.join_wait=30s"]);
    endless.make_steps(3).await;
    let worker = |node| move |run: &LiveRun| run.worker(node);
    endless
        .kill_until_it_is_back("the worker of node 2", worker(2))
        .await;
    endless.wait_for_size(1, 3).await;
    endless.make_steps(3).await;
    endless
        .kill_until_it_is_back("the coordinator", LiveRun::coordinator)
        .await;
    endless.make_steps(3).await;
    let with_agent = endless.run.worker(2);
    endless
        .kill_until_it_is_back("the agent of node 2", |run| run.agent(2))
        .await;
    let another = |run: &LiveRun| run.worker(2).filter(|worker| Some(*worker) != with_agent);
    let early = endless.wait_for("its worker is there again", another).await;
    kill(Pid::from_raw(early), Signal::SIGKILL).expect("it is there");
    let why = |run: &LiveRun| {
        let events = run.events();
        events.into_iter().find_map(|(_, event)| match event {
            Event::NodeLeftOut(left_out) => Some(left_out),
            _ => None,
        })
    };
    let left_out = endless.wait_for("the node is left out", why).await;
    assert_eq!(left_out.node_rank, 2);
    assert!(left_out.reason.contains("it failed 3 times"), "{left_out:?}");
    endless.make_steps(20).await;
    let size = newest(&endless.run).map(|formed| formed.world_size);
    assert_eq!((size, endless.run.worker(2)), (Some(2), None));

    for _ in 0..2 {
        endless
            .kill_until_it_is_back("the worker of node 1", worker(1))
            .await;
    }
    let last = endless.wait_for("it is there", worker(1)).await;
    kill(Pid::from_raw(last), Signal::SIGKILL).expect("it is there");
    let words = [
        "too few workers are left for the 2 that the run needs",
        "node 1 on ",
        "node 2 on ",
        "more often than `elastic.restarts_per_node` = 2 allows",
        "worker `node1/0` was ended by signal 9",
    ];
    assert_ended(&endless.end().await, &words);
}

/// Thread 1 of docs/testing.md. The run as a whole may lose a worker once; no node fails twice.
#[tokio::test(flavor = "multi_thread")]
async fn thread_1_a_run_that_loses_workers_again_and_again_ends_at_its_limit() {
    let endless = Endless::start("2", &["elastic.restarts_per_run=1"]);
    for node in [0, 1] {
        endless.make_steps(3).await;
        let worker = endless.run.worker(node).expect("it is at work");
        kill(Pid::from_raw(worker), Signal::SIGKILL).expect("it is at work");
    }
    let words = [
        "the run lost workers 2 times within 1h",
        "`elastic.restarts_per_run` = 1",
        "worker `node1/0` (rank 1) on ",
        " was ended by signal 9",
    ];
    assert_ended(&endless.end().await, &words);
}

/// A coordinator may end once for a reason that passes.
#[tokio::test(flavor = "multi_thread")]
async fn thread_1_a_coordinator_that_ends_again_and_again_is_given_up() {
    let endless = Endless::start("1", &["elastic.restarts_per_node=1"]);
    endless.make_steps(3).await;
    let last = endless
        .kill_until_it_is_back("the coordinator", LiveRun::coordinator)
        .await;
    endless.make_steps(3).await;
    kill(Pid::from_raw(last), Signal::SIGKILL).expect("it is there");
    let words = [
        "the coordinator ended 2 times within `elastic.restart_window` = 1h",
        "the end of its log",
        "coordinator.log",
    ];
    assert_ended(&endless.end().await, &words);
}

/// Workers wait for a coordinator that does not answer as long as the configuration says, and go on when it does again.
#[tokio::test(flavor = "multi_thread")]
async fn a_coordinator_that_hangs_is_waited_for_so_long_and_no_longer() {
    let endless = Endless::start("2", &["elastic.coordinator_timeout=3s"]);
    endless.make_steps(3).await;
    let coordinator = endless.run.coordinator().expect("it is at work");
    kill(Pid::from_raw(coordinator), Signal::SIGSTOP).expect("it is there");
    let gone = |run: &LiveRun| (0..2).all(|node| run.worker(node).is_none()).then_some(());
    endless.wait_for("its workers have ended", gone).await;
    // The agent, which kills its worker, or the worker itself, whichever is first.
    let logs = ["agent", "worker0"].map(|of| {
        let log = endless.fixture.path().join(format!("run/logs/node0-{of}.log"));
        std::fs::read_to_string(log).expect("it wrote one")
    });
    assert!(
        logs[0].contains("this agent waited 3s for the coordinator")
            || logs[1].contains("no coordinator for 3s (`elastic.coordinator_timeout`)"),
        "{logs:?}"
    );
    kill(Pid::from_raw(coordinator), Signal::SIGCONT).expect("it is there");
    endless.wait_for_size(1, 2).await;
    endless.make_steps(3).await;
}
