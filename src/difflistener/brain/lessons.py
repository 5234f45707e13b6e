"""What a brain learns from: windows of clips, perceived as at generation, made harder as the settings say.

Two kinds: blocks after their past (regression, mlp) and sequences of blocks (dit). A loss is a pure function of the
windows and the generator. Knows nothing of optimisers, files or progress.
Axes: B windows, N frames of a sequence, K of a block.
"""

from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from difflistener.brain.config import ATTITUDES, BrainTraining
from difflistener.brain.dit import Scene
from difflistener.brain.forcing import Noise
from difflistener.brain.model import Brain
from difflistener.clip import Clip
from difflistener.dataset import Frames, Pair, Windows
from difflistener.errors import UserError
from difflistener.motion import runs

SPREAD_WINDOWS, SPREAD_SEQUENCES = 8192, 512
"""Windows and sequences from which it is learned how motion goes on."""


def any_of(num: int, size: int, device: torch.device, *key: int) -> Tensor:
    """`size` of `num` windows, drawn evenly; the same for the same `key`."""
    return torch.from_numpy(np.random.default_rng(key).integers(num, size=size)).to(device)


class BlockLessons:
    """Single blocks, each after its history."""

    sample = 512
    """Windows that a validation loss is taken of."""

    def __init__(self, frames: Frames, config: BrainTraining, spans: list[tuple[int, int]]):
        self.config = config
        self.windows = Windows(frames, config.block, config.history, config.context, spans)

    def __len__(self) -> int:
        return len(self.windows)

    def prepare(self, brain: Brain) -> None:
        """Let `brain`, whose normalisers are set, learn how motion goes on."""
        sample = self.windows.take(any_of(len(self), SPREAD_WINDOWS, self.windows.index.device, self.config.seed, 0))
        brain.continuity.set(brain.motion(sample.block), brain.motion(sample.history))

    def loss(self, brain: Brain, network: nn.Module, which: Tensor, generator: torch.Generator, augment: bool,
             rows: slice = slice(None)) -> Tensor:
        """Mean loss of `rows` of the windows `which`; with `augment`, history is noisy or missing, the face may miss.
        The generator is one of the device."""
        config, tensors, num = self.config, dict(vars(self.windows.take(which))), len(which)
        draw = partial(torch.rand, generator=generator, device=generator.device)
        history_present = torch.ones(num, device=generator.device)
        if augment:
            tensors["expression_present"] = tensors["expression_present"] * (draw(num, 1) >= config.face_dropout)
            history_present = (draw(num) >= config.history_dropout).float()
            # From none to all of the noise: clean history must be known too.
            level = draw(num, 1, 1) * config.history_noise
            noise = torch.randn(tensors["history"].shape, generator=generator, device=generator.device)
            tensors["history"] = tensors["history"] + level * noise * brain.motion.std
        block = tensors.pop("block")
        return brain.block_loss(network, block, brain.condition(**tensors, history_present=history_present), generator, rows)


class SequenceLessons:
    """Sequences of `config.sequence` frames, every block of which is learned, after one block that is only past.

    Where no run of valid frames is as long, sequences are as long as the longest. A listener's anchor is the mean of
    its clip; its attitude is the clip's.
    """

    sample = 64
    """Windows that a validation loss is taken of."""

    def __init__(self, frames: Frames, config: BrainTraining, spans: list[tuple[int, int]]):
        self.config = config
        pairs, device = frames.pairs, frames.motion.device
        longest = max((stop - start for pair, (first, last) in zip(pairs, spans) for start, stop in runs(pair.valid[first:last])),
                      default=0)
        self.frames = max(min(config.sequence, longest) // config.block, 1) * config.block
        # The last rows of a window are the speaker looked ahead at.
        learned = self.frames + config.look_ahead
        self.windows = Windows(frames, learned, config.block, self.frames + config.block + config.context - 1, spans)
        self.anchors = torch.stack([_usual(pair) for pair in pairs]).to(device)  # [pairs, 56], real units
        self.attitudes = torch.tensor([_attitude(pair) for pair in pairs], device=device)

    def __len__(self) -> int:
        return len(self.windows)

    def prepare(self, brain: Brain) -> None:
        """Let `brain`, whose normalisers are set, learn how far motion goes in a frame."""
        sample = self.windows.take(any_of(len(self), SPREAD_SEQUENCES, self.windows.index.device, self.config.seed, 0))
        motion = brain.motion(torch.cat([sample.history, sample.block], 1))
        brain.factors.set(motion)
        brain.network.innovations.set(brain.factors(motion))

    def loss(self, brain: Brain, network: nn.Module, which: Tensor, generator: torch.Generator, augment: bool,
             rows: slice = slice(None)) -> Tensor:
        """Mean loss of `rows` of the sequences `which`; with `augment`, the past is noisy or missing, conditions may miss.
        The generator is one of the device."""
        config, num, device = self.config, len(which), generator.device
        harder = (config.history_noise, config.history_dropout) if augment else (0.0, 0.0)
        drawn = Noise.draw(num, config.block + self.frames, config.block, generator, *harder)
        keep = {name: torch.rand(num, generator=generator, device=device) >= getattr(config, f"{name}_dropout") * augment
                for name in ("audio", "face", "attitude", "anchor")}
        keep = {name: value[rows].float() for name, value in keep.items()}
        which = which[rows]
        batch = self.windows.take(which)
        pair = self.windows.index[which, 0]
        motion = torch.cat([batch.history, batch.block[:, : self.frames]], 1)
        # Past the end of a clip the last frame holds: nothing to learn from.
        inside = batch.audio_present[:, -self.frames - config.look_ahead :][:, : self.frames]
        counts = torch.cat([torch.zeros(len(which), config.block, device=device), inside], 1)
        anchor = brain.motion(self.anchors[pair]) * keep["anchor"][:, None]
        attitude = self.attitudes[pair] * keep["attitude"].long()
        scene = brain.scene(batch.audio, batch.audio_present * keep["audio"][:, None], batch.expression,
                            batch.expression_present * keep["face"][:, None], attitude, anchor, keep["anchor"])
        return self._loss(brain, network, brain.state(motion, anchor), scene, counts, drawn.part(rows))

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
