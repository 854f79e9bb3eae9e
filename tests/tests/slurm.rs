//! Goal: a run on a real Slurm keeps Slurm's manners: it takes what the allocation has or refuses, stops before its time is over
//! and when it is pre-empted, queues itself again and goes on as if nothing had been, lets itself be cancelled, and does without a
//! node that is lost. docs/slurm.md lists the cases.
//! Method: munge, slurmctld and a slurmd for each node on this machine, and the real programs, as people call them. Where this is
//! not root the tests say so and show nothing, except under `ZIPPER_RIGS=required`, as in CI: then they fail.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use zipper_checkpoint::RunStore;
use zipper_tests::{
    FaultProxy, Finished, Fixture, Launched, Namespaces, Parameters, S3Server, Slurm, permitted, processes,
    program, wait_until,
};

/// A cluster, and the tiny job in a configuration of this many steps a stage.
struct Site {
    slurm: Slurm,
    fixture: Fixture,
    environment: Vec<(String, String)>,
}

impl Site {
    fn new(slurm: Slurm, steps: u32) -> Self {
        let fixture = Fixture::new();
        fixture.write_config("run.yaml", |text| configure(&text, steps));
        Self {
            slurm,
            fixture,
            environment: Vec::new(),
        }
    }

    fn start(nodes: u8, steps: u32) -> Option<Self> {
        permitted(Slurm::start(nodes, 0)).map(|slurm| Self::new(slurm, steps))
    }

    /// `zipper-launch` with words before and after the usual ones.
    fn launch(&self, before: &[&str], url: &str, after: &[&str]) -> Command {
        let mut command = self
            .slurm
            .command(&program("zipper-launch").display().to_string());
        command
            .args(before)
            .arg("--config")
            .arg(self.fixture.path().join("run.yaml"))
            .args(["--run", url])
            .args(after)
            .current_dir(self.fixture.path())
            .envs(self.environment.iter().map(|(name, value)| (name, value)));
        command
    }

    /// Submits a run; the number of its job.
    fn submit(&self, url: &str, options: &[&str]) -> String {
        let finished = Launched::start_command(&mut self.launch(&["submit"], url, options)).wait();
        assert_eq!(finished.code, Some(0), "{}", finished.stderr);
        finished.stdout.trim().to_owned()
    }

    /// Runs a batch script of some lines on its first node to its end: its exit code and what it printed.
    fn batch(&self, options: &[&str], lines: &str) -> Finished {
        let script = self.fixture.path().join("batch.sh");
        let output = self.fixture.path().join("batch.log");
        let _ = fs::remove_file(&output);
        fs::write(&script, format!("#!/bin/bash\n{lines}\n")).expect("the fixture's folder is writable");
        let mut command = self.slurm.command("sbatch");
        command
            .args(["--wait", "--output"])
            .arg(&output)
            .args(options)
            .arg(&script);
        let finished = Launched::start_command(command.current_dir(self.fixture.path())).wait();
        Finished {
            stdout: fs::read_to_string(&output).unwrap_or_default(),
            ..finished
        }
    }

    /// `zipper-launch` as a line of a batch script.
    fn line(&self, url: &str, options: &str) -> String {
        let config = self.fixture.path().join("run.yaml");
        let launch = program("zipper-launch");
        format!(
            "{} --config {} --run {url} {options}",
            launch.display(),
            config.display()
        )
    }

    /// Waits until a job is over for good, and shows that it ended so.
    fn ends(&self, job: &str, logs: &Path, state: &str, code: &str) {
        wait_until("the job has ended", || {
            let state = self.slurm.of_job(job, "JobState");
            !["PENDING", "CONFIGURING", "RUNNING", "COMPLETING"].contains(&state.as_str())
        });
        let found = (
            self.slurm.of_job(job, "JobState"),
            self.slurm.of_job(job, "ExitCode"),
        );
        assert_eq!(
            (found.0.as_str(), found.1.as_str()),
            (state, code),
            "{}",
            output(logs, job)
        );
    }

    /// Completed steps of a run that is a folder, repeated ones too.
    fn steps(&self, run: &str) -> usize {
        let metrics = self.fixture.path().join(run).join("metrics/train.jsonl");
        fs::read_to_string(metrics).map_or(0, |text| text.lines().count())
    }

    /// The world sizes that steps of a run were made with, one after the other. Every step is there once.
    fn worlds(&self, run: &str) -> Vec<u64> {
        let metrics = self.fixture.path().join(run).join("metrics/train.jsonl");
        let metrics = fs::read_to_string(metrics).expect("the run has metrics");
        let lines = metrics
            .lines()
            .map(|line| serde_json::from_str::<serde_json::Value>(line).expect("metrics are JSON lines"));
        let (steps, mut worlds): (Vec<u64>, Vec<u64>) = lines
            .map(|line| (line["step"].as_u64(), line["world_size"].as_u64()))
            .map(|(step, world)| (step.expect("a step"), world.expect("a number")))
            .unzip();
        assert_eq!(steps, (1..=steps.len() as u64).collect::<Vec<_>>());
        worlds.dedup();
        worlds
    }

    /// The nodes whose workers have trained.
    fn active(&self, run: &str) -> Vec<u32> {
        let has_rank = |node: &u32| {
            let log = fs::read_to_string(self.logs(run).join(format!("node{node}-worker0.log")));
            log.is_ok_and(|text| text.contains(" as rank "))
        };
        (0..4).filter(has_rank).collect()
    }

    /// Waits until a run trains in this life of its job, then halts the first worker: however long it takes, the run is not over
    /// before what comes next. What the job prints comes at once; metrics are written every few seconds.
    fn halt(&self, run: &str, job: &str, life: usize) -> Pid {
        let logs = self.logs(run);
        wait_until("the job trains", || {
            let printed = output(&logs, job);
            let lives: Vec<&str> = printed.split("begins on").skip(1).collect();
            lives.len() == life && lives[life - 1].matches(" step ").count() >= 3
        });
        let node = *self.active(run).first().expect("it trains somewhere");
        let (url, of_node) = (self.fixture.run_url(run), node_rank(node));
        let workers = processes(&["zipper-worker", "train", &url, &of_node]);
        let worker = Pid::from_raw(*workers.first().expect("the worker runs"));
        kill(worker, Signal::SIGSTOP).expect("it runs");
        worker
    }

    /// Takes nodes away from a run, whose first worker is halted meanwhile.
    fn lose(&self, nodes: &[u32], halted: Pid) {
        for node in nodes {
            self.slurm.lose(&format!("node{node}"));
        }
        // If Slurm has ended the job with its node, this worker has ended, too.
        let _ = kill(halted, Signal::SIGCONT);
    }

    fn logs(&self, run: &str) -> PathBuf {
        self.fixture.path().join(run).join("logs")
    }
}

/// As it is in the command line of a worker.
fn node_rank(node: u32) -> String {
    format!("--node-rank\u{0}{node}\u{0}")
}

/// How often a job was told that its time is nearly up.
fn warned(logs: &Path, job: &str) -> usize {
    let printed = output(logs, job);
    printed.lines().filter(|line| line.ends_with(": USR1")).count()
}

/// The output of a job's script so far.
fn output(logs: &Path, job: &str) -> String {
    fs::read_to_string(logs.join(format!("slurm-{job}.log"))).unwrap_or_default()
}

fn configure(text: &str, steps: u32) -> String {
    let text = text
        .replace("steps: 6,", &format!("steps: {steps},"))
        .replace("untrained: true", "untrained: false")
        .replace("no_audio_control: true", "no_audio_control: false")
        .replace("every_steps: 4", "every_steps: 0")
        // In f64 the order of sums does not show, and a lost utterance does.
        .replace("  prompt:\n", "  dtype: f64\n  prompt:\n")
        .replace(
            "clip_grad_norm: 1.0",
            "clip_grad_norm: 1.0\n  optimizer: {eps: 1.0e-6}",
        );
    format!(
        "{text}  grace: 15s\nelastic: {{lease_ttl: 5s, hang_min: 5m, join_wait: 1m, regroup_timeout: 10s}}\n"
    )
}

/// The run at `url`, with what makes a store reachable.
async fn parameters(url: &str) -> Parameters {
    let store = RunStore::open(url).expect("a run URL");
    Parameters::newest(&store)
        .await
        .expect("its newest checkpoint can be read")
}

/// How the job of `site` ends on this machine, without Slurm and without being stopped.
async fn uninterrupted(site: &Site) -> Parameters {
    let url = site.fixture.run_url("uninterrupted");
    let finished = Launched::start_command(&mut site.launch(&[], &url, &["--nodes", "1"])).wait();
    assert_eq!(finished.code, Some(0), "{}", finished.stderr);
    parameters(&url).await
}

/// Four nodes, each a host with its own address, and no name of a node that resolves; checkpoints go to S3. One line submits it.
/// What Slurm keeps and shows of the job has no secret in it.
#[tokio::test]
async fn a_submitted_run_trains_on_four_nodes_and_keeps_its_checkpoints_in_s3() {
    let Some(hosts) = permitted(Namespaces::up(4)) else {
        return;
    };
    let s3 = S3Server::start();
    let proxy = FaultProxy::start_on(hosts.gateway(), s3.address());
    let Some(slurm) = permitted(Slurm::start_on(&hosts)) else {
        return;
    };
    let mut site = Site::new(slurm, 6);
    site.environment = s3.env_via(proxy.address());
    let url = s3.url("four");
    let job = site.submit(
        &url,
        &[
            "--nodes",
            "4",
            "--time",
            "1h",
            "--set",
            "checkpoint.every_steps=4",
        ],
    );
    let logs = site.fixture.path().join("runs/tiny/logs");
    site.ends(&job, &logs, "COMPLETED", "0:0");
    let run = s3.run("four");
    let newest = run
        .checkpoints()
        .latest()
        .await
        .expect("S3 answers")
        .expect("a checkpoint");
    let manifest = run
        .checkpoints()
        .load_manifest(newest)
        .await
        .expect("it is whole");
    assert_eq!((newest.0, manifest.world_size.0), (12, 4));

    // Each node wrote its own logs, and they come together with ranks before the lines.
    let mut merged = site
        .slurm
        .command(&program("zipper-launch").display().to_string());
    merged
        .args(["logs", "--run", &url])
        .current_dir(site.fixture.path())
        .envs(site.environment.iter().map(|(name, value)| (name, value)));
    let merged = Launched::start_command(&mut merged).wait();
    for words in [
        "node0/0 rank ",
        "node3/0 rank ",
        "coordinator | ",
        &format!("slurm-{job} | "),
    ] {
        assert!(
            merged.stdout.contains(words),
            "no `{words}` in:\n{}",
            merged.stdout
        );
    }
    let addresses = fs::read_to_string(logs.join("coordinator.log")).unwrap_or_default();
    assert!(!addresses.contains("127.0.0.1"), "{addresses}");

    let secret = site
        .environment
        .iter()
        .find(|(name, _)| name == "AWS_SECRET_ACCESS_KEY");
    let (_, secret) = secret.expect("the store has a key");
    let shown = site.slurm.ask("scontrol", &["show", "job", &job]);
    let script = site.slurm.ask("scontrol", &["write", "batch_script", &job, "-"]);
    let yaml = run.get("run.yaml").await.expect("the run has its configuration");
    for text in [
        &shown,
        &script,
        &merged.stdout,
        &String::from_utf8_lossy(&yaml).into_owned(),
    ] {
        assert!(!text.contains(secret.as_str()), "the secret is in:\n{text}");
    }
}

/// Thread 4 of what users of others report: a requeued job goes on from another checkpoint than its last, or its logs are gone.
/// Here a job is queued again three times, for three reasons: its time limit, a job that is more urgent, and its owner. In the
/// end its parameters are those of a run that nobody stopped, every step is there once, and nothing of the logs is lost.
#[tokio::test]
async fn thread_4_three_requeues_end_like_an_uninterrupted_run() {
    let Some(site) = Site::start(2, 60) else { return };
    let expected = uninterrupted(&site).await;
    let url = site.fixture.run_url("run");
    let options = [
        "--nodes",
        "2",
        "--time",
        "1h",
        "--sbatch=--exclusive",
        "--set",
        "cluster.stop_before=170s",
        // A worker is halted for as long as Slurm takes to send a signal.
        "--set",
        "runtime.heartbeat_timeout=2m",
        "--set",
        "runtime.collective_timeout=2m",
        "--set",
        "runtime.rendezvous_timeout=3m",
    ];
    let (job, begun) = (site.submit(&url, &options), Instant::now());
    let logs = site.logs("run");
    let requeued = |times: usize| {
        wait_until("the job has queued itself again", || {
            output(&logs, &job).matches("queued again").count() == times
        });
    };

    // Slurm looks twice a minute, and may say it at once to a job whose limit is that close: so it is set when the run trains.
    let limit = |minutes: u64| {
        let (job, limit) = (format!("jobid={job}"), format!("timelimit={minutes}"));
        site.slurm.ask("scontrol", &["update", &job, &limit]);
    };
    let worker = site.halt("run", &job, 1);
    limit(begun.elapsed().as_secs() / 60 + 3);
    wait_until("Slurm has said that time is nearly up", || {
        warned(&logs, &job) == 1
    });
    kill(worker, Signal::SIGCONT).expect("it waits");
    requeued(1);
    wait_until("the job is in the queue", || {
        site.slurm.of_job(&job, "JobState") == "PENDING"
    });
    limit(60);

    let worker = site.halt("run", &job, 2);
    let urgent = site.slurm.ask(
        "sbatch",
        &[
            "--parsable",
            "--partition=urgent",
            "--nodes=2",
            "--exclusive",
            "--output=/dev/null",
            "--wrap=true",
        ],
    );
    wait_until("Slurm has told the run to make room", || {
        site.slurm.of_job(&job, "PreemptTime") != "None"
    });
    kill(worker, Signal::SIGCONT).expect("it waits");
    requeued(2);

    let worker = site.halt("run", &job, 3);
    assert_eq!(site.slurm.of_job(&urgent, "JobState"), "COMPLETED");
    site.slurm.ask("scancel", &["--batch", "--signal=USR1", &job]);
    wait_until("the signal has come", || warned(&logs, &job) == 2);
    kill(worker, Signal::SIGCONT).expect("it waits");
    requeued(3);

    site.ends(&job, &logs, "COMPLETED", "0:0");
    assert_eq!(site.slurm.of_job(&job, "Restarts"), "3");
    expected.assert_same(&parameters(&url).await);
    let steps: Vec<u64> = site
        .fixture
        .losses("run")
        .into_iter()
        .map(|(step, _)| step)
        .collect();
    assert_eq!(steps, (1..=120).collect::<Vec<_>>(), "every step is there once");
    let printed = output(&logs, &job);
    for life in 0..=3 {
        assert!(
            printed.contains(&format!("requeued {life} of 100 times")),
            "{printed}"
        );
    }
    let of_worker = fs::read_to_string(logs.join("node1-worker0.log")).expect("node 1 has a worker");
    assert!(of_worker.matches("as rank 1 of 2").count() >= 4, "{of_worker}");
}

/// `zipper-launch stop` means it: the job ends with a checkpoint, and does not queue itself again as one out of time does.
#[test]
fn a_job_that_somebody_stops_is_not_queued_again() {
    let Some(site) = Site::start(2, 3000) else { return };
    let url = site.fixture.run_url("run");
    let job = site.submit(&url, &["--nodes", "2"]);
    wait_until("the run makes steps", || site.steps("run") >= 3);
    let finished = Launched::run(&["stop", "--json", "--run", &url]);
    assert_eq!(finished.code, Some(0), "{}", finished.stderr);
    let logs = site.logs("run");
    wait_until("the job is over", || {
        site.slurm.of_job(&job, "JobState") == "FAILED"
    });
    let output = output(&logs, &job);
    assert_eq!(site.slurm.of_job(&job, "ExitCode"), "75:0", "{output}");
    assert_eq!(site.slurm.of_job(&job, "Restarts"), "0", "{output}");
    assert!(output.contains("is not queued again"), "{output}");
}

/// `scancel` means it: the run stops with a checkpoint while it may, no process is left, and the job is not queued again.
#[test]
fn a_cancelled_job_leaves_a_checkpoint_and_nothing_else() {
    let Some(site) = Site::start(2, 3000) else { return };
    let url = site.fixture.run_url("run");
    let job = site.submit(&url, &["--nodes", "2"]);
    wait_until("the run makes steps", || site.steps("run") >= 3);
    site.slurm.ask("scancel", &[&job]);
    wait_until("no process of the run is left", || processes(&[&url]).is_empty());
    let logs = site.logs("run");
    wait_until("the job is over", || {
        site.slurm.of_job(&job, "JobState") == "CANCELLED"
    });
    assert_eq!(
        site.slurm.of_job(&job, "Restarts"),
        "0",
        "{}",
        output(&logs, &job)
    );
    let checkpoints = fs::read_dir(site.fixture.path().join("run/checkpoints")).expect("a checkpoint");
    assert_eq!(checkpoints.count(), 1, "{}", output(&logs, &job));
}

/// A node that is set down takes its worker with it. The run goes on with those that are left, since it may; what srun makes of it
/// does not matter.
#[test]
fn a_run_shrinks_when_a_node_is_set_down() {
    let Some(site) = Site::start(3, 30) else { return };
    let url = site.fixture.run_url("run");
    let job = site.submit(&url, &["--nodes", "2:3"]);
    let halted = site.halt("run", &job, 1);
    site.lose(&[2], halted);
    let logs = site.logs("run");
    site.ends(&job, &logs, "COMPLETED", "0:0");
    assert_eq!(site.worlds("run"), [3, 2], "{}", output(&logs, &job));
    assert_eq!(site.slurm.of_job(&job, "Restarts"), "0");
}

/// A node more than needed takes the place of one that is set down: the run keeps its size, and the job its life.
#[test]
fn a_spare_node_takes_the_place_of_one_that_is_set_down() {
    let Some(site) = Site::start(3, 30) else { return };
    let url = site.fixture.run_url("run");
    let job = site.submit(&url, &["--nodes", "2", "--spares", "1"]);
    let halted = site.halt("run", &job, 1);
    let training = site.active("run");
    assert_eq!(training.len(), 2, "{training:?}");
    site.lose(&training[1..], halted);
    let logs = site.logs("run");
    site.ends(&job, &logs, "COMPLETED", "0:0");
    assert_eq!(site.worlds("run"), [2], "{}", output(&logs, &job));
    assert_eq!(site.slurm.of_job(&job, "Restarts"), "0");
    assert_eq!(site.active("run"), [0, 1, 2], "the spare node did not train");
}

/// With fewer nodes than it needs a run ends, and its job waits in the queue for others and goes on there: whether Slurm ends the
/// job with its node, or leaves it what is left and it queues itself again.
#[test]
fn a_run_with_too_few_nodes_left_is_queued_again() {
    let Some(site) = Site::start(4, 30) else { return };
    for (run, nodes, lost, worlds) in [
        ("exact", "2", &[1][..], &[2][..]),
        ("range", "2:3", &[2, 3], &[3, 2]),
    ] {
        let url = site.fixture.run_url(run);
        let options = [
            "--nodes",
            nodes,
            "--set",
            "checkpoint.every_steps=4",
            "--set",
            "runtime.collective_timeout=10s",
            "--set",
            "runtime.rendezvous_timeout=12s",
        ];
        let job = site.submit(&url, &options);
        let logs = site.logs(run);
        wait_until("the run has a checkpoint", || {
            output(&logs, &job).contains(" is stored")
        });
        let halted = site.halt(run, &job, 1);
        site.lose(lost, halted);
        wait_until("the job is in the queue", || {
            site.slurm.of_job(&job, "Restarts") == "1"
        });
        site.ends(&job, &logs, "COMPLETED", "0:0");
        assert_eq!(site.worlds(run), worlds, "{}", output(&logs, &job));
        let printed = output(&logs, &job);
        assert!(
            printed.contains("going on from the checkpoint of step"),
            "it began anew:\n{printed}"
        );
        for node in lost {
            let node = format!("nodename=node{node}");
            site.slurm.ask("scontrol", &["update", &node, "state=resume"]);
        }
    }
}

/// Two jobs of one run: the second says who has it, and touches nothing.
#[test]
fn a_second_job_of_the_same_run_is_refused() {
    let Some(site) = Site::start(2, 3000) else { return };
    let url = site.fixture.run_url("run");
    let first = site.submit(&url, &["--nodes", "1"]);
    wait_until("the run makes steps", || site.steps("run") >= 1);
    let second = site.submit(&url, &["--nodes", "1"]);
    let logs = site.logs("run");
    site.ends(&second, &logs, "FAILED", "2:0");
    let printed = output(&logs, &second);
    assert!(printed.contains("stop that run first"), "{printed}");
    assert_eq!(site.slurm.of_job(&first, "JobState"), "RUNNING");
    site.slurm.ask("scancel", &[&first]);
    wait_until("no process of the run is left", || processes(&[&url]).is_empty());
}

/// Thread 3 of what users of others report: where nodes do not find each other, each trains alone, and nobody is told. Here a run
/// has the size that it was asked to have, or it does not train: not in an allocation of another size, and not if a node of the
/// right one does not come.
#[test]
fn thread_3_a_run_of_another_size_than_asked_for_does_not_train() {
    let Some(site) = Site::start(3, 6) else { return };
    let url = site.fixture.run_url("run");
    let finished = site.batch(&["--nodes=2"], &site.line(&url, "--nodes 4"));
    assert_eq!(finished.code, Some(2), "{}", finished.stdout);
    let words = "the run was asked to have 4 nodes, but Slurm job 1 has 2 nodes (node[0-1])";
    assert!(finished.stdout.contains(words), "{}", finished.stdout);
    assert!(
        !site.fixture.path().join("run").exists(),
        "the refused run has left something"
    );

    let lines = format!(
        "scontrol update nodename=node2 state=down reason=test\n{}",
        site.line(
            &url,
            "--nodes 3 --set runtime.collective_timeout=5s --set runtime.rendezvous_timeout=10s"
        )
    );
    let finished = site.batch(&["--nodes=3", "--no-kill"], &lines);
    assert!(matches!(finished.code, Some(1 | 2)), "{finished:?}");
    assert_eq!(site.steps("run"), 0, "it trained:\n{}", finished.stdout);
}

/// What cannot become a run is refused in words, before anything is started.
#[test]
fn what_slurm_cannot_give_is_refused() {
    let Some(slurm) = permitted(Slurm::start(1, 2)) else {
        return;
    };
    let site = Site::new(slurm, 6);
    let url = site.fixture.run_url("run");
    let submit = |options: &[&str]| {
        let mut command = site.launch(&["submit"], &url, options);
        Launched::start_command(&mut command).wait()
    };

    let finished = submit(&["--partition", "nowhere"]);
    assert_eq!(finished.code, Some(2), "{}", finished.stderr);
    assert!(
        finished.stderr.contains("Slurm does not take the job"),
        "{}",
        finished.stderr
    );
    let finished = submit(&[
        "--print",
        "--partition=nowhere",
        "--sbatch=--comment=a b",
        "--set=cluster.interface=lo",
    ]);
    assert_eq!(finished.code, Some(0), "{}", finished.stderr);
    for line in [
        "#SBATCH --partition=nowhere",
        "#SBATCH '--comment=a b'",
        "cluster.interface=lo",
    ] {
        assert!(finished.stdout.contains(line), "{}", finished.stdout);
    }
    // What it does take, it says the number of.
    let finished = submit(&["--json", "--sbatch=--hold"]);
    assert_eq!(finished.code, Some(0), "{}", finished.stderr);
    let document: serde_json::Value =
        serde_json::from_str(&finished.stdout).expect("stdout is one JSON document");
    let job = document["job"].to_string();
    assert_eq!(site.slurm.of_job(&job, "JobState"), "PENDING", "{document}");
    assert_eq!(document["run"], url);
    let output = document["output"].as_str().expect("a path");
    assert!(output.ends_with(&format!("/logs/slurm-{job}.log")), "{output}");
    site.slurm.ask("scancel", &[&job]);

    for (options, line, words) in [
        (&["--array=1-1"][..], "", "is task 1 of a job array"),
        (
            &["--gpus-per-node=2"],
            "",
            "has 2 GPUs on each node, but zipper-worker can use 0 there",
        ),
        (
            &[],
            "--set 'cluster.container={runtime: enroot, image: a}'",
            "there is no program `enroot` in PATH",
        ),
    ] {
        let finished = site.batch(options, &site.line(&url, line));
        assert_eq!(finished.code, Some(2), "{}", finished.stdout);
        assert!(
            finished.stdout.contains(words),
            "no `{words}` in:\n{}",
            finished.stdout
        );
    }
    let finished = site.batch(&["--ntasks=2"], &format!("srun {}", site.line(&url, "")));
    assert!(
        finished.stdout.contains("started zipper-launch 2 times"),
        "{}",
        finished.stdout
    );

    site.slurm.stop_munge();
    let finished = submit(&[]);
    assert_eq!(finished.code, Some(1), "{}", finished.stderr);
    assert!(
        finished.stderr.to_lowercase().contains("munge"),
        "{}",
        finished.stderr
    );
    assert!(
        !site.fixture.path().join("run/run.yaml").exists(),
        "a run was begun"
    );
}

/// With `cluster.container` agents and workers run in the container and the coordinator does not. The program that runs containers
/// is one of this test, which notes what it was asked and runs that without a container.
#[test]
fn agents_run_in_the_container_that_is_configured() {
    let Some(site) = Site::start(2, 2) else { return };
    let folder = site.fixture.path().join("bin");
    fs::create_dir(&folder).expect("the fixture's folder is writable");
    let apptainer = folder.join("apptainer");
    let noted = site.fixture.path().join("noted");
    let script = format!(
        "#!/bin/bash\necho \"$@\" >>{}\nwhile [[ $1 != zipper.sif ]]; do shift; done\nshift\nexec \"$@\"\n",
        noted.display()
    );
    fs::write(&apptainer, script).expect("the fixture's folder is writable");
    let executable = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs::set_permissions(&apptainer, executable).expect("our own file");
    let url = site.fixture.run_url("run");
    let container = format!(
        "'cluster.container={{runtime: apptainer, image: zipper.sif, program: {}}}'",
        program("zipper-launch").display()
    );
    let lines = format!(
        "export PATH={}:$PATH\n{}",
        folder.display(),
        site.line(&url, &format!("--nodes 2 --set {container}"))
    );
    let finished = site.batch(&["--nodes=2"], &lines);
    assert_eq!(finished.code, Some(0), "{}", finished.stdout);
    let noted = fs::read_to_string(noted).expect("the container was used");
    assert_eq!(noted.matches("zipper-worker devices").count(), 1, "{noted}");
    assert_eq!(noted.matches("zipper-launch node").count(), 2, "{noted}");
    assert_eq!(noted.lines().count(), 3, "{noted}");
}

/// One command hands a comparison in: each run is a job, stage 2 begins after stage 1, and nothing is handed in twice.
#[test]
fn a_comparison_is_handed_in_as_jobs() {
    let Some(site) = Site::start(1, 3) else { return };
    let folder = site.fixture.path();
    let config = folder.join("compare.yaml");
    let text = format!(
        "name: jobs\nconfig: {}\naxes:\n  - {{key: adapter.variant, values: [shared, soft]}}\n",
        folder.join("run.yaml").display()
    );
    fs::write(&config, text).expect("the fixture is writable");
    let sweep = |more: &[&str]| {
        let mut command = site
            .slurm
            .command(&program("zipper-launch").display().to_string());
        command
            .args(["sweep", "--config"])
            .arg(&config)
            .arg("--output")
            .arg(folder.join("sweep"))
            .args(more)
            .current_dir(folder);
        Launched::start_command(&mut command).wait()
    };
    // No job begins before it was looked at.
    let node = |state: &str| {
        let arguments = ["update", "nodename=node0", state, "reason=test"];
        site.slurm.ask("scontrol", &arguments);
    };
    node("state=drain");
    let first = sweep(&["--submit", "--", "--nodes", "1"]);
    assert_eq!(first.code, Some(0), "{}", first.stderr);
    let handed_in: Vec<&str> = first.stdout.lines().collect();
    assert_eq!(handed_in.len(), 3, "{}", first.stdout);
    let jobs: Vec<&str> = handed_in
        .iter()
        .map(|line| line.split_whitespace().nth(1).expect("a number"))
        .collect();
    for later in &jobs[1..] {
        let waits_for = site.slurm.of_job(later, "Dependency");
        assert!(waits_for.contains(jobs[0]), "{waits_for}");
    }
    // At once again: what is in the queue is not handed in a second time.
    let again = sweep(&["--submit", "--", "--nodes", "1"]);
    assert_eq!(again.code, Some(0), "{}", again.stderr);
    assert!(!again.stdout.contains("handed in"), "{}", again.stdout);
    node("state=resume");
    for (job, run) in jobs.iter().zip(["stage1/stage1", "runs/shared", "runs/soft"]) {
        site.ends(
            job,
            &folder.join("sweep").join(run).join("logs"),
            "COMPLETED",
            "0:0",
        );
    }
    let report = sweep(&["--report"]);
    assert_eq!(report.code, Some(0), "{}", report.stderr);
    assert!(report.stdout.contains("| soft | 1 |"), "{}", report.stdout);
    let over = sweep(&["--submit"]);
    assert!(
        over.stdout.contains("every run has its result"),
        "{}",
        over.stdout
    );
}
