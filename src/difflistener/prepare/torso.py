"""How the torso moves in the picture: a 2-D rigid motion in each frame, so that shoulders need not follow the head.

Every frame is aligned straight to a key frame (no chain from frame to frame, so nothing drifts) by the inverse
compositional Lucas-Kanade method with robust weights (Baker and Matthews, "Lucas-Kanade 20 Years On", IJCV 2004).
Knows nothing of files, masks' making or 3-D. Axes: T frames, N points of a key frame, xy pixels (x right, y down).

One row is (dx, dy, angle). With c the image centre ((W - 1) / 2, (H - 1) / 2), the torso pixel that stands at p in
the reference pose stands in the frame at

    R(angle) (p - c) + c + W (dx, dy),      R(a) = [[cos a, -sin a], [sin a, cos a]]

dx and dy are shares of the image width W, the angle is in radians and turns from x to y (clockwise on the screen).
The reference pose is the clip's median pose: a row of zeros is the person's usual posture.
"""

from dataclasses import dataclass

import numpy as np

from difflistener.clip import MASK_LABELS
from difflistener.motion import fill_gaps

CHIN, FOREHEAD = 152, 10
WORK_SIZE = 288
"""Longer side of the grey image that is aligned."""
LEVELS = 3
CONTRAST_SIGMA = 4.0
CONTRAST_FLOOR = 6.0
"""Window (pixels) and noise floor (grey levels) of the local contrast."""
MAX_POINTS = 2500
MIN_POINTS = 150
MIN_GRADIENT = 3.0
"""Grey levels a pixel (central difference) below which a pixel says nothing of motion."""
CHIN_DISC = 0.5
"""Radius about the chin, in face heights, that belongs to head and neck: its pixels turn with the head."""
GOOD = 0.8
"""Correlation with the key frame from which an alignment is believed (a hand before the collar gives below 0.5)."""
RENEW = 0.88
"""Correlation below which a believed alignment makes a new key frame, for a body that turned or a changed light."""
MAX_KEYS = 12
MAX_TRIES = 3
"""Key frames that are tried on one frame, those of the nearest pose first."""
STEADY = 0.01
"""Share of the width that the torso may have moved since the frame before where a new key frame is made."""


@dataclass
class _Level:
    points: np.ndarray  # [N, 2] xy from the centre, pixels of this level
    values: np.ndarray  # [N]
    jacobian: np.ndarray  # [N, 5]: dx, dy, angle * radius, gain, bias


@dataclass
class _Key:
    pose: np.ndarray  # [3] (dx, dy in pixels of the finest level, angle) of the key frame itself
    levels: list[_Level]  # fine to coarse
    grey: np.ndarray  # [N] of the finest level's points


class TorsoTracker:
    """Give it the frames of a clip in order, then ask for `result`."""

    def __init__(self):
        self._keys: list[_Key] = []
        self._rows: list[np.ndarray | None] = []
        self._pose = np.zeros(3)
        self._was_tracked = False
        self._width = 0

    def add(self, frame: np.ndarray, labels: np.ndarray, landmarks: np.ndarray | None) -> None:
        """Align one frame [H, W, 3] uint8 RGB with labels [H, W] uint8; landmarks [478, 3] pixels, None without a face."""
        import cv2

        height, width = labels.shape
        scale = min(1.0, WORK_SIZE / max(height, width))
        size = (round(width * scale), round(height * scale))
        self._width = size[0]
        grey = cv2.resize(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY), size, interpolation=cv2.INTER_AREA)
        small = cv2.resize(labels, size, interpolation=cv2.INTER_NEAREST)
        if landmarks is None:
            self._append(None)
            return
        blocked = _head_and_neck(small, landmarks, np.array(size) / [width, height])
        pyramid = _pyramid(grey)
        pose, score = self._best(pyramid, blocked)
        steady = self._was_tracked and np.abs(pose - self._pose)[:2].max() < STEADY * self._width
        self._append(pose if score >= GOOD else None)
        if not self._keys:
            key = _make_key(pyramid, small == MASK_LABELS["torso"], blocked, np.zeros(3))
            if key is not None:
                self._keys.append(key)
                self._rows.pop()
                self._append(np.zeros(3))
        elif GOOD <= score < RENEW and steady and len(self._keys) < MAX_KEYS:
            key = _make_key(pyramid, small == MASK_LABELS["torso"], blocked, pose)
            self._keys += [key] if key is not None else []

    def result(self) -> tuple[np.ndarray, np.ndarray, str | None]:
        """(torso [T, 3] float32, tracked [T] bool, note or None). Rows that were not tracked are interpolated.

        Where nothing could be tracked all rows are zero and the note says why.
        """
        tracked = np.array([row is not None for row in self._rows], bool)
        if not tracked.any():
            note = "the torso is not in the picture or has no texture: it is taken as still"
            return np.zeros((len(tracked), 3), np.float32), tracked, note
        rows = np.array([np.zeros(3) if row is None else row for row in self._rows])
        rows[:, :2] /= self._width
        rows = relative_to(rows, np.median(rows[tracked], 0))
        note = None
        if tracked.mean() < 0.9:
            note = f"the torso was tracked in {tracked.sum()} of {len(tracked)} frames; the others are interpolated"
        return fill_gaps(rows, tracked).astype(np.float32), tracked, note

    def _append(self, pose: np.ndarray | None) -> None:
        self._rows.append(pose)
        self._was_tracked = pose is not None
        if pose is not None:
            self._pose = pose

    def _best(self, pyramid, blocked) -> tuple[np.ndarray, float]:
        """The best alignment (pose, score) to a key frame, searched from where the torso was last seen."""
        best = self._pose, 0.0
        far = [np.abs((key.pose - self._pose)[:2]).max() for key in self._keys]
        # The older a key, the fewer steps led to it: it is asked first.
        for index in sorted(np.argsort(far, kind="stable")[:MAX_TRIES]):
            key = self._keys[index]
            pose, score = _align(key, pyramid, blocked, self._pose)
            if score < GOOD and not self._was_tracked:
                pose, score = max((pose, score), _align(key, pyramid, blocked, key.pose), key=lambda found: found[1])
            if score > best[1]:
                best = pose, score
            if score >= RENEW:
                break
        return best


def _head_and_neck(labels: np.ndarray, landmarks: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Where head, hair or the neck about the chin stand in this frame, [H, W] uint8."""
    import cv2

    blocked = np.isin(labels, [MASK_LABELS[name] for name in ("head", "hair", "mouth")]).astype(np.uint8)
    blocked = cv2.dilate(blocked, np.ones((7, 7), np.uint8))
    chin, forehead = landmarks[CHIN, :2] * scale, landmarks[FOREHEAD, :2] * scale
    radius = CHIN_DISC * np.hypot(*(chin - forehead))
    return cv2.circle(blocked, [int(round(v)) for v in chin], int(round(radius)), 1, -1)


def relative_to(rows: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Rigid motions [T, 3] (dx, dy, angle about a common centre) as seen from the pose `reference` [3]."""
    angle = rows[:, 2] - reference[2]
    cos, sin = np.cos(angle), np.sin(angle)
    dx, dy = reference[:2]
    return np.stack([rows[:, 0] - (cos * dx - sin * dy), rows[:, 1] - (sin * dx + cos * dy), angle], 1)


def _compose(first: np.ndarray, then: np.ndarray) -> np.ndarray:
    """The rigid motion (dx, dy, angle) that does `first` and `then` after it."""
    cos, sin = np.cos(then[2]), np.sin(then[2])
    turned = np.array([cos * first[0] - sin * first[1], sin * first[0] + cos * first[1]])
    return np.array([*(turned + then[:2]), first[2] + then[2]])


def _inverse(motion: np.ndarray) -> np.ndarray:
    cos, sin = np.cos(motion[2]), np.sin(motion[2])
    return np.array([-cos * motion[0] - sin * motion[1], sin * motion[0] - cos * motion[1], -motion[2]])


def _pyramid(grey: np.ndarray) -> tuple[list[np.ndarray], np.ndarray]:
    """(local contrast, fine to coarse; grey image). Aligned by contrast, where the weave of a dark shirt counts
    beside its bright outline; judged by grey, where a hand before the shirt shows."""
    import cv2

    smooth = cv2.GaussianBlur(grey.astype(np.float32), (0, 0), 0.8)
    detail = smooth - cv2.GaussianBlur(smooth, (0, 0), CONTRAST_SIGMA)
    strength = np.sqrt(cv2.GaussianBlur(detail * detail, (0, 0), CONTRAST_SIGMA))
    levels = [detail / (strength + CONTRAST_FLOOR) * 25]
    while len(levels) < LEVELS:
        levels.append(cv2.pyrDown(levels[-1]))
    return levels, smooth


def _centre(shape: tuple[int, int]) -> np.ndarray:
    return np.array([shape[1] - 1, shape[0] - 1]) / 2


def _make_key(pyramid, torso: np.ndarray, blocked: np.ndarray, pose: np.ndarray) -> _Key | None:
    """A key frame's points with texture; None where there are too few."""
    import cv2

    # The rim beyond the silhouette belongs to it: on a plain shirt the shoulder line is all there is.
    region = (cv2.dilate(torso.astype(np.uint8), np.ones((5, 5), np.uint8)) > 0) & (blocked == 0)
    region[[0, 1, -2, -1]] = False
    region[:, [0, 1, -2, -1]] = False
    levels = []
    for image in pyramid[0]:
        gx = cv2.Sobel(image, cv2.CV_32F, 1, 0, scale=1 / 8)
        gy = cv2.Sobel(image, cv2.CV_32F, 0, 1, scale=1 / 8)
        here = cv2.resize(region.astype(np.uint8), image.shape[::-1], interpolation=cv2.INTER_NEAREST) > 0
        y, x = np.nonzero(here & (np.hypot(gx, gy) >= MIN_GRADIENT))
        if not levels and len(x) < MIN_POINTS:
            return None
        keep = np.linspace(0, len(x) - 1, min(len(x), MAX_POINTS)).astype(int)
        y, x = y[keep], x[keep]
        points = np.stack([x, y], 1) - _centre(image.shape)
        gx, gy, values = gx[y, x], gy[y, x], image[y, x]
        radius = max(image.shape) / 2
        turn = (gy * points[:, 0] - gx * points[:, 1]) / radius
        jacobian = np.stack([gx, gy, turn, (values - values.mean()) / 32, np.ones(len(x))], 1)
        levels.append(_Level(points, values, jacobian))
    jacobian = levels[0].jacobian[:, :3]
    if np.linalg.eigvalsh(jacobian.T @ jacobian / len(jacobian))[0] < 0.02:
        return None
    x, y = np.round(levels[0].points + _centre(pyramid[1].shape)).astype(int).T
    return _Key(pose.copy(), levels, pyramid[1][y, x])


def _sample(image: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    import cv2

    return cv2.remap(image, x[None].astype(np.float32), y[None].astype(np.float32), cv2.INTER_LINEAR)[0]


def _align(key: _Key, pyramid, blocked: np.ndarray, guess: np.ndarray) -> tuple[np.ndarray, float]:
    """Pose (dx, dy in pixels of the finest level, angle) of a frame and its correlation with the key frame, 0 .. 1."""
    motion = _compose(_inverse(key.pose), guess)
    score = 0.0
    for depth in reversed(range(LEVELS)):
        image, level = pyramid[0][depth], key.levels[depth]
        if len(level.points) < MIN_POINTS / 4**depth:
            continue
        shrink, centre, radius = 2.0**depth, _centre(image.shape), max(image.shape) / 2
        local = np.array([motion[0] / shrink, motion[1] / shrink, motion[2]])
        for _ in range(12 if depth else 8):
            cos, sin = np.cos(local[2]), np.sin(local[2])
            x = cos * level.points[:, 0] - sin * level.points[:, 1] + local[0] + centre[0]
            y = sin * level.points[:, 0] + cos * level.points[:, 1] + local[1] + centre[1]
            values = _sample(image, x, y)
            row = np.clip(np.round(y * shrink), 0, blocked.shape[0] - 1).astype(int)
            column = np.clip(np.round(x * shrink), 0, blocked.shape[1] - 1).astype(int)
            seen = (x >= 1) & (y >= 1) & (x <= image.shape[1] - 2) & (y <= image.shape[0] - 2) & (blocked[row, column] == 0)
            if seen.sum() < max(12, 0.3 * len(seen)):
                return guess, 0.0
            residual = (values - level.values)[seen]
            jacobian = level.jacobian[seen]
            residual_from_median = residual - np.median(residual)
            spread = max(1.4826 * float(np.median(np.abs(residual_from_median))), 2.0)
            weight = 1 / (1 + (residual_from_median / (2.5 * spread)) ** 2) ** 2
            weighted = jacobian * weight[:, None]
            normal = weighted.T @ jacobian + 1e-3 * len(residual) * np.diag([0.01, 0.01, 0.01, 1, 0.01])
            step = np.linalg.solve(normal, weighted.T @ residual)
            step[2] /= radius
            local = _compose(_inverse(step[:3]), local)
            if np.abs(step[:2]).max() < 0.01 and abs(step[2]) * radius < 0.01:
                break
        motion = np.array([local[0] * shrink, local[1] * shrink, local[2]])
        if depth == 0:
            a, b = _sample(pyramid[1], x, y)[seen], key.grey[seen]
            a, b = a - a.mean(), b - b.mean()
            score = float((a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum() + 1e-6))
            score *= min(1.0, 2 * float(seen.mean()))
    if not np.isfinite(motion).all() or np.abs(motion[:2]).max() > max(pyramid[1].shape) / 2 or abs(motion[2]) > 0.6:
        return guess, 0.0
    return _compose(key.pose, motion), max(score, 0.0)
