//! The `training:` section: steps, batch, optimizer.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{AugmentConfig, StartFrom};

/// Steps, batch and optimizer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TrainingConfig {
    /// What to begin with. Left out: initial values from the seed.
    #[serde(default)]
    pub start_from: Option<StartFrom>,
    /// Stage 1: projector and one shared LoRA.
    pub align: StageConfig,
    /// Stage 2: the configured variant.
    pub zipper: StageConfig,
    /// Size of the global batch in seconds of audio: fixed, whatever the world size.
    pub batch_audio_seconds: f64,
    /// Most audio in one forward and backward pass of a rank, in seconds; more is accumulated.
    #[serde(default = "default_micro_batch_audio_seconds")]
    pub micro_batch_audio_seconds: f64,
    /// What is changed about utterances in training.
    #[serde(default)]
    pub augment: AugmentConfig,
    /// The optimizer.
    #[serde(default)]
    pub optimizer: OptimizerConfig,
    /// Largest norm of the gradient over shared parameters and all banks; 0 turns clipping off.
    #[serde(default = "default_clip")]
    pub clip_grad_norm: f64,
    /// What to do when the loss or a gradient is not finite.
    #[serde(default)]
    pub on_non_finite: OnNonFinite,
    /// What to do when the loss is far above what it was.
    #[serde(default)]
    pub on_loss_spike: OnLossSpike,
    /// A spike is a loss above this many times the median of the last 32.
    #[serde(default = "default_loss_spike_factor")]
    pub loss_spike_factor: f64,
    /// Every how many steps a line of metrics is written.
    #[serde(default = "default_log_every")]
    pub log_every: u64,
}

fn default_micro_batch_audio_seconds() -> f64 {
    240.0
}

fn default_clip() -> f64 {
    5.0
}

pub(crate) fn default_loss_spike_factor() -> f64 {
    3.0
}

fn default_log_every() -> u64 {
    10
}

/// One stage.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct StageConfig {
    /// Optimizer steps of the stage.
    pub steps: u64,
    /// Peak learning rate.
    #[serde(default = "default_lr")]
    pub lr: f64,
    /// Peak learning rate of the projector, which begins at random where the LLM around it knows its words. Left out: `lr`.
    #[serde(default)]
    pub projector_lr: Option<f64>,
    /// Peak learning rate of the router and the LID embeddings. Left out: `lr`.
    #[serde(default)]
    pub router_lr: Option<f64>,
    /// Steps of linear warm-up from 0. None by default; recipes with thousands of steps have some hundred to some thousand.
    #[serde(default)]
    pub warmup_steps: u64,
    /// What the rate does after the warm-up.
    #[serde(default)]
    pub schedule: Schedule,
    /// The rate at the last step, as a part of `lr`.
    #[serde(default)]
    pub final_lr_ratio: f64,
}

fn default_lr() -> f64 {
    1e-4
}

/// What the learning rate does after the warm-up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Schedule {
    /// Stays.
    Constant,
    /// Falls in a line to `final_lr_ratio * lr` at the last step of the stage.
    #[default]
    Linear,
    /// Falls on a half cosine to `final_lr_ratio * lr` at the last step of the stage.
    Cosine,
    /// Falls as `lr * sqrt(warmup_steps / step)`, wherever that ends: `warmuplr` of ESPnet and WeNet. Needs a warm-up.
    InverseSqrt,
}

/// AdamW (Loshchilov & Hutter, arXiv 1711.05101), as in PyTorch.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct OptimizerConfig {
    /// Decay rates of the two moments.
    #[serde(default = "default_betas")]
    pub betas: [f64; 2],
    /// Added to the denominator.
    #[serde(default = "default_eps")]
    pub eps: f64,
    /// Decoupled weight decay, on matrices only.
    #[serde(default)]
    pub weight_decay: f64,
}

impl Default for OptimizerConfig {
    fn default() -> Self {
        Self {
            betas: default_betas(),
            eps: default_eps(),
            weight_decay: 0.0,
        }
    }
}

fn default_betas() -> [f64; 2] {
    [0.9, 0.999]
}

fn default_eps() -> f64 {
    1e-8
}

/// What to do when the loss or a gradient is not finite on any rank.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OnNonFinite {
    /// Stop the run, naming the step and its languages.
    #[default]
    Stop,
    /// Leave the update out on every rank, and count it.
    Skip,
}

/// What to do when the loss of a global batch is far above those before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OnLossSpike {
    /// Nothing.
    Ignore,
    /// Warn, naming the step and its languages.
    #[default]
    Warn,
    /// Warn, and leave the update out on every rank.
    Skip,
    /// Stop the run.
    Stop,
}
