//! Trainable state as bytes and back: the contents of a checkpoint's parts.
//!
//! Who writes which part and where it goes is decided elsewhere; here is only what a part holds.

use std::collections::{BTreeMap, BTreeSet};

use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};
use zipper_model::param::{Param, ParamScope};
use zipper_plan::SamplerState;
use zipper_types::{Stage, Step};

use crate::TrainError;
use crate::spike::RecentLosses;

/// Name of the part that holds [`TrainState`].
pub(crate) const STATE_PART: &str = "state.json";
/// Name of the part that holds the parameters that all languages share.
pub const SHARED_PART: &str = "shared.safetensors";

/// `state.json` of a checkpoint: everything that is not a tensor.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TrainState {
    /// Stage in which the step was made.
    pub stage: Stage,
    /// Completed optimizer steps.
    pub step: Step,
    /// Where the sampler stands after that step.
    pub sampler: SamplerState,
    /// Of what the sampler draws from, [`zipper_data::corpus_fingerprint`]; nothing in states of earlier versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub corpus_fingerprint: Option<String>,
    /// Optimizer steps of the shared parameters in this stage.
    pub shared_optimizer_steps: u64,
    /// Optimizer steps of each bank, by language.
    pub bank_optimizer_steps: BTreeMap<String, u64>,
    /// Updates left out because a gradient was not finite or the loss a spike.
    pub skipped_updates: u64,
    /// What the next loss is compared with.
    #[serde(default)]
    pub recent_losses: RecentLosses,
}

impl TrainState {
    /// Reads the state of a checkpoint, whose parts `read` returns by their names, in their order.
    ///
    /// # Errors
    /// What `read` returns, or [`TrainError::State`] if the part is not what this version writes.
    pub fn read<E: From<TrainError>>(
        read: impl FnOnce(&[String]) -> Result<Vec<Vec<u8>>, E>,
    ) -> Result<Self, E> {
        let bytes = read_part(STATE_PART, read)?;
        let state = serde_json::from_slice(&bytes)
            .map_err(|error| TrainError::State(format!("`{STATE_PART}` of the checkpoint: {error}")))?;
        Ok(state)
    }
}

/// The part called `name` of a checkpoint, whose parts `read` returns by their names, in their order.
///
/// # Errors
/// What `read` returns, or [`TrainError::State`] if it returns nothing.
pub fn read_part<E: From<TrainError>>(
    name: &str,
    read: impl FnOnce(&[String]) -> Result<Vec<Vec<u8>>, E>,
) -> Result<Vec<u8>, E> {
    let part = read(&[name.to_owned()])?.pop();
    part.ok_or_else(|| {
        E::from(TrainError::State(format!(
            "`{name}` of the checkpoint was not read"
        )))
    })
}

/// Writes tensors as a safetensors file in memory, f32 or in an f64 model f64, in the order of their names.
///
/// # Errors
/// [`TrainError::State`] if the file cannot be built.
pub fn to_safetensors<'a>(
    tensors: impl IntoIterator<Item = (String, &'a Tensor)>,
) -> Result<Vec<u8>, TrainError> {
    let blobs: BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)> = tensors
        .into_iter()
        .map(|(name, tensor)| {
            let shape = tensor.size().iter().map(|&n| n as usize).collect();
            let (dtype, bytes) = bytes_of(tensor);
            (name, (dtype, shape, bytes))
        })
        .collect();
    let views = blobs
        .iter()
        .map(|(name, (dtype, shape, bytes))| Ok((name, TensorView::new(*dtype, shape.clone(), bytes)?)))
        .collect::<Result<Vec<_>, safetensors::SafeTensorError>>()
        .map_err(|error| TrainError::State(error.to_string()))?;
    safetensors::serialize(views, None).map_err(|error| TrainError::State(error.to_string()))
}

/// The values of `tensor`, little-endian.
fn bytes_of(tensor: &Tensor) -> (Dtype, Vec<u8>) {
    let (dtype, kind) = match tensor.kind() {
        Kind::Double => (Dtype::F64, Kind::Double),
        _ => (Dtype::F32, Kind::Float),
    };
    let flat = tensor
        .detach()
        .to_kind(kind)
        .to_device(tch::Device::Cpu)
        .contiguous()
        .view([-1]);
    let mut bytes = vec![0; flat.numel() * kind.elt_size_in_bytes()];
    flat.copy_data_u8(&mut bytes, flat.numel());
    (dtype, bytes)
}

/// The kind of tensor that holds such floating-point elements; nothing for other elements.
pub fn kind_of(dtype: Dtype) -> Option<Kind> {
    match dtype {
        Dtype::F16 => Some(Kind::Half),
        Dtype::BF16 => Some(Kind::BFloat16),
        Dtype::F32 => Some(Kind::Float),
        Dtype::F64 => Some(Kind::Double),
        _ => None,
    }
}

/// Reads a safetensors file of floating-point tensors, such as [`to_safetensors`] writes.
///
/// # Errors
/// [`TrainError::State`] naming `part` if it is not such a file.
pub fn from_safetensors(part: &str, bytes: &[u8]) -> Result<BTreeMap<String, Tensor>, TrainError> {
    let file = SafeTensors::deserialize(bytes)
        .map_err(|error| TrainError::State(format!("`{part}` is not a safetensors file: {error}")))?;
    file.tensors()
        .into_iter()
        .map(|(name, view)| {
            let kind = kind_of(view.dtype()).ok_or_else(|| {
                let dtype = view.dtype();
                TrainError::State(format!(
                    "`{part}`: tensor `{name}` is {dtype:?}, expected F16, BF16, F32 or F64"
                ))
            })?;
            let shape: Vec<i64> = view.shape().iter().map(|&n| n as i64).collect();
            Ok((name, Tensor::from_data_size(view.data(), &shape, kind)))
        })
        .collect()
}

/// The mean of safetensors files that hold the same tensors, such as a part of several checkpoints: computed in f64, written in each
/// tensor's own type.
///
/// # Errors
/// [`TrainError::State`] naming `part` or the tensor if one is no such file, or if they do not hold the same.
pub fn mean(part: &str, files: &[Vec<u8>]) -> Result<Vec<u8>, TrainError> {
    let files = files
        .iter()
        .map(|bytes| from_safetensors(part, bytes))
        .collect::<Result<Vec<_>, _>>()?;
    let Some((first, others)) = files.split_first() else {
        return Err(TrainError::State(format!(
            "`{part}`: there is nothing to take the mean of"
        )));
    };
    let mut means = BTreeMap::new();
    for (name, tensor) in first {
        let mut sum = tensor.to_kind(Kind::Double);
        for other in others {
            let mut next = sum.zeros_like();
            copy_into(&mut next, name, other)?;
            sum += next;
        }
        let mean = sum / files.len() as f64;
        means.insert(name.clone(), mean.to_kind(tensor.kind()));
    }
    to_safetensors(means.iter().map(|(name, tensor)| (name.clone(), tensor)))
}

/// What a scope is called in the names of a checkpoint's parts: `shared`, `banks/de`.
pub(crate) fn scope_name(scope: ParamScope, languages: &[String]) -> String {
    match scope {
        ParamScope::Shared => "shared".to_owned(),
        ParamScope::Bank(language) => format!("banks/{}", languages[language]),
    }
}

/// Name of the part with the parameters of the scope called `scope`.
pub(crate) fn parameters_part(scope: &str) -> String {
    format!("{scope}.safetensors")
}

/// Name of the part with their moments.
pub(crate) fn optimizer_part(scope: &str) -> String {
    format!("optimizer/{scope}.safetensors")
}

/// Overwrites `params` with those of a checkpoint, whose parts `read` returns by their names, in their order.
///
/// # Errors
/// What `read` returns, or [`TrainError::State`] if a parameter is missing or has another shape.
pub fn restore<E: From<TrainError>>(
    params: &[&Param],
    languages: &[String],
    read: impl FnOnce(&[String]) -> Result<Vec<Vec<u8>>, E>,
) -> Result<(), E> {
    let scopes: BTreeSet<ParamScope> = params.iter().map(|param| param.scope).collect();
    let part = |&scope| parameters_part(&scope_name(scope, languages));
    let parts: Vec<String> = scopes.iter().map(part).collect();
    for ((scope, part), bytes) in scopes.into_iter().zip(&parts).zip(read(&parts)?) {
        let tensors = from_safetensors(part, &bytes)?;
        for param in params.iter().filter(|param| param.scope == scope) {
            copy_into(&mut param.tensor.shallow_clone(), &param.name, &tensors)?;
        }
    }
    Ok(())
}

/// Copies the tensor called `name` into `target`.
///
/// # Errors
/// [`TrainError::State`] if it is missing or has another shape.
pub(crate) fn copy_into(
    target: &mut Tensor,
    name: &str,
    tensors: &BTreeMap<String, Tensor>,
) -> Result<(), TrainError> {
    let source = tensors
        .get(name)
        .ok_or_else(|| TrainError::State(format!("the checkpoint has no tensor `{name}`")))?;
    if source.size() != target.size() {
        return Err(TrainError::State(format!(
            "tensor `{name}` of the checkpoint has shape {:?}, this configuration needs {:?}",
            source.size(),
            target.size()
        )));
    }
    tch::no_grad(|| target.copy_(source));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(tensors: &[(&str, Tensor)]) -> Vec<u8> {
        to_safetensors(tensors.iter().map(|(name, tensor)| ((*name).to_owned(), tensor)))
            .expect("plain tensors")
    }

    /// Summed in f32, the small one would be lost; and f64 stays f64.
    #[test]
    fn means_are_taken_in_f64_and_keep_their_type() {
        let one = |value: f32| {
            let wide = Tensor::from_slice(&[f64::from(value)]);
            file(&[("a", Tensor::from_slice(&[value, 1.0])), ("b", wide)])
        };
        let files = [one(3e8), one(3.0), one(-3e8)];
        let mean = from_safetensors("x", &mean("x", &files).expect("the same tensors")).expect("a file");
        assert_eq!(mean["a"], Tensor::from_slice(&[1.0_f32, 1.0]));
        assert_eq!(mean["b"], Tensor::from_slice(&[1.0_f64]));
    }

    #[test]
    fn what_does_not_fit_together_has_no_mean() {
        let a = file(&[("a", Tensor::from_slice(&[1.0_f32]))]);
        let b = file(&[("b", Tensor::from_slice(&[1.0_f32]))]);
        let wide = file(&[("a", Tensor::from_slice(&[1.0_f32, 2.0]))]);
        for (files, expected) in [
            (vec![a.clone(), b], "`a`"),
            (vec![a.clone(), wide], "[2]"),
            (vec![a, vec![1, 2, 3]], "not a safetensors file"),
            (Vec::new(), "nothing"),
        ] {
            let error = mean("shared", &files).expect_err("no mean").to_string();
            assert!(error.contains(expected), "{error}");
        }
    }
}
