"""Sound -> where there is a voice, by its loudness over the noise around it. Knows nothing of who speaks.

Axes: T frames at 25 fps, 640 samples each.
"""

from collections.abc import Iterable

import numpy as np

from difflistener.media import SAMPLE_RATE, SAMPLES_PER_FRAME
from difflistener.motion import FPS, runs

BAND = (150, 4000)
"""Hz: speech; hum lies below."""
SILENCE = -90.0
"""Level of digital silence, dB."""
OVER_NOISE = 9.0
"""A voice is this much louder than the noise, dB."""
UNDER_PEAK = 35.0
"""What is this much softer than the loud parts of the recording is no voice, dB."""
NOISE_SECONDS = 20.0
"""The noise is the 5th percentile of the level over this long: the gaps between words are more than that."""
HOLD = 5
"""Frames of silence inside a word that still count as voice."""
BLIP = 3
"""Voice of fewer frames is a click."""


def levels(pieces: Iterable[np.ndarray], count: int) -> np.ndarray:
    """Level [count] in dB of each frame in the speech band, of sound in pieces [n]; silence after its end."""
    window = np.hanning(SAMPLES_PER_FRAME)
    hertz = np.fft.rfftfreq(SAMPLES_PER_FRAME, 1 / SAMPLE_RATE)
    band = (hertz >= BAND[0]) & (hertz <= BAND[1])
    result = np.full(count, SILENCE)
    waiting, done = np.zeros(0, np.float32), 0
    for piece in pieces:
        waiting = np.concatenate([waiting, piece])
        whole = len(waiting) // SAMPLES_PER_FRAME
        frames, waiting = np.split(waiting, [whole * SAMPLES_PER_FRAME])
        spectrum = np.fft.rfft(frames.reshape(whole, SAMPLES_PER_FRAME) * window)[:, band]
        power = (np.abs(spectrum) ** 2).sum(1) / (window**2).sum() / SAMPLES_PER_FRAME
        kept = power[: count - done]
        result[done : done + len(kept)] = 10 * np.log10(kept + 10 ** (SILENCE / 10))
        done += len(kept)
    return result


def find_voice(level: np.ndarray) -> np.ndarray:
    """Where [T] bool somebody speaks, of levels [T] in dB."""
    from scipy.ndimage import percentile_filter

    peak = np.percentile(level, 95)
    noise = percentile_filter(level, 5, min(int(NOISE_SECONDS * FPS), len(level)), mode="nearest")
    voice = (level > noise + OVER_NOISE) & (level > peak - UNDER_PEAK) & (level > SILENCE + OVER_NOISE)
    for start, stop in runs(~voice):
        if start > 0 and stop < len(voice) and stop - start <= HOLD:
            voice[start:stop] = True
    for start, stop in runs(voice):
        if stop - start < BLIP:
            voice[start:stop] = False
    return voice
