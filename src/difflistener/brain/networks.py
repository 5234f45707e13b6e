"""Networks that turn what the listener perceives into a block of its motion. States are normalised.

Know nothing of diffusion schedules, files or real units.
Axes: B windows, K frames of a block, H frames of history, C frames of context, A audio feature, D = 56 motion, W width.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from difflistener.brain.config import BrainConfig
from difflistener.motion import NUM_EXPRESSION, NUM_MOTION

RECENT = 20
"""Frames before the block's end that are heard one by one; the older ones are heard in means of `POOL` frames."""
POOL = 5
FRAME_WIDTH = 64


@dataclass(frozen=True)
class Condition:
    """What the listener perceives, normalised; absent rows are zero."""

    audio: Tensor  # [B, C, A]
    audio_present: Tensor  # [B, C] 0 or 1
    expression: Tensor  # [B, C, 50]
    expression_present: Tensor  # [B, C] 0 or 1
    history: Tensor  # [B, H, 56]
    history_present: Tensor  # [B] 0 or 1

    def __getitem__(self, rows) -> "Condition":
        return Condition(**{name: value[rows] for name, value in vars(self).items()})


class Perception(nn.Module):
    """Condition -> one vector [B, W]. Recent frames keep their time, older ones are pooled."""

    def __init__(self, config: BrainConfig):
        super().__init__()
        self.recent = min(RECENT, config.context)
        tokens = self.recent + math.ceil((config.context - self.recent) / POOL)
        self.hear = nn.Linear(config.audio_dim + 1, FRAME_WIDTH)
        self.see = nn.Linear(NUM_EXPRESSION + 1, FRAME_WIDTH) if config.uses_face else None
        streams = 2 if config.uses_face else 1
        self.merge = nn.Linear(tokens * FRAME_WIDTH * streams + config.history * NUM_MOTION + 1, config.width)

    def forward(self, condition: Condition) -> Tensor:
        parts = [self._tokens(self.hear, condition.audio, condition.audio_present)]
        if self.see is not None:
            parts.append(self._tokens(self.see, condition.expression, condition.expression_present))
        present = condition.history_present[:, None]
        parts += [(condition.history * present[..., None]).flatten(1), present]
        return functional.silu(self.merge(torch.cat(parts, 1)))

    def _tokens(self, encode: nn.Linear, rows: Tensor, present: Tensor) -> Tensor:
        present = present[..., None]
        encoded = functional.silu(encode(torch.cat([rows * present, present], -1)))
        older, recent = encoded[:, : -self.recent], encoded[:, -self.recent :]
        pooled = functional.avg_pool1d(older.mT, POOL, ceil_mode=True, count_include_pad=False).mT if older.shape[1] else older
        return torch.cat([pooled, recent], 1).flatten(1)


class ResidualLayer(nn.Module):
    """x + MLP(norm(x), condition): the condition enters every layer."""

    def __init__(self, width: int):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.into = nn.Linear(width, width)
        self.condition = nn.Linear(width, width, bias=False)
        self.out = nn.Linear(width, width)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        return x + self.out(functional.silu(self.into(self.norm(x)) + self.condition(condition)))


class Regression(nn.Module):
    """Condition -> the block itself: the average reaction."""

    is_diffusion = False

    def __init__(self, config: BrainConfig):
        super().__init__()
        self.shape = (config.block, NUM_MOTION)
        self.perceive = Perception(config)
        self.layers = nn.ModuleList(ResidualLayer(config.width) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.width)
        self.head = nn.Linear(config.width, config.block * NUM_MOTION)

    def forward(self, condition: Condition) -> Tensor:  # [B, K, 56]
        perceived = self.perceive(condition)
        x = perceived
        for layer in self.layers:
            x = layer(x, perceived)
        return self.head(self.norm(x)).unflatten(1, self.shape)


class MLP(nn.Module):
    """Noisy block, timestep and condition -> what `diffusion.predict_epsilon` makes the noise of.

    Noise fills all K * 56 dimensions and would crowd the condition out of the layers. So it starts with no way into
    them, and reaches the output directly through a gain for each dimension and noise level.
    """

    is_diffusion = True

    def __init__(self, config: BrainConfig):
        super().__init__()
        self.shape = (config.block, NUM_MOTION)
        size = config.block * NUM_MOTION
        self.perceive = Perception(config)
        self.time = nn.Sequential(nn.Linear(config.width, config.width), nn.SiLU(), nn.Linear(config.width, config.width))
        self.gain = nn.Linear(config.width, size)
        self.into = nn.Linear(size, config.width, bias=False)
        self.layers = nn.ModuleList(ResidualLayer(config.width) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.width)
        self.head = nn.Linear(config.width, size)
        for parameter in (self.gain.weight, self.gain.bias, self.into.weight):
            nn.init.zeros_(parameter)

    def forward(self, noisy: Tensor, timestep: Tensor, condition: Condition) -> Tensor:  # [B, K, 56], [B] -> [B, K, 56]
        time = self.time(timestep_embedding(timestep, self.into.out_features))
        told = self.perceive(condition) + time
        noisy = noisy.flatten(1)
        x = self.into(noisy) + told
        for layer in self.layers:
            x = layer(x, told)
        return (self.head(self.norm(x)) + self.gain(time) * noisy).unflatten(1, self.shape)


def timestep_embedding(timestep: Tensor, width: int) -> Tensor:
    """Sines and cosines [B, width] of `timestep` [B], wavelengths from 2 pi to 10000 * 2 pi (Vaswani et al. 2017)."""
    half = width // 2
    frequency = torch.exp(-math.log(10000.0) * torch.arange(half, device=timestep.device) / half)
    angle = timestep.float()[:, None] * frequency
    return torch.cat([angle.cos(), angle.sin()], 1)
