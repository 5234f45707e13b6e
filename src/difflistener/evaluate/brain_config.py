"""Settings of `difflistener evaluate brain`. Imports nothing heavy, so that help is instant."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro


@dataclass(frozen=True)
class BrainEvaluation:
    """Score a brain on conversations with a known law: does it react as often, as late and as variously as it should?

    Example: difflistener evaluate brain brains/mine --corpus corpus --out scores/mine --beside mlp=brains/mlp
    """

    brain: Annotated[Path, tyro.conf.Positional]
    """Folder of the brain."""
    corpus: Path
    """Folder that `difflistener corpus` made; its test clips are scored, its train clips serve the baselines."""
    out: Path
    """Folder for evaluation.json, events.png, fan.png and best_of.png."""
    beside: tuple[str, ...] = ()
    """Other brains to score by the same code, each as NAME=FOLDER."""
    audio_only: Path | None = None
    """A brain trained without the face: what seeing adds is then measured against it."""
    samples: int = 8
    """Reactions generated for each conversation."""
    num_steps: int | None = None
    """DDIM steps, 1 to 50. Default: 15, or those that the brain was distilled to."""
    attitude: bool = True
    """Tell brains that can be told (dit) the listener's attitude; they are then compared with the law that knows it too."""
    clips: int | None = None
    """Test clips to score. Default: all."""
    shifts: int = 200
    """Shifts of the speaker in the time-shift tests, at least 100."""
    drift_minutes: float = 10.0
    """Length of the conversation in which drift is looked for; 0 leaves it out."""
    drift_samples: int = 2
    """Reactions generated to it."""
    seed: int = 0
    """Seed of reactions and tests."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute."""
    overwrite: bool = False
    """Replace an evaluation that stands at --out."""
