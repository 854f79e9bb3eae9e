//! Makes docs/status-page.png: a live run, in which a worker was lost, in a headless Chromium.
//!
//! ```sh
//! cargo build --workspace && cargo run -p zipper-tests --example status_page
//! ```

use std::path::Path;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use zipper_tests::{Browser, Fixture, Launched, processes, wait_until};

/// Completed steps in the picture.
const STEPS: u32 = 400;
const WIDTH: u32 = 1400;
const HEIGHT: u32 = 1750;

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
    let (config, run) = (config.display().to_string(), fixture.run_url("run"));
    let launched = Launched::start(&["--nodes", "4", "--config", &config, "--run", &run]);
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
    let to = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/status-page.png");
    std::fs::write(&to, browser.screenshot().await).expect("docs/ can be written");
    println!("{}", to.display());
    browser.close().await;
    launched.kill();
    wait_until("no process of the run is left", || processes(&[&run]).is_empty());
}
