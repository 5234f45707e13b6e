"""Bundle adjustment of one rigid head: per-frame poses and 3-D points from where the points were seen.

Knows nothing of pictures, landmarks or files: it is given observations in pixels. Gauss-Newton with robust weights
(Geman & McClure 1987); the points are eliminated by the Schur complement, which is never formed: its product with a
vector is enough for conjugate gradients, preconditioned by the banded pose block. Time and memory grow linearly
with the number of observations. Axes: N observations, F frames, P points; OpenCV camera axes.
"""

from dataclasses import dataclass

import numpy as np
from scipy.linalg import cho_solve_banded, cholesky_banded
from scipy.sparse import csr_matrix

MIN_DEPTH = 1e-3


@dataclass(frozen=True)
class Camera:
    """A pinhole: pixel = focal * (x, y) / z + (cx, cy)."""

    focal: float
    cx: float
    cy: float

    def project(self, points: np.ndarray) -> np.ndarray:
        """Pixels [..., 2] of camera-axes points [..., 3]."""
        depth = np.maximum(points[..., 2:], MIN_DEPTH)
        return self.focal * points[..., :2] / depth + np.array([self.cx, self.cy], points.dtype)

    def jacobian(self, points: np.ndarray) -> np.ndarray:
        """d pixel / d point [..., 2, 3]."""
        depth = np.maximum(points[..., 2], MIN_DEPTH)
        jacobian = np.zeros((*points.shape[:-1], 2, 3), points.dtype)
        jacobian[..., 0, 0] = jacobian[..., 1, 1] = self.focal / depth
        jacobian[..., 0, 2] = -self.focal * points[..., 0] / depth**2
        jacobian[..., 1, 2] = -self.focal * points[..., 1] / depth**2
        return jacobian


@dataclass(frozen=True)
class Observations:
    """Point `point[n]` was seen at pixel `xy[n]` of frame `frame[n]`, with inverse variance `weight[n]` (1/px^2)."""

    frame: np.ndarray  # [N] int, ascending
    point: np.ndarray  # [N] int
    xy: np.ndarray  # [N, 2]
    weight: np.ndarray  # [N]


@dataclass(frozen=True)
class Smoothness:
    """A prior on acceleration: standard deviations of the second difference, and where it holds."""

    rotation: float  # radians / frame^2
    translation: float  # inter-ocular distances / frame^2
    centres: np.ndarray  # [F] bool: frame k with its two neighbours lies in one shot without a gap


def rotation_matrices(axis_angle: np.ndarray) -> np.ndarray:
    """Rotation matrices [..., 3, 3] of axis-angle vectors [..., 3] (Rodrigues)."""
    return _exponential(axis_angle, lambda a: (_sinc(a), _cosc(a)))


def left_jacobians(axis_angle: np.ndarray) -> np.ndarray:
    """J [..., 3, 3] with R(w + d) = R(J d) R(w) to first order."""
    return _exponential(axis_angle, lambda a: (_cosc(a), _sincc(a)))


def skew(vector: np.ndarray) -> np.ndarray:
    """Matrices [..., 3, 3] with skew(a) b = a x b."""
    x, y, z = np.moveaxis(vector, -1, 0)
    zero = np.zeros_like(x)
    return np.stack([zero, -z, y, z, zero, -x, -y, x, zero], -1).reshape(*vector.shape[:-1], 3, 3)


def robust_weights(squared_error: np.ndarray, scale: float) -> np.ndarray:
    """Geman-McClure weight of residuals: 1 at zero, 1/4 at `scale`."""
    return (scale**2 / (scale**2 + squared_error)) ** 2


def adjust(
    seen: Observations, camera: Camera, rotation: np.ndarray, translation: np.ndarray, points: np.ndarray,
    point_precision: np.ndarray, smoothness: Smoothness, scales: list[float], cg_steps: int = 40,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Refine poses and points together.

    Args:
        rotation, translation: [F, 3] each, the start: axis-angle from head to camera, position in camera axes.
        points: [P, 3] in the head frame, the start and the mean of their prior.
        point_precision: [P] inverse variance of that prior (1 / unit^2), above zero.
        scales: Geman-McClure scale in pixels of each Gauss-Newton step.
        cg_steps: most conjugate-gradient steps in one Gauss-Newton step.

    Returns:
        rotation, translation, points, refined.
    """
    pose = np.concatenate([rotation, translation], 1).astype(np.float64)
    start = points = points.astype(np.float64)
    sigma = np.repeat([smoothness.rotation, smoothness.translation], 3)
    inertia = _Inertia(smoothness.centres, 1 / sigma**2)
    layout = _Layout(seen, len(pose), len(points))
    for scale in scales:
        residual, pose_jacobian, point_jacobian = _linearise(seen, camera, pose, points)
        root = np.sqrt(seen.weight * robust_weights((residual**2).sum(1), scale))[:, None]
        residual = residual * root
        pose_block = layout.pose_blocks(pose_jacobian * root[:, :, None])
        point_block = layout.point_blocks(point_jacobian * root[:, :, None])
        point_block[:, [0, 1, 2], [0, 1, 2]] += point_precision[:, None]
        by_pose = layout.pose_matrix(pose_jacobian * root[:, :, None])
        by_point = layout.point_matrix(point_jacobian * root[:, :, None])
        point_inverse = np.linalg.inv(point_block)
        flat = residual.reshape(-1)
        pose_gradient = by_pose.T @ flat - inertia.apply(pose).reshape(-1)
        point_gradient = by_point.T @ flat - (point_precision[:, None] * (points - start)).reshape(-1)

        def eliminate(vector):
            return np.einsum("pij,pj->pi", point_inverse, vector.reshape(-1, 3)).reshape(-1)

        damping = 1e-4 * np.einsum("fii->fi", pose_block) + 1e-6
        factor = cholesky_banded(inertia.banded(pose_block, damping), lower=True)

        def reduced(vector):
            image = by_pose @ vector
            hidden = by_point @ eliminate(by_point.T @ image)
            return by_pose.T @ (image - hidden) + (inertia.apply(vector.reshape(-1, 6)) + damping * vector.reshape(-1, 6)).reshape(-1)

        right = pose_gradient - by_pose.T @ (by_point @ eliminate(point_gradient))
        step = _conjugate_gradients(reduced, right, lambda v: cho_solve_banded((factor, True), v), cg_steps)
        points = points + eliminate(point_gradient - by_point.T @ (by_pose @ step)).reshape(-1, 3)
        pose = pose + step.reshape(-1, 6)
    return pose[:, :3], pose[:, 3:], points


def _linearise(seen: Observations, camera: Camera, pose: np.ndarray, points: np.ndarray):
    """Residual [N, 2] and its negative derivatives by pose [N, 2, 6] and by point [N, 2, 3]."""
    matrices, jacobians = rotation_matrices(pose[:, :3]), left_jacobians(pose[:, :3])
    turned = np.einsum("nij,nj->ni", matrices[seen.frame], points[seen.point])
    placed = turned + pose[seen.frame, 3:]
    by_camera = camera.jacobian(placed)
    by_rotation = -np.einsum("nij,njk,nkl->nil", by_camera, skew(turned), jacobians[seen.frame], optimize=True)
    return (seen.xy - camera.project(placed), np.concatenate([by_rotation, by_camera], -1),
            np.einsum("nij,njk->nik", by_camera, matrices[seen.frame]))


class _Layout:
    """Where observations stand in the sparse Jacobians; the same in every step."""

    def __init__(self, seen: Observations, num_frames: int, num_points: int):
        rows = 2 * len(seen.frame)
        self._frame, self._point = seen.frame, seen.point
        self._num_frames, self._num_points = num_frames, num_points
        self._pose_columns = np.repeat(6 * seen.frame[:, None] + np.arange(6), 2, 0).astype(np.int32).reshape(-1)
        self._point_columns = np.repeat(3 * seen.point[:, None] + np.arange(3), 2, 0).astype(np.int32).reshape(-1)
        self._pose_rows = np.arange(0, 6 * rows + 1, 6, dtype=np.int64 if 6 * rows > 2**31 - 1 else np.int32)
        self._point_rows = np.arange(0, 3 * rows + 1, 3, dtype=self._pose_rows.dtype)

    def pose_matrix(self, jacobian: np.ndarray) -> csr_matrix:
        shape = (2 * len(self._frame), 6 * self._num_frames)
        return csr_matrix((jacobian.reshape(-1), self._pose_columns, self._pose_rows), shape)

    def point_matrix(self, jacobian: np.ndarray) -> csr_matrix:
        shape = (2 * len(self._frame), 3 * self._num_points)
        return csr_matrix((jacobian.reshape(-1), self._point_columns, self._point_rows), shape)

    def pose_blocks(self, jacobian: np.ndarray) -> np.ndarray:
        return _sum_of_squares(jacobian, self._frame, self._num_frames)

    def point_blocks(self, jacobian: np.ndarray) -> np.ndarray:
        return _sum_of_squares(jacobian, self._point, self._num_points)


def _sum_of_squares(jacobian: np.ndarray, group: np.ndarray, count: int) -> np.ndarray:
    """Sum of J^T J [count, D, D] over the observations of each group."""
    size = jacobian.shape[-1]
    blocks = np.empty((count, size, size))
    for i in range(size):
        for j in range(i + 1):
            product = (jacobian[:, :, i] * jacobian[:, :, j]).sum(1)
            blocks[:, i, j] = blocks[:, j, i] = np.bincount(group, product, count)
    return blocks


class _Inertia:
    """Precision matrix of the acceleration prior over poses [F, 6]."""

    def __init__(self, centres: np.ndarray, precision: np.ndarray):
        self._centre = np.flatnonzero(centres)
        self._precision = precision
        self._num_frames = len(centres)

    def apply(self, pose: np.ndarray) -> np.ndarray:
        """Precision times `pose`, [F, 6]."""
        k = self._centre
        pull = (pose[k - 1] - 2 * pose[k] + pose[k + 1]) * self._precision
        out = np.zeros_like(pose)
        out[k - 1] += pull
        out[k] -= 2 * pull
        out[k + 1] += pull
        return out

    def banded(self, blocks: np.ndarray, damping: np.ndarray) -> np.ndarray:
        """Lower banded form [18, 6F] of the precision plus the 6x6 `blocks` [F, 6, 6] plus a diagonal [F, 6]."""
        bands = np.zeros((18, self._num_frames, 6))
        for i in range(6):
            for j in range(i + 1):
                bands[i - j, :, j] = blocks[:, i, j]
        bands[0] += damping
        k = self._centre
        for offset, frame, amount in ((0, k - 1, 1), (0, k, 4), (0, k + 1, 1), (6, k - 1, -2), (6, k, -2), (12, k - 1, 1)):
            bands[offset, frame] += amount * self._precision
        return bands.reshape(18, -1)


def _conjugate_gradients(product, right: np.ndarray, precondition, steps: int, tolerance: float = 1e-3) -> np.ndarray:
    """Solve a positive definite system to `tolerance` of the preconditioned residual."""
    solution = np.zeros_like(right)
    residual = right.copy()
    direction = helped = precondition(residual)
    energy = first = residual @ helped
    for _ in range(steps):
        if energy <= tolerance**2 * first or energy <= 0:
            break
        image = product(direction)
        length = energy / (direction @ image)
        solution += length * direction
        residual -= length * image
        helped = precondition(residual)
        energy, before = residual @ helped, energy
        direction = helped + energy / before * direction
    return solution


def _exponential(axis_angle: np.ndarray, coefficients) -> np.ndarray:
    """I + a W + b W^2 for W = skew(axis_angle)."""
    first, second = coefficients(np.linalg.norm(axis_angle, axis=-1)[..., None, None])
    cross = skew(axis_angle)
    return np.eye(3) + first * cross + second * (cross @ cross)


def _sinc(angle: np.ndarray) -> np.ndarray:
    """sin(a) / a."""
    return np.sinc(angle / np.pi)


def _cosc(angle: np.ndarray) -> np.ndarray:
    """(1 - cos a) / a^2."""
    return 0.5 * np.sinc(angle / (2 * np.pi)) ** 2


def _sincc(angle: np.ndarray) -> np.ndarray:
    """(a - sin a) / a^3."""
    small = angle < 1e-2
    safe = np.where(small, 1.0, angle)
    return np.where(small, 1 / 6 - angle**2 / 120, (safe - np.sin(safe)) / safe**3)
