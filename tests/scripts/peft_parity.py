"""What exported adapters do in transformers and PEFT, to be compared with what zipper-worker does with the same checkpoint.

Usage: peft_parity.py MODELS MANIFEST EXPORT...
  MODELS holds whisper/ and llm/. The manifest's audio is WAV, mono, 16 kHz, 16 bits. Each EXPORT is what `zipper-worker export`
  wrote: adapters, or with `--merge` the folder llm/ for one language (then only its utterances are looked at).
Prints a line of JSON for each EXPORT and utterance: the transcript by greedy search, and the negative log-likelihood of the
reference with the end of the sequence, in nats.
"""

import json
import sys
import wave
from pathlib import Path

import numpy as np
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch.nn import functional as F
from transformers import (AutoModelForCausalLM, PreTrainedTokenizerFast, WhisperConfig, WhisperFeatureExtractor,
                          WhisperForConditionalGeneration)

MAX_NEW_TOKENS = 12


def samples(path):
    with wave.open(str(path)) as file:
        assert (file.getframerate(), file.getnchannels(), file.getsampwidth()) == (16_000, 1, 2), path
        raw = np.frombuffer(file.readframes(file.getnframes()), dtype="<i2")
    return raw.astype(np.float32) / 32768


class Whisper:
    """The encoder in windows of 30 s, with an adapter for each language or without."""

    def __init__(self, folder, export, languages):
        # The decoder is not used, and the tiny model has none.
        config = WhisperConfig.from_pretrained(folder, decoder_layers=0)
        self.model = WhisperForConditionalGeneration(config).eval()
        missing, unexpected = self.model.load_state_dict(load_file(folder / "model.safetensors"), strict=False)
        assert not unexpected and not any(".encoder." in name for name in missing), (missing, unexpected)
        self.extractor = WhisperFeatureExtractor(feature_size=config.num_mel_bins)
        self.adapted = None
        for language in languages:
            if (export / language / "encoder").is_dir():
                self.adapted = load(self.adapted, self.model, export / language / "encoder", language)

    def frames(self, audio, language):
        if self.adapted is not None:
            self.adapted.set_adapter(language)
        features = self.extractor(audio, sampling_rate=16_000, return_tensors="pt").input_features
        frames = self.model.model.encoder(features).last_hidden_state[0]
        return frames[: (-(-len(audio) // 160) + 1) // 2]


def load(adapted, base, folder, name):
    """Adds an adapter to those that are there."""
    if adapted is None:
        return PeftModel.from_pretrained(base, folder, adapter_name=name).eval()
    adapted.load_adapter(folder, adapter_name=name)
    return adapted


class Projector:
    """The kind `stack`."""

    def __init__(self, folder):
        self.weights = load_file(folder / "projector.safetensors")
        about = json.loads((folder / "config.json").read_text())
        assert about["projector"]["kind"] == "stack" and about["encoder"]["context"] == "padded_30s", about
        self.stack = about["projector"]["stack"]
        self.template = about["prompt"]["template"]

    def __call__(self, frames):
        frames = F.pad(frames, (0, 0, 0, -len(frames) % self.stack))
        x = frames.reshape(-1, self.stack * frames.shape[1])
        x = F.gelu(F.linear(x, self.weights["linear1.weight"], self.weights["linear1.bias"]))
        return F.linear(x, self.weights["linear2.weight"], self.weights["linear2.bias"])


@torch.no_grad()
def look_at(models, manifest, export):
    merged = (export / "llm").is_dir()
    languages = [] if merged else sorted(path.name for path in export.iterdir() if (path / "adapter_config.json").exists())
    whisper = Whisper(models / "whisper", export, languages)
    projector = Projector(export / "projector")
    folder = export / "llm" if merged else models / "llm"
    llm = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    embed = llm.get_input_embeddings()
    adapted = None
    for language in languages:
        adapted = load(adapted, llm, export / language, language)
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
    encode = lambda text: tokenizer.encode(text, add_special_tokens=False)
    end = llm.config.eos_token_id
    for line in manifest.read_text().splitlines():
        line = json.loads(line)
        language = line["lang"]
        if not merged:
            adapted.set_adapter(language)
        speech = projector(whisper.frames(samples(manifest.parent / line["audio_filepath"]), language))
        prompt = [llm.config.bos_token_id] + encode(projector.template.replace("{lang}", language))
        inputs = torch.cat([embed(torch.tensor(prompt)), speech])
        target = torch.tensor(encode(line["text"]) + [end])
        whole = torch.cat([inputs, embed(target)])[None]
        run = llm if merged else adapted
        logits = run(inputs_embeds=whole).logits[0, len(inputs) - 1 : -1]
        nll = F.cross_entropy(logits.double(), target, reduction="sum").item()
        ids = run.generate(
            inputs_embeds=inputs[None], attention_mask=torch.ones(1, len(inputs)), do_sample=False, num_beams=1,
            max_new_tokens=MAX_NEW_TOKENS, eos_token_id=end, pad_token_id=end)[0].tolist()
        ids = ids[: ids.index(end)] if end in ids else ids
        answer = {"export": export.name, "id": line["id"], "hypothesis": tokenizer.decode(ids), "nll": nll}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    models, manifest, *exports = map(Path, sys.argv[1:])
    for export in exports:
        look_at(models, manifest, export)
