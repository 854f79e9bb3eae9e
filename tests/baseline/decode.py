"""Greedy decoding of a Speech-LLM with transformers and PEFT: PyTorch's side of `cargo xtask bench decoding`.

The same models, prompts, encoder outputs, projector and adapters as on Zipper's side, in f32. Embeddings of prompt and speech are padded
on the left, and `generate` goes on from them with its KV cache. Without an adapter it is the plain model, which costs what a model
costs into whose weights an adapter was merged. One adapter for all is active in all layers; with an adapter for each language the rows
of a batch have their own (`adapter_names`).

Usage: decode.py PLAN --tensors FILE
  PLAN is JSON: the resolved `config` of the run, the `prompts` by language (before and behind the speech), the number of `threads`,
  the `languages` of the utterances, the names of `adapters` (none, `shared`, or one for each language) and of the layers that they adapt (`sites`).
  FILE is safetensors: `frames.<n>` of each utterance, `projector.*`, and `lora.<adapter>.<site>.A` and `.B`.
  Each line of stdin is a JSON object with `batches` of places of utterances and with `max_new_tokens`. Its answer is a line of JSON: the
  `seconds` that decoding took, and the `tokens` of each utterance without the one that ended them. If it has `leads`, so has the answer:
  how far each token's score was ahead of the next best.
"""

import argparse
import json
import sys
import time
from math import ceil
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from torch.nn.utils.rnn import pad_sequence
from train import Conv, Stack, Text
from transformers import AutoModelForCausalLM


def ids(value):
    """Token ids of a key that holds one, several or none."""
    if value is None:
        return []
    return list(value) if isinstance(value, (list, tuple)) else [value]


class Decoder:
    def __init__(self, plan, tensors):
        config, self.languages = plan["config"], plan["languages"]
        model, lora = config["model"], config["adapter"]
        folder = Path(model["llm"]["path"])
        llm = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        text = Text(folder, llm.config, plan["prompts"])
        self.around = {
            language: [torch.tensor(tokens, dtype=torch.long) for tokens in around] for language, around in text.around.items()}
        stops = ids(llm.generation_config.eos_token_id) + ids(llm.config.eos_token_id) + text.eos
        self.stops = sorted(set(stops))
        self.frames = [tensors[f"frames.{place}"] for place in range(len(self.languages))]
        parameters = {key.removeprefix("projector."): value for key, value in tensors.items() if key.startswith("projector.")}
        kind = {"stack": Stack, "conv": Conv}[model["projector"]["kind"]]
        self.projector = kind(model["projector"], self.frames[0].shape[1], llm.config.hidden_size)
        self.projector.load_state_dict(parameters)
        self.embed = llm.get_input_embeddings()
        self.adapters = plan["adapters"]
        if self.adapters:
            settings = LoraConfig(
                r=lora["rank"], lora_alpha=lora["alpha"], target_modules=lora["targets"], task_type="CAUSAL_LM")
            llm = get_peft_model(llm, settings, adapter_name=self.adapters[0])
            for name in self.adapters[1:]:
                llm.add_adapter(name, settings)
            self.fill(llm, plan["sites"], tensors)
        self.llm = llm.eval()

    @torch.no_grad()
    def fill(self, llm, sites, tensors):
        for site in sites:
            layer = llm.get_submodule(f"base_model.model.{site}")
            for name in self.adapters:
                layer.lora_A[name].weight.copy_(tensors[f"lora.{name}.{site}.A"])
                layer.lora_B[name].weight.copy_(tensors[f"lora.{name}.{site}.B"])

    @torch.inference_mode()
    def generate(self, batch, max_new_tokens, **options):
        """What `generate` returns for a batch."""
        frames = [self.frames[place] for place in batch]
        languages = [self.languages[place] for place in batch]
        lengths = torch.tensor([len(row) for row in frames])
        speech = self.projector(pad_sequence(frames, batch_first=True), lengths)
        rows = []
        for language, row, length in zip(languages, speech, lengths.tolist()):
            before, after = map(self.embed, self.around[language])
            rows.append(torch.cat([before, row[: ceil(length / self.projector.stride)], after]))
        mask = [torch.ones(len(row), dtype=torch.long) for row in rows]
        if len(self.adapters) > 1:
            options["adapter_names"] = languages
        return self.llm.generate(
            inputs_embeds=pad_sequence(rows, batch_first=True, padding_side="left"),
            attention_mask=pad_sequence(mask, batch_first=True, padding_side="left"),
            max_new_tokens=max_new_tokens, do_sample=False, num_beams=1, use_cache=True,
            eos_token_id=self.stops, pad_token_id=self.stops[0], **options)

    def text(self, row):
        """A row's tokens up to the one that ends it."""
        end = next((place for place, token in enumerate(row) if token in self.stops), len(row))
        return row[:end]

    def decode(self, batches, max_new_tokens):
        seconds, tokens = 0.0, []
        for batch in batches:
            begun = time.perf_counter()
            rows = self.generate(batch, max_new_tokens).tolist()
            seconds += time.perf_counter() - begun
            tokens.extend(self.text(row) for row in rows)
        return {"seconds": seconds, "tokens": tokens}

    def decode_with_leads(self, batches, max_new_tokens):
        seconds, tokens, leads = 0.0, [], []
        for batch in batches:
            begun = time.perf_counter()
            found = self.generate(batch, max_new_tokens, output_logits=True, return_dict_in_generate=True)
            seconds += time.perf_counter() - begun
            best = torch.stack([scores.topk(2).values for scores in found.logits], dim=1)
            leads.extend((best[..., 0] - best[..., 1]).tolist())
            tokens.extend(self.text(row) for row in found.sequences.tolist())
        return {"seconds": seconds, "tokens": tokens, "leads": leads}


def main(arguments):
    plan = json.loads(arguments.plan.read_text())
    assert plan["config"]["model"]["prompt"]["kind"] == "plain" and plan["config"]["model"]["dtype"] == "f32", plan["config"]["model"]
    torch.set_num_threads(plan["threads"])
    decoder = Decoder(plan, load_file(arguments.tensors))
    print(json.dumps({"stops": decoder.stops}), flush=True)
    for line in sys.stdin:
        task = json.loads(line)
        decode = decoder.decode_with_leads if task.get("leads") else decoder.decode
        print(json.dumps(decode(task["batches"], task["max_new_tokens"])), flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("plan", type=Path)
    parser.add_argument("--tensors", type=Path, required=True)
    main(parser.parse_args())
