"""Settings of `difflistener evaluate motion`. Imports nothing heavy, so that help is instant."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro


@dataclass(frozen=True)
class MotionEvaluation:
    """Score generated motion as one paper's public code does, by name, beside baselines that learn nothing.

    PRED, TRUTH and the speaker are each a .npy [T, 56], a clip, or a folder of either with equal names.

    Example: difflistener evaluate motion generated clips --speaker clips --preset dim --json scores.json
    """

    pred: Annotated[Path, tyro.conf.Positional]
    """Generated motion; a .npy may hold several samples of one sequence, [K, T, 56]: `honest` scores all, others the first."""
    truth: Annotated[Path, tyro.conf.Positional]
    """True motion of the same listeners."""
    preset: Literal["dim", "lm-listener", "dualtalk", "timar", "avatar-forcing", "vico-l1", "l2l", "honest"]
    """Whose definitions to follow; the report states them."""
    speaker: Path | None = None
    """Motion of the speakers, or their expression alone, [T, 50]; metrics that look at the speaker need it."""
    train: Path | None = None
    """For the row `nearest`: a folder of clips, or one with folders listener and speaker of equal names; needs --speaker."""
    json: Path | None = None
    """File for the figures; one that stands there is replaced once the new one is whole."""
    seed: int = 0
    """Seed of what metrics and baselines draw."""
