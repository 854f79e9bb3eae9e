//! The Hugging Face directory of a character-level Llama: configuration, tokenizer and weights as transformers reads them.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::path::Path;

use anyhow::Context;
use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Map, Value, json};
use tch::{Kind, Tensor};

const END_OF_TEXT: &str = "<|endoftext|>";
const END_OF_TEXT_ID: usize = 0;
const UNKNOWN: &str = "<unk>";
const MAX_POSITIONS: usize = 1024;

/// Size of the model.
pub(crate) struct Shape {
    pub(crate) hidden: usize,
    pub(crate) ffn: usize,
    pub(crate) layers: usize,
    pub(crate) heads: usize,
    pub(crate) kv_heads: usize,
}

/// What the tokenizer is made of.
pub(crate) struct Vocabulary {
    special: Vec<String>,
    characters: Vec<char>,
}

impl Vocabulary {
    /// End of text, unknown, one token `<|xx|>` for each language, then the characters.
    pub(crate) fn new<'a>(languages: impl Iterator<Item = &'a String>, characters: &BTreeSet<char>) -> Self {
        let mut special = vec![END_OF_TEXT.to_owned(), UNKNOWN.to_owned()];
        special.extend(languages.map(|lang| format!("<|{lang}|>")));
        Self {
            special,
            characters: characters.iter().copied().collect(),
        }
    }

    fn len(&self) -> usize {
        self.special.len() + self.characters.len()
    }

    /// A byte-pair encoding without a single merge: every character is a token.
    fn tokenizer(&self) -> Value {
        let added: Vec<Value> = self
            .special
            .iter()
            .enumerate()
            .map(|(id, content)| {
                json!({
                    "id": id,
                    "content": content,
                    "single_word": false,
                    "lstrip": false,
                    "rstrip": false,
                    "normalized": false,
                    "special": true,
                })
            })
            .collect();
        let characters = self.characters.iter().map(char::to_string);
        let ids: Map<String, Value> = self
            .special
            .iter()
            .cloned()
            .chain(characters)
            .enumerate()
            .map(|(id, token)| (token, json!(id)))
            .collect();
        json!({
            "version": "1.0",
            "truncation": null,
            "padding": null,
            "added_tokens": added,
            "normalizer": { "type": "NFC" },
            "pre_tokenizer": null,
            "post_processor": null,
            "decoder": { "type": "Fuse" },
            "model": {
                "type": "BPE",
                "dropout": null,
                "unk_token": UNKNOWN,
                "continuing_subword_prefix": null,
                "end_of_word_suffix": null,
                "fuse_unk": false,
                "byte_fallback": false,
                "vocab": ids,
                "merges": [],
            },
        })
    }
}

/// Writes everything but the weights.
pub(crate) fn write_description(folder: &Path, shape: &Shape, vocabulary: &Vocabulary) -> anyhow::Result<()> {
    let config = json!({
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "torch_dtype": "float32",
        "hidden_act": "silu",
        "hidden_size": shape.hidden,
        "intermediate_size": shape.ffn,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "max_position_embeddings": MAX_POSITIONS,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "vocab_size": vocabulary.len(),
        "tie_word_embeddings": true,
        "attention_bias": false,
        "mlp_bias": false,
        "bos_token_id": null,
        "eos_token_id": END_OF_TEXT_ID,
        "pad_token_id": END_OF_TEXT_ID,
    });
    let tokenizer_config = json!({
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": END_OF_TEXT,
        "pad_token": END_OF_TEXT,
        "unk_token": UNKNOWN,
        "model_max_length": MAX_POSITIONS,
        "clean_up_tokenization_spaces": false,
    });
    let generation_config = json!({ "eos_token_id": END_OF_TEXT_ID, "pad_token_id": END_OF_TEXT_ID });
    for (name, value) in [
        ("config.json", config),
        ("tokenizer.json", vocabulary.tokenizer()),
        ("tokenizer_config.json", tokenizer_config),
        ("generation_config.json", generation_config),
    ] {
        let path = folder.join(name);
        fs::write(&path, format!("{value:#}\n"))
            .with_context(|| format!("cannot write `{}`", path.display()))?;
    }
    Ok(())
}

/// Writes model.safetensors, f32.
pub(crate) fn write_weights(folder: &Path, tensors: &BTreeMap<String, Tensor>) -> anyhow::Result<()> {
    let bytes = tensors
        .iter()
        .map(|(name, tensor)| Ok((name, tensor.size(), float_bytes(tensor)?)))
        .collect::<anyhow::Result<Vec<_>>>()?;
    let views = bytes
        .iter()
        .map(|(name, size, bytes)| {
            let shape = size.iter().map(|&size| size as usize).collect();
            Ok((*name, TensorView::new(Dtype::F32, shape, bytes)?))
        })
        .collect::<anyhow::Result<Vec<_>>>()?;
    // transformers refuses files that do not say who wrote the tensors.
    let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    let path = folder.join("model.safetensors");
    safetensors::serialize_to_file(views, Some(metadata), &path)
        .with_context(|| format!("cannot write `{}`", path.display()))
}

fn float_bytes(tensor: &Tensor) -> anyhow::Result<Vec<u8>> {
    let values = Vec::<f32>::try_from(tensor.detach().to_kind(Kind::Float).contiguous().view(-1))?;
    Ok(values.iter().flat_map(|value| value.to_le_bytes()).collect())
}
