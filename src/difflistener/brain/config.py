"""Settings of a brain and of its training. Imports nothing heavy, so that help is instant."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro


@dataclass(frozen=True)
class BrainConfig:
    """What a brain is: saved as its config.json."""

    network: str
    """Name in `networks.NETWORKS`."""
    basis: str
    """Id of the expression basis of its motion."""
    audio: str
    """Speaker feature it hears: logmel or wav2vec2."""
    audio_dim: int
    """Numbers a frame of that feature."""
    uses_face: bool
    """Whether it was trained with speaker expression."""
    audio_settings: dict[str, Any] = field(default_factory=dict)
    """Settings of the audio encoder, to make the same feature again."""
    block: int = 10
    """Frames generated at once."""
    history: int = 10
    """Frames of its own past that it sees."""
    context: int = 50
    """Frames of the speaker that it sees, up to the end of the block."""
    width: int = 512
    """Width of the hidden layers."""
    layers: int = 6
    """Residual layers."""
    state_limit: float = 8.0
    """Largest generated value, in standard deviations from the mean."""


@dataclass(frozen=True)
class BrainTraining:
    """Learn from clips how a listener moves while somebody speaks (stage 2).

    Example: difflistener train brain clips/a clips/b --out brains/ab
    Check that all parts fit, on one clip: difflistener train brain clips/a --out brains/a --overfit
    """

    clips: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Clips to learn from, of one basis."""
    out: Path
    """Folder for the brain."""
    network: Literal["regression", "mlp"] = "mlp"
    """regression predicts the average reaction; mlp is a diffusion model, each seed another reaction."""
    audio: Literal["logmel", "wav2vec2"] = "logmel"
    """Speaker feature to listen to; the clips must hold it."""
    face: bool = True
    """Watch the speaker's expression where a clip has one."""
    steps: int = 2000
    """Training steps; the learning rate falls to zero at the last one."""
    batch_size: int = 64
    """Windows a step."""
    learning_rate: float = 1e-3
    """Highest learning rate."""
    block: int = 10
    """Frames generated at once."""
    history: int = 10
    """Frames of its own past that the listener sees."""
    context: int = 50
    """Frames of the speaker that the listener sees, up to the end of the block: 25 a second."""
    width: int = 512
    """Width of the hidden layers."""
    layers: int = 6
    """Residual layers."""
    history_noise: float = 0.3
    """Noise on the own past in training, in standard deviations: keeps the roll-out from drifting."""
    history_dropout: float = 0.1
    """Share of windows trained without own past."""
    face_dropout: float = 0.1
    """Share of windows trained without the speaker's face."""
    holdout: float = 0.1
    """Tail of each clip kept for validation; none with --overfit."""
    ema: float = 0.998
    """Decay of the weight average that is saved, reached after a short warm-up."""
    save_every: int = 500
    """Steps between checkpoints."""
    seed: int = 0
    """Seed of weights, batches and noise."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute."""
    overfit: bool = False
    """Learn one clip by heart and compare what is generated with the truth: a check that all parts fit."""
    resume: bool = False
    """Continue a run that was interrupted."""
    overwrite: bool = False
    """Replace a brain that stands at --out."""
