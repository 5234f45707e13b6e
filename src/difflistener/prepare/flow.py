"""Frames + landmark poses -> better poses, from the texture of skin and hair.

Landmarks are guesses that slide over the face; texture does not. A few frames of different poses are kept as
keyframes. Corners (Shi & Tomasi 1994) on the rigid part of a keyframe's head are looked for in every frame of about
the same pose: each corner's patch is turned with the head as the landmarks say, then shifted until it fits
(Lucas-Kanade, inverse compositional: Baker & Matthews 2004). Nothing is handed on from frame to frame, so nothing
drifts. Poses and 3-D corners are then adjusted together, held to the landmarks only weakly.

Knows nothing of files or expression. At most `MAX_KEYFRAMES` pictures in memory; of the rest only tracks are kept.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
from scipy.spatial import cKDTree

from difflistener.motion import fill_gaps, unwrap_rotation
from difflistener.prepare.bundle import Observations, Smoothness, adjust, rotation_matrices
from difflistener.prepare.face_points import (FACE_OVAL, LEFT_BROW, LEFT_EYE, RIGHT_BROW, RIGHT_EYE, RIGID,
                                              UPPER_LIP_TOP)
from difflistener.prepare.pose import (ROTATION_ACCELERATION, TRANSLATION_ACCELERATION, HeadTrack, settle_template,
                                       smooth_centres)

CORNERS = 180
"""Corners of one keyframe; clips beyond `MAX_OBSERVATIONS` take fewer."""
MAX_OBSERVATIONS = 800_000
MIN_CORNERS = 80
KEYFRAMES_PER_FRAME = 2
MAX_KEYFRAMES = 16
"""Keyframes held at once; the one used longest ago makes room."""
KEYFRAME_ANGLE = 0.12
"""A head turned farther than this from every keyframe, radians, becomes one."""
MIN_MATCHED = 0.35
"""So does a frame in which less than this part of the nearest keyframe's corners is found."""
MIN_SIGHTS = 5
"""Fewest frames that must show a corner."""
WORKING_UNIT = 130.0
"""Larger pictures are scaled down to this many pixels for an inter-ocular distance; flow needs no more."""
PATCH = 0.14
"""Side of a patch, in inter-ocular distances."""
STEPS = 8
MIN_LIKENESS = 0.8
"""Least normalised correlation of a patch with where it was found."""
MAX_SHIFT = 0.08
"""Farthest a patch is found from where it was expected, in inter-ocular distances."""
FIRST_SCALE_PX, LAST_SCALE_PX = 4.0, 0.8
"""Geman-McClure scale at first and last, working pixels."""
LANDMARK_WEIGHT = 0.1
"""Weight of a rigid landmark beside a corner: it says where the head is, too weak to bring back the landmarks' jitter."""
DEPTH_SIGMA = 0.15
"""How far a corner may lie from where the template puts it, in inter-ocular distances."""
FACING = 0.35, 0.7
"""Cosine of the angle between surface and view from which a corner counts, and from which it counts in full."""
HAIR = 0.5
"""How far the mask reaches beyond the forehead, as part of the forehead's height."""
CUT_LEVELS = 4.0
"""A mean change of a small picture by this many grey levels and five times the usual change is a cut."""


@dataclass(frozen=True)
class Tracks:
    """Corner `point[n]` was seen at `xy[n]` px in frame `frame[n]` (ascending), facing the camera by `weight[n]` 0..1."""

    frame: np.ndarray  # [N] int
    point: np.ndarray  # [N] int
    xy: np.ndarray  # [N, 2]
    weight: np.ndarray  # [N]
    first: np.ndarray  # [P, 3] corners in the head frame, as the start poses and the template place them
    cuts: np.ndarray  # [T] bool


def refine_with_flow(frames: Iterable[np.ndarray], track: HeadTrack, landmarks: np.ndarray, valid: np.ndarray) -> HeadTrack:
    """Poses and template refined by texture; `residual_px` becomes the median distance of the corners.

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
    pixel = max(1.0, track.pixels_per_unit / WORKING_UNIT)
    frame = np.concatenate([row[tracks.frame], np.repeat(np.arange(len(good)), len(RIGID))])
    order = np.argsort(frame, kind="stable")
    anchors = np.tile(len(tracks.first) + np.arange(len(RIGID)), len(good))
    seen = Observations(
        frame[order], np.concatenate([tracks.point, anchors])[order],
        np.concatenate([tracks.xy, landmarks[good][:, RIGID, :2].reshape(-1, 2)])[order] / pixel,
        np.concatenate([tracks.weight, np.full(len(anchors), LANDMARK_WEIGHT)])[order])
    points = np.concatenate([tracks.first, track.template[RIGID]])
    precision = np.concatenate([np.full(len(tracks.first), 1 / DEPTH_SIGMA**2), np.full(len(RIGID), 1 / 0.02**2)])
    camera = replace(track.camera, focal=track.focal / pixel, cx=track.cx / pixel, cy=track.cy / pixel)
    smoothness = Smoothness(ROTATION_ACCELERATION, TRANSLATION_ACCELERATION, smooth_centres(valid, tracks.cuts)[good])
    scales = [*np.geomspace(FIRST_SCALE_PX, LAST_SCALE_PX, 8), LAST_SCALE_PX, LAST_SCALE_PX]
    full = np.zeros((2, len(valid), 3))
    full[0, good], full[1, good], points = adjust(seen, camera, track.rotation[good], track.translation[good], points,
                                                  precision, smoothness, scales)
    refined = replace(track, rotation=unwrap_rotation(fill_gaps(full[0], valid, is_rotation=True)),
                      translation=fill_gaps(full[1], valid), cuts=tracks.cuts)
    return settle_template(replace(refined, residual_px=_residual(tracks, refined, points)), landmarks, valid)


def follow(frames: Iterable[np.ndarray], track: HeadTrack, landmarks: np.ndarray, valid: np.ndarray) -> Tracks:
    """Find the keyframes' corners in all `frames`, streaming. Arguments as of `refine_with_flow`."""
    import cv2

    scale = min(1.0, WORKING_UNIT / track.pixels_per_unit)
    camera = replace(track.camera, focal=track.focal * scale, cx=track.cx * scale, cy=track.cy * scale)
    corners = int(np.clip(MAX_OBSERVATIONS / max(1, KEYFRAMES_PER_FRAME * valid.sum()), MIN_CORNERS, CORNERS))
    gallery = _Gallery(camera, track, corners, scale * track.pixels_per_unit)
    change = np.zeros(len(valid))
    small = None
    count = 0
    for index, frame in enumerate(frames):
        if index == len(valid):
            break
        count += 1
        grey = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)
        before, small = small, cv2.resize(grey, (48, 48), interpolation=cv2.INTER_AREA).astype(np.float32)
        change[index] = 0 if before is None else np.abs(small - before).mean()
        if valid[index]:
            if scale < 1:
                grey = cv2.resize(grey, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
            gallery.push(index, grey, landmarks[index, :, :2] * scale)
    if count < len(valid):
        raise ValueError(f"{count} frames for {len(valid)} rows of landmarks")
    usual = np.array([np.median(change[max(0, k - 6) : k + 7]) for k in range(count)])
    return gallery.tracks(scale, track.cuts | (change > np.maximum(CUT_LEVELS, 5 * usual)))


@dataclass
class _Keyframe:
    index: int
    picture: np.ndarray  # [H, W] float32
    xy: np.ndarray  # [n, 2] corners
    points: np.ndarray  # [n, 3] in the head frame
    tangents: np.ndarray  # [n, 3, 2]
    number: int  # of the first corner
    used: int  # last frame
    shift: np.ndarray  # [n, 2] how far from their expected places the corners were last found


class _Gallery:
    """Keyframes, and the sights of their corners so far."""

    def __init__(self, camera, track: HeadTrack, corners: int, unit: float):
        self._camera, self._track, self._corners, self._unit = camera, track, corners, unit
        self._matrices = rotation_matrices(track.rotation)
        half = max(4, int(PATCH * unit / 2))
        self._grid = np.stack(np.meshgrid(np.arange(-half, half + 1), np.arange(-half, half + 1)), -1).reshape(-1, 2)
        self._side = 2 * half + 1
        self._normals = _outward_normals(track.template)
        self._tree = cKDTree(track.template)
        self._keyframes: list[_Keyframe] = []
        self._first: list[np.ndarray] = []
        self._sights: list[tuple] = []
        self._count = 0

    def push(self, index: int, grey: np.ndarray, landmarks: np.ndarray) -> None:
        import cv2

        picture = cv2.GaussianBlur(grey, (0, 0), 0.7).astype(np.float32)
        angles = np.array([self._angle(index, keyframe) for keyframe in self._keyframes])
        matched = 0.0
        for place in np.argsort(angles)[:KEYFRAMES_PER_FRAME]:
            matched = max(matched, self._match(index, picture, self._keyframes[place]))
        if len(angles) == 0 or angles.min() > KEYFRAME_ANGLE or matched < MIN_MATCHED:
            self._add(index, grey, picture, landmarks)

    def tracks(self, scale: float, cuts: np.ndarray) -> Tracks:
        """All sights of corners that were seen often enough, in pixels of the full frame."""
        if not self._sights:
            return Tracks(np.zeros(0, int), np.zeros(0, int), np.zeros((0, 2)), np.zeros(0), np.zeros((0, 3)), cuts)
        frame, number, xy, weight = (np.concatenate(part) for part in zip(*self._sights))
        kept = np.bincount(number)[number] >= MIN_SIGHTS
        used, point = np.unique(number[kept], return_inverse=True)
        return Tracks(frame[kept], point, xy[kept] / scale, weight[kept], np.concatenate(self._first)[used], cuts)

    def _angle(self, index: int, keyframe: _Keyframe) -> float:
        trace = np.trace(self._matrices[index] @ self._matrices[keyframe.index].T)
        return float(np.arccos(np.clip((trace - 1) / 2, -1, 1)))

    def _project(self, index: int, points: np.ndarray, tangents: np.ndarray):
        """Pixels [n, 2], pixels per tangent step [n, 2, 2] and facing [n] of surface points in one frame."""
        matrix = self._matrices[index]
        placed = points @ matrix.T + self._track.translation[index]
        spread = self._camera.jacobian(placed) @ (matrix @ tangents)
        normal = np.cross(tangents[..., 0], tangents[..., 1]) @ matrix.T
        facing = -(normal * placed).sum(-1) / np.linalg.norm(placed, axis=-1)
        return self._camera.project(placed), spread, facing

    def _add(self, index: int, grey: np.ndarray, picture: np.ndarray, landmarks: np.ndarray) -> None:
        import cv2

        mask = head_mask(grey.shape, landmarks)
        found = cv2.goodFeaturesToTrack(grey, self._corners, 0.005, max(3.0, 0.06 * self._unit), mask=mask, blockSize=5)
        if found is None:
            return
        xy = found.reshape(-1, 2).astype(np.float64)
        points, tangents = self._on_surface(index, xy)
        _, _, facing = self._project(index, points, tangents)
        kept = facing > FACING[0]
        xy, points, tangents = xy[kept], points[kept], tangents[kept]
        if len(self._keyframes) == MAX_KEYFRAMES:
            self._keyframes.remove(min(self._keyframes, key=lambda keyframe: keyframe.used))
        self._keyframes.append(_Keyframe(index, picture, xy, points, tangents, self._count, index, np.zeros_like(xy)))
        self._first.append(points)
        self._see(index, self._count + np.arange(len(xy)), xy, facing[kept])
        self._count += len(xy)

    def _on_surface(self, index: int, xy: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Head points [n, 3] seen at `xy` [n, 2] at the depth of the three nearest template points, and tangents [n, 3, 2]."""
        placed = self._track.template @ self._matrices[index].T + self._track.translation[index]
        distance = np.linalg.norm(self._camera.project(placed)[None] - xy[:, None], axis=-1)
        nearest = np.argpartition(distance, 3, axis=1)[:, :3]
        near = 1 / (np.take_along_axis(distance, nearest, 1) + 1e-2 * self._unit)
        near /= near.sum(1, keepdims=True)
        depth = (near * placed[nearest, 2]).sum(1)
        ray = (xy - (self._camera.cx, self._camera.cy)) / self._camera.focal
        points = (np.column_stack([ray * depth[:, None], depth]) - self._track.translation[index]) @ self._matrices[index]
        normal = (near[..., None] * self._normals[nearest]).sum(1)
        normal /= np.linalg.norm(normal, axis=1, keepdims=True)
        across = np.cross(normal, (0.0, 1.0, 0.0))
        across /= np.linalg.norm(across, axis=1, keepdims=True)
        return points, np.stack([across, np.cross(normal, across)], -1)

    def _match(self, index: int, picture: np.ndarray, keyframe: _Keyframe) -> float:
        """Look for a keyframe's corners in one frame; returns the part that was found."""
        expected, spread, facing = self._project(index, keyframe.points, keyframe.tangents)
        _, spread_then, _ = self._project(keyframe.index, keyframe.points, keyframe.tangents)
        height, width = picture.shape
        margin = self._side
        looked = (facing > FACING[0]) & (expected > margin).all(1) & (expected < (width - margin, height - margin)).all(1)
        if not looked.any():
            return 0.0
        chosen = np.flatnonzero(looked)
        turn = spread_then[chosen] @ np.linalg.inv(spread[chosen])
        patch = _sample(keyframe.picture, keyframe.xy[chosen, None] + self._grid @ turn.transpose(0, 2, 1))
        start = np.median(keyframe.shift[chosen], axis=0)
        found, likeness = _shift_patches(patch, self._side, picture, expected[chosen] + start, self._grid)
        shift = found - expected[chosen]
        common = np.median(shift, axis=0)
        kept = (likeness > MIN_LIKENESS) & (np.linalg.norm(shift - common, axis=1) < MAX_SHIFT * self._unit)
        keyframe.used = index
        keyframe.shift[chosen] = common
        self._see(index, keyframe.number + chosen[kept], found[kept], facing[chosen][kept])
        return kept.sum() / len(keyframe.xy)

    def _see(self, index: int, number: np.ndarray, xy: np.ndarray, facing: np.ndarray) -> None:
        weight = np.clip((facing - FACING[0]) / (FACING[1] - FACING[0]), 0.01, 1)
        self._sights.append((np.full(len(number), index), number, xy, weight))


def _shift_patches(patch: np.ndarray, side: int, picture: np.ndarray, start: np.ndarray, grid: np.ndarray):
    """Where in `picture` each `patch` [n, side^2] fits best near `start` [n, 2] px: places [n, 2] and likeness [n] -1..1.

    Brightness and contrast of each patch are free.
    """
    patch, contrast = _standardise(patch)
    image = patch.reshape(-1, side, side)
    slope = np.stack([np.gradient(image, axis=2), np.gradient(image, axis=1)], -1).reshape(len(patch), -1, 2)
    inverse = np.linalg.inv(np.einsum("npi,npj->nij", slope, slope) + 1e-3 * np.eye(2))
    place = start.copy()
    for _ in range(STEPS):
        there, _ = _standardise(_sample(picture, place[:, None] + grid))
        step = np.einsum("nij,npj,np->ni", inverse, slope, there - patch, optimize=True)
        length = np.linalg.norm(step, axis=1, keepdims=True)
        step *= np.minimum(1, 2 / np.maximum(length, 1e-9))
        place = place - step
        if np.percentile(length, 90) < 0.01:
            break
    there, _ = _standardise(_sample(picture, place[:, None] + grid))
    return place, np.where(contrast > 1, (patch * there).mean(1), -1)


def _standardise(patch: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Patches [n, p] with mean 0 and standard deviation 1, and what that was."""
    patch = patch - patch.mean(1, keepdims=True)
    spread = patch.std(1, keepdims=True)
    return patch / np.maximum(spread, 1e-3), spread[:, 0]


def _sample(picture: np.ndarray, xy: np.ndarray) -> np.ndarray:
    """Grey levels [n, p] of `picture` at pixels [n, p, 2], cubic."""
    import cv2

    maps = np.ascontiguousarray(xy, np.float32)
    return cv2.remap(picture, maps[..., 0], maps[..., 1], cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)


def _outward_normals(template: np.ndarray) -> np.ndarray:
    """Surface normals [478, 3] of a face, out of the head: of the plane through the nearest points."""
    neighbours = template[cKDTree(template).query(template, 12)[1]]
    centred = neighbours - neighbours.mean(1, keepdims=True)
    normal = np.linalg.svd(centred)[2][:, 2]
    outward = template - (0, 0, 0.3)
    return normal * np.sign((normal * outward).sum(1, keepdims=True) + 1e-9)


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


def _residual(tracks: Tracks, track: HeadTrack, points: np.ndarray) -> float:
    """Median distance of the corners' sights from the adjusted corners, px."""
    matrices = rotation_matrices(track.rotation)[tracks.frame]
    placed = np.einsum("nij,nj->ni", matrices, points[tracks.point]) + track.translation[tracks.frame]
    return float(np.median(np.linalg.norm(track.camera.project(placed) - tracks.xy, axis=1)))
