//! Goal: a broken model directory is refused as a fault of configuration, in a message that names file, key or tensor.
//!
//! Method: golden directories are copied and broken in one place.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};
use tch::{Device, Kind};
use tempfile::TempDir;
use zipper_config::schema::{EncoderContext, PromptConfig};
use zipper_model::ModelError;
use zipper_model::encoder::{LogMelFrames, WhisperEncoder};
use zipper_model::llm::{CausalLm, LlmConfig};
use zipper_model::prompt::Prompt;

use crate::support::{encoder_config, models, names, tensors};

fn copy(name: &str) -> TempDir {
    let copy = TempDir::new().expect("a temporary folder");
    for entry in fs::read_dir(models().join(name)).expect("the folder is committed") {
        let entry = entry.expect("it can be listed");
        fs::copy(entry.path(), copy.path().join(entry.file_name())).expect("it can be copied");
    }
    copy
}

fn set(folder: &Path, key: &str, value: Value) {
    let path = folder.join("config.json");
    let mut config: Value =
        serde_json::from_slice(&fs::read(&path).expect("it is there")).expect("it is JSON");
    config[key] = value;
    fs::write(path, config.to_string()).expect("it can be written");
}

fn llm(folder: &Path) -> Result<CausalLm, ModelError> {
    CausalLm::load(folder, Device::Cpu, Kind::Float)
}

fn whisper(folder: &Path) -> Result<WhisperEncoder, ModelError> {
    let config = encoder_config(folder, EncoderContext::Native);
    WhisperEncoder::load(&config, Device::Cpu, Kind::Float)
}

/// The message must hold every part, and the fault must be one of configuration.
fn refused<T: std::fmt::Debug>(result: Result<T, ModelError>, parts: &[&str]) {
    let error = result.expect_err("the directory is broken");
    let message = error.to_string();
    assert!(error.is_config(), "{message}");
    for part in parts {
        assert!(message.contains(part), "`{part}` is missing in: {message}");
    }
}

/// Goal: weights are found by any name, with no index beside them, as where a download was put together by hand.
#[test]
fn weights_may_have_any_name() {
    let folder = copy("qwen3");
    let renamed = folder.path().join("weights.safetensors");
    fs::rename(folder.path().join("model.safetensors"), renamed).expect("it is there");
    llm(folder.path()).expect("it can be read");
    let folder = copy("llama_sharded");
    fs::remove_file(folder.path().join("model.safetensors.index.json")).expect("it is there");
    llm(folder.path()).expect("all parts are read");
}

#[test]
fn missing_files_are_named() {
    for file in ["config.json", "model.safetensors"] {
        let folder = copy("qwen3");
        fs::remove_file(folder.path().join(file)).expect("it is there");
        refused(llm(folder.path()), &[file, "No such file"]);
        let folder = copy("whisper");
        fs::remove_file(folder.path().join(file)).expect("it is there");
        refused(whisper(folder.path()), &[file, "No such file"]);
    }
    let folder = copy("llama_sharded");
    fs::remove_file(folder.path().join("model-00003-of-00007.safetensors")).expect("it is there");
    refused(
        llm(folder.path()),
        &["model-00003-of-00007.safetensors", "No such file"],
    );

    let folder = copy("qwen3");
    fs::remove_file(folder.path().join("tokenizer.json")).expect("it is there");
    let config = LlmConfig::read(&folder.path().join("config.json")).expect("it is good");
    refused(
        Prompt::load(folder.path(), &PromptConfig::default(), &config),
        &["tokenizer.json", "No such file"],
    );
}

#[test]
fn a_wrong_shape_names_tensor_and_both_shapes() {
    let folder = copy("qwen2");
    set(folder.path(), "intermediate_size", json!(39));
    refused(
        llm(folder.path()),
        &[
            "model.safetensors",
            "model.layers.0.mlp.gate_proj.weight",
            "[35, 36]",
            "[39, 36]",
            "config.json",
        ],
    );
    let folder = copy("whisper");
    set(folder.path(), "num_mel_bins", json!(80));
    refused(
        whisper(folder.path()),
        &["model.encoder.conv1.weight", "[12, 7, 3]", "[12, 80, 3]"],
    );
}

#[test]
fn a_missing_tensor_is_named() {
    let folder = copy("qwen3");
    set(folder.path(), "tie_word_embeddings", json!(false));
    refused(llm(folder.path()), &["model.safetensors", "lm_head.weight"]);

    // It may belong into any of the files.
    let folder = copy("llama_sharded");
    set(folder.path(), "num_hidden_layers", json!(99));
    refused(
        llm(folder.path()),
        &[
            "model.safetensors.index.json",
            "there is no tensor `model.layers.",
        ],
    );
}

/// A download that was cut off may leave an index without files.
#[test]
fn an_index_that_names_no_file_is_refused() {
    let folder = copy("llama_sharded");
    let index = folder.path().join("model.safetensors.index.json");
    fs::write(index, r#"{"weight_map": {}}"#).expect("it can be written");
    refused(
        llm(folder.path()),
        &["model.safetensors.index.json", "`weight_map` names no file"],
    );
}

#[test]
fn cut_off_weights_are_noticed() {
    let whole = fs::read(models().join("qwen3/model.safetensors")).expect("it is committed");
    for length in [0, 5, 100, whole.len() / 2, whole.len() - 1] {
        let folder = copy("qwen3");
        fs::write(folder.path().join("model.safetensors"), &whole[..length]).expect("it can be written");
        refused(
            llm(folder.path()),
            &[
                "model.safetensors",
                "not a whole safetensors file, was it cut off?",
            ],
        );
    }
}

#[test]
fn what_is_not_supported_says_what_is() {
    for (key, value, parts) in [
        (
            "model_type",
            json!("gpt2"),
            &["`gpt2`", "llama, qwen2", "qwen3"][..],
        ),
        ("hidden_act", json!("gelu"), &["hidden_act", "`gelu`", "silu"]),
        (
            "rope_parameters",
            json!({"rope_type": "longrope", "rope_theta": 1e4}),
            &["`longrope`", "yarn"],
        ),
        (
            "rope_parameters",
            json!({"rope_type": "linear", "rope_theta": 1e4}),
            &["`linear`", "`factor`"],
        ),
        (
            "num_key_value_heads",
            json!(4),
            &["num_attention_heads = 6", "num_key_value_heads = 4"],
        ),
        ("num_attention_heads", json!(0), &["num_attention_heads = 0"]),
        ("head_dim", json!(7), &["head_dim = 7", "even"]),
        (
            "partial_rotary_factor",
            json!(0.5),
            &["partial_rotary_factor = 0.5"],
        ),
        ("use_sliding_window", json!(true), &["use_sliding_window"]),
    ] {
        let folder = copy("qwen3");
        set(folder.path(), key, value);
        let parts: Vec<&str> = parts.iter().copied().chain(["config.json"]).collect();
        refused(llm(folder.path()), &parts);
    }
    let folder = copy("whisper");
    set(folder.path(), "model_type", json!("wav2vec2"));
    refused(
        whisper(folder.path()),
        &["`wav2vec2`", "`whisper`", "config.json"],
    );
}

#[test]
fn a_bad_config_json_names_the_key() {
    let folder = copy("qwen3");
    set(folder.path(), "vocab_size", json!("many"));
    refused(llm(folder.path()), &["config.json", "vocab_size", "many"]);
    let folder = copy("qwen3");
    set(folder.path(), "hidden_size", Value::Null);
    refused(llm(folder.path()), &["config.json", "hidden_size"]);
    let folder = copy("qwen3");
    fs::write(folder.path().join("config.json"), "{").expect("it can be written");
    refused(llm(folder.path()), &["config.json", "line 1"]);
}

/// With none of them a text would end by its length alone.
#[test]
fn ends_of_texts_that_are_no_token_ids_are_refused() {
    let problem = "`eos_token_id`: neither a token id nor a list of token ids";
    for wrong in [json!("2"), json!(["</s>"]), json!([1, 2.5])] {
        let folder = copy("qwen3");
        set(folder.path(), "eos_token_id", wrong.clone());
        refused(llm(folder.path()), &["config.json", problem]);

        let folder = copy("qwen3");
        let generation = json!({"eos_token_id": wrong});
        fs::write(
            folder.path().join("generation_config.json"),
            generation.to_string(),
        )
        .expect("it can be written");
        let config = LlmConfig::read(&folder.path().join("config.json")).expect("it is good");
        refused(
            Prompt::load(folder.path(), &PromptConfig::default(), &config),
            &["generation_config.json", problem],
        );
    }
}

#[test]
fn unknown_targets_list_the_choices() {
    let mut model = llm(&models().join("qwen3")).expect("a good directory");
    refused(
        model.lora_sites(&names(&["q_proj", "qproj"])),
        &["adapter.targets", "`qproj`", "gate_proj"],
    );
    let mut model = whisper(&models().join("whisper")).expect("a good directory");
    refused(
        model.lora_sites(&names(&["o_proj"]), 0),
        &["adapter.encoder_targets", "`o_proj`", "out_proj"],
    );
}

#[test]
fn a_tokenizer_of_another_model_is_noticed() {
    let mut config = LlmConfig::read(&models().join("qwen3/config.json")).expect("it is good");
    config.vocab_size = 20;
    let prompt =
        Prompt::load(&models().join("qwen3"), &PromptConfig::default(), &config).expect("eos is known");
    assert_eq!(prompt.encode("abc").expect("known tokens"), [9, 10, 11]);
    refused(
        prompt.encode("xyz"),
        &["`xyz`", "token 32", "20 tokens", "tokenizer.json"],
    );
    config.vocab_size = 1;
    refused(
        Prompt::load(&models().join("qwen3"), &PromptConfig::default(), &config),
        &["config.json", "vocab_size = 1", "eos"],
    );
}

/// Too long an utterance is a fault of the data, not of the directory.
#[test]
fn more_frames_than_positions_are_refused() {
    let encoder = whisper(&models().join("whisper")).expect("a good directory");
    let mel = &tensors("whisper")["mel"];
    let too_long = LogMelFrames {
        mel: mel.repeat([1, 3]),
        valid_frames: 141,
    };
    let error = encoder.encode(&[too_long], None).expect_err("only 60 positions");
    assert_eq!(
        error.to_string(),
        "71 encoder frames are more than the 60 positions of the encoder (50 a second)"
    );
}
