//! `zipper-launch logs`: the logs of all processes of a run as one.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use serde::Serialize;
use zipper_cli::{ExitStatus, UserError};

use crate::preflight;
use crate::status;

/// How often to look for more.
const LOOK_EVERY: Duration = Duration::from_millis(250);

#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Run URL.
    #[arg(long)]
    run: String,
    /// Folder with the logs. Left out: where zipper-launch would put them if it were called here.
    #[arg(long)]
    folder: Option<PathBuf>,
    /// Go on showing what is written.
    #[arg(long, short)]
    follow: bool,
    /// Only what workers wrote while they were this rank.
    #[arg(long)]
    rank: Option<u32>,
    /// Print one JSON document, an array with an object for each line: `source`, `rank` (null where there is none) and `line`. With
    /// `--follow`, which has no end, each object is a document on a line of its own (JSON lines).
    #[arg(long)]
    json: bool,
}

/// How lines are printed.
#[derive(Debug, Clone, Copy)]
enum Form {
    Text,
    /// All of them as one array.
    Array,
    /// Each as a document.
    JsonLines,
}

impl Arguments {
    fn form(&self) -> Form {
        match (self.json, self.follow) {
            (false, _) => Form::Text,
            (true, false) => Form::Array,
            (true, true) => Form::JsonLines,
        }
    }
}

pub(crate) async fn run(arguments: &Arguments) -> anyhow::Result<ExitStatus> {
    let folder = match &arguments.folder {
        Some(folder) => folder.clone(),
        None => folder_of(&arguments.run).await?,
    };
    if !folder.is_dir() {
        let error = UserError::new(format!("there are no logs in `{}`", folder.display()));
        return Err(error
            .hint("they are on the machine that zipper-launch was called on, or its nodes: name the folder with `--folder`")
            .into());
    }
    let mut logs = Logs::new(folder, arguments.rank);
    loop {
        let lines = logs.more(arguments.follow)?;
        let written = write(&lines, arguments.form(), &mut io::stdout().lock());
        match written {
            // The reader, such as `head`, has enough.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(ExitStatus::Done),
            written => written.context("stdout cannot be written")?,
        }
        if !arguments.follow {
            return Ok(ExitStatus::Done);
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// The folder that zipper-launch writes logs to, called from here.
async fn folder_of(url: &str) -> anyhow::Result<PathBuf> {
    let (store, config) = status::open(url).await?;
    preflight::log_folder(&store, &config)
}

fn write(lines: &[Entry], form: Form, to: &mut impl Write) -> io::Result<()> {
    match form {
        Form::Text => {
            for line in lines {
                writeln!(to, "{line}")?;
            }
        }
        Form::Array => {
            serde_json::to_writer(&mut *to, lines)?;
            writeln!(to)?;
        }
        Form::JsonLines => {
            for line in lines {
                serde_json::to_writer(&mut *to, line)?;
                writeln!(to)?;
            }
        }
    }
    to.flush()
}

/// Log files of one folder, read so far.
struct Logs {
    folder: PathBuf,
    rank: Option<u32>,
    files: BTreeMap<String, LogFile>,
}

/// One process slot's log.
#[derive(Default)]
struct LogFile {
    read: u64,
    /// An unfinished line.
    rest: Vec<u8>,
    /// The time of its latest line that had one.
    time: String,
    /// The rank that its worker has.
    rank: Option<u32>,
}

/// A line and who wrote it.
#[derive(Debug, PartialEq, Serialize)]
struct Entry {
    source: String,
    rank: Option<u32>,
    line: String,
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rank = self.rank.map_or_else(String::new, |rank| format!(" rank {rank}"));
        write!(f, "{}{rank} | {}", self.source, self.line)
    }
}

impl Logs {
    fn new(folder: PathBuf, rank: Option<u32>) -> Self {
        Self {
            folder,
            rank,
            files: BTreeMap::new(),
        }
    }

    /// What has come since the last call, in the order of its times; an unfinished last line only if no more is to come.
    fn more(&mut self, more_to_come: bool) -> anyhow::Result<Vec<Entry>> {
        let mut lines_by_time = Vec::new();
        for name in log_names(&self.folder)? {
            let path = self.folder.join(&name);
            let file = self.files.entry(name.clone()).or_default();
            let bytes = file
                .read_on(&path, more_to_come)
                .with_context(|| format!("cannot read `{}`", path.display()))?;
            let source = source(&name);
            for line in String::from_utf8_lossy(&bytes).lines() {
                file.note(line);
                if self.rank.is_some() && self.rank != file.rank {
                    continue;
                }
                let line = Entry {
                    source: source.clone(),
                    rank: file.rank,
                    line: line.to_owned(),
                };
                lines_by_time.push((file.time.clone(), line));
            }
        }
        // Stable: lines without a time stay behind the one they belong to.
        lines_by_time.sort_by(|(one, _), (other, _)| one.cmp(other));
        Ok(lines_by_time.into_iter().map(|(_, line)| line).collect())
    }
}

impl LogFile {
    /// The whole lines that have come.
    fn read_on(&mut self, path: &Path, more_to_come: bool) -> io::Result<Vec<u8>> {
        let mut file = File::open(path)?;
        file.seek(SeekFrom::Start(self.read))?;
        let mut bytes = std::mem::take(&mut self.rest);
        self.read += file.read_to_end(&mut bytes)? as u64;
        if more_to_come {
            let end = bytes
                .iter()
                .rposition(|&byte| byte == b'\n')
                .map_or(0, |at| at + 1);
            self.rest = bytes.split_off(end);
        }
        Ok(bytes)
    }

    /// Learns from a line what holds from it on.
    fn note(&mut self, line: &str) {
        if let Some(time) = time(line) {
            time.clone_into(&mut self.time);
        }
        let joined = line.split_once("joined generation ").and_then(|(_, rest)| {
            let rank = rest.split_once(" as rank ")?.1;
            rank.split(' ').next()?.parse().ok()
        });
        self.rank = joined.or(self.rank);
    }
}

/// The files of a folder that are logs, sorted.
fn log_names(folder: &Path) -> anyhow::Result<Vec<String>> {
    let entries = std::fs::read_dir(folder).with_context(|| format!("cannot list `{}`", folder.display()))?;
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let is_log = |name: &String| {
        Path::new(name)
            .extension()
            .is_some_and(|extension| extension == "log")
    };
    let mut names: Vec<String> = names.filter(is_log).collect();
    names.sort();
    Ok(names)
}

/// Who writes a file: `node0/1` for `node0-worker1.log`, as workers are called everywhere.
fn source(name: &str) -> String {
    let stem = name.trim_end_matches(".log");
    match stem.split_once("-worker") {
        Some((node, worker)) => format!("{node}/{worker}"),
        None => stem.to_owned(),
    }
}

/// The time at the beginning of a line, or in a line of JSON: `2026-01-02T03:04:05.678901Z`. As text such times sort.
fn time(line: &str) -> Option<&str> {
    let rest = match line.split_once("\"timestamp\":\"") {
        Some((before, rest)) if before.starts_with('{') => rest,
        _ => line,
    };
    let word = rest.split(['"', ' ']).next()?;
    let digits = word.get(..4)?.bytes().all(|byte| byte.is_ascii_digit());
    (digits && word.ends_with('Z') && word.as_bytes().get(10) == Some(&b'T')).then_some(word)
}

#[cfg(test)]
mod tests {
    use super::*;

    const AGENT: &str = "2026-01-02T03:04:05.000001Z  WARN worker `node0/1` ended\nwith\ntwo more lines\n\
        2026-01-02T03:04:09.000001Z  WARN later\n";
    const WORKER: &str = "2026-01-02T03:04:04.000001Z  INFO loading\n\
        2026-01-02T03:04:06.000001Z  INFO joined generation 1 as rank 3 of 4, from step 0\n\
        {\"timestamp\":\"2026-01-02T03:04:07.000001Z\",\"fields\":{\"message\":\"joined generation 2 as rank 0 of 2, from\"}}\n\
        2026-01-02T03:04:08.000001Z  INFO unfinished";

    fn folder() -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("node0-agent.log"), AGENT).unwrap();
        std::fs::write(folder.path().join("node0-worker1.log"), WORKER).unwrap();
        std::fs::write(folder.path().join("other.txt"), "no log").unwrap();
        folder
    }

    #[test]
    fn lines_come_in_order_of_time_with_who_wrote_them() {
        let folder = folder();
        let mut logs = Logs::new(folder.path().to_owned(), None);
        let lines = logs.more(false).unwrap();
        let texts: Vec<String> = lines.iter().map(Entry::to_string).collect();
        let start = |text: &String| {
            text.split_once(" | ")
                .expect("every line has its source")
                .0
                .to_owned()
        };
        assert_eq!(
            texts.iter().map(start).collect::<Vec<_>>(),
            [
                "node0/1",
                "node0-agent",
                "node0-agent",
                "node0-agent",
                "node0/1 rank 3",
                "node0/1 rank 0",
                "node0/1 rank 0",
                "node0-agent"
            ]
        );
        assert_eq!(texts[2], "node0-agent | with");
        assert_eq!(
            serde_json::to_value(&lines[2]).unwrap(),
            serde_json::json!({"source": "node0-agent", "rank": null, "line": "with"})
        );
    }

    #[test]
    fn json_is_one_document_unless_there_is_no_end() {
        let entry = |rank, line: &str| Entry {
            source: "node0/1".to_owned(),
            rank,
            line: line.to_owned(),
        };
        let lines = [entry(None, "loading"), entry(Some(3), "training")];
        let written = |lines: &[Entry], form| {
            let mut written = Vec::new();
            write(lines, form, &mut written).unwrap();
            String::from_utf8(written).unwrap()
        };
        let document = |text: &str| serde_json::from_str::<serde_json::Value>(text).unwrap();
        let array = document(&written(&lines, Form::Array));
        assert_eq!(array[1]["rank"], 3);
        assert_eq!(document(&written(&[], Form::Array)), serde_json::json!([]));
        let one_by_one: Vec<serde_json::Value> =
            written(&lines, Form::JsonLines).lines().map(document).collect();
        assert_eq!(array, serde_json::Value::from(one_by_one));
        assert_eq!(
            written(&lines, Form::Text),
            "node0/1 | loading\nnode0/1 rank 3 | training\n"
        );
    }

    /// A rank is what a worker was at that time, and half a line is shown when it is whole.
    #[test]
    fn one_rank_is_followed_over_generations() {
        let folder = folder();
        let mut logs = Logs::new(folder.path().to_owned(), Some(0));
        assert_eq!(logs.more(true).unwrap().len(), 1);
        let mut file = File::options()
            .append(true)
            .open(folder.path().join("node0-worker1.log"))
            .unwrap();
        write!(file, " now whole\nand half").unwrap();
        let lines = logs.more(true).unwrap();
        let expected = Entry {
            source: "node0/1".to_owned(),
            rank: Some(0),
            line: "2026-01-02T03:04:08.000001Z  INFO unfinished now whole".to_owned(),
        };
        assert_eq!(lines, [expected]);
        assert!(logs.more(true).unwrap().is_empty());
    }
}
