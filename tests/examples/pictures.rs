//! Makes docs/terminal.svg and docs/status-page.png: a live run, in which a worker was lost, on a terminal and in a headless Chromium.
//!
//! ```sh
//! cargo build --workspace && cargo run -p zipper-tests --example pictures
//! ```

use std::num::NonZero;
use std::path::Path;
use std::process::Command;

use anstyle_svg::Term;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use zipper_tests::{Browser, Fixture, Terminal, processes, program, wait_until};

/// Completed steps in the pictures.
const STEPS: u32 = 400;
const ROWS: NonZero<u16> = NonZero::new(30).expect("there are rows");
const COLUMNS: NonZero<u16> = NonZero::new(110).expect("there are columns");
const WIDTH: u32 = 1400;
const HEIGHT: u32 = 1750;
/// How the fixture's folder is called on the terminal.
const FOLDER: &str = "/data";

#[tokio::main]
async fn main() {
    let fixture = Fixture::new();
    let config = fixture.write_config("long.yaml", |text| {
        text.replace("align: {steps: 6,", "align: {steps: 150,")
            .replace("zipper: {steps: 6,", "zipper: {steps: 600,")
            .replace("untrained: true", "untrained: false")
            .replace("every_steps: 4", "every_steps: 50")
            .replace("name: tiny", "name: three-languages")
    });
    let run = fixture.run_url("run");
    let mut command = Command::new(program("zipper-launch"));
    command
        .args(["--nodes", "4", "--run", &run, "--config"])
        .arg(config);
    let terminal = Terminal::start(command.env_remove("NO_COLOR"), ROWS, COLUMNS);
    let mut page = None;
    wait_until("the run's picture names the status page", || {
        let picture = std::fs::read(fixture.path().join("run/metrics/status.json")).unwrap_or_default();
        let picture: Value = serde_json::from_slice(&picture).unwrap_or_default();
        page = picture["coordinator"]["page"].as_str().map(str::to_owned);
        page.is_some()
    });
    let browser = Browser::start().await;
    browser.resize(WIDTH, HEIGHT).await;
    browser.open(&page.expect("it was waited for")).await;
    let reached = |step: u32| format!("(charts.columns.step.at(-1) ?? 0) >= {step}");
    browser.wait_for("steps are made", &reached(STEPS / 2)).await;
    let worker = processes(&["zipper-worker", "train", &run, "--node-rank\u{0}3"]);
    kill(Pid::from_raw(worker[0]), Signal::SIGKILL).expect("the worker is running");
    browser.wait_for("steps are made", &reached(STEPS)).await;
    let folder = fixture.path().display().to_string();
    let screen = terminal.styled().replace(&folder, FOLDER);
    write("terminal.svg", Term::new().render_svg(&screen).as_bytes());
    write("status-page.png", &browser.screenshot().await);
    browser.close().await;
    kill(Pid::from_raw(terminal.pid().cast_signed()), Signal::SIGINT).expect("it is running");
    wait_until("no process of the run is left", || processes(&[&run]).is_empty());
}

fn write(name: &str, content: &[u8]) {
    let to = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs").join(name);
    std::fs::write(&to, content).expect("docs/ can be written");
    println!("{}", to.display());
}
