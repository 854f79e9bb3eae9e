//! Python: the machine's own, to make environments with, and those environments, below `.deps`.
//!
//! Python is needed only because libtorch, and the demo's models, are published as Python packages; and for TensorBoard, which a
//! test lets read our event files.

use std::fs;
use std::io::ErrorKind;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::Context;
use zipper_cli::UserError;

use crate::workspace::{self, Workspace};

const OLDEST: (u32, u32) = (3, 10);
const APT_LINE: &str =
    "on Debian and Ubuntu: apt-get update && apt-get install -y --no-install-recommends python3 python3-venv";
/// Packages of the demo's scripts, with hashes.
const DEMO_PACKAGES: &str = "crates/zipper-demo/scripts/requirements.txt";

/// The machine's Python, able to make environments.
#[derive(Debug)]
pub(crate) struct System(());

impl System {
    /// # Errors
    /// [`UserError`] if there is none, it is too old, or it lacks the module `venv`.
    pub(crate) fn find() -> anyhow::Result<Self> {
        let version = "import sys; print(sys.version_info[0], sys.version_info[1])";
        let output = match Command::new("python3").args(["-c", version]).output() {
            Ok(output) => output,
            Err(error) if error.kind() == ErrorKind::NotFound => {
                return Err(UserError::new("there is no `python3` on the PATH")
                    .hint(APT_LINE)
                    .into());
            }
            Err(error) => return Err(error).context("`python3` cannot be run"),
        };
        let text = String::from_utf8_lossy(&output.stdout);
        let mut numbers = text
            .split_whitespace()
            .map_while(|number| number.parse::<u32>().ok());
        let (Some(major), Some(minor)) = (numbers.next(), numbers.next()) else {
            let said = String::from_utf8_lossy(&output.stderr);
            return Err(
                UserError::new(format!("`python3` does not work: {}", said.trim()))
                    .hint(APT_LINE)
                    .into(),
            );
        };
        if (major, minor) < OLDEST {
            return Err(UserError::new(format!(
                "`python3` is Python {major}.{minor}; {}.{} or newer is needed",
                OLDEST.0, OLDEST.1
            ))
            .hint("put a newer `python3` first on the PATH")
            .into());
        }
        let modules = Command::new("python3")
            .args(["-c", "import venv, ensurepip"])
            .stderr(Stdio::null())
            .status()
            .context("`python3` cannot be run")?;
        if !modules.success() {
            return Err(UserError::new("`python3` cannot make virtual environments")
                .hint(APT_LINE)
                .into());
        }
        Ok(Self(()))
    }
}

/// The models of Kubernetes' JobSet and their packages, with hashes.
const JOBSET: &str = "crates/xtask/requirements/jobset.txt";
/// TensorBoard and its packages, with hashes.
const TENSORBOARD: &str = "crates/xtask/requirements/tensorboard.txt";
/// transformers and PEFT, less torch itself, with hashes.
const TRANSFORMERS: &str = "crates/xtask/requirements/transformers.txt";

/// An environment below `.deps`.
#[derive(Debug)]
pub(crate) struct Environment {
    folder: PathBuf,
}

impl Environment {
    /// Opens the environment `.deps/python`, made first if it is not there.
    ///
    /// # Errors
    /// If it cannot be made.
    pub(crate) fn open(workspace: &Workspace, python: &System) -> anyhow::Result<Self> {
        Self::named(workspace, python, "python")
    }

    /// The environment with TensorBoard, `.deps/tensorboard`, of its own because its packages and those of the demo differ in version.
    ///
    /// # Errors
    /// As [`Environment::pip`].
    pub(crate) fn tensorboard(workspace: &Workspace, python: &System) -> anyhow::Result<Self> {
        let environment = Self::named(workspace, python, "tensorboard")?;
        environment.install(workspace, TENSORBOARD)?;
        Ok(environment)
    }

    /// The environment with the schema of JobSet, `.deps/jobset`.
    ///
    /// # Errors
    /// As [`Environment::pip`].
    pub(crate) fn jobset(workspace: &Workspace, python: &System) -> anyhow::Result<Self> {
        let environment = Self::named(workspace, python, "jobset")?;
        environment.install(workspace, JOBSET)?;
        Ok(environment)
    }

    /// The environment with transformers and PEFT, `.deps/transformers`, without the torch that they need.
    ///
    /// # Errors
    /// As [`Environment::pip`].
    pub(crate) fn transformers(workspace: &Workspace, python: &System) -> anyhow::Result<Self> {
        let environment = Self::named(workspace, python, "transformers")?;
        environment.install_with(workspace, TRANSFORMERS, &["--no-deps"])?;
        Ok(environment)
    }

    fn named(workspace: &Workspace, _python: &System, name: &str) -> anyhow::Result<Self> {
        let folder = workspace.deps().join(name);
        if !folder.join("bin/pip").exists() {
            workspace::run(
                Command::new("python3")
                    .args(["-m", "venv", "--clear"])
                    .arg(&folder),
            )?;
        }
        Ok(Self { folder })
    }

    /// The environment's Python.
    pub(crate) fn program(&self) -> PathBuf {
        self.folder.join("bin/python")
    }

    /// A command that runs the environment's Python.
    pub(crate) fn python(&self, workspace: &Workspace) -> Command {
        let mut command = workspace.command(self.program());
        command.env("PYTHONDONTWRITEBYTECODE", "1");
        command
    }

    /// Installs the packages of the demo's scripts, if that has not been done.
    ///
    /// # Errors
    /// As [`Environment::pip`].
    pub(crate) fn install_demo_packages(&self, workspace: &Workspace) -> anyhow::Result<()> {
        self.install(workspace, DEMO_PACKAGES)
    }

    /// Installs what the file `requirements` of the repository names, if that has not been done.
    fn install(&self, workspace: &Workspace, requirements: &str) -> anyhow::Result<()> {
        self.install_with(workspace, requirements, &[])
    }

    /// The same with more options of pip.
    fn install_with(
        &self,
        workspace: &Workspace,
        requirements: &str,
        options: &[&str],
    ) -> anyhow::Result<()> {
        let requirements = workspace.root().join(requirements);
        let wanted = fs::read_to_string(&requirements)
            .with_context(|| format!("cannot read `{}`", requirements.display()))?;
        let stamp = self.folder.join("requirements.txt");
        if fs::read_to_string(&stamp).is_ok_and(|installed| installed == wanted) {
            return Ok(());
        }
        let requirements = requirements.to_string_lossy();
        let fixed = [
            "install",
            "--quiet",
            "--require-hashes",
            "--requirement",
            &requirements,
        ];
        self.pip(workspace, &[&fixed, options].concat())?;
        fs::write(&stamp, wanted).with_context(|| format!("cannot write `{}`", stamp.display()))
    }

    /// Runs pip; `arguments` begin with its command.
    ///
    /// # Errors
    /// [`UserError`] that says whether network or disk seem to be at fault, if pip fails.
    pub(crate) fn pip(&self, workspace: &Workspace, arguments: &[&str]) -> anyhow::Result<()> {
        let mut command = self.python(workspace);
        command.args(["-m", "pip", arguments[0]]);
        command.args([
            "--disable-pip-version-check",
            "--no-input",
            "--root-user-action=ignore",
        ]);
        command.args(&arguments[1..]).stderr(Stdio::piped());
        let output = command
            .spawn()
            .and_then(std::process::Child::wait_with_output)
            .context("pip cannot be run")?;
        if output.status.success() {
            return Ok(());
        }
        let said = String::from_utf8_lossy(&output.stderr);
        eprint!("{said}");
        Err(blame(&said).into())
    }
}

/// What to tell about a failure of pip, from what pip said.
fn blame(said: &str) -> UserError {
    const NETWORK: [&str; 7] = [
        "NewConnectionError",
        "NameResolutionError",
        "ConnectTimeoutError",
        "ReadTimeoutError",
        "ProxyError",
        "Connection broken",
        // Of packages that are known to exist.
        "(from versions: none)",
    ];
    if said.contains("No space left on device") {
        UserError::new("pip ran out of disk space").hint(
            "free some space; pip unpacks in the folder for temporary files, which TMPDIR can put elsewhere",
        )
    } else if NETWORK.iter().any(|word| said.contains(word)) {
        UserError::new("pip cannot reach the Python package index")
            .hint("is there a network connection?")
            .hint("behind a proxy set HTTPS_PROXY; for a mirror set PIP_INDEX_URL")
    } else {
        UserError::new("pip failed: its own message is above")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pip_failures_are_told_apart() {
        let cases = [
            ("OSError: [Errno 28] No space left on device", "disk space"),
            ("<pip._vendor.urllib3.NewConnectionError: refused", "cannot reach"),
            ("THESE PACKAGES DO NOT MATCH THE HASHES", "its own message"),
        ];
        for (said, told) in cases {
            let error = blame(said).to_string();
            assert!(error.contains(told), "{said}: {error}");
        }
    }
}
