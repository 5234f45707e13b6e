"""What a microphone makes of a voice: level, colour, the room's echo and its noise, drawn from a seed.

Knows nothing of speech or files. Axes: N samples at 16 kHz.
"""

import numpy as np
from scipy.signal import fftconvolve

from .speech import RATE

LEVEL_DB = (-42.0, -14.0)
"""Level of the voice while it speaks, full scale: from far away without a gain control to near with one."""
TILT_DB = 2.0
"""Deviation of the colour: how much louder an octave is than the one below, dB; about 1 kHz."""
ECHO = 0.6
"""Share of rooms with an echo that is heard."""
ECHO_SECONDS = (0.1, 0.4)
"""In which it falls by 60 dB."""
ECHO_DB = (-18.0, -6.0)
"""Against the voice itself."""
NOISE_DB = (-80.0, -14.0)
"""Level of the room's noise against the voice: from a studio to a fan beside the laptop."""


def hear(sound: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """[N] float32 within -1..1 of a voice [N] float32 within -1..1."""
    tilt, level = generator.normal(0, TILT_DB), generator.uniform(*LEVEL_DB)
    has_echo, seconds = generator.random() < ECHO, generator.uniform(*ECHO_SECONDS)
    wet, noise_db, noise_tilt = generator.uniform(*ECHO_DB), generator.uniform(*NOISE_DB), generator.uniform(-4, 0)
    out = sound.astype(np.float32)
    if has_echo:
        tail = generator.standard_normal(int(seconds * RATE)) * 10 ** (-3 * np.arange(int(seconds * RATE)) / (seconds * RATE))
        tail *= 10 ** (wet / 20) / np.linalg.norm(tail)
        out = out + fftconvolve(out, tail.astype(np.float32))[: len(out)]
    out = _coloured(out, tilt)
    noise = _coloured(generator.standard_normal(len(out), np.float32), noise_tilt)
    out = out / max(_loudness(out), 1e-9) + 10 ** (noise_db / 20) * noise / _loudness(noise)
    return np.clip(10 ** (level / 20) * out, -1, 1).astype(np.float32)


def _loudness(sound: np.ndarray) -> float:
    """Root mean square of the louder half of the 20 ms pieces: while somebody speaks."""
    power = np.square(sound[: len(sound) // 320 * 320].reshape(-1, 320)).mean(1)
    return float(np.sqrt(power[power >= np.median(power)].mean()))


def _coloured(sound: np.ndarray, tilt: float) -> np.ndarray:
    """`sound` with `tilt` dB more for every octave above 1 kHz, and less below; flat below 60 Hz."""
    octave = np.log2(np.maximum(np.arange(129) * RATE / 256, 60) / 1000)
    # The filter as 256 taps of its magnitude: linear phase, the delay taken back.
    taps = np.roll(np.fft.irfft(10 ** (tilt * octave / 20)), 128) * np.hanning(257)[:256]
    return fftconvolve(sound, taps.astype(np.float32), mode="same")
