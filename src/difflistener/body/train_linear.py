"""Trains the linear body. Axes: B frames, N Gaussians, T frames of the clip."""

import shutil
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from scipy.spatial import cKDTree
from scipy.spatial.transform import Rotation
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from difflistener.basis import NUM_FACE
from difflistener.body.baselines import motion_distance, neutral_frame
from difflistener.body.config import BodyTraining
from difflistener.body.data import BodyData
from difflistener.body.gaussians import neighbour_distance, seed_gaussians
from difflistener.body.linear import LinearBody
from difflistener.body.model import Body, BodyConfig
from difflistener.body.train import provenance, recipe_of, run_steps
from difflistener.checkpoint import (
    load_training_state,
    optimizer_tensors,
    restore_optimizer,
    restore_schedule,
    save_training_state,
)
from difflistener.clip import MASK_LABELS, Clip
from difflistener.metrics.image import ssim
from difflistener.motion import EXPRESSION, ROTATION
from difflistener.progress import Task

NUM_BASES = 20
SSIM_WEIGHT = 0.2
OUTSIDE_WEIGHT = 0.1
BASIS_WEIGHT = 1e-3
COLOR_WEIGHT = 0.02
"""Of the squared difference to the colours of the start: what no frame shows keeps a colour that it could have."""
SMOOTH_WEIGHTS = {"position": 300.0, "color": 30.0, "opacity": 1.2}
"""Of the squared difference between the bases of neighbouring Gaussians."""
NEIGHBOURS = 8
AVERAGE_FROM = 0.4
"""The weights shown are a running average that begins at this share of the steps."""
AVERAGE_DECAY = 0.99
DENSITY_NEIGHBOUR = 10
DENSITY_FRAMES = 4000
"""A frame is drawn in proportion to its distance to the 10th nearest of at most 4000 others: rare faces count more."""
LEARNING_RATES = {
    "means": 3e-3, "log_scales": 5e-3, "quats": 2e-3, "opacity_logits": 3e-2, "colors": 3e-3, "rigid_logits": 1e-2,
    "deformation.mix.weight": 1e-3, "deformation.position": 1.2e-4, "deformation.opacity": 1.3e-3, "deformation.color": 2.7e-4,
}
FADING = ("means",)
"""Learning rates that fall to a hundredth over the run."""


def train_linear(config: BodyTraining, clip: Clip, data: BodyData, labels: np.ndarray) -> dict:
    """Train the body and return its summary; the checkpoint stands in `config.out`, which is claimed already.

    Args:
        config: resolved.
        labels: [T, H, W] uint8, see MASK_LABELS.
    """
    body = start_body(data, labels, clip.basis, config).to(config.device)
    optimizer, schedule = make_optimizer(body, config.steps)
    average = AveragedModel(body, multi_avg_fn=get_ema_multi_avg_fn(AVERAGE_DECAY))
    trainer = _Trainer(body, data, config)  # Before a restored body: neighbours are those of the seeds.
    first, seconds = 0, 0.0
    if config.resume:
        first, seconds = _restore(body, optimizer, schedule, average, config.out)

    def step(number: int, task: Task) -> None:
        loss = trainer.step(number)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        schedule.step()
        if number >= int(AVERAGE_FROM * config.steps):
            average.update_parameters(body)
        if number % 20 == 0:
            task.set_note(f"loss {float(loss):.4f}")

    def shown() -> Body:
        return average.module if average.n_averaged else body

    def save(number: int, seconds: float) -> None:
        tensors = {f"body.{name}": tensor for name, tensor in body.state_dict().items()} | optimizer_tensors(optimizer)
        tensors |= {f"average.{name}": tensor for name, tensor in average.state_dict().items()}
        save_training_state(config.out, tensors, {"step": number, "seconds": seconds, "recipe": recipe_of(clip, config)})

    images = config.steps * config.batch_size
    summary = run_steps(config, data, config.steps, images, first, seconds, step, shown, save)
    shown().save_pretrained(config.out, summary, provenance(clip, config))
    shutil.rmtree(config.out / "training_state")
    return summary


def start_body(data: BodyData, labels: np.ndarray, basis: str, config: BodyTraining) -> LinearBody:
    """A body before its first step: Gaussians seeded from the template and the straightest frame."""
    height, width = data.size
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)  # Layers draw their first weights from the global generator.
        body = LinearBody(BodyConfig(basis, width, height, config.gaussians, NUM_BASES))
    train = torch.from_numpy(data.train)
    motion, eyes = data.motion[train], data.eyes[train]
    index = neutral_frame(data, data.train)
    rotation = data.motion[index, ROTATION].numpy()
    directions = data.basis.directions[: NUM_BASES - 6]
    reference = data.reference(Rotation.from_rotvec(rotation).as_matrix(), index, np.asarray(labels[index]))
    # Offsets are zero at the mean motion, so the seeds stand where the face is then.
    usual = data.template + data.basis.decode(motion[:, EXPRESSION].mean(0, keepdim=True).numpy())[0]
    generator = np.random.default_rng(config.seed)
    seeds = seed_gaussians(config.gaussians, usual, directions, reference, MASK_LABELS, generator)
    spacing = torch.from_numpy(neighbour_distance(seeds.means.numpy())).float().clamp(1e-3, 0.3)
    with torch.no_grad():
        body.means.copy_(seeds.means)
        body.colors.copy_(seeds.colors)
        body.rigid_logits.copy_(seeds.rigid)
        body.group.copy_(seeds.group)
        body.opacity_logits.fill_(0.5)
        body.log_scales.copy_((0.8 * spacing).log()[:, None].expand(-1, 3))
        body.deformation.start_from(motion, seeds.bases, _gain(data, motion))
        body.background.copy_(data.background)
        body.K.copy_(torch.from_numpy(data.K))
        body.reference_rotation.copy_(torch.from_numpy(rotation))
        shift, turn = body.torso_transform(data.torso[index : index + 1])
        body.reference_translation.copy_(data.translation[index])
        body.reference_translation.copy_(turn[0].T @ (data.translation[index] - shift[0]))
        body.set_follow(data.follow, motion, eyes)
    return body


def _gain(data: BodyData, motion: torch.Tensor) -> torch.Tensor:
    """How much of each motion number [56] the mixtures see: codes that move little are mostly tracking noise."""
    size = torch.from_numpy(np.linalg.norm(data.basis.directions, axis=(1, 2))) * motion.std(0)[:NUM_FACE]
    gain = torch.ones(motion.shape[1])
    gain[:NUM_FACE] = (size / size.max()).clamp_min(1e-4).sqrt()
    return gain


def make_optimizer(body: Body, steps: int):
    groups = []
    for prefix, rate in LEARNING_RATES.items():
        tensors = [p for name, p in body.named_parameters() if name == prefix or name.startswith(prefix + ".")]
        assert tensors, prefix
        groups.append({"params": tensors, "lr": rate, "name": prefix})
    optimizer = torch.optim.Adam(groups, betas=(0.9, 0.99), eps=1e-15, fused=True)
    fade = [(lambda step: 0.01 ** (step / steps)) if group["name"] in FADING else (lambda step: 1.0) for group in groups]
    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, fade)


class _Trainer:
    def __init__(self, body: Body, data: BodyData, config: BodyTraining):
        self.body, self.data, self.config = body, data, config
        self.on_gpu = config.device == "cuda"
        if self.on_gpu:
            self.frames = data.frames.to(config.device)
            self.outside = data.outside.to(config.device)
        means = body.means.detach().cpu().numpy()
        self.neighbours = torch.from_numpy(cKDTree(means).query(means, NEIGHBOURS + 1)[1][:, 1:].T.copy()).to(config.device)
        self.chance = _rarity(data, config.seed)
        self.seeded = body.colors.detach().clone()

    def step(self, step: int) -> torch.Tensor:
        """Loss of one batch, with gradients left in the body. The batch depends on the seed and the step alone."""
        order = np.random.default_rng((self.config.seed, step))
        index = order.choice(self.data.train, self.config.batch_size, len(self.data.train) < self.config.batch_size, self.chance)
        device = self.config.device
        if self.on_gpu:
            where = torch.from_numpy(index).to(device)
            truth, outside = self.frames[where].float() / 255, self.outside[where]
        else:
            truth, outside = self.data.picture(index), torch.from_numpy(self.data.outside[index])
        pictures, alpha = self.body(*self.data.inputs(index, device))
        deformation = self.body.deformation
        # One of the neighbours a step, another each time: on a CPU all of them would cost as much as the pictures.
        neighbour = self.neighbours[order.integers(NEIGHBOURS)]
        size = sum((p**2).sum(0).mean() for p in (deformation.position, deformation.opacity, deformation.color))
        loss = (
            (pictures - truth).abs().mean()
            + SSIM_WEIGHT * (1 - ssim(pictures, truth).mean())
            + OUTSIDE_WEIGHT * (alpha[..., 0] * outside).mean()
            + BASIS_WEIGHT * size
            + COLOR_WEIGHT * ((self.body.colors - self.seeded) ** 2).mean()
            + sum(weight * _roughness(getattr(deformation, name), neighbour) for name, weight in SMOOTH_WEIGHTS.items())
        )
        loss.backward()
        return loss.detach()


def _roughness(basis: torch.Tensor, neighbour: torch.Tensor) -> torch.Tensor:
    """Mean over Gaussians of the squared difference of a basis [K, N, ...] to that of one neighbour [N]."""
    rows = basis.transpose(0, 1).flatten(1)
    return ((rows - F.embedding(neighbour, rows)) ** 2).sum(1).mean() / 3


def _rarity(data: BodyData, seed: int) -> np.ndarray:
    """Chance of each training frame: the distance to its neighbours in motion, summing to one."""
    motion = data.motion[torch.from_numpy(data.train)]
    generator = np.random.default_rng(seed)
    others = motion[generator.permutation(len(motion))[:DENSITY_FRAMES]]
    spread = motion.std(0)
    rows = [motion_distance(part, others, spread).sqrt().sort(1).values[:, min(DENSITY_NEIGHBOUR, len(others) - 1)]
            for part in motion.split(1024)]
    chance = torch.cat(rows).double() + 1e-9
    return (chance / chance.sum()).numpy()


def _restore(body: Body, optimizer, schedule, average: AveragedModel, out: Path) -> tuple[int, float]:
    """Go back to the saved state; returns its step and the seconds trained so far."""
    tensors, state = load_training_state(out)
    for module, prefix in ((body, "body."), (average, "average.")):
        module.load_state_dict({name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)})
    restore_optimizer(optimizer, tensors)
    restore_schedule(schedule, state["step"])
    return state["step"], state["seconds"]
