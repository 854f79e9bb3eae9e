//! Goal: whoever is not of a run's launch gets no connection and is counted; and nothing secret is anywhere but where it
//! belongs: not in command lines, outputs, logs, metrics, nor in anything that a run leaves.
//! Method: a real run with keys of an object store, certificates, and a token of the status page; a stranger at its
//! coordinator; then everything is searched for what is secret.

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read, Write};
use std::net::{IpAddr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use prometheus_parse::{Scrape, Value};
use zipper_tests::{Fixture, Launched, Namespaces, S3Server, permitted, processes, program, wait_until};

const RUN: &str = "runs/secret";

/// Files below a folder.
fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            found.extend(files(&path));
        } else {
            found.push(path);
        }
    }
    found
}

fn mode(path: &Path) -> u32 {
    let about = fs::metadata(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    about.permissions().mode() & 0o777
}

/// What must not be found, each with what it is.
#[derive(Default)]
struct Secrets(Vec<(String, String)>);

impl Secrets {
    fn add(&mut self, what: &str, secret: &str) {
        assert!(
            secret.len() > 12,
            "{what} is long enough not to be found by chance"
        );
        self.0.push((what.to_owned(), secret.to_owned()));
    }

    /// The private key of a file of credentials, line by line.
    fn add_key(&mut self, file: &Path) {
        let text = fs::read_to_string(file).expect("it is ours");
        let (_, key) = text
            .split_once("-----BEGIN PRIVATE KEY-----")
            .expect("it holds a key");
        let (key, _) = key.split_once("-----END").expect("a key ends");
        for line in key.lines().filter(|line| line.len() > 40) {
            self.add(&file.display().to_string(), line);
        }
    }

    fn assert_absent(&self, place: &str, bytes: &[u8]) {
        for (what, secret) in &self.0 {
            let found = bytes
                .windows(secret.len())
                .any(|window| window == secret.as_bytes());
            assert!(!found, "{place} has the secret of {what}");
        }
    }
}

/// The command lines of all processes of this machine, as `ps` shows them to everybody.
fn command_lines() -> Vec<u8> {
    let mut all = Vec::new();
    for process in fs::read_dir("/proc").expect("/proc is there").flatten() {
        // Processes come and go.
        all.extend(fs::read(process.path().join("cmdline")).unwrap_or_default());
    }
    all
}

/// Where the agents were told that the coordinator is.
fn coordinator_of(url: &str) -> String {
    let agents = processes(&["zipper-launch\0agent\0", &format!("\0{url}\0")]);
    let process = agents.first().expect("there is an agent");
    let command = fs::read(format!("/proc/{process}/cmdline")).expect("it lives");
    let command = String::from_utf8_lossy(&command).into_owned();
    let address = command.split('\0').find_map(|word| word.strip_prefix("https://"));
    address.expect("it was told an encrypted way").to_owned()
}

/// `/metrics` of a status page that may need a token.
fn metrics(page: &str, token: Option<&str>) -> String {
    let mut stream = TcpStream::connect(page).expect("the page is served");
    stream
        .set_read_timeout(Some(Duration::from_secs(30)))
        .expect("a stream can have a deadline");
    let token = token.map(|token| format!("Authorization: Bearer {token}\r\n"));
    let token = token.unwrap_or_default();
    let request = format!("GET /metrics HTTP/1.1\r\nHost: {page}\r\n{token}Connection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).expect("the server listens");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("it answers");
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    answer
        .split_once("\r\n\r\n")
        .expect("an answer of HTTP")
        .1
        .to_owned()
}

fn refused(metrics: &str, reason: &str) -> f64 {
    let lines = metrics.lines().map(|line| Ok(line.to_owned()));
    let scrape = Scrape::parse(lines).expect("Prometheus can read it");
    let of_reason = scrape.samples.iter().find(|sample| {
        sample.metric == "zipper_connections_refused_total" && sample.labels.get("reason") == Some(reason)
    });
    match of_reason.map(|sample| &sample.value) {
        Some(Value::Counter(number) | Value::Untyped(number)) => *number,
        _ => 0.0,
    }
}

/// What a launch in the folder `disk` keeps secret, and the token of its status page. Its files are for their owner alone.
fn secrets_of_a_launch(disk: &Path, server: &S3Server) -> (Secrets, Option<String>) {
    let mut secrets = Secrets::default();
    for (name, value) in server.env() {
        if name == "AWS_SECRET_ACCESS_KEY" {
            secrets.add(&name, &value);
        }
    }
    let mut keys = 0;
    let mut token = None;
    for file in files(disk) {
        if file.extension().is_some_and(|extension| extension == "pem") {
            assert_eq!(mode(&file), 0o600, "{}", file.display());
            assert_eq!(mode(file.parent().expect("it is in a folder")), 0o700);
            secrets.add_key(&file);
            keys += 1;
        }
        if file.ends_with("status-page.token") {
            assert_eq!(mode(&file), 0o600, "{}", file.display());
            let text = fs::read_to_string(&file).expect("it is ours");
            secrets.add("the status page", text.trim());
            token = Some(text.trim().to_owned());
        }
    }
    assert_eq!(keys, 2, "one file for the coordinator, one for the nodes");
    assert!(secrets.0.len() > 2, "there is something to look for");
    (secrets, token)
}

#[tokio::test]
async fn strangers_are_refused_and_nothing_secret_is_left_anywhere() {
    let (fixture, server) = (Fixture::new(), S3Server::start());
    fixture.write_config("run.yaml", |text| {
        text.replace("align: {steps: 6,", "align: {steps: 5000,")
            .replace("untrained: true", "untrained: false")
    });
    let disk = fixture.path().join("disk");
    fs::create_dir_all(&disk).expect("the fixture is writable");
    let url = server.url(RUN);
    // Only outside loopback does the page have a token.
    let hosts = permitted(Namespaces::up(1));
    let listen = hosts
        .as_ref()
        .map_or(IpAddr::from([127, 0, 0, 1]), Namespaces::gateway);
    let mut command = Command::new(program("zipper-launch"));
    command
        .args(["--nodes", "2", "--run", &url, "--config"])
        .arg(fixture.path().join("run.yaml"))
        .args(["--set", &format!("watching.listen={listen}:0")])
        .current_dir(&disk)
        .env("ZIPPER_LOG", "debug")
        .envs(server.env());
    let launched = Launched::start_command(&mut command);
    let run = server.run(RUN);
    let mut picture = serde_json::Value::Null;
    for _ in 0..1200 {
        if let Ok(bytes) = run.get("metrics/status.json").await {
            picture = serde_json::from_slice(&bytes).expect("JSON");
            if picture["step"].as_u64() > Some(4) {
                break;
            }
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(picture["step"].as_u64() > Some(4), "the run trains: {picture}");

    let (secrets, token) = secrets_of_a_launch(&disk, &server);
    assert_eq!(
        token.is_some(),
        hosts.is_some(),
        "outside loopback there is a token"
    );

    let lines = command_lines();
    let mentions = |what: &str| lines.windows(what.len()).any(|window| window == what.as_bytes());
    assert!(mentions(&url), "command lines are searched");
    secrets.assert_absent("a command line", &lines);

    // A stranger, who is refused and counted.
    let mut stranger = TcpStream::connect(coordinator_of(&url)).expect("the coordinator listens");
    stranger
        .write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
        .expect("it is open");
    let page = picture["coordinator"]["page"]
        .as_str()
        .expect("there is a page")
        .to_owned();
    let page = page
        .trim_start_matches("http://")
        .trim_end_matches('/')
        .to_owned();
    let mut shown = String::new();
    wait_until("the stranger is counted", || {
        shown = metrics(&page, token.as_deref());
        refused(&shown, "protocol") >= 1.0
    });
    secrets.assert_absent("/metrics", shown.as_bytes());
    assert!(
        refused(&shown, "other_run") + refused(&shown, "no_certificate") < 1.0,
        "{shown}"
    );

    kill(Pid::from_raw(launched.pid() as i32), Signal::SIGINT).expect("zipper-launch is running");
    let finished = launched.wait();
    assert_eq!(finished.code, Some(75), "{}", finished.stderr);
    secrets.assert_absent("stdout", finished.stdout.as_bytes());
    secrets.assert_absent("stderr", finished.stderr.as_bytes());
    let mut logs = BTreeSet::new();
    for file in files(&disk) {
        let bytes = fs::read(&file).expect("it is ours");
        secrets.assert_absent(&file.display().to_string(), &bytes);
        logs.extend(file.file_name().map(|name| name.to_string_lossy().into_owned()));
    }
    for log in ["coordinator.log", "node0-agent.log", "node1-worker0.log"] {
        assert!(logs.contains(log), "`{log}` was searched: {logs:?}");
    }
    let objects = run.list("").await.expect("the store can be read");
    for kind in ["run.yaml", "journal/", "metrics/", "MANIFEST.json", "lease/"] {
        assert!(
            objects.iter().any(|path| path.contains(kind)),
            "`{kind}` was searched"
        );
    }
    for path in objects {
        let bytes = run.get(&path).await.expect("it was listed");
        secrets.assert_absent(&path, &bytes);
    }
}
