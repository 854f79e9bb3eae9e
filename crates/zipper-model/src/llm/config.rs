//! config.json of the supported families, in one form.

use std::path::Path;

use serde::Deserialize;

use crate::ModelError;
use crate::hub;

/// What a causal LLM looks like.
#[derive(Debug, Clone, PartialEq)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "config.json has these switches, independent of each other"
)]
pub struct LlmConfig {
    /// Width of the residual stream.
    pub hidden_size: i64,
    /// Width of the MLP.
    pub intermediate_size: i64,
    /// Transformer layers.
    pub num_hidden_layers: usize,
    /// Query heads.
    pub num_attention_heads: i64,
    /// Key and value heads; divides the query heads.
    pub num_key_value_heads: i64,
    /// Width of a head.
    pub head_dim: i64,
    /// Rows of the embedding.
    pub vocab_size: i64,
    /// Added to the mean square in RMS norms.
    pub rms_norm_eps: f64,
    /// Whether the output layer is the embedding.
    pub tie_word_embeddings: bool,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// How the rotary frequencies are stretched.
    pub rope_scaling: RopeScaling,
    /// Biases on q, k and v.
    pub qkv_bias: bool,
    /// Bias on o.
    pub o_bias: bool,
    /// Biases in the MLP.
    pub mlp_bias: bool,
    /// RMS norms of queries and keys.
    pub qk_norm: bool,
    /// Token before everything, if config.json names one.
    pub bos_token_id: Option<i64>,
    /// Tokens that end a text, as far as config.json names them.
    pub eos_token_ids: Vec<i64>,
}

/// Rotary position scaling (transformers, `modeling_rope_utils.py`).
#[derive(Debug, Clone, PartialEq)]
pub enum RopeScaling {
    /// Frequencies as they are.
    Default,
    /// All frequencies divided by a factor.
    Linear {
        /// The factor.
        factor: f64,
    },
    /// Low frequencies divided, high ones kept, a ramp between (Llama 3.1).
    Llama3 {
        /// The factor of the low frequencies.
        factor: f64,
        /// Original positions divided by this is the longest wavelength of the ramp.
        low_freq_factor: f64,
        /// Original positions divided by this is the shortest.
        high_freq_factor: f64,
        /// Positions before the stretching.
        original_positions: f64,
    },
    /// A ramp over dimensions and a scaled attention (arXiv 2309.00071).
    Yarn {
        /// The factor of the stretched dimensions.
        factor: f64,
        /// Rotations at which a dimension is kept.
        beta_fast: f64,
        /// Rotations at which it is stretched in full.
        beta_slow: f64,
        /// Positions before the stretching.
        original_positions: f64,
        /// What sines and cosines are multiplied by.
        attention_factor: f64,
        /// Whether the ramp's ends are rounded to whole dimensions.
        truncate: bool,
    },
}

/// config.json as it stands there.
#[derive(Debug, Deserialize)]
struct Raw {
    model_type: String,
    hidden_size: i64,
    intermediate_size: i64,
    num_hidden_layers: usize,
    num_attention_heads: i64,
    num_key_value_heads: Option<i64>,
    head_dim: Option<i64>,
    vocab_size: i64,
    rms_norm_eps: f64,
    #[serde(default)]
    tie_word_embeddings: bool,
    rope_theta: Option<f64>,
    rope_scaling: Option<RawRope>,
    rope_parameters: Option<RawRope>,
    max_position_embeddings: i64,
    attention_bias: Option<bool>,
    #[serde(default)]
    mlp_bias: bool,
    #[serde(default)]
    use_sliding_window: bool,
    partial_rotary_factor: Option<f64>,
    hidden_act: Option<String>,
    bos_token_id: Option<i64>,
    eos_token_id: Option<TokenIds>,
}

/// `rope_scaling` of transformers 4 and `rope_parameters` of transformers 5.
#[derive(Debug, Clone, Deserialize)]
struct RawRope {
    rope_type: Option<String>,
    /// The older name of `rope_type`; some files have both.
    r#type: Option<String>,
    rope_theta: Option<f64>,
    partial_rotary_factor: Option<f64>,
    factor: Option<f64>,
    low_freq_factor: Option<f64>,
    high_freq_factor: Option<f64>,
    original_max_position_embeddings: Option<f64>,
    attention_factor: Option<f64>,
    beta_fast: Option<f64>,
    beta_slow: Option<f64>,
    mscale: Option<f64>,
    mscale_all_dim: Option<f64>,
    truncate: Option<bool>,
}

impl LlmConfig {
    /// Reads config.json.
    ///
    /// # Errors
    /// [`ModelError`] naming the key that is missing, wrong or not supported.
    pub fn read(path: &Path) -> Result<Self, ModelError> {
        let raw: Raw = hub::read_json(path)?;
        raw.resolve().map_err(|problem| ModelError::Invalid {
            path: path.to_owned(),
            problem,
        })
    }
}

impl Raw {
    fn resolve(self) -> Result<LlmConfig, String> {
        let [qkv_bias, o_bias, qk_norm] = self.family()?;
        self.check_supported()?;
        let num_key_value_heads = self.num_key_value_heads.unwrap_or(self.num_attention_heads);
        self.check_sizes(num_key_value_heads)?;
        let head_dim = self
            .head_dim
            .unwrap_or(self.hidden_size / self.num_attention_heads);
        if head_dim < 2 || head_dim % 2 != 0 {
            return Err(format!(
                "head_dim = {head_dim} must be even: rotary positions turn pairs"
            ));
        }
        let rope = self.rope();
        let rope_theta = rope
            .and_then(|rope| rope.rope_theta)
            .or(self.rope_theta)
            .unwrap_or(10_000.0);
        let rope_scaling = match rope {
            None => RopeScaling::Default,
            Some(rope) => rope.resolve(self.max_position_embeddings as f64)?,
        };
        Ok(LlmConfig {
            hidden_size: self.hidden_size,
            intermediate_size: self.intermediate_size,
            num_hidden_layers: self.num_hidden_layers,
            num_attention_heads: self.num_attention_heads,
            num_key_value_heads,
            head_dim,
            vocab_size: self.vocab_size,
            rms_norm_eps: self.rms_norm_eps,
            tie_word_embeddings: self.tie_word_embeddings,
            rope_theta,
            rope_scaling,
            qkv_bias,
            o_bias,
            mlp_bias: self.mlp_bias,
            qk_norm,
            bos_token_id: self.bos_token_id,
            eos_token_ids: self.eos_token_id.map(TokenIds::list).unwrap_or_default(),
        })
    }

    /// What the families differ in: whether there are biases on q, k and v, one on o, and norms of queries and keys.
    fn family(&self) -> Result<[bool; 3], String> {
        let attention_bias = self.attention_bias.unwrap_or(false);
        match self.model_type.as_str() {
            "llama" => Ok([attention_bias, attention_bias, false]),
            "qwen2" => Ok([true, false, false]),
            "qwen3" => Ok([attention_bias, attention_bias, true]),
            other => Err(format!(
                "model_type `{other}` is not supported; use llama, qwen2 or qwen3"
            )),
        }
    }

    fn rope(&self) -> Option<&RawRope> {
        self.rope_parameters.as_ref().or(self.rope_scaling.as_ref())
    }

    /// Refuses what the families have and this program does not.
    fn check_supported(&self) -> Result<(), String> {
        if self.use_sliding_window {
            return Err(
                "use_sliding_window: true is not supported; set it to false if texts are short".to_owned(),
            );
        }
        match self.hidden_act.as_deref() {
            None | Some("silu" | "swish") => {}
            Some(other) => return Err(format!("hidden_act `{other}` is not supported; use silu")),
        }
        let rotated = self
            .rope()
            .and_then(|rope| rope.partial_rotary_factor)
            .or(self.partial_rotary_factor);
        match rotated.filter(|part| (part - 1.0).abs() > f64::EPSILON) {
            None => Ok(()),
            Some(part) => Err(format!(
                "partial_rotary_factor = {part} is not supported; only 1 is"
            )),
        }
    }

    /// Refuses sizes that no model has.
    fn check_sizes(&self, num_key_value_heads: i64) -> Result<(), String> {
        for (key, value) in [
            ("hidden_size", self.hidden_size),
            ("intermediate_size", self.intermediate_size),
            ("num_attention_heads", self.num_attention_heads),
            ("num_key_value_heads", num_key_value_heads),
            ("vocab_size", self.vocab_size),
        ] {
            if value < 1 {
                return Err(format!("{key} = {value} must be at least 1"));
            }
        }
        if self.num_attention_heads % num_key_value_heads != 0 {
            return Err(format!(
                "num_attention_heads = {} is not a multiple of num_key_value_heads = {num_key_value_heads}",
                self.num_attention_heads
            ));
        }
        Ok(())
    }
}

/// One token id or a list of them, as `eos_token_id` may be.
#[derive(Debug, Deserialize)]
#[serde(untagged, expecting = "neither a token id nor a list of token ids")]
pub(crate) enum TokenIds {
    One(i64),
    Several(Vec<i64>),
}

impl TokenIds {
    pub(crate) fn list(self) -> Vec<i64> {
        match self {
            Self::One(id) => vec![id],
            Self::Several(ids) => ids,
        }
    }
}

impl RawRope {
    fn resolve(&self, max_positions: f64) -> Result<RopeScaling, String> {
        let kind = self
            .rope_type
            .as_ref()
            .or(self.r#type.as_ref())
            .map_or("default", String::as_str);
        let need = |value: Option<f64>, key: &str| {
            value.ok_or_else(|| format!("rope scaling `{kind}` needs the key `{key}`"))
        };
        match kind {
            "default" => Ok(RopeScaling::Default),
            "linear" => Ok(RopeScaling::Linear {
                factor: need(self.factor, "factor")?,
            }),
            "llama3" => Ok(RopeScaling::Llama3 {
                factor: need(self.factor, "factor")?,
                low_freq_factor: need(self.low_freq_factor, "low_freq_factor")?,
                high_freq_factor: need(self.high_freq_factor, "high_freq_factor")?,
                original_positions: need(
                    self.original_max_position_embeddings,
                    "original_max_position_embeddings",
                )?,
            }),
            "yarn" => {
                let factor = need(self.factor, "factor")?;
                Ok(RopeScaling::Yarn {
                    factor,
                    beta_fast: self.beta_fast.unwrap_or(32.0),
                    beta_slow: self.beta_slow.unwrap_or(1.0),
                    original_positions: self.original_max_position_embeddings.unwrap_or(max_positions),
                    attention_factor: self
                        .attention_factor
                        .unwrap_or_else(|| self.yarn_attention(factor)),
                    truncate: self.truncate.unwrap_or(true),
                })
            }
            other => Err(format!(
                "rope scaling `{other}` is not supported; supported are default, linear, llama3 and yarn"
            )),
        }
    }

    /// The attention factor that transformers infers when config.json names none.
    fn yarn_attention(&self, factor: f64) -> f64 {
        let scale = |mscale: f64| {
            if factor <= 1.0 {
                1.0
            } else {
                0.1 * mscale * factor.ln() + 1.0
            }
        };
        match (self.mscale, self.mscale_all_dim) {
            (Some(mscale), Some(all_dim)) if mscale != 0.0 && all_dim != 0.0 => {
                scale(mscale) / scale(all_dim)
            }
            _ => scale(1.0),
        }
    }
}
