"""How visibly a listener reacts within a segment. Knows nothing of files or of who speaks.

Axes: T frames at 25 fps, K points. A nod, a look aside, a smile or raised brows all change something within a second; a
slow drift does not, and a blink is nobody's reaction.
"""

from dataclasses import dataclass

import numpy as np

from difflistener.mine.faces import MOUTH
from difflistener.motion import FPS

WINDOW = FPS
"""Frames within which a change counts."""
JITTER_FRAMES = 1.5
"""Deviation of the Gaussian that takes the tracker's jitter."""


@dataclass(frozen=True)
class Reaction:
    rotation: float
    """Degrees by which the head turns within a second, at most."""
    expression: float
    """Percent of the inter-ocular distance by which mouth or brows move within a second, at most (mean of the points)."""
    peak: int
    """Frame of the strongest second that is farthest from how the listener mostly is."""

    @property
    def score(self) -> float:
        """Degrees or percent, whichever is more."""
        return max(self.rotation, self.expression)


def measure_reaction(rotation: np.ndarray, points: np.ndarray, valid: np.ndarray) -> Reaction:
    """The strongest change within one second of a listener.

    Args:
        rotation: [T, 3] axis-angle, radians.
        points: [T, K, 2] of mouth and brows in the head frame, in inter-ocular distances, as in `faces.Faces`.
        valid: [T] bool; gaps are interpolated.
    """
    good = np.flatnonzero(valid)
    if len(good) == 0:
        return Reaction(0.0, 0.0, 0)
    turns, moves = _smooth(rotation, good), _smooth(points, good)
    degrees, percent = _degrees(_span(turns)), _percent(_span(moves))
    is_turn = degrees.max() >= percent.max()
    middle = int(np.argmax(degrees if is_turn else percent))
    away = _degrees(turns - np.median(turns, 0)) if is_turn else _percent(moves - np.median(moves, 0))
    first = max(middle - WINDOW // 2, 0)
    return Reaction(float(degrees.max()), float(percent.max()), first + int(np.argmax(away[first : middle + WINDOW // 2 + 1])))


def _degrees(turn: np.ndarray) -> np.ndarray:
    """Angle [T] of turns [T, 3] in radians."""
    return np.degrees(np.linalg.norm(turn, axis=-1))


def _percent(moved: np.ndarray) -> np.ndarray:
    """Mean way [T] of the points of the mouth or of the brows, whichever is more, of ways [T, K, 2]."""
    distance = np.linalg.norm(moved, axis=-1)
    return 100 * np.maximum(distance[:, : len(MOUTH)].mean(1), distance[:, len(MOUTH) :].mean(1))


def _smooth(values: np.ndarray, good: np.ndarray) -> np.ndarray:
    """`values` [T, ...], known at frames `good`, interpolated and without jitter."""
    from scipy.ndimage import gaussian_filter1d

    frames = np.arange(len(values))
    filled = np.stack([np.interp(frames, good, channel[good]) for channel in values.reshape(len(values), -1).T], 1)
    return gaussian_filter1d(filled, JITTER_FRAMES, axis=0, mode="nearest").reshape(values.shape)


def _span(values: np.ndarray) -> np.ndarray:
    """Largest minus smallest value within the window around each frame, of values [T, ...]."""
    from scipy.ndimage import maximum_filter1d, minimum_filter1d

    return maximum_filter1d(values, WINDOW, axis=0, mode="nearest") - minimum_filter1d(values, WINDOW, axis=0, mode="nearest")
