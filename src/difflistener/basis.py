"""The landmark basis: 50 expression coefficients learned from tracked faces, so that no licensed file is needed.

A face's landmarks, with head pose and the person's neutral shape removed, move in a small space; its first 44
principal components are the first 44 codes. The last six are posture: where the head and the torso are beyond what
the head's rotation alone says. Without them 56 numbers would not place a head. Knows nothing of media or tracking.

Axes: T frames, P = 478 MediaPipe landmarks, xyz in the head frame (OpenCV axes, inter-ocular distance = 1); posture =
head shift xyz in camera axes (inter-ocular distances), torso shift right and down (picture widths) and turn (radians).
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file
from scipy.sparse.linalg import eigsh

from difflistener.errors import UserError
from difflistener.motion import NUM_EXPRESSION
from difflistener.shipped import named

NUM_LANDMARKS = 478
FORMAT = 2
NUM_POSTURE = 6
NUM_FACE = NUM_EXPRESSION - NUM_POSTURE
POSTURE = slice(NUM_FACE, NUM_EXPRESSION)
STILL = 1e-3
"""Least spread of a posture number: below lies tracking noise."""
MAX_CODE = 5.0
"""Codes are held inside +-5 standard deviations: beyond lies a tracking fault, not a face."""


@dataclass(frozen=True)
class LandmarkBasis:
    """displacement = mean + (codes[:44] * std) @ components, over flattened landmarks; posture = codes[44:] * posture_std."""

    mean: np.ndarray  # [P*3]
    components: np.ndarray  # [44, P*3], orthonormal under `weights`
    std: np.ndarray  # [44]
    weights: np.ndarray  # [P] importance of each landmark in the fit
    posture_std: np.ndarray  # [6]

    @property
    def id(self) -> str:
        digest = hashlib.sha256()
        for array in self.to_tensors().values():
            digest.update(np.ascontiguousarray(array, dtype="<f4").tobytes())
        return f"landmark:{digest.hexdigest()[:12]}"

    @property
    def directions(self) -> np.ndarray:
        """Displacement [44, P, 3] of one unit of each face code."""
        return (self.components * self.std[:, None]).reshape(NUM_FACE, -1, 3)

    def encode(self, displacement: np.ndarray, posture: np.ndarray | None = None) -> np.ndarray:
        """Codes [T, 50] of displacements [T, P, 3] from the person's neutral shape, and of posture [T, 6] (None: at rest)."""
        weight = np.repeat(self.weights, 3)
        centred = displacement.reshape(len(displacement), -1) - self.mean
        codes = (centred * weight**2) @ self.components.T / self.std
        return self.join(codes, posture)

    def join(self, face_codes: np.ndarray, posture: np.ndarray | None = None) -> np.ndarray:
        """Codes [T, 50], held inside +-5, of face codes [T, 44] and posture [T, 6] (None: at rest)."""
        posture = np.zeros((len(face_codes), NUM_POSTURE)) if posture is None else posture
        codes = np.concatenate([face_codes, posture / self.posture_std], 1)
        return np.clip(codes, -MAX_CODE, MAX_CODE).astype(np.float32)

    def decode(self, codes: np.ndarray) -> np.ndarray:
        """Displacements [T, P, 3] of codes [T, 50]."""
        return (self.mean + (codes[:, :NUM_FACE] * self.std) @ self.components).reshape(len(codes), -1, 3).astype(np.float32)

    def to_tensors(self) -> dict[str, np.ndarray]:
        return {name: np.ascontiguousarray(getattr(self, name), dtype=np.float32)
                for name in ("mean", "components", "std", "weights", "posture_std")}

    def save(self, path: Path) -> None:
        """Write one safetensors file, whole or not at all."""
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.tmp")
        header = {"library": "difflistener", "type": "landmark-basis", "format": str(FORMAT), "id": self.id}
        save_file(self.to_tensors(), temporary, metadata=header)
        temporary.replace(path)

    @classmethod
    def load(cls, path: Path) -> "LandmarkBasis":
        """Read a basis file, the basis inside a prepared clip's folder, or the `shipped` one. Raises `UserError` if it is none."""
        path = named(path)
        if path.is_dir():
            path = path / "basis.safetensors"
        if not path.is_file():
            raise UserError(f"There is no basis at {path}.", "Make one with: difflistener basis CLIP... --out FILE")
        try:
            return cls(**load_file(path))
        except (SafetensorError, TypeError, json.JSONDecodeError) as error:
            raise UserError(f"{path} is not a landmark basis ({error}).",
                            "Make one with: difflistener basis CLIP... --out FILE") from error


def fit_basis(displacements: list[np.ndarray], weights: np.ndarray, postures: list[np.ndarray]) -> LandmarkBasis:
    """Principal components of landmark displacements, each person given the same say.

    Args:
        displacements: one array [T_i, P, 3] per person, from that person's neutral shape; valid frames only.
        weights: [P], importance of each landmark (eyes and lips above 1).
        postures: one array [T_i, 6] per person; NaN where it is not known.

    Raises:
        UserError: fewer frames than components.
    """
    frames = sum(len(d) for d in displacements)
    if frames <= NUM_EXPRESSION:
        raise UserError(f"A basis of {NUM_FACE} components cannot be fitted on {frames} tracked frames.",
                        f"Use clips with more than {NUM_EXPRESSION} frames (2 s) with a visible face, or name a --basis.")
    weight = np.repeat(weights.astype(np.float64), 3)
    mean = np.mean([d.reshape(len(d), -1).mean(0, dtype=np.float64) for d in displacements], axis=0)
    covariance = np.zeros((len(mean), len(mean)))
    for displacement in displacements:
        for start in range(0, len(displacement), 1024):
            rows = (displacement[start : start + 1024].reshape(-1, len(mean)) - mean) * weight
            covariance += rows.T @ rows / (len(displacement) * len(displacements))
    variance, directions = eigsh(covariance, k=NUM_FACE, v0=np.ones(len(mean)), tol=1e-9)
    order = np.argsort(-variance)
    variance, directions = variance[order], directions.T[order]
    largest = np.abs(directions).argmax(1)
    directions = directions * np.sign(directions[np.arange(NUM_FACE), largest])[:, None]
    std = np.sqrt(np.maximum(variance, 1e-12))
    power = np.array([(posture.astype(np.float64) ** 2).mean(0) for posture in postures])
    known = np.isfinite(power)
    spread = np.sqrt(np.where(known, power, 0).sum(0) / np.maximum(known.sum(0), 1))
    return LandmarkBasis(mean.astype(np.float32), (directions / weight).astype(np.float32), std.astype(np.float32),
                         weights.astype(np.float32), np.maximum(spread, STILL).astype(np.float32))
