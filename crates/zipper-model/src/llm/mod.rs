//! The frozen causal LLM: the Qwen2, Qwen3 and Llama families of transformers.
//!
//! Follows `modeling_llama.py`, `modeling_qwen2.py` and `modeling_qwen3.py`: RMS norm, rotary positions, grouped-query
//! attention, SwiGLU. The families differ in biases, in the norms of queries and keys, and in what config.json says.
//!
//! Activations are packed: `[tokens, hidden]`, row after row, without padding; only attention looks at rows.
//!
//! Dimensions: `tokens` of all rows, `batch` = rows, `hidden` = hidden_size, `heads`, `kv_heads`, `head_dim`, `vocab`.

mod attend;
mod cache;
mod config;
mod recompute;
mod rope;

use std::cell::OnceCell;
use std::path::Path;

use tch::{Device, Kind, Tensor};
use zipper_aten::fused;

pub use cache::KvCache;
pub use config::LlmConfig;
pub(crate) use config::TokenIds;
pub(crate) use recompute::LayerInputs;
use rope::Rope;

use crate::ModelError;
use crate::hub::{self, Weights};
use crate::linear::{Linear, LinearDelta, LoraSite, product};
use crate::packing::Packing;
use crate::param::trainable_kind;

const TARGETS: [&str; 7] = [
    "q_proj",
    "k_proj",
    "v_proj",
    "o_proj",
    "gate_proj",
    "up_proj",
    "down_proj",
];

/// See [`CausalLm::likeness`]: nats, enough to tell a token from all others of a large vocabulary.
const LIKENESS: f64 = 12.0;

/// A causal language model.
#[derive(Debug)]
pub struct CausalLm {
    config: LlmConfig,
    /// `[vocab, hidden]`.
    embedding: Tensor,
    layers: Vec<Layer>,
    final_norm: RmsNorm,
    /// `[vocab, hidden]`; the embedding itself where they are tied.
    lm_head: Tensor,
    rope: Rope,
    /// What makes likeness of products; known when it is asked for first.
    likeness_scale: OnceCell<f64>,
}

#[derive(Debug)]
struct RmsNorm {
    weight: Tensor,
    eps: f64,
}

#[derive(Debug)]
struct Layer {
    attention_norm: RmsNorm,
    attention: Attention,
    mlp_norm: RmsNorm,
    gate_proj: Linear,
    up_proj: Linear,
    down_proj: Linear,
}

#[derive(Debug)]
struct Attention {
    q_proj: Linear,
    k_proj: Linear,
    v_proj: Linear,
    o_proj: Linear,
    /// Norms of queries and keys over `head_dim`: Qwen3.
    qk_norms: Option<(RmsNorm, RmsNorm)>,
    heads: i64,
    kv_heads: i64,
    head_dim: i64,
}

impl CausalLm {
    /// Loads the Hugging Face directory `folder`, weights as `kind`.
    ///
    /// # Errors
    /// [`ModelError`] naming the file, and the key or tensor, that is missing, wrong or not supported.
    pub fn load(folder: &Path, device: Device, kind: Kind) -> Result<Self, ModelError> {
        let config = LlmConfig::read(&folder.join(hub::CONFIG))?;
        let weights = Weights::open(folder, device, kind)?;
        Self::build(config, device, |name, shape| weights.get(name, shape))
    }

    /// Builds the model out of tensors that `get` returns by their name in a Hugging Face file, with the given shape.
    ///
    /// # Errors
    /// What `get` returns.
    pub fn build(
        config: LlmConfig,
        device: Device,
        mut get: impl FnMut(&str, &[i64]) -> Result<Tensor, ModelError>,
    ) -> Result<Self, ModelError> {
        let rope = Rope::new(&config, device);
        let (hidden, vocab) = (config.hidden_size, config.vocab_size);
        let embedding = get("model.embed_tokens.weight", &[vocab, hidden])?;
        let layers = (0..config.num_hidden_layers)
            .map(|index| Layer::build(&config, index, &mut get))
            .collect::<Result<Vec<_>, _>>()?;
        let final_norm = RmsNorm {
            weight: get("model.norm.weight", &[hidden])?,
            eps: config.rms_norm_eps,
        };
        let lm_head = if config.tie_word_embeddings {
            embedding.shallow_clone()
        } else {
            get("lm_head.weight", &[vocab, hidden])?
        };
        Ok(Self {
            config,
            embedding,
            layers,
            final_norm,
            lm_head,
            rope,
            likeness_scale: OnceCell::new(),
        })
    }

    /// What config.json says.
    pub fn config(&self) -> &LlmConfig {
        &self.config
    }

    /// Element type of weights and activations.
    pub fn kind(&self) -> Kind {
        self.embedding.kind()
    }

    /// Attaches adapters to every linear layer whose name ends in one of `targets`; ids count from 0.
    ///
    /// # Errors
    /// [`ModelError::UnknownTarget`].
    pub fn lora_sites(&mut self, targets: &[String]) -> Result<Vec<LoraSite>, ModelError> {
        crate::linear::check_targets("targets", targets, &TARGETS)?;
        let mut sites = Vec::new();
        for (index, layer) in self.layers.iter_mut().enumerate() {
            for (name, linear) in layer.linears_mut() {
                linear.attach(
                    &format!("model.layers.{index}.{name}"),
                    index,
                    targets,
                    0,
                    &mut sites,
                );
            }
        }
        Ok(sites)
    }

    /// Embeddings of tokens.
    ///
    /// # Shapes
    /// - `ids`: any shape, i64
    /// - returns: that shape with `hidden` behind it
    pub fn embed(&self, ids: &Tensor) -> Tensor {
        Tensor::embedding(&self.embedding, ids, -1, false, false)
    }

    /// How much `x` is like each token's embedding: their products, in a measure in which the embedding of a token is [`LIKENESS`] more like
    /// itself than like one at a right angle to it. So what is to be like a token need not be longer than its embedding.
    ///
    /// # Shapes
    /// - `x`: `[.., hidden]`
    /// - returns: `[.., vocab]`, f32 (f64 in an f64 model)
    pub(crate) fn likeness(&self, x: &Tensor) -> Tensor {
        let scale = self.likeness_scale.get_or_init(|| {
            let of_all = self.embedding.norm().double_value(&[]);
            LIKENESS * self.config.vocab_size as f64 / of_all.powi(2)
        });
        let products = x.linear(&self.embedding, None::<&Tensor>);
        products.to_kind(trainable_kind(x.kind())) * *scale
    }

    /// Means of all token embeddings.
    ///
    /// # Shapes
    /// - `weights`: `[.., vocab]`, adding up to 1
    /// - returns: `[.., hidden]`
    pub(crate) fn mean_embeddings(&self, weights: &Tensor) -> Tensor {
        weights.to_kind(self.kind()).matmul(&self.embedding)
    }

    /// Runs the layers over packed rows, each of which attends to itself alone.
    ///
    /// # Shapes
    /// - `x`: `[tokens, hidden]`, packed as `rows` says
    /// - returns: `[tokens, hidden]`, after the final norm
    pub fn forward(&self, x: &Tensor, rows: &Packing, adapters: Option<&dyn LinearDelta>) -> Tensor {
        self.forward_and_keep(x, rows, adapters, |_, _| ())
    }

    /// Like [`CausalLm::forward`], keeping keys and values so that [`CausalLm::decode`] can go on.
    pub fn prefill(
        &self,
        x: &Tensor,
        rows: &Packing,
        adapters: Option<&dyn LinearDelta>,
    ) -> (Tensor, KvCache) {
        let mut layers = Vec::with_capacity(self.layers.len());
        let columns = |packed: &Tensor| rows.pad(packed).transpose(1, 2).contiguous();
        let hidden = self.forward_and_keep(x, rows, adapters, |k, v| layers.push((columns(k), columns(v))));
        let cache = KvCache::new(layers, rows);
        (hidden, cache)
    }

    fn forward_and_keep(
        &self,
        x: &Tensor,
        rows: &Packing,
        adapters: Option<&dyn LinearDelta>,
        mut keep: impl FnMut(&Tensor, &Tensor),
    ) -> Tensor {
        let rotation = self.rope.rotation(rows.positions(), self.kind());
        let to_own_row = attend::to_own_row(rows);
        let mut x = x.shallow_clone();
        for layer in &self.layers {
            x = layer.forward(&x, rows, &rotation, adapters, |q, k, v| {
                keep(k, v);
                to_own_row(q, k, v)
            });
        }
        self.final_norm.forward(&x)
    }

    /// One more token for each row.
    ///
    /// # Shapes
    /// - `x`: `[batch, hidden]`
    /// - returns: `[batch, hidden]`, after the final norm
    pub fn decode(&self, x: &Tensor, adapters: Option<&dyn LinearDelta>, cache: &mut KvCache) -> Tensor {
        let rotation = self.rope.rotation(cache.next_positions(), self.kind());
        let mask = cache.grow_mask();
        let (rows, caches) = cache.parts();
        let mut x = x.shallow_clone();
        for (layer, cache) in self.layers.iter().zip(caches) {
            x = layer.forward(&x, rows, &rotation, adapters, |q, k, v| {
                let (keys, values) = cache.append(k, v);
                attend::to_columns(q, &keys, &values, &mask)
            });
        }
        self.final_norm.forward(&x)
    }

    /// Scores of the next token.
    ///
    /// # Shapes
    /// - `hidden`: `[.., hidden]`
    /// - returns: `[.., vocab]`, f32 (f64 in an f64 model)
    pub fn logits(&self, hidden: &Tensor) -> Tensor {
        product(hidden, &self.lm_head, None).to_kind(trainable_kind(hidden.kind()))
    }
}

impl RmsNorm {
    /// Computed in f32, as transformers does; in f64 if the model is.
    fn forward(&self, x: &Tensor) -> Tensor {
        if fused::takes(x) && fused::takes_frozen(&self.weight) {
            return fused::rms_norm(x, &self.weight, self.eps);
        }
        let kind = x.kind();
        let x = x.to_kind(trainable_kind(kind));
        let mean_square = x.square().mean_dim(-1, true, x.kind());
        let normed = x * (mean_square + self.eps).rsqrt();
        normed.to_kind(kind) * &self.weight
    }
}

impl Layer {
    fn build(
        config: &LlmConfig,
        index: usize,
        get: &mut impl FnMut(&str, &[i64]) -> Result<Tensor, ModelError>,
    ) -> Result<Self, ModelError> {
        let (hidden, ffn, head_dim) = (config.hidden_size, config.intermediate_size, config.head_dim);
        let q_width = config.num_attention_heads * head_dim;
        let kv_width = config.num_key_value_heads * head_dim;
        let eps = config.rms_norm_eps;
        let mut norm = |name: &str, width: i64| -> Result<RmsNorm, ModelError> {
            let weight = get(&format!("model.layers.{index}.{name}.weight"), &[width])?;
            Ok(RmsNorm { weight, eps })
        };
        let attention_norm = norm("input_layernorm", hidden)?;
        let mlp_norm = norm("post_attention_layernorm", hidden)?;
        let qk_norms = if config.qk_norm {
            Some((
                norm("self_attn.q_norm", head_dim)?,
                norm("self_attn.k_norm", head_dim)?,
            ))
        } else {
            None
        };
        let mut linear = |name: &str, d_out: i64, d_in: i64, bias: bool| -> Result<Linear, ModelError> {
            let name = format!("model.layers.{index}.{name}");
            let weight = get(&format!("{name}.weight"), &[d_out, d_in])?;
            let bias = if bias {
                Some(get(&format!("{name}.bias"), &[d_out])?)
            } else {
                None
            };
            Ok(Linear {
                weight,
                bias,
                site: None,
            })
        };
        Ok(Self {
            attention_norm,
            attention: Attention {
                q_proj: linear("self_attn.q_proj", q_width, hidden, config.qkv_bias)?,
                k_proj: linear("self_attn.k_proj", kv_width, hidden, config.qkv_bias)?,
                v_proj: linear("self_attn.v_proj", kv_width, hidden, config.qkv_bias)?,
                o_proj: linear("self_attn.o_proj", hidden, q_width, config.o_bias)?,
                qk_norms,
                heads: config.num_attention_heads,
                kv_heads: config.num_key_value_heads,
                head_dim,
            },
            mlp_norm,
            gate_proj: linear("mlp.gate_proj", ffn, hidden, config.mlp_bias)?,
            up_proj: linear("mlp.up_proj", ffn, hidden, config.mlp_bias)?,
            down_proj: linear("mlp.down_proj", hidden, ffn, config.mlp_bias)?,
        })
    }

    /// The layer's linear layers, by the end of their names.
    fn linears_mut(&mut self) -> [(&'static str, &mut Linear); 7] {
        [
            ("self_attn.q_proj", &mut self.attention.q_proj),
            ("self_attn.k_proj", &mut self.attention.k_proj),
            ("self_attn.v_proj", &mut self.attention.v_proj),
            ("self_attn.o_proj", &mut self.attention.o_proj),
            ("mlp.gate_proj", &mut self.gate_proj),
            ("mlp.up_proj", &mut self.up_proj),
            ("mlp.down_proj", &mut self.down_proj),
        ]
    }

    /// `attend` makes of queries, keys and values of the tokens, `[tokens, heads or kv_heads, head_dim]` each, what the queries find.
    fn forward(
        &self,
        x: &Tensor,
        rows: &Packing,
        rotation: &rope::Rotation,
        adapters: Option<&dyn LinearDelta>,
        attend: impl FnOnce(&Tensor, &Tensor, &Tensor) -> Tensor,
    ) -> Tensor {
        let normed = self.attention_norm.forward(x);
        let x = x + self.attention.forward(&normed, rows, rotation, adapters, attend);
        let normed = self.mlp_norm.forward(&x);
        let gate = self.gate_proj.forward(&normed, rows, adapters);
        let up = self.up_proj.forward(&normed, rows, adapters);
        let gated = if fused::takes(&gate) {
            fused::swiglu(&gate, &up)
        } else {
            gate.silu() * up
        };
        &x + self.down_proj.forward(&gated, rows, adapters)
    }
}

impl Attention {
    fn forward(
        &self,
        x: &Tensor,
        rows: &Packing,
        rotation: &rope::Rotation,
        adapters: Option<&dyn LinearDelta>,
        attend: impl FnOnce(&Tensor, &Tensor, &Tensor) -> Tensor,
    ) -> Tensor {
        let split = |x: &Tensor, heads: i64| x.view([-1, heads, self.head_dim]);
        let mut q = split(&self.q_proj.forward(x, rows, adapters), self.heads);
        let mut k = split(&self.k_proj.forward(x, rows, adapters), self.kv_heads);
        let v = split(&self.v_proj.forward(x, rows, adapters), self.kv_heads);
        if let Some((q_norm, k_norm)) = &self.qk_norms {
            q = q_norm.forward(&q);
            k = k_norm.forward(&k);
        }
        let attended = attend(&rotation.apply(&q), &rotation.apply(&k), &v);
        let attended = attended.reshape([-1, self.heads * self.head_dim]);
        self.o_proj.forward(&attended, rows, adapters)
    }
}
