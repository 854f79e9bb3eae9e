//! Activation checkpointing: a forward pass keeps what goes into each layer and nothing else, and the backward pass computes the layer
//! again (Chen et al., Training Deep Nets with Sublinear Memory Cost, arXiv 1604.06174).
//!
//! Layers are taken back one by one, each by a backward pass of its own, so that no more than one of them is in memory.

use tch::Tensor;

use super::{CausalLm, attend};
use crate::ModelError;
use crate::carry::carry;
use crate::linear::LinearDelta;
use crate::packing::Packing;

/// What a forward pass has kept of itself.
#[derive(Debug)]
pub(crate) struct LayerInputs {
    /// `[tokens, hidden]`: what went into each layer, the lowest one first.
    inputs: Vec<Tensor>,
    /// `[tokens, hidden]`: what the last layer made of it. A leaf, in which the gradient of what is above arrives.
    top: Tensor,
}

impl CausalLm {
    /// Like [`CausalLm::forward`], but what it returns has its history only down to the last layer; the rest is for
    /// [`CausalLm::take_back`].
    pub(crate) fn forward_keeping_inputs(
        &self,
        x: &Tensor,
        rows: &Packing,
        adapters: Option<&dyn LinearDelta>,
    ) -> (Tensor, LayerInputs) {
        let rotation = self.rope.rotation(rows.positions(), self.kind());
        let mut inputs = Vec::with_capacity(self.layers.len());
        let mut x = x.shallow_clone();
        tch::no_grad(|| {
            for layer in &self.layers {
                let above = layer.forward(&x, rows, &rotation, adapters, attend::to_own_row(rows));
                inputs.push(std::mem::replace(&mut x, above));
            }
        });
        let top = x.detach().set_requires_grad(true);
        (self.final_norm.forward(&top), LayerInputs { inputs, top })
    }

    /// Takes the gradient that has arrived above the last layer down through all of them, into what `adapters` multiply by. `joining`
    /// returns, after the forward pass of each layer, what else belongs to its backward pass.
    ///
    /// # Shapes
    /// - returns: `[]`, whose derivative by the `x` of the forward pass is the gradient that has arrived there; its value means nothing
    ///
    /// # Errors
    /// [`ModelError::Torch`] if a backward pass fails.
    ///
    /// # Panics
    /// If no gradient has arrived.
    pub(crate) fn take_back(
        &self,
        kept: LayerInputs,
        rows: &Packing,
        adapters: Option<&dyn LinearDelta>,
        mut joining: impl FnMut() -> Option<Tensor>,
    ) -> Result<Tensor, ModelError> {
        let rotation = self.rope.rotation(rows.positions(), self.kind());
        let mut gradient = kept.top.grad();
        assert!(
            gradient.defined(),
            "the loss has been taken back to the last layer"
        );
        let mut x = kept.top;
        for (layer, input) in self.layers.iter().zip(kept.inputs).rev() {
            let leaf = input.detach().set_requires_grad(true);
            let above = layer.forward(&leaf, rows, &rotation, adapters, attend::to_own_row(rows));
            let mut loss = carry(&above, &gradient);
            if let Some(joining) = joining() {
                loss += joining;
            }
            loss.f_backward()?;
            gradient = leaf.grad();
            x = input;
        }
        Ok(carry(&x, &gradient))
    }
}
