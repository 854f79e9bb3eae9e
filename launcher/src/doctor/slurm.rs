//! Slurm, where there is one, or where the configuration wants one.

use zipper_config::RunConfig;
use zipper_config::schema::ClusterConfig;

use super::finding::Finding;
use super::programs::said_by;
use crate::processes::in_path;

/// What zipper-launch calls.
const COMMANDS: [&str; 4] = ["sbatch", "squeue", "scontrol", "srun"];

/// Looks whether jobs can be handed in.
pub(super) async fn look(config: Option<&RunConfig>) -> Vec<Finding> {
    let cluster = config.map(|config| &config.cluster);
    let wanted = std::env::var_os("SLURM_JOB_ID").is_some()
        || cluster.is_some_and(|cluster| *cluster != ClusterConfig::default());
    let missing: Vec<&str> = COMMANDS
        .into_iter()
        .filter(|name| in_path(name).is_none())
        .collect();
    if missing.len() == COMMANDS.len() && !wanted {
        return vec![Finding::fine(
            "slurm",
            "there is none: nodes are groups of processes on this machine",
        )];
    }
    if !missing.is_empty() {
        let found = format!("these commands of Slurm are not in PATH: {}", missing.join(", "));
        let finding = if wanted {
            Finding::failure("slurm", found)
        } else {
            Finding::warning("slurm", found)
        };
        return vec![
            finding
                .fix("load Slurm's module, or install the package `slurm-client`")
                .fix("or leave the section `cluster` out, to use this machine alone"),
        ];
    }
    if let Err(error) = said_by("scontrol", &["ping"]).await {
        return vec![no_answer(format!("{error:#}"), wanted).await];
    }
    let mut findings = vec![Finding::fine(
        "slurm",
        "its commands are there, and its controller answers",
    )];
    findings.extend(partition(cluster.and_then(|cluster| cluster.partition.as_deref())).await);
    findings
}

/// Why the controller does not answer.
async fn no_answer(problem: String, wanted: bool) -> Finding {
    // Most often nothing that it is sent can be signed.
    let munge = match in_path("munge") {
        Some(_) => said_by("munge", &["--no-input"]).await.err(),
        None => None,
    };
    let found = match &munge {
        Some(error) => format!("its controller does not answer, and munge signs nothing: {error:#}"),
        None => format!("its controller does not answer: {problem}"),
    };
    let finding = if wanted {
        Finding::failure("slurm", found)
    } else {
        Finding::warning("slurm", found)
    };
    match munge {
        Some(_) => finding.fix("start munge (`systemctl start munge`); all machines need the same /etc/munge/munge.key"),
        None => finding
            .fix("see whether slurmctld runs, and SLURM_CONF or /etc/slurm/slurm.conf names the machine that it is on"),
    }
}

/// Whether the partition of the configuration is there.
async fn partition(name: Option<&str>) -> Option<Finding> {
    let name = name?;
    let said = said_by("sinfo", &["--noheader", "--format=%R"]).await.ok()?;
    let there: Vec<&str> = said.split_whitespace().collect();
    // Several may be named.
    let missing: Vec<&str> = name.split(',').filter(|name| !there.contains(name)).collect();
    (!missing.is_empty()).then(|| {
        Finding::failure(
            "slurm",
            format!("there is no partition `{}`", missing.join("`, `")),
        )
        .fix(format!("set `cluster.partition` to one of: {}", there.join(", ")))
    })
}
