"""Landmark poses -> steadier poses, frame by frame, from the texture of skin and hair.

Landmarks slide over the face as it turns and talks; texture does not. A few pictures of different poses are kept as keyframes;
corners on the rigid part of the nearest two are looked for in each new picture (Lucas-Kanade, Bouguet 2001), and the pose
is the one that explains them, held to the landmarks only weakly. The live kin of `prepare.flow`: it looks at the past alone
and takes about 2 ms. Knows nothing of expression. Axes: K corners of a keyframe, P = 478 landmarks, OpenCV camera axes.
"""

from dataclasses import dataclass

import numpy as np
from scipy.spatial import cKDTree

from difflistener.prepare.bundle import Camera, left_jacobians, robust_weights, rotation_matrices, skew
from difflistener.prepare.face_points import RIGID
from difflistener.prepare.flow import head_mask
from difflistener.prepare.pose import LANDMARK_SCALE

WORKING_UNIT = 65.0
"""Pictures are scaled down to this many pixels for an inter-ocular distance."""
CORNERS = 64
MAX_KEYFRAMES = 16
"""The one used longest ago makes room."""
USED_KEYFRAMES = 2
KEYFRAME_ANGLE = 0.2
"""A head turned farther than this from every keyframe, radians, becomes one."""
MIN_MATCHED = 0.4
"""So does a picture in which less than this part of a keyframe's corners is found."""
ENOUGH_CORNERS = 12
"""With fewer, the landmarks are believed."""
WINDOW = 13
MAX_ERROR = 12.0
"""Mean difference of a corner's surroundings from where it was found, grey levels after `_even`."""
MAX_SHIFT = 0.06
"""Farthest a corner is found from where the others say it is, in inter-ocular distances."""
CORNER_SCALES_PX = (2.0, 0.8, 0.8)
LANDMARK_WEIGHT = 2.0
"""Weight of all rigid landmarks together, in corners."""
LIFT_NEAREST = 3


@dataclass
class _Keyframe:
    picture: np.ndarray  # [h, w] uint8
    corners: np.ndarray  # [K, 2] float32 px
    rotation: np.ndarray  # [3]
    translation: np.ndarray  # [3]
    points: np.ndarray  # [K, 3] corners in the head frame
    used: int


class Texture:
    """The texture of one head.

    Args:
        camera, template: as of a `HeadTrack`.
        unit: pixels of an inter-ocular distance.
    """

    def __init__(self, camera: Camera, template: np.ndarray, unit: float):
        self._scale = min(1.0, WORKING_UNIT / unit)
        self._camera = Camera(*(self._scale * value for value in (camera.focal, camera.cx, camera.cy)))
        self._template, self._unit = template, self._scale * unit
        self._keyframes: list[_Keyframe] = []
        self._count = 0

    def refine(self, frame: np.ndarray, landmarks: np.ndarray, rotation: np.ndarray,
               translation: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Rotation and translation [3] each of the head in `frame` [H, W, 3], from what its landmarks [P, 2 or 3] px say."""
        import cv2

        self._count += 1
        grey = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)
        if self._scale < 1:
            grey = cv2.resize(grey, None, fx=self._scale, fy=self._scale, interpolation=cv2.INTER_LINEAR)
        picture = _even(grey, self._unit)
        landmarks = landmarks[:, :2] * self._scale
        angles = [_angle(rotation, keyframe.rotation) for keyframe in self._keyframes]
        found = [self._look_for(self._keyframes[place], picture, rotation, translation)
                 for place in np.argsort(angles)[:USED_KEYFRAMES]]
        if sum(len(seen) for _, seen, _ in found) >= ENOUGH_CORNERS:
            points, seen = (np.concatenate(part) for part in list(zip(*found))[:2])
            rotation, translation = self._fit(points, seen, landmarks, rotation, translation)
        matched = max((share for _, _, share in found), default=0.0)
        if min(angles, default=np.inf) > KEYFRAME_ANGLE or matched < MIN_MATCHED:
            self._remember(grey, picture, landmarks, rotation, translation)
        return rotation, translation

    @property
    def poses(self) -> tuple[np.ndarray, np.ndarray]:
        """Rotations and translations [k, 3] of the keyframes."""
        return (np.array([keyframe.rotation for keyframe in self._keyframes]).reshape(-1, 3),
                np.array([keyframe.translation for keyframe in self._keyframes]).reshape(-1, 3))

    def move(self, template: np.ndarray, rotations: np.ndarray, translations: np.ndarray) -> None:
        """Take another template, and the keyframes' poses in its head frame."""
        self._template = template
        for keyframe, rotation, translation in zip(self._keyframes, rotations, translations):
            keyframe.rotation, keyframe.translation = rotation, translation
            keyframe.points = self._lift(keyframe.corners, rotation, translation)

    def _look_for(self, keyframe: _Keyframe, picture: np.ndarray, rotation: np.ndarray, translation: np.ndarray):
        """Head points [k, 3] of the corners that were found, where [k, 2] px, and which part of all that is."""
        import cv2

        expected = self._camera.project(keyframe.points @ rotation_matrices(rotation).T + translation).astype(np.float32)
        seen, status, error = cv2.calcOpticalFlowPyrLK(
            keyframe.picture, picture, keyframe.corners, expected.copy(), winSize=(WINDOW, WINDOW), maxLevel=1,
            criteria=(cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, 12, 0.02), flags=cv2.OPTFLOW_USE_INITIAL_FLOW)
        good = (status[:, 0] > 0) & (error[:, 0] < MAX_ERROR)
        if good.any():
            shift = seen - expected
            good &= np.linalg.norm(shift - np.median(shift[good], axis=0), axis=1) < MAX_SHIFT * self._unit
        keyframe.used = self._count
        return keyframe.points[good], seen[good], good.mean()

    def _fit(self, points: np.ndarray, seen: np.ndarray, landmarks: np.ndarray, rotation: np.ndarray, translation: np.ndarray):
        """Robust Gauss-Newton on corners, with the rigid landmarks as a weak anchor."""
        corners = len(points)
        points, seen = np.concatenate([points, self._template[RIGID]]), np.concatenate([seen, landmarks[RIGID]])
        is_corner = np.arange(len(points)) < corners
        share = np.where(is_corner, 1.0, LANDMARK_WEIGHT / len(RIGID))
        for pixels in CORNER_SCALES_PX:
            turned = points @ rotation_matrices(rotation).T
            placed = turned + translation
            residual = seen - self._camera.project(placed)
            scale = np.where(is_corner, pixels * self._unit / WORKING_UNIT, 2 * LANDMARK_SCALE * self._unit)
            weight = share * robust_weights((residual**2).sum(1), scale)
            by_camera = self._camera.jacobian(placed)
            jacobian = np.concatenate([-by_camera @ skew(turned) @ left_jacobians(rotation), by_camera], -1)
            weighted = (jacobian * weight[:, None, None]).reshape(-1, 6)
            flat = jacobian.reshape(-1, 6)
            change = np.linalg.solve(weighted.T @ flat + 1e-6 * np.eye(6), weighted.T @ residual.reshape(-1))
            rotation, translation = rotation + change[:3], translation + change[3:]
        return rotation, translation

    def _remember(self, grey: np.ndarray, picture: np.ndarray, landmarks: np.ndarray, rotation: np.ndarray,
                  translation: np.ndarray) -> None:
        import cv2

        found = cv2.goodFeaturesToTrack(grey, CORNERS, 0.005, max(3.0, 0.06 * self._unit), mask=head_mask(grey.shape, landmarks),
                                        blockSize=5)
        if found is None or len(found) < ENOUGH_CORNERS:
            return
        corners = found.reshape(-1, 2)
        if len(self._keyframes) == MAX_KEYFRAMES:
            self._keyframes.pop(int(np.argmin([keyframe.used for keyframe in self._keyframes])))
        self._keyframes.append(_Keyframe(picture, corners, rotation, translation, self._lift(corners, rotation, translation),
                                         self._count))

    def _lift(self, corners: np.ndarray, rotation: np.ndarray, translation: np.ndarray) -> np.ndarray:
        """Head points [K, 3] seen at `corners` [K, 2] px, at the depth of the nearest template points."""
        matrix = rotation_matrices(rotation)
        placed = self._template @ matrix.T + translation
        distance, nearest = cKDTree(self._camera.project(placed)).query(corners, LIFT_NEAREST)
        near = 1 / (distance + 1e-2 * self._unit)
        depth = (near * placed[nearest, 2]).sum(1) / near.sum(1)
        ray = (corners - (self._camera.cx, self._camera.cy)) / self._camera.focal
        return (np.column_stack([ray * depth[:, None], depth]) - translation) @ matrix


def _even(grey: np.ndarray, unit: float) -> np.ndarray:
    """Texture alone, uint8: neither the light nor the camera's exposure matter."""
    import cv2

    grey = grey.astype(np.float32)
    texture = cv2.GaussianBlur(grey, (0, 0), 0.7) - cv2.GaussianBlur(grey, (0, 0), 0.12 * unit)
    return np.clip(128 + 3 * texture, 0, 255).astype(np.uint8)


def _angle(rotation: np.ndarray, other: np.ndarray) -> float:
    """Angle between two axis-angle rotations, radians."""
    trace = np.trace(rotation_matrices(rotation) @ rotation_matrices(other).T)
    return float(np.arccos(np.clip((trace - 1) / 2, -1, 1)))
