"""How a textured region of one picture stands in another: a 2-D rigid motion, found by its pixels.

The inverse compositional Lucas-Kanade method with robust weights, from coarse to fine (Baker and Matthews, "Lucas-Kanade
20 Years On", IJCV 2004). Knows nothing of clips, faces or which region matters. Axes: N points, xy pixels from the
picture's centre ((W - 1) / 2, (H - 1) / 2), x right, y down.

A motion is (dx, dy, angle): what stood at p stands at R(angle) p + (dx, dy), R(a) = [[cos a, -sin a], [sin a, cos a]].
"""

from dataclasses import dataclass

import numpy as np

LEVELS = 3
CONTRAST_SIGMA = 4.0
CONTRAST_FLOOR = 6.0
"""Window (pixels) and noise floor (grey levels) of the local contrast."""
MAX_POINTS = 2500
MIN_POINTS = 150
MIN_GRADIENT = 3.0
"""Grey levels a pixel (central difference) below which a pixel says nothing of motion."""
NOISE = 2.0
"""Contrast levels by which even a perfect alignment differs."""
USUAL_TURN = 0.05
"""Radians (3 degrees) by which a region turns between two pictures; more must be well supported."""
ALIKE = 5
"""Neighbouring pixels that say the same: so much less is each one worth against `USUAL_TURN`."""
MAX_TURN = 0.35
STILL = np.zeros(3)


@dataclass
class View:
    """One picture, ready to be aligned."""

    contrast: list[np.ndarray]  # fine to coarse
    grey: np.ndarray  # [H, W]
    blocked: np.ndarray  # [H, W] bool: pixels that do not belong to the region's motion


@dataclass
class _Level:
    points: np.ndarray  # [N, 2]
    values: np.ndarray  # [N]
    jacobian: np.ndarray  # [N, 5]: dx, dy, angle * radius, gain, bias


@dataclass
class Patch:
    """A region's points with texture in one picture, which others are aligned to."""

    levels: list[_Level]  # fine to coarse
    grey: np.ndarray  # [N] of the finest level's points


def compose(first: np.ndarray, then: np.ndarray) -> np.ndarray:
    """The motion that does `first` and `then` after it."""
    cos, sin = np.cos(then[2]), np.sin(then[2])
    turned = np.array([cos * first[0] - sin * first[1], sin * first[0] + cos * first[1]])
    return np.array([*(turned + then[:2]), first[2] + then[2]])


def inverse(motion: np.ndarray) -> np.ndarray:
    cos, sin = np.cos(motion[2]), np.sin(motion[2])
    return np.array([-cos * motion[0] - sin * motion[1], sin * motion[0] - cos * motion[1], -motion[2]])


def make_view(grey: np.ndarray, blocked: np.ndarray) -> View:
    """From a grey picture [H, W] uint8. Aligned by local contrast, where the weave of a dark shirt counts beside its
    bright outline; judged by grey, where a hand before the shirt shows."""
    import cv2

    smooth = cv2.GaussianBlur(grey.astype(np.float32), (0, 0), 0.8)
    detail = smooth - cv2.GaussianBlur(smooth, (0, 0), CONTRAST_SIGMA)
    strength = np.sqrt(cv2.GaussianBlur(detail * detail, (0, 0), CONTRAST_SIGMA))
    levels = [detail / (strength + CONTRAST_FLOOR) * 25]
    while len(levels) < LEVELS:
        levels.append(cv2.pyrDown(levels[-1]))
    return View(levels, smooth, blocked)


def make_patch(view: View, region: np.ndarray) -> Patch | None:
    """The points of `region` [H, W] bool that are free and have texture; None where they are too few to tell a motion."""
    import cv2

    region = region & ~view.blocked
    region[[0, 1, -2, -1]] = False
    region[:, [0, 1, -2, -1]] = False
    levels = []
    for image in view.contrast:
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
        turn = (gy * points[:, 0] - gx * points[:, 1]) / _radius(image)
        jacobian = np.stack([gx, gy, turn, (values - values.mean()) / 32, np.ones(len(x))], 1)
        levels.append(_Level(points, values, jacobian))
    jacobian = levels[0].jacobian[:, :3]
    if np.linalg.eigvalsh(jacobian.T @ jacobian / len(jacobian))[0] < 0.02:
        return None
    x, y = np.round(levels[0].points + _centre(view.grey.shape)).astype(int).T
    return Patch(levels, view.grey[y, x])


def align(patch: Patch, view: View, guess: np.ndarray, finest: int = 0) -> tuple[np.ndarray, float]:
    """The motion from the patch's picture to `view`, searched from `guess`, and the correlation there, 0 .. 1.

    `finest` is the level at which to stop: 0 for full accuracy, LEVELS - 1 for a quick look. A correlation of 0 comes
    with the guess itself: the region is hidden or has left the picture.
    """
    motion, score = np.array(guess, float), 0.0
    for depth in reversed(range(finest, LEVELS)):
        image, level = view.contrast[depth], patch.levels[depth]
        if len(level.points) < MIN_POINTS / 4**depth:
            continue
        shrink = 2.0**depth
        found = _descend(level, image, view.blocked, shrink, motion / [shrink, shrink, 1])
        if found is None:
            return guess, 0.0
        local, x, y, seen = found
        motion = local * [shrink, shrink, 1]
        if depth == 0:
            a, b = _sample(view.grey, x, y)[seen], patch.grey[seen]
        else:
            a, b = _sample(image, x, y)[seen], level.values[seen]
        a, b = a - a.mean(), b - b.mean()
        score = float((a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum() + 1e-6)) * min(1.0, 2 * float(seen.mean()))
    if not np.isfinite(motion).all() or np.abs(motion[:2]).max() > max(view.grey.shape) / 2 or abs(motion[2]) > MAX_TURN:
        return guess, 0.0
    return motion, max(score, 0.0)


def _descend(level: _Level, image: np.ndarray, blocked: np.ndarray, shrink: float, motion: np.ndarray):
    """Gauss-Newton on one level: (motion, x [N], y [N], seen [N]), or None where too little is seen."""
    centre, radius = _centre(image.shape), _radius(image)
    for _ in range(12 if shrink > 1 else 8):
        cos, sin = np.cos(motion[2]), np.sin(motion[2])
        x = cos * level.points[:, 0] - sin * level.points[:, 1] + motion[0] + centre[0]
        y = sin * level.points[:, 0] + cos * level.points[:, 1] + motion[1] + centre[1]
        values = _sample(image, x, y)
        row = np.clip(np.round(y * shrink), 0, blocked.shape[0] - 1).astype(int)
        column = np.clip(np.round(x * shrink), 0, blocked.shape[1] - 1).astype(int)
        seen = (x >= 1) & (y >= 1) & (x <= image.shape[1] - 2) & (y <= image.shape[0] - 2) & ~blocked[row, column]
        if seen.sum() < max(12, 0.3 * len(seen)):
            return None
        residual = (values - level.values)[seen]
        jacobian = level.jacobian[seen]
        centred = residual - np.median(residual)
        spread = max(1.4826 * float(np.median(np.abs(centred))), NOISE)
        weighted = jacobian * (1 / (1 + (centred / (2.5 * spread)) ** 2) ** 2)[:, None]
        normal = weighted.T @ jacobian + 1e-3 * len(residual) * np.diag([0.01, 0.01, 0.01, 1, 0.01])
        gradient = weighted.T @ residual
        # What a rigid motion cannot explain is another shape, and not noise: it speaks against the turn found, too.
        doubt = ALIKE * spread**2 * (spread / NOISE) ** 2 / (USUAL_TURN * radius) ** 2
        normal[2, 2] += doubt
        gradient[2] += doubt * motion[2] * radius
        step = np.linalg.solve(normal, gradient)
        step[2] /= radius
        motion = compose(inverse(step[:3]), motion)
        if np.abs(step[:2]).max() < 0.01 and abs(step[2]) * radius < 0.01:
            break
    return motion, x, y, seen


def _sample(image: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    import cv2

    return cv2.remap(image, x[None].astype(np.float32), y[None].astype(np.float32), cv2.INTER_LINEAR)[0]


def _centre(shape: tuple[int, int]) -> np.ndarray:
    return np.array([shape[1] - 1, shape[0] - 1]) / 2


def _radius(image: np.ndarray) -> float:
    return max(image.shape) / 2
