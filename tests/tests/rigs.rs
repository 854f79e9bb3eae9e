//! Goal: what the other tests break things with breaks them as it says, and mends them again.
//! Method: each rig by itself, with the plainest client there is.

use std::fs::Permissions;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};
use std::{fs, io};

use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt, PutMode, RetryConfig};
use zipper_tests::{FalseClock, FaultProxy, Mode, Namespaces, S3Server, SmallDisk, permitted, wait_until};

async fn put(store: &Arc<dyn ObjectStore>, name: &str, bytes: usize) -> object_store::Result<()> {
    let (path, content) = (Path::from(name), vec![7; bytes].into());
    store.put_opts(&path, content, PutMode::Create.into()).await?;
    Ok(())
}

async fn get(store: &Arc<dyn ObjectStore>, name: &str) -> object_store::Result<usize> {
    Ok(store.get(&Path::from(name)).await?.bytes().await?.len())
}

/// Two servers do not meet, and each has after a kill what it had confirmed before.
#[tokio::test]
async fn an_s3_server_keeps_its_data_over_a_kill() {
    let (mut server, other) = (S3Server::start(), S3Server::start());
    let store = server.store();
    put(&store, "a/small", 10).await.unwrap();
    put(&store, "a/large", 20 << 20).await.unwrap();
    server.kill();
    let impatient = server.store_via(
        server.address(),
        RetryConfig {
            max_retries: 0,
            ..RetryConfig::default()
        },
    );
    assert!(get(&impatient, "a/small").await.is_err(), "a dead server answers");
    server.restart();
    assert_eq!(get(&store, "a/small").await.unwrap(), 10);
    assert_eq!(get(&store, "a/large").await.unwrap(), 20 << 20);
    let taken = put(&store, "a/small", 11).await;
    assert!(
        matches!(taken, Err(object_store::Error::AlreadyExists { .. })),
        "{taken:?}"
    );
    let absent = get(&other.store(), "a/small").await;
    assert!(
        matches!(absent, Err(object_store::Error::NotFound { .. })),
        "{absent:?}"
    );
}

/// What the script leaves for others names the port that it was given last, and a server that runs already is not lost sight of.
/// Method: a program that is no server, under the server's name.
#[test]
fn the_script_of_the_s3_server_knows_where_it_serves() {
    let place = tempfile::tempdir().unwrap();
    let (script, program) = (
        place.path().join("cluster/start-s3.sh"),
        place.path().join(".deps/seaweedfs/bin/weed"),
    );
    for (file, text) in [
        (&script, include_str!("../../cluster/start-s3.sh")),
        (&program, "#!/bin/sh\nread -r line || true\n"),
    ] {
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(file, text).unwrap();
        fs::set_permissions(file, Permissions::from_mode(0o755)).unwrap();
    }
    let data = place.path().join("data");
    let start = || {
        let mut command = Command::new(&script);
        command.stdin(Stdio::null());
        command
    };
    let environment = || fs::read_to_string(data.join("env.sh")).unwrap();
    let serve_at = |port: u16| {
        let ports = (port..port + 8).map(|port| port.to_string());
        let mut command = start();
        command.arg("--foreground").arg(&data).args(ports);
        let output = command.output().unwrap();
        assert!(output.status.success(), "{output:?}");
        environment()
    };
    let (first, second) = (serve_at(9100), serve_at(9200));
    assert!(first.contains("AWS_ENDPOINT=http://127.0.0.1:9100\n"), "{first}");
    assert!(
        second.contains("AWS_ENDPOINT=http://127.0.0.1:9200\n"),
        "{second}"
    );
    let secret = |text: &str| {
        let mut lines = text.lines();
        lines
            .find(|line| line.contains("AWS_SECRET_ACCESS_KEY="))
            .map(str::to_owned)
    };
    assert!(secret(&first).is_some(), "{first}");
    assert_eq!(secret(&first), secret(&second));

    let mut running = Command::new(&program).stdin(Stdio::piped()).spawn().unwrap();
    let pid = running.id().to_string();
    fs::write(data.join("server.pid"), &pid).unwrap();
    let output = start().arg(&data).output().unwrap();
    drop(running.stdin.take());
    running.wait().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        !output.status.success() && said.contains(&format!("runs already (process {pid})")),
        "{said}"
    );
    assert_eq!(fs::read_to_string(data.join("server.pid")).unwrap(), pid);
    assert_eq!(environment(), second);
}

/// Each mode does its harm to a client without patience, to the server's objects only what it says, and passes over.
#[tokio::test]
async fn a_proxy_does_harm_as_long_as_it_is_told_to() {
    const BYTES: usize = 600_000;
    let server = S3Server::start();
    let proxy = FaultProxy::start(server.address());
    let retry = RetryConfig {
        max_retries: 0,
        ..RetryConfig::default()
    };
    let (direct, store) = (server.store(), server.store_via(proxy.address(), retry));
    put(&store, "there", BYTES).await.unwrap();
    assert_eq!((proxy.requests(), proxy.harmed()), (1, 0));

    // Mode, whether a write fails and whether the object is there afterwards, whether a read fails.
    let cases = [
        (Mode::Refuse, true, false, true),
        (Mode::Answer(500), true, false, true),
        (Mode::Answer(503), true, false, true),
        (Mode::CutRequests, true, false, false),
        (Mode::CutAnswers, false, true, true),
        (Mode::LoseAnswers, true, true, true),
        (
            Mode::Slow {
                bytes_per_second: 10_000_000,
            },
            false,
            true,
            false,
        ),
    ];
    for (mode, write_fails, written, read_fails) in cases {
        let name = format!("{mode:?}");
        proxy.set(mode);
        assert_eq!(put(&store, &name, BYTES).await.is_err(), write_fails, "{name}");
        assert_eq!(get(&store, "there").await.is_err(), read_fails, "{name}");
        assert_eq!(get(&direct, &name).await.is_ok(), written, "{name}");
        proxy.set(Mode::Pass);
        assert_eq!(get(&store, "there").await.unwrap(), BYTES, "after {name}");
    }
    assert!(proxy.harmed() > 0);
}

/// A slow proxy takes the time that it was told to take; one that hangs takes all of it.
#[tokio::test]
async fn a_proxy_can_be_slow_and_can_hang() {
    let server = S3Server::start();
    let proxy = FaultProxy::start(server.address());
    let store = server.store_via(proxy.address(), RetryConfig::default());
    let started = Instant::now();
    proxy.set(Mode::Slow {
        bytes_per_second: 400_000,
    });
    put(&store, "slow", 200_000).await.unwrap();
    assert!(started.elapsed() >= Duration::from_millis(500));
    proxy.set(Mode::Hang);
    let mut read = tokio::spawn(async move { get(&store, "slow").await });
    tokio::time::timeout(Duration::from_secs(30), async {
        while proxy.harmed() < 2 {
            tokio::task::yield_now().await;
        }
    })
    .await
    .expect("the request reaches the proxy");
    // It does not answer for as long as anybody looks.
    let answered = tokio::time::timeout(Duration::from_millis(500), &mut read).await;
    assert!(answered.is_err(), "{answered:?}");
    assert_eq!(proxy.harmed(), 2);
    proxy.set(Mode::Pass);
    // The connection is cut, and the client's second try succeeds.
    assert_eq!(read.await.unwrap().unwrap(), 200_000);
}

/// A host reaches this machine from its own address, not while it is cut off, and again afterwards.
#[test]
fn a_host_can_be_cut_off() {
    let Some(hosts) = permitted(Namespaces::up(2)) else {
        return;
    };
    let listener = TcpListener::bind((hosts.gateway(), 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    let reaches = |index: u8| {
        let script = format!("exec 3<>/dev/tcp/{}/{port}", hosts.gateway());
        let mut command = hosts.host(index).command("timeout");
        let status = command
            .args(["1", "bash", "-c", &script])
            .stderr(Stdio::null())
            .status();
        status.expect("a command can be run on a host").success()
    };
    assert!(reaches(0) && reaches(1));
    let (_, from) = listener.accept().unwrap();
    assert_eq!(from.ip(), hosts.host(0).address());
    hosts.host(0).cut_off();
    assert!(!reaches(0) && reaches(1));
    hosts.host(0).connect();
    wait_until("the host is connected again", || reaches(0));
}

/// A full disk refuses a byte, and takes it when there is space again.
#[test]
fn a_small_disk_gets_full() {
    let Some(disk) = permitted(SmallDisk::mount(4)) else {
        return;
    };
    let file = disk.path().join("file");
    fs::write(&file, "before").unwrap();
    disk.fill();
    let error = fs::write(disk.path().join("another"), "x").unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::StorageFull);
    disk.free();
    fs::write(&file, "after").unwrap();
    assert_eq!(fs::read_to_string(&file).unwrap(), "after");
}

/// A program that tells its wall clock and its monotonic one on request.
struct Teller {
    child: Child,
    answers: BufReader<std::process::ChildStdout>,
}

impl Teller {
    const SCRIPT: &str =
        "import sys, time\nfor _ in sys.stdin: print(time.time(), time.monotonic(), flush=True)";

    fn start(clock: &FalseClock) -> Self {
        let mut command = Command::new("python3");
        command.args(["-c", Self::SCRIPT]).envs(clock.env());
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("python3 can be started");
        let answers = BufReader::new(child.stdout.take().expect("it has a stdout"));
        Self { child, answers }
    }

    /// Seconds by which each of its clocks is ahead of ours.
    fn ahead(&mut self) -> [f64; 2] {
        let script = "import time; print(time.time(), time.monotonic())";
        let right = Command::new("python3").args(["-c", script]).output().unwrap();
        let stdin = self.child.stdin.as_mut().expect("it has a stdin");
        stdin.write_all(b"\n").unwrap();
        let mut line = String::new();
        self.answers.read_line(&mut line).unwrap();
        let numbers = |text: &str| -> Vec<f64> { text.split_whitespace().flat_map(str::parse).collect() };
        let (told, right) = (numbers(&line), numbers(&String::from_utf8_lossy(&right.stdout)));
        [told[0] - right[0], told[1] - right[1]]
    }
}

impl Drop for Teller {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The wall clock of a running program jumps forwards and backwards, its monotonic one does not.
#[test]
fn a_clock_jumps_under_a_running_program() {
    let Some(clock) = permitted(FalseClock::new()) else {
        return;
    };
    let mut teller = Teller::start(&clock);
    for seconds in [0, 500, -700, 0] {
        clock.step(seconds);
        let near = |ahead: f64, right: i64| (ahead - right as f64).abs() < 60.0;
        wait_until("the program's clock has jumped", || {
            near(teller.ahead()[0], seconds)
        });
        assert!(near(teller.ahead()[1], 0), "monotonic time jumped");
    }
}
