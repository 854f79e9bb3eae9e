//! Trainable parameters by name: what the optimizer updates, the process group reduces and checkpoints hold.

use tch::{Kind, Tensor};

use crate::linear::SiteId;

/// Who shares a parameter (docs/decisions/0003).
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
    /// Weights and biases of the head that tells languages apart.
    LidHead,
}

/// One trainable tensor: a leaf of the autograd graph with `requires_grad`, f32 (f64 if the model is f64).
#[derive(Debug)]
pub struct Param {
    /// Unique within its scope and stable over versions: the tensor's name in a checkpoint.
    pub name: String,
    /// Who shares it.
    pub scope: ParamScope,
    /// What it is.
    pub role: ParamRole,
    /// The first adapted layer that uses it; nothing for the projector and for what all layers use. Within the LLM, gradients of later
    /// layers are complete earlier.
    pub site: Option<SiteId>,
    /// The value.
    pub tensor: Tensor,
}

impl Param {
    /// Makes `value` a trainable leaf: detached, with `requires_grad`, of its [`trainable_kind`].
    pub fn new(name: impl Into<String>, scope: ParamScope, role: ParamRole, value: &Tensor) -> Self {
        let tensor = value
            .to_kind(trainable_kind(value.kind()))
            .detach()
            .copy()
            .set_requires_grad(true);
        Self {
            name: name.into(),
            scope,
            role,
            site: None,
            tensor,
        }
    }

    /// Bytes of its value, and so of its gradient and of each of its moments.
    pub fn bytes(&self) -> usize {
        self.tensor.numel() * self.tensor.kind().elt_size_in_bytes()
    }
}

/// The element type of trainable parameters and of sums in a model whose frozen weights are `kind`: f64 in an f64 model,
/// else f32.
pub fn trainable_kind(kind: Kind) -> Kind {
    match kind {
        Kind::Double => Kind::Double,
        _ => Kind::Float,
    }
}
