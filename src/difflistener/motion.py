"""The 56 numbers a frame that every part speaks: what they mean, how gaps are filled, how rotations turn.

Knows nothing of media, networks or pixels. Axes: T frames at 25 fps, D = 56 motion.

| index | name       | meaning                                                                 |
|-------|------------|-------------------------------------------------------------------------|
| 0:50  | expression | coefficients in an expression basis, about unit variance                |
| 50:53 | rotation   | head rotation, axis-angle, radians, OpenCV camera axes (x right, y down, z away) |
| 53:56 | jaw        | jaw rotation, axis-angle, radians, the same axes (zeros where the basis carries the jaw) |

Zero rotation looks straight into the camera. Values are float32 and never stored normalised.
"""

from dataclasses import dataclass

import numpy as np
from scipy.spatial.transform import Rotation, Slerp

from difflistener.errors import UserError

FPS = 25
NUM_EXPRESSION = 50
NUM_MOTION = 56
EXPRESSION = slice(0, 50)
ROTATION = slice(50, 53)
JAW = slice(53, 56)
NUM_EYES = 4
MAX_GAP_FRAMES = 12
"""Longest run of missing frames that is interpolated: half a second."""

FLAME_BASES = ("flame2020", "flame2023", "flame2023-open")


FLIP = np.array([1.0, -1.0, -1.0])
"""FLAME's axes to ours, of points and of axis-angles alike: its y points up and its z at the camera."""


def from_flame(values: np.ndarray) -> np.ndarray:
    """Motion [T, 56] from FLAME's expression, rotation and jaw as trackers store them, in its axes."""
    return values * np.concatenate([np.ones(NUM_EXPRESSION), FLIP, FLIP]).astype(values.dtype)


@dataclass(frozen=True)
class Motion:
    """One person's motion. Raises `ValueError` where shapes disagree or a number is not finite.

    `eyes` holds left and right eyelid closure (0 open .. 1 shut), gaze yaw and pitch (radians), for bases that
    cannot blink. `translation` is the tracked head position in camera axes, in inter-ocular distances.
    """

    values: np.ndarray  # [T, 56]
    basis: str
    valid: np.ndarray  # [T] bool
    eyes: np.ndarray | None = None  # [T, 4]
    translation: np.ndarray | None = None  # [T, 3]

    def __post_init__(self):
        num_frames = len(self.values)
        expected = {"values": (num_frames, NUM_MOTION), "valid": (num_frames,), "eyes": (num_frames, NUM_EYES),
                    "translation": (num_frames, 3)}
        for name, shape in expected.items():
            array = getattr(self, name)
            if array is None:
                continue
            if array.shape != shape:
                raise ValueError(f"motion {name} has shape {array.shape}, expected {shape}")
            check_finite(array, f"motion {name}")

    def __len__(self) -> int:
        return len(self.values)

    @property
    def expression(self) -> np.ndarray:
        return self.values[:, EXPRESSION]

    @property
    def rotation(self) -> np.ndarray:
        return self.values[:, ROTATION]

    @property
    def jaw(self) -> np.ndarray:
        return self.values[:, JAW]


def check_finite(array: np.ndarray, name: str) -> None:
    """Raise `ValueError` naming the first frame of `array` [T, ...] that holds NaN or infinity."""
    if array.dtype.kind != "f":
        return
    bad = ~np.isfinite(array.reshape(len(array), -1)).all(axis=1)
    if bad.any():
        raise ValueError(f"{name} is not finite at frame {int(np.flatnonzero(bad)[0])} ({int(bad.sum())} such frames)")


def require_same_basis(basis_of_brain: str, basis_of_body: str, brain: str, body: str) -> None:
    """Refuse to drive a body with motion of another basis."""
    if basis_of_brain != basis_of_body:
        raise UserError(
            f"The brain {brain} speaks basis {basis_of_brain}, the body {body} speaks basis {basis_of_body}.",
            "Prepare one of the two clips again with --basis naming the other's basis file, and train on it.",
        )


def runs(mask: np.ndarray) -> list[tuple[int, int]]:
    """The runs of true frames in `mask` [T] as (start, stop) pairs, stop excluded."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], mask.astype(bool), [False]])))
    return [(int(a), int(b)) for a, b in zip(edges[::2], edges[1::2])]


def fill_gaps(values: np.ndarray, valid: np.ndarray, is_rotation: bool = False) -> np.ndarray:
    """Replace invalid rows of `values` [T, C] by interpolation in time; ends hold the nearest valid row.

    Axis-angle rows (`is_rotation`, C = 3) are interpolated on the sphere. All-invalid input raises `ValueError`.
    """
    if valid.all():
        return values.copy()
    good = np.flatnonzero(valid)
    if len(good) == 0:
        raise ValueError("no valid frame to interpolate from")
    frames = np.clip(np.arange(len(values)), good[0], good[-1])
    if is_rotation and len(good) > 1:
        filled = Slerp(good, Rotation.from_rotvec(values[good].astype(np.float64)))(frames).as_rotvec()
        filled = unwrap_rotation(filled)
    else:
        flat = values.reshape(len(values), -1)
        filled = np.stack([np.interp(frames, good, flat[good, c]) for c in range(flat.shape[1])], 1)
        filled = filled.reshape(values.shape)
    filled = filled.astype(values.dtype)
    filled[valid] = values[valid]
    return filled


def fillable(valid: np.ndarray, max_gap: int = MAX_GAP_FRAMES) -> np.ndarray:
    """`valid` [T] with inner gaps of at most `max_gap` frames closed: the frames that interpolation may cover."""
    usable = valid.astype(bool).copy()
    for start, stop in runs(~usable):
        if start > 0 and stop < len(usable) and stop - start <= max_gap:
            usable[start:stop] = True
    return usable


def unwrap_rotation(axis_angle: np.ndarray) -> np.ndarray:
    """Axis-angle track [T, 3] without jumps of a full turn between neighbouring frames."""
    track = axis_angle.copy()
    for k in range(1, len(track)):
        angle = np.linalg.norm(track[k])
        if angle > 1e-6:
            other = track[k] * (1 - 2 * np.pi / angle)
            if np.linalg.norm(other - track[k - 1]) < np.linalg.norm(track[k] - track[k - 1]):
                track[k] = other
    return track
