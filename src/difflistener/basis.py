"""The landmark basis: 50 expression coefficients learned from tracked faces, so that no licensed file is needed.

A face's landmarks, with head pose and the person's neutral shape removed, move in a small space; its first 50
principal components are the expression. Knows nothing of media, tracking or networks.
Axes: T frames, P = 478 MediaPipe landmarks, xyz in the head frame (OpenCV axes, inter-ocular distance = 1).
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

NUM_LANDMARKS = 478
FORMAT = 1
MAX_CODE = 5.0
"""Codes are held inside +-5 standard deviations: beyond lies a tracking fault, not a face."""


@dataclass(frozen=True)
class LandmarkBasis:
    """displacement = mean + (codes * std) @ components, over flattened landmarks."""

    mean: np.ndarray  # [P*3]
    components: np.ndarray  # [50, P*3], orthonormal under `weights`
    std: np.ndarray  # [50]
    weights: np.ndarray  # [P] importance of each landmark in the fit

    @property
    def id(self) -> str:
        digest = hashlib.sha256()
        for array in (self.mean, self.components, self.std, self.weights):
            digest.update(np.ascontiguousarray(array, dtype="<f4").tobytes())
        return f"landmark:{digest.hexdigest()[:12]}"

    def encode(self, displacement: np.ndarray) -> np.ndarray:
        """Codes [T, 50] of displacements [T, P, 3] from the person's neutral shape."""
        weight = np.repeat(self.weights, 3)
        centred = displacement.reshape(len(displacement), -1) - self.mean
        codes = (centred * weight**2) @ self.components.T / self.std
        return np.clip(codes, -MAX_CODE, MAX_CODE).astype(np.float32)

    def decode(self, codes: np.ndarray) -> np.ndarray:
        """Displacements [T, P, 3] of codes [T, 50]."""
        return (self.mean + (codes * self.std) @ self.components).reshape(len(codes), -1, 3).astype(np.float32)

    def to_tensors(self) -> dict[str, np.ndarray]:
        return {name: np.ascontiguousarray(getattr(self, name), dtype=np.float32)
                for name in ("mean", "components", "std", "weights")}

    def save(self, path: Path) -> None:
        """Write one safetensors file, whole or not at all."""
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.tmp")
        header = {"library": "difflistener", "type": "landmark-basis", "format": str(FORMAT), "id": self.id}
        save_file(self.to_tensors(), temporary, metadata=header)
        temporary.replace(path)

    @classmethod
    def load(cls, path: Path) -> "LandmarkBasis":
        """Read a basis file, or the basis inside a prepared clip's folder. Raises `UserError` if it is neither."""
        path = Path(path)
        if path.is_dir():
            path = path / "basis.safetensors"
        if not path.is_file():
            raise UserError(f"There is no basis at {path}.", "Make one with: difflistener basis CLIP... --out FILE")
        try:
            return cls(**load_file(path))
        except (SafetensorError, TypeError, json.JSONDecodeError) as error:
            raise UserError(f"{path} is not a landmark basis ({error}).",
                            "Make one with: difflistener basis CLIP... --out FILE") from error


def fit_basis(displacements: list[np.ndarray], weights: np.ndarray) -> LandmarkBasis:
    """Principal components of landmark displacements, each person given the same say.

    Args:
        displacements: one array [T_i, P, 3] per person, from that person's neutral shape; valid frames only.
        weights: [P], importance of each landmark (eyes and lips above 1).

    Raises:
        UserError: fewer frames than components.
    """
    frames = sum(len(d) for d in displacements)
    if frames <= NUM_EXPRESSION:
        raise UserError(f"A basis of {NUM_EXPRESSION} components cannot be fitted on {frames} tracked frames.",
                        f"Use clips with more than {NUM_EXPRESSION} frames (2 s) with a visible face, or name a --basis.")
    weight = np.repeat(weights.astype(np.float64), 3)
    mean = np.mean([d.reshape(len(d), -1).mean(0, dtype=np.float64) for d in displacements], axis=0)
    covariance = np.zeros((len(mean), len(mean)))
    for displacement in displacements:
        for start in range(0, len(displacement), 1024):
            rows = (displacement[start : start + 1024].reshape(-1, len(mean)) - mean) * weight
            covariance += rows.T @ rows / (len(displacement) * len(displacements))
    variance, directions = eigsh(covariance, k=NUM_EXPRESSION, v0=np.ones(len(mean)), tol=1e-9)
    order = np.argsort(-variance)
    variance, directions = variance[order], directions.T[order]
    largest = np.abs(directions).argmax(1)
    directions = directions * np.sign(directions[np.arange(NUM_EXPRESSION), largest])[:, None]
    std = np.sqrt(np.maximum(variance, 1e-12))
    return LandmarkBasis(mean.astype(np.float32), (directions / weight).astype(np.float32), std.astype(np.float32),
                         weights.astype(np.float32))
