//! The other programs, libtorch below them, and GPUs.

use std::process::Stdio;
use std::time::Duration;

use anyhow::Context;
use tokio::process::Command;
use zipper_config::RunConfig;

use super::finding::Finding;
use crate::devices::{self, BUILD_WITH_CUDA, Crew, Worker, count};
use crate::plan::{self, bytes};
use crate::processes::beside;

/// How long a program that says something about itself may take.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(20);

/// A GPU, as its driver tells.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Gpu {
    name: String,
    memory_mib: u64,
    driver: String,
}

/// Whether the programs of a run are there, and can be started.
pub(super) async fn look() -> (Option<Worker>, Vec<Finding>) {
    let here = env!("CARGO_PKG_VERSION");
    let mut findings = Vec::new();
    match coordinator().await {
        Ok(said) if said.ends_with(&format!(" {here}")) => {
            findings.push(Finding::fine("programs", format!("zipper-launch {here}, {said}")));
        }
        Ok(said) => {
            let found = format!("this is zipper-launch {here}, and beside it is {said}");
            findings.push(Finding::failure("programs", found).fix(INSTALL_TOGETHER));
        }
        Err(error) => {
            findings.push(Finding::failure("programs", format!("{error:#}")).fix(INSTALL_TOGETHER));
        }
    }
    let worker = match devices::describe().await {
        Ok(worker) => worker,
        Err(error) => {
            findings.push(Finding::failure("libtorch", format!("{error:#}")).fixes_of(&error));
            return (None, findings);
        }
    };
    if worker.version != here {
        let found = format!(
            "this is zipper-launch {here}, and beside it is zipper-worker {}",
            worker.version
        );
        findings.push(Finding::failure("programs", found).fix(INSTALL_TOGETHER));
    }
    findings.push(libtorch(&worker));
    (Some(worker), findings)
}

const INSTALL_TOGETHER: &str =
    "build the workspace with `cargo build --release`, or install all three programs of one version together";

async fn coordinator() -> anyhow::Result<String> {
    let program = beside("zipper-coordinator")?.display().to_string();
    let said = said_by(&program, &["--version"]).await?;
    Ok(said.trim().to_owned())
}

fn libtorch(worker: &Worker) -> Finding {
    let folder = worker
        .libtorch
        .folder
        .as_deref()
        .unwrap_or("a folder that it does not tell");
    let built = if worker.cuda {
        "with CUDA and NCCL"
    } else {
        "for the CPU"
    };
    match &worker.libtorch.version {
        Some(version) => Finding::fine(
            "libtorch",
            format!("{version} in `{folder}`; zipper-worker is built {built}"),
        ),
        None => Finding::warning("libtorch", format!("of unknown version, in `{folder}`"))
            .fix("`cargo xtask setup` installs the version that Zipper is tested with"),
    }
}

/// Whether workers can use the GPUs that are here.
pub(super) async fn gpus(worker: Option<&Worker>) -> Vec<Finding> {
    let Some(worker) = worker else {
        return Vec::new();
    };
    let usable = worker.devices.cuda_devices;
    let there = match installed_gpus().await {
        Ok(gpus) => gpus,
        Err(_) if usable > 0 => {
            return vec![Finding::fine(
                "gpus",
                format!("zipper-worker can use {}", count(usable, "GPU")),
            )];
        }
        Err(_) => return vec![Finding::fine("gpus", "there are none: workers train on the CPU")],
    };
    let chosen = std::env::var("CUDA_VISIBLE_DEVICES").ok();
    vec![judge_gpus(&there, worker.cuda, usable, chosen.as_deref())]
}

fn judge_gpus(there: &[Gpu], cuda: bool, usable: u32, chosen: Option<&str>) -> Finding {
    let number = there.len() as u32;
    let driver = there.first().map_or("?", |gpu| gpu.driver.as_str());
    let name = there.first().map_or("?", |gpu| gpu.name.as_str());
    let here = format!("{} ({name}, driver {driver})", count(number, "GPU"));
    if !cuda {
        return Finding::warning("gpus", format!("{here}, but zipper-worker is built for the CPU"))
            .fix(BUILD_WITH_CUDA);
    }
    let with = chosen
        .map(|value| format!("; CUDA_VISIBLE_DEVICES is `{value}`"))
        .unwrap_or_default();
    let found = format!("{here}, of which zipper-worker can use {usable}{with}");
    if usable == number || (chosen.is_some() && usable > 0) {
        return Finding::fine("gpus", found);
    }
    let finding = Finding::warning("gpus", found);
    match chosen {
        Some(_) => finding.fix("name GPUs that are there in CUDA_VISIBLE_DEVICES, or unset it"),
        None => finding
            .fix("see whether the driver is new enough for the CUDA version of libtorch: `nvidia-smi` shows both")
            .fix("see whether other processes have the GPUs for themselves: `nvidia-smi -q -d COMPUTE`"),
    }
}

/// Whether the frozen models fit on the GPUs.
pub(super) async fn gpu_memory(config: &RunConfig, crew: &Crew) -> Option<Finding> {
    if !crew.has_gpus() {
        return None;
    }
    let gpus = installed_gpus().await.ok()?;
    let largest = gpus.iter().map(|gpu| gpu.memory_mib).max()? << 20;
    let models = plan::frozen_bytes(config).ok()?;
    // As many share one, at the least.
    let sharing = u64::from(crew.workers_per_machine()).div_ceil(gpus.len() as u64);
    let needed = models * sharing;
    let (needed_text, there) = (bytes(needed), bytes(largest));
    Some(if needed > largest {
        Finding::failure(
            "memory",
            format!("the frozen models take {needed_text} on a GPU, which has {there}"),
        )
        .fix("use `model.dtype: bf16`, fewer workers on a GPU, or a smaller model")
    } else {
        Finding::fine(
            "memory",
            format!("the frozen models take {needed_text} of the {there} of a GPU"),
        )
    })
}

async fn installed_gpus() -> anyhow::Result<Vec<Gpu>> {
    let query = [
        "--query-gpu=name,memory.total,driver_version",
        "--format=csv,noheader,nounits",
    ];
    let gpus = parse_gpus(&said_by("nvidia-smi", &query).await?);
    anyhow::ensure!(!gpus.is_empty(), "`nvidia-smi` names no GPU");
    Ok(gpus)
}

/// `NVIDIA H100 80GB HBM3, 81559, 580.95.05`, one line for each.
fn parse_gpus(said: &str) -> Vec<Gpu> {
    let gpu = |line: &str| {
        let mut fields = line.rsplitn(3, ", ");
        let (driver, memory, name) = (fields.next()?, fields.next()?, fields.next()?);
        Some(Gpu {
            name: name.to_owned(),
            memory_mib: memory.trim().parse().ok()?,
            driver: driver.trim().to_owned(),
        })
    };
    said.lines().filter_map(gpu).collect()
}

/// What a program prints.
///
/// # Errors
/// If it cannot be started, takes too long or fails.
pub(super) async fn said_by(program: &str, arguments: &[&str]) -> anyhow::Result<String> {
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).kill_on_drop(true);
    let text = format!("{program} {}", arguments.join(" "));
    let output = tokio::time::timeout(ANSWER_TIMEOUT, command.output())
        .await
        .with_context(|| format!("zipper-launch waited {ANSWER_TIMEOUT:?} for `{text}`"))?
        .with_context(|| format!("`{program}` cannot be started"))?;
    anyhow::ensure!(
        output.status.success(),
        "`{text}` failed ({}): {}",
        output.status,
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::super::finding::Level;
    use super::*;

    /// Goal: GPUs that cannot be used are told, with the reason that fits.
    #[test]
    fn unused_gpus_are_found() {
        let there =
            parse_gpus("NVIDIA H100 80GB HBM3, 81559, 580.95.05\nNVIDIA H100 80GB HBM3, 81559, 580.95.05\n");
        assert_eq!(there.len(), 2);
        assert_eq!(there[0].memory_mib, 81_559);
        for (cuda, usable, chosen, level, words) in [
            (true, 2, None, Level::Ok, "can use 2"),
            (true, 1, Some("0"), Level::Ok, "CUDA_VISIBLE_DEVICES is `0`"),
            (false, 0, None, Level::Warning, "built for the CPU"),
            (true, 0, None, Level::Warning, "can use 0"),
            (true, 0, Some("7"), Level::Warning, "CUDA_VISIBLE_DEVICES is `7`"),
        ] {
            let finding = judge_gpus(&there, cuda, usable, chosen);
            assert_eq!(finding.level, level, "{finding:?}");
            assert!(finding.found.contains(words), "{finding:?}");
            assert_eq!(finding.fixes.is_empty(), level == Level::Ok, "{finding:?}");
        }
        assert!(parse_gpus("No devices were found\n").is_empty());
    }
}
