"""How 56 motion numbers move Gaussians: the linear deformation.

theta (standardised motion) -> psi = W theta, K numbers -> offsets of position, opacity logit and colour that are linear
in psi, with one basis row a Gaussian. Scale and rotation carry no basis: the rigid head pose turns them. Knows nothing
of cameras or pictures. Axes: B frames, N Gaussians, K motion bases, D = 56 motion.
"""

import torch
from torch import nn

from difflistener.motion import EXPRESSION, NUM_MOTION, ROTATION

MARGIN = 0.15
"""How far beyond the training range a coefficient runs freely, as a share of that range."""


class LinearDeformation(nn.Module):
    """Offsets linear in K learned mixtures of the motion numbers (K about 20 is enough)."""

    def __init__(self, num_gaussians: int, num_bases: int):
        super().__init__()
        self.motion_range = Range(NUM_MOTION)
        self.register_buffer("gain", torch.ones(NUM_MOTION))
        self.mix = nn.Linear(NUM_MOTION, num_bases, bias=False)
        self.position = nn.Parameter(torch.zeros(num_bases, num_gaussians, 3))
        self.opacity = nn.Parameter(torch.zeros(num_bases, num_gaussians))
        self.color = nn.Parameter(torch.zeros(num_bases, num_gaussians, 3))

    @torch.no_grad()
    def start_from(self, motion: torch.Tensor, seed_bases: torch.Tensor, gain: torch.Tensor) -> None:
        """Fit the normaliser to training motion [T, 56] and start the position bases at `seed_bases` [N, J, 3].

        The first J bases then move the seeds as the first J expression codes do; the next three see the rotation.
        `gain` [56] is how much of each standardised number the mixtures see: the less, the slower they learn from it.
        """
        self.gain.copy_(gain)
        self.motion_range.fit(motion)
        num_codes = seed_bases.shape[1]
        assert num_codes + 3 <= len(self.position)
        self.mix.weight.zero_()
        code = torch.arange(num_codes)
        self.mix.weight[code, EXPRESSION.start + code] = 1 / gain[code]
        turn = torch.arange(3)
        self.mix.weight[num_codes + turn, ROTATION.start + turn] = 1.0
        self.position[:num_codes] = seed_bases.transpose(0, 1) * self.motion_range.std[code, None, None]

    def psi(self, motion: torch.Tensor) -> torch.Tensor:
        """Mixtures [B, K] of motion [B, 56], held softly inside the range that training showed."""
        return self.mix(self.motion_range(motion) * self.gain)

    def forward(self, motion: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Offsets of position [B, N, 3], opacity logit [B, N] and colour [B, N, 3] for motion [B, 56]."""
        psi = self.psi(motion)
        move = (psi @ self.position.flatten(1)).unflatten(1, self.position.shape[1:])
        tint = (psi @ self.color.flatten(1)).unflatten(1, self.color.shape[1:])
        return move, psi @ self.opacity, tint


def soft_clamp(values: torch.Tensor, low: torch.Tensor, high: torch.Tensor) -> torch.Tensor:
    """Identity inside [low, high]; beyond, values approach the edge plus a margin of the range and never pass it."""
    margin = MARGIN * (high - low) + 1e-3
    inside = values.clamp(low, high)
    return inside + margin * torch.tanh((values - inside) / margin)


class Range(nn.Module):
    """Standardises numbers and holds them softly inside the range that training showed."""

    def __init__(self, size: int):
        super().__init__()
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("std", torch.ones(size))
        self.register_buffer("low", torch.full((size,), -1.0))
        self.register_buffer("high", torch.full((size,), 1.0))

    @torch.no_grad()
    def fit(self, values: torch.Tensor) -> None:
        """Learn from [T, size]."""
        self.mean.copy_(values.mean(0))
        self.std.copy_(values.std(0).clamp_min(1e-3))
        standard = (values - self.mean) / self.std
        self.low.copy_(torch.quantile(standard, 0.002, 0))
        self.high.copy_(torch.quantile(standard, 0.998, 0))

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return soft_clamp((values - self.mean) / self.std, self.low, self.high)
