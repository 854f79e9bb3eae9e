//! The run configuration, key by key: what `configs/*.yaml` may say and what every key means when it is left out.
//!
//! Field order is the order of the resolved file `<run>/run.yaml`. Durations are `humantime` strings (`"30s"`),
//! audio amounts are seconds, paths are relative to the directory the command was started in until
//! [`crate::load`] makes them absolute.

mod adapter;
mod augment;
mod checkpoint;
mod cluster;
mod data;
mod elastic;
mod evaluation;
mod model;
mod runtime;
mod start;
mod text;
mod training;
mod watching;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use adapter::{AdapterConfig, BankInit, RouterConfig, RouterGranularity};
pub use augment::{AugmentConfig, SpecAugmentConfig};
pub use checkpoint::CheckpointConfig;
pub use cluster::{ClusterConfig, ContainerConfig, ContainerRuntime};
pub use data::{DataConfig, OnBadAudio};
pub use elastic::{ElasticConfig, OnLoss};
pub use evaluation::{EvaluationConfig, TestSet};
pub use model::{
    CtcOutput, Dtype, EncoderConfig, EncoderContext, LidHeadConfig, LlmConfig, ModelConfig, ProjectorConfig,
    ProjectorKind, PromptConfig, PromptKind,
};
pub(crate) use model::{SPEECH, default_chunk_seconds, default_left_context_seconds};
pub use runtime::{Backend, RuntimeConfig};
pub use start::StartFrom;
pub use text::ByLanguage;
pub(crate) use text::DEFAULT;
pub(crate) use training::default_loss_spike_factor;
pub use training::{OnLossSpike, OnNonFinite, OptimizerConfig, Schedule, StageConfig, TrainingConfig};
pub use watching::WatchingConfig;

/// One training run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RunConfig {
    /// Name of the run, for people. Also the last part of the default run URL, `file://./runs/<name>`.
    pub name: String,
    /// Seed of everything random: initial values, global batches, dropout, augmentation.
    #[serde(default = "default_seed")]
    pub seed: u64,
    /// Encoder, projector, LLM and prompt.
    pub model: ModelConfig,
    /// The LoRA adapters.
    #[serde(default)]
    pub adapter: AdapterConfig,
    /// Languages and manifests.
    pub data: DataConfig,
    /// Steps, batch, optimizer of both stages.
    pub training: TrainingConfig,
    /// When and on what to measure WER and CER.
    #[serde(default)]
    pub evaluation: EvaluationConfig,
    /// When to write checkpoints, and which to keep.
    #[serde(default)]
    pub checkpoint: CheckpointConfig,
    /// What happens when workers are lost or slow.
    #[serde(default)]
    pub elastic: ElasticConfig,
    /// How the workers of the run work together.
    #[serde(default)]
    pub runtime: RuntimeConfig,
    /// What is shown of the run while it is made.
    #[serde(default)]
    pub watching: WatchingConfig,
    /// What Slurm is asked for.
    #[serde(default)]
    pub cluster: ClusterConfig,
}

fn default_seed() -> u64 {
    1
}
