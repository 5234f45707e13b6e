"""Settings of `difflistener import`. Imports nothing heavy, so that help is instant."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro


@dataclass(frozen=True)
class Import:
    """Turn a public data set, or result folders of a face tracker, into clips at 25 fps: OUT/<split>/<name>.

    What cannot be imported is left out and listed in OUT/skipped.csv; OUT/index.csv tells split, attitude and people.
    Example: difflistener import DualTalk_Dataset --out clips/dualtalk --workers 4
    """

    folder: Annotated[Path, tyro.conf.Positional]
    """Folder of the data set, laid out as its authors publish it."""
    out: Path
    """Folder for the clips."""
    layout: str | None = None
    """dualtalk, vico, vico-challenge, vico-emoca, learning2listen, lm-listener; of single people: frames, tracks, vhap.
    Default: by what lies in the folder."""
    audio: tuple[Literal["logmel", "wav2vec2"], ...] = ("logmel",)
    """Audio features to compute, where the data set has sound."""
    wav2vec2_model: str = "facebook/wav2vec2-base-960h"
    """Hub name or folder of the wav2vec 2.0 model."""
    motion_basis: str | None = None
    """Basis of results of single people: flame2020 (as EMOCA and DECA write; the default), flame2023 or flame2023-open."""
    fps: float | None = None
    """Frame rate of results of single people. Default: 25. Data sets state their own."""
    limit: int | None = None
    """Import only so many clips, the first ones."""
    workers: int = 1
    """Processes that import at once."""
    resume: bool = False
    """Go on with an import: finished clips are not made again."""
    overwrite: bool = False
    """Replace the clips of an earlier import at --out."""
