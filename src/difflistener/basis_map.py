"""A linear map from landmark codes to FLAME codes, learned from one film that was tracked both ways.

It lets motion of the landmark basis be shown by whoever has FLAME: 44 face codes -> 50 expression codes and the jaw, by ridge
regression. Posture codes say nothing of a face and are left out. The two head frames differ by a constant turn, which is
learned too. Knows nothing of media. Axes: T frames at 25 fps, D = 56 motion.
"""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro

from difflistener.basis import NUM_FACE
from difflistener.errors import UserError
from difflistener.motion import EXPRESSION, FLAME_BASES, JAW, NUM_MOTION, ROTATION, Motion, unwrap_rotation

FORMAT = 1
RIDGE = 1e-3
"""Penalty on the squared weights, for each frame: the codes have unit variance."""


@dataclass(frozen=True)
class MapBases:
    """Learn how landmark codes become FLAME codes, from one film prepared twice: as usual, and with --tracker flame.

    Example: difflistener map bases clips/ben clips/ben-flame --out landmark-to-flame.safetensors
    """

    landmark_clip: Annotated[Path, tyro.conf.Positional]
    """The clip in a landmark basis."""
    flame_clip: Annotated[Path, tyro.conf.Positional]
    """The clip of the same frames in a FLAME basis."""
    out: Path
    """File for the map."""
    overwrite: bool = False
    """Replace a file that stands at --out."""


@dataclass(frozen=True)
class BasisMap:
    """FLAME [T, 50 expression | 3 jaw] = landmark codes [T, 44] @ weight + bias; FLAME head = landmark head times `turn`."""

    source: str
    target: str
    weight: np.ndarray  # [44, 53]
    bias: np.ndarray  # [53]
    turn: np.ndarray  # [3] axis-angle, radians
    error: np.ndarray  # [53] root mean squared error on held-out frames: standard deviations, radians
    explained: float  # part of the held-out variance of the 50 expression codes

    def apply(self, motion: Motion) -> Motion:
        """The same motion in the target basis; eyes, translation and `valid` stay. Raises `UserError` for another basis."""
        from scipy.spatial.transform import Rotation

        if motion.basis != self.source:
            raise UserError(f"The motion is in basis {motion.basis}, the map leads from {self.source} to {self.target}.",
                            "Learn a map from clips in that basis: difflistener map bases")
        face = motion.values[:, :NUM_FACE] @ self.weight + self.bias
        values = np.empty((len(motion), NUM_MOTION), np.float32)
        values[:, EXPRESSION], values[:, JAW] = face[:, :50], face[:, 50:]
        turned = (Rotation.from_rotvec(motion.rotation.astype(np.float64)) * Rotation.from_rotvec(self.turn)).as_rotvec()
        values[:, ROTATION] = unwrap_rotation(turned)
        return replace(motion, values=values, basis=self.target)

    def save(self, path: Path) -> None:
        """Write one safetensors file, whole or not at all."""
        from safetensors.numpy import save_file

        from difflistener.clip import replacing

        tensors = {name: np.ascontiguousarray(getattr(self, name), np.float32) for name in ("weight", "bias", "turn", "error")}
        header = {"library": "difflistener", "type": "basis-map", "format": str(FORMAT), "source": self.source,
                  "target": self.target, "explained": json.dumps(self.explained)}
        with replacing(Path(path)) as temporary:
            save_file(tensors, temporary, metadata=header)

    @classmethod
    def load(cls, path: Path) -> "BasisMap":
        """Read a map. Raises `UserError` where it is none."""
        from safetensors import SafetensorError, safe_open

        remedy = "Make one with: difflistener map bases LANDMARK_CLIP FLAME_CLIP --out FILE"
        if not Path(path).is_file():
            raise UserError(f"There is no map at {path}.", remedy)
        try:
            with safe_open(path, "np") as opened:
                header = opened.metadata() or {}
                if header.get("type") != "basis-map" or header.get("format") != str(FORMAT):
                    raise ValueError(f"type {header.get('type')}, format {header.get('format')}")
                tensors = {name: opened.get_tensor(name) for name in ("weight", "bias", "turn", "error")}
            return cls(header["source"], header["target"], explained=json.loads(header["explained"]), **tensors)
        except (SafetensorError, KeyError, ValueError) as error:
            raise UserError(f"{path} is not a basis map ({error}).", remedy) from error


def fit_map(landmark: Motion, flame: Motion, held_out: np.ndarray) -> BasisMap:
    """Ridge regression on frames valid in both.

    Args:
        landmark, flame: motion of the same T frames.
        held_out: [T] bool, frames that only measure the error.

    Raises:
        UserError: too few frames.
    """
    from scipy.spatial.transform import Rotation

    valid = landmark.valid & flame.valid
    learn, test = valid & ~held_out, valid & held_out
    if learn.sum() <= NUM_FACE or not test.any():
        raise UserError(f"A map cannot be learned on {int(learn.sum())} frames and judged on {int(test.sum())}.",
                        f"Use clips with more than {NUM_FACE} frames that are valid in both.")
    codes = landmark.expression[:, :NUM_FACE].astype(np.float64)
    wanted = np.concatenate([flame.expression, flame.jaw], 1).astype(np.float64)
    middle, wanted_middle = codes[learn].mean(0), wanted[learn].mean(0)
    centred = codes[learn] - middle
    square = centred.T @ centred + RIDGE * learn.sum() * np.eye(NUM_FACE)
    weight = np.linalg.solve(square, centred.T @ (wanted[learn] - wanted_middle))
    bias = wanted_middle - middle @ weight
    miss = wanted[test] - codes[test] @ weight - bias
    spread = ((wanted[test] - wanted_middle)[:, :50] ** 2).sum()
    between = Rotation.from_rotvec(landmark.rotation[learn]).inv() * Rotation.from_rotvec(flame.rotation[learn])
    found = (weight, bias, between.mean().as_rotvec(), np.sqrt((miss**2).mean(0)))
    return BasisMap(landmark.basis, flame.basis, *(array.astype(np.float32) for array in found),
                    explained=float(1 - (miss[:, :50] ** 2).sum() / max(spread, 1e-12)))


def map_bases(config: MapBases) -> dict:
    """Learn a map from two clips' listeners, write it and say how well it does on the frames that both hold out."""
    from difflistener.clip import Clip

    if config.out.exists() and not config.overwrite:
        raise UserError(f"{config.out} exists.", "Give --overwrite to replace it, or another --out.")
    landmark, flame = Clip.open(config.landmark_clip), Clip.open(config.flame_clip)
    if landmark.basis in FLAME_BASES or flame.basis not in FLAME_BASES:
        raise UserError(f"The clips are in basis {landmark.basis} and {flame.basis}.",
                        "Name a clip in a landmark basis first, then one in a FLAME basis.")
    if landmark.num_frames != flame.num_frames:
        raise UserError(f"{config.landmark_clip} has {landmark.num_frames} frames, {config.flame_clip} {flame.num_frames}.",
                        "Both must be of the same frames: prepare one film twice, the second time with --tracker flame.")
    made = fit_map(landmark.motion(), flame.motion(), landmark.is_test() | flame.is_test())
    made.save(config.out)
    return {"map": str(config.out), "from": made.source, "to": made.target, "held_out_explained": round(made.explained, 4),
            "held_out_expression_rmse": round(float(np.sqrt((made.error[:50] ** 2).mean())), 4),
            "held_out_jaw_degrees": round(float(np.degrees(np.sqrt((made.error[50:] ** 2).sum()))), 3)}
