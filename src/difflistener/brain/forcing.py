"""Noise level by noise level: the loss of a `DiT` over sequences, and the steps by which a block is denoised.

Diffusion forcing (Chen et al. 2024): every frame has its own level; the past is frames at level 0. In training the
true past, slightly noisy against drift, stands beside the noisy sequence, so every block learns after just the past
that generation gives it. v: Salimans & Ho 2022; zero terminal signal: Lin et al. 2024; DDIM: Song et al. 2021 (eta = 0).

States are normalised. Knows nothing of clips, real units or speakers.
Axes: B sequences, N frames, K of a block, D = 56 motion.
"""

from dataclasses import dataclass

import torch
from diffusers import DDIMScheduler
from torch import Tensor, nn

from difflistener.basis import POSTURE
from difflistener.brain.dit import Scene
from difflistener.motion import EXPRESSION, JAW, NUM_MOTION, ROTATION

SCHEDULE = {"num_train_timesteps": 1000, "beta_schedule": "squaredcos_cap_v2", "rescale_betas_zero_snr": True,
            "timestep_spacing": "trailing"}
NUM_LEVELS = SCHEDULE["num_train_timesteps"]
SIGNAL = torch.cat([torch.ones(1), DDIMScheduler(**SCHEDULE).alphas_cumprod]).clamp(0, 1)
"""Share of the variance that is signal at levels 0 (clean) to 1000 (noise alone); level n is timestep n - 1."""

DISTINCT = 64
"""Levels of one training step, spread evenly: the network modulates by level, and need not do so frame by frame."""
INPAINTED = 0.2
"""Share of blocks in training whose frames have levels of their own, half of them zero: a frame that is given."""


def shares(levels: Tensor) -> tuple[Tensor, Tensor]:
    """Factors of motion and of noise, each [...], at `levels` [...] (whole numbers)."""
    signal = SIGNAL.to(levels.device)[levels.long()]
    return signal.sqrt(), (1 - signal).sqrt()


def clean_estimate(output: Tensor, noisy: Tensor, alpha: Tensor, sigma: Tensor, prediction: str) -> Tensor:
    """The motion that a network's `output` means for `noisy` = alpha * motion + sigma * noise."""
    return alpha * noisy - sigma * output if prediction == "v" else output


def balance(moves: Tensor, has_posture: bool) -> Tensor:
    """Weight of each dimension, [56], sum 1: expression, posture codes, rotation and jaw have equal shares.

    Args:
        moves: [56] bool, dimensions that move at all; the others, and groups of none but such, weigh nothing.
        has_posture: the last six expression codes are posture (landmark bases).
    """
    groups = [ROTATION, JAW, slice(0, POSTURE.start), POSTURE] if has_posture else [ROTATION, JAW, EXPRESSION]
    weights = torch.zeros(NUM_MOTION, device=moves.device)
    for group in groups:
        weights[group] = moves[group] / moves[group].sum().clamp(min=1)
    return weights / weights.sum().clamp(min=1e-9)


@dataclass(frozen=True)
class Noise:
    """All that is random in the loss of B sequences, drawn on the CPU."""

    levels: Tensor  # [1 + DISTINCT], the first is 0
    which: Tensor  # [B, N] index into `levels`
    noise: Tensor  # [B, N, 56]
    history_noise: Tensor  # [B, N, 56]
    remembers: Tensor  # [B, N / K] bool

    @staticmethod
    def draw(size: int, frames: int, block: int, generator: torch.Generator, history_noise: float,
             history_dropout: float) -> "Noise":
        def rand(*shape):
            return torch.rand(*shape, generator=generator)

        spread = (torch.arange(DISTINCT) + rand(1)) / DISTINCT
        levels = torch.cat([torch.zeros(1), (spread * NUM_LEVELS).ceil().clamp(1, NUM_LEVELS)])
        blocks = frames // block
        together = (1 + rand(size, blocks) * DISTINCT).long().clamp(max=DISTINCT).repeat_interleave(block, 1)
        alone = (1 + rand(size, frames) * DISTINCT).long().clamp(max=DISTINCT) * (rand(size, frames) < 0.5)
        which = torch.where((rand(size, blocks) < INPAINTED).repeat_interleave(block, 1), alone, together)
        # From none to all of the noise on the past: clean history must be known too.
        past = rand(size, 1, 1) * history_noise * torch.randn(size, frames, NUM_MOTION, generator=generator)
        return Noise(levels, which, torch.randn(size, frames, NUM_MOTION, generator=generator), past,
                     rand(size, blocks) >= history_dropout)

    def part(self, rows: slice, device: torch.device) -> "Noise":
        """Of some of the sequences, on a device."""
        return Noise(self.levels.to(device), *(getattr(self, name)[rows].to(device)
                                               for name in ("which", "noise", "history_noise", "remembers")))


def forcing_loss(network: nn.Module, states: Tensor, scene: Scene, counts: Tensor, drawn: Noise, weights: Tensor,
                 prediction: str, velocity_weight: float) -> Tensor:
    """Balanced squared error of what the network predicts of sequences, and of their velocity at low noise.

    Args:
        states: [B, N, 56].
        counts: [B, N] 0 or 1, frames to learn; the others are only past.
        weights: [56] of `balance`.
    """
    alpha, sigma = (share[..., None] for share in shares(drawn.levels[drawn.which]))
    noisy = alpha * states + sigma * drawn.noise
    with torch.autocast(states.device.type, torch.bfloat16, enabled=states.is_cuda):
        output = network(states + drawn.history_noise, noisy, drawn.levels, drawn.which, scene, drawn.remembers)
    output = output.float()
    target = alpha * drawn.noise - sigma * states if prediction == "v" else states
    counts = counts * (drawn.which > 0)  # A frame at level 0 is given, not learned.
    loss = (((output - target) ** 2 @ weights) * counts).mean()
    estimate = torch.where(sigma > 0, clean_estimate(output, noisy, alpha, sigma, prediction), states)
    error = estimate - states
    first = torch.zeros_like(counts, dtype=torch.bool)
    first[:, :: states.shape[1] // drawn.remembers.shape[1]] = True
    # A block goes on from the past, which has no error.
    before = torch.where(first[..., None], 0, error.roll(1, 1))
    known = torch.where(first, drawn.remembers.repeat_interleave(states.shape[1] // drawn.remembers.shape[1], 1), True)
    velocity = ((error - before) ** 2 @ weights) * counts * known * alpha[..., 0] ** 4
    return loss + velocity_weight * velocity.mean()


@dataclass(frozen=True)
class Step:
    """One DDIM step: at `level`, then state = keep * motion + renew * noise, both as estimated."""

    level: int
    alpha: float
    sigma: float
    keep: float
    renew: float


def ddim_steps(num_steps: int) -> list[Step]:
    """From noise alone to clean motion."""
    scheduler = DDIMScheduler(**SCHEDULE)
    scheduler.set_timesteps(num_steps)
    levels = (scheduler.timesteps + 1).tolist()
    # The next level is the one the network is asked about next; diffusers rounds it down where steps do not divide 1000.
    return [Step(level, *(float(share) for here in (level, after) for share in shares(torch.tensor(here))))
            for level, after in zip(levels, [*levels[1:], 0])]
