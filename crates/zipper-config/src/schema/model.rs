//! The `model:` section: encoder, projector, LLM and prompt.

use std::collections::BTreeMap;
use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use zipper_types::language::language_name;

/// The Speech-LLM: frozen encoder, trained projector, frozen LLM.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ModelConfig {
    /// The frozen speech encoder.
    pub encoder: EncoderConfig,
    /// What maps encoder frames to LLM embeddings.
    #[serde(default)]
    pub projector: ProjectorConfig,
    /// The frozen language model.
    pub llm: LlmConfig,
    /// The text around the speech.
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
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Dtype {
    /// 32-bit floats: the default on CPU.
    #[default]
    F32,
    /// bfloat16, for GPUs.
    Bf16,
    /// 64-bit floats, parameters included: for exactness tests, where it leaves rounding out of the comparison. Slow.
    F64,
}

/// A frozen Whisper encoder, read from a Hugging Face directory.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
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

pub(crate) fn default_chunk_seconds() -> f64 {
    2.0
}

pub(crate) fn default_left_context_seconds() -> f64 {
    8.0
}

/// How much of the utterance an encoder frame may see.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
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
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
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
    /// What the LLM reads of the projector's output.
    #[serde(default)]
    pub ctc_output: CtcOutput,
}

impl Default for ProjectorConfig {
    fn default() -> Self {
        Self {
            kind: ProjectorKind::default(),
            stack: default_stack(),
            hidden: None,
            ctc_weight: 0.0,
            ctc_output: CtcOutput::default(),
        }
    }
}

fn default_stack() -> usize {
    4
}

/// What the LLM reads of the projector's output, where CTC teaches it tokens. All but `frames` need a `ctc_weight`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum CtcOutput {
    /// The output itself.
    #[default]
    Frames,
    /// For each frame the mean of the LLM's own token embeddings, weighted by how likely CTC takes each token for (LegoSLM, arXiv
    /// 2505.11352).
    Posteriors,
    /// The same, but neighbours with the same likeliest token are one, and blanks are left out: as many embeddings as tokens are heard (Gaido et
    /// al., arXiv 2102.01578).
    Tokens,
}

/// The two projectors of the field.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ProjectorKind {
    /// Conv1d(d, d, 3) GELU Conv1d(d, 4d, 3, stride 4), Linear(4d, d) ReLU Linear(d, d_llm) ReLU, LayerNorm.
    #[default]
    Conv,
    /// Stack `stack` frames, then Linear GELU Linear.
    Stack,
}

/// A frozen causal LLM of the Qwen2, Qwen3 or Llama family, read from a Hugging Face directory.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LlmConfig {
    /// Hugging Face directory (config.json, *.safetensors, tokenizer.json).
    pub path: PathBuf,
}

/// The text around the speech.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PromptConfig {
    /// A plain template or the model's own chat template.
    #[serde(default)]
    pub kind: PromptKind,
    /// The instruction; `{language}` becomes the language's English name, `{lang}` its code. The speech stands at `{speech}`, or at the
    /// end if that is not in it.
    #[serde(default = "default_prompt_template")]
    pub template: String,
    /// English names, by code, of languages that Whisper does not know; others may be renamed.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub language_names: BTreeMap<String, String>,
}

/// Where the speech stands in a prompt's template.
pub(crate) const SPEECH: &str = "{speech}";

impl PromptConfig {
    /// The English name of a language.
    pub fn name_of(&self, code: &str) -> Option<&str> {
        let given = self.language_names.get(code).map(String::as_str);
        given.or_else(|| language_name(code))
    }

    /// The template, filled in for a language: what stands before the speech, and what behind it. Nothing if the language has no name.
    pub fn around_speech(&self, code: &str) -> Option<(String, String)> {
        let name = self.name_of(code)?;
        let filled_in = |text: &str| text.replace("{language}", name).replace("{lang}", code);
        let (before, after) = self.template.split_once(SPEECH).unwrap_or((&self.template, ""));
        Some((filled_in(before), filled_in(after)))
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
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
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
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum PromptKind {
    /// `[bos][template with speech][text][eos]`.
    #[default]
    Plain,
    /// The model's chat template, with template and speech as the user's message.
    Chat,
}
