"""A person at a camera -> expression codes, picture by picture, from the past alone: `prepare` as far as it can be done live.

The camera is assumed as `fit_head` assumes it. The person's template is learned from the first frames with a face and derived
again at growing intervals, from a memory of bounded size that is spread over all that was seen; codes glide from the old
to the new. Knows nothing of clocks and sound. Axes: P = 478 landmarks, 50 codes.
"""

from dataclasses import dataclass, replace

import numpy as np

from difflistener.basis import MAX_CODE, NUM_POSTURE, LandmarkBasis
from difflistener.live.texture import Texture
from difflistener.motion import FPS, NUM_EXPRESSION
from difflistener.prepare.expression import Encoder
from difflistener.prepare.face_points import NUM_POINTS, RIGID
from difflistener.prepare.landmarks import FaceTracker
from difflistener.prepare.pose import HeadTrack, fit_head, fit_poses, settle_template, start_poses
from difflistener.prepare.posture import find_posture, fit_follow

FIRST_FRAMES = 8
"""Frames with a face until the first codes."""
POSE_STEPS = 2
SETTLED = 60 * FPS
"""Frames over which it is learned where the head usually is: whoever moves the chair is at rest again after a while."""
MEMORY = 64
GLIDE = FPS
"""Frames over which codes go from an old template to a new one."""
LOST = 2 * FPS
"""Frames without a face after which it may be somebody else."""
STRANGE = 0.02
"""Median distance of rigid landmarks from the template, in inter-ocular distances, that is another person: one's own are within
.015 unless the head is turned far, others' beyond .025 (six people)."""
STRANGE_SIZE = 1.5
"""So is a face larger or smaller than the last one by this factor."""


class SpeakerTracker:
    """Follows one person. Use as a context manager, or call `close`."""

    def __init__(self, basis: LandmarkBasis):
        self._basis = basis
        self._faces = FaceTracker()
        self._person: _Person | None = None
        self._missing = 0

    def __enter__(self) -> "SpeakerTracker":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def close(self) -> None:
        self._faces.close()

    def push(self, frame: np.ndarray) -> np.ndarray | None:
        """Codes [50] float32 of the face in `frame` [H, W, 3] uint8 RGB; None where there is none, or none is known yet."""
        landmarks = self._faces.push(frame)
        if landmarks is None:
            self._missing += 1
            return None
        missed, self._missing = self._missing, 0
        if self._person is None or self._person.size != frame.shape[:2] or (missed > LOST and self._person.is_other(landmarks)):
            self._person = _Person(self._basis, frame.shape[:2])
        return self._person.push(frame, landmarks)


class _Person:
    """What is known of one person's face, in pictures of one `size` (height, width)."""

    def __init__(self, basis: LandmarkBasis, size: tuple[int, int]):
        self.size = size
        self._basis, self._encoder = basis, Encoder(basis)
        self._seen, self._due, self._stride = 0, FIRST_FRAMES, 1
        self._memory: list[_Sight] = []
        self._head: HeadTrack | None = None  # camera and template; its poses mean nothing
        self._last: _Sight | None = None
        self._offset, self._gliding = np.zeros(NUM_EXPRESSION, np.float32), 0

    def push(self, frame: np.ndarray, landmarks: np.ndarray) -> np.ndarray | None:
        """Codes [50], or None before there is a template."""
        self._seen += 1
        if self._head is None:
            self._memory.append(_Sight(landmarks, np.zeros(3), np.zeros(3)))
            if self._seen < FIRST_FRAMES:
                return None
            self._begin()
        self._last = _Sight(landmarks, *self._texture.refine(frame, landmarks, *self._landmark_pose(landmarks)))
        if self._seen % self._stride == 0:
            self._remember(self._last)
        self._usual += (self._posture(self._last) - self._usual) / min(self._seen, SETTLED)
        codes = self._codes(self._last)
        if self._seen >= self._due:
            self._learn()
            new = self._codes(self._last)
            self._offset, self._gliding = codes + self._share_left() * self._offset - new, GLIDE
            codes = new
        shown = codes + self._share_left() * self._offset
        self._gliding = max(self._gliding - 1, 0)
        return np.clip(shown, -MAX_CODE, MAX_CODE)

    def is_other(self, landmarks: np.ndarray) -> bool:
        """Whether a face [P, 3] is of another shape or size."""
        if self._head is None:
            return True
        rotation, translation = self._landmark_pose(landmarks)
        head, size = self._at(rotation, translation), translation[2] / self._last.translation[2]
        miss = np.linalg.norm(head.project(head.template)[0, RIGID] - landmarks[RIGID, :2], axis=1)
        return float(np.median(miss)) > STRANGE * head.pixels_per_unit or not 1 / STRANGE_SIZE < size < STRANGE_SIZE

    def _share_left(self) -> np.float32:
        return np.float32(self._gliding / GLIDE)

    def _begin(self) -> None:
        height, width = self.size
        landmarks = np.stack([sight.landmarks for sight in self._memory])
        head = fit_head(landmarks, np.ones(len(landmarks), bool), width, height)
        self._memory = [_Sight(*parts) for parts in zip(landmarks, head.rotation, head.translation)]
        self._texture = Texture(head.camera, head.template, head.pixels_per_unit)
        self._take(head)

    def _learn(self) -> None:
        """Derive the template again from the memory. It brings a head frame of its own: all poses that are kept move with it."""
        rotations, translations = self._texture.poses
        known = len(self._memory)
        sights = [*self._memory, self._last]
        count = len(sights) + len(rotations)
        landmarks = np.zeros((count, NUM_POINTS, 3), np.float32)
        landmarks[:known] = [sight.landmarks for sight in self._memory]
        head = replace(self._head, rotation=np.concatenate([[sight.rotation for sight in sights], rotations]),
                       translation=np.concatenate([[sight.translation for sight in sights], translations]),
                       cuts=np.zeros(count, bool))
        head = settle_template(head, landmarks, np.arange(count) < known)
        moved = [replace(sight, rotation=rotation, translation=translation)
                 for sight, rotation, translation in zip(sights, head.rotation, head.translation)]
        *self._memory, self._last = moved
        self._texture.move(head.template, head.rotation[known + 1 :], head.translation[known + 1 :])
        self._take(head)

    def _take(self, head: HeadTrack) -> None:
        self._head = head
        self._follow = fit_follow(np.stack([sight.rotation for sight in self._memory]),
                                  np.stack([sight.translation for sight in self._memory]), None)
        self._usual = np.zeros(NUM_POSTURE)  # the mean of the memory
        self._due = 2 * self._seen

    def _remember(self, sight: "_Sight") -> None:
        self._memory.append(sight)
        if len(self._memory) > MEMORY:
            self._memory = self._memory[::2]
            self._stride *= 2

    def _landmark_pose(self, landmarks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        head, landmarks = self._head, landmarks[None]
        start = start_poses(landmarks, head.template, head.camera)
        rotation, translation = fit_poses(landmarks, head.template, head.camera, *start, steps=POSE_STEPS)
        return rotation[0], translation[0]

    def _posture(self, sight: "_Sight") -> np.ndarray:
        return find_posture(self._follow, sight.rotation[None], sight.translation[None], None)[0]

    def _codes(self, sight: "_Sight") -> np.ndarray:
        head = self._at(sight.rotation, sight.translation)
        posture = (self._posture(sight) - self._usual)[None]
        return self._encoder.encode(head, sight.landmarks[None], np.ones(1, bool), posture, smooth=0)[0]

    def _at(self, rotation: np.ndarray, translation: np.ndarray) -> HeadTrack:
        return replace(self._head, rotation=rotation[None], translation=translation[None], cuts=np.zeros(1, bool))


@dataclass(frozen=True)
class _Sight:
    """One picture of a face."""

    landmarks: np.ndarray  # [P, 3] px
    rotation: np.ndarray  # [3]
    translation: np.ndarray  # [3]
