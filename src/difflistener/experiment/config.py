"""Settings of `difflistener experiment`, and what its recipe says. Imports nothing heavy, so that help is instant."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro


@dataclass(frozen=True)
class Experiment:
    """Compute a paper's tables: brains and bodies, trained and scored as a recipe says; results as JSON, Markdown, LaTeX and HTML.

    Example: difflistener experiment recipes/experiment-quick.json --out quick
    A finished cell is never computed twice: run the same command with --resume after an interruption, or with more rows.
    """

    recipe: Annotated[Path, tyro.conf.Positional]
    """JSON file, such as recipes/experiment-quick.json; what it may say is in difflistener/experiment/config.py."""
    out: Path
    """Folder for cells, results.json, tables.md, tables.tex, report.html and their pictures."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute."""
    workers: int = 1
    """Processes that draw the corpus."""
    resume: bool = False
    """Go on with an experiment that was interrupted, or whose recipe has changed: finished cells are kept."""
    overwrite: bool = False
    """Replace an experiment that stands at --out."""


@dataclass(frozen=True)
class Asked:
    """A row of the brain table: a trained brain, and how it is asked."""

    brain: str
    """Name in `Recipe.brains`."""
    num_steps: int | None = None
    """DDIM steps; 15 by default."""
    audio_guidance: float | None = None
    """Weight of what is heard; the brain's own by default."""
    face_guidance: float | None = None
    """Weight of what is seen, likewise."""


@dataclass(frozen=True)
class Bodies:
    """What the body table is about."""

    clip: Path | None = None
    """A clip with a listener's video; by default a toy listener is drawn, filmed and prepared."""
    seconds: float = 16.0
    """Length of the toy film; its last tenth is held out."""
    size: int = 256
    """Size of its pictures."""
    train: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Row -> settings of `train body`."""
    evaluate: dict[str, Any] = field(default_factory=dict)
    """Settings of `evaluate body`."""


@dataclass(frozen=True)
class Recipe:
    """What an experiment computes."""

    title: str
    """Heading of the report."""
    text: str = ""
    """What the tables are to show; a paragraph of the report."""
    seeds: tuple[int, ...] = (0,)
    """Every row is trained and asked once with each."""
    corpus: dict[str, Any] = field(default_factory=dict)
    """Settings of `corpus`; without brains, none is drawn."""
    brains: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Name -> settings of `train brain`."""
    rows: dict[str, Asked] = field(default_factory=dict)
    """Row of the brain table -> which brain, and how it is asked. By default every brain as it is."""
    samples: int = 8
    """Reactions to each test conversation."""
    test_clips: int | None = None
    """Test conversations; all by default."""
    shifts: int = 200
    """Shifts of the time-shift tests."""
    preset: str = "avatar-forcing"
    """Preset of `evaluate motion` whose figures stand beside ours."""
    bodies: Bodies | None = None
    """The body table."""
