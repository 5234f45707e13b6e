"""Landmarks + head track <-> expression codes: what is left of a face once the head's pose is known.

Codes are found where they matter, in the picture: the basis decodes to displacements in the head frame, these are
posed and projected, and the distance to the landmarks is made least. Each frame stands by itself, so a live listener
computes the same. Knows nothing of files. Axes: T frames, P = 478 landmarks, 50 codes, 44 of them of the face.
"""

import numpy as np

from difflistener.basis import NUM_FACE, LandmarkBasis
from difflistener.motion import fill_gaps
from difflistener.prepare.bundle import rotation_matrices
from difflistener.prepare.face_points import EYELIDS, IRISES, LIPS, NUM_POINTS
from difflistener.prepare.pose import HeadTrack, smooth_runs

SMOOTH_FRAMES = 0.5
"""Filter of the codes in time, standard deviation in frames: takes landmark jitter, leaves blinks."""
NOISE = 0.006
"""Landmark error that the codes weigh against their unit variance, in inter-ocular distances; far above a point's own
jitter because the errors of neighbouring points go together."""
STEPS = 4
BLOCK = 256
"""Frames worked on at once."""


def landmark_weights() -> np.ndarray:
    """Importance of each landmark [478] in a basis: eyelids and irises 2, lips 1.5, the rest 1."""
    weights = np.ones(NUM_POINTS, np.float32)
    weights[LIPS] = 1.5
    weights[np.concatenate([EYELIDS, IRISES])] = 2.0
    return weights


class Encoder:
    """What of a basis is the same for every frame, for trackers that encode one frame at a time."""

    def __init__(self, basis: LandmarkBasis):
        self.basis = basis
        spread = basis.directions.astype(np.float64)
        weight = basis.weights.astype(np.float64) ** 2
        self._weighted = spread * weight[None, :, None]
        self._products = np.tensordot(self._weighted, spread, axes=([1], [1])).transpose(0, 2, 1, 3)

    def encode(self, track: HeadTrack, landmarks: np.ndarray, valid: np.ndarray, posture: np.ndarray,
               smooth: float = SMOOTH_FRAMES) -> np.ndarray:
        """See `encode`."""
        codes = np.zeros((len(track), NUM_FACE), np.float32)
        good = np.flatnonzero(valid)
        for start in range(0, len(good), BLOCK):
            frames = good[start : start + BLOCK]
            codes[frames] = _encode_block(track, landmarks, frames, self.basis, self._weighted, self._products)
        codes = smooth_runs(codes, valid, track.cuts, smooth)
        codes = self.basis.join(codes, np.nan_to_num(posture))
        return fill_gaps(codes, valid) if len(good) else codes


def encode(track: HeadTrack, landmarks: np.ndarray, valid: np.ndarray, basis: LandmarkBasis, posture: np.ndarray,
           smooth: float = SMOOTH_FRAMES) -> np.ndarray:
    """Codes [T, 50] float32 whose decoded face lies nearest to `landmarks` [T, 478, 2 or 3] px; gaps interpolated.

    Regularised least squares (codes have unit variance), weighted like the basis. `posture` [T, 6] becomes the last six
    codes; what is NaN in it rests. `smooth` = 0 gives each frame from itself alone.
    """
    return Encoder(basis).encode(track, landmarks, valid, posture, smooth)


def _encode_block(track: HeadTrack, landmarks: np.ndarray, frames: np.ndarray, basis: LandmarkBasis,
                  weighted: np.ndarray, products: np.ndarray) -> np.ndarray:
    """Gauss-Newton with exact residuals and one camera Jacobian for the whole face, so that the normal matrix of a
    frame is a sum of nine fixed ones: `products` [44, 44, 3, 3]. Each step shrinks the error about tenfold."""
    matrices, shift = rotation_matrices(track.rotation[frames]), track.translation[frames, None]
    by_head = track.camera.jacobian(track.template.mean(0) @ matrices.transpose(0, 2, 1) + shift[:, 0]) @ matrices
    certainty = 1 / (NOISE * track.focal / track.translation[frames, 2]) ** 2
    metric = np.einsum("tci,tcj,t->tij", by_head, by_head, certainty)
    normal = np.tensordot(metric, products, axes=([1, 2], [2, 3])) + np.eye(NUM_FACE)
    inverse = np.linalg.inv(normal)
    codes = np.zeros((len(frames), NUM_FACE))
    for _ in range(STEPS):
        placed = (track.template + basis.decode(codes)) @ matrices.transpose(0, 2, 1) + shift
        residual = landmarks[frames, :, :2] - track.camera.project(placed)
        pull = np.einsum("tpc,tci,t->tpi", residual, by_head, certainty, optimize=True)
        gradient = pull.reshape(len(frames), -1) @ weighted.reshape(NUM_FACE, -1).T - codes
        codes = codes + (inverse @ gradient[..., None])[..., 0]
    return codes


def reprojection_error(track: HeadTrack, landmarks: np.ndarray, valid: np.ndarray, basis: LandmarkBasis,
                       codes: np.ndarray) -> np.ndarray:
    """Mean distance of decoded, posed and projected landmarks from the tracked ones, px per frame [T]; NaN where not valid."""
    error = np.full(len(track), np.nan, np.float32)
    good = np.flatnonzero(valid)
    for start in range(0, len(good), BLOCK):
        frames = good[start : start + BLOCK]
        face = track.template + basis.decode(codes[frames])
        placed = face @ rotation_matrices(track.rotation[frames]).transpose(0, 2, 1) + track.translation[frames, None]
        error[frames] = np.linalg.norm(track.camera.project(placed) - landmarks[frames, :, :2], axis=-1).mean(1)
    return error
