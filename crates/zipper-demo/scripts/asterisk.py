"""The recorded prompts of the Asterisk telephone exchange: one professional speaker each for en es fr it ru, 8 kHz."""

import gzip
import wave

import numpy as np

import packages

VERSION = "1.6.1-1"
SOUNDS = {
    "en": "2be3ea287d83299d143815fa804f11179a75b7affd4a758b98b55f5afc18a35d",
    "es": "9283a09a6d56fccdcc2bcfe86c48f0f844289cfbd46a3184d8785a6f7f569903",
    "fr": "8d4e1bc32ed5ba7fbda40841ca1825ed20cc6232724a473c90f8bb0e53e6073e",
    "it": "5a26638089e134b8ac39363fe249c5c93c50cd8bfdc9b2499ae61ec4a35e2fcb",
    "ru": "ccbfaebfa450b7a9ddf644ae0f3d1e9017d5df7c0aebe816e946345589d38201",
}
TEXTS = {
    "en": "973e797d28e37fa6ca3c0a9d6fa717e77cf1268ae916bf09fd3503113cdffa50",
    "es": "9afdab7f559f036649fb406e625899306ca1004df8ebe39c30bfbd5912d66f74",
    "fr": "04c82c78c570c43a7136cbc5e2488d0c470b775468dff9fbce4a131b18cf1056",
    "it": "3884d9457e12f21caa018c18f0d587df5d53ebea14b673d8453a134c5941ab3b",
    "ru": "28a61616bb0cd3345a7ea532dec4df9f071e5d0fa9f8c1a563ea9669002f39ab",
}


def sounds(language):
    """The folder of a language's recordings."""
    package = packages.debian(f"asterisk-core-sounds-{language}-wav", VERSION, SOUNDS[language])
    (folder,) = (package / "usr/share/asterisk/sounds").iterdir()
    return folder


def texts(language):
    """What is said in each recording, by its path without suffix; where two lines disagree, neither is believed."""
    name = f"asterisk-core-sounds-{language}"
    package = packages.debian(name, VERSION, TEXTS[language])
    listing = package / "usr/share/doc" / name / f"core-sounds-{language}.txt.gz"
    content = gzip.decompress(listing.read_bytes())
    try:
        lines = content.decode("utf-8").splitlines()
    except UnicodeDecodeError:
        lines = content.decode("latin-1").splitlines()
    found, contradicted = {}, set()
    for line in lines:
        name, separator, text = line.partition(":")
        name, text = name.strip(), text.strip()
        if separator and not line.startswith(";"):
            if found.setdefault(name, text) != text:
                contradicted.add(name)
    return {name: text for name, text in found.items() if name not in contradicted}


def samples(path):
    """A recording's samples and rate."""
    with wave.open(str(path)) as file:
        return np.frombuffer(file.readframes(file.getnframes()), np.int16), file.getframerate()


def number_prompts(number, language):
    """The recordings that say a number below 1000 one after another, or None where the prompts do not reach.

    Russian has no recordings for 200, 300 .. 900.
    """
    hundreds, rest = divmod(number, 100)
    compose = {"en": _english, "es": _spanish, "fr": _french, "it": _italian, "ru": _russian}[language]
    names = compose(hundreds, rest)
    return names and [name if "-" in name and name.startswith("vm") else f"digits/{name}" for name in names]


def _tens_and_ones(rest):
    return [str(rest)] if rest <= 20 or rest % 10 == 0 else [str(rest - rest % 10), str(rest % 10)]


def _english(hundreds, rest):
    names = [str(hundreds), "hundred"] if hundreds else []
    if hundreds and rest:
        names.append("vm-and")
    return names + (_tens_and_ones(rest) if rest or not hundreds else [])


def _spanish(hundreds, rest):
    if hundreds == 1:
        names = ["100-and"] if rest else ["hundred"]
    else:
        names = [f"{hundreds}00"] if hundreds else []
    if hundreds and not rest:
        return names
    if rest <= 30 or rest % 10 == 0:
        return names + [str(rest)]
    return names + [str(rest - rest % 10), "and", str(rest % 10)]


def _french(hundreds, rest):
    names = ([str(hundreds)] if hundreds > 1 else []) + (["hundred"] if hundreds else [])
    if hundreds and not rest:
        return names
    if rest <= 20:
        return names + [str(rest)]
    # 70 to 79 and 90 to 99 count on from 60 and 80.
    base = rest // 20 * 20 if rest >= 60 else rest // 10 * 10
    ones = rest - base
    linked = ["et"] if ones in (1, 11) and base != 80 else []
    return names + [str(base)] + (linked + [str(ones)] if ones else [])


def _italian(hundreds, rest):
    names = ([str(hundreds)] if hundreds > 1 else []) + (["hundred"] if hundreds else [])
    if hundreds and not rest:
        return names
    # The vowel that is lost before uno and otto is lost in recordings of their own.
    return names + ([str(rest)] if rest > 20 and rest % 10 in (1, 8) else _tens_and_ones(rest))


def _russian(hundreds, rest):
    if hundreds > 1:
        return None
    names = ["hundred"] if hundreds else []
    return names + (_tens_and_ones(rest) if rest or not hundreds else [])
