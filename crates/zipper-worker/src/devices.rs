//! `zipper-worker devices`: what a worker can use on this machine, for zipper-launch.

use std::io::Write;

use anyhow::Context;
use zipper_cli::ExitStatus;
use zipper_collectives::Backend;

pub(crate) fn run() -> anyhow::Result<ExitStatus> {
    let devices = serde_json::json!({
        "cuda_devices": tch::Cuda::device_count(),
        "nccl": Backend::Nccl.is_built(),
    });
    writeln!(std::io::stdout(), "{devices}").context("stdout is closed")?;
    Ok(ExitStatus::Done)
}
