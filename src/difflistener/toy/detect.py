"""Finds nods, smiles, raised brows and blinks in motion, whoever made it: the law, a brain, noise.

The same detector reads truth and generated motion, so its own habits fall on both sides. Knows nothing of causes but
their times. Axes: T frames at 25 fps, times in seconds.
"""

from collections.abc import Callable

import numpy as np
from scipy.ndimage import maximum_filter1d, uniform_filter1d

from difflistener.motion import FPS

from .codes import read
from .conversation import NOD_DOWN, RAISE

PITCH = 50
"""Index of rotation about x in motion."""
NOD_DEGREES = 3.2
"""Least depth that counts: half of the shallowest nod of the law, three deviations of what sway does."""
LATE = 0.02
"""Seconds by which the deepest point seems late: a nod rises more slowly than it falls."""
SMILE_RISE, BROW_RISE, SHUT = 0.17, 0.20, 0.5
SMILE_SECONDS = 0.35
"""In which a smile rises."""
KINDS = ("nod", "smile", "brow", "blink")


def detect(motion: np.ndarray, read: Callable[[np.ndarray], dict[str, np.ndarray]] = read) -> dict[str, np.ndarray]:
    """Starts [n] of each kind of event in motion [T,56]; `read` gets the doings from codes: of basis `toy-law`, or of `Faces`."""
    doings = read(motion[:, :50])
    pitch = uniform_filter1d(motion[:, PITCH].astype(float), 3)
    # How far the nose is below where it was 0.28 s before and is 0.56 s later.
    depth = pitch - 0.5 * (_at(pitch, -7) + _at(pitch, 14))
    return {
        "nod": _peaks(depth, np.deg2rad(NOD_DEGREES), 12, pitch) - NOD_DOWN - LATE,
        "smile": _rises(doings["smile"], SMILE_RISE, SMILE_SECONDS, 6),
        "brow": _rises(doings["brow"], BROW_RISE, RAISE, 2),
        "blink": _shuts(doings["blink"]),
    }


def _at(x: np.ndarray, shift: int) -> np.ndarray:
    """x[t + shift], the ends held."""
    return x[np.clip(np.arange(len(x)) + shift, 0, len(x) - 1)]


def _peaks(score: np.ndarray, least: float, apart: int, place: np.ndarray) -> np.ndarray:
    """Times of the highest `score` within `apart` frames either side, if above `least`; placed at the top of `place` nearby."""
    top = np.flatnonzero((score >= maximum_filter1d(score, 2 * apart + 1)) & (score > least))
    top = top[(top > 0) & (top < len(score) - 1)]
    found = []
    for frame in top:
        near = np.arange(max(frame - 5, 1), min(frame + 6, len(place) - 1))
        best = near[place[near].argmax()]
        a, b, c = place[best - 1 : best + 2]
        bend = a - 2 * b + c
        found.append((best + (0.5 * (a - c) / bend if bend < 0 and b >= max(a, c) else 0)) / FPS)
    return np.array(found)


def _rises(level: np.ndarray, least: float, seconds: float, hold: int) -> np.ndarray:
    """Starts of rises by at least `least` that take `seconds`, means over 2 `hold` + 1 frames before and after compared."""
    half = round(seconds * FPS / 2)
    smooth = uniform_filter1d(level, 2 * hold + 1)
    rise = _at(smooth, half + hold) - _at(smooth, -half - hold)
    steep = uniform_filter1d(_at(level, half) - _at(level, -half), 3)
    return _peaks(rise, least, 10, steep) - seconds / 2


def _shuts(closure: np.ndarray) -> np.ndarray:
    """Starts of blinks: crossings of `SHUT` upwards, at least 0.24 s apart; lids need 0.04 s to get there."""
    shut = closure > SHUT
    starts, last = [], -np.inf
    for frame in np.flatnonzero(shut[1:] & ~shut[:-1]) + 1:
        if frame - last >= 6:
            starts.append(frame / FPS - 0.04)
            last = frame
    return np.array(starts)


def match(found: np.ndarray, truth: np.ndarray, tolerance: float) -> tuple[float, float]:
    """Hit rate (share of `truth` with a find within `tolerance` s) and false alarms (share of finds without a truth)."""
    if len(found) == 0 or len(truth) == 0:
        return (1.0 if len(truth) == 0 else 0.0), (1.0 if len(found) else 0.0)
    apart = np.abs(found[:, None] - truth[None])
    return float((apart.min(0) <= tolerance).mean()), float((apart.min(1) > tolerance).mean())


def answers(found: np.ndarray, causes: np.ndarray, first: float, last: float) -> np.ndarray:
    """Delay [C] of the first event within `first` to `last` s after each cause; NaN where there is none."""
    delays = np.full(len(causes), np.nan)
    for index, cause in enumerate(causes):
        after = found[(found > cause + first) & (found < cause + last)]
        if len(after):
            delays[index] = after[0] - cause
    return delays
