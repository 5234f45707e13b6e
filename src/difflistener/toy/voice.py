"""Sound with prosody for a corpus: phrases that end audibly, and pauses inside them that do not sound like an end.

Voice, vowels and hiss as in `speech`, drawn about three times as fast: filters stand still for 20 ms, and silence costs
nothing. Knows nothing of faces or files. Axes: N samples at 16 kHz, T frames at 25 fps.
"""

import numpy as np
from scipy.ndimage import gaussian_filter1d
from scipy.signal import butter, sosfilt

from difflistener.motion import FPS

from .speech import BANDWIDTHS, RATE, VOWELS

BLOCK = 320
"""Samples for which the formants stand still."""
HISS = 8e-4
"""Deviation of the noise behind a voice."""
ENDING = 0.45
"""Seconds before the end of a phrase in which pitch falls by a third and loudness by 10 dB."""
_BAND = butter(1, [90, 4200], "bandpass", fs=RATE, output="sos")
_HISS = butter(2, [2600, 6200], "bandpass", fs=RATE, output="sos")


def speak(segments: np.ndarray, seconds: float, generator: np.random.Generator, hiss: float = HISS) -> tuple[np.ndarray, np.ndarray]:
    """Sound [N] float32 within -1..1, and how far the mouth opens, [T] 0..1.

    Args:
        segments: [S,3] start and end of each stretch of voice, and whether a phrase ends with it.
        seconds: length of the whole; the voice of each speaker has its own pitch, 105 to 205 Hz.
        hiss: deviation of the noise behind it.
    """
    frames = int(round(seconds * FPS))
    per_frame = RATE // FPS
    sound = hiss * generator.standard_normal(frames * per_frame, np.float32)
    jaw = np.zeros(frames * per_frame, np.float32)
    top = generator.uniform(105, 205)
    for start, end, final in segments:
        first = int(start * RATE)
        piece, opening = _segment(min(int(end * RATE), len(sound)) - first, bool(final), top, generator)
        sound[first : first + len(piece)] += piece
        jaw[first : first + len(piece)] = opening
    mouth = gaussian_filter1d(jaw.reshape(frames, per_frame).mean(1), 0.6)
    return np.clip(sound, -0.95, 0.95), np.clip(mouth, 0, 1)


def _segment(count: int, final: bool, top: float, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Sound and opening of the jaw, [count] each, of one stretch of voice."""
    t = np.arange(count, dtype=np.float32) / RATE
    left = t[-1] - t
    ending = np.clip(1 - left / ENDING, 0, 1)
    knots = np.linspace(0, t[-1], 3 + int(3 * t[-1]))
    pitch = top * (1 + 0.05 * np.interp(t, knots, generator.standard_normal(len(knots))))
    pitch *= 1 - 0.35 * ending**1.3 if final else 1 + 0.10 * ending
    level = np.clip(t / 0.03, 0, 1) * np.clip(left / 0.03, 0, 1)
    if final:
        level *= 10 ** (-0.5 * ending)
    shape, stress, hiss = (np.zeros(count, np.float32) for _ in range(3))
    vowels = np.empty((count // BLOCK + 1, 3))
    at, openness = 0, np.zeros(count, np.float32)
    while at < count:
        stop = min(at + int(RATE / generator.uniform(4.0, 5.2)), count)
        s = np.linspace(0, 1, stop - at, endpoint=False, dtype=np.float32)
        vowel = VOWELS[generator.integers(len(VOWELS))] * generator.normal(1.05, 0.03, 3)
        onset = generator.uniform(0.14, 0.28)
        rise = np.clip((s - onset) / 0.16, 0, 1) * np.clip((1.02 - s) / 0.30, 0, 1)
        shape[at:stop] = rise * rise * (3 - 2 * rise)
        stress[at:stop] = generator.uniform(0.6, 1.0)
        if generator.random() < 0.45:
            hiss[at:stop] = np.clip(np.minimum(s / 0.06, (onset + 0.05 - s) / 0.06), 0, 1)
        openness[at:stop] = 0.22 + 0.62 * np.clip((vowel[0] - 250) / 520, 0, 1)
        vowels[at // BLOCK : stop // BLOCK + 1] = vowel
        at = stop
    voice = (0.10 + 0.90 * shape * stress) * level * (1 - 0.9 * hiss)
    sound = _voice(pitch, voice, vowels, generator)
    if hiss.any():
        sound += 0.02 * sosfilt(_HISS, generator.standard_normal(count, np.float32) * hiss * level)
    return sound.astype(np.float32), shape * openness * (0.55 + 0.45 * stress) * np.sqrt(level)


def _voice(pitch: np.ndarray, voice: np.ndarray, vowels: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Glottal pulses [N] through three resonators in a row whose formants [N / BLOCK, 3] glide."""
    part = np.cumsum(pitch / RATE, dtype=np.float64) % 1
    # Rosenberg's pulse: the folds open over 0.4 of a period and close over 0.16 of it; its slope is the buzz.
    opening, closing = np.sin(np.pi * part / 0.4), np.sin(0.5 * np.pi * (part - 0.4) / 0.16)
    slope = np.pi * np.where(part < 0.4, 1.25 * opening, -3.125 * closing)
    slope[part >= 0.56] = 0
    source = (slope * pitch / RATE + 0.004 * generator.standard_normal(len(part), np.float32)) * voice
    formants = gaussian_filter1d(vowels, 1.1, axis=0)
    radius = np.exp(-np.pi * np.array(BANDWIDTHS) / RATE)
    middle = -2 * radius * np.cos(2 * np.pi * formants / RATE)
    filters = np.zeros((len(vowels), 3, 6))
    filters[..., 0], filters[..., 3] = 1 + middle + radius**2, 1
    filters[..., 4], filters[..., 5] = middle, radius**2
    out, state = np.empty(len(source)), np.zeros((3, 2))
    for block, start in enumerate(range(0, len(source), BLOCK)):
        out[start : start + BLOCK], state = sosfilt(filters[block], source[start : start + BLOCK], zi=state)
    return 0.35 * sosfilt(_BAND, out)
