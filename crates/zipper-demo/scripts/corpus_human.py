"""Makes demo/human: open-vocabulary human speech in 11 languages, from recordings in Debian packages.

    train.jsonl, validation.jsonl, test.jsonl   the splits share no text; the same speakers in all three
    test_new_speakers.jsonl                     es fr ru: speakers of whom nothing is in the other three
    words.tsv                                   language and text of the training utterances, lower case, to pretrain a language model on

Speakers: one professional each for en es fr it ru (Asterisk's telephone prompts); volunteers for ro bg el be ca da and, in
the test of new speakers only, es fr ru (the descriptions of Tux Paint's stamps). The manifests point into .deps/debian.
"""

import os
import re
import struct
import wave
import zlib

import asterisk
import manifest
import packages
import stamp

FOLDER = packages.DEMO / "human"
TUXPAINT = (
    "tuxpaint-stamps-default",
    "2022.06.04-1",
    "6db6c1bfc870a47f1499d6203b083522eacb57c5f9c87d468f2e92eb6d9d5f34",
)
TUXPAINT_TRAINED = ["ro", "bg", "el", "be", "ca", "da"]
TUXPAINT_TESTED = ["es", "fr", "ru"]

SECONDS_MIN, SECONDS_MAX = 0.4, 15.0
NEW_SPEAKER_UTTERANCES = 150


def is_usable(text, language):
    """Whether a line is the words of a recording: not a tone in [brackets], no accents lost to `?` (Italian)."""
    if not any(character.isalpha() for character in text) or any(bracket in text for bracket in "[](){}<>|"):
        return False
    return not ("\ufffd" in text or (language == "it" and "?" in text))


def wav_seconds(path):
    with wave.open(str(path)) as file:
        return file.getnframes() / file.getframerate()


def ogg_seconds(path):
    """The last page's sample position over the rate in Vorbis' first header."""
    data = path.read_bytes()
    first, last = data.find(b"\x01vorbis"), data.rfind(b"OggS")
    (rate,) = struct.unpack_from("<I", data, first + 12)
    (position,) = struct.unpack_from("<q", data, last + 6)
    return position / rate


def line(identifier, path, seconds, text, language):
    return {
        "id": identifier,
        "audio_filepath": os.path.relpath(path, FOLDER),
        "duration": round(seconds, 4),
        "text": text,
        "lang": language,
    }


def asterisk_lines(language):
    folder = asterisk.sounds(language)
    for name, text in sorted(asterisk.texts(language).items()):
        path = folder / f"{name}.wav"
        if path.exists() and is_usable(text, language):
            identifier = f"asterisk-{language}-{name.replace('/', '-')}"
            yield line(identifier, path, wav_seconds(path), text, language)


def tuxpaint_lines(language):
    folder = packages.debian(*TUXPAINT) / "usr/share/tuxpaint/stamps"
    for path in sorted(folder.rglob(f"*_desc_{language}.ogg")):
        name = path.name.removesuffix(f"_desc_{language}.ogg")
        texts = path.with_name(f"{name}.txt")
        if not texts.exists():
            continue
        said = re.search(rf"^{language}\.utf8=(.+)$", texts.read_text("utf-8", errors="replace"), re.MULTILINE)
        if said and is_usable(said[1], language):
            place = "-".join(path.parent.relative_to(folder).parts)
            yield line(f"tuxpaint-{language}-{place}-{name}", path, ogg_seconds(path), said[1].strip(), language)


def split_of(text):
    bucket = zlib.crc32(re.sub(r"\W+", " ", text.lower()).strip().encode()) % 20
    return {0: "test", 1: "test", 2: "validation"}.get(bucket, "train")


def main():
    settings = stamp.settings_of(__file__, asterisk.__file__, manifest.__file__)
    if stamp.is_current(FOLDER, settings):
        print(f"human: kept, {FOLDER}")
        return
    stamp.start(FOLDER)
    splits = {"train": [], "validation": [], "test": []}
    sources = [asterisk_lines(language) for language in asterisk.SOUNDS]
    sources += [tuxpaint_lines(language) for language in TUXPAINT_TRAINED]
    for source in sources:
        for entry in source:
            if SECONDS_MIN <= entry["duration"] <= SECONDS_MAX:
                splits[split_of(entry["text"])].append(entry)
    for split, lines in splits.items():
        manifest.write(FOLDER, split, lines)
    new_speakers = []
    for language in TUXPAINT_TESTED:
        lines = [
            entry for entry in tuxpaint_lines(language) if SECONDS_MIN <= entry["duration"] <= SECONDS_MAX
        ]
        lines.sort(key=lambda entry: zlib.crc32(entry["id"].encode()))
        new_speakers += lines[:NEW_SPEAKER_UTTERANCES]
    manifest.write(FOLDER, "test_new_speakers", new_speakers)
    with open(FOLDER / "words.tsv", "w", encoding="utf-8") as file:
        for entry in splits["train"]:
            file.write(f"{entry['lang']}\t{' '.join(entry['text'].lower().split())}\n")
    stamp.finish(FOLDER, settings)


if __name__ == "__main__":
    main()
