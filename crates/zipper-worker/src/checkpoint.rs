//! Parts of a checkpoint, read by the thread that owns the model.

use anyhow::Context;
use tokio::runtime::Handle;
use zipper_checkpoint::{Checkpoints, Manifest};
use zipper_train::state;

/// One checkpoint of a run, or several in the place of one, whose tensors are their mean.
pub(crate) struct Parts {
    runtime: Handle,
    checkpoints: Checkpoints,
    manifest: Manifest,
    /// Those that the mean is taken with.
    others: Vec<Manifest>,
}

impl Parts {
    pub(crate) fn new(runtime: Handle, checkpoints: Checkpoints, manifest: Manifest) -> Self {
        Self::mean(runtime, checkpoints, manifest, Vec::new())
    }

    /// The mean of several checkpoints of one stage. What is not a tensor is that of `manifest`.
    pub(crate) fn mean(
        runtime: Handle,
        checkpoints: Checkpoints,
        manifest: Manifest,
        others: Vec<Manifest>,
    ) -> Self {
        Self {
            runtime,
            checkpoints,
            manifest,
            others,
        }
    }

    /// The bytes of a part, verified against the manifest.
    pub(crate) fn read(&self, name: &str) -> anyhow::Result<Vec<u8>> {
        let own = self.read_of(&self.manifest, name)?;
        if self.others.is_empty() || !name.ends_with(".safetensors") {
            return Ok(own);
        }
        let mut files = vec![own];
        for manifest in &self.others {
            files.push(self.read_of(manifest, name)?);
        }
        Ok(state::mean(name, &files)?)
    }

    fn read_of(&self, manifest: &Manifest, name: &str) -> anyhow::Result<Vec<u8>> {
        let step = manifest.step;
        let part = manifest.part(name).with_context(|| {
            format!("checkpoint of step {step} has no part `{name}`: is it of another configuration?")
        })?;
        Ok(self
            .runtime
            .block_on(self.checkpoints.read_part(step, part))?
            .to_vec())
    }
}
