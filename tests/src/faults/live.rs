//! One run under way: its processes, and what its coordinator tells.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::task::JoinHandle;
use tonic::transport::Endpoint;
use zipper_proto::v1;
use zipper_proto::v1::run_service_client::RunServiceClient;
use zipper_proto::v1::watch_response::Event;
use zipper_tls::{CREDENTIALS_FILE, Credentials};

use crate::programs::processes;

/// Longest that a run may take from a point where it should go on by itself to its end.
const DEADLINE: Duration = Duration::from_mins(4);
/// Lines of stderr that are enough to see what happened.
const LAST_WORDS: usize = 30;
const POLL: Duration = Duration::from_millis(20);

/// A zipper-launch under way. It and all its processes end with this value.
#[derive(Debug)]
pub struct LiveRun {
    child: Child,
    url: String,
    folder: PathBuf,
    events: Arc<Mutex<Vec<(Instant, Event)>>>,
    watching: JoinHandle<()>,
}

impl LiveRun {
    /// Starts `command`, a zipper-launch of the run `url`; its output goes to files in `folder`.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn start(command: &mut Command, url: &str, folder: &Path) -> Result<Self, String> {
        let output = |name: &str| {
            let path = folder.join(name);
            File::create(&path).map_err(|error| format!("{}: {error}", path.display()))
        };
        let child = command
            .stdin(Stdio::null())
            .stdout(output("stdout.txt")?)
            .stderr(output("stderr.txt")?)
            .spawn()
            .map_err(|error| format!("zipper-launch cannot be started: {error}"))?;
        let events = Arc::default();
        let watching = tokio::spawn(watch(url.to_owned(), Arc::clone(&events)));
        Ok(Self {
            child,
            url: url.to_owned(),
            folder: folder.to_owned(),
            events,
            watching,
        })
    }

    /// Everything that the coordinator has told so far, with when.
    ///
    /// # Panics
    /// Never: no holder of the lock panics.
    pub fn events(&self) -> Vec<(Instant, Event)> {
        self.events.lock().expect("no holder panics").clone()
    }

    /// The highest step that was completed, as far as is known.
    pub fn step(&self) -> u64 {
        let events = self.events.lock().expect("no holder panics");
        events
            .iter()
            .filter_map(|(_, event)| step_of(event))
            .max()
            .unwrap_or(0)
    }

    /// Waits until `step` is completed.
    ///
    /// # Errors
    /// If the run ends before, or does not come to it.
    pub async fn wait_for_step(&mut self, step: u64) -> Result<(), String> {
        let started = Instant::now();
        while self.step() < step {
            let ended = self.child.try_wait().map_err(|error| error.to_string())?;
            if ended.is_some() || started.elapsed() > DEADLINE {
                let how = if ended.is_some() {
                    "ended before"
                } else {
                    "did not come to"
                };
                return Err(format!("the run {how} step {step}:\n{}", self.stderr()));
            }
            tokio::time::sleep(POLL).await;
        }
        Ok(())
    }

    /// Waits for the end of zipper-launch; ends it where it does not end by itself.
    pub async fn wait(mut self) -> Ended {
        let started = Instant::now();
        let code = loop {
            match self.child.try_wait() {
                Ok(Some(status)) => break status.code(),
                _ if started.elapsed() > DEADLINE => break None,
                _ => tokio::time::sleep(POLL).await,
            }
        };
        let hung = code.is_none() && started.elapsed() > DEADLINE;
        let events = self.events();
        let stderr = self.stderr();
        Ended {
            code,
            hung,
            events,
            stderr,
        }
    }

    /// Sends a signal to zipper-launch.
    pub fn signal(&self, signal: Signal) {
        send(self.launcher(), signal);
    }

    /// The process of zipper-launch.
    pub fn launcher(&self) -> i32 {
        self.child.id() as i32
    }

    /// Waits until there is a worker of `node`, which may have to be started again first; not longer than a run may take to go on.
    pub(crate) async fn wait_for_worker(&self, node: u32) {
        let started = Instant::now();
        while self.worker(node).is_none() && started.elapsed() < DEADLINE {
            tokio::time::sleep(POLL).await;
        }
    }

    /// The process of the worker of `node`.
    pub fn worker(&self, node: u32) -> Option<i32> {
        self.one(&["zipper-worker\0train\0", &format!("--node-rank\0{node}\0")])
    }

    /// The process of the agent of `node`.
    pub fn agent(&self, node: u32) -> Option<i32> {
        self.one(&["zipper-launch\0agent\0", &format!("--node-rank\0{node}\0")])
    }

    /// The coordinator's process.
    pub fn coordinator(&self) -> Option<i32> {
        self.one(&["zipper-coordinator\0"])
    }

    fn one(&self, words: &[&str]) -> Option<i32> {
        let url = format!("\0{}\0", self.url);
        let words: Vec<&str> = words.iter().copied().chain([url.as_str()]).collect();
        processes(&words).first().copied()
    }

    fn stderr(&self) -> String {
        fs::read_to_string(self.folder.join("stderr.txt")).unwrap_or_default()
    }
}

impl Drop for LiveRun {
    fn drop(&mut self) {
        self.watching.abort();
        // It may have ended, and been waited for.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A run that has ended.
#[derive(Debug)]
pub struct Ended {
    /// The exit code; nothing if a signal ended it.
    pub code: Option<i32>,
    /// It did not end by itself.
    pub hung: bool,
    /// What its coordinator told.
    pub events: Vec<(Instant, Event)>,
    /// What it printed on stderr.
    pub stderr: String,
}

impl Ended {
    /// The end of what it printed on stderr, without the lines of steps.
    pub fn last_words(&self) -> String {
        let lines = self.stderr.lines().filter(|line| !line.contains(" audio-s/s "));
        let mut last: Vec<&str> = lines.rev().take(LAST_WORDS).collect();
        last.reverse();
        last.join("\n")
    }
}

/// The step that an event says is completed.
pub(crate) fn step_of(event: &Event) -> Option<u64> {
    match event {
        Event::Step(metrics) => Some(metrics.step),
        _ => None,
    }
}

/// Sends a signal to a process that may be gone.
pub(crate) fn send(process: i32, signal: Signal) {
    let _ = kill(Pid::from_raw(process), signal);
}

/// The processes of the run that are left, once those that are about to end have had 10 s; all of them are ended.
pub(crate) async fn orphans(url: &str) -> Vec<String> {
    let words = format!("\0{url}\0");
    let since = Instant::now();
    loop {
        let left = processes(&[&words]);
        if left.is_empty() {
            return Vec::new();
        }
        if since.elapsed() > Duration::from_secs(10) {
            let described = left.iter().map(|process| describe(*process)).collect();
            for process in left {
                send(process, Signal::SIGKILL);
            }
            return described;
        }
        tokio::time::sleep(POLL).await;
    }
}

fn describe(process: i32) -> String {
    let command = fs::read(format!("/proc/{process}/cmdline")).unwrap_or_default();
    let words = String::from_utf8_lossy(&command).replace('\0', " ");
    format!(
        "process {process}: {}",
        words.chars().take(120).collect::<String>()
    )
}

/// Records what the coordinators of the run tell, one after the other, until aborted.
async fn watch(url: String, events: Arc<Mutex<Vec<(Instant, Event)>>>) {
    loop {
        if let Some(endpoint) = coordinator(&url)
            && let Ok(channel) = endpoint.connect().await
            && let Ok(response) = RunServiceClient::new(channel)
                .watch(v1::WatchRequest::default())
                .await
        {
            let mut stream = response.into_inner();
            while let Ok(Some(response)) = stream.message().await {
                if let Some(event) = response.event {
                    events
                        .lock()
                        .expect("no holder panics")
                        .push((Instant::now(), event));
                }
            }
        }
        tokio::time::sleep(POLL).await;
    }
}

/// The way to the run's coordinator, with what its agents were told: where it is, and the credentials of the launch.
fn coordinator(url: &str) -> Option<Endpoint> {
    let agents = processes(&["zipper-launch\0agent\0", &format!("\0{url}\0")]);
    let agent = format!("/proc/{}", agents.first()?);
    let command = fs::read(format!("{agent}/cmdline")).ok()?;
    let words: Vec<&[u8]> = command.split(|byte| *byte == 0).collect();
    let place = words.iter().position(|word| *word == b"--coordinator")?;
    let address = std::str::from_utf8(words.get(place + 1)?).ok()?;
    let environment = fs::read(format!("{agent}/environ")).ok()?;
    let variable = format!("{CREDENTIALS_FILE}=");
    let mut variables = environment.split(|byte| *byte == 0);
    let file = variables.find_map(|one| one.strip_prefix(variable.as_bytes()))?;
    let credentials = Credentials::read(Path::new(std::str::from_utf8(file).ok()?)).ok()?;
    credentials.endpoint(address).ok()
}
