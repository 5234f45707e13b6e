"""The made-up basis `toy-law`: twelve things a face does, mixed into 50 codes, and noise with a spectrum like a real face's.

A code is a mix of all twelve doings plus noise of its own, as in a principal-component basis: no code is any one of them,
every code moves, each with about unit variance. `read` gets the doings back from codes, whoever generated them.
Knows nothing of events or files. Axes: T frames at 25 fps.
"""

import numpy as np
from scipy.signal import lfilter

from difflistener.motion import FPS, NUM_EXPRESSION

BASIS = "toy-law"

DOINGS = {
    "smile": (0.17, 0.23), "brow": (-0.05, 0.18), "blink": (0.05, 0.19), "gaze_yaw": (0.0, 0.11), "gaze_pitch": (0.0, 0.03),
    "mouth": (0.06, 0.10), "lean": (0.0, 1.0), "turn": (0.0, 1.0),
    "mood_1": (0.0, 1.3), "mood_2": (0.0, 1.3), "mood_3": (0.0, 1.3), "mood_4": (0.0, 1.3),
}
"""Doing -> mean and deviation that become 0 and 1 in the mix. Smile, brow, blink and mouth are about 0..1, gaze in
radians; lean and turn follow the head, as shoulders do; moods follow nothing and are the least part."""
NAMES = tuple(DOINGS)
_MEAN, _STD = np.array(list(DOINGS.values())).T
_GAIN = np.sqrt(NUM_EXPRESSION / len(DOINGS))
"""Makes the mean variance of the codes that of the doings."""
_DIRECTIONS = np.linalg.qr(np.random.default_rng(50).standard_normal((NUM_EXPRESSION, len(DOINGS))))[0]
"""[50,12] orthonormal."""

OWN_NOISE = 0.40
"""Deviation of a code's own noise."""


def mix(doings: dict[str, np.ndarray], generator: np.random.Generator) -> np.ndarray:
    """Codes [T,50] float32 of doings [T] by name; moods and the noise of each code are drawn here.

    The noise (time constants 0.25 and 0.05 s) gives the codes, with the events on top, the mean autocorrelation of the
    codes of four real tracks; see tests/test_corpus.py.
    """
    frames = len(doings["smile"])
    moods = coloured(frames, 4, 0.2, generator)
    values = np.stack([*(doings[name] for name in NAMES[:8]), *moods.T], 1)
    noise = 0.7 * coloured(frames, NUM_EXPRESSION, 0.15, generator) + 0.7 * coloured(frames, NUM_EXPRESSION, 0.04, generator)
    return (_GAIN * ((values - _MEAN) / _STD) @ _DIRECTIONS.T + OWN_NOISE * noise).astype(np.float32)


def read(codes: np.ndarray) -> dict[str, np.ndarray]:
    """Doings [...,T] by name of codes [...,T,50]."""
    values = np.asarray(codes, np.float64) @ _DIRECTIONS / _GAIN * _STD + _MEAN
    return {name: values[..., k] for k, name in enumerate(NAMES)}


def coloured(frames: int, channels: int, seconds: float, generator: np.random.Generator) -> np.ndarray:
    """[frames, channels] stationary noise of unit variance: white noise through two equal poles.

    Its autocorrelation at lag t is about (1 + t/s) exp(-t/s) with s = `seconds`: smooth, without a preferred frequency.
    """
    pole = np.exp(-1 / (seconds * FPS))
    gain = np.sqrt((1 - pole**2) ** 3 / (1 + pole**2))
    past = int(np.ceil(10 * seconds * FPS))
    white = generator.standard_normal((frames + past, channels))
    return lfilter([gain], [1, -2 * pole, pole**2], white, axis=0)[past:]


def swaying(frames: int, channels: int, fast: float, generator: np.random.Generator) -> np.ndarray:
    """[frames, channels] noise of unit variance as an idle head moves: time constant 0.8 s, and a share `fast` of 0.12 s.

    With 0.15 its autocorrelation at 1, 5, 12, 25 and 50 frames is .99 .90 .76 .55 .24. Head rotations of real tracks, means
    over the two of clips/dualtalk and the first 140 s of talking_face.webm: .99 .88 .73 .56 .31.
    """
    slow = np.sqrt(1 - fast) * coloured(frames, channels, 0.8, generator)
    return slow + np.sqrt(fast) * coloured(frames, channels, 0.12, generator)
