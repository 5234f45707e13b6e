"""What a face tracker makes of rendered frames against the film: landmark distance, and jitter over time.

Both are tracked anew by the same tracker in video mode, in order from the first frame, so that the tracker's own habits
fall on both sides. Knows nothing of bodies or files. Axes: T frames at 25 fps, P = 478 landmarks, px of the frames given.
"""

from collections.abc import Iterable

import numpy as np
from scipy.signal import welch

from difflistener.motion import FPS, fill_gaps
from difflistener.prepare.face_points import LIPS, NUM_POINTS

JITTER_HZ = 6.0
"""Faces hardly move faster than this: what lies above is taken as jitter."""
WINDOW = 64
"""Frames of one window of the spectrum."""
MIN_FRAMES = 16
"""Frames below which there is no spectrum to speak of."""


def retrack(frames: Iterable[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Landmarks [T, 478, 2] px of `frames` (uint8 [H, W, 3] RGB) tracked as one video, and found [T] bool; zeros where not.

    Unlike `prepare`, a video without any face is no error: it is a finding.
    """
    from difflistener.prepare.landmarks import FaceTracker

    with FaceTracker() as tracker:
        faces = [tracker.push(np.ascontiguousarray(frame)) for frame in frames]
    points = np.zeros((len(faces), NUM_POINTS, 2), np.float32)
    for index, face in enumerate(faces):
        if face is not None:
            points[index] = face[:, :2]
    return points, np.array([face is not None for face in faces], bool)


def landmark_distance(points: np.ndarray, truth: np.ndarray, valid: np.ndarray) -> dict[str, float]:
    """LMD in px over the valid frames: mean distance of the 40 mouth landmarks, each mouth's mean taken off first
    (Chen et al., "Lip Movements Generation at a Glance", ECCV 2018), and of all landmarks as they lie.

    Args:
        points, truth: [T, 478, 2]. valid: [T] frames with a face in both; NaN where there is none.
    """
    if not valid.any():
        return {"lmd_mouth": float("nan"), "lmd_face": float("nan")}
    points, truth = points[valid], truth[valid]
    mouths = [p[:, LIPS] - p[:, LIPS].mean(1, keepdims=True) for p in (points, truth)]
    return {"lmd_mouth": _mean_distance(*mouths), "lmd_face": _mean_distance(points, truth)}


def jitter_power(points: np.ndarray, valid: np.ndarray) -> float:
    """Power above 6 Hz of the landmarks' paths in px^2, x and y added, mean over landmarks. NaN below 16 frames.

    Welch's spectrum (Hann windows of up to 64 frames, half overlapped, a line taken off each). Frames that are not
    valid are interpolated, which adds no power of its own: compare only paths with the same `valid` [T].
    """
    if len(points) < MIN_FRAMES or valid.sum() < MIN_FRAMES:
        return float("nan")
    paths = fill_gaps(points.astype(np.float64), valid)
    frequency, density = welch(paths, FPS, nperseg=min(WINDOW, len(paths)), detrend="linear", axis=0)
    power = density[frequency > JITTER_HZ].sum(0) * (frequency[1] - frequency[0])
    return float(power.sum(-1).mean())


def compare(points: np.ndarray, found: np.ndarray, truth: np.ndarray, truth_found: np.ndarray) -> dict[str, float]:
    """All figures of a re-tracked render [T, 478, 2] against the film's: `lmd_mouth`, `lmd_face` (px), `jitter` (ratio of
    powers, 1 is the film's) and `lost` (frames in which the film has a face and the render has none)."""
    both = found & truth_found
    power, power_of_truth = jitter_power(points, both), jitter_power(truth, both)
    return landmark_distance(points, truth, both) | {
        "jitter": power / power_of_truth if power_of_truth > 0 else float("nan"), "lost": int((truth_found & ~found).sum()),
    }


def _mean_distance(points: np.ndarray, truth: np.ndarray) -> float:
    return float(np.linalg.norm(points - truth, axis=-1).mean())
