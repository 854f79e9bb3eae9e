//! Which workers there are on this machine, on which devices, and what sums their gradients.

use std::process::Stdio;
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context, bail};
use serde::Deserialize;
use zipper_cli::UserError;
use zipper_config::schema::Backend;

use crate::processes::beside;
use crate::slurm::VARIABLES_OF_THE_JOB;

/// What to do about a worker program without GPU support.
pub(crate) const BUILD_WITH_CUDA: &str =
    "build it with `cargo xtask setup --cuda` and `cargo build --release --features cuda`";
/// How long a worker may take to say what it can use: it loads libtorch and looks for GPUs.
const ASK_TIMEOUT: Duration = Duration::from_mins(2);

/// What `zipper-worker devices` says.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(crate) struct Worker {
    /// That of the program.
    pub(crate) version: String,
    /// Whether it was built for GPUs.
    pub(crate) cuda: bool,
    #[serde(flatten)]
    pub(crate) devices: Devices,
    pub(crate) libtorch: Libtorch,
}

/// The libtorch that it has loaded.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(crate) struct Libtorch {
    pub(crate) version: Option<String>,
    pub(crate) folder: Option<String>,
}

/// What a worker can use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
pub(crate) struct Devices {
    /// GPUs that it can use, of those in `CUDA_VISIBLE_DEVICES`.
    pub(crate) cuda_devices: u32,
    /// Whether it was built with NCCL.
    pub(crate) nccl: bool,
}

/// What somebody asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Wishes {
    pub(crate) nodes: NodeRange,
    /// Workers more than needed, which wait to take the place of lost ones.
    pub(crate) spares: u32,
    pub(crate) workers_per_node: Option<u32>,
    pub(crate) backend: Backend,
    pub(crate) machines: Machines,
}

/// What nodes are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Machines {
    /// All of them groups of processes on this machine, which share its GPUs.
    One,
    /// Each a machine of its own.
    OnePerNode,
}

/// `4`, or `2:4`: how many nodes a run may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct NodeRange {
    pub(crate) min: u32,
    pub(crate) max: u32,
}

impl NodeRange {
    /// So many, no more and no less.
    pub(crate) fn exactly(nodes: u32) -> Self {
        Self {
            min: nodes,
            max: nodes,
        }
    }
}

impl FromStr for NodeRange {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = |text: &str| match text.parse::<u32>() {
            Ok(number) if number > 0 => Ok(number),
            _ => Err("expected a number of nodes, or MIN:MAX".to_owned()),
        };
        let (min, max) = match text.split_once(':') {
            Some((min, max)) => (number(min)?, number(max)?),
            None => (number(text)?, number(text)?),
        };
        if min > max {
            return Err(format!("{min} is more than {max}: write `{max}:{min}`"));
        }
        Ok(Self { min, max })
    }
}

/// The workers of a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Crew {
    pub(crate) nodes: NodeRange,
    /// Nodes of spare workers.
    pub(crate) spare_nodes: u32,
    pub(crate) workers_per_node: u32,
    /// As zipper-worker takes it: `gloo` or `nccl`.
    pub(crate) backend: &'static str,
    /// GPUs of a machine; none: workers use the CPU.
    gpus: u32,
    machines: Machines,
}

impl Crew {
    /// Decides who works where.
    ///
    /// Without a number of workers there is one for each GPU, or one where there is none. NCCL is taken if every worker has a
    /// GPU of its own.
    ///
    /// # Errors
    /// If NCCL was asked for and cannot be used.
    pub(crate) fn decide(wishes: Wishes, devices: Devices) -> Result<Self, UserError> {
        let Wishes {
            nodes,
            spares,
            workers_per_node,
            backend,
            machines,
        } = wishes;
        let Devices {
            cuda_devices: gpus,
            nccl,
        } = devices;
        let workers_per_node = workers_per_node.unwrap_or_else(|| match machines {
            Machines::One => (gpus / nodes.max).max(1),
            Machines::OnePerNode => gpus.max(1),
        });
        let spare_nodes = spares.div_ceil(workers_per_node);
        // Nodes that share GPUs, and their workers.
        let all_nodes = match machines {
            Machines::One => nodes.max.saturating_add(spare_nodes),
            Machines::OnePerNode => 1,
        };
        let workers = all_nodes.saturating_mul(workers_per_node);
        let own_gpus = workers <= gpus;
        let backend = match backend {
            Backend::Auto if nccl && own_gpus => "nccl",
            Backend::Auto | Backend::Gloo => "gloo",
            Backend::Nccl if !nccl => {
                let error =
                    UserError::new("`runtime.backend` is nccl, but zipper-worker was built without it");
                return Err(error
                    .hint(BUILD_WITH_CUDA)
                    .hint("or sum gradients over TCP with `--backend gloo`"));
            }
            Backend::Nccl if !own_gpus => {
                let error = UserError::new(format!(
                    "{} on {}: NCCL needs a GPU for each worker",
                    count(workers, "worker"),
                    count(gpus, "GPU")
                ));
                let fewer = (gpus / all_nodes).max(1);
                let error = if all_nodes.saturating_mul(fewer) <= gpus {
                    error.hint(format!("use `--workers-per-node {fewer}`"))
                } else {
                    error
                };
                return Err(error.hint("or share GPUs, or use the CPU, with `--backend gloo`"));
            }
            Backend::Nccl => "nccl",
        };
        Ok(Self {
            nodes,
            spare_nodes,
            workers_per_node,
            backend,
            gpus,
            machines,
        })
    }

    /// Most workers that train.
    pub(crate) fn workers(&self) -> u32 {
        self.nodes.max.saturating_mul(self.workers_per_node)
    }

    /// Fewest workers that train.
    pub(crate) fn min_workers(&self) -> u32 {
        self.nodes.min.saturating_mul(self.workers_per_node)
    }

    /// Nodes that have agents, those of spares last.
    pub(crate) fn all_nodes(&self) -> u32 {
        self.nodes.max.saturating_add(self.spare_nodes)
    }

    /// Workers that are started.
    pub(crate) fn all_workers(&self) -> u32 {
        self.all_nodes().saturating_mul(self.workers_per_node)
    }

    /// Workers that share a machine.
    pub(crate) fn workers_per_machine(&self) -> u32 {
        match self.machines {
            Machines::One => self.all_workers(),
            Machines::OnePerNode => self.workers_per_node,
        }
    }

    /// The devices of a node's workers, in the order of their local ranks: `cpu` or `cuda:0`.
    pub(crate) fn devices_of(&self, node: u32) -> Vec<String> {
        let first = match self.machines {
            Machines::One => node * self.workers_per_node,
            Machines::OnePerNode => 0,
        };
        (first..first + self.workers_per_node)
            .map(|worker| match worker.checked_rem(self.gpus) {
                Some(gpu) => format!("cuda:{gpu}"),
                None => "cpu".to_owned(),
            })
            .collect()
    }

    /// Whether its nodes are this machine.
    pub(crate) fn is_here(&self) -> bool {
        self.machines == Machines::One
    }

    /// Whether workers use GPUs.
    pub(crate) fn has_gpus(&self) -> bool {
        self.gpus > 0
    }

    /// What people should know: several workers share a GPU.
    pub(crate) fn warning(&self) -> Option<String> {
        (self.gpus > 0 && self.workers_per_machine() > self.gpus).then(|| {
            format!(
                "{} share {}: that is slower than one worker on each",
                count(self.workers_per_machine(), "worker"),
                count(self.gpus, "GPU")
            )
        })
    }
}

pub(crate) fn count(number: u32, what: &str) -> String {
    format!("{number} {what}{}", if number == 1 { "" } else { "s" })
}

/// Asks the worker program what it can use on this machine.
///
/// # Errors
/// If it is not there, or does not answer.
pub(crate) async fn ask() -> anyhow::Result<Devices> {
    Ok(describe().await?.devices)
}

/// Asks the worker program what it is.
///
/// # Errors
/// If it is not there, or does not answer.
pub(crate) async fn describe() -> anyhow::Result<Worker> {
    describe_by(&[beside("zipper-worker")?.display().to_string()]).await
}

/// The same of a worker program that these words start, elsewhere or in a container.
///
/// # Errors
/// If it cannot be started, or does not answer.
pub(crate) async fn ask_by(words: &[String]) -> anyhow::Result<Devices> {
    Ok(describe_by(words).await?.devices)
}

async fn describe_by(words: &[String]) -> anyhow::Result<Worker> {
    let (program, arguments) = words.split_first().context("there are no words")?;
    let text = words.join(" ");
    let mut command = tokio::process::Command::new(program);
    command.args(arguments).arg("devices");
    for name in VARIABLES_OF_THE_JOB {
        command.env_remove(name);
    }
    let asked = command.stdin(Stdio::null()).kill_on_drop(true).output();
    let output = tokio::time::timeout(ASK_TIMEOUT, asked)
        .await
        .with_context(|| format!("zipper-launch waited {ASK_TIMEOUT:?} for `{text} devices`"))?
        .with_context(|| format!("`{program}` cannot be started"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        if said.contains("error while loading shared libraries") {
            let error = UserError::new(format!("`{program}` cannot be loaded: {}", said.trim_end()));
            return Err(error
                .hint("`cargo xtask setup` installs libtorch where the programs of this checkout look for it")
                .hint("elsewhere: name its folder `lib` in LD_LIBRARY_PATH")
                .into());
        }
        bail!(
            "`{text} devices` failed ({}):\n{}",
            output.status,
            said.trim_end()
        );
    }
    serde_json::from_slice(&output.stdout).with_context(|| format!("`{text} devices` printed something else"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decide(nodes: u32, workers_per_node: Option<u32>, backend: Backend, devices: (u32, bool)) -> String {
        let wishes = Wishes {
            nodes: NodeRange::exactly(nodes),
            spares: 0,
            workers_per_node,
            backend,
            machines: Machines::One,
        };
        let (cuda_devices, nccl) = devices;
        match Crew::decide(wishes, Devices { cuda_devices, nccl }) {
            Ok(crew) => {
                let nodes: Vec<String> = (0..nodes).map(|node| crew.devices_of(node).join(" ")).collect();
                let warning = if crew.warning().is_some() { ", shared" } else { "" };
                format!("{}: {}{warning}", crew.backend, nodes.join(" | "))
            }
            Err(error) => error.to_string(),
        }
    }

    /// Goal: without wishes every GPU gets a worker and NCCL is used where it can be; never where two workers would meet on a
    /// GPU.
    #[test]
    fn workers_follow_the_gpus() {
        use Backend::{Auto, Gloo, Nccl};
        let cases = [
            ((1, None, Auto, (0, false)), "gloo: cpu"),
            ((2, None, Auto, (0, true)), "gloo: cpu | cpu"),
            ((2, Some(2), Auto, (0, false)), "gloo: cpu cpu | cpu cpu"),
            ((1, None, Auto, (1, true)), "nccl: cuda:0"),
            ((1, None, Auto, (4, true)), "nccl: cuda:0 cuda:1 cuda:2 cuda:3"),
            ((1, None, Auto, (2, false)), "gloo: cuda:0 cuda:1"),
            ((2, None, Auto, (5, true)), "nccl: cuda:0 cuda:1 | cuda:2 cuda:3"),
            ((2, None, Auto, (1, true)), "gloo: cuda:0 | cuda:0, shared"),
            (
                (1, Some(3), Auto, (2, true)),
                "gloo: cuda:0 cuda:1 cuda:0, shared",
            ),
            ((1, Some(2), Gloo, (1, true)), "gloo: cuda:0 cuda:0, shared"),
            ((1, None, Gloo, (2, true)), "gloo: cuda:0 cuda:1"),
            ((1, None, Nccl, (2, true)), "nccl: cuda:0 cuda:1"),
            (
                (1, Some(2), Nccl, (1, true)),
                "2 workers on 1 GPU: NCCL needs a GPU for each worker",
            ),
            (
                (1, None, Nccl, (0, true)),
                "1 worker on 0 GPUs: NCCL needs a GPU for each worker",
            ),
            (
                (1, None, Nccl, (1, false)),
                "`runtime.backend` is nccl, but zipper-worker was built without it",
            ),
        ];
        for ((nodes, workers, backend, devices), expected) in cases {
            let found = decide(nodes, workers, backend, devices);
            assert_eq!(
                found, expected,
                "{nodes} nodes, {workers:?} workers, {backend:?}, {devices:?}"
            );
        }
    }

    #[test]
    fn nodes_are_a_number_or_a_range() {
        assert_eq!("4".parse(), Ok(NodeRange::exactly(4)));
        assert_eq!("2:4".parse(), Ok(NodeRange { min: 2, max: 4 }));
        for (text, words) in [
            ("0", "expected"),
            ("a:4", "expected"),
            ("", "expected"),
            ("4:2", "write `2:4`"),
        ] {
            let error = text.parse::<NodeRange>().expect_err("it is refused");
            assert!(error.contains(words), "{text}: {error}");
        }
    }

    /// Goal: spares get nodes of their own, and GPUs as everyone.
    #[test]
    fn spares_are_more_nodes() {
        let wishes = |spares| Wishes {
            nodes: NodeRange { min: 1, max: 2 },
            spares,
            workers_per_node: Some(2),
            backend: Backend::Auto,
            machines: Machines::One,
        };
        let devices = Devices {
            cuda_devices: 5,
            nccl: true,
        };
        let crew = Crew::decide(wishes(1), devices).expect("Gloo can always be used");
        assert_eq!(
            (
                crew.min_workers(),
                crew.workers(),
                crew.all_nodes(),
                crew.all_workers()
            ),
            (2, 4, 3, 6)
        );
        assert_eq!(crew.backend, "gloo", "6 workers do not fit on 5 GPUs");
        assert_eq!(Crew::decide(wishes(0), devices).expect("4 do").backend, "nccl");
    }

    /// Goal: on machines of their own, every node has all of a machine's GPUs, and the first of them is `cuda:0` everywhere.
    #[test]
    fn nodes_of_a_cluster_do_not_share_gpus() {
        let wishes = |workers_per_node| Wishes {
            nodes: NodeRange::exactly(4),
            spares: 3,
            workers_per_node,
            backend: Backend::Auto,
            machines: Machines::OnePerNode,
        };
        let devices = |cuda_devices| Devices {
            cuda_devices,
            nccl: true,
        };
        let crew = Crew::decide(wishes(None), devices(2)).expect("one worker for each GPU");
        assert_eq!((crew.workers(), crew.all_nodes(), crew.backend), (8, 6, "nccl"));
        assert_eq!(crew.devices_of(0), crew.devices_of(5));
        assert_eq!(crew.devices_of(5), ["cuda:0", "cuda:1"]);
        let crew = Crew::decide(wishes(Some(3)), devices(2)).expect("Gloo can always be used");
        assert_eq!((crew.backend, crew.warning().is_some()), ("gloo", true));
    }
}
