//! Tiny Hugging Face directories with random weights. Sizes differ, so that none is taken for another, but in `q_proj` and `o_proj`, which are
//! square; those of the golden files in zipper-model are not.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Value, json};

/// Tensors being made up, by name.
struct Weights {
    random: ChaCha8Rng,
    tensors: BTreeMap<String, (Vec<usize>, Vec<u8>)>,
}

impl Weights {
    fn new(seed: u64) -> Self {
        Self {
            random: ChaCha8Rng::seed_from_u64(seed),
            tensors: BTreeMap::new(),
        }
    }

    /// Values around `centre`, within the bound that PyTorch's linear layers start from.
    fn add(&mut self, name: impl Into<String>, shape: &[usize], centre: f32) {
        let fan_in: usize = shape.iter().skip(1).product();
        let bound = 1.0 / (fan_in as f32).sqrt();
        let count: usize = shape.iter().product();
        let values =
            (0..count).flat_map(|_| (centre + self.random.random_range(-bound..bound)).to_le_bytes());
        let bytes = values.collect();
        self.tensors.insert(name.into(), (shape.to_vec(), bytes));
    }

    fn add_linear(&mut self, name: &str, d_out: usize, d_in: usize, bias: bool) {
        self.add(format!("{name}.weight"), &[d_out, d_in], 0.0);
        if bias {
            self.add(format!("{name}.bias"), &[d_out], 0.0);
        }
    }

    fn add_layer_norm(&mut self, name: &str, width: usize) {
        self.add(format!("{name}.weight"), &[width], 1.0);
        self.add(format!("{name}.bias"), &[width], 0.0);
    }

    fn write(&self, folder: &Path) {
        let views = self.tensors.iter().map(|(name, (shape, bytes))| {
            (
                name,
                TensorView::new(Dtype::F32, shape.clone(), bytes).expect("shape and bytes agree"),
            )
        });
        let file = safetensors::serialize(views, None).expect("tensors can be written");
        fs::write(folder.join("model.safetensors"), file).expect("the folder is writable");
    }
}

fn write_json(folder: &Path, name: &str, value: &Value) {
    fs::write(folder.join(name), value.to_string()).expect("the folder is writable");
}

/// A Whisper directory: only its encoder, width 16, 2 layers.
pub fn write_whisper(folder: &Path, seed: u64) {
    let (width, ffn, mels, positions) = (16, 28, 80, 1500);
    fs::create_dir_all(folder).expect("the folder can be made");
    write_json(
        folder,
        "config.json",
        &json!({
            "model_type": "whisper", "architectures": ["WhisperForConditionalGeneration"], "d_model": width,
            "encoder_layers": 2, "encoder_attention_heads": 2, "encoder_ffn_dim": ffn, "num_mel_bins": mels,
            "max_source_positions": positions, "activation_function": "gelu", "scale_embedding": false,
        }),
    );
    let mut weights = Weights::new(seed);
    weights.add("model.encoder.conv1.weight", &[width, mels, 3], 0.0);
    weights.add("model.encoder.conv1.bias", &[width], 0.0);
    weights.add("model.encoder.conv2.weight", &[width, width, 3], 0.0);
    weights.add("model.encoder.conv2.bias", &[width], 0.0);
    weights.add("model.encoder.embed_positions.weight", &[positions, width], 0.0);
    for layer in 0..2 {
        let prefix = format!("model.encoder.layers.{layer}");
        for (name, bias) in [
            ("q_proj", true),
            ("k_proj", false),
            ("v_proj", true),
            ("out_proj", true),
        ] {
            weights.add_linear(&format!("{prefix}.self_attn.{name}"), width, width, bias);
        }
        weights.add_linear(&format!("{prefix}.fc1"), ffn, width, true);
        weights.add_linear(&format!("{prefix}.fc2"), width, ffn, true);
        weights.add_layer_norm(&format!("{prefix}.self_attn_layer_norm"), width);
        weights.add_layer_norm(&format!("{prefix}.final_layer_norm"), width);
    }
    weights.add_layer_norm("model.encoder.layer_norm", width);
    weights.write(folder);
}

/// Dimensions of a made-up LLM, by their names in configurations.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LlmShape {
    /// `hidden_size`.
    pub width: usize,
    /// `intermediate_size`.
    pub ffn: usize,
    /// `num_attention_heads`.
    pub heads: usize,
    /// `num_key_value_heads`.
    pub kv_heads: usize,
    /// `head_dim`.
    pub head_dim: usize,
    /// `num_hidden_layers`.
    pub layers: usize,
}

/// A Llama directory with a character-level tokenizer: width 24, 2 layers, 4 heads over 2 key-value heads.
pub fn write_llm(folder: &Path, seed: u64) {
    let shape = LlmShape {
        width: 24,
        ffn: 40,
        heads: 4,
        kv_heads: 2,
        head_dim: 6,
        layers: 2,
    };
    write_llm_of(folder, seed, shape);
}

/// The same of another size.
pub(crate) fn write_llm_of(folder: &Path, seed: u64, shape: LlmShape) {
    let LlmShape {
        width,
        ffn,
        heads,
        kv_heads,
        head_dim,
        layers,
    } = shape;
    fs::create_dir_all(folder).expect("the folder can be made");
    let special = ["<s>", "</s>", "<unk>", "<en>", "<de>", "<vi>"];
    let characters = " abcdefghijklmnopqrstuvwxyz";
    let pieces: Vec<String> = special
        .iter()
        .map(ToString::to_string)
        .chain(characters.chars().map(String::from))
        .collect();
    let vocabulary: BTreeMap<&String, usize> =
        pieces.iter().enumerate().map(|(id, piece)| (piece, id)).collect();
    let added: Vec<Value> = special
        .iter()
        .enumerate()
        .map(|(id, content)| {
            json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
                   "normalized": false, "special": true})
        })
        .collect();
    write_json(
        folder,
        "tokenizer.json",
        &json!({
            "version": "1.0", "truncation": null, "padding": null, "added_tokens": added, "normalizer": null,
            "pre_tokenizer": null, "post_processor": null, "decoder": {"type": "Fuse"},
            "model": {"type": "BPE", "dropout": null, "unk_token": "<unk>", "continuing_subword_prefix": null,
                      "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
                      "ignore_merges": false, "vocab": vocabulary, "merges": []},
        }),
    );
    write_json(
        folder,
        "tokenizer_config.json",
        &json!({"bos_token": "<s>", "eos_token": "</s>"}),
    );
    write_json(
        folder,
        "config.json",
        &json!({
            "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": pieces.len(),
            "hidden_size": width, "intermediate_size": ffn, "num_hidden_layers": layers, "num_attention_heads": heads,
            "num_key_value_heads": kv_heads, "head_dim": head_dim, "hidden_act": "silu", "rms_norm_eps": 1e-5,
            "rope_theta": 10_000.0, "max_position_embeddings": 512, "tie_word_embeddings": true,
            "attention_bias": false, "mlp_bias": false, "bos_token_id": 0, "eos_token_id": 1,
        }),
    );
    let mut weights = Weights::new(seed);
    weights.add("model.embed_tokens.weight", &[pieces.len(), width], 0.0);
    for layer in 0..layers {
        let prefix = format!("model.layers.{layer}");
        weights.add_linear(
            &format!("{prefix}.self_attn.q_proj"),
            heads * head_dim,
            width,
            false,
        );
        weights.add_linear(
            &format!("{prefix}.self_attn.k_proj"),
            kv_heads * head_dim,
            width,
            false,
        );
        weights.add_linear(
            &format!("{prefix}.self_attn.v_proj"),
            kv_heads * head_dim,
            width,
            false,
        );
        weights.add_linear(
            &format!("{prefix}.self_attn.o_proj"),
            width,
            heads * head_dim,
            false,
        );
        weights.add_linear(&format!("{prefix}.mlp.gate_proj"), ffn, width, false);
        weights.add_linear(&format!("{prefix}.mlp.up_proj"), ffn, width, false);
        weights.add_linear(&format!("{prefix}.mlp.down_proj"), width, ffn, false);
        weights.add(format!("{prefix}.input_layernorm.weight"), &[width], 1.0);
        weights.add(format!("{prefix}.post_attention_layernorm.weight"), &[width], 1.0);
    }
    weights.add("model.norm.weight", &[width], 1.0);
    weights.write(folder);
}
