//! Goal: on a terminal a few lines keep themselves up to date and nothing is garbled, at any width; without one there are plain lines.
//! Method: the real programs on pseudo-terminals of several widths, whose screens are looked at while the run goes on.

use std::num::NonZero;
use std::process::Command;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use zipper_tests::{Fixture, Terminal, processes, program, wait_until};

const ROWS: NonZero<u16> = NonZero::new(40).expect("there are rows");

fn launch(fixture: &Fixture, run: &str) -> Command {
    let mut command = Command::new(program("zipper-launch"));
    command
        .args(["--nodes", "2", "--config"])
        .arg(fixture.path().join("long.yaml"))
        .args(["--run", &fixture.run_url(run)])
        // Nobody else's settings.
        .env_remove("NO_COLOR")
        .env("ZIPPER_LOG", "warn");
    command
}

fn fixture() -> Fixture {
    let fixture = Fixture::new();
    fixture.write_config("long.yaml", |text| {
        text.replace("steps: 6,", "steps: 5000,")
            .replace("untrained: true", "untrained: false")
    });
    fixture
}

/// The row of the screen that begins so.
fn row(lines: &[String], start: &str) -> Option<String> {
    lines.iter().rev().find(|line| line.starts_with(start)).cloned()
}

/// What is on the screen while a run of `columns` goes on, a worker's death included, and after its end.
fn play(fixture: &Fixture, columns: u16, no_color: bool) {
    let run = format!("run{columns}");
    let mut command = launch(fixture, &run);
    if no_color {
        command.env("NO_COLOR", "1");
    }
    let width = NonZero::new(columns).expect("there are columns");
    let terminal = Terminal::start(&mut command, ROWS, width);
    let shows = |start: &str| row(&terminal.lines(), start).is_some();
    wait_until("losses are on the screen", || shows("loss "));
    wait_until("a checkpoint is on the screen", || {
        terminal
            .lines()
            .iter()
            .any(|line| line.contains("checkpoint step "))
    });
    wait_until("losses of all languages are on the screen", || {
        let line = row(&terminal.lines(), "en ").unwrap_or_default();
        line.contains("de ") && line.contains("vi ")
    });
    let url = fixture.run_url(&run);
    let worker = processes(&["zipper-worker", "train", &url, "--node-rank\u{0}1"]);
    kill(Pid::from_raw(worker[0]), Signal::SIGKILL).expect("the worker is running");
    wait_until("the recovery is on the screen", || {
        shows("recovered in ") && shows("• recovered in ")
    });
    let lines = terminal.lines();
    let screen = lines.join("\n");
    let stage = row(&lines, "align ").expect("a line for stage 1");
    assert!(stage.contains("/5000") && stage.contains("ETA "), "{screen}");
    assert!(
        row(&lines, "zipper ").is_some_and(|line| line.contains("0/5000")),
        "{screen}"
    );
    let loss = row(&lines, "loss ").expect("a line of figures");
    assert!(loss.contains("audio-s/s"), "{screen}");
    assert!(screen.contains("2/2 nodes healthy"), "{screen}");
    assert!(
        row(&lines, "• recovered in").is_some(),
        "the last event is on the screen:\n{screen}"
    );
    // Lines that keep themselves up to date are there once each, below everything else, and fit.
    for start in ["align ", "zipper ", "loss "] {
        let count = lines.iter().filter(|line| line.starts_with(start)).count();
        assert_eq!(count, 1, "`{start}` at {columns} columns:\n{screen}");
    }
    let first = lines
        .iter()
        .position(|line| line.starts_with("align "))
        .expect("it is there");
    // Those below are filled up to the edge, and each begins in the row after it.
    let wrapped = terminal.wrapped();
    assert!(
        wrapped.iter().all(|row| *row >= first),
        "rows {wrapped:?} are longer than {columns} columns:\n{screen}"
    );
    let last = lines
        .iter()
        .rposition(|line| !line.is_empty())
        .expect("something is there");
    assert_eq!(last - first, 5, "six lines, and nothing below them:\n{screen}");
    assert!(
        lines[first..=last]
            .iter()
            .all(|line| line.chars().count() <= usize::from(columns)),
        "{screen}"
    );
    assert_eq!(terminal.has_style(), !no_color, "{screen}");
    kill(Pid::from_raw(terminal.pid() as i32), Signal::SIGINT).expect("it is running");
    wait_until("its processes are gone", || processes(&[&url]).is_empty());
    // What it wrote last may still be on its way to the screen.
    wait_until("its last words are on the screen", || shows("Stopped (Ctrl-C"));
    let end = terminal.lines().join("\n");
    assert!(
        !shows("loss ") && !shows("align ") && !end.contains("audio-s/s"),
        "the lines are taken away:\n{end}"
    );
    assert!(end.contains("effective training time"), "{end}");
}

#[test]
fn a_narrow_terminal_is_not_garbled() {
    play(&fixture(), 60, false);
}

#[test]
fn without_colour_nothing_is_garbled() {
    play(&fixture(), 100, true);
}
