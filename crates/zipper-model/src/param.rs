//! Trainable parameters by name: what the optimizer updates, the process group reduces and checkpoints hold.

use tch::Tensor;

/// Who shares a parameter (DESIGN 4).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ParamScope {
    /// One value for all languages.
    Shared,
    /// Belongs to the bank of one language, given as its ordinal in `data.languages`.
    Bank(usize),
}

/// What kind of parameter it is: the learning rate and the weight decay depend on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ParamRole {
    /// Projector weights and biases.
    Projector,
    /// LoRA matrices A and B.
    Lora,
    /// Router weights, biases and LID embeddings.
    Router,
}

/// One trainable tensor: a leaf of the autograd graph, f32, with `requires_grad`.
#[derive(Debug)]
pub struct Param {
    /// Unique within its scope and stable over versions: the tensor's name in a checkpoint.
    pub name: String,
    /// Who shares it.
    pub scope: ParamScope,
    /// What it is.
    pub role: ParamRole,
    /// The value.
    pub tensor: Tensor,
}

impl Param {
    /// Makes `value` a trainable leaf: f32, detached, with `requires_grad`.
    pub fn new(name: impl Into<String>, scope: ParamScope, role: ParamRole, value: &Tensor) -> Self {
        let tensor = value
            .to_kind(tch::Kind::Float)
            .detach()
            .copy()
            .set_requires_grad(true);
        Self {
            name: name.into(),
            scope,
            role,
            tensor,
        }
    }
}
