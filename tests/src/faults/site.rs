//! What all rounds of a campaign share: the job, the store, the hosts, and how the job ends without faults.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, MutexGuard};

use tokio::sync::OnceCell;
use zipper_checkpoint::RunStore;

use super::{Kind, LiveRun};
use crate::rigs::{FaultProxy, Host, Namespaces, NotPermitted, S3Server};
use crate::{Fixture, Parameters, program};

/// How large the job is.
#[derive(Debug, Clone, Copy)]
pub struct Size {
    /// Nodes, each with one worker.
    pub nodes: u32,
    /// The least that it goes on with.
    pub min_nodes: u32,
    /// Nodes more, whose workers wait to replace others.
    pub spares: u32,
    /// Optimizer steps of each stage.
    pub steps_of_a_stage: u64,
    /// Steps between checkpoints.
    pub checkpoint_every: u64,
    /// Checkpoints that are kept.
    pub keep_last: u64,
    /// Steps between copies of banks to the memory of a peer.
    pub snapshot_every: u64,
    /// Steps from one line of metrics to the next.
    pub log_every: u64,
    /// How often the worker of a node may be started again.
    pub restarts_of_a_node: u32,
}

impl Default for Size {
    fn default() -> Self {
        Self {
            nodes: 4,
            min_nodes: 2,
            spares: 0,
            steps_of_a_stage: 150,
            checkpoint_every: 20,
            keep_last: 100,
            snapshot_every: 5,
            log_every: 1,
            restarts_of_a_node: 10,
        }
    }
}

/// Where a campaign takes place.
#[derive(Debug)]
pub struct Site {
    size: Size,
    fixture: Fixture,
    // Before the hosts: it listens on their bridge.
    proxy: FaultProxy,
    s3: Mutex<S3Server>,
    hosts: Result<Namespaces, NotPermitted>,
    expected: OnceCell<Parameters>,
    folder: PathBuf,
}

impl Site {
    /// Makes the job and starts the store. What rounds leave is put into `folder`.
    ///
    /// # Panics
    /// If the machine lacks something that is not optional.
    pub fn open(folder: &Path, size: Size) -> Self {
        let fixture = Fixture::new();
        fixture.write_config("run.yaml", |text| configure(&text, size));
        let s3 = S3Server::start();
        let hosts = Namespaces::up((size.nodes + size.spares) as u8);
        let proxy = match &hosts {
            Ok(hosts) => FaultProxy::start_on(hosts.gateway(), s3.address()),
            Err(_) => FaultProxy::start(s3.address()),
        };
        Self {
            size,
            fixture,
            proxy,
            s3: Mutex::new(s3),
            hosts,
            expected: OnceCell::new(),
            folder: folder.to_owned(),
        }
    }

    /// The job's size.
    pub fn size(&self) -> Size {
        self.size
    }

    /// Steps of the whole job.
    pub fn steps(&self) -> u64 {
        2 * self.size.steps_of_a_stage
    }

    /// The parameters with which the job ends; the first call runs it without faults.
    ///
    /// # Errors
    /// How that run failed.
    pub async fn expected(&self) -> Result<&Parameters, String> {
        let run = || expected(&self.fixture, self.folder("expected"));
        self.expected.get_or_try_init(run).await
    }

    /// The proxy before the store.
    pub fn proxy(&self) -> &FaultProxy {
        &self.proxy
    }

    /// The store.
    pub(crate) fn s3(&self) -> MutexGuard<'_, S3Server> {
        self.s3.lock().expect("no holder panics")
    }

    /// The hosts that nodes are on, where this machine allows that.
    pub(crate) fn host(&self, node: u32) -> Option<Host<'_>> {
        self.hosts.as_ref().ok().map(|hosts| hosts.host(node as u8))
    }

    /// The kinds that can be made here, and why not the others.
    pub fn kinds(&self) -> (Vec<Kind>, Vec<String>) {
        let mut kinds = Kind::ALL.to_vec();
        let mut reasons = Vec::new();
        let mut leave_out = |kind: Kind, reason: &NotPermitted| {
            kinds.retain(|other| *other != kind);
            reasons.push(format!("{kind}: {reason}"));
        };
        if let Err(reason) = &self.hosts {
            leave_out(Kind::Partition, reason);
        }
        if let Err(reason) = crate::SmallDisk::mount(1) {
            leave_out(Kind::DiskFull, &reason);
        }
        if let Err(reason) = crate::FalseClock::new() {
            leave_out(Kind::ClockStep, &reason);
        }
        (kinds, reasons)
    }

    /// A folder of this name for what a run leaves.
    ///
    /// # Panics
    /// If it cannot be made.
    pub fn folder(&self, name: &str) -> PathBuf {
        let folder = self.folder.join(name);
        fs::create_dir_all(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
        folder
    }

    /// The URL of a run in the store, and how tests read it. No other campaign on this machine has a run of that URL, by which
    /// processes are told apart.
    pub fn run_in_store(&self, name: &str) -> (String, RunStore) {
        let s3 = self.s3();
        let prefix = format!("{}/{name}", std::process::id());
        (s3.url(&prefix), s3.run(&prefix))
    }

    /// `zipper-launch` of the job, in `folder`, by way of the proxy.
    pub fn launch(&self, url: &str, folder: &Path) -> Command {
        let Size {
            nodes,
            min_nodes,
            spares,
            ..
        } = self.size;
        let mut command = Command::new(program("zipper-launch"));
        command
            .args(["--nodes", &format!("{min_nodes}:{nodes}"), "--run", url])
            .arg("--config")
            .arg(self.fixture.path().join("run.yaml"))
            .current_dir(folder)
            .envs(self.s3().env_via(self.proxy.address()));
        if spares > 0 {
            command.args(["--spares", &spares.to_string()]);
        }
        if let Ok(hosts) = &self.hosts {
            command.args(["--listen", &hosts.gateway().to_string()]);
            command.args(["--node-command", &hosts.command_of_node()]);
        }
        command
    }
}

fn configure(text: &str, size: Size) -> String {
    let Size {
        steps_of_a_stage,
        checkpoint_every,
        keep_last,
        snapshot_every,
        log_every,
        restarts_of_a_node,
        nodes,
        ..
    } = size;
    let text = text
        .replace("steps: 6,", &format!("steps: {steps_of_a_stage},"))
        .replace("every_steps: 4", &format!("every_steps: {checkpoint_every}"))
        .replace("log_every: 1", &format!("log_every: {log_every}"))
        .replace("keep_last: 100", &format!("keep_last: {keep_last}"))
        .replace("untrained: true", "untrained: false")
        // In f64 whatever is summed in another order is the same to 14 digits, and a lost utterance is not.
        .replace("  prompt:\n", "  dtype: f64\n  prompt:\n")
        .replace(
            "clip_grad_norm: 1.0",
            "clip_grad_norm: 1.0\n  optimizer: {eps: 1.0e-6}",
        )
        .replace("heartbeat_timeout: 20s", "heartbeat_timeout: 5s")
        .replace("collective_timeout: 30s", "collective_timeout: 15s");
    let elastic = [
        "join_wait: 20s",
        "regroup_timeout: 15s",
        &format!("snapshot_every: {snapshot_every}"),
        &format!("restarts_per_node: {restarts_of_a_node}"),
        &format!("restarts_per_run: {}", nodes * restarts_of_a_node),
        "restart_backoff: 200ms",
        "hang_min: 8s",
        "lease_ttl: 5s",
    ];
    format!("{text}elastic: {{{}}}\n", elastic.join(", "))
}

/// How the job ends in peace: in a folder, with two workers.
async fn expected(fixture: &Fixture, folder: PathBuf) -> Result<Parameters, String> {
    let url = fixture.run_url("expected");
    let mut command = Command::new(program("zipper-launch"));
    command.args(["--nodes", "2", "--run", &url]).arg("--config");
    command.arg(fixture.path().join("run.yaml")).current_dir(&folder);
    let run = LiveRun::start(&mut command, &url, &folder)?;
    let ended = run.wait().await;
    if ended.code != Some(0) {
        return Err(format!("the run without faults failed:\n{}", ended.last_words()));
    }
    let store = RunStore::open(&url).map_err(|error| error.to_string())?;
    Parameters::newest(&store)
        .await
        .map_err(|error| error.to_string())
}
