//! libtorch: the C++ libraries and headers inside PyTorch's wheel, in `.deps/libtorch`.
//!
//! One wheel is installed whatever the machine's Python: its Python part is never used. Without CUDA, two of the wheels
//! that PyTorch depends on are enough, because `libtorch_cpu.so` is linked to the libraries in them.

use std::env::consts::ARCH;
use std::fs;
use std::path::Path;

use anyhow::Context;

use super::python::{Environment, System};
use super::system;
use crate::workspace::Workspace;

const GIB: u64 = 1 << 30;
/// What proves that nothing is missing: the libraries that programs are linked to, and headers.
const ESSENTIAL: [&str; 4] = [
    "torch/lib/libtorch_cpu.so",
    "torch/lib/libc10.so",
    "torch/lib/libtorch.so",
    "torch/include/torch/csrc/distributed/c10d/TCPStore.hpp",
];

/// Which install.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Flavor {
    /// What a CPU needs.
    Cpu,
    /// With CUDA, cuDNN and NCCL.
    Cuda,
}

impl Flavor {
    /// Pinned packages with hashes, relative to the repository.
    fn requirements(self) -> &'static str {
        match self {
            Self::Cpu => "crates/xtask/requirements/libtorch-cpu.txt",
            Self::Cuda => "crates/xtask/requirements/libtorch-cuda.txt",
        }
    }

    /// Download and unpacked files side by side.
    fn bytes_needed(self) -> u64 {
        match self {
            Self::Cpu => 2 * GIB,
            Self::Cuda => 7 * GIB,
        }
    }
}

/// Installs libtorch, unless every file of every package is there.
///
/// # Errors
/// [`zipper_cli::UserError`] for too little disk space and for what pip says.
pub(crate) fn install(workspace: &Workspace, python: &System, flavor: Flavor) -> anyhow::Result<()> {
    let requirements = workspace.root().join(flavor.requirements());
    let folder = workspace.deps().join("libtorch");
    let Some(lacking) = missing(workspace, flavor)? else {
        println!("setup: libtorch is there: {}", folder.display());
        return Ok(());
    };
    println!("setup: installing libtorch ({lacking} is missing)");
    system::check_space(workspace.deps(), flavor.bytes_needed())?;
    fs::create_dir_all(workspace.deps())
        .with_context(|| format!("cannot make `{}`", workspace.deps().display()))?;
    // Installed beside and then moved, so that an interrupted installation is never taken for a whole one.
    let partial = workspace.deps().join("libtorch.partial");
    remove(&partial)?;
    let environment = Environment::open(workspace, python)?;
    let (target, requirements) = (partial.to_string_lossy(), requirements.to_string_lossy());
    let mut arguments = vec![
        "install",
        "--no-deps",
        "--no-compile",
        "--only-binary=:all:",
        "--require-hashes",
    ];
    arguments.extend(["--python-version", "3.11", "--implementation", "cp"]);
    let platforms = platforms();
    arguments.extend(platforms.iter().flat_map(|platform| ["--platform", platform]));
    arguments.extend(["--target", &target, "--requirement", &requirements]);
    environment.pip(workspace, &arguments)?;
    remove(&folder)?;
    fs::rename(&partial, &folder)
        .with_context(|| format!("cannot move libtorch to `{}`", folder.display()))?;
    match missing(workspace, flavor)? {
        None => Ok(()),
        Some(lacking) => anyhow::bail!("pip succeeded, but {lacking} is missing"),
    }
}

/// The first thing that the installation lacks.
///
/// # Errors
/// If the list of packages cannot be read.
pub(crate) fn missing(workspace: &Workspace, flavor: Flavor) -> anyhow::Result<Option<String>> {
    let requirements = workspace.root().join(flavor.requirements());
    let pins = fs::read_to_string(&requirements)
        .with_context(|| format!("cannot read `{}`", requirements.display()))?;
    Ok(first_missing(
        &workspace.deps().join("libtorch"),
        &packages(&pins),
    ))
}

/// Platform tags of wheels that run with the glibc that libtorch needs, 2.28, newest first.
fn platforms() -> Vec<String> {
    let by_version = (5..=28).rev().map(|minor| format!("manylinux_2_{minor}_{ARCH}"));
    by_version.chain([format!("manylinux2014_{ARCH}")]).collect()
}

fn remove(folder: &Path) -> anyhow::Result<()> {
    if folder.exists() {
        fs::remove_dir_all(folder).with_context(|| format!("cannot remove `{}`", folder.display()))?;
    }
    Ok(())
}

/// `name-version` of each pinned package, as wheels write it.
fn packages(pins: &str) -> Vec<String> {
    pins.lines()
        .filter(|line| !line.starts_with(['#', ' ']))
        .filter_map(|line| line.split_whitespace().next()?.split_once("=="))
        .map(|(name, version)| format!("{}-{version}", name.replace('-', "_")))
        .collect()
}

/// The first thing that an installation in `folder` lacks.
fn first_missing(folder: &Path, packages: &[String]) -> Option<String> {
    let package = packages.iter().find_map(|package| {
        let Ok(record) = fs::read_to_string(folder.join(format!("{package}.dist-info/RECORD"))) else {
            return Some(format!("package {package}"));
        };
        first_wrong(folder, &record)
    });
    package.or_else(|| {
        let essential = ESSENTIAL.into_iter().find(|file| !folder.join(file).exists())?;
        Some(format!("`{essential}`"))
    })
}

/// The first file of a wheel's RECORD (`path,hash,size`) that is not there in its size.
fn first_wrong(folder: &Path, record: &str) -> Option<String> {
    record.lines().find_map(|line| {
        let mut fields = line.rsplitn(3, ',');
        let size = fields.next()?.parse::<u64>().ok()?;
        let path = fields.nth(1)?.trim_matches('"');
        // Commands go to a folder of their own, which is of no use here.
        if path.starts_with("../") {
            return None;
        }
        let found = fs::metadata(folder.join(path)).map(|metadata| metadata.len());
        (found.ok() != Some(size)).then(|| format!("`{path}`"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const PINS: &str = "# Comment.\ntorch==2.11.0 \\\n    --hash=sha256:01 \\\n    --hash=sha256:02\nnvidia-cuda-cupti==13.0.85 \\\n    --hash=sha256:03\n";

    #[test]
    fn pins_name_the_installed_packages() {
        assert_eq!(packages(PINS), ["torch-2.11.0", "nvidia_cuda_cupti-13.0.85"]);
        for flavor in [Flavor::Cpu, Flavor::Cuda] {
            let path = Workspace::new(None).root().join(flavor.requirements());
            let packages = packages(&fs::read_to_string(path).unwrap());
            assert!(packages.iter().any(|package| package.starts_with("torch-")));
        }
    }

    /// An installation is whole only if each package's record is there and each file in it has its size.
    #[test]
    fn a_cut_or_missing_file_is_found() {
        let folder = tempfile::tempdir().unwrap();
        let write = |path: &str, content: &str| {
            let path = folder.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        };
        let packages = ["torch-2.11.0".to_owned()];
        assert_eq!(
            first_missing(folder.path(), &packages).unwrap(),
            "package torch-2.11.0"
        );
        let record = "../../bin/torchrun,sha256=x,244\ntorch/lib/libc10.so,sha256=y,4\ntorch/a.pyc,,\n";
        write("torch-2.11.0.dist-info/RECORD", record);
        assert_eq!(
            first_missing(folder.path(), &packages).unwrap(),
            "`torch/lib/libc10.so`"
        );
        write("torch/lib/libc10.so", "cut");
        assert_eq!(
            first_missing(folder.path(), &packages).unwrap(),
            "`torch/lib/libc10.so`"
        );
        write("torch/lib/libc10.so", "full");
        assert_eq!(
            first_missing(folder.path(), &packages).unwrap(),
            "`torch/lib/libtorch_cpu.so`"
        );
        for file in ESSENTIAL {
            write(file, "full");
        }
        assert_eq!(first_missing(folder.path(), &packages), None);
    }
}
