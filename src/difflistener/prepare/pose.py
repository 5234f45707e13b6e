"""Landmarks -> head pose: one camera, one template of the person, a rotation and a translation for each frame.

Knows nothing of pictures or files. Head frame and camera: OpenCV axes, x right in the picture, y down, z away from the
camera. Zero rotation looks straight into the camera; positive rotation about x nods down, about y turns the face to
the left of the picture, about z tilts the head clockwise as seen. Origin: midway between the ears. Unit: the distance
of the outer eye corners (about 9 cm). A head point X stands at R X + t in camera axes.
Axes: T frames, P = 478 landmarks.
"""

from dataclasses import dataclass, replace

import numpy as np
from scipy.ndimage import gaussian_filter1d

from difflistener.errors import UserError
from difflistener.motion import fill_gaps, runs, unwrap_rotation
from difflistener.prepare.bundle import (Camera, Observations, Smoothness, adjust, left_jacobians, robust_weights,
                                         rotation_matrices, skew)
from difflistener.prepare.face_points import (BROWS, EARS, EYELIDS, IRISES, LIPS, MIRROR, NUM_POINTS,
                                              OUTER_EYE_CORNERS, RIGID, eye_opening)

VIEWING_DISTANCE = 11.0
"""Distance of the head that the default focal length assumes, in inter-ocular distances: about 1 m. One face hardly
shows the focal length of its camera, so it is assumed, not fitted."""
LANDMARK_SCALE = 0.03
"""Geman-McClure scale of a landmark, in inter-ocular distances: 3 px where those are 100 px."""
LANDMARK_COUNT = 30.0
"""How many independent one-pixel points a frame's landmarks are worth: their errors go together."""
ROTATION_ACCELERATION = 0.03
TRANSLATION_ACCELERATION = 0.05
"""Standard deviations of the acceleration prior, radians and units / frame^2: nods of 5 degrees at 3 Hz are kept."""
TEMPLATE_SIGMA = 0.1
"""How far the template may move from MediaPipe's own mean shape, in inter-ocular distances."""
SIDED = np.array([p for p in RIGID if MIRROR[p] > p])
"""Rigid points of the right half: with their mirror points they show which way is across."""
SLIDE = 0.015
"""How far landmarks slide over the face, in inter-ocular distances, alike for some ten frames."""
CUT_JUMP = 0.06
"""A face that jumps this far out of its path between two frames, in inter-ocular distances, was cut."""


@dataclass(frozen=True)
class HeadTrack:
    """Where a head was in every frame; frames that were not valid are interpolated."""

    focal: float  # px
    cx: float  # px
    cy: float  # px
    rotation: np.ndarray  # [T, 3] axis-angle, radians, head to camera
    translation: np.ndarray  # [T, 3] in inter-ocular distances
    template: np.ndarray  # [478, 3] neutral face in the head frame
    cuts: np.ndarray  # [T] bool, frame starts a new shot
    residual_px: float  # median distance of what the poses were fitted to (landmarks, or flow tracks)

    def __len__(self) -> int:
        return len(self.rotation)

    @property
    def camera(self) -> Camera:
        return Camera(self.focal, self.cx, self.cy)

    @property
    def pixels_per_unit(self) -> float:
        """Size of an inter-ocular distance in the picture, median over frames."""
        return float(self.focal / np.median(self.translation[:, 2]))

    def place(self, points: np.ndarray) -> np.ndarray:
        """Camera-axes points [T, P, 3] of head points [P, 3] or [T, P, 3]."""
        return points @ rotation_matrices(self.rotation).transpose(0, 2, 1) + self.translation[:, None]

    def project(self, points: np.ndarray) -> np.ndarray:
        """Pixels [T, P, 2] of head points [P, 3] or [T, P, 3]."""
        return self.camera.project(self.place(points))


def fit_head(landmarks: np.ndarray, valid: np.ndarray, width: int, height: int, focal: float | None = None,
             cuts: np.ndarray | None = None) -> HeadTrack:
    """Fit poses and a template to tracked landmarks, over the whole clip together.

    Args:
        landmarks: [T, 478, 3] px, z scaled like x; rows that are not `valid` [T] are ignored.
        width, height: of the frame; its centre is the principal point.
        focal: in pixels; None assumes that the head is `VIEWING_DISTANCE` away.
        cuts: [T] bool, frames that start a new shot; None finds jumps of the face.

    Raises:
        UserError: no valid frame.
    """
    if not valid.any():
        raise UserError("No frame shows a face to fit a head to.", "Use a video in which a face is seen.")
    good = np.flatnonzero(valid)
    seen = landmarks[good].astype(np.float64)
    template, matrices, scale, centre = _mean_shape(seen)
    focal = float(VIEWING_DISTANCE * np.median(scale)) if focal is None else float(focal)
    camera = Camera(focal, width / 2, height / 2)
    depth = focal / scale
    translation = np.column_stack([(centre - (camera.cx, camera.cy)) / scale[:, None], depth])
    rotation = _axis_angles(matrices)
    cuts = find_cuts(landmarks, valid) if cuts is None else cuts

    chosen = np.unique(np.concatenate([np.arange(0, 468, 5), RIGID]))
    weight = pose_weights(template)[chosen]
    unit = np.median(scale)
    frames = np.arange(len(good))
    observations = Observations(np.repeat(frames, len(chosen)), np.tile(np.arange(len(chosen)), len(frames)),
                                seen[:, chosen, :2].reshape(-1, 2),
                                np.tile(weight * LANDMARK_COUNT / weight.sum(), len(frames)))
    precision = np.full(len(chosen), 1 / TEMPLATE_SIGMA**2)
    smoothness = Smoothness(ROTATION_ACCELERATION, TRANSLATION_ACCELERATION, smooth_centres(valid, cuts)[good])
    rotation, translation, points = adjust(observations, camera, rotation, translation, template[chosen], precision,
                                           smoothness, scales=[s * LANDMARK_SCALE * unit for s in (4, 2, 1, 1, 1, 1)])
    template[chosen] = points
    track = _whole(camera, rotation, translation, template, cuts, valid)
    track = settle_template(track, landmarks, valid)
    errors = np.linalg.norm(track.project(track.template)[good][:, RIGID] - seen[:, RIGID, :2], axis=-1)
    return replace(track, residual_px=float(np.median(errors)))


def fit_poses(landmarks: np.ndarray, template: np.ndarray, camera: Camera, rotation: np.ndarray,
              translation: np.ndarray, steps: int = 6) -> tuple[np.ndarray, np.ndarray]:
    """Pose of each frame by itself, template and camera known: what a live listener can do.

    `landmarks` [T, 478, 2 or 3] px; `rotation`, `translation` [T, 3] start (the frame before will do, or
    `start_poses`). Returns both, refined by robust Gauss-Newton.
    """
    rotation, translation = rotation.astype(np.float64), translation.astype(np.float64)
    weight = pose_weights(template)
    for step in range(steps):
        matrices = rotation_matrices(rotation)
        turned = template @ matrices.transpose(0, 2, 1)
        placed = turned + translation[:, None]
        residual = landmarks[..., :2] - camera.project(placed)
        scale = LANDMARK_SCALE * camera.focal / np.median(translation[:, 2]) * max(1, 4 - step)
        robust = weight * robust_weights((residual**2).sum(-1), scale)
        by_camera = camera.jacobian(placed)
        jacobian = np.concatenate([-by_camera @ skew(turned) @ left_jacobians(rotation)[:, None], by_camera], -1)
        weighted = jacobian * robust[..., None, None]
        blocks = np.einsum("tpki,tpkj->tij", weighted, jacobian, optimize=True) + 1e-6 * np.eye(6)
        change = np.linalg.solve(blocks, np.einsum("tpki,tpk->ti", weighted, residual)[..., None])[..., 0]
        rotation, translation = rotation + change[:, :3], translation + change[:, 3:]
    return rotation, translation


def start_poses(landmarks: np.ndarray, template: np.ndarray, camera: Camera) -> tuple[np.ndarray, np.ndarray]:
    """Rough rotation and translation [T, 3] each, of landmarks [T, 478, 3] px with depth, frame by frame."""
    matrices, scale, centre = _similarity(template, landmarks.astype(np.float64), pose_weights(template))
    translation = np.column_stack([(centre - (camera.cx, camera.cy)) / scale[:, None], camera.focal / scale])
    return _axis_angles(matrices), translation


def displacements(track: HeadTrack, landmarks: np.ndarray, valid: np.ndarray, smooth: float = 0.0) -> np.ndarray:
    """How far each landmark stands from the neutral template, in the head frame [T, 478, 3] float32; zero where not valid.

    The picture shows two of three directions: the landmark is taken at the depth of its posed template point.
    `smooth` > 0 filters in time within runs of valid frames (standard deviation in frames).
    """
    placed = track.place(track.template)
    depth = placed[..., 2:]
    offset = (landmarks[..., :2] - track.camera.project(placed)) * depth / track.focal
    moved = np.concatenate([offset, np.zeros_like(depth)], -1) @ rotation_matrices(track.rotation)
    moved[~valid] = 0
    return smooth_runs(moved.astype(np.float32), valid, track.cuts, smooth)


def smooth_runs(values: np.ndarray, valid: np.ndarray, cuts: np.ndarray, sigma: float) -> np.ndarray:
    """`values` [T, ...] filtered in time by a Gaussian of `sigma` frames, never across a gap or a cut."""
    if sigma <= 0:
        return values
    smoothed = values.copy()
    for start, stop in shots(valid, cuts):
        smoothed[start:stop] = gaussian_filter1d(values[start:stop], sigma, axis=0, mode="nearest", truncate=3)
    return smoothed


def shots(valid: np.ndarray, cuts: np.ndarray) -> list[tuple[int, int]]:
    """Runs of valid frames without a cut inside, as (start, stop)."""
    pieces = []
    for start, stop in runs(valid):
        edges = [start, *(int(k) for k in np.flatnonzero(cuts) if start < k < stop), stop]
        pieces += list(zip(edges[:-1], edges[1:]))
    return pieces


def smooth_centres(valid: np.ndarray, cuts: np.ndarray) -> np.ndarray:
    """Frames [T] bool that lie with both neighbours in one shot."""
    centres = np.zeros(len(valid), bool)
    for start, stop in shots(valid, cuts):
        centres[start + 1 : stop - 1] = True
    return centres


def find_cuts(landmarks: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Frames [T] bool where the face jumps out of its path: a cut within one scene."""
    cuts = np.zeros(len(valid), bool)
    centre = landmarks[:, RIGID, :2].mean(1)
    unit = np.median(np.linalg.norm(np.subtract(*landmarks[valid][:, OUTER_EYE_CORNERS].transpose(1, 0, 2)), axis=-1))
    for start, stop in runs(valid):
        cuts[start] = start > 0
        step = np.diff(centre[start:stop], axis=0)
        if len(step) < 3:
            continue
        around = np.pad(step, ((3, 3), (0, 0)), mode="reflect") if len(step) > 3 else np.tile(step, (3, 1))
        near = np.stack([around[k : k + len(step)] for k in (0, 1, 2, 4, 5, 6)])
        jump = np.linalg.norm(step - np.median(near, axis=0), axis=1)
        usual = np.median(np.linalg.norm(near - np.median(near, axis=0), axis=-1), axis=0)
        cuts[start + 1 : stop] |= jump > np.maximum(CUT_JUMP * unit, 6 * usual)
    return cuts


def settle_template(track: HeadTrack, landmarks: np.ndarray, valid: np.ndarray) -> HeadTrack:
    """Re-derive the template from landmarks in these poses: shape over all frames, then the neutral face, then axes.

    Neutral is the median of the frames with the mouth closed and the eyes open (the most closed third, the more
    open half), so that it means the same face of a person who talks and of one who listens.
    """
    good = np.flatnonzero(valid)
    template = _triangulate(track, landmarks, good)
    track = replace(track, template=template)
    neutral = good[_is_neutral(landmarks[good])]
    neutral_only = np.zeros(len(valid), bool)
    neutral_only[neutral] = True
    moved = displacements(_select(track, neutral), landmarks[neutral], np.ones(len(neutral), bool))
    return _canonical(replace(track, template=template + np.median(moved, 0)))


def pose_weights(template: np.ndarray) -> np.ndarray:
    """How far each landmark [P] is believed for pose: lips .05, jaw .15, eyes and brows .3, the rest 1."""
    weight = np.ones(NUM_POINTS)
    weight[template[:, 1] > template[0, 1]] = 0.15
    weight[np.concatenate([EYELIDS, IRISES, BROWS])] = 0.3
    weight[LIPS] = 0.05
    return weight


def _is_neutral(landmarks: np.ndarray) -> np.ndarray:
    """Frames [T] bool with the mouth closed and the eyes open."""
    gap = np.linalg.norm(landmarks[:, 13] - landmarks[:, 14], axis=-1)
    gap = gap / np.linalg.norm(landmarks[:, 168] - landmarks[:, 0], axis=-1)
    lids = eye_opening(landmarks).mean(1)
    closed = gap <= np.percentile(gap, 33)
    return closed & (lids >= np.median(lids[closed]))


def _triangulate(track: HeadTrack, landmarks: np.ndarray, frames: np.ndarray, steps: int = 3) -> np.ndarray:
    """Template points [P, 3] that fit all `frames`, poses known; a weak prior holds what the poses do not show."""
    matrices = rotation_matrices(track.rotation[frames])
    start = points = track.template.astype(np.float64)
    scale = LANDMARK_SCALE * track.pixels_per_unit
    precision = 10 * (SLIDE / TEMPLATE_SIGMA * track.pixels_per_unit) ** 2
    for _ in range(steps):
        blocks = np.tile(precision * np.eye(3), (NUM_POINTS, 1, 1))
        right = precision * (start - points)
        for begin in range(0, len(frames), 256):
            part = slice(begin, begin + 256)
            placed = points @ matrices[part].transpose(0, 2, 1) + track.translation[frames[part], None]
            residual = landmarks[frames[part], :, :2] - track.camera.project(placed)
            jacobian = track.camera.jacobian(placed) @ matrices[part, None]
            weighted = jacobian * robust_weights((residual**2).sum(-1), scale)[..., None, None]
            blocks += np.einsum("tpki,tpkj->pij", weighted, jacobian, optimize=True)
            right = right + np.einsum("tpki,tpk->pi", weighted, residual, optimize=True)
        points = points + np.linalg.solve(blocks, right[..., None])[..., 0]
    return points


def _whole(camera: Camera, rotation: np.ndarray, translation: np.ndarray, template: np.ndarray, cuts: np.ndarray,
           valid: np.ndarray) -> HeadTrack:
    """A track over all frames from poses of the valid ones; gaps interpolated."""
    full = np.zeros((2, len(valid), 3))
    full[0, valid], full[1, valid] = rotation, translation
    return HeadTrack(camera.focal, camera.cx, camera.cy, unwrap_rotation(fill_gaps(full[0], valid, is_rotation=True)),
                     fill_gaps(full[1], valid), template, cuts, residual_px=float("nan"))


def _select(track: HeadTrack, frames: np.ndarray) -> HeadTrack:
    return replace(track, rotation=track.rotation[frames], translation=track.translation[frames], cuts=track.cuts[frames])


def _canonical(track: HeadTrack) -> HeadTrack:
    """The same track in the head frame's own axes, origin and unit."""
    axes, origin, unit = head_axes(track.template)
    matrices = rotation_matrices(track.rotation)
    return replace(track, rotation=unwrap_rotation(_axis_angles(matrices @ axes)),
                   translation=(track.translation + matrices @ origin) / unit,
                   template=(track.template - origin) @ axes / unit)


def head_axes(shape: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """Axes (columns), origin and unit of the head frame, of a face [P, 3]: x across mirrored points, y in the plane of
    forehead top and chin."""
    across = (shape[MIRROR] - shape)[SIDED].sum(0)
    x = across / np.linalg.norm(across)
    down = shape[152] - shape[10]
    y = down - (down @ x) * x
    y /= np.linalg.norm(y)
    unit = np.linalg.norm(np.subtract(*shape[OUTER_EYE_CORNERS]))
    return np.column_stack([x, y, np.cross(x, y)]), shape[EARS].mean(0), unit


def _mean_shape(landmarks: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Mean face [P, 3] in the head frame of landmarks [T, P, 3] px (generalised Procrustes), and each frame's rotation
    matrix [T, 3, 3], scale [T] px per unit, and head origin [T, 2] px."""
    sample = landmarks[np.linspace(0, len(landmarks) - 1, min(len(landmarks), 400)).astype(int)]
    shape = np.median(sample, axis=0)
    for _ in range(4):
        axes, origin, unit = head_axes(shape)
        shape = (shape - origin) @ axes / unit
        matrices, scale, centre, depth = _similarity(shape, sample, pose_weights(shape), with_depth=True)
        offset = np.concatenate([centre, depth[:, None]], 1)
        shape = _symmetrical(np.median((sample - offset[:, None]) @ matrices / scale[:, None, None], axis=0))
    axes, origin, unit = head_axes(shape)
    shape = (shape - origin) @ axes / unit
    return shape, *_similarity(shape, landmarks, pose_weights(shape))


def _symmetrical(shape: np.ndarray) -> np.ndarray:
    """`shape` [P, 3] made its own mirror image: a clip with little turning does not show which way a face is skewed in
    depth, and a skewed template would pass for a turned head."""
    axes, origin, unit = head_axes(shape)
    shape = (shape - origin) @ axes / unit
    return (shape + shape[MIRROR] * [-1, 1, 1]) / 2


def _similarity(shape: np.ndarray, landmarks: np.ndarray, weight: np.ndarray, with_depth: bool = False):
    """Rotation [T, 3, 3], scale [T] and shift [T, 2] that take `shape` [P, 3] to landmarks [T, P, 3] (Umeyama 1991)."""
    share = weight / weight.sum()
    shape_mean, mean = share @ shape, np.einsum("p,tpc->tc", share, landmarks)
    centred, target = shape - shape_mean, landmarks - mean[:, None]
    covariance = np.einsum("p,tpi,pj->tij", share, target, centred, optimize=True)
    left, singular, right = np.linalg.svd(covariance)
    sign = np.ones((len(landmarks), 3))
    sign[:, 2] = np.sign(np.linalg.det(left @ right))
    matrices = (left * sign[:, None]) @ right
    scale = (singular * sign).sum(1) / (share @ (centred**2).sum(1))
    shift = mean - scale[:, None] * (matrices @ shape_mean)
    return (matrices, scale, shift[:, :2], shift[:, 2]) if with_depth else (matrices, scale, shift[:, :2])


def _axis_angles(matrices: np.ndarray) -> np.ndarray:
    from scipy.spatial.transform import Rotation

    return Rotation.from_matrix(matrices).as_rotvec()
