//! The credentials of one launch, and how its processes get them: by a file that only its owner can read, on other machines by the
//! environment that Slurm passes on. Never on a command line.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::Context;
use tempfile::TempDir;
use zipper_config::RunConfig;
use zipper_tls::{Authority, Credentials, Role};

/// What the name of the folder begins with.
const FOLDER: &str = "credentials-";
const COORDINATOR: &str = "coordinator.pem";
const NODES: &str = "nodes.pem";

/// What the processes of one launch are given. Its files are gone when it is.
pub(crate) struct Handout {
    folder: TempDir,
    launcher: Credentials,
    nodes: Credentials,
}

impl Handout {
    /// Makes an authority, lets it issue what is needed, and forgets its key: nothing else can be issued.
    ///
    /// # Errors
    /// If the files cannot be written beside the folder of the logs.
    pub(crate) fn prepare(config: &RunConfig, logs: &Path) -> anyhow::Result<Self> {
        let authority = Authority::new(&config.name, config.cluster.certificate_lifetime)?;
        let nodes = authority.issue(Role::Node)?;
        let beside = logs.parent().unwrap_or(logs);
        let folder = tempfile::Builder::new()
            .prefix(FOLDER)
            .permissions(Permissions::from_mode(0o700))
            .tempdir_in(beside)
            .with_context(|| format!("cannot make a folder for credentials in `{}`", beside.display()))?;
        let coordinator = authority.issue(Role::Coordinator)?;
        coordinator.write(&folder.path().join(COORDINATOR))?;
        nodes.write(&folder.path().join(NODES))?;
        Ok(Self {
            folder,
            launcher: authority.issue(Role::Launcher)?,
            nodes,
        })
    }

    /// Those of this process.
    pub(crate) fn launcher(&self) -> &Credentials {
        &self.launcher
    }

    /// The coordinator's file.
    pub(crate) fn of_coordinator(&self) -> PathBuf {
        self.folder.path().join(COORDINATOR)
    }

    /// The file of the node agents of this machine, and their workers.
    pub(crate) fn of_nodes(&self) -> PathBuf {
        self.folder.path().join(NODES)
    }

    /// The same as text: a secret.
    pub(crate) fn text_for_nodes(&self) -> String {
        self.nodes.to_pem()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: two launches of one run do not get in each other's way, the files are for their owner alone, and go with the launch.
    #[test]
    fn credentials_are_those_of_one_launch() -> anyhow::Result<()> {
        let folder = tempfile::tempdir()?;
        let logs = folder.path().join("logs");
        std::fs::create_dir(&logs)?;
        let text = "{name: a, model: {encoder: {path: e}, llm: {path: l}}, data: {languages: [en], train: [t]}, training: {align: {steps: 1, lr: 1.0}, zipper: {steps: 1, lr: 1.0}, batch_audio_seconds: 1}}";
        let config = zipper_config::from_str(text, "test", &[])?;
        let (one, other) = (
            Handout::prepare(&config, &logs)?,
            Handout::prepare(&config, &logs)?,
        );
        let nodes = Credentials::read(&one.of_nodes())?;
        assert_eq!(nodes.to_pem(), one.text_for_nodes());
        assert_ne!(nodes.to_pem(), Credentials::read(&other.of_nodes())?.to_pem());
        assert_ne!(nodes.to_pem(), Credentials::read(&one.of_coordinator())?.to_pem());
        let file = one.of_nodes();
        let mode = std::fs::metadata(file.parent().unwrap_or(&logs))?
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o700);
        drop(one);
        assert!(!file.exists() && other.of_nodes().exists());
        Ok(())
    }
}
