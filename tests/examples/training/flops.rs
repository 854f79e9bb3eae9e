//! What a step has to compute, for the share of the machine's peak that it reaches (MFU as in PaLM, arXiv 2204.02311, appendix B, with what
//! is frozen and never gets a gradient of its weights counted as such).
//!
//! Counted are matrix products, two operations for each multiplication and addition, of frames and tokens that are there: neither padding,
//! nor norms, activations or the optimizer, nor the few tokens of the prompt.

use std::error::Error;
use std::fs;
use std::path::Path;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use zipper_config::RunConfig;
use zipper_config::schema::ProjectorKind;
use zipper_data::Utterance;

/// Encoder frames a second.
const FRAME_RATE: f64 = 50.0;
/// Frames that the `conv` projector turns into one.
const CONV_STRIDE: f64 = 4.0;
/// Width of every convolution.
const WINDOW: f64 = 3.0;

/// The keys of a Whisper config.json that say how large it is.
#[derive(Debug, Deserialize)]
struct Whisper {
    d_model: f64,
    encoder_layers: f64,
    encoder_ffn_dim: f64,
    num_mel_bins: f64,
}

/// Those of a Llama or Qwen config.json.
#[derive(Debug, Deserialize)]
struct Llm {
    hidden_size: f64,
    intermediate_size: f64,
    num_hidden_layers: f64,
    num_attention_heads: f64,
    num_key_value_heads: f64,
    head_dim: Option<f64>,
    vocab_size: f64,
}

/// Sizes of all that takes part in a step.
#[derive(Debug)]
pub(crate) struct Flops {
    whisper: Whisper,
    llm: Llm,
    config: RunConfig,
    encodes: bool,
}

impl Flops {
    /// Reads the models' configurations; `encodes` says whether the encoder runs.
    pub(crate) fn of(config: &RunConfig, encodes: bool) -> Result<Self, Box<dyn Error>> {
        Ok(Self {
            whisper: read(&config.model.encoder.path)?,
            llm: read(&config.model.llm.path)?,
            config: config.clone(),
            encodes,
        })
    }

    /// Operations of a step with these utterances and target tokens.
    pub(crate) fn of_step(&self, batch: &[&Utterance], target_tokens: u64) -> f64 {
        let texts = target_tokens as f64 / batch.len() as f64;
        let of_utterance = |utterance: &&Utterance| {
            let frames = utterance.duration * FRAME_RATE;
            let encoder = if self.encodes { self.encoder(frames) } else { 0.0 };
            let (heard, projector) = self.projector(frames);
            encoder + projector + self.llm(heard + texts, texts)
        };
        batch.iter().map(of_utterance).sum()
    }

    /// Forward only.
    fn encoder(&self, frames: f64) -> f64 {
        let Whisper {
            d_model,
            encoder_layers,
            encoder_ffn_dim,
            num_mel_bins,
        } = self.whisper;
        let convolutions = 2.0 * WINDOW * d_model * (2.0 * frames * num_mel_bins + frames * d_model);
        let products = 2.0 * frames * (4.0 * d_model * d_model + 2.0 * d_model * encoder_ffn_dim);
        let attention = 4.0 * frames * frames * d_model;
        convolutions + encoder_layers * (products + attention)
    }

    /// Embeddings of an utterance and what they cost: forward, gradients of weights, and of inputs but for those of the encoder.
    fn projector(&self, frames: f64) -> (f64, f64) {
        let (d_encoder, d_llm) = (self.whisper.d_model, self.llm.hidden_size);
        let (heard, layers) = match self.config.model.projector.kind {
            ProjectorKind::Stack => {
                let stack = self.config.model.projector.stack as f64;
                let hidden = self
                    .config
                    .model
                    .projector
                    .hidden
                    .map_or(d_encoder, |hidden| hidden as f64);
                let heard = (frames / stack).ceil();
                let layers = vec![heard * stack * d_encoder * hidden, heard * hidden * d_llm];
                (heard, layers)
            }
            ProjectorKind::Conv => {
                let heard = (frames / CONV_STRIDE).ceil();
                let layers = vec![
                    frames * WINDOW * d_encoder * d_encoder,
                    heard * WINDOW * d_encoder * CONV_STRIDE * d_encoder,
                    heard * CONV_STRIDE * d_encoder * d_encoder,
                    heard * d_encoder * d_llm,
                ];
                (heard, layers)
            }
        };
        let all: f64 = layers.iter().sum();
        (heard, 2.0 * (3.0 * all - layers[0]))
    }

    /// Forward and gradients of inputs through what is frozen, with gradients of weights for LoRA; logits for `texts` of `tokens` tokens.
    fn llm(&self, tokens: f64, texts: f64) -> f64 {
        let llm = &self.llm;
        let head_dim = llm.head_dim.unwrap_or(llm.hidden_size / llm.num_attention_heads);
        let (queries, keys) = (
            llm.num_attention_heads * head_dim,
            llm.num_key_value_heads * head_dim,
        );
        let sites = [
            ("q_proj", llm.hidden_size, queries),
            ("k_proj", llm.hidden_size, keys),
            ("v_proj", llm.hidden_size, keys),
            ("o_proj", queries, llm.hidden_size),
            ("gate_proj", llm.hidden_size, llm.intermediate_size),
            ("up_proj", llm.hidden_size, llm.intermediate_size),
            ("down_proj", llm.intermediate_size, llm.hidden_size),
        ];
        let rank = self.config.adapter.rank as f64;
        let of_site = |&(name, d_in, d_out): &(&str, f64, f64)| {
            let is_adapted = self.config.adapter.targets.iter().any(|target| target == name);
            let lora = if is_adapted { rank * (d_in + d_out) } else { 0.0 };
            2.0 * tokens * (2.0 * d_in * d_out + 3.0 * lora)
        };
        // A token attends to half of its row on average; scores and values, forward and twice as much backward.
        let attention = 3.0 * 2.0 * tokens * tokens * queries;
        let layer = sites.iter().map(of_site).sum::<f64>() + attention;
        let logits = 2.0 * 2.0 * texts * llm.hidden_size * llm.vocab_size;
        llm.num_hidden_layers * layer + logits
    }
}

fn read<T: DeserializeOwned>(folder: &Path) -> Result<T, Box<dyn Error>> {
    let path = folder.join("config.json");
    let text = fs::read_to_string(&path).map_err(|error| format!("`{}`: {error}", path.display()))?;
    Ok(serde_json::from_str(&text).map_err(|error| format!("`{}`: {error}", path.display()))?)
}
