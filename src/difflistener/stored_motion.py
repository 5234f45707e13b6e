"""Motion that a user names on the command line, in any form that the project stores it.

Knows nothing of pictures or Gaussians. Axes: T frames at 25 fps, D = 56 motion.
"""

from pathlib import Path

import numpy as np

from difflistener.errors import UserError
from difflistener.motion import NUM_MOTION


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
        from difflistener.prepare.config import Prepare
        from difflistener.prepare.sources import read_motion

        return read_motion(Prepare(out=path, listener_motion=path))[0]
    from difflistener.synthesize import load_stored

    return load_stored(path, NUM_MOTION, "motion").astype(np.float32)


def _of_clip(path: Path, basis: str) -> np.ndarray:
    from difflistener.clip import Clip

    clip = Clip.open(path)
    if clip.basis != basis:
        raise UserError(f"The clip {path} speaks basis {clip.basis}, the body speaks basis {basis}.",
                        "Prepare the clip again with --basis naming the basis of the clip that the body was trained on.")
    return clip.motion().values
