//! The repository's folders, and programs run in it.

use std::env;
use std::ffi::{OsStr, OsString};
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};

/// What `target/release` is for.
const PROGRAMS: [&str; 4] = [
    "zipper-launch",
    "zipper-coordinator",
    "zipper-worker",
    "zipper-demo",
];

/// Where things are.
#[derive(Debug)]
pub(crate) struct Workspace {
    root: PathBuf,
    deps: PathBuf,
}

impl Workspace {
    /// The repository of the `cargo run` that started this program, which may have been built in another one with the same target
    /// folder, or in this one at another place. What is fetched goes to `deps`, by default `.deps`.
    pub(crate) fn new(deps: Option<PathBuf>) -> Self {
        Self::of(env::var_os("CARGO_MANIFEST_DIR"), deps)
    }

    /// The repository of the `package` that this program is; by default that in which it was built.
    fn of(package: Option<OsString>, deps: Option<PathBuf>) -> Self {
        let package = package.unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into());
        let root = Path::new(&package).join("../..");
        let root = root.canonicalize().unwrap_or(root);
        let deps = deps.unwrap_or_else(|| root.join(".deps"));
        Self { root, deps }
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    pub(crate) fn deps(&self) -> &Path {
        &self.deps
    }

    /// A command that will run in the root of the repository.
    pub(crate) fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(program);
        command.current_dir(&self.root);
        command
    }

    /// Cargo, in the root of the repository.
    pub(crate) fn cargo(&self) -> Command {
        self.command("cargo")
    }

    /// Builds the programs that users run, and the demo's: always these together, so that what they depend on has the same features
    /// each time and is compiled once.
    pub(crate) fn programs(&self) -> anyhow::Result<()> {
        let packages = PROGRAMS.iter().flat_map(|package| ["--package", package]);
        run(self.cargo().args(["build", "--release"]).args(packages))
    }

    /// Builds an example and the programs that it may start with `cargo`, with the features of the whole workspace as CI does, so that
    /// nothing is compiled twice. Returns the example's path.
    pub(crate) fn example(&self, mut cargo: Command, name: &str, release: bool) -> anyhow::Result<PathBuf> {
        cargo.args(["build", "--workspace", "--bins", "--example", name]);
        if release {
            cargo.arg("--release");
        }
        run(&mut cargo)?;
        let profile = if release { "release" } else { "debug" };
        let folder = self.root.join("target").join(profile).join("examples");
        Ok(folder.join(name))
    }
}

/// Shows a command, runs it, and fails if it fails.
pub(crate) fn run(command: &mut Command) -> anyhow::Result<()> {
    let line = shown(command);
    println!("$ {line}");
    let status = command.status().with_context(|| format!("cannot run `{line}`"))?;
    if !status.success() {
        bail!("`{line}` failed ({status})");
    }
    Ok(())
}

/// What a command prints.
pub(crate) fn printed(command: &mut Command) -> anyhow::Result<String> {
    let line = shown(command);
    let output = command.output().with_context(|| format!("cannot run `{line}`"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("`{line}` failed ({}): {}", output.status, said.trim());
    }
    String::from_utf8(output.stdout).with_context(|| format!("`{line}` prints something else than text"))
}

fn shown(command: &Command) -> String {
    let program = Path::new(command.get_program());
    let mut line = program
        .file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned();
    for argument in command.get_args() {
        let _ = write!(line, " {}", argument.to_string_lossy());
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: a program that was built in another repository works in the one that it is run in.
    #[test]
    fn the_repository_is_the_one_that_it_is_run_in() {
        let other = tempfile::tempdir().unwrap();
        let package = other.path().join("crates/xtask");
        std::fs::create_dir_all(&package).unwrap();
        let workspace = Workspace::of(Some(package.into()), None);
        let other = other.path().canonicalize().unwrap();
        assert_eq!(workspace.root(), other);
        assert_eq!(workspace.deps(), other.join(".deps"));

        let built_in = Workspace::of(None, None);
        assert!(built_in.root().join("crates/xtask/src/workspace.rs").exists());
    }
}
