//! A frozen linear layer to which an adapter may add.

use std::ops::RangeInclusive;

use tch::{Kind, Tensor};
use zipper_aten::fused;

use crate::ModelError;
use crate::packing::Packing;

/// Numbers of rows with which a product on a CPU is faster the other way round (docs/benchmarks/log.md).
const FEW_ROWS: RangeInclusive<i64> = 2..=10;

/// Number of an adapted linear layer: those of the LLM first, as [`crate::llm::CausalLm::lora_sites`] lists them, then those of the encoder.
pub type SiteId = usize;

/// An adapted linear layer, as the adapters see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoraSite {
    /// The layer's name in the model's own files, without `.weight`: `model.layers.3.self_attn.q_proj`.
    pub name: String,
    /// Index of the transformer layer it is in.
    pub layer: usize,
    /// Width of its input.
    pub d_in: i64,
    /// Width of its output.
    pub d_out: i64,
}

/// What is added to the output of an adapted layer.
pub trait LinearDelta {
    /// `s * B(l) A x` for every token of the micro batch, where `l` is the language of the token's row.
    ///
    /// # Shapes
    /// - `input`: `[tokens, d_in]` of the site, packed as `rows` says
    /// - returns: `[tokens, d_out]`, in the element type of `input`
    fn delta(&self, site: SiteId, input: &Tensor, rows: &Packing) -> Tensor;

    /// The output of the layer with its delta: `W x + b + s * B(l) A x`.
    ///
    /// # Shapes
    /// As [`LinearDelta::delta`].
    fn adapted(&self, layer: &Linear, site: SiteId, input: &Tensor, rows: &Packing) -> Tensor {
        // In place: nothing needs the frozen layer's own output, not even the backward pass.
        layer.frozen(input).g_add_(&self.delta(site, input, rows))
    }
}

/// A frozen linear layer: `y = W x + b`, plus the delta of its site where one is attached.
#[derive(Debug)]
pub struct Linear {
    /// `[d_out, d_in]`.
    pub weight: Tensor,
    /// `[d_out]`.
    pub bias: Option<Tensor>,
    /// The site this layer is adapted as.
    pub site: Option<SiteId>,
}

impl Linear {
    /// Makes this layer a site, and adds it to `sites`, if the last part of its `name` is one of `targets`.
    pub(crate) fn attach(
        &mut self,
        name: &str,
        layer: usize,
        targets: &[String],
        first_site: SiteId,
        sites: &mut Vec<LoraSite>,
    ) {
        if targets
            .iter()
            .any(|target| name.rsplit('.').next() == Some(target))
        {
            self.site = Some(first_site + sites.len());
            let (d_out, d_in) = (self.weight.size()[0], self.weight.size()[1]);
            sites.push(LoraSite {
                name: name.to_owned(),
                layer,
                d_in,
                d_out,
            });
        }
    }

    /// Applies the layer.
    ///
    /// # Shapes
    /// - `input`: `[tokens, d_in]`, packed as `rows` says
    /// - returns: `[tokens, d_out]`
    pub fn forward(&self, input: &Tensor, rows: &Packing, adapters: Option<&dyn LinearDelta>) -> Tensor {
        match (self.site, adapters) {
            (Some(site), Some(adapters)) => adapters.adapted(self, site, input, rows),
            _ => self.frozen(input),
        }
    }

    /// `W x + b`.
    pub(crate) fn frozen(&self, input: &Tensor) -> Tensor {
        product(input, &self.weight, self.bias.as_ref())
    }
}

/// Whether `input` is a few tokens on a CPU, one of each row as in decoding, by which weights are multiplied the other way round.
pub(crate) fn is_few_rows(input: &Tensor) -> bool {
    matches!(input.size2(), Ok((rows, _)) if FEW_ROWS.contains(&rows))
        && input.kind() == Kind::Float
        && fused::takes(input)
}

/// `x W^T + b`, for tokens that are read together in training and one by one in decoding. Weights and bias are frozen, but where a language
/// model is pretrained.
///
/// # Shapes
/// - `input`: `[.., d_in]`
/// - `weight`: `[d_out, d_in]`, `bias`: `[d_out]`
/// - returns: `[.., d_out]`
pub(crate) fn product(input: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Tensor {
    if is_few_rows(input) {
        // MKL lays its right factor out anew in every product. That must not be the weights, of which each is used a few times only.
        let product = weight.matmul(&input.tr()).tr().contiguous();
        return match bias {
            Some(bias) => product + bias,
            None => product,
        };
    }
    let is_frozen = fused::takes_frozen(weight) && bias.is_none_or(fused::takes_frozen);
    if is_frozen && input.dim() == 2 && fused::takes(input) {
        return fused::frozen_linear(input, weight, bias);
    }
    input.linear(weight, bias)
}

/// Refuses a target that is not one of `choices`; `key` is its place in the configuration.
pub(crate) fn check_targets(
    key: &'static str,
    targets: &[String],
    choices: &[&str],
) -> Result<(), ModelError> {
    match targets.iter().find(|target| !choices.contains(&target.as_str())) {
        None => Ok(()),
        Some(target) => Err(ModelError::UnknownTarget {
            key,
            target: target.clone(),
            choices: choices.join(", "),
        }),
    }
}

#[cfg(test)]
mod tests {
    use tch::Device;

    use super::*;

    /// Goal: a product is the same whichever way it is computed, and its gradient too.
    #[test]
    fn products_are_those_of_libtorch() {
        tch::manual_seed(1);
        let random = |shape: &[i64]| Tensor::randn(shape, (Kind::Float, Device::Cpu));
        let few = (1..=12).map(|rows| (rows, 7, 5));
        for (rows, d_out, d_in) in few.chain([(300, 170, 180)]) {
            let (weight, bias) = (random(&[d_out, d_in]), random(&[d_out]));
            for bias in [None, Some(&bias)] {
                let input = random(&[rows, d_in]).set_requires_grad(true);
                let of_both = [product(&input, &weight, bias), input.linear(&weight, bias)];
                let [(ours, our_gradient), (theirs, their_gradient)] = of_both.map(|output| {
                    let squares = output.square().sum(Kind::Float);
                    let gradient = Tensor::run_backward(&[squares], &[&input], false, false);
                    (output, gradient[0].shallow_clone())
                });
                assert!(ours.is_contiguous() && ours.size() == [rows, d_out]);
                assert!(ours.allclose(&theirs, 1e-5, 1e-4, false), "{rows} rows");
                assert!(
                    our_gradient.allclose(&their_gradient, 1e-5, 1e-2, false),
                    "{rows} rows"
                );
            }
        }
    }
}
