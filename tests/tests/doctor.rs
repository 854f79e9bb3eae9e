//! Goal: `zipper-launch doctor` finds what would make a run fail, says what to do, and leaves nothing behind; a launch refuses what
//! surely fails before anything is started, and nothing else.
//! Method: the real programs on this machine, with one thing made wrong at a time.

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::Value;
use zipper_tests::{
    FalseClock, FaultProxy, Finished, Fixture, Launched, Mode, S3Server, Slurm, SmallDisk, permitted, program,
};

/// What the doctor said.
struct Examined {
    code: Option<i32>,
    findings: Vec<Value>,
}

impl Examined {
    /// The one finding of this level about this, or a panic with all of them.
    fn finding(&self, about: &str, level: &str) -> String {
        let mut those = self.findings.iter();
        let found = those.find(|finding| finding["about"] == about && finding["level"] == level);
        let Some(found) = found else {
            panic!("no {level} about {about}: {:#?}", self.findings);
        };
        found.to_string()
    }

    /// Asserts that this would make a run fail, as these words say, and what can be done.
    fn fails(&self, about: &str, words: &[&str]) {
        let found = self.finding(about, "failure");
        for word in words {
            assert!(found.contains(word), "`{word}` is not in {found}");
        }
        assert!(!found.contains("\"fixes\":[]"), "{found}");
        assert_eq!(self.code, Some(1));
    }
}

/// `zipper-launch doctor`, and what makes it another's.
fn doctor(fixture: &Fixture, run: &str, change: impl FnOnce(&mut Command)) -> Examined {
    let mut command = Command::new(program("zipper-launch"));
    let config = fixture.path().join("run.yaml");
    command.arg("doctor").arg("--config").arg(config);
    command.args(["--run", run, "--json"]).current_dir(fixture.path());
    change(&mut command);
    let finished = Launched::start_command(&mut command).wait();
    let document: Value = serde_json::from_str(&finished.stdout)
        .unwrap_or_else(|error| panic!("{error}: {}{}", finished.stdout, finished.stderr));
    assert_eq!(document["ok"], finished.code == Some(0), "{document:#}");
    Examined {
        code: finished.code,
        findings: document["findings"]
            .as_array()
            .expect("there are findings")
            .clone(),
    }
}

/// A launch that is refused: nothing of it is in the run.
fn refused(fixture: &Fixture, run: &str, code: i32, words: &[&str], change: impl FnOnce(&mut Command)) {
    let mut command = Command::new(program("zipper-launch"));
    let config = fixture.path().join("run.yaml");
    command.arg("--config").arg(config).args(["--run", run]);
    command.current_dir(fixture.path());
    change(&mut command);
    let Finished {
        code: ended, stderr, ..
    } = Launched::start_command(&mut command).wait();
    assert_eq!(ended, Some(code), "{stderr}");
    for word in words {
        assert!(stderr.contains(word), "`{word}` is not in: {stderr}");
    }
    let Some(folder) = run.strip_prefix("file://") else {
        return;
    };
    assert!(
        !Path::new(folder).join("run.yaml").exists(),
        "it left a run: {stderr}"
    );
}

#[test]
fn a_good_machine_is_found_good() {
    let fixture = Fixture::new();
    let examined = doctor(&fixture, &fixture.run_url("runs/a"), |_| {});
    assert_eq!(examined.code, Some(0), "{:#?}", examined.findings);
    for about in [
        "programs", "libtorch", "limits", "memory", "disk", "store", "clock",
    ] {
        examined.finding(about, "ok");
    }
    assert!(!fixture.path().join("runs").exists(), "the doctor left something");

    // For people, and without a run.
    let mut command = Command::new(program("zipper-launch"));
    command.arg("doctor").current_dir(fixture.path());
    let finished = Launched::start_command(&mut command).wait();
    assert_eq!(finished.code, Some(0), "{}{}", finished.stdout, finished.stderr);
    assert!(finished.stdout.contains("libtorch  2."), "{}", finished.stdout);
    assert!(
        finished.stdout.contains("name a run with `--run URL`"),
        "{}",
        finished.stdout
    );
}

#[tokio::test]
async fn a_store_that_cannot_keep_a_run_is_found() {
    let (fixture, server) = (Fixture::new(), S3Server::start());
    let proxy = FaultProxy::start(server.address());
    let url = server.url("runs/a");
    let env = server.env_via(proxy.address());
    let via = |command: &mut Command| {
        command.envs(env.clone());
    };

    let examined = doctor(&fixture, &url, via);
    assert_eq!(examined.code, Some(0), "{:#?}", examined.findings);
    examined.finding("clock", "ok");
    let left = server.run("runs/a").list("").await.unwrap();
    assert!(left.is_empty(), "the doctor left {left:?}");

    // It can be read, and no body that is written arrives.
    for (mode, words) in [
        (Mode::CutRequests, "cannot write"),
        (Mode::Refuse, "AWS_ENDPOINT_URL"),
        (Mode::Answer(403), "denies access"),
        (Mode::Answer(507), "no room left"),
    ] {
        proxy.set(mode);
        doctor(&fixture, &url, via).fails("store", &[words]);
    }
    proxy.set(Mode::Pass);
    let wrong_key = |command: &mut Command| {
        via(command);
        command.env("AWS_SECRET_ACCESS_KEY", "wrong");
    };
    doctor(&fixture, &url, wrong_key).fails("store", &["AWS_SECRET_ACCESS_KEY"]);
    let left = server.run("runs/a").list("").await.unwrap();
    assert!(left.is_empty(), "the doctor left {left:?}");
}

#[test]
fn a_wrong_clock_is_found() {
    let (fixture, server) = (Fixture::new(), S3Server::start());
    let Some(clock) = permitted(FalseClock::new()) else {
        return;
    };
    clock.step(120);
    let examined = doctor(&fixture, &server.url("runs/a"), |command| {
        command.envs(server.env()).envs(clock.env());
    });
    let found = examined.finding("clock", "warning");
    assert!(
        found.contains("ahead of the store's") && found.contains("chrony"),
        "{found}"
    );
    assert_eq!(examined.code, Some(0), "a run would go on");
}

/// A library that the loader finds first and cannot use.
#[test]
fn a_missing_libtorch_is_found() {
    let fixture = Fixture::new();
    let libraries = fixture.path().join("libraries");
    fs::create_dir(&libraries).unwrap();
    fs::write(libraries.join("libtorch_cpu.so"), "").unwrap();
    let broken = |command: &mut Command| {
        command.env("LD_LIBRARY_PATH", &libraries);
    };
    let run = fixture.run_url("a");
    let examined = doctor(&fixture, &run, broken);
    examined.fails("libtorch", &["libtorch_cpu.so", "cargo xtask setup"]);
    // The rest was looked at all the same.
    examined.finding("store", "ok");
    refused(
        &fixture,
        &run,
        2,
        &["libtorch_cpu.so", "hint: `cargo xtask setup`"],
        broken,
    );
}

#[test]
fn a_full_disk_is_found() {
    let fixture = Fixture::new();
    let Some(disk) = permitted(SmallDisk::mount(2)) else {
        return;
    };
    let run = format!("file://{}/a", disk.path().display());
    // Room for a checkpoint and not for all that are kept.
    doctor(&fixture, &run, |_| {}).finding("disk", "warning");
    disk.fill();
    let examined = doctor(&fixture, &run, |_| {});
    examined.fails("disk", &["a checkpoint takes", "make room"]);
    examined.fails("store", &["no room left"]);
    refused(
        &fixture,
        &run,
        1,
        &["this run would fail", "a checkpoint takes"],
        |_| {},
    );
}

#[test]
fn a_low_limit_of_open_files_is_found() {
    let fixture = Fixture::new();
    let run = fixture.run_url("a");
    // 20 workers need that many connections each.
    let limited = |command: &mut Command| {
        let mut outer = Command::new("sh");
        outer.args(["-c", "ulimit -n 40 && exec \"$0\" \"$@\""]);
        outer
            .arg(command.get_program())
            .args(command.get_args())
            .args(["--nodes", "20"]);
        outer.current_dir(fixture.path());
        *command = outer;
    };
    doctor(&fixture, &run, limited).fails("limits", &["may open 40 files", "ulimit -n"]);
}

#[test]
fn models_that_are_not_there_are_found() {
    let fixture = Fixture::new();
    let run = fixture.run_url("a");
    fs::remove_file(fixture.path().join("llm/model.safetensors")).unwrap();
    doctor(&fixture, &run, |_| {}).fails("models", &["there is no *.safetensors file"]);
    refused(
        &fixture,
        &run,
        2,
        &["there is no *.safetensors file", "--no-preflight"],
        |_| {},
    );
    // Without that, it is the workers that find out.
    let mut command = Command::new(program("zipper-launch"));
    let config = fixture.path().join("run.yaml");
    command
        .arg("--config")
        .arg(config)
        .args(["--run", &run, "--no-preflight"]);
    let finished = Launched::start_command(command.current_dir(fixture.path())).wait();
    assert_eq!(finished.code, Some(2), "{}", finished.stderr);
    assert!(
        !finished.stderr.contains("this run would fail"),
        "{}",
        finished.stderr
    );
}

#[test]
fn what_is_wrong_with_slurm_is_found() {
    let fixture = Fixture::new();
    let Some(slurm) = permitted(Slurm::start(1, 0)) else {
        return;
    };
    let run = fixture.run_url("a");
    let with = |partition: &'static str| {
        let conf = slurm.conf();
        move |command: &mut Command| {
            command.env("SLURM_CONF", conf);
            command.args(["--set", &format!("cluster.partition={partition}")]);
        }
    };
    let there = slurm.ask("sinfo", &["--noheader", "--format=%R"]);
    let there: &'static str = there
        .lines()
        .next()
        .expect("there is a partition")
        .to_owned()
        .leak();
    doctor(&fixture, &run, with(there)).finding("slurm", "ok");
    doctor(&fixture, &run, with("nowhere")).fails("slurm", &["no partition `nowhere`", there]);
    slurm.stop_munge();
    doctor(&fixture, &run, with(there)).fails("slurm", &["does not answer"]);
}
