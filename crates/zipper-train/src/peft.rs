//! A language's adapter as PEFT (Hugging Face) loads it: each language comes down to one ordinary LoRA pair for each layer
//! (docs/concepts.md), whatever the variant.
//!
//! The files are those that `peft.PeftModel.save_pretrained` of PEFT 0.17 writes: `adapter_config.json` and
//! `adapter_model.safetensors`.

use serde_json::{Value, json};
use tch::{Kind, Tensor};
use zipper_config::RunConfig;
use zipper_model::adapter::MergedAdapters;

use crate::TrainError;
use crate::state::to_safetensors;
use crate::trained::{AdaptedModel, Trained};

/// What PEFT puts before the names of the base model's layers.
pub(crate) const PREFIX: &str = "base_model.model.";

/// What an adapter is, in its directory.
pub const CONFIG: &str = "adapter_config.json";
/// The matrices of an adapter, in its directory.
pub const WEIGHTS: &str = "adapter_model.safetensors";
/// The directory of an encoder's adapter, in that of the LLM's.
pub const ENCODER: &str = "encoder";

/// The two files of an adapter directory.
#[derive(Debug, Clone, PartialEq)]
pub struct PeftAdapter {
    /// [`CONFIG`].
    pub config: Value,
    /// [`WEIGHTS`], f32.
    pub weights: Vec<u8>,
}

/// The adapter of `model` for `language`; nothing if none of its layers is adapted. `merged` is [`Trained::merged`].
///
/// # Errors
/// [`TrainError::State`] if the file cannot be built.
///
/// # Panics
/// If there is no such language.
pub fn adapter(
    config: &RunConfig,
    trained: &Trained,
    merged: &MergedAdapters,
    model: AdaptedModel,
    language: usize,
) -> Result<Option<PeftAdapter>, TrainError> {
    let mut tensors: Vec<(String, Tensor)> = Vec::new();
    for (site, pair) in trained.pairs(merged, model, language) {
        for (name, matrix) in [("lora_A", pair.a), ("lora_B", pair.b)] {
            let name = format!("{PREFIX}{}.{name}.weight", site.name);
            tensors.push((name, matrix.to_kind(Kind::Float)));
        }
    }
    if tensors.is_empty() {
        return Ok(None);
    }
    let tensors = tensors.iter().map(|(name, tensor)| (name.clone(), tensor));
    let spec = trained.adapters.spec();
    let (base, task, targets) = match model {
        AdaptedModel::Llm => (
            &config.model.llm.path,
            json!("CAUSAL_LM"),
            json!(config.adapter.targets),
        ),
        // The decoder, which is not used, has layers of the same names.
        AdaptedModel::Encoder => (
            &config.model.encoder.path,
            Value::Null,
            json!(format!(
                r".*encoder\.layers\.\d+\.(self_attn\.)?({})",
                config.adapter.encoder_targets.join("|")
            )),
        ),
    };
    let config = json!({
        "peft_type": "LORA",
        "task_type": task,
        "base_model_name_or_path": base,
        "r": spec.rank,
        "lora_alpha": spec.alpha,
        "use_rslora": false,
        "lora_dropout": spec.dropout,
        "target_modules": targets,
        "bias": "none",
        "fan_in_fan_out": false,
        "inference_mode": true,
        "init_lora_weights": true,
        "modules_to_save": null,
    });
    Ok(Some(PeftAdapter {
        config,
        weights: to_safetensors(tensors)?,
    }))
}
