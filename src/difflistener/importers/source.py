"""What a data set gives for one clip, at its own frame rate, and how that comes to 25 fps.

Knows nothing of any one data set, nor of clip folders. Axes: T frames at the source's rate, D = 56 motion.
Rotations are kept in FLAME's axes as stored, just as `prepare --listener-motion` keeps them.
"""

import os
import re
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from scipy.spatial.transform import Rotation, Slerp

from difflistener.errors import UserError
from difflistener.motion import (EXPRESSION, FPS, JAW, NUM_EXPRESSION, NUM_MOTION, ROTATION, check_finite, fill_gaps,
                                 from_flame, unwrap_rotation)

AGAIN = "Fetch or make it again; the other clips are imported without it."
TOLERANCE = 2
"""Frames by which the parts of one clip may differ in length; they are cut to the shortest."""
MAX_MISSING = 0.5
"""Share of frames that a tracker may have missed."""


@dataclass(frozen=True)
class Job:
    """One clip that can be made. Nothing of it has been read yet."""

    name: str
    """Folder under --out: split/name, or name without a split."""
    files: dict[str, Path] = field(default_factory=dict)
    """`listener` and `speaker` (motion or video), `sound` (of the speaker)."""
    row: int | None = None
    """Which entry of files that hold many."""
    facts: dict[str, str] = field(default_factory=dict)
    """For clip.json: split, attitude, conversation, speaker_id, listener_id; only those that are known."""
    problem: str = ""
    """Why it cannot be made, where that is known already."""


@dataclass(frozen=True)
class Track:
    """One person's motion at the source's frame rate."""

    values: np.ndarray  # [T, 56] float32
    valid: np.ndarray  # [T] bool

    def __len__(self) -> int:
        return len(self.values)


@dataclass(frozen=True)
class Layout:
    """How one published data set lies on the disk."""

    tree: str
    """What must be there, for people."""
    fits: Callable[[Path], bool]
    jobs: Callable[[Path], Iterator[Job]]
    """The clips of a folder, in a fixed order. `UserError` where the folder as a whole is not of this layout."""
    read: Callable[[Job], dict[str, Track]] | None
    """Tracks by role. None: the data set holds videos only."""
    licence: str
    """Entry of the ledger."""
    fps: float | None
    """Of the tracks. None: it does not say."""
    basis: str | None = "flame2020"
    """Of the tracks. None: it does not say."""
    warning: str = ""
    """What a user must know of every clip."""


def make_job(split: str | None, name: str, files: dict[str, Path], row: int | None = None, **facts: str) -> Job:
    """A job whose name is safe as a folder; empty facts are dropped."""
    parts = [re.sub(r"[^\w.-]+", "_", part).lstrip(".") or "_" for part in (split, name) if part]
    facts = {"split": split or "", **facts}
    return Job("/".join(parts), files, row, {key: value for key, value in facts.items() if value})


def make_track(exp: np.ndarray, pose: np.ndarray, where: str) -> Track:
    """From FLAME's exp [T, 50] and pose [T, 6] (rotation, jaw). A wrong shape or a number not finite is a `UserError` naming `where`."""
    exp, pose = np.asarray(exp), np.asarray(pose)
    if pose.ndim != 2 or pose.shape[1] != 6 or exp.shape != (len(pose), NUM_EXPRESSION) or len(pose) == 0:
        raise UserError(f"{where} holds exp {list(exp.shape)} and pose {list(pose.shape)}, expected [T, 50] and [T, 6].", AGAIN)
    try:
        values = np.concatenate([exp, pose], 1).astype(np.float32)
        check_finite(values, "its motion")
    except (ValueError, TypeError) as error:
        raise UserError(f"{where}: {error}.", AGAIN) from error
    return Track(from_flame(values), np.ones(len(values), bool))


def resample(track: Track, fps: float) -> Track:
    """`track` at 25 fps: frame k is what the source shows at k / 25 s, up to its last frame.

    Rotation and jaw are interpolated on the sphere (slerp, Shoemake 1985), expression linearly. A frame is valid where both
    its neighbours are.
    """
    last = len(track) - 1
    if fps == FPS or last == 0:
        return track
    at = np.minimum(np.arange(int(last * FPS / fps + 1e-6) + 1) * (fps / FPS), last)
    low, high = np.floor(at).astype(int), np.ceil(at).astype(int)
    weight = (at - low)[:, None]
    values = np.empty((len(at), NUM_MOTION), np.float32)
    values[:, EXPRESSION] = (1 - weight) * track.values[low, EXPRESSION] + weight * track.values[high, EXPRESSION]
    for part in (ROTATION, JAW):
        turn = Slerp(np.arange(last + 1), Rotation.from_rotvec(track.values[:, part].astype(np.float64)))
        values[:, part] = unwrap_rotation(turn(at).as_rotvec())
    return Track(values, track.valid[low] & track.valid[high])


def common_length(lengths: dict[str, int]) -> int:
    """The shortest of named lengths in frames. Raises `UserError` naming two that differ by more than `TOLERANCE`."""
    short, long = min(lengths, key=lengths.get), max(lengths, key=lengths.get)
    if lengths[long] - lengths[short] > TOLERANCE:
        raise UserError(f"{long} has {lengths[long]} frames at {FPS} fps, {short} has {lengths[short]}.",
                        f"They may differ by {TOLERANCE}; check that both are of the same recording.")
    return lengths[short]


def read_npy(path: Path) -> np.ndarray:
    """A .npy file, memory-mapped. Raises `UserError`; pickled objects are refused."""
    if not path.is_file():
        raise UserError(f"{path} is missing.", AGAIN)
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, OSError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} is not a readable .npy file ({error}).", AGAIN) from error
    if not isinstance(array, np.ndarray):
        raise UserError(f"{path} is an archive, not one array.", AGAIN)
    return array


def read_frames(folder: Path, read: Callable[[Path], tuple[np.ndarray, np.ndarray]]) -> Track:
    """A track from one entry (file or folder) per frame, named by the frame's number and anything after it.

    Numbers that lack are frames in which the tracker saw nobody: interpolated and marked invalid. The first number is 0 or 1.
    Of several faces in a frame (000012_000, 000012_001) the first is taken.

    Args:
        read: entry -> exp [50], pose [6].
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is missing.", AGAIN)
    entries: dict[int, str] = {}
    for name in sorted(os.listdir(folder)):
        number = re.match(r"\d+", name)
        if number:
            entries.setdefault(int(number[0]), name)
    if not entries:
        raise UserError(f"{folder} holds no frame.", AGAIN)
    first = min(1, min(entries))
    count = max(entries) - first + 1
    if len(entries) < (1 - MAX_MISSING) * count:
        raise UserError(f"{folder} holds {len(entries)} of {count} frames.", AGAIN)
    valid, exp, pose = np.zeros(count, bool), np.zeros((count, NUM_EXPRESSION)), np.zeros((count, 6))
    for number, name in entries.items():
        valid[number - first], (exp[number - first], pose[number - first]) = True, read(folder / name)
    values = make_track(exp, pose, str(folder)).values
    for part in (EXPRESSION, ROTATION, JAW):
        values[:, part] = fill_gaps(values[:, part], valid, is_rotation=part != EXPRESSION)
    return Track(values, valid)


def read_exp_pose(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """exp.npy (50) and pose.npy (6: rotation, jaw) of one frame, as EMOCA and DECA write them."""
    found = []
    for name, size in (("exp", NUM_EXPRESSION), ("pose", 6)):
        array = read_npy(folder / f"{name}.npy")
        if array.size != size or array.dtype.kind not in "fiu":
            raise UserError(f"{folder / name}.npy has shape {list(array.shape)}, expected {size} numbers.", AGAIN)
        found.append(np.array(array).reshape(-1))
    return found[0], found[1]
