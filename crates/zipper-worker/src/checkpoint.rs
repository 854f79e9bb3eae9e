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

    /// The bytes of these parts, in their order, verified against the manifest.
    pub(crate) fn read(&self, names: &[String]) -> anyhow::Result<Vec<Vec<u8>>> {
        let mut parts = self.read_of(&self.manifest, names)?;
        for (name, own) in names.iter().zip(&mut parts) {
            if self.others.is_empty() || !name.ends_with(".safetensors") {
                continue;
            }
            // The mean of one part after the other: that of all of them would be held as often as there are checkpoints.
            let mut files = vec![std::mem::take(own)];
            for manifest in &self.others {
                files.extend(self.read_of(manifest, std::slice::from_ref(name))?);
            }
            *own = state::mean(name, &files)?;
        }
        Ok(parts)
    }

    fn read_of(&self, manifest: &Manifest, names: &[String]) -> anyhow::Result<Vec<Vec<u8>>> {
        let step = manifest.step;
        let part = |name: &String| {
            manifest.part(name).with_context(|| {
                format!("checkpoint of step {step} has no part `{name}`: is it of another configuration?")
            })
        };
        let parts = names.iter().map(part).collect::<anyhow::Result<Vec<_>>>()?;
        let read = self.checkpoints.read_parts(step, &parts);
        let read = self.runtime.block_on(read)?;
        Ok(read.iter().map(|bytes| bytes.to_vec()).collect())
    }
}
