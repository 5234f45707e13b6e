"""Noise level by noise level: the loss of a `DiT` over sequences, and the steps by which a block is denoised.

Diffusion forcing (Chen et al. 2024): every frame has its own level; the past is frames at level 0. In training the
true past, slightly noisy against drift, stands beside the noisy sequence, so every block learns after just the past
that generation gives it. v: Salimans & Ho 2022; zero terminal signal: Lin et al. 2024.

States are normalised. Knows nothing of clips, real units or speakers.
Axes: B sequences, N frames, K of a block, D = 56 motion.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache

import torch
from diffusers import DDIMScheduler
from torch import Tensor, nn

from difflistener.basis import POSTURE
from difflistener.brain.dit import Innovations, Scene
from difflistener.motion import EXPRESSION, JAW, NUM_MOTION, ROTATION

SCHEDULE = {"num_train_timesteps": 1000, "beta_schedule": "squaredcos_cap_v2", "rescale_betas_zero_snr": True,
            "timestep_spacing": "trailing"}
NUM_LEVELS = SCHEDULE["num_train_timesteps"]
SIGNAL = torch.cat([torch.ones(1), DDIMScheduler(**SCHEDULE).alphas_cumprod]).clamp(0, 1)
"""Share of the variance that is signal at levels 0 (clean) to 1000 (noise alone); level n is timestep n - 1."""

SPACING = 1.5
"""Power of the spacing of generation's levels: much of what is undecided about a frame is small."""
DISTINCT = 64
"""Levels of one training step, spread evenly: the network modulates by level, and need not do so frame by frame."""
INPAINTED = 0.2
"""Share of blocks in training whose frames have levels of their own, half of them zero: a frame that is given."""


def shares(levels: Tensor) -> tuple[Tensor, Tensor]:
    """Factors of motion and of noise, each [...], at `levels` [...] (whole numbers)."""
    signal = _signal(levels.device)[levels.long()]
    return signal.sqrt(), (1 - signal).sqrt()


@cache
def _signal(device: torch.device) -> Tensor:
    return SIGNAL.to(device)


def clean_estimate(output: Tensor, noisy: Tensor, alpha: Tensor, sigma: Tensor, prediction: str) -> Tensor:
    """The motion that a network's `output` means for `noisy` = alpha * motion + sigma * noise."""
    return alpha * noisy - sigma * output if prediction == "v" else output


def balance(moves: Tensor, has_posture: bool) -> Tensor:
    """Weight of each parameter, [56], sum 1: expression has half, rotation and jaw a quarter each.

    Args:
        moves: [56] bool, dimensions that move at all; the others, and groups of none but such, weigh nothing.
        has_posture: the last six expression codes are posture (landmark bases); they have half of the expression's share.
    """
    faces = [(slice(0, POSTURE.start), 1), (POSTURE, 1)] if has_posture else [(EXPRESSION, 2)]
    weights = torch.zeros(NUM_MOTION, device=moves.device)
    for group, share in [(ROTATION, 1), (JAW, 1), *faces]:
        weights[group] = share * moves[group] / moves[group].sum().clamp(min=1)
    return weights / weights.sum().clamp(min=1e-9)


@dataclass(frozen=True)
class Noise:
    """All that is random in the loss of B sequences."""

    levels: Tensor  # [1 + DISTINCT], the first is 0
    which: Tensor  # [B, N] index into `levels`
    noise: Tensor  # [B, N, 56]
    history_noise: Tensor  # [B, N, 56] in units of one frame's spread
    remembers: Tensor  # [B, N / K] bool

    @staticmethod
    def draw(size: int, frames: int, block: int, generator: torch.Generator, history_noise: float,
             history_dropout: float) -> "Noise":
        """Drawn on the device of the generator."""
        device = generator.device

        def rand(*shape):
            return torch.rand(*shape, generator=generator, device=device)

        def randn(*shape):
            return torch.randn(*shape, generator=generator, device=device)

        spread = (torch.arange(DISTINCT, device=device) + rand(1)) / DISTINCT
        levels = torch.cat([torch.zeros(1, device=device), (spread * NUM_LEVELS).ceil().clamp(1, NUM_LEVELS)])
        blocks = frames // block
        together = (1 + rand(size, blocks) * DISTINCT).long().clamp(max=DISTINCT).repeat_interleave(block, 1)
        alone = (1 + rand(size, frames) * DISTINCT).long().clamp(max=DISTINCT) * (rand(size, frames) < 0.5)
        which = torch.where((rand(size, blocks) < INPAINTED).repeat_interleave(block, 1), alone, together)
        # From none to all of the noise on the past: clean history must be known too.
        past = rand(size, 1, 1) * history_noise * randn(size, frames, NUM_MOTION)
        return Noise(levels, which, randn(size, frames, NUM_MOTION), past,
                     rand(size, blocks) >= history_dropout)

    def part(self, rows: slice) -> "Noise":
        """Of some of the sequences."""
        return replace(self, **{name: getattr(self, name)[rows] for name in ("which", "noise", "history_noise", "remembers")})


def forcing_loss(network: nn.Module, innovations: Innovations, states: Tensor, scene: Scene, counts: Tensor, drawn: Noise,
                 weights: Tensor, prediction: str, velocity_weight: float) -> Tensor:
    """Balanced squared error of what the network predicts of sequences, and of their velocity at low noise.

    Args:
        states: [B, N, 56].
        counts: [B, N] 0 or 1, frames to learn; the others are only past.
        weights: [56] of `balance`.
    """
    clean, unit = innovations_of(innovations, states, drawn.remembers)
    alpha, sigma = (share[..., None] for share in shares(drawn.levels[drawn.which]))
    return prediction_loss(network, noisy_past(innovations, states, drawn), alpha * clean + sigma * drawn.noise, clean, unit,
                           drawn.levels, drawn.which, scene, counts, drawn.remembers, weights, prediction, velocity_weight)


def noisy_past(innovations: Innovations, states: Tensor, drawn: Noise) -> Tensor:
    """States [B, N, 56] as the past of training: with noise against drift."""
    return states + drawn.history_noise * innovations.spread[0]


def prediction_loss(network: nn.Module, past: Tensor, noisy: Tensor, clean: Tensor, unit: Tensor, levels: Tensor,
                    which: Tensor, scene: Scene, counts: Tensor, remembers: Tensor, weights: Tensor, prediction: str,
                    velocity_weight: float) -> Tensor:
    """Loss of a network that is to find the innovations `clean` in `noisy`, both [B, N, 56] in units of `unit`; the rest as
    in `DiT.forward` and `forcing_loss`."""
    alpha, sigma = (share[..., None] for share in shares(levels[which]))
    with torch.autocast(past.device.type, torch.bfloat16, enabled=past.is_cuda):
        output = network(past, noisy, levels, which, scene, remembers)
    output = output.float()
    # At level 0 there is no noise to speak of: such a frame is given, not learned.
    target = (alpha * noisy - clean) / torch.where(sigma > 0, sigma, 1.0) if prediction == "v" else clean
    counts = counts * (which > 0)
    loss = (((output - target) ** 2 @ weights) * counts).mean()
    estimate = torch.where(sigma > 0, clean_estimate(output, noisy, alpha, sigma, prediction), clean)
    blocks = (-1, noisy.shape[1] // remembers.shape[1])
    error = ((estimate - clean) * unit).unflatten(1, blocks) / unit.unflatten(1, blocks)[:, :, :1]
    # A block goes on from the past, which has no error.
    steps = torch.cat([error[:, :, :1] * remembers[:, :, None, None], error.diff(dim=2)], 2).flatten(1, 2)
    velocity = (steps**2 @ weights) * counts * alpha[..., 0] ** 4
    return loss + velocity_weight * velocity.mean()


def innovations_of(innovations: Innovations, states: Tensor, remembers: Tensor) -> tuple[Tensor, Tensor]:
    """Innovations of the blocks of sequences, and their units, both [B, N, 56]; `remembers` [B, N / K] as in `Noise`.

    The first block's last frame is itself unknown: it is innovated from its own first frame, as if held before.
    """
    block = len(innovations.spread)
    last = torch.cat([states[:, :1], states[:, block - 1 : -1 : block]], 1)
    has_past = remembers[:, :, None, None]
    prediction = (innovations.prediction(last) * has_past).flatten(1, 2)
    unit = torch.where(has_past, innovations.spread, 1.0).flatten(1, 2)
    return (states - prediction) / unit, unit


@dataclass(frozen=True)
class Step:
    """One step of generation: at `level`, then on by `turn` radians; 0 at the last, which gives the clean estimate."""

    level: int
    alpha: float
    sigma: float
    turn: float


def sampling_steps(num_steps: int) -> list[Step]:
    """From noise alone to clean motion, the steps closer together the less noise is left."""
    left = 1 - torch.arange(num_steps) / num_steps
    levels = (NUM_LEVELS * left**SPACING).round().clamp(min=1)
    alpha, sigma = shares(levels)
    angle = torch.atan2(sigma, alpha)
    turns = [*(angle[:-1] - angle[1:]).tolist(), 0.0]
    return [Step(int(level), float(a), float(s), turn) for level, a, s, turn in zip(levels, alpha, sigma, turns)]


def solve(network: Callable[[Tensor, Step], Tensor], noise: Tensor, steps: list[Step], prediction: str,
          low: Tensor | float = -torch.inf, high: Tensor | float = torch.inf, one_by_one: bool = False) -> Tensor:
    """Clean innovations of the shape of `noise`: DDIM's equation dx / d angle = v (Song et al. 2021, written so by Salimans
    & Ho 2022), solved with two-step Adams-Bashforth, as PNDM does (Liu et al. 2022).

    Plain DDIM, its first-order solution, loses 15 to 30 % of the variance in 15 steps.

    Args:
        network: noisy innovations and step -> output.
        low, high: bounds of every clean estimate.
        one_by_one: plain DDIM, for a network that was taught single steps.
    """
    state, before, turned = noise, None, 0.0
    for step in steps:
        estimate = clean_estimate(network(state, step), state, step.alpha, step.sigma, prediction).clamp(low, high)
        if step.turn == 0:
            break
        v = (step.alpha * state - estimate) / step.sigma
        if one_by_one:
            state = math.cos(step.turn) * state - math.sin(step.turn) * v
        else:
            ahead = v if before is None else torch.lerp(before, v, 1 + 0.5 * step.turn / turned)
            state, before, turned = state - step.turn * ahead, v, step.turn
    return estimate
