"""How well a landmark basis holds the motion of real faces that it has never seen.

    PYTHONPATH=src python bench/basis.py CLIPS [--basis FILE ...] [--frames 1500] [--cache FOLDER]

CLIPS is a folder of videos; of each the first --frames frames count. A clip's motion is the displacement of its landmarks
about their mean, head pose and neutral shape removed. Kept is 1 - |what the basis cannot say|^2 / |motion|^2. The headline
is unweighted over all 478 points; beside it stand the basis's own weights, the regions, and `encode`, the path of
production, which solves in the picture (measured there, codes held inside +-5, not smoothed in time). Baselines in the
same run: a basis of the clip itself, and one of the two toy characters. Prints a table and, last, one JSON line.
"""

import argparse
import itertools
import json
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from difflistener import toy
from difflistener.basis import MAX_CODE, NUM_FACE, LandmarkBasis, fit_basis
from difflistener.media import num_frames, probe, read_frames
from difflistener.prepare.expression import encode, landmark_weights
from difflistener.prepare.face_points import BROWS, EYELIDS, IRISES, LIPS, NUM_POINTS
from difflistener.prepare.landmarks import track_landmarks
from difflistener.prepare.pose import HeadTrack, displacements, fit_head
from difflistener.progress import progress

VIDEOS = (".mp4", ".webm", ".mov", ".mkv")
EYES = np.concatenate([EYELIDS, IRISES])
REGIONS = {"lips": LIPS, "eyes": EYES, "brows": BROWS,
           "rest": np.setdiff1d(np.arange(NUM_POINTS), np.concatenate([LIPS, EYES, BROWS]))}
UNKNOWN = np.full((1, 6), np.nan)
"""Posture plays no part here."""
TOY_SECONDS = 20.0


@dataclass(frozen=True)
class Face:
    """One tracked face: everything of its valid frames."""

    landmarks: np.ndarray  # [T, 478, 3] px
    track: HeadTrack
    moved: np.ndarray  # [T, 478, 3] displacements

    @classmethod
    def of(cls, landmarks: np.ndarray, valid: np.ndarray, width: int, height: int) -> "Face":
        track = fit_head(landmarks[valid], np.ones(valid.sum(), bool), width, height)
        return cls(landmarks[valid], track, displacements(track, landmarks[valid], np.ones(valid.sum(), bool)))


def track_video(path: Path, count: int, cache: Path | None) -> Face:
    kept = cache and cache / f"{path.name}.{count}.npz"
    info = probe(path)
    if kept and kept.is_file():
        stored = np.load(kept)
        return Face.of(stored["landmarks"], stored["valid"], info.width, info.height)
    total = min(count, num_frames(info.duration_s))
    frames = (frame for frame, _ in progress(itertools.islice(read_frames(path), count), f"track {path.name}", total))
    landmarks, valid = track_landmarks(frames, path.name)
    if kept:
        cache.mkdir(parents=True, exist_ok=True)
        np.savez(kept, landmarks=landmarks, valid=valid)
    return Face.of(landmarks, valid, info.width, info.height)


def toy_basis(size: int = 256) -> LandmarkBasis:
    """Of what the two toy characters do in a conversation of `TOY_SECONDS`."""
    pair = toy.make_pair(TOY_SECONDS)
    moved = []
    for role, controls in (("speaker", pair.speaker), ("listener", pair.listener)):
        frames = (frame for frame, _ in progress(toy.render(role, controls, size), f"toy {role}", len(controls)))
        moved.append(Face.of(*track_landmarks(frames, role), size, size).moved)
    return fit_basis(moved, landmark_weights(), [UNKNOWN, UNKNOWN])


def kept_energy(face: Face, basis: LandmarkBasis) -> dict[str, float]:
    """Shares of the clip's motion that `basis` keeps, 0..1."""
    motion = face.moved.reshape(len(face.moved), -1).astype(np.float64)
    motion = motion - motion.mean(0)
    weight = np.repeat(basis.weights.astype(np.float64), 3)
    left = (motion - (motion * weight**2) @ basis.components.T @ basis.components).reshape(face.moved.shape)
    motion = motion.reshape(face.moved.shape)
    figures = {"all": _share(left, motion)}
    figures["weighted"] = _share(left * basis.weights[:, None], motion * basis.weights[:, None])
    figures |= {name: _share(left[:, points], motion[:, points]) for name, points in REGIONS.items()}
    codes = encode(face.track, face.landmarks, np.ones(len(face.moved), bool), basis, np.zeros((len(face.moved), 6)), smooth=0)
    depth = face.track.place(face.track.template)[..., 2:] / face.track.focal
    seen = (face.landmarks[..., :2] - face.track.project(face.track.template)) * depth
    missed = (face.landmarks[..., :2] - face.track.project(face.track.template + basis.decode(codes))) * depth
    figures["encode"] = _share(missed - missed.mean(0), seen - seen.mean(0))
    figures["clipped"] = float((np.abs(codes[:, :NUM_FACE]) >= MAX_CODE).mean())
    figures["code_std"] = float(np.sqrt((codes[:, :NUM_FACE] ** 2).mean()))
    return figures


def _share(left: np.ndarray, whole: np.ndarray) -> float:
    return float(1 - (left**2).sum() / (whole**2).sum())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clips", type=Path)
    parser.add_argument("--basis", type=Path, nargs="*", default=[])
    parser.add_argument("--frames", type=int, default=1500)
    parser.add_argument("--cache", type=Path, help="folder that keeps the tracked landmarks")
    given = parser.parse_args()
    videos = sorted(path for path in given.clips.iterdir() if path.suffix in VIDEOS)
    faces = {path.name: track_video(path, given.frames, given.cache) for path in videos}
    toys = given.cache and given.cache / "toy.safetensors"
    shared = {"toy pair": LandmarkBasis.load(toys) if toys and toys.is_file() else toy_basis()}
    if toys:
        shared["toy pair"].save(toys)
    shared |= {str(path): LandmarkBasis.load(path) for path in given.basis}
    figures = {}
    for clip, face in faces.items():
        own = fit_basis([face.moved], landmark_weights(), [UNKNOWN])
        figures[clip] = {name: kept_energy(face, basis) for name, basis in {"own": own, **shared}.items()}
    names = list(next(iter(figures.values()))["own"])
    print(f"{'clip':<24}{'basis':<34}" + "".join(f"{name:>10}" for name in names))
    for clip, rows in figures.items():
        for name, row in rows.items():
            cells = (f"{value:>10.2f}" if key == "code_std" else f"{100 * value:>9.2f}%" for key, value in row.items())
            print(f"{clip:<24}{name[-32:]:<34}" + "".join(cells))
    rounded = {clip: {name: {key: round(value, 4) for key, value in row.items()} for name, row in rows.items()}
               for clip, rows in figures.items()}
    print(json.dumps({"bench": "basis", "headline": "all", "frames": {clip: len(face.moved) for clip, face in faces.items()},
                      "kept": rounded}))


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main()
