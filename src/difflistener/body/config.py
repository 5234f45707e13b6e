"""Settings of `difflistener train body`. Imports nothing heavy, so that help is instant."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro


@dataclass(frozen=True)
class BodyTraining:
    """Learn a person's 3D Gaussian head from the listener of a clip (stage 1); it is frozen afterwards.

    Example: difflistener train body clips/anna --out bodies/anna
    """

    clip: Annotated[Path, tyro.conf.Positional]
    """Clip whose listener the body becomes."""
    out: Path
    """Folder for the body."""
    deformation: Literal["linear", "triplane"] = "linear"
    """How motion moves the Gaussians: ours, or TalkingGaussian's tri-planes, to compare with (a GPU and minutes)."""
    resolution: int | None = None
    """Longer side of the pictures in pixels. Default: 256 on a CPU, the clip's own size on a GPU."""
    gaussians: int | None = None
    """Number of Gaussians. Default: 12000 up to 320 pixels, 20000 above."""
    steps: int = 1200
    """Training steps of a linear body. More is not better: on short clips the held-out score falls again."""
    schedule: float = 1.0
    """Length of a tri-plane body's training; 1 is the published schedule."""
    batch_size: int | None = None
    """Frames a step. Default: 3 on a CPU, 12 on a GPU."""
    seed: int = 0
    """Seed of the starting points and of the order of frames."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute."""
    save_every: int | None = None
    """Steps between saved states, each with a held-out score and a picture strip. Default: 300, triplane 10000."""
    consent: str = ""
    """Who agreed to be modelled, and when; stored in the body's card."""
    resume: bool = False
    """Continue a run that was interrupted."""
    overwrite: bool = False
    """Replace a body that stands at --out."""
