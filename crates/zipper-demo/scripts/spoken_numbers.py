"""The demo's task: the numbers 0 to 999, spoken in 12 languages of deliberately unequal amounts."""

import re
import zlib
from dataclasses import dataclass

from num2words import num2words

LIMIT = 1000


@dataclass(frozen=True)
class Language:
    """How much of a language there is, and espeak-ng's voices for it."""

    train_minutes: float
    voices: tuple[str, ...]


LANGUAGES = {
    "en": Language(30.0, ("en-us", "en-gb", "en-gb-x-rp", "en-gb-scotland")),
    "de": Language(12.0, ("de",)),
    "fr": Language(9.0, ("fr-fr", "fr-be", "fr-ch")),
    "es": Language(8.0, ("es", "es-419")),
    "it": Language(6.0, ("it",)),
    "pt": Language(5.0, ("pt-br", "pt")),
    "ru": Language(4.0, ("ru",)),
    "ja": Language(3.0, ("ja",)),
    "ko": Language(3.0, ("ko",)),
    "vi": Language(3.0, ("vi", "vi-vn-x-central", "vi-vn-x-south")),
    "th": Language(2.0, ("th",)),
    "ar": Language(1.5, ("ar",)),
}

NUM2WORDS_NAMES = {"pt": "pt_BR"}


def words(number, language):
    """The number in words: lower case, single spaces, no hyphens or commas."""
    text = num2words(number, lang=NUM2WORDS_NAMES.get(language, language)).lower()
    return " ".join(re.sub(r"[-,\u00ad]", " ", text).split())


def split_of(number):
    """`train` (75 %), `validation` (5 %) or `test` (20 %): the same for every language.

    0 is for training, because no other number holds its word.
    """
    bucket = zlib.crc32(f"number {number}".encode()) % 20
    if bucket < 4 and number > 0:
        return "test"
    return "validation" if bucket == 4 else "train"


def numbers_of(split):
    return [number for number in range(LIMIT) if split_of(number) == split]
