"""Frames + landmark poses -> better poses, from points of skin and hair followed by optical flow.

Landmarks are guesses that slide over the face; texture does not. Corners (Shi & Tomasi 1994) on the rigid part of the
head are followed by pyramidal Lucas-Kanade (Bouguet 2001), then poses and 3-D corners are adjusted together, held to
the landmarks only weakly. Knows nothing of files or expression. Two pictures in memory at a time; of the rest only
tracks are kept.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np

from difflistener.motion import fill_gaps, unwrap_rotation
from difflistener.prepare.bundle import Observations, Smoothness, adjust, robust_weights
from difflistener.prepare.face_points import (FACE_OVAL, LEFT_BROW, LEFT_EYE, RIGHT_BROW, RIGHT_EYE, RIGID,
                                              UPPER_LIP_TOP)
from difflistener.prepare.pose import (ROTATION_ACCELERATION, TRANSLATION_ACCELERATION, HeadTrack, pose_weights,
                                       settle_template, smooth_centres)

MAX_TRACKS = 350
"""Points followed at once. Clips beyond `MAX_OBSERVATIONS` follow fewer."""
MAX_OBSERVATIONS = 1_500_000
MIN_TRACKS = 120
MIN_LENGTH = 5
"""Shortest track that is used, in frames."""
WORKING_UNIT = 130.0
"""Larger pictures are scaled down to this many pixels for an inter-ocular distance; flow needs no more."""
WINDOW = 15
ROUND_TRIP_PX = 0.3
"""A point followed forward and back again must return this close."""
FIRST_SCALE_PX, LAST_SCALE_PX = 2.0, 0.8
"""Geman-McClure scale at first and last, working pixels."""
LANDMARK_WEIGHT = 0.1
"""Weight of a rigid landmark beside a track's point: against drift, too weak to bring back the landmarks' jitter."""
DEPTH_SIGMA = 0.15
"""How far a corner may lie from where the template puts it, in inter-ocular distances."""
LOST_AT_CUT = 0.5
"""A frame that loses at least this part of the tracks starts a new shot."""


@dataclass(frozen=True)
class Tracks:
    """What flow followed: `xy[n]` px of corner `point[n]` in frame `frame[n]` (ascending); `cuts` [T]; corners' starts."""

    frame: np.ndarray  # [N] int32
    point: np.ndarray  # [N] int32
    xy: np.ndarray  # [N, 2] float32
    cuts: np.ndarray  # [T] bool
    first: np.ndarray  # [P, 3] float, the corners in the head frame as the start poses and the template place them


def refine_with_flow(frames: Iterable[np.ndarray], track: HeadTrack, landmarks: np.ndarray, valid: np.ndarray) -> HeadTrack:
    """Poses and template refined by optical flow; `residual_px` becomes that of the tracks.

    Args:
        frames: uint8 [H, W, 3] RGB, the T frames that the landmarks came from.
        track: from `fit_head`.
        landmarks, valid: [T, 478, 3] px and [T] bool.

    Raises:
        ValueError: fewer frames than landmarks.
    """
    tracks = follow(frames, track, landmarks, valid)
    if len(tracks.frame) == 0:
        return replace(track, cuts=tracks.cuts)
    good = np.flatnonzero(valid)
    row = np.full(len(valid), -1)
    row[good] = np.arange(len(good))
    unit = track.pixels_per_unit
    pixel = max(1.0, unit / WORKING_UNIT)
    weight = np.full(len(tracks.frame), 1.0)
    anchors = np.tile(len(tracks.first) + np.arange(len(RIGID)), len(good))
    frame = np.concatenate([row[tracks.frame], np.repeat(np.arange(len(good)), len(RIGID))])
    order = np.argsort(frame, kind="stable")
    seen = Observations(frame[order], np.concatenate([tracks.point, anchors])[order],
                        np.concatenate([tracks.xy, landmarks[good][:, RIGID, :2].reshape(-1, 2)])[order] / pixel,
                        np.concatenate([weight, np.full(len(anchors), LANDMARK_WEIGHT)])[order])
    points = np.concatenate([tracks.first, track.template[RIGID]])
    precision = np.concatenate([np.full(len(tracks.first), 1 / DEPTH_SIGMA**2), np.full(len(RIGID), 1 / 0.02**2)])
    camera = replace(track.camera, focal=track.focal / pixel, cx=track.cx / pixel, cy=track.cy / pixel)
    smoothness = Smoothness(ROTATION_ACCELERATION, TRANSLATION_ACCELERATION, smooth_centres(valid, tracks.cuts)[good])
    scales = [*np.geomspace(2 * FIRST_SCALE_PX, LAST_SCALE_PX, 8), LAST_SCALE_PX, LAST_SCALE_PX]
    rotation, translation, points = adjust(seen, camera, track.rotation[good], track.translation[good], points,
                                           precision, smoothness, scales)
    full = np.zeros((2, len(valid), 3))
    full[0, good], full[1, good] = rotation, translation
    refined = replace(track, rotation=unwrap_rotation(fill_gaps(full[0], valid, is_rotation=True)),
                      translation=fill_gaps(full[1], valid), cuts=tracks.cuts,
                      residual_px=_residual(tracks, replace(track, rotation=full[0], translation=full[1]), points))
    return settle_template(refined, landmarks, valid)


def follow(frames: Iterable[np.ndarray], track: HeadTrack, landmarks: np.ndarray, valid: np.ndarray) -> Tracks:
    """Follow corners of the rigid head through `frames`, streaming. Arguments as of `refine_with_flow`."""
    import cv2

    scale = min(1.0, WORKING_UNIT / track.pixels_per_unit)
    limit = int(np.clip(MAX_OBSERVATIONS / max(1, valid.sum()), MIN_TRACKS, MAX_TRACKS))
    follower = _Follower(limit, scale * track.pixels_per_unit, track.template)
    cuts = track.cuts.copy()
    seen, count = [], 0
    for index, frame in enumerate(frames):
        if index == len(valid):
            break
        count += 1
        if not valid[index]:
            follower.lose()
            continue
        grey = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)
        if scale < 1:
            grey = cv2.resize(grey, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        cut, numbers, xy = follower.push(grey, landmarks[index, :, :2] * scale, known_cut=cuts[index])
        cuts[index] |= cut
        seen.append((np.full(len(numbers), index, np.int32), numbers, (xy / scale).astype(np.float32)))
    if count < len(valid):
        raise ValueError(f"{count} frames for {len(valid)} rows of landmarks")
    return _collect(seen, cuts, track, landmarks)


class _Follower:
    """Corners from one frame to the next."""

    def __init__(self, limit: int, unit: float, template: np.ndarray):
        self._limit = limit
        self._spacing = max(3.0, 0.055 * unit)
        self._round_trip = ROUND_TRIP_PX
        self._before: np.ndarray | None = None
        self._xy = np.zeros((0, 2), np.float32)
        self._numbers = np.zeros(0, np.int32)
        self._next = 0

    def lose(self) -> None:
        """Break all tracks: the face is gone."""
        self._before = None
        self._xy, self._numbers = self._xy[:0], self._numbers[:0]

    def push(self, grey: np.ndarray, landmarks: np.ndarray, known_cut: bool):
        """Whether the picture was cut, and numbers [n] and places [n, 2] of the corners alive in `grey`."""
        import cv2

        mask = head_mask(grey.shape, landmarks)
        cut = known_cut
        if self._before is not None and len(self._xy) and not known_cut:
            settings = dict(winSize=(WINDOW, WINDOW), maxLevel=3,
                            criteria=(cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, 30, 0.005))
            there, found, _ = cv2.calcOpticalFlowPyrLK(self._before, grey, self._xy, None, **settings)
            back, returned, _ = cv2.calcOpticalFlowPyrLK(grey, self._before, there, None, **settings)
            kept = (found[:, 0] > 0) & (returned[:, 0] > 0)
            kept &= np.linalg.norm(back - self._xy, axis=1) < self._round_trip
            cut = len(kept) >= 20 and kept.mean() < 1 - LOST_AT_CUT
            height, width = grey.shape
            column, line = np.round(np.nan_to_num(there, nan=-1)).astype(int).T
            kept &= (column >= 0) & (column < width) & (line >= 0) & (line < height)
            kept[kept] = mask[line[kept], column[kept]] > 0
            self._xy, self._numbers = there[kept], self._numbers[kept]
        if cut:
            self.lose()
        if len(self._xy) < 0.85 * self._limit:
            self._add(grey, mask)
        self._before = grey
        return cut, self._numbers.copy(), self._xy.copy()

    def _add(self, grey: np.ndarray, mask: np.ndarray) -> None:
        import cv2

        free = mask.copy()
        for x, y in np.round(self._xy).astype(int):
            cv2.circle(free, (int(x), int(y)), int(self._spacing), 0, -1)
        corners = cv2.goodFeaturesToTrack(grey, self._limit - len(self._xy), 0.005, self._spacing, mask=free, blockSize=5)
        if corners is None:
            return
        corners = corners.reshape(-1, 2)
        self._xy = np.concatenate([self._xy, corners])
        self._numbers = np.concatenate([self._numbers, self._next + np.arange(len(corners), dtype=np.int32)])
        self._next += len(corners)


def head_mask(shape: tuple[int, int], landmarks: np.ndarray) -> np.ndarray:
    """Where the head is rigid, uint8 [H, W]: the face above the upper lip and the hairline, less eyes and brows."""
    import cv2

    mask = np.zeros(shape, np.uint8)
    unit = np.linalg.norm(landmarks[33] - landmarks[263]) + 1e-6
    down = landmarks[152] - landmarks[10]
    down = down / (np.linalg.norm(down) + 1e-6)
    brow = landmarks[[70, 300]].mean(0)
    outline = landmarks[FACE_OVAL]
    above = np.maximum(0, (brow - outline) @ down)
    raised = outline - HAIR * above[:, None] * down
    cv2.fillConvexPoly(mask, cv2.convexHull(np.round(np.concatenate([outline, raised])).astype(np.int32)), 255)
    lip = landmarks[UPPER_LIP_TOP]
    aside = np.array([down[1], -down[0]]) * 3 * unit
    below = np.concatenate([[lip[0] - aside], lip - 0.04 * unit * down, [lip[-1] + aside]])
    below = np.concatenate([below, [below[-1] + 4 * unit * down, below[0] + 4 * unit * down]])
    cv2.fillPoly(mask, [np.round(below).astype(np.int32)], 0)
    for part in (LEFT_EYE, RIGHT_EYE, LEFT_BROW, RIGHT_BROW):
        hull = cv2.convexHull(np.round(landmarks[part]).astype(np.int32))
        cv2.fillConvexPoly(mask, hull, 0)
        cv2.polylines(mask, [hull], True, 0, max(1, int(0.1 * unit)))
    return mask


HAIR = 0.5
"""How far the mask reaches beyond the forehead, as part of the forehead's height."""


def _collect(seen: list, cuts: np.ndarray, track: HeadTrack, landmarks: np.ndarray) -> Tracks:
    """Join per-frame corners, drop short tracks, and place each corner at the depth of the template around it."""
    if not seen:
        return Tracks(np.zeros(0, np.int32), np.zeros(0, np.int32), np.zeros((0, 2), np.float32), cuts, np.zeros((0, 3)))
    frame, number, xy = (np.concatenate(part) for part in zip(*seen))
    length = np.bincount(number)
    kept = length[number] >= MIN_LENGTH
    frame, xy = frame[kept], xy[kept]
    _, first, point = np.unique(number[kept], return_index=True, return_inverse=True)
    return Tracks(frame, point.astype(np.int32), xy, cuts, _place(track, frame[first], xy[first]))


def _place(track: HeadTrack, frame: np.ndarray, xy: np.ndarray) -> np.ndarray:
    """Head points [P, 3] seen at `xy` [P, 2] in `frame` [P], at the depth of the three nearest template points."""
    from difflistener.prepare.bundle import rotation_matrices

    points = np.zeros((len(frame), 3))
    for index in np.unique(frame):
        here = np.flatnonzero(frame == index)
        matrix = rotation_matrices(track.rotation[index])
        placed = track.template @ matrix.T + track.translation[index]
        distance = np.linalg.norm(track.camera.project(placed)[None] - xy[here][:, None], axis=-1)
        nearest = np.argpartition(distance, 3, axis=1)[:, :3]
        near = 1 / (np.take_along_axis(distance, nearest, 1) + 1e-3 * track.pixels_per_unit)
        depth = (near * placed[nearest, 2]).sum(1) / near.sum(1)
        ray = (xy[here] - (track.cx, track.cy)) / track.focal
        points[here] = (np.column_stack([ray * depth[:, None], depth]) - track.translation[index]) @ matrix
    return points


def _residual(tracks: Tracks, track: HeadTrack, points: np.ndarray) -> float:
    """Median distance of the tracks from the adjusted points, px."""
    from difflistener.prepare.bundle import rotation_matrices

    matrices = rotation_matrices(track.rotation)[tracks.frame]
    placed = np.einsum("nij,nj->ni", matrices, points[tracks.point]) + track.translation[tracks.frame]
    return float(np.median(np.linalg.norm(track.camera.project(placed) - tracks.xy, axis=1)))
