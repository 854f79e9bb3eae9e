"""Writes ../fixtures/chirp.* (needs ffmpeg) and audio.safetensors: what they sound like at 16 kHz.

    pip install -r requirements.txt && python make_audio_golden.py

The signal is a chirp that fades in and out. The reference decodes with libsndfile, averages the channels and resamples
with soxr (very high quality), so that decoders, gapless trimming, downmix and resampling are all checked at once.
"""

import subprocess
import wave
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import soundfile
import soxr
from safetensors.numpy import save_file

HERE = Path(__file__).parent
FIXTURES = HERE.parent / "fixtures"
# name of the fixture: (rate, channels, options of ffmpeg)
FORMATS = {
    "chirp.flac": (22_050, 2, ["-c:a", "flac"]),
    "chirp.mp3": (22_050, 1, ["-c:a", "libmp3lame", "-b:a", "48k"]),
    "chirp_stereo.mp3": (48_000, 2, ["-c:a", "libmp3lame", "-q:a", "5"]),
    "chirp.ogg": (32_000, 1, ["-c:a", "libvorbis", "-q:a", "6"]),
    "chirp.opus": (48_000, 1, ["-c:a", "libopus", "-b:a", "32k", "-page_duration", "100000"]),
    "chirp_stereo.opus": (48_000, 2, ["-c:a", "libopus", "-b:a", "48k"]),
}


def chirp(rate: int, channels: int) -> np.ndarray:
    """[frames, channels]: 0.47 s from 300 to 3000 Hz, each channel quieter than the one before."""
    seconds = np.arange(int(0.47 * rate)) / rate
    tone = np.sin(2 * np.pi * (300 * seconds + 2870 * seconds**2)) * np.sin(np.pi * seconds / 0.47)
    return np.stack([0.6 * 0.5**channel * tone for channel in range(channels)], axis=1)


FIXTURES.mkdir(exist_ok=True)
references = {}
with TemporaryDirectory() as folder:
    source = Path(folder) / "source.wav"
    for name, (rate, channels, options) in FORMATS.items():
        with wave.open(str(source), "wb") as out:
            out.setparams((channels, 2, rate, 0, "NONE", ""))
            out.writeframes(np.round(chirp(rate, channels) * 32767).astype("<i2").tobytes())
        fixture = FIXTURES / name
        bitexact = ["-map_metadata", "-1", "-fflags", "+bitexact", "-flags:a", "+bitexact"]
        subprocess.run(["ffmpeg", "-v", "error", "-y", "-i", source, *bitexact, *options, fixture], check=True)
        samples, decoded_rate = soundfile.read(fixture, dtype="float32", always_2d=True)
        assert decoded_rate == rate and len(samples) == int(0.47 * rate), name
        references[name] = soxr.resample(samples.mean(axis=1), rate, 16_000, quality="VHQ").astype(np.float32)
        print(name, fixture.stat().st_size, "bytes,", len(samples), "frames,", len(references[name]), "at 16 kHz")
save_file(references, HERE / "audio.safetensors")
