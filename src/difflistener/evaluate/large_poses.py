"""Heads turned farther than the training frames show: does the body hold together, and does a 2-D warp?

From the neutral training frame, yaw and pitch go to 1.0, 1.25 and 1.5 times the largest angle from it that training has,
to both sides, all other numbers as they were; translation and torso follow as for a generated listener.

Landmark error: mean distance in px of the 478 landmarks, re-tracked in the rendered picture, from where the motion put
them. Each turn is tracked as a video that starts at the neutral pose; a picture in which no face is found is `lost`.

Tears, one definition for both: share of the silhouette's pixels that lie in specks (parts of it besides the largest), in
holes (places it encloses) or in folds (places where a picture runs backwards). Specks and holes are looked for in two
silhouettes: what a method itself counts as person (the body's coverage above one half; the neutral frame's mask carried
along by the warp), and where its picture differs from the plate: Gaussians that learned the wall's colour cover, and yet
tear the picture. Only a warp folds. The film's row is what the same measure gives the whole head: a shirt of the wall's
colour makes holes there too. Neither sees a smear, or a rent that is open to the outside.
Axes: B pictures, H, W; px at the body's size.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from scipy.ndimage import binary_fill_holes, label
from scipy.spatial.transform import Rotation

from difflistener.body.baselines import LandmarkWarp, fold_mask, project_landmarks
from difflistener.body.data import BodyData
from difflistener.body.model import Body
from difflistener.metrics.retrack import retrack
from difflistener.motion import ROTATION
from difflistener.progress import progress

FACTORS = (1.0, 1.25, 1.5)
STEP = 0.125
"""By how much of the largest angle the head turns from frame to frame on its way."""
MIN_AREA = 12 / 512**2
"""Least size of a speck or hole, as a share of the square of the picture's longer side."""
DIFFERENT = 30
"""Grey levels of 255, in any colour, by which a pixel differs from the plate where it shows the person."""


@dataclass(frozen=True)
class Turn:
    """One way to turn the head, from the neutral pose outwards."""

    name: str
    motion: torch.Tensor  # [B, 56]
    scored: tuple[int, ...]  # the frames at FACTORS


def make_turns(rotation: np.ndarray, neutral: torch.Tensor) -> list[Turn]:
    """Turns of the motion `neutral` [56] beyond training rotations [T, 3]: yaw left and right, pitch up and down."""
    angles = Rotation.from_rotvec(rotation).as_euler("YXZ")
    start = Rotation.from_rotvec(neutral[ROTATION].numpy()).as_euler("YXZ")
    largest = np.abs(angles - start).max(0)
    way = np.arange(0, max(FACTORS) + STEP / 2, STEP)
    turns = []
    for axis, name in enumerate(("yaw", "pitch")):
        for sign in (-1, 1):
            angle = np.tile(start, (len(way), 1))
            angle[:, axis] += sign * way * largest[axis]
            motion = neutral.repeat(len(way), 1)
            motion[:, ROTATION] = torch.from_numpy(Rotation.from_euler("YXZ", angle).as_rotvec()).float()
            turns.append(Turn(f"{name} {'-' if sign < 0 else '+'}", motion, tuple(round(f / STEP) for f in FACTORS)))
    return turns


class Faults(NamedTuple):
    """What is wrong with a silhouette."""

    specks: np.ndarray  # [H, W] bool
    holes: np.ndarray  # [H, W] bool
    num_specks: int
    num_holes: int


def silhouette_faults(person: np.ndarray) -> Faults:
    """Specks and holes of a silhouette [H, W] bool; what is smaller than `MIN_AREA` is left out."""
    least = max(3, round(MIN_AREA * max(person.shape) ** 2))
    specks, num_specks = _parts(person, np.ones((3, 3)), least, skip_largest=True)
    holes, num_holes = _parts(binary_fill_holes(person) & ~person, None, least, skip_largest=False)
    return Faults(specks, holes, num_specks, num_holes)


def differs_from_plate(picture: np.ndarray, plate: np.ndarray) -> np.ndarray:
    """Silhouette [H, W] of a picture [H, W, 3] uint8 before its plate."""
    return (np.abs(picture.astype(np.int16) - plate.astype(np.int16)) > DIFFERENT).any(-1)


def score_large_poses(
    body: Body, data: BodyData, labels: np.ndarray, warp: LandmarkWarp, train: np.ndarray
) -> tuple[dict, dict[str, np.ndarray]]:
    """Scores by method and factor, and the pictures of each method in the order of `headings`, [12, H, W, 3] uint8.

    `labels` [T, H, W] are zero on the background. The film's own neutral frame is scored too, as what a whole head gets.
    """
    turns = make_turns(data.motion[train][:, ROTATION].numpy(), data.motion[warp.index])
    plate = (data.background.numpy() * 255 + 0.5).astype(np.uint8)
    person = labels[warp.index] != 0
    rows = {"body": {f: [] for f in FACTORS}, "warp": {f: [] for f in FACTORS}}
    pictures = {"body": [], "warp": []}
    for turn, _ in progress(turns, "turn the head"):
        with torch.no_grad():
            translation = body.follow(turn.motion.to(body.device))[0].cpu()
        asked = project_landmarks(data, turn.motion, translation)
        shown = {"body": _turn_body(body, turn.motion), "warp": _turn_warp(warp, person, turn.motion, translation)}
        for name, (frames, silhouettes, folds) in shown.items():
            points, found = retrack(frames)
            for factor, at in zip(FACTORS, turn.scored):
                error = _landmark_error(points[at], asked[at]) if found[at] else None
                rows[name][factor].append({"landmark_px": error} | _tears(silhouettes[at], folds[at], frames[at], plate))
                pictures[name].append(frames[at])
    scores = {name: {f"{factor:g}": _mean(row) for factor, row in by_factor.items()} for name, by_factor in rows.items()}
    scores["film"] = {"0": _mean([_film(data, person, warp.index, plate)])}
    outwards = np.arange(4 * len(FACTORS)).reshape(2, 2, -1)  # axis, sign, factor
    order = np.concatenate([outwards[:, 0, ::-1], outwards[:, 1]], 1).ravel()
    return scores, {name: np.stack([frames[k] for k in order]) for name, frames in pictures.items()}


def headings() -> list[str]:
    """What the columns of the pictures show."""
    signed = [-f for f in reversed(FACTORS)] + list(FACTORS)
    return [f"{axis} {factor:+g}" for axis in ("yaw", "pitch") for factor in signed]


def _turn_body(body: Body, motion: torch.Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pictures [B, H, W, 3] uint8, silhouettes and folds [B, H, W] of a body."""
    frames, silhouettes = [], []
    with torch.no_grad():
        for row in motion.to(body.device).split(1):
            picture, coverage = body(row)
            frames.append((picture[0].clamp(0, 1) * 255 + 0.5).byte().cpu().numpy())
            silhouettes.append((coverage[0, ..., 0] > 0.5).cpu().numpy())
    return np.stack(frames), np.stack(silhouettes), np.zeros_like(silhouettes)


def _turn_warp(
    warp: LandmarkWarp, person: np.ndarray, motion: torch.Tensor, translation: torch.Tensor
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The same of a warp; `person` [H, W] is the neutral frame's silhouette."""
    maps = list(warp.maps(motion, translation))
    frames = np.concatenate([warp.sample(places) for places in maps])
    last = np.array(person.shape[::-1]) - 1
    from_pixel = [np.clip(places, 0, last).astype(int) for places in maps]
    silhouettes = np.stack([person[pixel[..., 1], pixel[..., 0]] for pixel in from_pixel])
    return frames, silhouettes, np.stack([fold_mask(places) for places in maps])


def _tears(silhouette: np.ndarray, folds: np.ndarray, picture: np.ndarray, plate: np.ndarray) -> dict[str, float]:
    own, seen = silhouette_faults(silhouette), silhouette_faults(differs_from_plate(picture, plate))
    folds = folds & silhouette
    gaps = own.specks | own.holes | seen.specks | seen.holes
    areas = {"torn": gaps | folds, "gap": gaps, "fold": folds}
    shares = {f"{name}_percent": 100 * float(area.sum()) / max(int(silhouette.sum()), 1) for name, area in areas.items()}
    return shares | {"specks": own.num_specks, "holes": own.num_holes,
                     "specks_in_picture": seen.num_specks, "holes_in_picture": seen.num_holes}


def _film(data: BodyData, person: np.ndarray, index: int, plate: np.ndarray) -> dict[str, float]:
    frame = np.array(data.frames[index])
    points, found = retrack([frame] * 3)
    asked = project_landmarks(data, data.motion[[index]], data.translation[[index]])[0]
    error = _landmark_error(points[-1], asked) if found[-1] else None
    return {"landmark_px": error} | _tears(person, np.zeros_like(person), frame, plate)


def _landmark_error(points: np.ndarray, asked: np.ndarray) -> float:
    return float(np.linalg.norm(points - asked, axis=-1).mean())


def _parts(mask: np.ndarray, structure: np.ndarray | None, least: int, skip_largest: bool) -> tuple[np.ndarray, int]:
    """Connected parts of `mask` [H, W] of at least `least` pixels, as a mask, and their number."""
    parts, _ = label(mask, structure)
    area = np.bincount(parts.ravel())
    area[0] = 0
    if skip_largest:
        area[area.argmax()] = 0
    return (area >= least)[parts], int((area >= least).sum())


def _mean(rows: list[dict]) -> dict:
    """Mean of each figure over the turns; landmark errors over those with a face, the others counted as `lost`."""
    errors = [row["landmark_px"] for row in rows if row["landmark_px"] is not None]
    means = {name: float(np.mean([row[name] for row in rows])) for name in rows[0] if name != "landmark_px"}
    return {"landmark_px": float(np.mean(errors)) if errors else None, "lost": len(rows) - len(errors)} | means
