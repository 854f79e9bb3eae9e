//! Goal: a run can be watched: in a browser, by Prometheus, with TensorBoard, on the command line, while it goes on and when it is over.
//! Method: the real programs on a tiny model, looked at with what people look with: Chromium, a parser of Prometheus' text that
//! others wrote, TensorBoard itself.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use prometheus_parse::{Scrape, Value as Metric};
use serde_json::Value;
use zipper_tests::{Browser, Finished, Fixture, Launched, processes, program, wait_until};

fn fixture() -> Fixture {
    let fixture = Fixture::new();
    fixture.write_config("long.yaml", |text| {
        text.replace("align: {steps: 6,", "align: {steps: 30,")
            .replace("zipper: {steps: 6,", "zipper: {steps: 20000,")
            .replace("untrained: true", "untrained: false")
    });
    fixture
}

fn start(fixture: &Fixture, config: &str, more: &[&str]) -> Launched {
    let config = fixture.path().join(config).display().to_string();
    let run = fixture.run_url("run");
    let mut arguments = vec!["--nodes", "2", "--config", &config, "--run", &run];
    arguments.extend(more);
    Launched::start(&arguments)
}

fn stop(fixture: &Fixture, launched: Launched) -> Finished {
    kill(Pid::from_raw(launched.pid() as i32), Signal::SIGINT).expect("zipper-launch is running");
    let finished = launched.wait();
    assert_eq!(finished.code, Some(75), "{}", finished.stderr);
    wait_until("no process of the run is left", || {
        processes(&[&fixture.run_url("run")]).is_empty()
    });
    finished
}

/// The last picture in the run's store.
fn picture(fixture: &Fixture) -> Option<Value> {
    let bytes = std::fs::read(fixture.path().join("run/metrics/status.json")).ok()?;
    serde_json::from_slice(&bytes).ok()
}

/// Where the page is, once it is served.
fn page_of(fixture: &Fixture) -> String {
    let mut page = None;
    wait_until("the run's picture names the status page", || {
        page = picture(fixture).and_then(|picture| Some(picture["coordinator"]["page"].as_str()?.to_owned()));
        page.is_some()
    });
    page.expect("it was waited for")
}

/// Asks a server on this machine for a page, over HTTP as plain as it can be.
fn get(url: &str, path: &str) -> String {
    let address = url.trim_start_matches("http://").trim_end_matches('/');
    let mut stream = TcpStream::connect(address).expect("somebody listens");
    stream
        .set_read_timeout(Some(Duration::from_secs(30)))
        .expect("a stream can have a deadline");
    let request = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).expect("the server listens");
    let mut answer = Vec::new();
    stream
        .read_to_end(&mut answer)
        .expect("the server answers within 30 s");
    let answer = String::from_utf8_lossy(&answer).into_owned();
    let (head, body) = answer.split_once("\r\n\r\n").expect("an answer of HTTP");
    assert!(head.starts_with("HTTP/1.1 200"), "{path}: {answer}");
    body.to_owned()
}

/// What `zipper-launch status --json` says.
fn status(fixture: &Fixture) -> Value {
    let finished = Launched::run(&["status", "--json", "--run", &fixture.run_url("run")]);
    assert_eq!(finished.code, Some(0), "{}", finished.stderr);
    serde_json::from_str(&finished.stdout).expect("one JSON document and nothing else")
}

const LAST_STEP: &str = "(charts.columns.step.at(-1) ?? 0)";

/// What is drawn of the loss, as an SVG path.
const CURVE: &str = "charts.loss.place.querySelectorAll('.js-line')[1]?.getAttribute('d')";

/// What the page has of a run with two nodes and three languages, as JavaScript.
const SHOWN: [(&str, &str); 9] = [
    (
        "four charts",
        "document.querySelectorAll('.js-plotly-plot .main-svg:first-child').length === 4",
    ),
    (
        "a line for each language",
        "charts.languages.lines.map((line) => line.name).sort().join() === 'de,en,vi'",
    ),
    (
        "both stages",
        "charts.columns.stage.includes(1) && charts.columns.stage.includes(2)",
    ),
    (
        "where each language is",
        "document.querySelectorAll('#placement .track').length === 3",
    ),
    (
        "two workers",
        "document.querySelectorAll('#members tbody tr').length === 2",
    ),
    (
        "healthy nodes",
        "document.getElementById('tiles').innerText.includes('2 / 2')",
    ),
    (
        "a checkpoint",
        "document.querySelectorAll('#checkpoints time').length > 0",
    ),
    (
        "what happened",
        "document.getElementById('timeline').innerText.includes('generation 1 formed')",
    ),
    ("the progress", "document.title.includes('training')"),
];

/// The page shows a live run, whose curves move; it comes back when the coordinator does, and asks nobody else for anything.
#[tokio::test(flavor = "multi_thread")]
async fn the_page_shows_a_live_run_and_survives_its_coordinator() {
    let fixture = fixture();
    let launched = start(&fixture, "long.yaml", &[]);
    let page = page_of(&fixture);
    let browser = Browser::start().await;
    browser.open(&page).await;
    let steps = format!("{LAST_STEP} >= 35");
    browser.wait_for("curves are drawn", &steps).await;
    let before = browser.value(LAST_STEP).await.as_u64().expect("a step");
    let curve = browser.value(CURVE).await;
    let moved = format!("{LAST_STEP} > {before} && {CURVE}.length > 20 && {CURVE} !== {curve}");
    browser.wait_for("the curves move", &moved).await;
    for (what, expression) in SHOWN {
        browser.wait_for(what, expression).await;
    }
    assert_eq!(browser.complaints().await, Vec::<String>::new());
    assert_it_survives(&browser, &fixture.run_url("run")).await;
    assert_it_fits(&browser).await;
    let requests = browser.requests().await;
    let own = |url: &&String| url.starts_with(&page) || url.starts_with("data:");
    let elsewhere: Vec<&String> = requests.iter().filter(|url| !own(url)).collect();
    assert!(
        elsewhere.is_empty() && !requests.is_empty(),
        "the page asked others: {elsewhere:?}"
    );
    stop(&fixture, launched);
    let over = "document.getElementById('phase').textContent === 'stopped'";
    browser.wait_for("the page says how the run ended", over).await;
    browser.close().await;
}

/// A coordinator that is killed is followed by another one, which the page finds, and which knows the past.
async fn assert_it_survives(browser: &Browser, run: &str) {
    let coordinator = processes(&["zipper-coordinator", run]);
    kill(Pid::from_raw(coordinator[0]), Signal::SIGKILL).expect("the coordinator is running");
    let before = browser.value(LAST_STEP).await.as_u64().expect("a step");
    let connection = "document.getElementById('connection').dataset.state";
    let timeline = "document.getElementById('timeline').innerText";
    for (what, expression) in [
        (
            "the page shows the next coordinator",
            format!("picture.coordinator.epoch === 2 && {connection} === 'live'"),
        ),
        ("the curves go on", format!("{LAST_STEP} > {before}")),
        ("old steps are kept", "charts.columns.step[0] === 1".to_owned()),
        (
            "what happened before is kept",
            format!("{timeline}.includes('generation 1 formed')"),
        ),
        ("the restart is told", format!("{timeline}.includes('claim 2')")),
    ] {
        browser.wait_for(what, &expression).await;
    }
    // While nobody listened, connections failed: that is what the browser itself says, and all that it may say.
    let complaints = browser.complaints().await;
    let own: Vec<&String> = complaints
        .iter()
        .filter(|line| !line.contains("net::ERR_"))
        .collect();
    assert!(own.is_empty(), "{own:?}");
}

/// Nothing sticks out on a phone, and the dark theme is dark.
async fn assert_it_fits(browser: &Browser) {
    browser.resize(390, 844).await;
    let overflow = "document.documentElement.scrollWidth - document.documentElement.clientWidth";
    browser
        .wait_for("the page fits a phone", &format!("{overflow} <= 0"))
        .await;
    let dark = "document.documentElement.dataset.theme === 'dark'";
    // As the system says, light, dark.
    for _ in 0..2 {
        browser.value("document.getElementById('theme').click()").await;
    }
    browser.wait_for("the page is dark", dark).await;
    let background = "getComputedStyle(document.body).backgroundColor";
    assert_eq!(browser.value(background).await, "rgb(17, 22, 28)");
}

/// What Prometheus is told of a live run is true, and the status from the store agrees, then and when everything is gone.
#[test]
fn prometheus_and_the_command_line_tell_the_same() {
    let fixture = fixture();
    let launched = start(&fixture, "long.yaml", &[]);
    let page = page_of(&fixture);
    let mut samples = BTreeMap::new();
    let mut scrape = || {
        let text = get(&page, "/metrics");
        let scrape = Scrape::parse(text.lines().map(|line| Ok(line.to_owned()))).expect("Prometheus' format");
        samples = scrape
            .samples
            .into_iter()
            .map(|sample| ((sample.metric, sample.labels.to_string()), sample.value))
            .collect();
        let number = |name: &str, labels: &str| match samples.get(&(name.to_owned(), labels.to_owned())) {
            Some(Metric::Gauge(number) | Metric::Counter(number)) => Some(*number),
            _ => None,
        };
        (
            number("zipper_step", ""),
            number("zipper_nodes", r#"state="healthy""#),
            number("zipper_workers", r#"state="training""#),
            number("zipper_store_requests_total", r#"operation="write""#),
        )
    };
    wait_until("two nodes train", || {
        let (step, nodes, workers, _) = scrape();
        step >= Some(5.0) && nodes == Some(2.0) && workers == Some(2.0)
    });
    let (before, .., writes) = scrape();
    assert!(writes > Some(0.0), "{writes:?}");
    wait_until("steps go on", || scrape().0 > before);

    wait_until(
        "the run's store has a checkpoint and both nodes in its picture",
        || {
            let picture = status(&fixture);
            let checkpoints = picture["checkpoints"].as_array();
            checkpoints.is_some_and(|list| !list.is_empty()) && picture["nodes"]["healthy"] == 2
        },
    );
    let live = status(&fixture);
    assert_eq!(
        (&live["claimed"], &live["world_size"], &live["generation"]),
        (&true.into(), &2.into(), &1.into()),
        "{live}"
    );
    assert_eq!(live["last_step"], 20030);

    stop(&fixture, launched);
    let over = status(&fixture);
    assert_eq!(
        (&over["claimed"], &over["phase"]),
        (&false.into(), &"stopped".into()),
        "{over}"
    );
    let steps = fixture.losses("run").last().expect("there are steps").0;
    assert_eq!(over["step"], steps, "{over}");
    assert!(
        over["effective_training_ratio"]
            .as_f64()
            .is_some_and(|ratio| ratio > 0.0 && ratio < 1.0),
        "{over}"
    );
    let text = Launched::run(&["status", "--run", &fixture.run_url("run")]);
    for words in [
        "stopped: Ctrl-C",
        "of 20030",
        "2 workers in generation 1",
        "checkpoint",
    ] {
        assert!(text.stdout.contains(words), "no `{words}` in:\n{}", text.stdout);
    }
    assert_page_of_the_past(&fixture);
}

/// A run that is over has a page, too, as long as somebody wants to look at it.
fn assert_page_of_the_past(fixture: &Fixture) {
    let mut server = Command::new(program("zipper-launch"))
        .args(["status", "--page", "--run", &fixture.run_url("run")])
        .stdin(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("zipper-launch can be started");
    let stderr = server.stderr.take().expect("stderr is piped");
    let mut lines = BufReader::new(stderr).lines().map_while(Result::ok);
    let url = lines.find_map(|line| {
        let url = line.split_whitespace().find(|word| word.starts_with("http://"))?;
        Some(url.to_owned())
    });
    let url = url.expect("it says where the page is");
    let shown: Value = serde_json::from_str(&get(&url, "/api/picture")).expect("JSON");
    assert_eq!(shown["phase"], "stopped", "{shown}");
    let steps: Value = serde_json::from_str(&get(&url, "/api/steps")).expect("JSON");
    assert_eq!(steps["step"][0], 1, "{steps}");
    kill(Pid::from_raw(server.id() as i32), Signal::SIGINT).expect("it is running");
    let status = server.wait().expect("it can be waited for");
    assert_eq!(status.code(), Some(0));
}

/// A run that has no picture, as one of an earlier version, is told from its journal and its metrics; the page can be switched off.
#[test]
fn a_run_without_a_picture_is_told_from_its_journal() {
    let fixture = fixture();
    let launched = start(&fixture, "long.yaml", &["--set", "watching.page=false"]);
    wait_until("a checkpoint is there", || {
        fixture
            .path()
            .join("run/checkpoints/step-00000004/MANIFEST.json")
            .exists()
    });
    stop(&fixture, launched);
    std::fs::remove_file(fixture.path().join("run/metrics/status.json"))
        .expect("it is written without a page, too");
    let told = status(&fixture);
    assert_eq!(
        (&told["phase"], &told["generation"]),
        (&"stopped".into(), &1.into()),
        "{told}"
    );
    assert_eq!(told["checkpoints"][0]["step"], 4, "{told}");
    assert!(told["latest"]["loss"].is_number(), "{told}");
    let missing = fixture.run_url("nothing");
    let none = Launched::run(&["status", "--run", &missing]);
    assert!(
        none.code == Some(2) && none.stderr.contains("there is no run in"),
        "{}",
        none.stderr
    );
}

/// All processes of a run log in JSON if one asks for it, with the same trace.
fn assert_one_trace(logs: &Path) {
    let mut traces = BTreeSet::new();
    let mut services = BTreeSet::new();
    for entry in std::fs::read_dir(logs).expect("there are logs").flatten() {
        let text = std::fs::read_to_string(entry.path()).expect("a log is text");
        for line in text.lines() {
            let line: Value = serde_json::from_str(line)
                .unwrap_or_else(|error| panic!("{}: {error} in `{line}`", entry.path().display()));
            traces.extend(line["trace_id"].as_str().map(str::to_owned));
            services.extend(line["resource"]["service.name"].as_str().map(str::to_owned));
        }
    }
    assert_eq!(traces.len(), 1, "{traces:?}");
    for service in ["zipper-coordinator", "zipper-worker"] {
        assert!(
            services.contains(service),
            "`{service}` logs nothing: {services:?}"
        );
    }
}

/// TensorBoard itself reads the event files of a run: every step's loss, and the evaluations.
#[test]
fn tensorboard_reads_the_event_files() {
    let fixture = Fixture::new();
    let finished = start(&fixture, "run.yaml", &["--log-format", "json"]).wait();
    assert_eq!(finished.code, Some(0), "{}", finished.stderr);
    assert_one_trace(&fixture.path().join("run/logs"));
    let python = Path::new(env!("CARGO_MANIFEST_DIR")).join("../.deps/tensorboard/bin/python");
    let mut tensorboard = Command::new(&python)
        .args([
            "-m",
            "tensorboard.main",
            "--host",
            "127.0.0.1",
            "--port",
            "0",
            "--logdir",
        ])
        .arg(fixture.path().join("run/metrics/tensorboard"))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("`cargo xtask test` has installed TensorBoard");
    let stderr = tensorboard.stderr.take().expect("stderr is piped");
    let mut lines = BufReader::new(stderr).lines().map_while(Result::ok);
    let url = lines.find_map(|line| {
        let url = line.split_whitespace().find(|word| word.starts_with("http://"))?;
        Some(url.to_owned())
    });
    // It goes on to say things, which nobody must keep it from.
    std::thread::spawn(move || lines.for_each(drop));
    let url = url.expect("TensorBoard says where it listens");
    let mut tags = Value::Null;
    wait_until("TensorBoard has read the files", || {
        tags = serde_json::from_str(&get(&url, "/data/plugin/scalars/tags")).expect("JSON");
        tags["."]["train/loss"].is_object()
    });
    for tag in [
        "train/learning_rate",
        "throughput/audio_seconds_per_second",
        "loss_by_language/de",
        "evaluation/numbers/wer",
    ] {
        assert!(tags["."][tag].is_object(), "no `{tag}` in {tags}");
    }
    let mut losses: Vec<(u64, f64)> = Vec::new();
    wait_until("TensorBoard has every step", || {
        let points = get(&url, "/data/plugin/scalars/scalars?run=.&tag=train%2Floss");
        let points: Vec<(f64, u64, f64)> = serde_json::from_str(&points).expect("time, step, value");
        losses = points.into_iter().map(|(_, step, loss)| (step, loss)).collect();
        losses.len() >= 12
    });
    tensorboard.kill().expect("TensorBoard is running");
    tensorboard.wait().expect("it can be waited for");
    let written = fixture.losses("run");
    assert_eq!(losses.len(), written.len());
    for ((step, read), (of, loss)) in losses.iter().zip(&written) {
        assert!(
            step == of && (read - loss).abs() < 1e-5 * loss.abs(),
            "step {step}: {read}, not {loss}"
        );
    }
}
