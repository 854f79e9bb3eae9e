#!/usr/bin/env python3
"""Writes optimizer.json: torch.optim.AdamW on three parameters, one of which has no gradient at some steps.

A parameter whose gradient is None is left alone by torch, step count included: the rule that banks follow.
Run: pip install -r requirements.txt && python make_optimizer_golden.py
"""

import json
from pathlib import Path

import torch

STEPS = 6
BANK_STEPS = {1, 2, 4}  # 0-based steps at which the bank has a gradient
LR, ROUTER_LR, DECAY, BETAS, EPS, CLIP = 3e-2, 1e-1, 0.05, (0.8, 0.95), 1e-6, 1.5

torch.set_num_threads(1)
torch.manual_seed(11)
values = {"shared": torch.randn(3, 5), "bank": torch.randn(2, 3), "router": torch.randn(4)}
params = {name: torch.nn.Parameter(value.clone()) for name, value in values.items()}
optimizer = torch.optim.AdamW(
    [
        {"params": [params["shared"], params["bank"]], "lr": LR, "weight_decay": DECAY},
        {"params": [params["router"]], "lr": ROUTER_LR, "weight_decay": 0.0},  # a vector: no decay
    ],
    betas=BETAS,
    eps=EPS,
)
gradients, expected, norms = [], [], []
for step in range(STEPS):
    of_step = {name: torch.randn_like(value) for name, value in values.items()}
    if step not in BANK_STEPS:
        del of_step["bank"]
    for name, param in params.items():
        param.grad = of_step[name].clone() if name in of_step else None
    norms.append(torch.nn.utils.clip_grad_norm_(params.values(), CLIP).item())
    optimizer.step()
    gradients.append({name: gradient.flatten().tolist() for name, gradient in of_step.items()})
    expected.append({name: param.detach().flatten().tolist() for name, param in params.items()})

golden = {
    "lr": LR,
    "router_lr": ROUTER_LR,
    "weight_decay": DECAY,
    "betas": BETAS,
    "eps": EPS,
    "clip": CLIP,
    "shapes": {name: list(value.shape) for name, value in values.items()},
    "initial": {name: value.flatten().tolist() for name, value in values.items()},
    "gradients": gradients,
    "norms": norms,
    "expected": expected,
}
Path(__file__).with_name("optimizer.json").write_text(json.dumps(golden, indent=1) + "\n")
