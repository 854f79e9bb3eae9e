//! `zipper-worker devices`: what a worker can use on this machine, for zipper-launch.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::Context;
use zipper_cli::ExitStatus;
use zipper_collectives::Backend;

pub(crate) fn run() -> anyhow::Result<ExitStatus> {
    let libtorch = loaded_libtorch();
    let version = libtorch.as_deref().and_then(version_of);
    let devices = serde_json::json!({
        "version": env!("CARGO_PKG_VERSION"),
        "cuda_devices": tch::Cuda::device_count(),
        "cuda": cfg!(feature = "cuda"),
        "nccl": Backend::Nccl.is_built(),
        "libtorch": {"version": version, "folder": libtorch},
    });
    writeln!(std::io::stdout(), "{devices}").context("stdout is closed")?;
    Ok(ExitStatus::Done)
}

/// The folder of the libtorch that this process uses, wherever the loader found it.
fn loaded_libtorch() -> Option<PathBuf> {
    let maps = fs::read_to_string("/proc/self/maps").ok()?;
    let mut files = maps
        .lines()
        .filter_map(|line| Some(Path::new(&line[line.find('/')?..])));
    let library = files.find(|path| path.file_name().is_some_and(|name| name == "libtorch_cpu.so"))?;
    // lib/libtorch_cpu.so
    Some(library.parent()?.parent()?.to_owned())
}

/// As the file beside the libraries says, of Python's package or of the C++ one.
fn version_of(folder: &Path) -> Option<String> {
    if let Ok(text) = fs::read_to_string(folder.join("build-version")) {
        return Some(text.trim().to_owned());
    }
    let text = fs::read_to_string(folder.join("version.py")).ok()?;
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("__version__ = "))?;
    Some(line.trim().trim_matches(['\'', '"']).to_owned())
}
