"""Denoising diffusion over blocks of motion: noise in training, DDIM steps at generation. States are normalised.

DDPM: Ho et al. 2020; DDIM: Song et al. 2021 (eta = 0). Knows nothing of clips or real units.
Axes: B windows, K frames of a block, D = 56 motion.
"""

from functools import cache

import numpy as np
import torch
from diffusers import DDIMScheduler, DDPMScheduler
from torch import Tensor, nn
from torch.nn import functional

from difflistener.brain.networks import Condition

TRAIN_TIMESTEPS = 1000
SCHEDULE = {"num_train_timesteps": TRAIN_TIMESTEPS, "beta_start": 1e-4, "beta_end": 1e-2, "beta_schedule": "linear",
            "prediction_type": "epsilon"}
"""Levels of noise. The last one keeps a signal of 0.08: generation starts where the network was trained."""

ALPHAS_CUMPROD = DDPMScheduler(**SCHEDULE).alphas_cumprod

MAX_STEPS = 50


def keyed_generator(*key: int, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator that depends on all numbers (0 or more) of `key`, on the kind of device, and on nothing else."""
    return torch.Generator(device).manual_seed(keyed_seed(*key))


def keyed_seed(*key: int) -> int:
    """A seed that depends on all numbers (0 or more) of `key`."""
    return int(np.random.SeedSequence((len(key), *key)).generate_state(1, np.uint64)[0] >> 1)


def predict_epsilon(network: nn.Module, noisy: Tensor, timestep: Tensor, condition: Condition) -> Tensor:
    """The noise in `noisy` [B, K, 56] at `timestep` [B].

    epsilon = sigma * noisy + alpha * output, so that the network need not carry the noise through its layers, and an
    error of its output moves the clean estimate by sigma times as much at every level (the identity behind the v of
    Salimans & Ho 2022).
    """
    alpha, sigma = levels(timestep)
    return sigma * noisy + alpha * network(noisy, timestep, condition)


def levels(timestep: Tensor) -> tuple[Tensor, Tensor]:
    """Share of signal and of noise, [B, 1, 1] each, at `timestep` [B]."""
    signal = _signal(timestep.device)[timestep][:, None, None]
    return signal.sqrt(), (1 - signal).sqrt()


@cache
def _signal(device: torch.device) -> Tensor:
    return ALPHAS_CUMPROD.to(device)


def diffusion_loss(network: nn.Module, block: Tensor, condition: Condition, generator: torch.Generator,
                   rows: slice = slice(None)) -> Tensor:
    """Mean squared error of the predicted noise for `rows` of `block` [B, K, 56] at random timesteps; the generator is one of its device."""
    size, device = len(block), block.device
    # Timesteps spread evenly over the batch: the loss is less noisy than with independent ones.
    spread = (torch.arange(size, device=device) + torch.rand(size, generator=generator, device=device)) / size
    timestep = (spread * TRAIN_TIMESTEPS).long().clamp(max=TRAIN_TIMESTEPS - 1)
    noise = torch.randn(block.shape, generator=generator, device=device)
    block, condition, timestep, noise = block[rows], condition[rows], timestep[rows], noise[rows]
    alpha, sigma = levels(timestep)
    return functional.mse_loss(predict_epsilon(network, alpha * block + sigma * noise, timestep, condition), noise)


def ddim_sample(network: nn.Module, noise: Tensor, condition: Condition, num_steps: int, limit: float) -> Tensor:
    """Denoise `noise` [B, K, 56] in `num_steps` steps. Every intermediate estimate is held inside +-`limit`."""
    scheduler = DDIMScheduler(**SCHEDULE, clip_sample=True, clip_sample_range=limit, set_alpha_to_one=True,
                              timestep_spacing="trailing")
    scheduler.set_timesteps(num_steps)
    state = noise
    for timestep in scheduler.timesteps.tolist():
        epsilon = predict_epsilon(network, state, torch.full((len(state),), timestep, device=state.device), condition)
        # With the estimate held back, epsilon must be that of the held-back estimate, or the two no longer add up.
        step = scheduler.step(epsilon, timestep, state, use_clipped_model_output=True)
        state = step.prev_sample
    # Not `state`: where num_steps does not divide 1000, the scheduler's last step ends at timestep 0, which has noise.
    return step.pred_original_sample
