"""Where a head and its torso are, beyond what the head's rotation alone says: the posture codes of a landmark basis.

A turning head shifts, because it turns about the neck, and the shoulders follow; both are fitted. What remains (a lean,
a sway, a shrug) is posture. Knows nothing of pictures. Axes: T frames; camera axes, inter-ocular distances, radians.
"""

from dataclasses import dataclass

import numpy as np

from difflistener.basis import NUM_POSTURE
from difflistener.prepare.bundle import rotation_matrices

USUAL_NECK = np.array([0, 1.0, 0.2])
"""Where a neck's pivot is in the head frame, where the head turned too little to tell."""
STIFFNESS = 1e-3


@dataclass(frozen=True)
class Follow:
    """What goes with a head rotation R: translation = neck[0] - R neck[1], torso = rotation @ torso_map[:3] + torso_map[3]."""

    neck: np.ndarray  # [2, 3] the pivot in camera space, and in the head frame
    torso_map: np.ndarray  # [4, 3]

    def translation(self, rotation: np.ndarray) -> np.ndarray:
        """Head position [T, 3] of head rotations [T, 3]."""
        return self.neck[0] - rotation_matrices(rotation) @ self.neck[1]

    def torso(self, rotation: np.ndarray) -> np.ndarray:
        """Torso motion [T, 3] of head rotations [T, 3]."""
        return rotation @ self.torso_map[:3] + self.torso_map[3]


def fit_follow(rotation: np.ndarray, translation: np.ndarray, torso: np.ndarray | None) -> Follow:
    """Ridge regression on tracked motion [T, 3] each; without `torso` it rests, without a frame all is as usual."""
    if len(rotation) == 0:
        return Follow(np.stack([USUAL_NECK, USUAL_NECK]), np.zeros((4, 3)))
    rows = np.concatenate([np.tile(np.eye(3), (len(rotation), 1, 1)), -rotation_matrices(rotation)], 2).reshape(-1, 6)
    prior = np.concatenate([np.zeros(3), USUAL_NECK])
    stiffness = STIFFNESS * len(rotation) * np.diag([0, 0, 0, 1.0, 1, 1])
    neck = prior + np.linalg.solve(rows.T @ rows + stiffness, rows.T @ (translation.reshape(-1) - rows @ prior))
    torso_map = np.zeros((4, 3))
    if torso is not None:
        centre = rotation.mean(0)
        turned = rotation - centre
        gram = turned.T @ turned + STIFFNESS * len(rotation) * np.eye(3)
        slope = np.linalg.solve(gram, turned.T @ (torso - torso.mean(0)))
        torso_map = np.concatenate([slope, (torso.mean(0) - centre @ slope)[None]])
    return Follow(neck.reshape(2, 3), torso_map)


def find_posture(follow: Follow, rotation: np.ndarray, translation: np.ndarray, torso: np.ndarray | None) -> np.ndarray:
    """Posture [T, 6], see `basis`; the torso's three are NaN where it is not tracked."""
    posture = np.full((len(rotation), NUM_POSTURE), np.nan)
    posture[:, :3] = translation - follow.translation(rotation)
    if torso is not None:
        posture[:, 3:] = torso - follow.torso(rotation)
    return posture
