"""Denoising diffusion over blocks of motion: noise in training, DDIM steps at generation. States are normalised.

DDPM: Ho et al. 2020; DDIM: Song et al. 2021 (eta = 0). Knows nothing of clips or real units.
Axes: B windows, K frames of a block, D = 56 motion.
"""

import numpy as np
import torch
from diffusers import DDIMScheduler, DDPMScheduler
from torch import Tensor, nn
from torch.nn import functional

from difflistener.brain.networks import Condition

TRAIN_TIMESTEPS = 1000
SCHEDULE = {"num_train_timesteps": TRAIN_TIMESTEPS, "beta_start": 1e-4, "beta_end": 1e-2, "beta_schedule": "linear",
            "prediction_type": "epsilon"}
"""The last signal level is 0.08, not 0: there a wrong epsilon is enlarged 12-fold, not without bound."""

MAX_STEPS = 50


def keyed_generator(*key: int) -> torch.Generator:
    """A CPU generator that depends on all numbers of `key` and on nothing else."""
    return torch.Generator().manual_seed(int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> 1))


def diffusion_loss(network: nn.Module, block: Tensor, condition: Condition, generator: torch.Generator) -> Tensor:
    """Mean squared error of the predicted noise for `block` [B, K, 56] at random timesteps."""
    scheduler = DDPMScheduler(**SCHEDULE)
    # Timesteps spread evenly over the batch: the loss is less noisy than with independent ones.
    spread = (torch.arange(len(block)) + torch.rand(len(block), generator=generator)) / len(block)
    timestep = (spread * TRAIN_TIMESTEPS).long().clamp(max=TRAIN_TIMESTEPS - 1).to(block.device)
    noise = torch.randn(block.shape, generator=generator).to(block.device)
    noisy = scheduler.add_noise(block, noise, timestep)
    return functional.mse_loss(network(noisy, timestep, condition), noise)


def ddim_sample(network: nn.Module, noise: Tensor, condition: Condition, num_steps: int, limit: float) -> Tensor:
    """Denoise `noise` [B, K, 56] in `num_steps` steps. Every intermediate estimate is held inside +-`limit`."""
    scheduler = DDIMScheduler(**SCHEDULE, clip_sample=True, clip_sample_range=limit, set_alpha_to_one=True,
                              timestep_spacing="trailing")
    scheduler.set_timesteps(num_steps)
    state = noise
    for timestep in scheduler.timesteps.tolist():
        epsilon = network(state, torch.full((len(state),), timestep, device=state.device), condition)
        # With the estimate held back, epsilon must be that of the held-back estimate, or the two no longer add up.
        state = scheduler.step(epsilon, timestep, state, use_clipped_model_output=True).prev_sample
    return state
