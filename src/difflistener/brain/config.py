"""Settings of a brain and of its training. Imports nothing heavy, so that help is instant."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

ATTITUDES = ("positive", "neutral", "negative")
"""What a listener may think of what is said, as in ViCo (Zhou et al. 2022)."""


@dataclass(frozen=True)
class BrainConfig:
    """What a brain is: saved as its config.json."""

    network: str
    """Name in `model.NETWORKS`."""
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
    """Frames generated at once: one hop of a stream."""
    history: int = 10
    """Frames of its own past that it sees."""
    context: int = 50
    """Frames of the speaker that it sees: up to the end of the block; with dit, up to `look_ahead` after each frame."""
    width: int = 512
    """Width of the hidden layers."""
    layers: int = 6
    """Residual layers."""
    state_limit: float = 8.0
    """Largest generated value, in standard deviations from the mean."""
    heads: int = 4
    """Attention heads (dit)."""
    look_ahead: int = 0
    """Frames of the speaker after a frame that are waited for (dit)."""
    prediction: str = "v"
    """What the network predicts (dit): v (Salimans & Ho 2022) or x0, the clean motion."""
    audio_guidance: float = 1.0
    """Weight of what is heard (dit): 1 samples what was learned, more exaggerates the reaction."""
    face_guidance: float = 1.0
    """Weight of what is seen (dit), likewise."""
    num_steps: int = 15
    """Steps of generation where no number is given."""
    distilled: bool = False
    """Whether it was taught just these steps, guidance included (dit)."""

    @property
    def latency_ms(self) -> int:
        """Algorithmic latency: from the first sound of a hop until its motion can be computed."""
        from difflistener.motion import FPS

        return (self.block + self.look_ahead) * 1000 // FPS


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
    network: Literal["dit", "mlp", "regression"] = "dit"
    """dit and mlp are diffusion models, each seed another reaction; only dit streams. regression predicts the average."""
    audio: Literal["logmel", "wav2vec2"] = "logmel"
    """Speaker feature to listen to; the clips must hold it."""
    face: bool = True
    """Watch the speaker's expression where a clip has one."""
    steps: int = 2000
    """Training steps; the learning rate falls to zero at the last one."""
    batch_size: int | None = None
    """Windows a step: 16 sequences for dit, else 64 blocks."""
    learning_rate: float = 1e-3
    """Highest learning rate."""
    block: int | None = None
    """Frames generated at once: 2 for dit, else 10."""
    history: int | None = None
    """Frames of its own past that the listener sees: 64 for dit, else 10."""
    context: int = 50
    """Frames of the speaker that the listener sees: 25 a second."""
    width: int | None = None
    """Width of the hidden layers: 128 for dit, else 512."""
    layers: int | None = None
    """Layers: 4 for dit, else 6."""
    heads: int = 4
    """Attention heads (dit)."""
    sequence: int = 128
    """Frames learned from at once (dit); fewer where the clips have no run as long."""
    look_ahead: int = 0
    """Frames of the speaker after each frame that are waited for (dit); 40 ms of latency each."""
    prediction: Literal["v", "x0"] = "v"
    """What the network predicts (dit): v, or x0, the clean motion."""
    velocity_weight: float = 1.0
    """Weight of errors of velocity, seams between blocks included, at low noise (dit)."""
    audio_guidance: float = 1.0
    """Weight of what is heard at generation (dit): 1 samples what was learned, more exaggerates the reaction."""
    face_guidance: float = 1.0
    """Weight of what is seen at generation (dit), likewise."""
    history_noise: float = 0.3
    """Noise on the own past in training, against drift: 0.3, for dit in units of one frame's change, else in standard deviations."""
    history_dropout: float = 0.1
    """Share of windows (dit: of blocks) trained without own past."""
    audio_dropout: float = 0.1
    """Share of windows trained without the speaker's sound (dit)."""
    face_dropout: float = 0.1
    """Share of windows trained without the speaker's face."""
    attitude_dropout: float = 0.3
    """Share of windows trained without the listener's attitude (dit)."""
    anchor_dropout: float = 0.5
    """Share of windows trained without the listener's usual posture, its anchor (dit)."""
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
    distil: Path | None = None
    """A trained dit whose reactions are to be learned in --distil-steps; shape, sound and face are those of that brain."""
    distil_steps: int = 2
    """Steps that a distilled brain takes, 1 to 4."""
    overfit: bool = False
    """Learn one clip by heart and compare what is generated with the truth: a check that all parts fit."""
    resume: bool = False
    """Continue a run that was interrupted."""
    overwrite: bool = False
    """Replace a brain that stands at --out."""

    def complete(self) -> "BrainTraining":
        """With the network's own number wherever none was given."""
        given = {name: getattr(self, name) for name in DEFAULTS["dit"]}
        own = DEFAULTS["dit" if self.network == "dit" else "window"]
        return replace(self, **{name: own[name] if value is None else value for name, value in given.items()})


DEFAULTS = {
    "dit": {"batch_size": 16, "block": 2, "history": 64, "width": 128, "layers": 4},
    "window": {"batch_size": 64, "block": 10, "history": 10, "width": 512, "layers": 6},
}
