"""A LoRA as PEFT writes it, and whether another one does the same.

Usage: peft_start.py MODELS ADAPTER
MODELS holds llm/. Writes an adapter with rsLoRA's scale, in bf16 and of random values, and prints `made`. Then reads the folder of
another adapter from stdin, and prints how far the first one takes logits away from those of the model alone, and how far the other
one's are away from its own; both largest differences. It is one process, because starting it takes longer than all of this.
"""

import sys
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM


def llm(models):
    return AutoModelForCausalLM.from_pretrained(models / "llm", dtype=torch.float32).eval()


def make(models, adapter):
    torch.manual_seed(4)
    config = LoraConfig(r=3, lora_alpha=5, use_rslora=True, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM")
    model = get_peft_model(llm(models), config)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = torch.randn_like(parameter).bfloat16()
    model.save_pretrained(adapter)


@torch.no_grad()
def compare(models, *adapters):
    ids = torch.tensor([[3, 9, 4, 1, 7, 7, 2]])
    alone = llm(models)(ids).logits
    first, second = (PeftModel.from_pretrained(llm(models), adapter).float().eval()(ids).logits for adapter in adapters)
    print((first - alone).abs().max().item(), (second - first).abs().max().item())


if __name__ == "__main__":
    torch.set_num_threads(1)
    models, adapter = map(Path, sys.argv[1:])
    make(models, adapter)
    print("made", flush=True)
    compare(models, adapter, Path(sys.stdin.readline().rstrip("\n")))
