"""Motion and features that a user names on the command line, in any form that the project stores them.

Knows nothing of pictures or Gaussians. Axes: T frames at 25 fps, D = 56 motion.
"""

import zipfile
import zlib
from pathlib import Path

import numpy as np

from difflistener.errors import UserError
from difflistener.motion import NUM_EXPRESSION, NUM_MOTION, check_finite, from_flame


def load_motion(path: Path, basis: str) -> np.ndarray:
    """Motion [T, 56] float32 of a .npy [T, 56], an .npz with exp [T, 50] and pose [T, 6], or a clip's listener.

    Args:
        basis: id of the basis that the motion is wanted in. Only a clip records its own; a file is taken at its word.

    Raises:
        UserError: not such a file, or a clip in another basis.
    """
    if path.is_dir():
        return _of_clip(path, basis)
    if path.suffix == ".npz":
        return read_track(path)
    return load_stored(path, NUM_MOTION, "motion").astype(np.float32)


def _of_clip(path: Path, basis: str) -> np.ndarray:
    from difflistener.clip import Clip

    clip = Clip.open(path)
    if clip.basis != basis:
        raise UserError(f"The clip {path} speaks basis {clip.basis}, the body speaks basis {basis}.",
                        "Prepare the clip again with --basis naming the basis of the clip that the body was trained on.")
    return clip.motion().values


def read_track(path: Path) -> np.ndarray:
    """Motion [T, 56] float32 of an .npz with FLAME's exp [T, 50] and pose [T, 6], in our axes. Raises `UserError` naming what is wrong and where."""
    remedy = "It should be an .npz with exp [T,50] and pose [T,6] (rotation, jaw) at 25 fps."
    if not path.is_file():
        raise UserError(f"There is no file at {path}.", remedy)
    try:
        with np.load(path) as archive:
            exp, pose = (archive[name].astype(np.float32) for name in ("exp", "pose"))
    # A lone .npy array is no context manager: TypeError.
    except (KeyError, ValueError, TypeError, EOFError, OSError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f"{path} is not stored motion ({error}).", remedy) from error
    if exp.ndim != 2 or exp.shape[1] != NUM_EXPRESSION or pose.ndim != 2 or pose.shape[1] != 6:
        raise UserError(f"{path} holds exp {list(exp.shape)} and pose {list(pose.shape)}.", remedy)
    if len(exp) != len(pose):
        raise UserError(f"{path} has {len(exp)} rows of exp and {len(pose)} of pose.", "Both must have the same T.")
    if len(exp) == 0:
        raise UserError(f"{path} holds no frame.", remedy)
    motion = np.concatenate([exp, pose], 1)
    bad = ~np.isfinite(motion).all(1)
    if bad.any():
        raise UserError(f"{path} is not finite at frame {int(np.flatnonzero(bad)[0])}.", "Repair or cut the track.")
    return from_flame(motion)


def load_stored(path: Path, columns: int, what: str) -> np.ndarray:
    """A feature [T, columns] from a .npy file. Raises `UserError` naming what is wrong and where."""
    if not path.is_file():
        raise UserError(f"There is no file at {path}.", f"Name a .npy of {what} [T, {columns}], or a media file.")
    try:
        array = np.load(path)
    except (ValueError, EOFError, OSError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} is not a readable .npy file ({error}).", f"It should hold {what} [T, {columns}].") from error
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "fiu":
        raise UserError(f"{path} is not an array of numbers.", f"It should hold {what} [T, {columns}].")
    if array.ndim != 2 or array.shape[1] != columns or len(array) == 0:
        raise UserError(f"{path} has shape {list(array.shape)}, expected {what} [T, {columns}].",
                        "Compute the features with difflistener prepare, or give the recording itself.")
    try:
        check_finite(array, str(path))
    except ValueError as error:
        raise UserError(f"{error}.", "Prepare the features again.") from error
    return array
