"""Writes features.safetensors: log-mel features of transformers' WhisperFeatureExtractor for small signals.

    pip install -r requirements.txt && python make_features_golden.py

`speech` is a gliding harmonic tone that fades in and out, with noise: energy in all mel bands and a wide range
of levels. Its length is no multiple of the hop, so that the last partial frame matters.
"""

from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import save_file
from transformers import WhisperFeatureExtractor

torch.set_num_threads(1)
RATE = 16_000


def speech(samples: int) -> np.ndarray:
    rng = np.random.default_rng(7)
    seconds = np.arange(samples) / RATE
    phase = 2 * np.pi * (110 * seconds + 40 * seconds**2)
    tone = sum(np.sin(k * phase) / k for k in range(1, 30))
    envelope = np.sin(np.pi * np.arange(samples) / samples) ** 2
    return (0.3 * envelope * tone + 1e-3 * rng.standard_normal(samples)).astype(np.float32)


def features(samples: np.ndarray, mels: int, **options) -> np.ndarray:
    extractor = WhisperFeatureExtractor(feature_size=mels)
    return extractor(samples, sampling_rate=RATE, return_tensors="np", **options)["input_features"][0]


long, tiny = speech(14_433), speech(14_433)[:301]
short = long[:6_480]
longest = {"padding": "longest", "truncation": False}
padded = features(short, 80)
assert padded.shape == (80, 3000) and (padded[:, 60:] == padded[:, -1:]).all()
tensors = {
    "long": long,
    "long_80": features(long, 80, **longest),
    "long_128": features(long, 128, **longest),
    # 301 samples: the mirrored ends overlap within one frame.
    "tiny_80": features(tiny, 80, **longest),
    # The first 6480 samples of `long`, padded to 30 s: frames 60 to 2999 are all alike.
    "padded_80": padded[:, :61],
}
save_file({name: np.ascontiguousarray(value) for name, value in tensors.items()}, Path(__file__).with_name("features.safetensors"))
