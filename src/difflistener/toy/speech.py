"""Sound that resembles speech: a buzzing voice through moving formants, cut into syllables, with hiss between.

Turns phrases into 16 kHz sound and the loudness that a mouth follows. Knows nothing of faces or files. No words.
Source-filter model after G. Fant, "Acoustic Theory of Speech Production" (1960). Axes: N samples at 16 kHz.
"""

import numpy as np
from scipy.interpolate import CubicSpline
from scipy.ndimage import gaussian_filter1d
from scipy.signal import butter, lfilter, sosfilt

from difflistener.motion import FPS

RATE = 16_000
VOWELS = np.array(
    [[730, 1150, 2440], [530, 1840, 2480], [300, 2250, 2950], [570, 880, 2410], [330, 900, 2250], [500, 1450, 2450]],
    float,
)
"""Formants 1 to 3 in Hz of a, e, i, o, u and a neutral vowel, for a voice between the usual male and female."""
BANDWIDTHS = (80.0, 110.0, 160.0)
BLOCK = 128
"""Samples for which a formant filter stands still: 8 ms; a whole number of them makes a frame."""


def speak(phrases: np.ndarray, seconds: float, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Sound [N] float32 within -1..1, and how far the mouth opens, [T] 0..1 at 25 fps.

    Args:
        phrases: [P,2] start and end in seconds. Outside them there is only a soft noise floor.
        seconds: length of the whole.
    """
    frames = int(round(seconds * FPS))
    count = frames * RATE // FPS
    pitch, voice, hiss = (np.zeros(count) for _ in range(3))
    formants = np.tile(VOWELS[-1], (count // BLOCK + 1, 1))
    jaw = np.zeros(count)
    for start, end in phrases:
        _phrase(start, min(end, seconds), pitch, voice, hiss, jaw, formants, generator)
    sound = _voice(pitch, voice, formants, generator)
    sound += _hiss(hiss, generator)
    sound *= 0.30 / (np.sqrt(np.mean(sound[voice > 0.1] ** 2)) * 2.2 + 1e-9) if (voice > 0.1).any() else 1.0
    floor = sosfilt(butter(2, 1800, fs=RATE, output="sos"), generator.standard_normal(count)) * 1.2e-3
    per_frame = RATE // FPS
    blocks = gaussian_filter1d(jaw.reshape(-1, BLOCK).mean(1), 0.028 * RATE / BLOCK)
    mouth = blocks[per_frame // BLOCK // 2 :: per_frame // BLOCK]
    return np.clip(sound + floor, -0.95, 0.95).astype(np.float32), np.clip(mouth, 0, 1)


def _phrase(start, end, pitch, voice, hiss, jaw, formants, generator):
    """One breath: syllables at 4 to 5 Hz whose pitch sinks to the end, written into the given arrays."""
    first, last = int(start * RATE), min(int(end * RATE), len(voice))
    if last - first < RATE // 10:
        return
    t = np.linspace(0, 1, last - first)
    top = generator.uniform(165, 195)
    knots = np.linspace(0, 1, 3 + int(4 * (end - start)))
    wobble = 9 * CubicSpline(knots, generator.standard_normal(len(knots)))(t)
    pitch[first:last] = top * (1 + 0.10 * np.sin(np.pi * np.minimum(t * 2.2, 1))) - 34 * t + wobble
    pitch[first:last] *= 1 - 0.22 * np.clip((t - 0.78) / 0.22, 0, 1) ** 1.5
    level = np.clip(t / 0.03, 0, 1) * (1 - 0.35 * t)
    at = first
    while at < last - RATE // 12:
        length = int(RATE / generator.uniform(4.0, 5.0))
        stop = min(at + length, last)
        s = np.linspace(0, 1, stop - at, endpoint=False)
        vowel = VOWELS[generator.integers(len(VOWELS))] * generator.normal(1.05, 0.03, 3)
        onset = generator.uniform(0.16, 0.30)
        rise = np.clip((s - onset) / 0.16, 0, 1) * np.clip((1.02 - s) / 0.30, 0, 1)
        shape = rise * rise * (3 - 2 * rise)
        stress = generator.uniform(0.6, 1.0)
        voice[at:stop] = (0.10 + 0.90 * shape * stress) * level[at - first : stop - first]
        kind = generator.random()
        if kind < 0.38:
            burst = np.clip(np.minimum(s / 0.06, (onset + 0.05 - s) / 0.06), 0, 1)
            hiss[at:stop] = 0.16 * burst * generator.uniform(0.6, 1.0)
            voice[at:stop] *= 1 - 0.9 * burst
        elif kind < 0.62:
            voice[at:stop] *= np.clip((s - 0.05) / 0.04, 0.04, 1)
        # Open vowels have a high first formant and an open jaw.
        jaw[at:stop] = shape * (0.22 + 0.62 * np.clip((vowel[0] - 250) / 520, 0, 1)) * (0.55 + 0.45 * stress)
        formants[at // BLOCK : stop // BLOCK + 1] = vowel
        at = stop
    fade = min(int(0.05 * RATE), last - first)
    voice[last - fade : last] *= np.linspace(1, 0, fade)


def _voice(pitch, voice, formants, generator):
    """Glottal pulses through three formant resonators in a row."""
    phase = np.cumsum(np.where(pitch > 0, pitch * (1 + 0.006 * generator.standard_normal(len(pitch))), 120) / RATE)
    part = phase % 1
    # Rosenberg's pulse: the folds open over 0.4 of a period and close over 0.16 of it; its slope is the buzz.
    flow = np.where(part < 0.4, 0.5 * (1 - np.cos(np.pi * part / 0.4)), np.cos(0.5 * np.pi * (part - 0.4) / 0.16))
    flow = np.where(part < 0.56, flow, 0.0)
    breath = 0.03 * generator.standard_normal(len(flow)) * (0.3 + flow)
    source = (np.diff(flow, prepend=0.0) + 0.1 * breath) * voice
    path = gaussian_filter1d(formants, 0.022 * RATE / BLOCK, axis=0)
    for k, bandwidth in enumerate(BANDWIDTHS):
        source = _resonate(source, path[:, k], bandwidth)
    return sosfilt(butter(1, [90, 4200], "bandpass", fs=RATE, output="sos"), source)


def _resonate(signal, frequency, bandwidth):
    """A two-pole resonator of unit gain at 0 Hz whose frequency changes every block."""
    out, state = np.empty_like(signal), np.zeros(2)
    radius = np.exp(-np.pi * bandwidth / RATE)
    for index, start in enumerate(range(0, len(signal), BLOCK)):
        a = np.array([1, -2 * radius * np.cos(2 * np.pi * frequency[index] / RATE), radius**2])
        out[start : start + BLOCK], state = lfilter([a.sum()], a, signal[start : start + BLOCK], zi=state)
    return out


def _hiss(level, generator):
    noise = sosfilt(butter(2, [2600, 6200], "bandpass", fs=RATE, output="sos"), generator.standard_normal(len(level)))
    return noise * lfilter([0.01], [1, -0.99], level) * 0.06
