//! Rotary position embeddings (arXiv 2104.09864), with the scaling variants of transformers' `modeling_rope_utils.py`.

use std::f64::consts::TAU;

use tch::{Device, Kind, Tensor};
use zipper_aten::fused;

use super::config::{LlmConfig, RopeScaling};

/// The frequencies of a model.
#[derive(Debug)]
pub(super) struct Rope {
    /// `[head_dim / 2]`, f32.
    frequencies: Tensor,
    attention_factor: f64,
}

/// Cosines and sines of some positions: `[tokens, 1, head_dim]` each.
#[derive(Debug)]
pub(super) struct Rotation {
    cos: Tensor,
    sin: Tensor,
}

impl Rope {
    pub(super) fn new(config: &LlmConfig, device: Device) -> Self {
        let half = config.head_dim / 2;
        let base = |index: i64| {
            config
                .rope_theta
                .powf(-2.0 * index as f64 / config.head_dim as f64)
        };
        let frequencies: Vec<f32> = (0..half)
            .map(|index| scaled(config, index, base(index)) as f32)
            .collect();
        let attention_factor = match config.rope_scaling {
            RopeScaling::Yarn { attention_factor, .. } => attention_factor,
            _ => 1.0,
        };
        Self {
            frequencies: Tensor::from_slice(&frequencies).to_device(device),
            attention_factor,
        }
    }

    /// # Shapes
    /// - `positions`: `[tokens]`, i64
    pub(super) fn rotation(&self, positions: &Tensor, kind: Kind) -> Rotation {
        let angles = positions.to_kind(Kind::Float).unsqueeze(-1) * &self.frequencies;
        let angles = Tensor::cat(&[&angles, &angles], -1).unsqueeze(1);
        Rotation {
            cos: (angles.cos() * self.attention_factor).to_kind(kind),
            sin: (angles.sin() * self.attention_factor).to_kind(kind),
        }
    }
}

impl Rotation {
    /// # Shapes
    /// - `x`: `[tokens, heads, head_dim]`
    pub(super) fn apply(&self, x: &Tensor) -> Tensor {
        if fused::takes(x) {
            return fused::rotate(x, &self.cos, &self.sin);
        }
        let halves = x.chunk(2, -1);
        let rotated = Tensor::cat(&[halves[1].neg(), halves[0].shallow_clone()], -1);
        x * &self.cos + rotated * &self.sin
    }
}

/// The frequency of dimension `index` after scaling.
fn scaled(config: &LlmConfig, index: i64, frequency: f64) -> f64 {
    match config.rope_scaling {
        RopeScaling::Default => frequency,
        RopeScaling::Linear { factor } => frequency / factor,
        RopeScaling::Llama3 {
            factor,
            low_freq_factor,
            high_freq_factor,
            original_positions,
        } => {
            let wavelength = TAU / frequency;
            // 1 where the wavelength is short and the frequency stays, 0 where it is long.
            let kept =
                (original_positions / wavelength - low_freq_factor) / (high_freq_factor - low_freq_factor);
            let kept = kept.clamp(0.0, 1.0);
            frequency * kept + frequency / factor * (1.0 - kept)
        }
        RopeScaling::Yarn {
            factor,
            beta_fast,
            beta_slow,
            original_positions,
            truncate,
            ..
        } => {
            let width = config.head_dim as f64;
            let dimension = |rotations: f64| {
                width * (original_positions / (rotations * TAU)).ln() / (2.0 * config.rope_theta.ln())
            };
            let (mut low, mut high) = (dimension(beta_fast), dimension(beta_slow));
            if truncate {
                (low, high) = (low.floor(), high.ceil());
            }
            let (low, mut high) = (low.max(0.0), high.min(width - 1.0));
            if (high - low).abs() < f64::EPSILON {
                high += 0.001;
            }
            let stretched = ((index as f64 - low) / (high - low)).clamp(0.0, 1.0);
            frequency / factor * stretched + frequency * (1.0 - stretched)
        }
    }
}
