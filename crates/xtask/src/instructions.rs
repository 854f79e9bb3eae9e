//! `cargo xtask instructions`: how many instructions hot paths take, against docs/benchmarks/instructions.json.
//!
//! Seconds of a shared machine say little about a change of a few percent; instructions hardly depend on what else the machine
//! does. Valgrind counts them, on a processor that it plays: on x86-64 one of a few, whatever the machine's own is called. So the
//! kernels that dependencies choose by the processor are the same on nearly all machines. Where they are not, or in another
//! build, counts are of another kind, which has its own numbers in the file.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use anyhow::Context;
use clap::Args;
use serde::{Deserialize, Serialize};
use zipper_cli::UserError;

use crate::checks;
use crate::workspace::{Workspace, printed};

/// The counts that are committed.
const FILE: &str = "docs/benchmarks/instructions.json";
/// Prints the names of the paths, and goes one: tests/examples/instructions.rs.
const EXAMPLE: &str = "instructions";
/// How far counts may be apart, in either direction. The same program differs from run to run by less than a hundredth (hash
/// tables have random keys), with another libc by a few percent of a path that mostly allocates or copies. A kernel that
/// is no longer chosen, a copy too many or a search in a list instead of a table is far more than this.
const TOLERANCE: f64 = 0.1;
const COMMAND: &str = "cargo xtask instructions";

#[derive(Debug, Clone, Copy, Args)]
pub(crate) struct Options {
    /// Take the new counts into docs/benchmarks/instructions.json.
    #[arg(long)]
    write: bool,
    /// Count in the release build, which is what users run. CI counts in the other one, which it has anyway.
    #[arg(long)]
    release: bool,
}

/// Instructions by path.
type Counts = BTreeMap<String, u64>;

/// The committed file.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Committed {
    /// What writes it.
    command: String,
    /// By kind: processor as Valgrind plays it, build.
    counts: BTreeMap<String, Counts>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Same,
    /// More than the tolerance allows.
    More,
    /// Less than the tolerance allows: good, and the file no longer says what there is to lose.
    Less,
    /// Not in the file.
    New,
    /// Only in the file.
    Gone,
}

#[derive(Debug, PartialEq)]
struct Row {
    path: String,
    committed: Option<u64>,
    now: Option<u64>,
    verdict: Verdict,
}

/// Counts, if Valgrind is there, and compares.
///
/// # Errors
/// As [`run`].
pub(crate) fn check(workspace: &Workspace) -> anyhow::Result<()> {
    if !has_valgrind(workspace) {
        println!("valgrind is not installed: instructions are not counted");
        return Ok(());
    }
    let options = Options {
        write: false,
        release: false,
    };
    run(workspace, options)
}

/// Counts, and compares or writes.
///
/// # Errors
/// [`UserError`] if Valgrind is missing, a path takes many more instructions than are committed, or the file does not fit the
/// program; what building or counting fails with.
pub(crate) fn run(workspace: &Workspace, options: Options) -> anyhow::Result<()> {
    if !has_valgrind(workspace) {
        let error = UserError::new("valgrind is missing, which counts instructions");
        let install =
            "on Debian and Ubuntu: apt-get update && apt-get install -y --no-install-recommends valgrind";
        return Err(error.hint(install).into());
    }
    let mut cargo = workspace.cargo();
    // As CI builds: what is inlined depends on how a crate is divided for the compiler, which an incremental build does otherwise.
    cargo.env("CARGO_INCREMENTAL", "0");
    let program = workspace.example(cargo, EXAMPLE, options.release)?;
    let kind = printed(
        workspace
            .command("valgrind")
            .args(["--tool=none", "-q"])
            .arg(&program)
            .arg("--kind"),
    )?;
    let (kind, mut now) = (kind.trim().to_owned(), Counts::new());
    for name in printed(&mut workspace.command(&program))?.lines() {
        now.insert(name.to_owned(), count(workspace, &program, name)?);
    }
    let file = workspace.root().join(FILE);
    let mut committed = read(&file)?;
    let before = committed.counts.get(&kind);
    let rows = compare(&now, before.unwrap_or(&Counts::new()));
    print!("\n{kind}\n\n{}", table(&rows));
    if options.write {
        COMMAND.clone_into(&mut committed.command);
        committed.counts.insert(kind, now);
        let json = serde_json::to_string_pretty(&committed)? + "\n";
        fs::write(&file, json).with_context(|| format!("cannot write `{}`", file.display()))?;
        println!("\nwritten: {FILE}");
        return Ok(());
    }
    judge(before.is_some(), &rows)
}

fn has_valgrind(workspace: &Workspace) -> bool {
    checks::runs(&mut workspace.command("valgrind"))
}

/// Instructions of a path, without those of what it is set up with.
fn count(workspace: &Workspace, program: &Path, name: &str) -> anyhow::Result<u64> {
    let whole = count_run(workspace, program, &[name])?;
    let set_up = count_run(workspace, program, &[name, "--only-set-up"])?;
    whole
        .checked_sub(set_up)
        .with_context(|| format!("`{name}` took fewer instructions than its set-up: {whole}, {set_up}"))
}

/// Instructions of a whole run of the program.
fn count_run(workspace: &Workspace, program: &Path, arguments: &[&str]) -> anyhow::Result<u64> {
    let output = workspace.root().join("target/instructions.cachegrind");
    let mut counting = workspace.command("valgrind");
    counting
        .args(["--tool=cachegrind", "-q", "--cache-sim=no", "--branch-sim=no"])
        .arg(format!("--cachegrind-out-file={}", output.display()))
        .arg(program)
        .args(arguments);
    printed(&mut counting)?;
    let text = fs::read_to_string(&output).with_context(|| format!("cannot read `{}`", output.display()))?;
    fs::remove_file(&output).with_context(|| format!("cannot remove `{}`", output.display()))?;
    instructions(&text).with_context(|| format!("`{}` has no count of instructions", output.display()))
}

/// The count in what cachegrind writes: its last line sums up, instructions first.
fn instructions(text: &str) -> Option<u64> {
    let summary = text
        .lines()
        .rev()
        .find_map(|line| line.strip_prefix("summary:"))?;
    summary.split_whitespace().next()?.parse().ok()
}

/// The committed counts; none if there is no file.
fn read(file: &Path) -> anyhow::Result<Committed> {
    if !file.exists() {
        return Ok(Committed::default());
    }
    let text = fs::read_to_string(file).with_context(|| format!("cannot read `{}`", file.display()))?;
    serde_json::from_str(&text).with_context(|| format!("`{}` is not what {COMMAND} writes", file.display()))
}

/// A row for each path that is counted or committed.
fn compare(now: &Counts, committed: &Counts) -> Vec<Row> {
    let paths: BTreeSet<&String> = now.keys().chain(committed.keys()).collect();
    let rows = paths.into_iter().map(|path| {
        let (now, committed) = (now.get(path).copied(), committed.get(path).copied());
        let verdict = match (committed, now) {
            (None, _) => Verdict::New,
            (_, None) => Verdict::Gone,
            (Some(committed), Some(now)) => {
                let (committed, now) = (committed as f64, now as f64);
                if now > committed * (1.0 + TOLERANCE) {
                    Verdict::More
                } else if now < committed * (1.0 - TOLERANCE) {
                    Verdict::Less
                } else {
                    Verdict::Same
                }
            }
        };
        Row {
            path: path.clone(),
            committed,
            now,
            verdict,
        }
    });
    rows.collect()
}

fn table(rows: &[Row]) -> String {
    let millions =
        |count: Option<u64>| count.map_or("-".to_owned(), |count| format!("{:.2}", count as f64 / 1e6));
    let lines = rows.iter().map(|row| {
        let change = match (row.committed, row.now) {
            (Some(committed), Some(now)) => {
                format!("{:+.2} %", (now as f64 / committed as f64 - 1.0) * 100.0)
            }
            _ => "-".to_owned(),
        };
        let verdict = match row.verdict {
            Verdict::Same => "",
            Verdict::More => "more",
            Verdict::Less => "less",
            Verdict::New => "not in the file",
            Verdict::Gone => "no longer counted",
        };
        let (committed, now) = (millions(row.committed), millions(row.now));
        format!("| {} | {committed} | {now} | {change} | {verdict} |\n", row.path)
    });
    let head =
        "| path | committed, million instructions | now | change | |\n| --- | --- | --- | --- | --- |\n";
    head.to_owned() + &lines.collect::<String>()
}

/// Whether that is good enough. `is_known`: there are counts of this kind.
fn judge(is_known: bool, rows: &[Row]) -> anyhow::Result<()> {
    let of = |verdicts: &[Verdict]| -> Vec<&str> {
        rows.iter()
            .filter(|row| verdicts.contains(&row.verdict))
            .map(|row| row.path.as_str())
            .collect()
    };
    if !is_known {
        println!("\nnot compared: {FILE} has no counts of this kind; `{COMMAND} --write` adds them");
        return Ok(());
    }
    let more = of(&[Verdict::More]);
    if !more.is_empty() {
        let error = UserError::new(format!(
            "more than {:.0} % more instructions than {FILE} has: {}",
            TOLERANCE * 100.0,
            more.join(", ")
        ));
        return Err(error
            .hint("look for what was added: `valgrind --tool=callgrind` with target/debug/examples/instructions and the path's name says where they are")
            .hint(format!("if it has to be so, `{COMMAND} --write` takes the new counts; say why in docs/benchmarks/log.md"))
            .into());
    }
    let changed = of(&[Verdict::New, Verdict::Gone]);
    if !changed.is_empty() {
        let error = UserError::new(format!("{FILE} is of other paths: {}", changed.join(", ")));
        return Err(error.hint(format!("`{COMMAND} --write` renews it")).into());
    }
    let less = of(&[Verdict::Less]);
    if !less.is_empty() {
        println!(
            "\nfewer instructions than {FILE} has, so that a step back would go unnoticed: {}; `{COMMAND} --write` renews it",
            less.join(", ")
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(counts: &[(&str, u64)]) -> Counts {
        counts
            .iter()
            .map(|&(path, count)| (path.to_owned(), count))
            .collect()
    }

    /// What becomes of `now` when 1000 instructions are committed.
    fn judged(now: &[(&str, u64)]) -> (Vec<Verdict>, Result<(), String>) {
        let rows = compare(&counts(now), &counts(&[("a", 1000), ("b", 1000)]));
        let verdicts = rows.iter().map(|row| row.verdict).collect();
        (verdicts, judge(true, &rows).map_err(|error| error.to_string()))
    }

    #[test]
    fn only_what_is_clearly_more_fails() {
        use Verdict::{Less, More, Same};
        let (verdicts, result) = judged(&[("a", 1100), ("b", 900)]);
        assert_eq!((verdicts, result), (vec![Same, Same], Ok(())));
        let (verdicts, result) = judged(&[("a", 1102), ("b", 400)]);
        assert_eq!(verdicts, [More, Less]);
        let message = result.unwrap_err();
        assert!(message.ends_with("has: a"), "{message}");
        let (verdicts, result) = judged(&[("a", 1000), ("b", 898)]);
        assert_eq!((verdicts, result), (vec![Same, Less], Ok(())));
    }

    /// A path without a committed count would never be compared with anything.
    #[test]
    fn the_file_has_to_be_of_the_same_paths() {
        let (verdicts, result) = judged(&[("a", 1000), ("c", 1)]);
        assert_eq!(verdicts, [Verdict::Same, Verdict::Gone, Verdict::New]);
        let message = result.unwrap_err();
        assert!(message.ends_with("other paths: b, c"), "{message}");
    }

    #[test]
    fn another_kind_of_machine_or_build_is_not_compared() {
        let rows = compare(&counts(&[("a", 1)]), &Counts::new());
        assert!(judge(false, &rows).is_ok());
    }

    #[test]
    fn the_table_shows_counts_and_change() {
        let rows = compare(
            &counts(&[("a", 3_150_000)]),
            &counts(&[("a", 3_000_000), ("b", 5)]),
        );
        let table = table(&rows);
        assert!(table.contains("| a | 3.00 | 3.15 | +5.00 % |  |"), "{table}");
        assert!(
            table.contains("| b | 0.00 | - | - | no longer counted |"),
            "{table}"
        );
    }

    #[test]
    fn counts_are_read_from_what_cachegrind_writes() {
        let file = "desc: I1 cache: none\ncmd: x\nevents: Ir\nfl=/a.rs\nfn=main\n3 12\nsummary: 1234567\n";
        assert_eq!(instructions(file), Some(1_234_567));
        let simulated = "events: Ir I1mr ILmr\nsummary: 12 3 4\n";
        assert_eq!(instructions(simulated), Some(12));
        assert_eq!(instructions("events: Ir\n"), None);
    }
}
