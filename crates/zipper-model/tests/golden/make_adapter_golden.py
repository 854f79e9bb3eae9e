"""Makes adapter.safetensors: what tests/adapter/golden.rs holds the Rust adapters to.

A second implementation of docs/concepts.md, written from its formulas and sharing no structure with the Rust one: it goes
through the batch row by row and through B column by column, and lets autograd differentiate the whole thing without any
merging. Everything is float64, so that one file serves as the reference for float64 and float32.

Usage: python make_adapter_golden.py   (requirements.txt names the versions)
"""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

torch.set_num_threads(1)
torch.set_default_dtype(torch.float64)

# The dimensions of a matrix are never equal, nor is the rank, so that no two can be confused.
SITES = [("enc.layers.1.fc1", 7, 6), ("model.layers.0.q_proj", 9, 8), ("model.layers.0.up_proj", 9, 10),
         ("model.layers.1.down_proj", 10, 9)]
LAYERS = {"enc.layers.1.fc1": "enc.layers.1", "model.layers.0.q_proj": "model.layers.0",
          "model.layers.0.up_proj": "model.layers.0", "model.layers.1.down_proj": "model.layers.1"}
RANK, SHARED_RANK, ALPHA, LID_DIM = 5, 2, 12.5, 3
LANGUAGES = 4
ROWS = [2, 0, 3, 2, 0, 0]  # language 1 does not occur
TIME = 2


class HardGate(torch.autograd.Function):
    """1 where the gate is at least a half, else 0; the gradient passes through unchanged."""

    @staticmethod
    def forward(ctx, gate):
        return torch.where(gate >= 0.5, torch.ones_like(gate), torch.zeros_like(gate))

    @staticmethod
    def backward(ctx, gradient):
        return gradient


def unit_of(site, granularity):
    return {"linear": site, "layer": LAYERS[site], "model": "model"}[granularity]


def make_params(variant, granularity, generator):
    def value(*shape, scale=0.3):
        return (scale * torch.randn(*shape, generator=generator)).requires_grad_()

    params = {}
    for site, d_in, d_out in SITES:
        if variant == "independent":
            for language in range(LANGUAGES):
                params[f"bank.{language}/lora.{site}.A"] = value(RANK, d_in)
                params[f"bank.{language}/lora.{site}.B"] = value(d_out, RANK)
            continue
        params[f"shared/lora.{site}.A"] = value(RANK, d_in)
        params[f"shared/lora.{site}.B_shared"] = value(d_out, SHARED_RANK if variant == "static" else RANK)
        if variant != "shared":
            own = RANK - SHARED_RANK if variant == "static" else RANK
            for language in range(LANGUAGES):
                params[f"bank.{language}/lora.{site}.B"] = value(d_out, own)
    if variant in ("hard", "soft"):
        params["shared/lid.weight"] = value(LANGUAGES, LID_DIM, scale=1)
        for unit in dict.fromkeys(unit_of(site, granularity) for site, _, _ in SITES):
            params[f"shared/router.{unit}.weight"] = value(RANK, LID_DIM, scale=1)
            params[f"shared/router.{unit}.bias"] = value(RANK, scale=1)
    return params


def column(params, variant, granularity, site, language, j):
    """Column j of B(l)."""
    if variant == "shared":
        return params[f"shared/lora.{site}.B_shared"][:, j]
    bank = params[f"bank.{language}/lora.{site}.B"]
    if variant == "independent":
        return bank[:, j]
    shared = params[f"shared/lora.{site}.B_shared"]
    if variant == "static":
        return shared[:, j] if j < SHARED_RANK else bank[:, j - SHARED_RANK]
    unit = unit_of(site, granularity)
    embedding = params["shared/lid.weight"][language]
    weight, bias = params[f"shared/router.{unit}.weight"], params[f"shared/router.{unit}.bias"]
    gate = 1 / (1 + torch.exp(-(weight[j] @ embedding + bias[j])))
    if variant == "hard":
        gate = HardGate.apply(gate)
    return gate * shared[:, j] + (1 - gate) * bank[:, j]


def delta(params, variant, granularity, site, language, x):
    """s * B(l) A x for one row [time, d_in]."""
    owner = f"bank.{language}" if variant == "independent" else "shared"
    low_rank = torch.einsum("ri,ti->tr", params[f"{owner}/lora.{site}.A"], x)
    out = 0
    for j in range(RANK):
        out = out + low_rank[:, j : j + 1] * column(params, variant, granularity, site, language, j)
    return ALPHA / RANK * out


def main():
    generator = torch.Generator().manual_seed(20260317)
    inputs = {site: torch.randn(len(ROWS), TIME, d_in, generator=generator) for site, d_in, _ in SITES}
    tensors = {f"input/{site}": value for site, value in inputs.items()}
    cases = [("shared", "-"), ("independent", "-"), ("static", "-"), ("hard", "linear"), ("hard", "layer"),
             ("soft", "linear"), ("soft", "model")]
    for variant, granularity in cases:
        case = variant if granularity == "-" else f"{variant}_{granularity}"
        params = make_params(variant, granularity, generator)
        loss = 0
        for site, _, _ in SITES:
            x = inputs[site].clone().requires_grad_()
            rows = [delta(params, variant, granularity, site, language, x[row]) for row, language in enumerate(ROWS)]
            y = torch.stack(rows)
            (x_gradient,) = torch.autograd.grad(y.sin().sum(), x, retain_graph=True)
            tensors[f"{case}/output/{site}"] = y.detach()
            tensors[f"{case}/input_gradient/{site}"] = x_gradient
            loss = loss + y.sin().sum()
        loss.backward()
        for name, param in params.items():
            tensors[f"{case}/param/{name}"] = param.detach()
            # No gradient at all, and not zeros, for the banks of a language that does not occur.
            if param.grad is not None:
                tensors[f"{case}/gradient/{name}"] = param.grad
    tensors = {name: value.contiguous() for name, value in tensors.items()}
    metadata = {"rows": json.dumps(ROWS), "torch": torch.__version__}
    save_file(tensors, Path(__file__).with_name("adapter.safetensors"), metadata)


if __name__ == "__main__":
    main()
