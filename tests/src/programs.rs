//! The programs under test, as processes.

use std::io::Read;
use std::path::PathBuf;
use std::process::{Child, ChildStderr, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Longest that any run of a test may take; a hang becomes a failure with its output.
const DEADLINE: Duration = Duration::from_mins(3);

/// The path of a program of this workspace, built beside this test.
///
/// # Panics
/// If it has not been built: `cargo build --workspace` builds all of them.
pub fn program(name: &str) -> PathBuf {
    let test = std::env::current_exe().expect("a test has a path");
    let folder = test
        .ancestors()
        .nth(2)
        .expect("tests are built into target/<profile>/deps");
    let path = folder.join(name);
    assert!(
        path.exists(),
        "`{}` is not built: run `cargo build` first",
        path.display()
    );
    path
}

/// Process ids of this machine's processes whose command line has all of `words`; one that has ended but was not
/// reaped does not count.
pub fn processes(words: &[&str]) -> Vec<i32> {
    let entries = std::fs::read_dir("/proc").expect("/proc is there").flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let matches = |pid: &i32| {
        let command = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let command = String::from_utf8_lossy(&command);
        !command.is_empty() && words.iter().all(|word| command.contains(word))
    };
    pids.filter(matches).collect()
}

/// A finished program.
#[derive(Debug)]
pub struct Finished {
    /// Its exit code; nothing if a signal ended it.
    pub code: Option<i32>,
    /// What it printed on stdout.
    pub stdout: String,
    /// What it printed on stderr.
    pub stderr: String,
}

/// A running `zipper-launch`.
#[derive(Debug)]
pub struct Launched {
    child: Child,
    said: Arc<Mutex<Vec<u8>>>,
    listener: JoinHandle<()>,
}

impl Launched {
    /// Starts `zipper-launch` with `arguments`.
    pub fn start(arguments: &[&str]) -> Self {
        Self::start_command(Command::new(program("zipper-launch")).args(arguments))
    }

    /// Starts a command that is `zipper-launch` in other circumstances.
    ///
    /// # Panics
    /// If it cannot be started.
    pub fn start_command(command: &mut Command) -> Self {
        let mut child = command
            // Tests that are run in a job are not about its allocation.
            .env_remove("SLURM_JOB_ID")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("zipper-launch can be started");
        let said = Arc::default();
        let stderr = child.stderr.take().expect("stderr is piped");
        let listener = listen(stderr, Arc::clone(&said));
        Self {
            child,
            said,
            listener,
        }
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it has printed on stderr so far.
    pub fn said(&self) -> String {
        text(&self.said)
    }

    /// Waits for its end.
    ///
    /// # Panics
    /// If it does not end within three minutes.
    pub fn wait(self) -> Finished {
        let Self {
            child,
            said,
            listener,
        } = self;
        let pid = child.id();
        let (sender, receiver) = std::sync::mpsc::channel();
        let waiter = std::thread::spawn(move || {
            let output = child.wait_with_output();
            listener.join().expect("the listener does not panic");
            let _ = sender.send(());
            output
        });
        let started = Instant::now();
        let is_late = receiver.recv_timeout(DEADLINE).is_err();
        if is_late {
            let _ = Command::new("kill").args(["-KILL", &pid.to_string()]).status();
        }
        let output = waiter
            .join()
            .expect("the waiter does not panic")
            .expect("the output can be read");
        let stderr = text(&said);
        assert!(
            !is_late,
            "zipper-launch did not end within {:?}:\n{stderr}",
            started.elapsed()
        );
        Finished {
            code: output.status.code(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr,
        }
    }

    /// Ends it without a chance to clean up.
    pub fn kill(mut self) {
        self.child.kill().expect("zipper-launch is running");
        self.child.wait().expect("it can be waited for");
    }

    /// Runs `zipper-launch` to its end.
    pub fn run(arguments: &[&str]) -> Finished {
        Self::start(arguments).wait()
    }
}

/// Keeps what comes from `stream` until it ends.
fn listen(mut stream: ChildStderr, said: Arc<Mutex<Vec<u8>>>) -> JoinHandle<()> {
    std::thread::spawn(move || {
        let mut bytes = [0; 4096];
        while let Ok(count @ 1..) = stream.read(&mut bytes) {
            let mut said = said.lock().unwrap_or_else(PoisonError::into_inner);
            said.extend_from_slice(&bytes[..count]);
        }
    })
}

fn text(said: &Mutex<Vec<u8>>) -> String {
    let said = said.lock().unwrap_or_else(PoisonError::into_inner);
    String::from_utf8_lossy(&said).into_owned()
}

/// Waits until `holds` says so; two minutes at most.
pub fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let started = Instant::now();
    while !holds() {
        assert!(
            started.elapsed() < Duration::from_mins(2),
            "waited two minutes until {what}"
        );
        std::thread::sleep(Duration::from_millis(20));
    }
}
