//! A real Slurm on this machine, made by `cluster/start-slurm.sh`.

use std::net::Ipv4Addr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::{Namespaces, NotPermitted, free_port, repository, run};

/// A cluster with a folder, ports and a key of its own. It ends with this value, and its jobs with it.
#[derive(Debug)]
pub struct Slurm {
    folder: tempfile::TempDir,
}

impl Slurm {
    /// Starts a cluster whose nodes share this machine's address, and waits until all of them are idle. GPUs are per node, and none.
    ///
    /// # Errors
    /// [`NotPermitted`] without root.
    ///
    /// # Panics
    /// If Slurm or munge is not installed, or does not start.
    pub fn start(nodes: u8, gpus: u8) -> Result<Self, NotPermitted> {
        Self::start_with(nodes, &["--gpus", &gpus.to_string()])
    }

    /// The same with one node on each host.
    ///
    /// # Errors
    /// As [`Slurm::start`].
    ///
    /// # Panics
    /// As [`Slurm::start`].
    pub fn start_on(hosts: &Namespaces) -> Result<Self, NotPermitted> {
        Self::start_with(hosts.number(), &["--hosts", hosts.prefix(), &hosts.network()])
    }

    fn start_with(nodes: u8, options: &[&str]) -> Result<Self, NotPermitted> {
        let owner = std::fs::metadata("/proc/self").map(|process| process.uid());
        if !owner.is_ok_and(|user| user == 0) {
            return Err(NotPermitted("a Slurm cluster needs root".to_owned()));
        }
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        // Held until all are found, so that none is found twice.
        let held: Vec<_> = (0..=nodes)
            .map(|_| free_port(Ipv4Addr::UNSPECIFIED.into()))
            .collect();
        let ports: Vec<String> = held
            .iter()
            .map(|(address, _)| address.port().to_string())
            .collect();
        drop(held);
        let started = run(Command::new(repository("cluster/start-slurm.sh"))
            .args(["--nodes", &nodes.to_string(), "--ports", &ports.join(",")])
            .args(options)
            .arg(folder.path()));
        let slurm = Self { folder };
        started.unwrap_or_else(|error| panic!("{error}"));
        Ok(slurm)
    }

    /// The folder with everything that it keeps.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The file that its programs are pointed to by `SLURM_CONF`.
    pub fn conf(&self) -> PathBuf {
        self.folder().join("slurm.conf")
    }

    /// One of Slurm's programs for this cluster.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.env("SLURM_CONF", self.conf());
        command
    }

    /// What one of Slurm's programs prints on stdout.
    ///
    /// # Panics
    /// If it fails.
    pub fn ask(&self, program: &str, arguments: &[&str]) -> String {
        let output = self.output(program, arguments);
        assert!(
            output.status.success(),
            "{program} {arguments:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }

    /// The same, whether it fails or not.
    ///
    /// # Panics
    /// If it cannot be started.
    pub fn output(&self, program: &str, arguments: &[&str]) -> Output {
        let output = self.command(program).args(arguments).output();
        output.unwrap_or_else(|error| panic!("{program}: {error}"))
    }

    /// A field of what Slurm says of a job: `JobState`, `Restarts`, `ExitCode`.
    pub fn of_job(&self, job: &str, field: &str) -> String {
        let said = self.ask("scontrol", &["show", "job", "--oneliner", job]);
        let mut words = said.split_whitespace();
        let value = words.find_map(|word| word.strip_prefix(field)?.strip_prefix('='));
        value.unwrap_or_default().to_owned()
    }

    /// Takes a node away: Slurm is told that it is down, and nothing that a job started there lives. Slurm itself would end that,
    /// but when it does depends on whether it believes that the node can be asked to.
    ///
    /// # Panics
    /// If there is no such node.
    pub fn lose(&self, node: &str) {
        let name = format!("nodename={node}");
        self.ask("scontrol", &["update", &name, "state=down", "reason=test"]);
        // Else it is back as soon as its slurmd, which lives, says so.
        self.ask("scontrol", &["update", &name, "state=drain", "reason=test"]);
        crate::wait_until("nothing of a job is left on the lost node", || {
            let there = self.processes_on(node);
            for process in &there {
                // One that has just ended needs no signal.
                let _ = kill(*process, Signal::SIGKILL);
            }
            there.is_empty()
        });
    }

    /// What jobs have started on a node, by the variables that Slurm gives to tasks.
    fn processes_on(&self, node: &str) -> Vec<Pid> {
        let conf = format!("SLURM_CONF={}", self.conf().display());
        let node = format!("SLURMD_NODENAME={node}");
        let is_there = |process: &i32| {
            let environment = std::fs::read(format!("/proc/{process}/environ")).unwrap_or_default();
            let has = |wanted: &str| {
                environment
                    .split(|&byte| byte == 0)
                    .any(|variable| variable == wanted.as_bytes())
            };
            has(&conf) && has(&node)
        };
        crate::processes(&[])
            .into_iter()
            .filter(is_there)
            .map(Pid::from_raw)
            .collect()
    }

    /// Ends munged: nobody can prove to Slurm who they are.
    ///
    /// # Panics
    /// If it does not run.
    pub fn stop_munge(&self) {
        let pid = std::fs::read_to_string(self.folder().join("munge/pid")).expect("munge runs");
        run(Command::new("kill").args(["-TERM", pid.trim()])).expect("munge runs");
        crate::wait_until("munge is gone", || {
            let state = std::fs::read_to_string(format!("/proc/{}/stat", pid.trim()));
            state.map_or(true, |state| state.contains(") Z"))
        });
    }
}

impl Drop for Slurm {
    fn drop(&mut self) {
        let stopped = run(Command::new(repository("cluster/stop-slurm.sh")).arg(self.folder.path()));
        if let Err(error) = stopped {
            eprintln!("the Slurm cluster in {} stays: {error}", self.folder().display());
        }
    }
}
