"""Frames -> 478 face landmarks a frame, by MediaPipe FaceMesh with the models in its wheel.

Knows which face to follow and when there is none; knows nothing of files, head pose or expression.
Landmarks are in pixels of the frame: x right, y down, z away from the camera, scaled like x and relative to the head.
"""

import os
import sys
import warnings
from collections.abc import Iterable
from contextlib import contextmanager

import numpy as np

from difflistener.errors import UserError, require
from difflistener.motion import MAX_GAP_FRAMES
from difflistener.prepare.face_points import FACE_OVAL, NUM_POINTS, OUTER_EYE_CORNERS

MIN_CONFIDENCE = 0.5
SEARCH_CONFIDENCE = 0.7
"""Asked of a face that is only found in an enlarged part of the frame, where false alarms are likelier."""
MIN_INSIDE = 0.9
"""Least part of the landmarks inside the frame: beyond, FaceMesh invents the rest of the face."""
MIN_FACE_PX = 24
MAX_JUMP = 0.5
"""Farthest a face moves between two frames of one shot, in face heights."""
CUT_LEVELS = 20.0
"""Mean change of a 32x32 thumbnail, of 255 grey levels, that is a cut to another shot."""
SETTLE_JUMP = 0.04
"""A face that moved farther than this, in face heights, is looked at twice: FaceMesh crops where the face was."""


class FaceTracker:
    """Follows one face through frames pushed one by one. Use as a context manager, or call `close`.

    Of several faces it takes the largest first, then the one nearest to where the face was. A face that jumps
    within a shot is believed only after `MAX_GAP_FRAMES` frames.
    """

    def __init__(self):
        self._mesh = _face_mesh(static=False, confidence=MIN_CONFIDENCE)
        self._still = None
        self._previous: np.ndarray | None = None
        self._missing = 0
        self._thumbnail: np.ndarray | None = None
        self._window = 0

    def __enter__(self) -> "FaceTracker":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def close(self) -> None:
        self._mesh.close()
        if self._still is not None:
            self._still.close()

    def push(self, frame: np.ndarray) -> np.ndarray | None:
        """Landmarks [478, 3] float32 of the face in `frame` [H, W, 3] uint8 RGB, or None where there is none."""
        is_cut = self._is_cut(frame)
        face = self._choose(_faces(self._mesh, frame), is_cut)
        if face is not None and self._previous is not None and _distance(face, self._previous) > SETTLE_JUMP:
            face = self._choose(_faces(self._mesh, frame), is_cut)
        if face is None:
            face = self._choose(self._search(frame), is_cut)
        if face is None:
            self._missing += 1
            if self._missing > MAX_GAP_FRAMES:
                self._previous = None
            return None
        self._previous, self._missing = face, 0
        return face

    def _choose(self, faces: list[np.ndarray], is_cut: bool) -> np.ndarray | None:
        if not faces:
            return None
        if self._previous is None or is_cut:
            return max(faces, key=_height)
        nearest = min(faces, key=lambda face: _distance(face, self._previous))
        return nearest if _distance(nearest, self._previous) < MAX_JUMP * (1 + self._missing) else None

    def _is_cut(self, frame: np.ndarray) -> bool:
        import cv2

        thumbnail = cv2.resize(frame, (32, 32), interpolation=cv2.INTER_AREA).astype(np.float32).mean(-1)
        before, self._thumbnail = self._thumbnail, thumbnail
        return before is not None and np.abs(thumbnail - before).mean() > CUT_LEVELS

    def _search(self, frame: np.ndarray) -> list[np.ndarray]:
        """Look in one enlarged part of the frame: around the lost face, else the next of five half-size windows."""
        import cv2

        height, width = frame.shape[:2]
        if self._previous is not None:
            centre, half = self._previous[:, :2].mean(0), 1.25 * _height(self._previous)
        else:
            spots = [(0.5, 0.5), (0.3, 0.3), (0.7, 0.3), (0.3, 0.7), (0.7, 0.7)]
            centre = np.array(spots[self._window % 5]) * (width, height)
            half = 0.3 * min(width, height) if min(width, height) > 4 * MIN_FACE_PX else 0.5 * max(width, height)
            self._window += 1
        left, top = np.clip(centre - half, 0, None).astype(int)
        right, bottom = np.minimum(np.ceil(centre + half), (width, height)).astype(int)
        if right - left < MIN_FACE_PX or bottom - top < MIN_FACE_PX:
            return []
        if self._still is None:
            self._still = _face_mesh(static=True, confidence=SEARCH_CONFIDENCE)
        scale = max(1.0, 256 / (bottom - top))
        part = cv2.resize(frame[top:bottom, left:right], None, fx=scale, fy=scale, interpolation=cv2.INTER_LINEAR)
        faces = _faces(self._still, part)
        return [face / np.float32(scale) + np.array([left, top, 0], np.float32) for face in faces]


class FaceFinder:
    """Finds every face of single pictures: in the whole, and in overlapping squares along its longer side, where faces
    are larger. Use as a context manager."""

    def __init__(self):
        self._mesh = _face_mesh(static=True, confidence=SEARCH_CONFIDENCE)

    def __enter__(self) -> "FaceFinder":
        return self

    def __exit__(self, *_) -> None:
        self._mesh.close()

    def find(self, frame: np.ndarray) -> list[np.ndarray]:
        """Landmarks [478, 3] float32 of each face in `frame` [H, W, 3] uint8 RGB; one face may come more than once."""
        height, width = frame.shape[:2]
        side = min(height, width)
        count = 1 + int(np.ceil(2 * (max(height, width) / side - 1)))
        faces = _faces(self._mesh, frame)
        for left, top in np.linspace((0, 0), (width - side, height - side), count).astype(int) if count > 1 else ():
            found = _faces(self._mesh, frame[top : top + side, left : left + side])
            faces += [face + np.array([left, top, 0], np.float32) for face in found]
        return faces


def track_landmarks(frames: Iterable[np.ndarray], name: str) -> tuple[np.ndarray, np.ndarray]:
    """Landmarks [T, 478, 3] float32 and valid [T] bool of `frames` (uint8 [H, W, 3] RGB); zeros where not valid.

    `name` is what the user calls the video. One frame in memory at a time.

    Raises:
        UserError: no face in any frame.
    """
    found: list[np.ndarray | None] = []
    with FaceTracker() as tracker:
        for frame in frames:
            found.append(tracker.push(frame))
    valid = np.array([face is not None for face in found], bool)
    if not valid.any():
        raise UserError(f"No face was found in any of the {len(found)} frames of {name}.",
                        "Use a video in which one face is seen from the front, at least 60 pixels high and well lit.")
    landmarks = np.zeros((len(found), NUM_POINTS, 3), np.float32)
    for index in np.flatnonzero(valid):
        landmarks[index] = found[index]
    return landmarks, valid


def _face_mesh(static: bool, confidence: float):
    os.environ.setdefault("GLOG_minloglevel", "2")
    with quiet():
        mediapipe = require("mediapipe")
        mesh = mediapipe.solutions.face_mesh.FaceMesh(
            static_image_mode=static, max_num_faces=2, refine_landmarks=True,
            min_detection_confidence=confidence, min_tracking_confidence=MIN_CONFIDENCE)
        mesh.process(np.zeros((64, 64, 3), np.uint8))
    return mesh


@contextmanager
def quiet():
    """Silence the C++ and protobuf chatter of a starting graph, which no Python setting reaches."""
    sys.stderr.flush()
    stderr, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="SymbolDatabase.GetPrototype")
            yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        os.close(nowhere)


def _faces(mesh, frame: np.ndarray) -> list[np.ndarray]:
    """Plausible faces, each [478, 3] px."""
    height, width = frame.shape[:2]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="SymbolDatabase.GetPrototype")
        found = mesh.process(np.ascontiguousarray(frame)).multi_face_landmarks or []
    faces = [np.array([(p.x, p.y, p.z) for p in face.landmark], np.float32) * np.float32([width, height, width])
             for face in found]
    return [face for face in faces if _is_plausible(face, width, height)]


def _is_plausible(face: np.ndarray, width: int, height: int) -> bool:
    """Whether `face` [478, 3] lies in the frame and has the size and proportions of a face (in 3-D, so at any turn)."""
    if not np.isfinite(face).all():
        return False
    xy = face[:, :2]
    inside = ((xy >= 0) & (xy < (width, height))).all(1).mean()
    eyes = np.linalg.norm(np.subtract(*face[OUTER_EYE_CORNERS]))
    tall = np.linalg.norm(face[10] - face[152])
    return inside >= MIN_INSIDE and _height(face) >= MIN_FACE_PX and 1.2 < tall / max(eyes, 1e-6) < 3.2


def _height(face: np.ndarray) -> float:
    """Larger side of the outline, px: does not shrink as a head turns aside."""
    return float(np.ptp(face[FACE_OVAL, :2], axis=0).max())


def _distance(face: np.ndarray, other: np.ndarray) -> float:
    """How far apart two faces are, in face heights; another size counts too."""
    shift = np.linalg.norm(face[:, :2].mean(0) - other[:, :2].mean(0)) / _height(other)
    return float(shift + abs(np.log(_height(face) / _height(other))))
