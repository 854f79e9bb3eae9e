//! The key `training.start_from`.

use std::path::{Path, PathBuf};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What a run begins with instead of initial values from its seed: the result of stage 1, made by another run (`run`, `step`) or as
/// a PEFT LoRA (`peft`, `projector`). With `training.align.steps: 0` it begins with stage 2.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct StartFrom {
    /// URL of another run with the same models, projector, rank and targets.
    #[serde(default)]
    pub run: Option<String>,
    /// Its checkpoint: one of stage `align`.
    #[serde(default)]
    pub step: Option<u64>,
    /// Folder of a PEFT LoRA of the LLM, with `adapter_config.json` and `adapter_model.safetensors`; if the encoder is adapted,
    /// too, its LoRA is in `encoder` below it. `zipper-worker export` writes such folders.
    #[serde(default)]
    pub peft: Option<PathBuf>,
    /// Folder with the `projector.safetensors` that belongs to `peft`. Left out: a new projector.
    #[serde(default)]
    pub projector: Option<PathBuf>,
}

impl StartFrom {
    /// Makes relative paths absolute. A run's URL with a scheme stays as it is.
    pub(crate) fn resolve(&mut self, here: &Path) {
        for path in [&mut self.peft, &mut self.projector].into_iter().flatten() {
            *path = here.join(&*path);
        }
        if let Some(run) = self.run.as_mut().filter(|run| !run.contains("://")) {
            *run = here.join(&*run).display().to_string();
        }
    }
}
