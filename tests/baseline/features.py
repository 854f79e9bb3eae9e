"""Audio files to log-mel features with transformers: Python's side of `cargo xtask bench features`.

What someone does who prepares data for Whisper: soundfile reads (without it `wave`, and WAV files only), and WhisperFeatureExtractor
gets one utterance after the other, either with its padding to 30 s, as its defaults are, or at its own length (`native`). In between
comes a resampler like Zipper's, so that both sides have the same features. It has an advantage over what is usual: it transforms the
whole utterance at once, by a length without large factors, and what its filter does to spectra of that length is made once.
One thread does all of it.

Usage: features.py --mels N
  Each line of stdin is a JSON object with `utterances` (lines of a manifest, with absolute paths) and `padding` (`native` or
  `padded_30s`). Its answer is a line of JSON with the seconds that this process had of a core, for reading with resampling
  (`reading_seconds`) and for features (`feature_seconds`), and `wall_seconds` for both. With `file` the features are written there
  instead, as safetensors that are named by the places of their utterances in the list.
"""

import argparse
import json
import sys
import time

import numpy as np
import torch
from safetensors.numpy import save_file
from train import SAMPLE_RATE, samples_of, soundfile
from transformers import WhisperFeatureExtractor

PADDINGS = {"native": {"padding": False}, "padded_30s": {}}


def features_of(extractor, samples, padding):
    features = extractor(samples, sampling_rate=SAMPLE_RATE, return_tensors="pt", **PADDINGS[padding])
    return features.input_features[0]


def measure(extractor, lines, padding):
    reading, features = 0.0, 0.0
    wall = time.perf_counter()
    for line in lines:
        begun = time.process_time()
        samples = samples_of(line)
        read_at = time.process_time()
        features_of(extractor, samples, padding)
        reading += read_at - begun
        features += time.process_time() - read_at
    wall = time.perf_counter() - wall
    return {"reading_seconds": reading, "feature_seconds": features, "wall_seconds": wall}


def write(extractor, lines, padding, file):
    features = [features_of(extractor, samples_of(line), padding).numpy() for line in lines]
    save_file({str(place): np.ascontiguousarray(values) for place, values in enumerate(features)}, file)
    return {"written": len(features)}


def main(arguments):
    torch.set_num_threads(1)
    extractor = WhisperFeatureExtractor(feature_size=arguments.mels)
    print(json.dumps({"soundfile": soundfile is not None}), flush=True)
    for line in sys.stdin:
        task = json.loads(line)
        lines, padding = task["utterances"], task["padding"]
        if "file" in task:
            answer = write(extractor, lines, padding, task["file"])
        else:
            answer = measure(extractor, lines, padding)
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mels", type=int, required=True)
    main(parser.parse_args())
