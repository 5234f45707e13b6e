"""The recording -> what both faces do in every frame, in 170 bytes a face: lips, head rotation, a few points of mouth and brows.

One pass over the pictures, stored in pieces, so that an interrupted pass goes on. Knows nothing of sound or of who
speaks. Axes: T frames at 25 fps; 2 people, left first; K points of the face.
"""

from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

from difflistener.clip import replacing
from difflistener.media import num_frames, probe, read_frames
from difflistener.mine.people import Place
from difflistener.motion import FPS
from difflistener.prepare.face_points import BROWS, mouth_opening
from difflistener.prepare.landmarks import FaceTracker
from difflistener.prepare.pose import head_axes
from difflistener.progress import progress

PIECE = 60 * FPS
"""Frames in a stored piece: what an interruption can cost."""
MOUTH = np.array([61, 291, 0, 17, 40, 270, 91, 321])
"""Corners of the mouth, and the outer edge of the lips."""
POINTS = np.concatenate([MOUTH, BROWS[[0, 3, 5, 7, 9]], BROWS[[10, 13, 15, 17, 19]]])
SAME_SIZE = 2.0
"""A face this many times larger or smaller than the person's usual one is another shot."""


@dataclass(frozen=True)
class Faces:
    """What two faces do; rows that are not `valid` are zero."""

    valid: np.ndarray  # [T, 2] bool
    lips: np.ndarray  # [T, 2] distance of the inner lips over that of the outer eye corners
    rotation: np.ndarray  # [T, 2, 3] head rotation, axis-angle, radians, camera axes
    points: np.ndarray  # [T, 2, K, 2] x right, y down in the head frame, in inter-ocular distances

    def __len__(self) -> int:
        return len(self.valid)


def measure(face: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
    """Lips, rotation [3] and points [K, 2], as in `Faces`, of landmarks [478, 3] px."""
    from scipy.spatial.transform import Rotation

    axes, origin, unit = head_axes(face.astype(np.float64))
    points = (face[POINTS] - origin) @ axes / unit
    return float(mouth_opening(face[None])[0]), Rotation.from_matrix(axes).as_rotvec(), points[:, :2]


def scan(video: Path, places: tuple[Place, Place], folder: Path) -> Faces:
    """Follow both faces through `video`. Pieces that stand in `folder` are not made again."""
    total = num_frames(probe(video).duration_s)
    done = len(list(folder.glob("[0-9]*.npz")))
    if not (folder / "end").is_file():
        seen = done * PIECE
        with FaceTracker() as left, FaceTracker() as right:
            for piece in _follow(video, places, (left, right), seen, total):
                with replacing(folder / f"{done:05d}.npz") as temporary, temporary.open("wb") as stream:
                    np.savez(stream, **vars(piece))
                done, seen = done + 1, seen + len(piece)
        (folder / "end").write_text(f"{seen} frames\n")
    pieces = []
    for index in range(done):
        with np.load(folder / f"{index:05d}.npz") as stored:
            pieces.append(Faces(**stored))
    return Faces(*(np.concatenate([getattr(piece, field.name) for piece in pieces]) for field in fields(Faces)))


def _follow(video: Path, places: tuple[Place, Place], trackers: tuple[FaceTracker, FaceTracker], start: int,
            total: int) -> Iterator[Faces]:
    """Pieces of what both faces do, from frame `start` on."""
    rows = []
    for frame, _ in progress(read_frames(video, start / FPS), "find faces", total=total, start=start):
        rows.append([_look(place, tracker.push(place.cut(frame))) for place, tracker in zip(places, trackers)])
        if len(rows) == PIECE:
            yield _stack(rows)
            rows = []
    if rows:
        yield _stack(rows)


def _look(place: Place, face: np.ndarray | None) -> tuple:
    """valid, lips, rotation [3] and points [K, 2] of one face in one frame."""
    if face is None or not 1 / SAME_SIZE < np.ptp(face[:, 1]) / place.face < SAME_SIZE:
        return False, 0.0, np.zeros(3), np.zeros((len(POINTS), 2))
    return True, *measure(face)


def _stack(rows: list) -> Faces:
    valid, *measured = ([[person[k] for person in row] for row in rows] for k in range(4))
    return Faces(np.array(valid, bool), *(np.array(values, np.float32) for values in measured))
