//! Goal: one command makes every run of a comparison once, shares stage 1, goes on after being stopped, and reports what is in the runs.
//! Method: real programs on the tiny model.

use std::fs;
use std::path::{Path, PathBuf};

use zipper_tests::{Finished, Fixture, Launched, wait_until};

/// Two variants, both kinds of banks: `shared` has one run for both.
fn comparison(fixture: &Fixture) -> PathBuf {
    let run = fixture.write_config("base.yaml", |text| {
        text.replace("untrained: true", "untrained: false")
    });
    let text = format!(
        "name: demo\nconfig: {}\nset: [checkpoint.every_steps=2]\naxes:\n  - {{key: adapter.variant, values: [shared, soft]}}\n  \
         - {{key: adapter.init, values: [stage1, zero]}}\ngroups:\n  - {{name: high, languages: [en]}}\n  \
         - {{name: low, languages: [de, vi]}}\n",
        run.display()
    );
    let path = fixture.path().join("compare.yaml");
    fs::write(&path, text).expect("the fixture is writable");
    path
}

fn sweep(fixture: &Fixture, config: &Path, more: &[&str]) -> Launched {
    let (config, output) = (
        config.display().to_string(),
        folder(fixture).display().to_string(),
    );
    Launched::start(&[&["sweep", "--config", &config, "--output", &output], more].concat())
}

fn folder(fixture: &Fixture) -> PathBuf {
    fixture.path().join("sweep")
}

fn done(finished: &Finished) -> usize {
    finished
        .stdout
        .lines()
        .filter(|line| line.starts_with("done"))
        .count()
}

#[test]
fn a_comparison_is_made_once_stopped_continued_and_reported() {
    let fixture = Fixture::new();
    let config = comparison(&fixture);
    let plan = sweep(&fixture, &config, &["--print"]).wait();
    assert_eq!(plan.code, Some(0), "{}", plan.stderr);
    assert!(plan.stdout.ends_with("4 runs, 24 steps\n"), "{}", plan.stdout);
    assert_eq!(done(&plan), 0);

    // Stopped in its second run.
    let first = sweep(&fixture, &config, &["--", "--nodes", "1"]);
    let second_run = folder(&fixture).join("runs/shared-stage1");
    wait_until("the second run has a checkpoint", || {
        fs::read_dir(second_run.join("checkpoints")).is_ok_and(|mut entries| entries.next().is_some())
    });
    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(first.pid().try_into().expect("a PID is small")),
        nix::sys::signal::Signal::SIGTERM,
    )
    .expect("it is alive");
    let stopped = first.wait();
    assert_eq!(stopped.code, Some(75), "{}", stopped.stderr);
    assert!(!folder(&fixture).join("report").exists());

    let stage_1 = folder(&fixture).join("stage1/stage1/metrics/train.jsonl");
    let before = fs::metadata(&stage_1)
        .and_then(|about| about.modified())
        .expect("stage 1 is made");
    let finished = sweep(&fixture, &config, &["--", "--nodes", "1"]).wait();
    assert_eq!(finished.code, Some(0), "{}", finished.stderr);
    let after = fs::metadata(&stage_1)
        .and_then(|about| about.modified())
        .expect("stage 1 is made");
    assert_eq!(before, after, "stage 1 was made once");
    assert_eq!(done(&sweep(&fixture, &config, &["--print"]).wait()), 4);

    let report = |kind: &str| {
        let path = folder(&fixture).join(format!("report/report.{kind}"));
        fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    };
    let text = report("md");
    let mut lines = text.lines().filter(|line| !line.starts_with("!["));
    assert!(
        lines.all(|line| finished.stdout.contains(line)),
        "it is printed, too, but for its pictures"
    );
    for row in [
        "| shared | stage1 | 1 |",
        "| soft | stage1 | 1 |",
        "| soft | zero | 1 |",
    ] {
        assert!(text.contains(row), "no `{row}` in:\n{text}");
    }
    // What the run itself says of a language is in the report.
    let table =
        fs::read_to_string(folder(&fixture).join("runs/soft-zero/eval/table.json")).expect("its table");
    let table: serde_json::Value = serde_json::from_str(&table).expect("a table is JSON");
    let rows = table["sets"][0]["languages"].as_array().expect("languages");
    let csv = report("csv");
    for row in rows {
        let lang = row["lang"].as_str().expect("a language");
        let rate = row["trained"]["wer"].as_f64().expect("a rate");
        let line = csv
            .lines()
            .find(|line| line.starts_with(&format!("soft,zero,numbers,language,{lang},1,")))
            .unwrap_or_else(|| panic!("no line of {lang} in:\n{csv}"));
        let ours: f64 = line
            .split(',')
            .nth(6)
            .and_then(|rate| rate.parse().ok())
            .expect("a rate");
        assert!((ours - rate).abs() < 1e-9, "{lang}: {ours} and {rate}");
    }
    assert!(report("html").contains("<h1>demo</h1>"));

    // Nothing is left to be made.
    let again = sweep(&fixture, &config, &[]).wait();
    assert_eq!(again.code, Some(0), "{}", again.stderr);
    assert!(!again.stderr.contains("run 1 of"), "{}", again.stderr);
}

#[test]
fn a_comparison_that_cannot_be_made_is_refused_before_anything_starts() {
    let fixture = Fixture::new();
    let config = comparison(&fixture);
    let text = fs::read_to_string(&config).expect("it was written");
    for (from, to, expected) in [
        ("[shared, soft]", "[shared, sofd]", "did you mean `soft`?"),
        ("adapter.init", "adapter.inti", "unknown key"),
        ("[de, vi]", "[de, fr]", "groups[1].languages"),
    ] {
        fs::write(&config, text.replace(from, to)).expect("the fixture is writable");
        let finished = sweep(&fixture, &config, &[]).wait();
        assert_eq!(finished.code, Some(2), "{}", finished.stderr);
        assert!(
            finished.stderr.contains(expected),
            "{expected}: {}",
            finished.stderr
        );
        assert!(!folder(&fixture).exists());
    }
}
