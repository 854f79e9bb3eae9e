//! Programs and libraries inside Python wheels, each set in a folder of its own under `.deps`.
//!
//! The wheels are installed whatever the machine's Python: what is Python in them is never used.

use std::env::consts::ARCH;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context;

use super::python::{Environment, System};
use super::system;
use crate::workspace::Workspace;

/// A set of pinned wheels.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Wheels {
    /// Of the folder under `.deps`, and in messages.
    pub(crate) name: &'static str,
    /// Pinned packages with hashes, relative to the repository.
    pub(crate) requirements: &'static str,
    /// Files whose presence proves that nothing is missing, beside what the wheels' own records list.
    pub(crate) essential: &'static [&'static str],
    /// Download and unpacked files side by side.
    pub(crate) bytes_needed: u64,
}

impl Wheels {
    /// Where they are or will be.
    pub(crate) fn folder(&self, workspace: &Workspace) -> PathBuf {
        workspace.deps().join(self.name)
    }

    /// Installs them, unless every file of every package is there.
    ///
    /// # Errors
    /// [`zipper_cli::UserError`] for too little disk space and for what pip says.
    pub(crate) fn install(&self, workspace: &Workspace, python: &System) -> anyhow::Result<()> {
        let requirements = workspace.root().join(self.requirements);
        let (name, folder) = (self.name, self.folder(workspace));
        let Some(lacking) = self.missing(workspace)? else {
            println!("setup: {name} is there: {}", folder.display());
            return Ok(());
        };
        println!("setup: installing {name} ({lacking} is missing)");
        system::check_space(workspace.deps(), self.bytes_needed)?;
        fs::create_dir_all(workspace.deps())
            .with_context(|| format!("cannot make `{}`", workspace.deps().display()))?;
        // Installed beside and then moved, so that an interrupted installation is never taken for a whole one.
        let partial = workspace.deps().join(format!("{name}.partial"));
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
            .with_context(|| format!("cannot move {name} to `{}`", folder.display()))?;
        match self.missing(workspace)? {
            None => Ok(()),
            Some(lacking) => anyhow::bail!("pip succeeded, but {lacking} is missing"),
        }
    }

    /// The first thing that the installation lacks.
    ///
    /// # Errors
    /// If the list of packages cannot be read.
    pub(crate) fn missing(&self, workspace: &Workspace) -> anyhow::Result<Option<String>> {
        let requirements = workspace.root().join(self.requirements);
        let pins = fs::read_to_string(&requirements)
            .with_context(|| format!("cannot read `{}`", requirements.display()))?;
        let folder = self.folder(workspace);
        Ok(first_missing(&folder, &packages(&pins), self.essential))
    }
}

/// Platform tags of wheels that run with the glibc that libtorch needs, 2.28, newest first.
pub(crate) fn platforms() -> Vec<String> {
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
fn first_missing(folder: &Path, packages: &[String], essential: &[&str]) -> Option<String> {
    let package = packages.iter().find_map(|package| {
        let Ok(record) = fs::read_to_string(folder.join(format!("{package}.dist-info/RECORD"))) else {
            return Some(format!("package {package}"));
        };
        first_wrong(folder, &record)
    });
    package.or_else(|| {
        let missing = essential.iter().find(|file| !folder.join(file).exists())?;
        Some(format!("`{missing}`"))
    })
}

/// The first file of a wheel's RECORD (`path,hash,size`) that is not there in its size.
fn first_wrong(folder: &Path, record: &str) -> Option<String> {
    record.lines().find_map(|line| {
        let mut fields = line.rsplitn(3, ',');
        let size = fields.next()?.parse::<u64>().ok()?;
        let path = fields.nth(1)?.trim_matches('"');
        // Commands go to a folder of their own; those that are used are essential files.
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
    }

    /// An installation is whole only if each package's record is there and each file in it has its size.
    #[test]
    fn a_cut_or_missing_file_is_found() {
        const ESSENTIAL: [&str; 2] = ["torch/lib/libtorch_cpu.so", "bin/torchrun"];
        let folder = tempfile::tempdir().unwrap();
        let write = |path: &str, content: &str| {
            let path = folder.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        };
        let packages = ["torch-2.11.0".to_owned()];
        let missing = || first_missing(folder.path(), &packages, &ESSENTIAL);
        assert_eq!(missing().unwrap(), "package torch-2.11.0");
        let record = "../../bin/torchrun,sha256=x,244\ntorch/lib/libc10.so,sha256=y,4\ntorch/a.pyc,,\n";
        write("torch-2.11.0.dist-info/RECORD", record);
        assert_eq!(missing().unwrap(), "`torch/lib/libc10.so`");
        write("torch/lib/libc10.so", "cut");
        assert_eq!(missing().unwrap(), "`torch/lib/libc10.so`");
        write("torch/lib/libc10.so", "full");
        assert_eq!(missing().unwrap(), "`torch/lib/libtorch_cpu.so`");
        for file in ESSENTIAL {
            write(file, "full");
        }
        assert_eq!(missing(), None);
    }
}
