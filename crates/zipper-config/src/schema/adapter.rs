//! The `adapter:` section.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use zipper_types::Variant;

/// The LoRA adapters.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AdapterConfig {
    /// How stage 2 shares the B matrices.
    #[serde(default = "default_variant")]
    pub variant: Variant,
    /// LoRA rank r.
    #[serde(default = "default_rank")]
    pub rank: usize,
    /// LoRA alpha; the scale is alpha / rank.
    #[serde(default = "default_alpha")]
    pub alpha: f64,
    /// Dropout on the input of A, keyed by (seed, step, utterance). None by default, as in PEFT; recipes for hours of speech have 0.05 to 0.1.
    #[serde(default)]
    pub dropout: f64,
    /// LLM linear layers to adapt, by the last part of their name.
    #[serde(default = "default_targets")]
    pub targets: Vec<String>,
    /// Encoder linear layers to adapt (`q_proj`, `k_proj`, `v_proj`, `out_proj`, `fc1`, `fc2`); none by default.
    /// Encoder outputs cannot be cached when this is not empty.
    #[serde(default)]
    pub encoder_targets: Vec<String>,
    /// Columns of B that are shared; only with `variant: static`. Left out: half of the rank.
    #[serde(default)]
    pub shared_rank: Option<usize>,
    /// What the B matrices of the languages start from in stage 2.
    #[serde(default)]
    pub init: BankInit,
    /// The router of `hard` and `soft`.
    #[serde(default)]
    pub router: RouterConfig,
}

impl Default for AdapterConfig {
    fn default() -> Self {
        Self {
            variant: default_variant(),
            rank: default_rank(),
            alpha: default_alpha(),
            dropout: 0.0,
            targets: default_targets(),
            encoder_targets: Vec::new(),
            shared_rank: None,
            init: BankInit::default(),
            router: RouterConfig::default(),
        }
    }
}

impl AdapterConfig {
    /// Columns of B that `static` shares: `shared_rank`, or half of the rank.
    pub fn shared_columns(&self) -> usize {
        self.shared_rank.unwrap_or(self.rank / 2)
    }
}

fn default_variant() -> Variant {
    Variant::Soft
}

fn default_rank() -> usize {
    16
}

fn default_alpha() -> f64 {
    32.0
}

fn default_targets() -> Vec<String> {
    [
        "q_proj",
        "k_proj",
        "v_proj",
        "o_proj",
        "gate_proj",
        "up_proj",
        "down_proj",
    ]
    .map(str::to_owned)
    .to_vec()
}

/// What B_l starts from in stage 2.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum BankInit {
    /// Initial-B: the B of stage 1.
    #[default]
    Stage1,
    /// Zeros: to measure what the warm start buys.
    Zero,
}

/// The language-conditioned router: `g_l = sigmoid(W e_l + b)`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RouterConfig {
    /// Width of the language (LID) embedding e_l.
    #[serde(default = "default_lid_dim")]
    pub lid_dim: usize,
    /// How many adapted layers share one router.
    #[serde(default)]
    pub granularity: RouterGranularity,
    /// What gates are around before the first step, between 0 (everything is a language's own) and 1 (everything is shared): the
    /// sigmoid of the routers' first biases.
    #[serde(default = "default_initial_gate")]
    pub initial_gate: f64,
}

impl Default for RouterConfig {
    fn default() -> Self {
        Self {
            lid_dim: default_lid_dim(),
            granularity: RouterGranularity::default(),
            initial_gate: default_initial_gate(),
        }
    }
}

fn default_lid_dim() -> usize {
    64
}

fn default_initial_gate() -> f64 {
    0.5
}

/// How many adapted layers share one router.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum RouterGranularity {
    /// One router for each adapted linear layer.
    #[default]
    Linear,
    /// One router for each transformer layer.
    Layer,
    /// One router for the whole model.
    Model,
}
