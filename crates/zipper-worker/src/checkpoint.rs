//! Parts of a checkpoint, read by the thread that owns the model.

use anyhow::Context;
use tokio::runtime::Handle;
use zipper_checkpoint::{Checkpoints, Manifest};

/// One checkpoint of a run.
pub(crate) struct Parts {
    runtime: Handle,
    checkpoints: Checkpoints,
    manifest: Manifest,
}

impl Parts {
    pub(crate) fn new(runtime: Handle, checkpoints: Checkpoints, manifest: Manifest) -> Self {
        Self {
            runtime,
            checkpoints,
            manifest,
        }
    }

    /// The bytes of a part, verified against the manifest.
    pub(crate) fn read(&self, name: &str) -> anyhow::Result<Vec<u8>> {
        let step = self.manifest.step;
        let part = self
            .manifest
            .parts
            .iter()
            .find(|part| part.path == name)
            .with_context(|| {
                format!("checkpoint of step {step} has no part `{name}`: is it of another configuration?")
            })?;
        Ok(self
            .runtime
            .block_on(self.checkpoints.read_part(step, part))?
            .to_vec())
    }
}
