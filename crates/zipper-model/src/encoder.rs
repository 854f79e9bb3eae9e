//! The frozen Whisper encoder.
//!
//! Follows `WhisperEncoder` of transformers (`modeling_whisper.py`): two convolutions, sinusoidal positions as stored,
//! pre-norm transformer layers, a final layer norm.
//!
//! Utterances lie one behind the other, so that each weight meets all of them in one product, and convolutions are such products, too:
//! the windows of an utterance side by side. Each is encoded as if it were alone.
//!
//! Dimensions: `n_mels` mel bins, `frames` mel frames (100 a second), `time` = ceil(frames / 2) encoder frames, `tokens` = the `time` of
//! all utterances together, `d_model`.

use std::path::Path;

use serde::Deserialize;
use tch::{Device, Kind, Tensor};
use zipper_config::schema::{EncoderConfig, EncoderContext};

use crate::ModelError;
use crate::hub::{self, Weights};
use crate::linear::{Linear, LinearDelta, LoraSite};
use crate::packing::Packing;

const LAYER_NORM_EPS: f64 = 1e-5;
/// Encoder frames a second.
const FRAME_RATE: f64 = 50.0;
const TARGETS: [&str; 6] = ["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"];

/// The keys of a Whisper config.json that the encoder needs.
#[derive(Debug, Deserialize)]
struct WhisperConfig {
    model_type: String,
    d_model: i64,
    encoder_layers: usize,
    encoder_attention_heads: i64,
    encoder_ffn_dim: i64,
    num_mel_bins: i64,
    max_source_positions: i64,
}

/// A Whisper encoder with frozen weights.
#[derive(Debug)]
pub struct WhisperEncoder {
    config: WhisperConfig,
    conv1: (Tensor, Tensor),
    conv2: (Tensor, Tensor),
    /// `[max_source_positions, d_model]`.
    positions: Tensor,
    layers: Vec<Layer>,
    final_norm: LayerNorm,
    chunks: Option<Chunks>,
}

/// What the encoder reads of one utterance.
#[derive(Debug)]
pub struct LogMelFrames {
    /// `[n_mels, frames]`, f32.
    pub mel: Tensor,
    /// Mel frames that are speech; the output is cut to them, which matters for `padded_30s`.
    pub valid_frames: i64,
}

impl LogMelFrames {
    fn frames(&self) -> i64 {
        self.mel.size()[1]
    }

    /// Encoder frames.
    fn time(&self) -> i64 {
        (self.frames() + 1) / 2
    }
}

/// Lengths of a chunk and of what it sees to its left, in encoder frames.
#[derive(Debug, Clone, Copy)]
struct Chunks {
    length: i64,
    left_context: i64,
}

#[derive(Debug)]
struct LayerNorm {
    weight: Tensor,
    bias: Tensor,
}

#[derive(Debug)]
struct Layer {
    attention_norm: LayerNorm,
    q_proj: Linear,
    k_proj: Linear,
    v_proj: Linear,
    out_proj: Linear,
    ffn_norm: LayerNorm,
    fc1: Linear,
    fc2: Linear,
}

impl WhisperEncoder {
    /// Loads the encoder of the Whisper directory `config.path`, which then computes in `kind`.
    ///
    /// # Errors
    /// [`ModelError`] naming the file, and the key or tensor, that is missing or wrong.
    pub fn load(config: &EncoderConfig, device: Device, kind: Kind) -> Result<Self, ModelError> {
        let chunks = (config.context == EncoderContext::Chunked).then(|| Chunks {
            length: ((config.chunk_seconds * FRAME_RATE).round() as i64).max(1),
            left_context: (config.left_context_seconds * FRAME_RATE).round() as i64,
        });
        Self::read(&config.path, chunks, device, kind)
    }

    fn read(folder: &Path, chunks: Option<Chunks>, device: Device, kind: Kind) -> Result<Self, ModelError> {
        let path = folder.join(hub::CONFIG);
        let config: WhisperConfig = hub::read_json(&path)?;
        if config.model_type != "whisper" {
            let problem = format!(
                "model_type is `{}`; the encoder must be a `whisper`",
                config.model_type
            );
            return Err(ModelError::Invalid { path, problem });
        }
        if config.encoder_attention_heads < 1 || config.d_model % config.encoder_attention_heads != 0 {
            let problem = format!(
                "d_model = {} is not a multiple of encoder_attention_heads = {}",
                config.d_model, config.encoder_attention_heads
            );
            return Err(ModelError::Invalid { path, problem });
        }
        let weights = Weights::open(folder, device, kind)?;
        let prefix = if weights.contains("encoder.conv1.weight") {
            "encoder"
        } else {
            "model.encoder"
        };
        let get = |name: &str, shape: &[i64]| weights.get(&format!("{prefix}.{name}"), shape);
        let (d, ffn, mels) = (config.d_model, config.encoder_ffn_dim, config.num_mel_bins);
        let norm = |name: &str| -> Result<LayerNorm, ModelError> {
            Ok(LayerNorm {
                weight: get(&format!("{name}.weight"), &[d])?,
                bias: get(&format!("{name}.bias"), &[d])?,
            })
        };
        let linear = |name: &str, d_out: i64, d_in: i64, bias: bool| -> Result<Linear, ModelError> {
            let bias = bias.then(|| get(&format!("{name}.bias"), &[d_out])).transpose()?;
            Ok(Linear {
                weight: get(&format!("{name}.weight"), &[d_out, d_in])?,
                bias,
                site: None,
            })
        };
        let layer = |index: usize| -> Result<Layer, ModelError> {
            let at = |name: &str| format!("layers.{index}.{name}");
            Ok(Layer {
                attention_norm: norm(&at("self_attn_layer_norm"))?,
                q_proj: linear(&at("self_attn.q_proj"), d, d, true)?,
                k_proj: linear(&at("self_attn.k_proj"), d, d, false)?,
                v_proj: linear(&at("self_attn.v_proj"), d, d, true)?,
                out_proj: linear(&at("self_attn.out_proj"), d, d, true)?,
                ffn_norm: norm(&at("final_layer_norm"))?,
                fc1: linear(&at("fc1"), ffn, d, true)?,
                fc2: linear(&at("fc2"), d, ffn, true)?,
            })
        };
        Ok(Self {
            conv1: (get("conv1.weight", &[d, mels, 3])?, get("conv1.bias", &[d])?),
            conv2: (get("conv2.weight", &[d, d, 3])?, get("conv2.bias", &[d])?),
            positions: get("embed_positions.weight", &[config.max_source_positions, d])?,
            layers: (0..config.encoder_layers).map(layer).collect::<Result<_, _>>()?,
            final_norm: norm("layer_norm")?,
            config,
            chunks,
        })
    }

    /// Width of an encoder frame.
    pub fn d_model(&self) -> i64 {
        self.config.d_model
    }

    /// The kind of its weights and outputs.
    pub fn kind(&self) -> Kind {
        self.positions.kind()
    }

    /// Mel bins that the encoder reads: 80, or 128 for large-v3.
    pub fn num_mel_bins(&self) -> usize {
        self.config.num_mel_bins as usize
    }

    /// Attaches adapters to every linear layer whose name ends in one of `targets`; ids count from `first_site`.
    ///
    /// # Errors
    /// [`ModelError::UnknownTarget`].
    pub fn lora_sites(&mut self, targets: &[String], first_site: usize) -> Result<Vec<LoraSite>, ModelError> {
        crate::linear::check_targets("encoder_targets", targets, &TARGETS)?;
        let mut sites = Vec::new();
        for (index, layer) in self.layers.iter_mut().enumerate() {
            let linears = [
                ("self_attn.q_proj", &mut layer.q_proj),
                ("self_attn.k_proj", &mut layer.k_proj),
                ("self_attn.v_proj", &mut layer.v_proj),
                ("self_attn.out_proj", &mut layer.out_proj),
                ("fc1", &mut layer.fc1),
                ("fc2", &mut layer.fc2),
            ];
            for (name, linear) in linears {
                linear.attach(
                    &format!("model.encoder.layers.{index}.{name}"),
                    index,
                    targets,
                    first_site,
                    &mut sites,
                );
            }
        }
        Ok(sites)
    }

    /// Encodes utterances.
    ///
    /// With `context: chunked` a frame attends to its own chunk and the configured left context only.
    ///
    /// # Shapes
    /// - returns: `[ceil(valid_frames / 2), d_model]` for each utterance
    ///
    /// # Errors
    /// [`ModelError::TooLong`] if one has more frames than there are positions.
    pub fn encode(
        &self,
        utterances: &[LogMelFrames],
        adapters: Option<&dyn LinearDelta>,
    ) -> Result<Vec<Tensor>, ModelError> {
        let positions = self.config.max_source_positions;
        let Some(longest) = utterances.iter().map(LogMelFrames::time).max() else {
            return Ok(Vec::new());
        };
        if longest > positions {
            return Err(ModelError::TooLong {
                frames: longest,
                positions,
            });
        }
        let device = utterances[0].mel.device();
        let rows = Packing::new(utterances.iter().map(LogMelFrames::time).collect(), device);
        let attention = Attention {
            heads: self.config.encoder_attention_heads,
            mask: self.chunks.map(|chunks| chunks.mask(longest, device)),
            rows: &rows,
        };
        let mut x = self.convolve(utterances) + self.positions.index_select(0, rows.positions());
        for layer in &self.layers {
            x = layer.forward(&x, &attention, adapters);
        }
        let encoded = rows.split(&self.final_norm.forward(&x));
        let cut = |(frames, utterance): (&Tensor, &LogMelFrames)| {
            frames.narrow(0, 0, utterance.time().min((utterance.valid_frames + 1) / 2))
        };
        Ok(encoded.iter().zip(utterances).map(cut).collect())
    }

    /// The two convolutions: `[tokens, d_model]`.
    fn convolve(&self, utterances: &[LogMelFrames]) -> Tensor {
        let product = |windows: Vec<Tensor>, (weight, bias): &(Tensor, Tensor)| {
            let windows = Tensor::cat(&windows, 0);
            windows.linear(&weight.flatten(1, 2), Some(bias)).gelu("none")
        };
        let of_mel = utterances
            .iter()
            .map(|utterance| windows(&utterance.mel.to_kind(self.kind()).transpose(0, 1), 1));
        let x = product(of_mel.collect(), &self.conv1);
        let frames: Vec<i64> = utterances.iter().map(LogMelFrames::frames).collect();
        let of_first = x.split_with_sizes(&frames, 0);
        product(of_first.iter().map(|x| windows(x, 2)).collect(), &self.conv2)
    }
}

/// What a convolution of width 3 reads for each of its outputs, with zeros beyond the ends.
///
/// # Shapes
/// - `x`: `[time, channels]`
/// - returns: `[ceil(time / stride), channels * 3]`
fn windows(x: &Tensor, stride: i64) -> Tensor {
    x.constant_pad_nd([0, 0, 1, 1]).unfold(0, 3, stride).flatten(1, 2)
}

impl Chunks {
    /// `[time, time]`, true where the row's frame may attend to the column's.
    fn mask(self, time: i64, device: Device) -> Tensor {
        let frame = Tensor::arange(time, (Kind::Int64, device));
        let chunk_start = frame.divide_scalar_mode(self.length, "floor") * self.length;
        let from = (&chunk_start - self.left_context).unsqueeze(1);
        let to = (chunk_start + self.length).unsqueeze(1);
        let frame = frame.unsqueeze(0);
        frame.ge_tensor(&from).logical_and(&frame.lt_tensor(&to))
    }
}

impl LayerNorm {
    fn forward(&self, x: &Tensor) -> Tensor {
        x.layer_norm(
            [self.weight.size()[0]],
            Some(&self.weight),
            Some(&self.bias),
            LAYER_NORM_EPS,
            false,
        )
    }
}

/// Who attends to whom.
struct Attention<'a> {
    heads: i64,
    /// `[longest, longest]`; nothing where a frame attends to all of its utterance.
    mask: Option<Tensor>,
    rows: &'a Packing,
}

impl Attention<'_> {
    /// Every frame attends to its own row.
    ///
    /// # Shapes
    /// - `q`, `k`, `v`: `[tokens, d_model]`
    /// - returns: `[tokens, d_model]`
    fn attend(&self, q: &Tensor, k: &Tensor, v: &Tensor) -> Tensor {
        self.rows.attend([q, k, v], |[q, k, v], padded| {
            let time = q.size()[1];
            let mask = self
                .mask
                .as_ref()
                .map(|mask| mask.narrow(0, 0, time).narrow(1, 0, time));
            let in_row = padded.then(|| self.rows.in_row().unsqueeze(1).unsqueeze(1));
            let mask = match (mask, in_row) {
                (Some(mask), Some(in_row)) => Some(in_row.logical_and(&mask)),
                (mask, in_row) => mask.or(in_row),
            };
            self.within(&q, &k, &v, mask.as_ref())
        })
    }

    /// `[batch, time, d_model]`, in and out.
    fn within(&self, q: &Tensor, k: &Tensor, v: &Tensor, mask: Option<&Tensor>) -> Tensor {
        let [q, k, v] = [q, k, v].map(|x| x.unflatten(-1, [self.heads, -1]).transpose(1, 2));
        let attended = Tensor::scaled_dot_product_attention(&q, &k, &v, mask, 0.0, false, None, false);
        attended.transpose(1, 2).flatten(2, 3)
    }
}

impl Layer {
    /// `x`: `[tokens, d_model]`.
    fn forward(&self, x: &Tensor, attention: &Attention<'_>, adapters: Option<&dyn LinearDelta>) -> Tensor {
        let rows = attention.rows;
        let normed = self.attention_norm.forward(x);
        let q = self.q_proj.forward(&normed, rows, adapters);
        let k = self.k_proj.forward(&normed, rows, adapters);
        let v = self.v_proj.forward(&normed, rows, adapters);
        let attended = attention.attend(&q, &k, &v);
        let x = x + self.out_proj.forward(&attended, rows, adapters);
        let hidden = self.fc1.forward(&self.ffn_norm.forward(&x), rows, adapters);
        &x + self.fc2.forward(&hidden.gelu("none"), rows, adapters)
    }
}
