//! The run configuration, key by key: what `configs/*.yaml` may say and what every key means when it is left out.
//!
//! Field order is the order of the resolved file `<run>/run.yaml`. Durations are `humantime` strings (`"30s"`),
//! audio amounts are seconds, paths are relative to the directory the command was started in until
//! [`crate::load`] makes them absolute.

mod augment;
mod checkpoint;
mod cluster;
mod elastic;
mod runtime;
mod start;
mod text;
mod watching;

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use zipper_types::language::language_name;
use zipper_types::{Normalizer, Scoring, TextNormalization, Variant};

pub use augment::{AugmentConfig, SpecAugmentConfig};
pub use checkpoint::CheckpointConfig;
pub use cluster::{ClusterConfig, ContainerConfig, ContainerRuntime};
pub use elastic::{ElasticConfig, OnLoss};
pub use runtime::{Backend, RuntimeConfig};
pub use start::StartFrom;
pub use text::ByLanguage;
pub(crate) use text::DEFAULT;
pub use watching::WatchingConfig;

/// One training run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
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

/// The Speech-LLM: frozen encoder, trained projector, frozen LLM.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelConfig {
    /// The frozen speech encoder.
    pub encoder: EncoderConfig,
    /// What maps encoder frames to LLM embeddings.
    #[serde(default)]
    pub projector: ProjectorConfig,
    /// The frozen language model.
    pub llm: LlmConfig,
    /// The text before the speech.
    #[serde(default)]
    pub prompt: PromptConfig,
    /// A head that tells languages apart, trained beside recognition: `eval` says how well, and `transcribe` detects languages with
    /// it. Left out: none.
    #[serde(default)]
    pub lid_head: Option<LidHeadConfig>,
    /// Element type of the frozen weights and of the activations. LoRA, projector and optimizer state stay f32.
    #[serde(default)]
    pub dtype: Dtype,
}

/// Element type of frozen weights and activations.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Dtype {
    /// 32-bit floats: the default on CPU.
    #[default]
    F32,
    /// bfloat16 autocast, where the device has it.
    Bf16,
    /// 64-bit floats, parameters included: for exactness tests, where it leaves rounding out of the comparison. Slow.
    F64,
}

/// A frozen Whisper encoder, read from a Hugging Face directory.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EncoderConfig {
    /// Hugging Face directory of a Whisper model (config.json, *.safetensors).
    pub path: PathBuf,
    /// How much of the utterance a frame may see.
    #[serde(default)]
    pub context: EncoderContext,
    /// Length of a chunk in seconds; only with `context: chunked`.
    #[serde(default = "default_chunk_seconds")]
    pub chunk_seconds: f64,
    /// How far a chunk sees to the left, in seconds; only with `context: chunked`.
    #[serde(default = "default_left_context_seconds")]
    pub left_context_seconds: f64,
    /// Folder in which encoder outputs are kept, since the encoder is frozen. Left out: they are computed each time.
    /// Not together with `training.augment` or `adapter.encoder_targets`, which change them at every step.
    #[serde(default)]
    pub cache: Option<PathBuf>,
}

fn default_chunk_seconds() -> f64 {
    2.0
}

fn default_left_context_seconds() -> f64 {
    8.0
}

/// How much of the utterance an encoder frame may see (DESIGN 2, "Encoder context").
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EncoderContext {
    /// The whole utterance at its own length, no padding.
    #[default]
    Native,
    /// Whisper's own windows: padded to 30 s.
    #[serde(rename = "padded_30s")]
    Padded30s,
    /// Attention only within a chunk and its left context.
    Chunked,
}

/// The projector between encoder and LLM.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProjectorConfig {
    /// Which projector.
    #[serde(default)]
    pub kind: ProjectorKind,
    /// Frames joined into one; only with `kind: stack`.
    #[serde(default = "default_stack")]
    pub stack: usize,
    /// Width of the hidden layer; only with `kind: stack`. Left out: the encoder's width.
    #[serde(default)]
    pub hidden: Option<usize>,
    /// Weight of a second loss in training: CTC of the transcript's tokens, read off the projector's output by the LLM's own embeddings, with
    /// the end of text as blank. It lets the projector say what is heard in the LLM's words from the first steps on, where the first loss
    /// alone may take thousands of them to find out. Its scores are as many as frames times vocabulary. 0: none.
    #[serde(default)]
    pub ctc_weight: f64,
}

impl Default for ProjectorConfig {
    fn default() -> Self {
        Self {
            kind: ProjectorKind::default(),
            stack: default_stack(),
            hidden: None,
            ctc_weight: 0.0,
        }
    }
}

fn default_stack() -> usize {
    4
}

/// The two projectors of the field.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ProjectorKind {
    /// Conv1d(d, d, 3) GELU Conv1d(d, 4d, 3, stride 4), Linear(4d, d) ReLU Linear(d, d_llm) ReLU, LayerNorm.
    #[default]
    Conv,
    /// Stack `stack` frames, then Linear GELU Linear.
    Stack,
}

/// A frozen causal LLM of the Qwen2, Qwen3 or Llama family, read from a Hugging Face directory.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LlmConfig {
    /// Hugging Face directory (config.json, *.safetensors, tokenizer.json).
    pub path: PathBuf,
}

/// The text around the speech: `[bos][prompt][speech][text][eos]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PromptConfig {
    /// A plain template or the model's own chat template.
    #[serde(default)]
    pub kind: PromptKind,
    /// The instruction; `{language}` becomes the language's English name, `{lang}` its code.
    #[serde(default = "default_prompt_template")]
    pub template: String,
    /// English names, by code, of languages that Whisper does not know; others may be renamed.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub language_names: BTreeMap<String, String>,
}

impl PromptConfig {
    /// The English name of a language.
    pub fn name_of(&self, code: &str) -> Option<&str> {
        let given = self.language_names.get(code).map(String::as_str);
        given.or_else(|| language_name(code))
    }

    /// The template, filled in for a language; nothing if the language has no name.
    pub fn instruction(&self, code: &str) -> Option<String> {
        let template = self.template.replace("{language}", self.name_of(code)?);
        Some(template.replace("{lang}", code))
    }
}

impl Default for PromptConfig {
    fn default() -> Self {
        Self {
            kind: PromptKind::default(),
            template: default_prompt_template(),
            language_names: BTreeMap::new(),
        }
    }
}

fn default_prompt_template() -> String {
    "Please transcribe the following audio in {language}:\n".to_owned()
}

/// The head that tells languages apart, by the encoder's frames averaged over time.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LidHeadConfig {
    /// Weight of its cross-entropy, summed over the utterances of the global batch, beside the loss of recognition, summed over
    /// tokens. Its gradient stays in the head: the weight matters for clipping only.
    #[serde(default = "default_lid_loss_weight")]
    pub loss_weight: f64,
}

fn default_lid_loss_weight() -> f64 {
    1.0
}

/// Where the prompt's frame comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PromptKind {
    /// `[bos][template][speech][text][eos]`.
    #[default]
    Plain,
    /// The model's chat template with the template as the user's message, followed by the speech.
    Chat,
}

/// The LoRA adapters (DESIGN 2).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
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
    /// Dropout on the input of A, keyed by (seed, step, utterance).
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
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BankInit {
    /// Initial-B: the B of stage 1.
    #[default]
    Stage1,
    /// Zeros: to measure what the warm start buys.
    Zero,
}

/// The language-conditioned router (DESIGN 2): `g_l = sigmoid(W e_l + b)`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
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
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
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

/// Languages and manifests.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataConfig {
    /// Language codes (ISO 639-1), each with a bank of its own; every utterance must be in one of them.
    pub languages: Vec<String>,
    /// Training manifests (JSON lines).
    pub train: Vec<PathBuf>,
    /// Validation manifests; none: no validation.
    #[serde(default)]
    pub validation: Vec<PathBuf>,
    /// Languages are drawn with probability proportional to hours^(1/T). 1 keeps the proportions, larger evens out.
    #[serde(default = "default_temperature")]
    pub temperature: f64,
    /// What is done to the transcripts that are learnt, by language: `none`, `lowercase` or `basic` (Whisper's basic rules: no
    /// punctuation either). `default` is for those that are not named; left out: `none`. Also for the loss in validation, which
    /// could not be compared with that of training otherwise; references in `eval/` stay as the manifests have them.
    #[serde(default)]
    pub text_normalization: ByLanguage<TextNormalization>,
    /// What to do with an utterance whose audio is missing or broken.
    #[serde(default)]
    pub on_bad_audio: OnBadAudio,
    /// Longest utterance, in seconds; longer ones are left out and counted. At most 30 (Whisper's positions).
    #[serde(default = "default_max_seconds")]
    pub max_seconds: f64,
    /// Shortest utterance, in seconds; shorter ones are left out and counted.
    #[serde(default = "default_min_seconds")]
    pub min_seconds: f64,
}

fn default_temperature() -> f64 {
    1.0
}

fn default_max_seconds() -> f64 {
    30.0
}

fn default_min_seconds() -> f64 {
    0.1
}

/// What to do with an utterance whose audio is missing or broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnBadAudio {
    /// Stop the run before the first step, naming every bad utterance.
    #[default]
    Fail,
    /// Leave it out, and count it in the report at the start.
    Skip,
}

/// Steps, batch and optimizer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
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

fn default_loss_spike_factor() -> f64 {
    3.0
}

fn default_log_every() -> u64 {
    10
}

/// One stage.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StageConfig {
    /// Optimizer steps of the stage.
    pub steps: u64,
    /// Peak learning rate.
    #[serde(default = "default_lr")]
    pub lr: f64,
    /// Peak learning rate of the router and the LID embeddings. Left out: `lr`.
    #[serde(default)]
    pub router_lr: Option<f64>,
    /// Steps of linear warm-up from 0.
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
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Schedule {
    /// Stays.
    Constant,
    /// Falls in a line to `final_lr_ratio * lr` at the last step of the stage.
    #[default]
    Linear,
    /// Falls on a half cosine to `final_lr_ratio * lr` at the last step of the stage.
    Cosine,
}

/// AdamW (Loshchilov & Hutter, arXiv 1711.05101), as in PyTorch.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
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
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnNonFinite {
    /// Stop the run, naming the step and its languages.
    #[default]
    Stop,
    /// Leave the update out on every rank, and count it.
    Skip,
}

/// What to do when the loss of a global batch is far above those before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
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

/// When and on what WER and CER are measured.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EvaluationConfig {
    /// Test sets, decoded after the last step.
    #[serde(default)]
    pub tests: Vec<TestSet>,
    /// Also decode the test sets before the first step, with the untrained model.
    #[serde(default)]
    pub untrained: bool,
    /// Also decode the test sets with silenced speech: what the model guesses without hearing.
    #[serde(default)]
    pub no_audio_control: bool,
    /// Every how many steps the validation loss and WER are measured; 0: only at the end of each stage.
    #[serde(default)]
    pub every_steps: u64,
    /// Beam width; 1 is greedy.
    #[serde(default = "default_beam")]
    pub beam: usize,
    /// Longest transcript, in tokens.
    #[serde(default = "default_max_new_tokens")]
    pub max_new_tokens: usize,
    /// Languages whose headline figure is the CER.
    #[serde(default = "default_cer_languages")]
    pub cer_languages: Vec<String>,
    /// What is done to references and hypotheses before they are compared, by language: `english`, `basic`, `basic_split` (letters as
    /// words) or `none`. `default` is for those that are not named. Left out: `english` for English, `basic` for all others.
    #[serde(default)]
    pub normalizer: ByLanguage<Normalizer>,
    /// Count once what a hypothesis repeats without end: a phrase of up to 10 words that stands more than 4 times in a row, or of up to
    /// 20 letters that stands more than 12 times. Transcripts in `eval/` stay as they are.
    #[serde(default)]
    pub remove_repetitions: bool,
}

impl EvaluationConfig {
    /// How transcripts of `lang` are compared.
    pub fn scoring(&self, lang: &str) -> Scoring {
        let of_language = Normalizer::of_language(lang);
        Scoring {
            normalizer: self.normalizer.get(lang).unwrap_or(of_language),
            remove_repetitions: self.remove_repetitions,
        }
    }
}

impl Default for EvaluationConfig {
    fn default() -> Self {
        Self {
            tests: Vec::new(),
            untrained: false,
            no_audio_control: false,
            every_steps: 0,
            beam: default_beam(),
            max_new_tokens: default_max_new_tokens(),
            cer_languages: default_cer_languages(),
            normalizer: ByLanguage::default(),
            remove_repetitions: false,
        }
    }
}

fn default_beam() -> usize {
    1
}

fn default_max_new_tokens() -> usize {
    200
}

fn default_cer_languages() -> Vec<String> {
    ["ja", "th"].map(str::to_owned).to_vec()
}

/// A manifest with a name for the table.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TestSet {
    /// Name in the table and the file names: letters, digits, `-` and `_`.
    pub name: String,
    /// The manifest (JSON lines).
    pub manifest: PathBuf,
}
