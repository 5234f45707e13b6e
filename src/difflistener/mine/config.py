"""Settings of `difflistener mine`. Imports nothing heavy, so that help is instant."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro


@dataclass(frozen=True)
class Mine:
    """Cut a recording of two people, side by side in one picture, into clips in which one speaks and the other listens.

    Example: difflistener mine talk.mp4 --out mined; look at mined/contact.jpg; write yes or no into the column `accept`
    of mined/segments.csv; then difflistener mine talk.mp4 --out mined --resume
    """

    video: Annotated[Path, tyro.conf.Positional]
    """Recording of two people, with sound."""
    out: Path
    """Folder for segments.csv, contact.jpg, basis.safetensors and clips/."""
    min_seconds: float = 3.0
    """Shortest segment, in seconds."""
    max_seconds: float = 60.0
    """Longest clip, in seconds: a longer segment is divided evenly."""
    bridge: float = 0.6
    """Longest pause of a speaker that does not end a segment, in seconds; it also ends with up to this much silence."""
    reaction: float = 5.0
    """Least visible reaction of a listener within one second: degrees by which the head turns, or percent of the
    distance of the eye corners by which mouth or brows move, whichever is more."""
    basis: Path | None = None
    """Expression basis: a file of `difflistener basis`, or another clip. Default: fitted once on what is kept."""
    audio: tuple[Literal["logmel", "wav2vec2"], ...] = ("logmel",)
    """Audio features to compute."""
    wav2vec2_model: str = "facebook/wav2vec2-base-960h"
    """Hub name or folder of the wav2vec 2.0 model."""
    size: int = 512
    """Longest side of the stored videos in pixels."""
    resume: bool = False
    """Go on where it stopped, and make clips of the rows that segments.csv accepts. Nothing is tracked again; segments are
    cut again only where --min-seconds, --max-seconds, --bridge or --reaction changed."""
    overwrite: bool = False
    """Replace what was mined into --out before."""
