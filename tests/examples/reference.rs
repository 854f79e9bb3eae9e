//! The parts of docs/ that are made of the code: `cargo xtask reference` writes them, and CI looks whether they are what the code says.

use std::error::Error;
use std::fs;
use std::path::PathBuf;
use std::process::{Command, ExitCode};

use clap::Parser;
use zipper_tests::program;

const PROGRAMS: [&str; 2] = ["zipper-launch", "zipper-worker"];
const COMMANDS: &str = "\
# Command reference

What `--help` says of every command; `cargo xtask reference` writes it here. Completions for shells and manual pages: `zipper-launch completions
bash`, `zipper-launch man FOLDER`, and the same for `zipper-worker`.
";

/// Write docs/configuration.md, docs/commands.md and configs/run.schema.json, or compare them with the code.
#[derive(Debug, Parser)]
struct Arguments {
    /// Write nothing, and fail if one of them is not what the code says.
    #[arg(long)]
    check: bool,
}

fn main() -> Result<ExitCode, Box<dyn Error>> {
    let arguments = Arguments::parse();
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..");
    let schema = serde_json::to_string_pretty(&zipper_config::reference::run_schema())? + "\n";
    let pages = [
        ("docs/configuration.md", zipper_config::reference::markdown()),
        ("docs/commands.md", commands()?),
        ("configs/run.schema.json", schema),
    ];
    let mut stale = Vec::new();
    for (path, text) in pages {
        let file = root.join(path);
        if fs::read_to_string(&file).is_ok_and(|found| found == text) {
            continue;
        }
        stale.push(path);
        if !arguments.check {
            fs::write(&file, text)?;
            println!("written: {path}");
        }
    }
    if arguments.check && !stale.is_empty() {
        eprintln!(
            "not what the code says: {}; run `cargo xtask reference`",
            stale.join(", ")
        );
        return Ok(ExitCode::FAILURE);
    }
    Ok(ExitCode::SUCCESS)
}

/// What the programs say of themselves.
fn commands() -> Result<String, Box<dyn Error>> {
    let mut text = COMMANDS.to_owned();
    for name in PROGRAMS {
        let output = Command::new(program(name)).arg("reference").output()?;
        if !output.status.success() {
            return Err(format!("{name} reference: {}", String::from_utf8_lossy(&output.stderr)).into());
        }
        text += std::str::from_utf8(&output.stdout)?;
    }
    Ok(text)
}
