//! Gradients that have gathered somewhere, taken on by a later backward pass: as losses with these derivatives, whose values mean nothing.

use tch::Tensor;

use crate::param::trainable_kind;

/// `[]`, whose derivative by `x` is `gradient`.
pub(crate) fn carry(x: &Tensor, gradient: &Tensor) -> Tensor {
    (x * gradient).sum(trainable_kind(x.kind()))
}

/// `[]`: the sum of such losses, of one kind; nothing if there are none.
pub(crate) fn all(losses: &[Tensor]) -> Option<Tensor> {
    let kind = losses.first()?.kind();
    Some(Tensor::stack(losses, 0).sum(kind))
}
