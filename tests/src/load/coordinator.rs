//! The coordinator's process, and what it takes.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use procfs::process::Process;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, ChildStdin, Command};
use tokio::time::timeout;
use zipper_tls::{Authority, CREDENTIALS_FILE, Credentials, Role, TlsError};

use super::{Load, with_causes, within};
use crate::programs::program;

/// As many as the paper has.
const LANGUAGES: [&str; 12] = [
    "ar", "de", "en", "es", "fr", "it", "ja", "ko", "pt", "ru", "th", "vi",
];
/// Lines of its log that are enough to see what happened.
const LAST_WORDS: usize = 20;
const EXIT_TIMEOUT: Duration = Duration::from_secs(30);
const CERTIFICATE_LIFETIME: Duration = Duration::from_hours(24);

/// A coordinator of a run that trains nothing. It ends with this value.
pub(super) struct Coordinator {
    child: Child,
    /// Its end would be that of the launcher.
    _stdin: Option<ChildStdin>,
    pid: i32,
    log: PathBuf,
    /// `host:port`.
    pub(super) address: String,
    /// What its workers and agents have to show.
    pub(super) credentials: Credentials,
}

impl Coordinator {
    pub(super) async fn start(load: &Load, folder: &Path) -> Result<Self, String> {
        write_run(folder, load).map_err(|error| format!("{}: {error}", folder.display()))?;
        let (file, credentials) = issue(folder).map_err(|error| with_causes(&error))?;
        let log = folder.join("coordinator.log");
        let stderr = File::create(&log).map_err(|error| format!("{}: {error}", log.display()))?;
        let (workers, nodes) = (load.workers.to_string(), load.nodes().to_string());
        let mut child = Command::new(program("zipper-coordinator"))
            .args(["--run", &format!("file://{}", folder.display())])
            .args(["--min-workers", &workers, "--max-workers", &workers])
            .args(["--nodes", &nodes])
            .args(["--workers-per-node", &load.workers_per_node.to_string()])
            .env(CREDENTIALS_FILE, file)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(stderr)
            .kill_on_drop(true)
            .spawn()
            .map_err(|error| format!("the coordinator cannot be started: {error}"))?;
        let stdin = child.stdin.take();
        let stdout = child.stdout.take().ok_or("stdout is piped")?;
        let pid = child.id().ok_or("the coordinator ended at once")?;
        let mut lines = BufReader::new(stdout).lines();
        let line = within("the coordinator said where it listens", lines.next_line()).await?;
        let line = line.map_err(|error| error.to_string())?.unwrap_or_default();
        let said: Value = serde_json::from_str(&line).unwrap_or_default();
        let coordinator = Self {
            child,
            _stdin: stdin,
            pid: i32::try_from(pid).map_err(|error| error.to_string())?,
            log,
            address: said["address"].as_str().unwrap_or_default().to_owned(),
            credentials,
        };
        if coordinator.address.is_empty() {
            return Err(coordinator.explain("the coordinator did not start"));
        }
        Ok(coordinator)
    }

    /// `problem`, and the end of the coordinator's log.
    pub(super) fn explain(&self, problem: &str) -> String {
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        let mut lines: Vec<&str> = text.lines().rev().take(LAST_WORDS).collect();
        lines.reverse();
        format!(
            "{problem}; the end of the coordinator's log:\n{}",
            lines.join("\n")
        )
    }

    fn process(&self) -> Result<Process, String> {
        Process::new(self.pid).map_err(|error| format!("the coordinator has ended: {error}"))
    }

    /// The most resident memory that it has had, in bytes.
    pub(super) fn peak_memory(&self) -> Result<u64, String> {
        let status = self.process()?.status().map_err(|error| error.to_string())?;
        let kib = status
            .vmhwm
            .ok_or("the kernel does not tell a process's peak of memory")?;
        Ok(kib * 1024)
    }

    /// Processor time that it has used.
    pub(super) fn cpu_seconds(&self) -> Result<f64, String> {
        let stat = self.process()?.stat().map_err(|error| error.to_string())?;
        Ok((stat.utime + stat.stime) as f64 / procfs::ticks_per_second() as f64)
    }

    /// Asks it to stop the run.
    pub(super) fn stop(&self) -> Result<(), String> {
        kill(Pid::from_raw(self.pid), Signal::SIGTERM).map_err(|error| error.to_string())
    }

    /// Waits for its end, which has to be with this exit code.
    pub(super) async fn ended_with(mut self, code: i32) -> Result<(), String> {
        let Ok(status) = timeout(EXIT_TIMEOUT, self.child.wait()).await else {
            return Err(self.explain(&format!("the coordinator did not end within {EXIT_TIMEOUT:?}")));
        };
        let status = status.map_err(|error| error.to_string())?;
        if status.code() == Some(code) {
            return Ok(());
        }
        Err(self.explain(&format!(
            "the coordinator ended with {status}, not with exit code {code}"
        )))
    }
}

/// The file with the coordinator's credentials, and those of all nodes.
fn issue(folder: &Path) -> Result<(PathBuf, Credentials), TlsError> {
    let authority = Authority::new("load", CERTIFICATE_LIFETIME)?;
    let file = folder.join("coordinator.pem");
    authority.issue(Role::Coordinator)?.write(&file)?;
    Ok((file, authority.issue(Role::Node)?))
}

/// A run whose languages are all there, and whose models nobody looks at.
fn write_run(folder: &Path, load: &Load) -> std::io::Result<()> {
    let config = json!({
        "name": "load",
        "model": {"encoder": {"path": "none"}, "llm": {"path": "none"}},
        "data": {"languages": LANGUAGES, "train": ["none.jsonl"]},
        "training": {"align": {"steps": 1_000_000}, "zipper": {"steps": 1_000_000}, "batch_audio_seconds": 1000},
        "checkpoint": {"every_steps": 0},
        "elastic": {"restart_backoff": "1ms"},
        "runtime": {"heartbeat_interval": format!("{}ms", load.interval.as_millis())},
    });
    std::fs::write(folder.join("run.yaml"), config.to_string())?;
    let amount = |lang| json!({"lang": lang, "utterances": 720, "seconds": 7200.0, "characters": 36000});
    let report = json!({"languages": LANGUAGES.map(amount)});
    std::fs::create_dir_all(folder.join("data"))?;
    std::fs::write(folder.join("data/report.json"), report.to_string())
}
