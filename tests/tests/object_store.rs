//! Goal: a run that is kept in object storage is the same run: it trains, verifies, and goes on from there on another machine.
//! Method: the real programs against a real S3 server; final parameters compared with those of a run in a folder.

use std::fs;
use std::path::Path;
use std::process::Command;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use zipper_checkpoint::RunStore;
use zipper_tests::{Finished, Fixture, Launched, Parameters, S3Server, program, wait_until};

/// Steps of both stages together.
const STEPS: u64 = 80;

/// A job of which two runs can be compared to the end.
fn fixture() -> Fixture {
    let fixture = Fixture::new();
    fixture.write_config("run.yaml", |text| {
        text.replace("steps: 6,", "steps: 40,")
            .replace("untrained: true", "untrained: false")
            .replace(
                "clip_grad_norm: 1.0",
                "clip_grad_norm: 1.0\n  optimizer: {eps: 1.0e-6}",
            )
    });
    fixture
}

/// `zipper-launch` for the fixture's job, called in the folder `disk`.
fn launch(fixture: &Fixture, disk: &Path, run: &str, more: &[&str]) -> Command {
    fs::create_dir_all(disk).expect("the disk is writable");
    let mut command = Command::new(program("zipper-launch"));
    let config = fixture.path().join("run.yaml");
    command.arg("--config").arg(config).args(["--run", run]);
    command.args(more).current_dir(disk);
    command
}

fn finish(launched: Launched, code: i32) -> Finished {
    let finished = launched.wait();
    let (stdout, stderr) = (&finished.stdout, &finished.stderr);
    assert_eq!(finished.code, Some(code), "stdout:\n{stdout}\nstderr:\n{stderr}");
    finished
}

/// The parameters with which one worker ends that keeps its run in a folder.
async fn expected(fixture: &Fixture) -> Parameters {
    let run = fixture.run_url("expected");
    let mut command = launch(fixture, &fixture.path().join("disk-0"), &run, &["--nodes", "1"]);
    finish(Launched::start_command(&mut command), 0);
    Parameters::newest(&RunStore::open(&run).unwrap()).await.unwrap()
}

async fn has(run: &RunStore, path: &str) -> bool {
    run.exists(path).await.unwrap_or(false)
}

/// The first machine is gone with its disk; another one with other workers has nothing but the URL. What the run leaves in the bucket is
/// a whole run, to those who only look, too.
#[tokio::test]
async fn a_run_goes_on_from_object_storage_on_an_empty_disk() {
    let (fixture, server) = (fixture(), S3Server::start());
    let url = server.url("runs/moved");
    let run = server.run("runs/moved");
    let first = fixture.path().join("disk-1");
    let mut command = launch(&fixture, &first, &url, &["--nodes", "2"]);
    let launched = Launched::start_command(command.envs(server.env()));
    // Some checkpoint of either stage.
    let runtime = tokio::runtime::Handle::current();
    let seen = tokio::task::spawn_blocking({
        let run = run.clone();
        move || {
            wait_until("the first checkpoint is in the bucket", || {
                runtime
                    .block_on(async { run.checkpoints().latest().await.ok().flatten() })
                    .is_some()
            });
        }
    });
    seen.await.expect("there is one");
    kill(Pid::from_raw(launched.pid() as i32), Signal::SIGINT).expect("zipper-launch is running");
    finish(launched, 75);
    let stopped = run
        .checkpoints()
        .latest()
        .await
        .unwrap()
        .expect("it left a checkpoint");
    assert!(stopped.0 < STEPS, "the run was over before it was stopped");
    for folder in [first, fixture.path().join("cache")] {
        fs::remove_dir_all(folder).expect("the first machine wrote to its disk");
    }

    let arguments = ["--nodes", "3", "--resume", "require"];
    let mut command = launch(&fixture, &fixture.path().join("disk-2"), &url, &arguments);
    finish(Launched::start_command(command.envs(server.env())), 0);
    for path in ["run.yaml", "metrics/train.jsonl", "eval/table.json"] {
        assert!(has(&run, path).await, "no `{path}`");
    }
    let found = Parameters::newest(&run).await.unwrap();
    assert_eq!(found.step.0, STEPS);
    found.assert_same(&expected(&fixture).await);

    let mut verify = Command::new(program("zipper-launch"));
    verify
        .args(["checkpoints", "--run", &url, "--verify", "--json"])
        .envs(server.env());
    let finished = finish(Launched::start_command(&mut verify), 0);
    assert!(finished.stdout.contains("step-00000080"), "{}", finished.stdout);
}
