"""How the torso moves in the picture: a 2-D rigid motion in each frame, so that shoulders need not follow the head.

Every frame is aligned straight to a key frame (no chain from frame to frame, so nothing drifts). A body that turned so
far that no key frame shows it gets a new one; how the key frames lie to each other is settled at the end, from all the
alignments among them. Knows nothing of files, masks' making or 3-D. Axes: T frames, xy pixels (x right, y down).

One row is (dx, dy, angle). With c the image centre ((W - 1) / 2, (H - 1) / 2), the torso pixel that stands at p in
the reference pose stands in the frame at

    R(angle) (p - c) + c + W (dx, dy),      R(a) = [[cos a, -sin a], [sin a, cos a]]

dx and dy are shares of the image width W, the angle is in radians and turns from x to y (clockwise on the screen).
The reference pose is the clip's median pose: a row of zeros is the person's usual posture.
"""

from dataclasses import dataclass, field

import numpy as np

from difflistener.clip import MASK_LABELS
from difflistener.motion import fill_gaps
from difflistener.prepare.align import LEVELS, STILL, USUAL_TURN, Patch, View, align, compose, inverse, make_patch, make_view
from difflistener.prepare.face_points import CHIN, FOREHEAD
from difflistener.prepare.masks import SKIN

WORK_SIZE = 288
"""Longer side of the grey image that is aligned."""
CHIN_DISC = 0.2
"""Radius about the chin, in face heights, that turns with the head whatever its colour."""
NECK_DISC = 0.7
"""Radius about the chin, in face heights, within which skin is the neck's (or a hand's) and goes its own way."""
SKIN_SPREAD, SKIN_FLOOR = 3.5, 0.05
"""Deviations, and the least deviation, of log colour ratios within which a pixel is skin."""
LOG_OF_LEVEL = np.log(np.arange(256, dtype=np.float32) + 8)
"""Of a colour's 8 bit level; the offset keeps the noise of dark pixels down."""
GOOD = 0.8
"""Correlation with the key frame from which an alignment is believed (a hand before the collar gives below 0.5)."""
RENEW = 0.88
"""Correlation below which a believed alignment makes a new key frame, for a body that turned or a changed light."""
STEADY = 0.01
"""Share of the width that the torso may have moved since the frame before where a new key frame is made."""
CONFIRM = 5
"""Frames in a row that must agree with a frame that no key frame knows, before it becomes a key frame itself."""
MAX_KEYS = 12
"""Key frames that are searched; the one that served longest ago is given up."""
MAX_TRIES = 3
"""Key frames that are tried on one frame, the latest first and then by nearness; and starts that a search follows up."""
SEARCH_STEP = 0.07
"""Share of the width between the starts of a search: the coarsest level finds its way over half of that and more."""
UNLIKELY = 0.02
"""Correlation that a turn by USUAL_TURN costs where alignments are compared."""
FAIR = 0.3
"""Correlation at and below which an alignment between key frames says nothing."""
SOLVES, AGREED = 10, 2.0
"""Rounds of the fit of all key frames, and pixels by which an alignment may differ from it and still count."""
HEAD_TRUST, REST_TRUST = 0.02, 0.005
"""Weights, beside those of alignments, of: torsos shift as the chin does; torsos stand upright."""


@dataclass
class _Key:
    node: int
    patch: Patch
    view: View
    chin: np.ndarray  # [2] pixels of the grey image
    used: int  # frame


@dataclass
class _Graph:
    """Key frames as nodes, alignments as edges: (from, to, motion, weight)."""

    anchor: np.ndarray | None = None  # [2] from the picture's centre: turns are about this point
    poses: list[np.ndarray] = field(default_factory=list)  # as known when the key was made
    edges: list[tuple[int, int, np.ndarray, float]] = field(default_factory=list)

    def solve(self) -> np.ndarray:
        """Pose [K, 3] of every key frame, (dx, dy in pixels, angle), that fits the edges best, most of all those that agree."""
        count = len(self.poses)
        if count < 2:
            return np.array(self.poses).reshape(-1, 3)
        first, second = np.array([edge[:2] for edge in self.edges]).T
        motions, trust = np.array([edge[2] for edge in self.edges]), np.array([edge[3] for edge in self.edges])
        # About the anchor, an angle that the others outvote does not shift the torso.
        anchor = complex(*self.anchor)
        turn = np.exp(1j * motions[:, 2])
        moved = turn * anchor - anchor + motions[:, 0] + 1j * motions[:, 1]
        weight = trust
        for _ in range(SOLVES):
            angle, turned = _settle(first, second, np.ones(len(first)), motions[:, 2], weight, REST_TRUST, count)
            shift, shifted = _settle(first, second, turn, moved, weight, 1e-6, count)
            weight = trust / (1 + ((shifted + np.abs(anchor) * turned) / AGREED) ** 2)
        shift += anchor - np.exp(1j * angle) * anchor
        return np.stack([shift.real, shift.imag, angle], 1)


def _settle(first, second, factor, offset, weight, rest: float, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The x [K] for which x[second] = factor * x[first] + offset holds best, with `rest` pulling to 0; and the errors."""
    normal, right = rest * np.eye(count, dtype=factor.dtype), np.zeros(count, factor.dtype)
    np.add.at(normal, (first, first), weight * np.abs(factor) ** 2)
    np.add.at(normal, (second, second), weight)
    np.add.at(normal, (first, second), -weight * factor.conj())
    np.add.at(normal, (second, first), -weight * factor)
    np.add.at(right, first, -weight * factor.conj() * offset)
    np.add.at(right, second, weight * offset)
    x = np.linalg.solve(normal, right)
    return x, np.abs(x[second] - factor * x[first] - offset)


class TorsoTracker:
    """Give it the frames of a clip in order, then ask for `result`."""

    def __init__(self):
        self._graph = _Graph()
        self._keys: list[_Key] = []
        self._rows: list[tuple[int, np.ndarray] | None] = []  # node of a key, motion from there
        self._pose = STILL
        self._newcomer: _Key | None = None
        self._followers: dict[int, np.ndarray] = {}  # frame -> motion from the newcomer
        self._width = 0

    def add(self, frame: np.ndarray, labels: np.ndarray, landmarks: np.ndarray | None) -> None:
        """Align one frame [H, W, 3] uint8 RGB with labels [H, W] uint8; landmarks [478, 3] pixels, None without a face."""
        import cv2

        self._rows.append(None)
        if landmarks is None:
            return
        height, width = labels.shape
        scale = min(1.0, WORK_SIZE / max(height, width))
        size = (round(width * scale), round(height * scale))
        self._width = size[0]
        grey = cv2.resize(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY), size, interpolation=cv2.INTER_AREA)
        labels = cv2.resize(labels, size, interpolation=cv2.INTER_NEAREST)
        points = landmarks[:, :2] * (np.array(size) / [width, height])
        view = make_view(grey, _blocked(frame, labels, points))
        torso = labels == MASK_LABELS["torso"]

        key, motion, score = self._look(view)
        if score < GOOD and self._keys:
            key, motion, score = self._search(view, points[CHIN])
        if score < GOOD:
            self._keep(view, torso, points[CHIN])
            return
        pose = compose(self._graph.poses[key.node], motion)
        steady = self._rows[-2] is not None and np.abs(pose - self._pose)[:2].max() < STEADY * self._width
        self._follow(key, motion)
        if score < RENEW and steady:
            renewed = self._make_key(view, torso, points[CHIN])
            if renewed is not None:
                self._join(renewed)

    def result(self) -> tuple[np.ndarray, np.ndarray, str | None]:
        """(torso [T, 3] float32, tracked [T] bool, note or None). Rows that were not tracked are interpolated.

        Where nothing could be tracked all rows are zero and the note says why.
        """
        tracked = np.array([row is not None for row in self._rows], bool)
        if not tracked.any():
            note = "the torso is not in the picture or has no texture: it is taken as still"
            return np.zeros((len(tracked), 3), np.float32), tracked, note
        poses = self._graph.solve()
        rows = np.array([STILL if row is None else compose(poses[row[0]], row[1]) for row in self._rows])
        rows[:, :2] /= self._width
        rows = relative_to(rows, np.median(rows[tracked], 0))
        note = None
        if tracked.mean() < 0.9:
            note = f"the torso was tracked in {tracked.sum()} of {len(tracked)} frames; the others are interpolated"
        return fill_gaps(rows, tracked).astype(np.float32), tracked, note

    def _follow(self, key: _Key, motion: np.ndarray) -> None:
        """The present frame was found."""
        self._rows[-1] = key.node, motion
        self._pose = compose(self._graph.poses[key.node], motion)
        key.used = len(self._rows)
        self._newcomer, self._followers = None, {}

    def _keep(self, view: View, torso: np.ndarray, chin: np.ndarray) -> None:
        """The present frame is like no key frame: once others agree with it, it becomes one."""
        index = len(self._rows) - 1
        if self._newcomer is not None:
            motion, score = align(self._newcomer.patch, view, next(reversed(self._followers.values())))
            if score >= GOOD:
                self._followers[index] = motion
        if index not in self._followers:
            self._newcomer, self._followers = self._make_key(view, torso, chin), {index: STILL}
        if self._newcomer is not None and (not self._keys or len(self._followers) > CONFIRM):
            key, followers = self._newcomer, self._followers
            self._join(key)
            for row, motion in followers.items():
                self._rows[row] = key.node, motion
            self._follow(key, followers[index])

    def _look(self, view: View) -> tuple[_Key | None, np.ndarray, float]:
        """The best alignment (key, motion, score) from where the torso was last seen, to the last key or those near by."""
        best = None, STILL, 0.0
        latest = max((key.used for key in self._keys), default=0)
        far = [(key.used < latest, np.abs((self._graph.poses[key.node] - self._pose)[:2]).max()) for key in self._keys]
        for index in sorted(range(len(far)), key=far.__getitem__)[:MAX_TRIES]:
            key = self._keys[index]
            motion, score = align(key.patch, view, compose(inverse(self._graph.poses[key.node]), self._pose))
            if score > best[2]:
                best = key, motion, score
            if score >= RENEW:
                break
        return best

    def _search(self, view: View, chin: np.ndarray) -> tuple[_Key, np.ndarray, float]:
        """The same from many starts: where each key stood, there shifted as the chin has, and around the latest keys."""
        reach = SEARCH_STEP * self._width * np.arange(-1, 2)
        around = [np.array([dx, dy, 0]) for dx in reach for dy in reach]
        latest = sorted(key.used for key in self._keys)[-MAX_TRIES:]
        starts = []
        for key in self._keys:
            near = around if key.used in latest else [STILL]
            for guess in (*near, np.array([*(chin - key.chin), 0]), compose(inverse(self._graph.poses[key.node]), self._pose)):
                starts.append((key, *align(key.patch, view, guess, LEVELS - 1)))
        starts = sorted(starts, key=_likely)[-MAX_TRIES:]
        return max(((key, *align(key.patch, view, motion)) for key, motion, _ in starts), key=_likely)

    def _make_key(self, view: View, torso: np.ndarray, chin: np.ndarray) -> _Key | None:
        import cv2

        # The rim beyond the silhouette belongs to it: on a plain shirt the shoulder line is all there is.
        patch = make_patch(view, cv2.dilate(torso.astype(np.uint8), np.ones((5, 5), np.uint8)) > 0)
        return None if patch is None else _Key(-1, patch, view, chin, len(self._rows))

    def _join(self, key: _Key) -> None:
        """Make a key frame known, and measure how it lies to the others."""
        key.node = len(self._graph.poses)
        if not self._keys:
            self._graph.anchor = key.patch.levels[0].points.mean(0)
        best, pose = 0.0, self._pose
        for other in self._keys:
            shift = np.array([*(key.chin - other.chin), 0])
            guesses = STILL, shift, compose(inverse(self._graph.poses[other.node]), self._pose)
            for first, second, sign in ((other, key, 1), (key, other, -1)):
                towards = [guess if sign > 0 else inverse(guess) for guess in guesses]
                starts = [(first, *align(first.patch, second.view, guess, LEVELS - 1)) for guess in towards]
                motion, score = align(first.patch, second.view, max(starts, key=_likely)[1])
                weight = max(score - FAIR, 0) ** 2 / (1.02 - score)
                self._graph.edges.append((first.node, second.node, motion, weight))
                if score > best:
                    best, pose = score, compose(self._graph.poses[other.node], motion if sign > 0 else inverse(motion))
            self._graph.edges.append((other.node, key.node, shift, HEAD_TRUST))
        self._graph.poses.append(pose)
        self._keys = sorted(self._keys, key=lambda known: known.used)[-MAX_KEYS + 1 :]
        self._keys = sorted([*self._keys, key], key=lambda known: known.node)


def _likely(found: tuple) -> float:
    """Orders alignments (key, motion, score): those that turn far must be better."""
    return found[2] - UNLIKELY * (found[1][2] / USUAL_TURN) ** 2


def _blocked(frame: np.ndarray, labels: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Where head, hair, neck or a hand beside it stand, [H, W] bool.

    frame [H0, W0, 3] RGB in any size, labels [H, W], points [478, 2] pixels of the labels.
    """
    import cv2

    height, width = labels.shape
    head = np.isin(labels, [MASK_LABELS[name] for name in ("head", "hair", "mouth")]).astype(np.uint8)
    head = cv2.dilate(head, np.ones((7, 7), np.uint8))
    chin = [int(round(v)) for v in points[CHIN]]
    radius = np.hypot(*(points[CHIN] - points[FOREHEAD]))
    cv2.circle(head, chin, int(round(CHIN_DISC * radius)), 1, -1)

    # Colour without brightness, as a neck is in the chin's shade; at half the size, which is enough for colour.
    half = cv2.resize(frame, (width // 2, height // 2), interpolation=cv2.INTER_LINEAR)
    logs = cv2.LUT(cv2.blur(half, (3, 3)), LOG_OF_LEVEL)
    colours = logs[..., 1:] - logs[..., :1]
    column, row = np.clip(np.round(points[SKIN] / 2).astype(int), 0, [width // 2 - 1, height // 2 - 1]).T
    samples = colours[row, column]
    usual = np.median(samples, 0)
    spread = np.maximum(1.4826 * np.median(np.abs(samples - usual), 0), SKIN_FLOOR)
    distance = (colours - usual) / spread
    skin = (distance[..., 0] ** 2 + distance[..., 1] ** 2 < SKIN_SPREAD**2).astype(np.uint8)
    skin = cv2.resize(cv2.dilate(skin, np.ones((3, 3), np.uint8)), (width, height), interpolation=cv2.INTER_NEAREST)
    near = cv2.circle(np.zeros_like(skin), chin, int(round(NECK_DISC * radius)), 1, -1)
    return (head | skin & near) > 0


def relative_to(rows: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Rigid motions [T, 3] (dx, dy, angle about a common centre) as seen from the pose `reference` [3]."""
    angle = rows[:, 2] - reference[2]
    cos, sin = np.cos(angle), np.sin(angle)
    dx, dy = reference[:2]
    return np.stack([rows[:, 0] - (cos * dx - sin * dy), rows[:, 1] - (sin * dx + cos * dy), angle], 1)
