//! A frozen linear layer to which an adapter may add.

use std::ops::RangeInclusive;

use tch::{Device, Kind, Tensor};

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
        let mut output = product(input, &self.weight, self.bias.as_ref());
        match (self.site, adapters) {
            // In place: nothing needs the frozen layer's own output, not even the backward pass.
            (Some(site), Some(adapters)) => output.g_add_(&adapters.delta(site, input, rows)),
            _ => output,
        }
    }
}

/// `x W^T + b`, for tokens that are read together in training and one by one in decoding.
///
/// # Shapes
/// - `input`: `[.., d_in]`
/// - `weight`: `[d_out, d_in]`, `bias`: `[d_out]`
/// - returns: `[.., d_out]`
pub(crate) fn product(input: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Tensor {
    let is_decoded = matches!(input.size2(), Ok((rows, _)) if FEW_ROWS.contains(&rows));
    if is_decoded && input.device() == Device::Cpu && input.kind() == Kind::Float {
        // MKL lays its right factor out anew in every product. That must not be the weights, of which each is used a few times only.
        let product = weight.matmul(&input.tr()).tr().contiguous();
        return match bias {
            Some(bias) => product + bias,
            None => product,
        };
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
    use super::*;

    /// Goal: a product is the same whichever way round it is computed, and its gradient too.
    #[test]
    fn products_of_few_rows_are_those_of_many() {
        tch::manual_seed(1);
        let random = |shape: &[i64]| Tensor::randn(shape, (Kind::Float, Device::Cpu));
        let (weight, bias) = (random(&[7, 5]), random(&[7]));
        for rows in 1..=12 {
            for bias in [None, Some(&bias)] {
                let input = random(&[rows, 5]).set_requires_grad(true);
                let of_both = [product(&input, &weight, bias), input.linear(&weight, bias)];
                let [(ours, our_gradient), (theirs, their_gradient)] = of_both.map(|output| {
                    let squares = output.square().sum(Kind::Float);
                    let gradient = Tensor::run_backward(&[squares], &[&input], false, false);
                    (output, gradient[0].shallow_clone())
                });
                assert!(ours.is_contiguous() && ours.size() == [rows, 7]);
                assert!(ours.allclose(&theirs, 1e-5, 1e-6, false), "{rows} rows");
                assert!(
                    our_gradient.allclose(&their_gradient, 1e-5, 1e-5, false),
                    "{rows} rows"
                );
            }
        }
    }
}
