"""One optimizer step of a Speech-LLM with transformers, PEFT and DistributedDataParallel: PyTorch's side of
`cargo xtask bench startup`. Frozen Whisper encoder -> projector -> causal LLM with LoRA, gradients summed over Gloo.

It does what `zipper-launch` does until its first step, and leaves out what only `zipper-launch` does: no audio is checked
beforehand, nothing is supervised, nothing is stored.

Usage: torchrun --standalone --nproc-per-node N startup.py FOLDER
  FOLDER holds whisper/, llm/ and corpus/train.jsonl. Rank 0 prints a line of JSON once its first step is complete: the
  loss, and when each part was done, in seconds since the process began to run this file.
"""

import time

BEGAN = time.monotonic()

import json
import sys
import wave
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

TORCH_IMPORTED = time.monotonic()

from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, WhisperConfig, WhisperFeatureExtractor
from transformers.models.whisper.modeling_whisper import WhisperEncoder

ALL_IMPORTED = time.monotonic()

# As in the configuration of zipper-launch's side.
BATCH_SECONDS = 4.0
STACK, HIDDEN = 5, 20
RANK, ALPHA = 4, 8
LEARNING_RATE = 2e-3
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
SAMPLE_RATE = 16_000
IGNORED = -100


class SpeechLlm(nn.Module):
    """Speech and text in, the sum of the transcript tokens' losses out."""

    def __init__(self, folder):
        super().__init__()
        config = WhisperConfig.from_pretrained(folder / "whisper")
        self.encoder = WhisperEncoder(config)
        weights = load_file(folder / "whisper/model.safetensors")
        prefix = "model.encoder."
        self.encoder.load_state_dict({name.removeprefix(prefix): weight for name, weight in weights.items()})
        self.encoder.requires_grad_(False)
        llm = AutoModelForCausalLM.from_pretrained(folder / "llm", dtype=torch.float32)
        lora = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=TARGETS, task_type="CAUSAL_LM")
        self.llm = get_peft_model(llm, lora)
        self.projector = nn.Sequential(
            nn.Linear(STACK * config.d_model, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, llm.config.hidden_size))

    def forward(self, features, num_frames, tokens, prompt_length):
        with torch.no_grad():
            frames = self.encoder(features).last_hidden_state
        embed = self.llm.get_input_embeddings()
        inputs, labels = [], []
        for row, length, text in zip(frames, num_frames, tokens):
            whole = length // STACK * STACK
            speech = self.projector(row[:whole].reshape(-1, STACK * row.shape[1]))
            text = torch.tensor(text)
            inputs.append(torch.cat([embed(text[:prompt_length]), speech, embed(text[prompt_length:])]))
            ignored = torch.full((prompt_length + len(speech),), IGNORED)
            labels.append(torch.cat([ignored, text[prompt_length:]]))
        mask = nn.utils.rnn.pad_sequence([torch.ones(len(row)) for row in labels], batch_first=True)
        inputs = nn.utils.rnn.pad_sequence(inputs, batch_first=True)
        labels = nn.utils.rnn.pad_sequence(labels, batch_first=True, padding_value=IGNORED)
        logits = self.llm(inputs_embeds=inputs, attention_mask=mask).logits
        return F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), reduction="sum")


def samples(path):
    """An utterance's samples at 16 kHz."""
    with wave.open(str(path)) as file:
        rate = file.getframerate()
        raw = np.frombuffer(file.readframes(file.getnframes()), dtype="<i2")
    audio = torch.from_numpy(raw.astype(np.float32) / 32768)
    if rate == SAMPLE_RATE:
        return audio.numpy()
    length = round(len(audio) * SAMPLE_RATE / rate)
    return F.interpolate(audio[None, None], size=length, mode="linear")[0, 0].numpy()


def main(folder):
    dist.init_process_group("gloo")
    rank, world = dist.get_rank(), dist.get_world_size()
    joined = time.monotonic()

    torch.manual_seed(5)
    model = SpeechLlm(folder)
    parallel = DistributedDataParallel(model)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=LEARNING_RATE)
    extractor = WhisperFeatureExtractor(feature_size=model.encoder.config.num_mel_bins)
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(folder / "llm/tokenizer.json"))
    built = time.monotonic()

    lines = [json.loads(line) for line in (folder / "corpus/train.jsonl").read_text().splitlines()]
    batch, seconds = [], 0.0
    for index in torch.randperm(len(lines)).tolist():
        batch.append(lines[index])
        seconds += lines[index]["duration"]
        if seconds >= BATCH_SECONDS and len(batch) >= world:
            break
    own = batch[rank::world]
    audio = [samples(folder / "corpus" / line["audio_filepath"]) for line in own]
    features = extractor(audio, sampling_rate=SAMPLE_RATE, return_tensors="pt").input_features
    # The encoder has half as many frames as the features, which have 100 a second.
    num_frames = [len(row) // 320 for row in audio]
    prompt = {line["id"]: tokenizer.encode(f"<s><{line['lang']}>") for line in own}
    tokens = [prompt[line["id"]] + tokenizer.encode(line["text"] + "</s>") for line in own]
    prompt_length = len(prompt[own[0]["id"]])
    totals = torch.tensor([float(sum(len(row) - prompt_length for row in tokens)), 0.0])

    loss = parallel(features, num_frames, tokens, prompt_length)
    totals[1] = loss.detach()
    dist.all_reduce(totals)
    # DDP averages over the ranks; the loss is a mean over the tokens of all of them.
    (loss * world / totals[0]).backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    stepped = time.monotonic()
    if rank == 0:
        parts = {"torch": TORCH_IMPORTED, "imports": ALL_IMPORTED, "joined": joined, "built": built, "stepped": stepped}
        line = {name: moment - BEGAN for name, moment in parts.items()} | {"loss": (totals[1] / totals[0]).item()}
        print(json.dumps(line), flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
