//! A frozen linear layer to which an adapter may add.

use tch::Tensor;

use crate::ModelError;
use crate::packing::Packing;

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
        let mut output = input.linear(&self.weight, self.bias.as_ref());
        match (self.site, adapters) {
            // In place: nothing needs the frozen layer's own output, not even the backward pass.
            (Some(site), Some(adapters)) => output.g_add_(&adapters.delta(site, input, rows)),
            _ => output,
        }
    }
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
