//! `zipper-launch doctor`: finds what is wrong with this machine and what a run needs of it, before a run does.
//!
//! Reading order: this file (what is asked, what comes out), `finding`, `programs` (libtorch, GPUs), `limits`, `room` (disk and
//! memory, against what the plan says), `store`, `slurm`, `preflight` (the part that every launch does).

mod finding;
mod limits;
mod preflight;
mod programs;
mod room;
mod slurm;
mod store;

use std::path::PathBuf;

use anyhow::Context;
use serde::Serialize;
use zipper_checkpoint::RunStore;
use zipper_cli::{ExitStatus, unusable};
use zipper_config::RunConfig;
use zipper_config::schema::{Backend, ClusterConfig};

use crate::devices::{Crew, Devices, Machines, NodeRange, Wishes};
use crate::preflight::read_config;
use crate::run::print;
use crate::slurm::Allocation;
use finding::{Finding, Level};
pub(crate) use preflight::preflight;

#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// A run's YAML file: whether this machine has the memory, the disk and the limits for it.
    #[arg(long)]
    config: Option<PathBuf>,
    /// Run URL: whether a run can be kept there. Left out: `./runs/<name>` of the file.
    #[arg(long)]
    run: Option<String>,
    /// Nodes of the run.
    #[arg(long, value_name = "N|MIN:MAX")]
    nodes: Option<NodeRange>,
    /// Workers (ranks) on each node. Left out: as many as the run would have on this machine.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    workers_per_node: Option<u32>,
    /// Change a key of the file. Can be given several times.
    #[arg(long = "set", value_name = "KEY.PATH=VALUE")]
    overrides: Vec<String>,
    /// Print one JSON document on stdout.
    #[arg(long)]
    json: bool,
}

/// The JSON document.
#[derive(Debug, Serialize)]
struct Report {
    /// Whether nothing was found that would make a run fail.
    ok: bool,
    findings: Vec<Finding>,
}

pub(crate) async fn run(arguments: &Arguments) -> anyhow::Result<ExitStatus> {
    let config = arguments.config.as_deref();
    let config = config
        .map(|file| read_config(file, &arguments.overrides))
        .transpose()?;
    let url = match (&arguments.run, &config) {
        (Some(url), _) => Some(url.clone()),
        (None, Some(config)) => Some(format!("./runs/{}", config.name)),
        (None, None) => None,
    };
    let store = url
        .map(|url| RunStore::open_with(&url, &store::impatient()))
        .transpose()
        .map_err(unusable)?;

    let (worker, mut findings) = programs::look().await;
    findings.extend(programs::gpus(worker.as_ref()).await);
    findings.extend(slurm::look(config.as_ref()).await);
    let devices = worker.map(|worker| worker.devices).unwrap_or_default();
    let crew = crew(arguments, config.as_ref(), devices, &mut findings).await?;
    if let Some(config) = &config {
        let here = crew.is_here();
        findings.extend(of_machine(config, &crew, here));
        findings.extend(programs::gpu_memory(config, &crew).await);
        findings.extend(store.iter().flat_map(|store| room::disks(config, store)));
    } else {
        findings.extend(limits::look(&crew));
        findings.extend(room::of_machine());
    }
    if let Some(store) = &store {
        findings.extend(store::look(store).await);
    } else {
        findings.push(Finding::skipped(
            "store",
            "not looked at: name a run with `--run URL`",
        ));
    }

    let report = Report {
        ok: findings.iter().all(|finding| finding.level != Level::Failure),
        findings,
    };
    print(&if arguments.json {
        serde_json::to_string(&report).context("the findings cannot be written as JSON")?
    } else {
        let width = columns();
        let mut lines: Vec<String> = report
            .findings
            .iter()
            .map(|finding| finding.render(width))
            .collect();
        lines.push(String::new());
        lines.push(finding::conclusion(&report.findings));
        lines.join("\n")
    })?;
    Ok(if report.ok {
        ExitStatus::Done
    } else {
        ExitStatus::Failed
    })
}

/// How wide stdout is; files have no end of lines.
fn columns() -> usize {
    let terminal = console::Term::stdout();
    if terminal.is_term() {
        usize::from(terminal.size().1)
    } else {
        usize::MAX
    }
}

/// Limits and memory of this machine, for the workers that it would have. `here`: the run's nodes are this machine; else they may
/// have others.
fn of_machine(config: &RunConfig, crew: &Crew, here: bool) -> Vec<Finding> {
    let mut findings = limits::look(crew);
    findings.extend(room::models(config, crew));
    if here {
        return findings;
    }
    findings.into_iter().map(Finding::of_this_machine_only).collect()
}

/// The workers that the run would have: on this machine, or in a Slurm job where the configuration asks for one.
async fn crew(
    arguments: &Arguments,
    config: Option<&RunConfig>,
    devices: Devices,
    findings: &mut Vec<Finding>,
) -> anyhow::Result<Crew> {
    let allocation = match Allocation::find().await {
        Ok(allocation) => allocation,
        Err(error) => {
            findings.push(Finding::failure("slurm", format!("{error:#}")).fixes_of(&error));
            None
        }
    };
    let cluster = config
        .map(|config| &config.cluster)
        .filter(|cluster| **cluster != ClusterConfig::default());
    let nodes = match &allocation {
        None => arguments.nodes.unwrap_or(NodeRange::exactly(1)),
        Some(allocation) => allocation.training_nodes(arguments.nodes, 0)?,
    };
    let wishes = Wishes {
        nodes,
        spares: 0,
        workers_per_node: arguments
            .workers_per_node
            .or(cluster.and_then(|cluster| cluster.gpus_per_node)),
        backend: config.map(|config| config.runtime.backend).unwrap_or_default(),
        machines: match (&allocation, cluster) {
            (None, None) => Machines::One,
            _ => Machines::OnePerNode,
        },
    };
    match Crew::decide(wishes, devices) {
        Ok(crew) => Ok(crew),
        Err(error) => {
            let error: anyhow::Error = error.into();
            let finding = Finding::failure("gpus", format!("{error:#}")).fixes_of(&error);
            // On a login node there are none.
            let finding = match wishes.machines {
                Machines::One => finding,
                Machines::OnePerNode => finding.of_this_machine_only(),
            };
            findings.push(finding);
            // With the backend that can always be used, to look at the rest.
            let backend = Backend::Gloo;
            Ok(Crew::decide(Wishes { backend, ..wishes }, devices)?)
        }
    }
}
