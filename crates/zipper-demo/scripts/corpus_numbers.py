"""Makes demo/numbers: spoken numbers in 12 languages (synthetic speech), and a test set of human recordings.

    train.jsonl, validation.jsonl, test.jsonl   espeak-ng, many voices; the splits share no number, in any language
    test_human.jsonl                            Asterisk's recorded number words put together, en es fr it ru
    words.tsv                                   language and text of every number, to pretrain the language model on
"""

import functools
import random
import subprocess
import wave
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pykakasi

import asterisk
import manifest
import packages
import spoken_numbers
import stamp
from spoken_numbers import LANGUAGES, words

FOLDER = packages.DEMO / "numbers"
TEST_UTTERANCES = 150
VALIDATION_UTTERANCES = 15
HUMAN_TEST_UTTERANCES = 100
VOICE_VARIANTS = ["", *(f"+m{i}" for i in range(1, 8)), *(f"+f{i}" for i in range(1, 6))]
SYNTHESIZERS = 2
TELEPHONE_RATE = 8000

# Silence around speech is cut off, but for this much.
SILENCE = 100
MARGIN_SECONDS = 0.06
# Between two recordings that are put together.
PAUSE_SECONDS = 0.03


@functools.cache
def kakasi():
    return pykakasi.kakasi()


def pronounced(text, language):
    """What espeak-ng is given to read: it knows no kanji."""
    if language != "ja":
        return text
    return " ".join(part["hira"] for part in kakasi().convert(text))


def trimmed(samples, rate):
    loud = np.flatnonzero(np.abs(samples.astype(np.int32)) > SILENCE)
    margin = int(MARGIN_SECONDS * rate)
    return samples[max(0, loud[0] - margin) : loud[-1] + margin]


def band_limited(samples, rate, new_rate):
    """The samples at a lower rate: the spectrum is cut off at the new half rate."""
    count = len(samples) * new_rate // rate
    spectrum = np.fft.rfft(samples)[: count // 2 + 1]
    return np.clip(np.fft.irfft(spectrum, count) * count / len(samples), -32768, 32767).astype(np.int16)


def synthesize(text, language, key, varied):
    """Samples, rate and voice, all drawn from `key`; `varied` adds slow speech, pauses and the telephone's 8 kHz."""
    draw = random.Random(zlib.crc32(key.encode()))
    voice = draw.choice(LANGUAGES[language].voices) + draw.choice(VOICE_VARIANTS)
    speed = draw.randint(120 if varied else 150, 200)
    options = {"-v": voice, "-p": draw.randint(25, 75), "-s": speed, "-a": draw.randint(80, 120)}
    if varied:
        options["-g"] = draw.choice([0, 0, 4, 8, 16])
    command = ["espeak-ng", "--stdin", "--stdout"]
    command += [str(word) for option in options.items() for word in option]
    spoken = subprocess.run(command, input=text.encode(), capture_output=True, check=True).stdout
    # A header of 44 bytes, whose length fields espeak-ng cannot know yet when it writes to a pipe.
    rate = int.from_bytes(spoken[24:28], "little")
    samples = trimmed(np.frombuffer(spoken[44:], np.int16), rate)
    if varied and draw.random() < 0.5:
        samples, rate = band_limited(samples, rate, TELEPHONE_RATE), TELEPHONE_RATE
    return samples, rate, voice


def write_utterance(split, name, samples, rate, **keys):
    """Writes the audio and returns its manifest line."""
    path = FOLDER / "audio" / split / f"{name}.wav"
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(samples.tobytes())
    audio = str(path.relative_to(FOLDER))
    return {"id": f"{split}-{name}", "audio_filepath": audio, "duration": round(len(samples) / rate, 4), **keys}


def speak(split, language, index, number):
    """One synthetic utterance."""
    text = words(number, language)
    name = f"{language}-{index:05}-{number}"
    spoken = pronounced(text, language)
    samples, rate, voice = synthesize(spoken, language, f"{split} {name}", varied=split == "train")
    return write_utterance(split, name, samples, rate, text=text, lang=language, voice=voice)


def synthetic(split, language, pool, is_enough):
    """Utterances of one language, going round the numbers of the split in a shuffled order."""
    numbers = spoken_numbers.numbers_of(split)
    random.Random(zlib.crc32(f"{split} {language}".encode())).shuffle(numbers)
    lines = []
    while not is_enough(lines):
        block = range(len(lines), len(lines) + 4 * SYNTHESIZERS)
        lines += pool.map(lambda index: speak(split, language, index, numbers[index % len(numbers)]), block)
    return lines


def enough_minutes(minutes):
    return lambda lines: sum(line["duration"] for line in lines) >= 60 * minutes


def enough_utterances(count):
    return lambda lines: len(lines) >= count


def human(language):
    """The test numbers of one language, put together from recordings."""
    folder = asterisk.sounds(language)
    lines = []
    for number in spoken_numbers.numbers_of("test"):
        prompts = asterisk.number_prompts(number, language)
        if prompts is None or len(lines) == HUMAN_TEST_UTTERANCES:
            continue
        parts = []
        for prompt in prompts:
            samples, rate = asterisk.samples(folder / f"{prompt}.wav")
            parts += [np.zeros(int(PAUSE_SECONDS * rate), np.int16), trimmed(samples, rate)]
        text = words(number, language)
        lines.append(
            write_utterance("test_human", f"{language}-{number}", np.concatenate(parts), rate, text=text, lang=language)
        )
    return lines


def main():
    counts = {"test": TEST_UTTERANCES, "validation": VALIDATION_UTTERANCES}
    settings = stamp.settings_of(__file__, spoken_numbers.__file__, asterisk.__file__, manifest.__file__)
    if stamp.is_current(FOLDER, settings):
        print(f"numbers: kept, {FOLDER}")
        return
    stamp.start(FOLDER)
    for split in ("train", "validation", "test", "test_human"):
        (FOLDER / "audio" / split).mkdir(parents=True)
    kakasi()
    with ThreadPoolExecutor(SYNTHESIZERS) as pool:
        for split in ("train", "validation", "test"):
            lines = []
            for name, language in LANGUAGES.items():
                goal = enough_utterances(counts[split]) if split in counts else enough_minutes(language.train_minutes)
                lines += synthetic(split, name, pool, goal)
            manifest.write(FOLDER, split, lines)
    manifest.write(FOLDER, "test_human", [line for language in asterisk.SOUNDS for line in human(language)])
    with open(FOLDER / "words.tsv", "w", encoding="utf-8") as file:
        for language in LANGUAGES:
            for number in range(spoken_numbers.LIMIT):
                file.write(f"{language}\t{words(number, language)}\n")
    stamp.finish(FOLDER, settings)


if __name__ == "__main__":
    main()
