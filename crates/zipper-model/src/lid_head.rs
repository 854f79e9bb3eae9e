//! Which language is spoken: a linear classifier on the encoder's frames, averaged over time.
//!
//! It reads the frozen encoder alone, so it needs no prompt, no bank and no language to be told; and as no gradient of it goes into anything
//! but itself, recognition is trained as if it were not there, except that its gradient counts for clipping.

use tch::{Device, Kind, Tensor};

use crate::init;
use crate::param::{Param, ParamRole, ParamScope};

/// What the names of its parameters begin with.
pub const PREFIX: &str = "lid_head.";
const LAYER_NORM_EPS: f64 = 1e-5;

/// Tells languages apart.
#[derive(Debug)]
pub struct LidHead {
    /// Weight `[L, d_encoder]` and bias `[L]`.
    params: [Param; 2],
}

impl LidHead {
    /// A head with PyTorch's default initial values of a linear layer, drawn from `seed`; its parameters are of `kind`.
    pub fn new(num_languages: usize, d_encoder: i64, seed: u64, device: Device, kind: Kind) -> Self {
        let languages = num_languages as i64;
        let bound = 1.0 / (d_encoder as f64).sqrt();
        let param = |part: &str, shape: &[i64]| {
            let name = format!("{PREFIX}{part}");
            let value = init::uniform(seed, &name, shape, bound);
            let value = value.to_device(device).to_kind(kind);
            Param::new(name, ParamScope::Shared, ParamRole::LidHead, &value)
        };
        Self {
            params: [
                param("weight", &[languages, d_encoder]),
                param("bias", &[languages]),
            ],
        }
    }

    /// Its trainable parameters.
    pub fn params(&self) -> &[Param] {
        &self.params
    }

    /// Scores of the languages, before softmax.
    ///
    /// # Shapes
    /// - `frames`: `[time, d_encoder]` for each utterance
    /// - returns: `[utterances, L]`
    ///
    /// # Panics
    /// If there are no utterances.
    pub fn logits(&self, frames: &[Tensor]) -> Tensor {
        let [weight, bias] = &self.params;
        let pooled: Vec<Tensor> = frames
            .iter()
            .map(|frames| frames.detach().mean_dim(0, false, weight.tensor.kind()))
            .collect();
        let pooled = Tensor::stack(&pooled, 0);
        // Frames of a loud channel are larger in all of their dimensions.
        let width = pooled.size()[1];
        let pooled = pooled.layer_norm([width], None::<&Tensor>, None::<&Tensor>, LAYER_NORM_EPS, false);
        pooled.linear(&weight.tensor, Some(&bias.tensor))
    }

    /// Cross-entropy of the right languages, summed over the utterances, in nats; differentiable with respect to the head.
    ///
    /// # Panics
    /// If there are not as many languages as utterances, or none.
    pub fn loss(&self, frames: &[Tensor], languages: &[usize]) -> Tensor {
        assert_eq!(frames.len(), languages.len(), "every utterance has a language");
        let targets: Vec<i64> = languages.iter().map(|&language| language as i64).collect();
        let logits = self.logits(frames);
        let targets = Tensor::from_slice(&targets).to_device(logits.device());
        logits.cross_entropy_loss(&targets, None::<&Tensor>, tch::Reduction::Sum, -100, 0.0)
    }
}
