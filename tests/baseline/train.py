"""Training of a Speech-LLM with transformers, PEFT and DistributedDataParallel: PyTorch's side of `cargo xtask bench training`.

It is what one would run without Zipper, and it does the same work: the same models, utterances, batches, micro batches, dealing to
ranks, projector, prompt, LoRA, clipping, learning rates and AdamW, in f32; the loss is the sum over all ranks of the negative
log-likelihoods, divided by all their target tokens. What differs is how:
- rows are padded to the longest of their micro batch, in the encoder, the projector and the LLM, and scores over the vocabulary are
  computed at every position, as transformers does;
- the encoder gets windows of 30 s (`padded_30s`), which transformers' WhisperEncoder insists on, or is called layer by layer on rows as
  long as the longest (`native`); then padding is masked in convolution and attention, and frames of padding are cut off. With `cached`
  its frames were computed before the first step and lie in memory;
- with `independent`, every rank has a PEFT adapter for each language. The rows of a micro batch go through the LLM language by language,
  and DistributedDataParallel looks for parameters that were not used.
As with zipper-worker, audio is read and turned into features by the thread that trains, within the step.

Usage: torchrun --standalone --nproc-per-node N train.py PLAN --projector FILE --encoder padded_30s|native|cached
  PLAN is JSON: the resolved `config` of the run, the `prompts` by language (before and behind the speech), the learning rate (`lr`),
  and for each of the `steps` and each rank its micro batches of utterance ids. FILE is a checkpoint's shared.safetensors with the projector to begin with.
Rank 0 prints a line of JSON for each step (`step`, `seconds`, `audio_seconds`, `tokens`, `loss`), and at last `peak_kib` of every rank.
"""

import argparse
import json
import sys
import time
import wave
from contextlib import nullcontext
from functools import cache
from math import ceil, gcd
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from peft import LoraConfig, get_peft_model
from safetensors import safe_open
from torch import nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, WhisperConfig, WhisperFeatureExtractor
from transformers.models.whisper.modeling_whisper import WhisperEncoder

try:
    import soundfile
except ImportError:
    soundfile = None

SAMPLE_RATE = 16_000
HOP_LENGTH = 160
# Where the resampler's filter cuts, in periods over its length below the end of the band.
EDGE = 13.7
IGNORED = -100


def read(path, offset, duration):
    """Samples of a part of a file, mono, and their rate."""
    if soundfile is not None:
        with soundfile.SoundFile(path) as file:
            file.seek(round(offset * file.samplerate))
            samples = file.read(round(duration * file.samplerate), dtype="float32", always_2d=True)
            return samples.mean(axis=1), file.samplerate
    if Path(path).suffix != ".wav":
        sys.exit(f"`{path}` is not a WAV file: install the package soundfile")
    with wave.open(path) as file:
        assert file.getsampwidth() == 2, f"`{path}` does not have 16 bits a sample"
        rate, channels = file.getframerate(), file.getnchannels()
        file.setpos(round(offset * rate))
        raw = np.frombuffer(file.readframes(round(duration * rate)), dtype="<i2")
    return raw.reshape(-1, channels).mean(axis=1, dtype=np.float32) / 32768, rate


@cache
def low_pass(block_in, block_out):
    """What is left of the lower rate's band: a sinc in a squared Blackman-Harris window, as in zipper-data."""
    taps = block_in * ceil(1024 / block_in) * 2
    kept = min(block_in, block_out) / block_in
    # It has faded out at the end of the band.
    cutoff = kept - EDGE / taps
    phase = 2 * np.pi * np.arange(taps) / taps
    terms = enumerate([0.35875, -0.48829, 0.14128, -0.01168])
    window = sum(weight * np.cos(order * phase) for order, weight in terms) ** 2
    response = np.sinc((np.arange(taps) - taps // 2) * cutoff) * window
    return response / response.sum()


@cache
def without_large_factors(number):
    """The next number that is a product of 2, 3, 5 and 7."""
    while True:
        left = number
        for factor in (2, 3, 5, 7):
            while left % factor == 0:
                left //= factor
        if left == 1:
            return number
        number += 1


@cache
def gain(block_in, block_out, blocks):
    """What the filter makes of the spectrum of so many blocks: without its phase there is no delay."""
    bins = blocks * min(block_in, block_out) // 2 + 1
    response = np.fft.rfft(low_pass(block_in, block_out), blocks * block_in)
    return (np.abs(response)[:bins] * (block_out / block_in)).astype(np.float32)


def samples_of(line):
    """An utterance's samples at 16 kHz."""
    samples, rate = read(line["audio_filepath"], line.get("offset") or 0.0, line["duration"])
    if rate == SAMPLE_RATE:
        return samples
    common = gcd(rate, SAMPLE_RATE)
    block_in, block_out = rate // common, SAMPLE_RATE // common
    # With so much silence behind it that its end does not reach round to its beginning; more of it does not matter.
    blocks = ceil((len(samples) + len(low_pass(block_in, block_out))) / block_in)
    blocks = without_large_factors(blocks)
    kept = gain(block_in, block_out, blocks)
    spectrum = np.fft.rfft(samples, blocks * block_in)[: len(kept)] * kept
    resampled = np.fft.irfft(spectrum, blocks * block_out)
    return resampled[: round(len(samples) * SAMPLE_RATE / rate)].astype(np.float32, copy=False)


class Encoder(nn.Module):
    """Whisper's encoder, frozen: utterances in, the frames of each out."""

    def __init__(self, folder, mode):
        super().__init__()
        config = WhisperConfig.from_pretrained(folder)
        self.whisper = WhisperEncoder(config)
        prefix = "model.encoder."
        with safe_open(Path(folder) / "model.safetensors", "pt") as file:
            names = [name for name in file.keys() if name.startswith(prefix)]
            self.whisper.load_state_dict({name.removeprefix(prefix): file.get_tensor(name) for name in names})
        self.whisper.requires_grad_(False)
        self.extractor = WhisperFeatureExtractor(feature_size=config.num_mel_bins)
        self.mode = mode
        self.frames = {}

    def remember(self, lines):
        """Keeps the frames of utterances."""
        for line in lines:
            if line["id"] not in self.frames:
                self.frames[line["id"]] = self.native([samples_of(line)])[0]

    @torch.no_grad()
    def forward(self, lines):
        if self.mode == "cached":
            return [self.frames[line["id"]] for line in lines]
        audio = [samples_of(line) for line in lines]
        return self.padded(audio) if self.mode == "padded_30s" else self.native(audio)

    def features(self, audio, **padding):
        return self.extractor(audio, sampling_rate=SAMPLE_RATE, return_tensors="pt", **padding).input_features

    def padded(self, audio):
        frames = self.whisper(self.features(audio)).last_hidden_state
        # The encoder has half as many frames as the features.
        return [row[: (ceil(len(samples) / HOP_LENGTH) + 1) // 2] for row, samples in zip(frames, audio)]

    @torch.no_grad()
    def native(self, audio):
        whisper = self.whisper
        features = [self.features([samples], padding=False)[0].T for samples in audio]
        lengths = torch.tensor([len(row) for row in features])
        x = pad_sequence(features, batch_first=True).transpose(1, 2)
        x = F.gelu(whisper.conv1(x))
        # Behind its end a row has zeros, as where it ends by itself, and not what the convolution makes of padding.
        x = F.gelu(whisper.conv2(x * (torch.arange(x.shape[2]) < lengths[:, None, None])))
        x = x.transpose(1, 2)
        x = x + whisper.embed_positions.weight[: x.shape[1]]
        lengths = (lengths + 1) // 2
        mask = None
        if lengths.min() < lengths.max():
            mask = (torch.arange(x.shape[1]) < lengths[:, None])[:, None, None, :]
        for layer in whisper.layers:
            x = layer(x, mask)
        x = whisper.layer_norm(x)
        return [row[:length] for row, length in zip(x, lengths)]


class Stack(nn.Module):
    """The projector of kind `stack`: frames side by side, then an MLP."""

    def __init__(self, config, d_encoder, d_llm):
        super().__init__()
        self.stride = config["stack"]
        hidden = config["hidden"] or d_encoder
        self.linear1 = nn.Linear(self.stride * d_encoder, hidden)
        self.linear2 = nn.Linear(hidden, d_llm)

    def forward(self, frames, lengths):
        rows, time, width = frames.shape
        frames = F.pad(frames, (0, 0, 0, -time % self.stride))
        return self.linear2(F.gelu(self.linear1(frames.reshape(rows, -1, self.stride * width))))


class Conv(nn.Module):
    """The projector of kind `conv`: two convolutions and two linear layers."""

    stride = 4

    def __init__(self, config, d_encoder, d_llm):
        super().__init__()
        self.conv1 = nn.Conv1d(d_encoder, d_encoder, 3, padding=1)
        self.conv2 = nn.Conv1d(d_encoder, self.stride * d_encoder, 3, stride=self.stride, padding=1)
        self.linear1 = nn.Linear(self.stride * d_encoder, d_encoder)
        self.linear2 = nn.Linear(d_encoder, d_llm)
        self.norm = nn.LayerNorm(d_llm)

    def forward(self, frames, lengths):
        x = F.gelu(self.conv1(frames.transpose(1, 2)))
        # As in the encoder: an utterance is projected as if it were alone.
        x = self.conv2(x * (torch.arange(x.shape[2]) < lengths[:, None, None])).transpose(1, 2)
        return self.norm(F.relu(self.linear2(F.relu(self.linear1(x)))))


class Text:
    """The tokens around the speech: `[bos][prompt up to the speech][speech][prompt behind it][text][eos]`."""

    def __init__(self, folder, llm, prompts):
        self.tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
        about = folder / "tokenizer_config.json"
        special = json.loads(about.read_text()) if about.exists() else None
        bos = [llm.bos_token_id] if special is None else self.ids(special.get("bos_token"))
        eos = self.ids((special or {}).get("eos_token")) or [llm.eos_token_id]
        self.around = {
            language: (bos + self.encode(before), self.encode(after)) for language, (before, after) in prompts.items()}
        self.eos = eos

    def ids(self, token):
        """The id of a special token, which is a string or an object that holds one; none without a token."""
        text = token["content"] if isinstance(token, dict) else token
        return [] if text is None else [self.tokenizer.convert_tokens_to_ids(text)]

    def encode(self, text):
        return self.tokenizer.encode(text, add_special_tokens=False)

    def target(self, line):
        return self.encode(line["text"].strip()) + self.eos


class SpeechLlm(nn.Module):
    """Utterances in, the sum of the negative log-likelihoods of their target tokens out."""

    def __init__(self, config, prompts, mode, projector):
        super().__init__()
        model, adapter = config["model"], config["adapter"]
        self.encoder = Encoder(model["encoder"]["path"], mode)
        llm = AutoModelForCausalLM.from_pretrained(model["llm"]["path"], dtype=torch.float32)
        self.text = Text(Path(model["llm"]["path"]), llm.config, prompts)
        kind = {"stack": Stack, "conv": Conv}[model["projector"]["kind"]]
        self.projector = kind(model["projector"], self.encoder.whisper.config.d_model, llm.config.hidden_size)
        with safe_open(projector, "pt") as file:
            names = {name: name.removeprefix("projector.") for name in file.keys() if name.startswith("projector.")}
            self.projector.load_state_dict({name: file.get_tensor(key) for key, name in names.items()})
        lora = LoraConfig(
            r=adapter["rank"], lora_alpha=adapter["alpha"], lora_dropout=adapter["dropout"],
            target_modules=adapter["targets"], task_type="CAUSAL_LM")
        shared = adapter["variant"] == "shared"
        self.adapters = ["shared"] if shared else config["data"]["languages"]
        self.llm = get_peft_model(llm, lora, adapter_name=self.adapters[0])
        for name in self.adapters[1:]:
            self.llm.add_adapter(name, lora)
        self.by_language = not shared
        self.llm.set_requires_grad(self.adapters)
        self.train()
        self.encoder.eval()

    def forward(self, lines):
        if not lines:
            return 0.0 * sum(param.sum() for param in self.parameters() if param.requires_grad)
        frames = self.encoder(lines)
        if not self.by_language:
            return self.nll(lines, frames)
        total = torch.zeros(())
        for language in sorted({line["lang"] for line in lines}):
            rows = [row for row, line in enumerate(lines) if line["lang"] == language]
            self.llm.set_adapter(language)
            total = total + self.nll([lines[row] for row in rows], [frames[row] for row in rows])
        # `set_adapter` freezes all other adapters, and a frozen one takes no gradient in the backward pass.
        self.llm.set_requires_grad(self.adapters)
        return total

    def nll(self, lines, frames):
        embed = self.llm.get_input_embeddings()
        lengths = torch.tensor([len(row) for row in frames])
        speech = self.projector(pad_sequence(frames, batch_first=True), lengths)
        inputs, labels = [], []
        for line, row, length in zip(lines, speech, lengths.tolist()):
            (before, after), target = self.text.around[line["lang"]], self.text.target(line)
            row = row[: ceil(length / self.projector.stride)]
            head, tail = (embed(torch.tensor(ids, dtype=torch.long)) for ids in (before, after + target))
            inputs.append(torch.cat([head, row, tail]))
            ignored = [IGNORED] * (len(before) + len(row) + len(after))
            labels.append(torch.tensor(ignored + target))
        mask = pad_sequence([torch.ones(len(row), dtype=torch.long) for row in labels], batch_first=True)
        inputs = pad_sequence(inputs, batch_first=True)
        labels = pad_sequence(labels, batch_first=True, padding_value=IGNORED)
        logits = self.llm(inputs_embeds=inputs, attention_mask=mask, use_cache=False).logits
        return F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORED, reduction="sum")


def load_manifests(paths):
    """The utterances of manifests by id, with absolute paths."""
    lines = {}
    for path in map(Path, paths):
        for line in path.read_text().splitlines():
            line = json.loads(line)
            line["audio_filepath"] = str(path.parent / line["audio_filepath"])
            lines.setdefault(line["id"], line)
    return lines


def optimizer_of(model, config, lr):
    """AdamW with weight decay on matrices only."""
    trainable = [param for param in model.parameters() if param.requires_grad]
    decay = [param for param in trainable if param.ndim > 1]
    no_decay = [param for param in trainable if param.ndim <= 1]
    groups = [{"params": decay, "weight_decay": config["weight_decay"]}, {"params": no_decay, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=lr, betas=tuple(config["betas"]), eps=config["eps"])


def train_step(parallel, optimizer, micro_batches, clip):
    """One optimizer step; the tokens and the loss of all ranks."""
    model, world = parallel.module, dist.get_world_size()
    tokens = torch.tensor(sum(len(model.text.target(line)) for lines in micro_batches for line in lines))
    dist.all_reduce(tokens)
    total = torch.zeros((), dtype=torch.float64)
    # A rank without utterances takes part nevertheless.
    micro_batches = micro_batches or [[]]
    for index, lines in enumerate(micro_batches):
        last = index + 1 == len(micro_batches)
        with nullcontext() if last else parallel.no_sync():
            nll = parallel(lines)
            # DistributedDataParallel averages over the ranks.
            (nll * world / tokens).backward()
        total += nll.detach()
    nn.utils.clip_grad_norm_([param for group in optimizer.param_groups for param in group["params"]], clip or float("inf"))
    optimizer.step()
    optimizer.zero_grad()
    dist.all_reduce(total)
    return tokens.item(), (total / tokens).item()


def peak_kib():
    """The most memory that this process ever had."""
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM:"))


def main(arguments):
    plan = json.loads(arguments.plan.read_text())
    config, steps = plan["config"], plan["steps"]
    assert config["adapter"]["variant"] in ("shared", "independent"), config["adapter"]["variant"]
    assert config["model"]["prompt"]["kind"] == "plain" and config["model"]["dtype"] == "f32", config["model"]
    dist.init_process_group("gloo")
    rank, world = dist.get_rank(), dist.get_world_size()
    assert all(len(hands) == world for hands in steps), "the plan is for another number of processes"
    torch.manual_seed(config["seed"])
    model = SpeechLlm(config, plan["prompts"], arguments.encoder, arguments.projector)
    parallel = DistributedDataParallel(model, find_unused_parameters=model.by_language)
    optimizer = optimizer_of(model, config["training"]["optimizer"], plan["lr"])
    corpus = load_manifests(config["data"]["train"])
    if arguments.encoder == "cached":
        model.encoder.remember(corpus[id] for hands in steps for ids in hands[rank] for id in ids)
        dist.barrier()
    for number, hands in enumerate(steps, start=1):
        begun = time.perf_counter()
        micro_batches = [[corpus[id] for id in ids] for ids in hands[rank]]
        tokens, loss = train_step(parallel, optimizer, micro_batches, config["training"]["clip_grad_norm"])
        seconds = time.perf_counter() - begun
        audio_seconds = sum(corpus[id]["duration"] for hand in hands for ids in hand for id in ids)
        if rank == 0:
            line = {"step": number, "seconds": seconds, "audio_seconds": audio_seconds, "tokens": tokens, "loss": loss}
            print(json.dumps(line), flush=True)
    peaks = [None] * world
    dist.all_gather_object(peaks, peak_kib())
    if rank == 0:
        print(json.dumps({"peak_kib": peaks, "soundfile": soundfile is not None}), flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("plan", type=Path)
    parser.add_argument("--projector", type=Path, required=True)
    parser.add_argument("--encoder", choices=["padded_30s", "native", "cached"], required=True)
    main(parser.parse_args())
