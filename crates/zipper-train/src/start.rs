//! What a run begins with instead of values from its seed (`training.start_from`): projector and LoRA of stage 1, from a checkpoint
//! of another run, or as PEFT (Hugging Face) writes a LoRA.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::Value;
use tch::Tensor;
use zipper_config::RunConfig;
use zipper_model::lid_head;
use zipper_types::Stage;

use crate::TrainError;
use crate::peft::{CONFIG, ENCODER, PREFIX, WEIGHTS};
use crate::replica::spec;
use crate::state::{SHARED_PART, from_safetensors};
use crate::trained::PROJECTOR;

/// The file of a projector.
const PROJECTOR_FILE: &str = "projector.safetensors";
/// Keys of `adapter_config.json` that change what the matrices mean: each must be null, false or empty.
const MUST_BE_OFF: [&str; 11] = [
    "use_dora",
    "use_qalora",
    "fan_in_fan_out",
    "lora_bias",
    "rank_pattern",
    "alpha_pattern",
    "modules_to_save",
    "layer_replication",
    "alora_invocation_tokens",
    "target_parameters",
    "trainable_token_indices",
];

/// Parameters of stage 1 by their names, such as `lora.model.layers.0.mlp.up_proj.B_shared`.
#[derive(Debug)]
pub struct Start {
    /// Where they come from, for messages.
    source: String,
    tensors: BTreeMap<String, Tensor>,
}

impl Start {
    /// The part [`SHARED_PART`] of a checkpoint of stage 1, of a run with the configuration `of_run`.
    ///
    /// # Errors
    /// [`TrainError::Start`] if it is no such file.
    pub fn of_checkpoint(
        config: &RunConfig,
        source: &str,
        shared: &[u8],
        of_run: &RunConfig,
    ) -> Result<Self, TrainError> {
        let tensors =
            from_safetensors(SHARED_PART, shared).map_err(|error| refused(source, error.to_string()))?;
        let mut start = Self {
            source: source.to_owned(),
            tensors,
        };
        start.rescale(scale_of(of_run) / scale_of(config));
        Ok(start)
    }

    /// A PEFT LoRA of the LLM in `folder`, of the encoder in `encoder` below it if that is adapted, and `projector.safetensors` in
    /// `projector`.
    ///
    /// # Errors
    /// [`TrainError::Start`] naming the file and what it has that cannot be taken over.
    pub fn of_peft(config: &RunConfig, folder: &Path, projector: Option<&Path>) -> Result<Self, TrainError> {
        let mut tensors = BTreeMap::new();
        if !config.adapter.targets.is_empty() {
            tensors.extend(lora(config, folder)?);
        }
        if !config.adapter.encoder_targets.is_empty() {
            tensors.extend(lora(config, &folder.join(ENCODER))?);
        }
        if let Some(folder) = projector {
            let path = folder.join(PROJECTOR_FILE);
            let read = safetensors(&path)?.into_iter();
            tensors.extend(read.map(|(name, tensor)| (format!("{PROJECTOR}{name}"), tensor)));
        }
        let source = folder.display().to_string();
        Ok(Self { source, tensors })
    }

    /// Multiplies every B: another run's product `s B A` is then the same with this run's scale.
    fn rescale(&mut self, factor: f64) {
        for (name, tensor) in &mut self.tensors {
            if name.ends_with(".B_shared") {
                *tensor = &*tensor * factor;
            }
        }
    }

    /// Copies the values into parameters of stage 1. A projector stays as it is if there is none here.
    ///
    /// # Errors
    /// [`TrainError::Start`] if a parameter is missing, is not one of this model, or has another shape.
    pub(crate) fn copy_into<'a>(
        &self,
        params: impl IntoIterator<Item = (&'a str, Tensor)>,
    ) -> Result<(), TrainError> {
        let mut left: BTreeMap<&str, &Tensor> = self
            .tensors
            .iter()
            .map(|(name, value)| (name.as_str(), value))
            .collect();
        // A LoRA made elsewhere has none, and a run may train a LID head of which the one before knew nothing, or the other way round.
        let may_lack = |name: &str, part: &str| {
            name.starts_with(part) && !self.tensors.keys().any(|name| name.starts_with(part))
        };
        let mut trains_lid_head = false;
        for (name, mut param) in params {
            trains_lid_head |= name.starts_with(lid_head::PREFIX);
            let Some(value) = left.remove(name) else {
                if may_lack(name, PROJECTOR) || may_lack(name, lid_head::PREFIX) {
                    continue;
                }
                return Err(refused(
                    &self.source,
                    format!(
                        "`{name}` is missing, which this configuration trains: `adapter.targets` or the projector are others"
                    ),
                ));
            };
            if value.size() != param.size() {
                return Err(refused(
                    &self.source,
                    format!("`{name}` has shape {:?}, here {:?}", value.size(), param.size()),
                ));
            }
            tch::no_grad(|| param.copy_(value));
        }
        if !trains_lid_head {
            left.retain(|name, _| !name.starts_with(lid_head::PREFIX));
        }
        match left.into_keys().next() {
            None => Ok(()),
            Some(name) => Err(refused(
                &self.source,
                format!(
                    "`{name}` is there, and this configuration does not train it: `adapter.targets` or the projector are others"
                ),
            )),
        }
    }
}

/// The matrices of one PEFT directory by our names, B for the scale of `config`.
fn lora(config: &RunConfig, folder: &Path) -> Result<BTreeMap<String, Tensor>, TrainError> {
    let path = folder.join(CONFIG);
    let source = path.display().to_string();
    let text = std::fs::read(&path).map_err(|error| refused(&source, format!("cannot be read: {error}")))?;
    let about: Value =
        serde_json::from_slice(&text).map_err(|error| refused(&source, format!("is not JSON: {error}")))?;
    let factor =
        scale(config.adapter.rank, &about).map_err(|problem| refused(&source, problem))? / scale_of(config);
    let path = folder.join(WEIGHTS);
    let ours = |(name, tensor): (String, Tensor)| {
        let site = name.strip_prefix(PREFIX).unwrap_or(&name);
        if let Some(site) = site.strip_suffix(".lora_A.weight") {
            Ok((format!("lora.{site}.A"), tensor))
        } else if let Some(site) = site.strip_suffix(".lora_B.weight") {
            let wide = tensor.to_kind(tch::Kind::Double) * factor;
            Ok((format!("lora.{site}.B_shared"), wide))
        } else {
            Err(refused(
                &path.display().to_string(),
                format!("`{name}` is not a matrix of a LoRA of linear layers"),
            ))
        }
    };
    safetensors(&path)?.into_iter().map(ours).collect()
}

/// What PEFT multiplies `B A` with, by what it says `about` an adapter; or why a run of `our_rank` cannot begin with it.
fn scale(our_rank: usize, about: &Value) -> Result<f64, String> {
    if about["peft_type"] != "LORA" {
        return Err(format!(
            "`peft_type` is {}, expected \"LORA\"",
            about["peft_type"]
        ));
    }
    if let Some(key) = MUST_BE_OFF.into_iter().find(|key| !is_off(&about[key])) {
        return Err(format!("`{key}` is {}, which cannot be taken over", about[key]));
    }
    if !(about["bias"].is_null() || about["bias"] == "none") {
        return Err(format!(
            "`bias` is {}: trained biases cannot be taken over",
            about["bias"]
        ));
    }
    let rank = about["r"].as_u64().ok_or("`r` is missing")?;
    if rank != our_rank as u64 {
        return Err(format!(
            "`r` is {rank}, and `adapter.rank` is {our_rank}: set `adapter.rank: {rank}`"
        ));
    }
    let alpha = about["lora_alpha"].as_f64().ok_or("`lora_alpha` is missing")?;
    let rank = rank as f64;
    Ok(match about["use_rslora"].as_bool() {
        Some(true) => alpha / rank.sqrt(),
        _ => alpha / rank,
    })
}

fn is_off(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Array(items) => items.is_empty(),
        Value::Object(keys) => keys.is_empty(),
        _ => false,
    }
}

/// What a run with this configuration multiplies `B A` with.
fn scale_of(config: &RunConfig) -> f64 {
    spec(config, Stage::Align).scale()
}

fn safetensors(path: &Path) -> Result<BTreeMap<String, Tensor>, TrainError> {
    let source = path.display().to_string();
    let bytes = std::fs::read(path).map_err(|error| refused(&source, format!("cannot be read: {error}")))?;
    from_safetensors(&source, &bytes).map_err(|error| refused(&source, error.to_string()))
}

fn refused(source: &str, problem: String) -> TrainError {
    TrainError::Start {
        place: source.to_owned(),
        problem,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use tch::{Device, Kind};

    use super::*;

    /// Goal: LoRA is taken over at PEFT's own scale; what would mean something else here is refused by its name.
    #[test]
    fn only_plain_lora_of_the_same_rank_is_taken() {
        let plain = json!({"peft_type": "LORA", "r": 4, "lora_alpha": 6, "bias": "none", "rank_pattern": {}, "modules_to_save": null});
        let changed = |key: &str, value: Value| {
            let mut about = plain.clone();
            about[key] = value;
            scale(4, &about)
        };
        assert_eq!(scale(4, &plain), Ok(1.5));
        assert_eq!(changed("use_rslora", json!(true)), Ok(3.0));
        assert_eq!(changed("bias", Value::Null), Ok(1.5));
        for (key, value, problem) in [
            (
                "peft_type",
                json!("LOHA"),
                "`peft_type` is \"LOHA\", expected \"LORA\"",
            ),
            (
                "use_dora",
                json!(true),
                "`use_dora` is true, which cannot be taken over",
            ),
            (
                "rank_pattern",
                json!({"q_proj": 2}),
                "`rank_pattern` is {\"q_proj\":2}",
            ),
            (
                "modules_to_save",
                json!(["lm_head"]),
                "`modules_to_save` is [\"lm_head\"]",
            ),
            (
                "bias",
                json!("all"),
                "`bias` is \"all\": trained biases cannot be taken over",
            ),
            (
                "r",
                json!(8),
                "`r` is 8, and `adapter.rank` is 4: set `adapter.rank: 8`",
            ),
            ("r", Value::Null, "`r` is missing"),
            ("lora_alpha", Value::Null, "`lora_alpha` is missing"),
        ] {
            let found = changed(key, value).expect_err(problem);
            assert!(found.starts_with(problem), "{found}");
        }
    }

    /// Goal: parameters that do not fit a model are named, with what is different. Method: a LoRA of one site, d_in = 3 and r = 2.
    #[test]
    fn what_does_not_fit_is_named() {
        let ones = |shape: [i64; 2]| Tensor::ones(shape, (Kind::Float, Device::Cpu));
        let zeros = |shape: [i64; 2]| Tensor::zeros(shape, (Kind::Float, Device::Cpu));
        let start = Start {
            source: "adapter".to_owned(),
            tensors: [("lora.q_proj.A".to_owned(), ones([2, 3]))].into(),
        };
        let problem = |params: &[(&str, Tensor)]| {
            let params = params
                .iter()
                .map(|(name, tensor)| (*name, tensor.shallow_clone()));
            start.copy_into(params).expect_err("it does not fit").to_string()
        };
        let fits = zeros([2, 3]);
        start
            .copy_into([
                ("lora.q_proj.A", fits.shallow_clone()),
                ("projector.w", zeros([1, 1])),
            ])
            .expect("a LoRA may come without a projector");
        assert_eq!(fits, ones([2, 3]));
        let of_another_rank = problem(&[("lora.q_proj.A", zeros([4, 3]))]);
        assert!(
            of_another_rank.contains("`lora.q_proj.A` has shape [2, 3], here [4, 3]"),
            "{of_another_rank}"
        );
        let more_sites = problem(&[("lora.q_proj.A", zeros([2, 3])), ("lora.k_proj.A", zeros([2, 3]))]);
        assert!(more_sites.contains("`lora.k_proj.A` is missing"), "{more_sites}");
        let fewer_sites = problem(&[]);
        assert!(fewer_sites.contains("`lora.q_proj.A` is there"), "{fewer_sites}");
    }
}
