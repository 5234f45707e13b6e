"""Settings of `difflistener prepare` and `difflistener basis`. Imports nothing heavy, so that help is instant."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro


@dataclass(frozen=True)
class Prepare:
    """Turn videos of a speaker and a listener into a clip: tracked motion, audio features, masks, all at 25 fps.

    Example: difflistener prepare --speaker anna.mp4 --listener ben.mp4 --out clips/anna-ben
    """

    out: Path
    """Folder for the clip."""
    speaker: Path | None = None
    """Video or audio of the speaker."""
    listener: Path | None = None
    """Video of the listener."""
    dyad: Path | None = None
    """One split-screen video of both people, instead of --speaker and --listener."""
    speaker_side: Literal["left", "right"] | None = None
    """Which half of --dyad shows the speaker."""
    split: float = 0.5
    """Where --dyad is divided: the share of its width that belongs to the person on the left."""
    listener_motion: Path | None = None
    """Stored listener motion instead of a video: .npz with exp [T,50] and pose [T,6] (rotation, jaw; FLAME's axes) at 25 fps."""
    motion_basis: str = "flame2020"
    """Which basis --listener-motion is in."""
    start: float = 0.0
    """Where to begin, in seconds."""
    duration: float | None = None
    """How much to take, in seconds. Default: all that both sides have."""
    basis: Path | None = None
    """Expression basis: a file of `difflistener basis`, another clip, or the word shipped (that of the package, for its brain).
    Default: fitted on the people of this clip."""
    tracker: Literal["landmarks", "flame", "flame2020", "flame2023", "flame2023-open"] = "landmarks"
    """What expression is written in: the landmark basis, or FLAME codes fitted with a model added by `difflistener assets add`."""
    audio: tuple[Literal["logmel", "wav2vec2"], ...] = ("logmel",)
    """Audio features to compute."""
    wav2vec2_model: str = "facebook/wav2vec2-base-960h"
    """Hub name or folder of the wav2vec 2.0 model."""
    size: int = 512
    """Longest side of the stored video in pixels; it shows the head with its shoulders."""
    test_frames: tuple[int, int] | None = None
    """First frame and end of a block kept out of everything that is fitted (basis, plate, body). Default: the last tenth."""
    resume: bool = False
    """Go on with a clip that was begun, or bring one up to date: finished stages are skipped."""
    overwrite: bool = False
    """Replace a clip that stands at --out."""


@dataclass(frozen=True)
class FitBasis:
    """Fit one expression basis on all people of several clips, so that their motion can be mixed.

    Example: difflistener basis clips/a clips/b --out basis.safetensors; then prepare each with --basis basis.safetensors
    """

    clips: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Clips to fit on."""
    out: Path
    """File for the basis."""
    overwrite: bool = False
    """Replace a file that stands at --out."""
