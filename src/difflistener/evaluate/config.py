"""Settings of `difflistener evaluate body`. Imports nothing heavy, so that help is instant."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro


@dataclass(frozen=True)
class BodyEvaluation:
    """Score a body on frames it has not learned from, beside baselines that learn nothing, and at poses beyond its range.

    Example: difflistener evaluate body bodies/anna --clip clips/anna --out scores/anna
    """

    body: Annotated[Path, tyro.conf.Positional]
    """Folder of the body."""
    clip: Path
    """Clip whose listener it is."""
    out: Path
    """Folder for evaluation.json, strip.png and large_poses.png."""
    frames: tuple[int, int] | None = None
    """Frames to score, first and end (not included). Default: those that the clip holds out."""
    refine_steps: int = 60
    """Gradient steps of the row `refined`, which fits the numbers of each frame to its picture; 0 leaves the row out."""
    lpips: Literal["alex", "vgg"] | None = None
    """Network of LPIPS, whose weights are fetched if need be. Default: alex if its weights are there, else no LPIPS."""
    retrack: bool = True
    """Find the face in the pictures again with MediaPipe: landmark distances, jitter, and the test at large poses."""
    large_poses: bool = True
    """The test at large poses: yaw and pitch to 1.5 times the largest of the training frames, body and warp alike."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute."""
    overwrite: bool = False
    """Replace an evaluation that stands at --out."""
