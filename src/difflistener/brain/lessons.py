"""What a brain learns from: windows of clips, perceived as at generation, made harder as the settings say.

Two kinds: blocks after their past (regression, mlp) and sequences of blocks (dit). A loss is a pure function of the
windows and the generator. Knows nothing of optimisers, files or progress.
Axes: B windows, N frames of a sequence, K of a block.
"""

import numpy as np
import torch
from torch import Tensor, nn

from difflistener.brain.config import ATTITUDES, BrainTraining
from difflistener.brain.dit import Scene
from difflistener.brain.forcing import Noise
from difflistener.brain.model import Brain
from difflistener.clip import Clip
from difflistener.dataset import Pair, Windows
from difflistener.errors import UserError
from difflistener.motion import runs

SPREAD_WINDOWS, SPREAD_SEQUENCES = 8192, 512
"""Windows and sequences from which it is learned how motion goes on."""


class BlockLessons:
    """Single blocks, each after its history."""

    sample = 512
    """Windows that a validation loss is taken of."""

    def __init__(self, pairs: list[Pair], config: BrainTraining, spans: list[tuple[int, int]]):
        self.config = config
        self.windows = Windows(pairs, config.block, config.history, config.context, spans)

    def __len__(self) -> int:
        return len(self.windows)

    def prepare(self, brain: Brain) -> None:
        """Let `brain`, whose normalisers are set, learn how motion goes on."""
        which = np.random.default_rng([self.config.seed, 0]).integers(len(self), size=SPREAD_WINDOWS)
        sample, device = self.windows.take(which), brain.motion.mean.device
        brain.continuity.set(*(brain.motion(torch.from_numpy(part).to(device)) for part in (sample.block, sample.history)))

    def loss(self, brain: Brain, network: nn.Module, which: np.ndarray, generator: torch.Generator, augment: bool,
             rows: slice = slice(None)) -> Tensor:
        """Mean loss of `rows` of the windows `which`; with `augment`, history is noisy or missing, the face may miss."""
        config, device = self.config, brain.motion.mean.device
        tensors = {name: torch.from_numpy(value).float() for name, value in vars(self.windows.take(which)).items()}
        num = len(which)
        history_present = torch.ones(num)
        if augment:
            tensors["expression_present"] *= (torch.rand(num, 1, generator=generator) >= config.face_dropout).float()
            history_present = (torch.rand(num, generator=generator) >= config.history_dropout).float()
            # From none to all of the noise: clean history must be known too.
            level = torch.rand(num, 1, 1, generator=generator) * config.history_noise
            noise = torch.randn(tensors["history"].shape, generator=generator)
            tensors["history"] = tensors["history"] + level * noise * brain.motion.std.cpu()
        block = tensors.pop("block").to(device)
        tensors = {name: value.to(device) for name, value in tensors.items()}
        condition = brain.condition(**tensors, history_present=history_present.to(device))
        return brain.block_loss(network, block, condition, generator, rows)


class SequenceLessons:
    """Sequences of `config.sequence` frames, every block of which is learned, after one block that is only past.

    Where no run of valid frames is as long, sequences are as long as the longest. A listener's anchor is the mean of
    its clip; its attitude is the clip's.
    """

    sample = 64
    """Windows that a validation loss is taken of."""

    def __init__(self, pairs: list[Pair], config: BrainTraining, spans: list[tuple[int, int]]):
        self.config = config
        longest = max((stop - start for pair, (first, last) in zip(pairs, spans) for start, stop in runs(pair.valid[first:last])),
                      default=0)
        self.frames = max(min(config.sequence, longest) // config.block, 1) * config.block
        # The last rows of a window are the speaker looked ahead at.
        learned = self.frames + config.look_ahead
        self.windows = Windows(pairs, learned, config.block, self.frames + config.block + config.context - 1, spans)
        self.anchors = torch.stack([_usual(pair) for pair in pairs])  # [pairs, 56], real units
        self.attitudes = torch.tensor([_attitude(pair) for pair in pairs])

    def __len__(self) -> int:
        return len(self.windows)

    def prepare(self, brain: Brain) -> None:
        """Let `brain`, whose normalisers are set, learn how far motion goes in a frame."""
        which = np.random.default_rng([self.config.seed, 0]).integers(len(self), size=SPREAD_SEQUENCES)
        sample, device = self.windows.take(which), brain.motion.mean.device
        motion = np.concatenate([sample.history, sample.block], 1)
        brain.network.innovations.set(brain.motion(torch.from_numpy(motion).to(device)))

    def loss(self, brain: Brain, network: nn.Module, which: np.ndarray, generator: torch.Generator, augment: bool,
             rows: slice = slice(None)) -> Tensor:
        """Mean loss of `rows` of the sequences `which`; with `augment`, the past is noisy or missing, conditions may miss."""
        config, num, device = self.config, len(which), brain.motion.mean.device
        harder = (config.history_noise, config.history_dropout) if augment else (0.0, 0.0)
        drawn = Noise.draw(num, config.block + self.frames, config.block, generator, *harder, device)
        keep = {name: torch.rand(num, generator=generator) >= getattr(config, f"{name}_dropout") * augment
                for name in ("audio", "face", "attitude", "anchor")}
        keep = {name: value[rows].float() for name, value in keep.items()}
        which = which[rows]
        tensors = {name: torch.from_numpy(value).float() for name, value in vars(self.windows.take(which)).items()}
        pair = self.windows.index[which, 0]
        motion = torch.cat([tensors["history"], tensors["block"][:, : self.frames]], 1)
        # Past the end of a clip the last frame holds: nothing to learn from.
        inside = tensors["audio_present"][:, -self.frames - config.look_ahead :][:, : self.frames]
        counts = torch.cat([torch.zeros(len(which), config.block), inside], 1)
        anchor = brain.motion(self.anchors[pair].to(device)) * keep["anchor"].to(device)[:, None]
        attitude = self.attitudes[pair] * keep["attitude"].long()
        scene = brain.scene(tensors["audio"].to(device), (tensors["audio_present"] * keep["audio"][:, None]).to(device),
                            tensors["expression"].to(device), (tensors["expression_present"] * keep["face"][:, None]).to(device),
                            attitude.to(device), anchor, keep["anchor"].to(device))
        return self._loss(brain, network, brain.state(motion.to(device), anchor), scene, counts.to(device),
                          drawn.part(rows, device))

    def _loss(self, brain: Brain, network: nn.Module, states: Tensor, scene: Scene, counts: Tensor, drawn: Noise) -> Tensor:
        return brain.sequence_loss(network, states, scene, counts, drawn, self.config.velocity_weight)


def _usual(pair: Pair) -> Tensor:
    """Mean motion [56] of a pair's listener: its anchor."""
    return torch.from_numpy(np.asarray(pair.motion[pair.valid], np.float32).mean(0))


def _attitude(pair: Pair) -> int:
    """Number of the attitude that a clip is marked with, 0 for none."""
    attitude = Clip.open(pair.path, check=False).meta.get("attitude")
    if attitude is not None and attitude not in ATTITUDES:
        raise UserError(f"The clip {pair.path} has the attitude {attitude!r}.", f"Use one of {', '.join(ATTITUDES)}, or none.")
    return 0 if attitude is None else 1 + ATTITUDES.index(attitude)


LESSONS = {"dit": SequenceLessons, "mlp": BlockLessons, "regression": BlockLessons}
