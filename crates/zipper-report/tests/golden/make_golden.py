"""Writes bootstrap.json: percentile intervals by scipy, for tests of the bootstrap.

    pip install -r requirements.txt && python make_golden.py

Two systems on two languages of different sizes. scipy resamples one list of utterances at a time, so each figure here is of one
language; what the mean over languages does to them follows from those by hand in the test.
"""

import json
from pathlib import Path

import numpy as np
from scipy.stats import bootstrap

RESAMPLES = 100_000


def rate(edits, lengths, axis=-1):
    return edits.sum(axis=axis) / lengths.sum(axis=axis)


def change(edits, baseline, lengths, axis=-1):
    return edits.sum(axis=axis) / baseline.sum(axis=axis) - 1


def interval(data, statistic, rng):
    found = bootstrap(
        data, statistic, paired=True, vectorized=True, method="percentile", n_resamples=RESAMPLES, batch=2000, rng=rng)
    return [found.confidence_interval.low, found.confidence_interval.high]


def main():
    rng = np.random.default_rng(5)
    answer = {}
    for lang, utterances in [("de", 37), ("ja", 61)]:
        lengths = rng.integers(3, 17, utterances)
        edits = rng.binomial(lengths, 0.2)
        baseline = np.clip(edits + rng.integers(-1, 3, utterances), 0, None)
        answer[lang] = {
            "lengths": lengths.tolist(),
            "edits": edits.tolist(),
            "baseline": baseline.tolist(),
            "rate": interval((edits, lengths), rate, rng),
            "change": interval((edits, baseline, lengths), change, rng),
        }
    path = Path(__file__).with_name("bootstrap.json")
    path.write_text(json.dumps(answer) + "\n")


if __name__ == "__main__":
    main()
