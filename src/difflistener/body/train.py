"""Trains a body on a clip's listener: true motion in, the filmed pictures as target.

Held-out frames (the end of the clip) are never learned from; their score, beside two trivial baselines, and a strip
of truth, render and difference are written while it trains. Axes: B frames, N Gaussians, T frames of the clip.
"""

import dataclasses
import json
import shutil
import time
from pathlib import Path

import numpy as np
import torch
from scipy.spatial.transform import Rotation

from difflistener.body.baselines import mean_frame, nearest_frames, neutral_frame
from difflistener.body.config import BodyTraining
from difflistener.body.data import BodyData, check_clip, load_body_data
from difflistener.body.gaussians import neighbour_distance, seed_gaussians
from difflistener.body.linear import LinearBody
from difflistener.body.model import Body, BodyConfig
from difflistener.checkpoint import (
    claim_output,
    delayed_interrupt,
    load_training_state,
    optimizer_tensors,
    prepare_output,
    restore_optimizer,
    save_training_state,
)
from difflistener.clip import MASK_LABELS, Clip, replacing
from difflistener.device import resolve_device
from difflistener.errors import UserError
from difflistener.metrics.image import psnr, ssim
from difflistener.motion import EXPRESSION, ROTATION
from difflistener.progress import progress

NUM_BASES = 20
SSIM_WEIGHT = 0.2
OUTSIDE_WEIGHT = 0.02
BASIS_WEIGHT = 1e-3
MAX_TEST_FRAMES = 64
LEARNING_RATES = {
    "means": 3e-3, "log_scales": 5e-3, "quats": 2e-3, "opacity_logits": 3e-2, "colors": 3e-3, "rigid_logits": 1e-2,
    "deformation.mix.weight": 1e-3, "deformation.mlp": 1e-3,
    "deformation.position": 6e-5, "deformation.opacity": 1.3e-3, "deformation.color": 2.7e-4,
}
FADING = ("means",)
"""Learning rates that fall to a hundredth over the run."""


def resolve(config: BodyTraining, longest: int) -> BodyTraining:
    """`config` with every default filled in. `longest` is the longer side of the clip's pictures."""
    device = resolve_device(config.device)
    resolution = min(config.resolution or (longest if device == "cuda" else 256), longest)
    return dataclasses.replace(
        config, device=device, resolution=resolution,
        gaussians=config.gaussians or (12_000 if resolution <= 320 else 20_000),
        batch_size=config.batch_size or (8 if device == "cuda" else 3),
    )


def train_body(config: BodyTraining) -> dict:
    """Train a body and return its summary (scores and speed); the checkpoint stands in `config.out`."""
    _check(config)
    clip = Clip.open(config.clip)
    check_clip(clip)
    camera = clip.read_json("listener", "camera.json")
    config = resolve(config, max(camera["width"], camera["height"]))
    prepare_output(config.out, config.overwrite, config.resume, byproducts=("metrics.jsonl", "strip.png"))
    if config.resume:
        _check_same_run(clip, config)
    claim_output(config.out, "body.linear", _recipe(clip, config))
    data, labels = load_body_data(clip, config.resolution, config.out / "training_state" / "pictures")
    body = start_body(data, labels, clip.basis, config).to(config.device)
    optimizer, schedule = make_optimizer(body, config.steps)
    first, seconds = 0, 0.0
    if config.resume:
        first, seconds = _restore(body, optimizer, schedule, config.out)

    trainer = _Trainer(body, data, config)
    report = Report(config, data)
    with torch.no_grad():
        body(data.motion[:1].to(config.device))  # gsplat compiles at its first use: not a part of the training time.
    begun = time.monotonic()
    with delayed_interrupt() as asked:
        for step, task in progress(range(first, config.steps), "train body", total=config.steps, start=first):
            loss = trainer.step(step)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            schedule.step()
            if step % 20 == 0:
                task.set_note(f"loss {float(loss):.4f}")
            is_due = (step + 1) % config.save_every == 0 and step + 1 < config.steps
            if is_due or asked.is_set():
                _synchronize(config.device)
                seconds += time.monotonic() - begun
                if is_due:
                    report.add(body, step + 1, seconds)
                _save_state(body, optimizer, step + 1, seconds, _recipe(clip, config), config.out)
                begun = time.monotonic()
            if asked.is_set():
                raise KeyboardInterrupt
    _synchronize(config.device)
    seconds += time.monotonic() - begun
    summary = report.add(body, config.steps, seconds, last=True)
    summary["images_per_s"] = round(config.steps * config.batch_size / max(seconds, 1e-9), 1)
    summary["device"] = torch.cuda.get_device_name() if config.device == "cuda" else "cpu"
    body.save_pretrained(config.out, summary, _provenance(clip, config))
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
    num_codes = NUM_BASES - 6
    codes = np.eye(num_codes, data.motion.shape[1] - 6, dtype=np.float32)
    directions = data.basis.decode(codes) - data.basis.decode(np.zeros_like(codes[:1]))
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
        body.deformation.start_from(motion, seeds.bases)
        body.background.copy_(data.background)
        body.K.copy_(torch.from_numpy(data.K))
        body.reference_rotation.copy_(torch.from_numpy(rotation))
        shift, turn = body.torso_transform(data.torso[index : index + 1])
        body.reference_translation.copy_(data.translation[index])
        body.reference_translation.copy_(turn[0].T @ (data.translation[index] - shift[0]))
        body.set_follow(data.follow, motion, eyes)
    return body


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
            self.frames = torch.from_numpy(np.ascontiguousarray(data.frames)).to(config.device)
            self.outside = torch.from_numpy(np.ascontiguousarray(data.outside)).to(config.device)

    def step(self, step: int) -> torch.Tensor:
        """Loss of one batch, with gradients left in the body. The batch depends on the seed and the step alone."""
        order = np.random.default_rng((self.config.seed, step))
        index = order.choice(self.data.train, self.config.batch_size, replace=len(self.data.train) < self.config.batch_size)
        device = self.config.device
        if self.on_gpu:
            where = torch.from_numpy(index).to(device)
            truth, outside = self.frames[where].float() / 255, self.outside[where]
        else:
            truth, outside = self.data.picture(index), torch.from_numpy(self.data.outside[index])
        pictures, alpha = self.body(*self.data.inputs(index, device))
        deformation = self.body.deformation
        size = sum((p**2).sum(0).mean() for p in (deformation.position, deformation.opacity, deformation.color))
        loss = (
            (pictures - truth).abs().mean()
            + SSIM_WEIGHT * (1 - ssim(pictures, truth).mean())
            + OUTSIDE_WEIGHT * (alpha[..., 0] * outside).mean()
            + BASIS_WEIGHT * size
        )
        loss.backward()
        return loss.detach()


class Report:
    """Held-out scores, baselines and the picture strip."""

    def __init__(self, config: BodyTraining, data: BodyData):
        self.out, self.data, self.device = config.out, data, config.device
        spread = np.linspace(0, len(data.test) - 1, min(MAX_TEST_FRAMES, len(data.test))).round().astype(int)
        self.test = data.test[spread]

    def add(self, body: Body, step: int, seconds: float, last: bool = False) -> dict:
        """Score the held-out frames, append to metrics.jsonl, write strip.png; on the last call, the baselines too."""
        row = {"step": step, "train_seconds": round(seconds, 2)} | self._score(body)
        if last:
            row |= self._trivial()
        with (self.out / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")
        return row

    def _render(self, body: Body, index: np.ndarray) -> torch.Tensor:
        return body.render(*self.data.inputs(index, self.device))

    def _score(self, body: Body) -> dict:
        scores = []
        strip = []
        shown = set(np.linspace(0, len(self.test) - 1, 4).round().astype(int).tolist())
        for k, index in enumerate(self.test):
            truth = self.data.picture([index])
            render = self._render(body, np.array([index])).float() / 255
            scores.append((float(psnr(render, truth)), float(ssim(render, truth))))
            if k in shown:
                strip.append(torch.cat([truth[0], render[0], ((render - truth)[0].abs() * 4).clamp(0, 1)], 1))
        self._write_strip(torch.cat(strip, 0))
        mean = np.mean(scores, 0)
        return {"test_frames": len(self.test), "test_psnr": round(float(mean[0]), 3), "test_ssim": round(float(mean[1]), 4)}

    def _write_strip(self, picture: torch.Tensor) -> None:
        from PIL import Image

        with replacing(self.out / "strip.png") as temporary:
            Image.fromarray((picture * 255 + 0.5).byte().numpy()).save(temporary, format="PNG")

    def _trivial(self) -> dict:
        """Scores of the mean training frame and of the training frame whose motion is nearest."""
        mean = torch.from_numpy(mean_frame(self.data, self.data.train))[None].float() / 255
        nearest = nearest_frames(self.data.motion[self.test], self.data, self.data.train)
        rows = []
        for index, near in zip(self.test, nearest):
            truth = self.data.picture([index])
            rows.append((float(psnr(mean, truth)), float(psnr(self.data.picture([near]), truth))))
        scores = np.mean(rows, 0)
        return {"mean_frame_psnr": round(float(scores[0]), 3), "nearest_frame_psnr": round(float(scores[1]), 3)}


def _synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def _save_state(body: Body, optimizer, step: int, seconds: float, recipe: dict, out: Path) -> None:
    tensors = {f"body.{name}": tensor for name, tensor in body.state_dict().items()} | optimizer_tensors(optimizer)
    save_training_state(out, tensors, {"step": step, "seconds": seconds, "recipe": recipe})


def _check_same_run(clip: Clip, config: BodyTraining) -> None:
    before = load_training_state(config.out)[1]["recipe"]
    for name, value in _recipe(clip, config).items():
        if before[name] != value:
            raise UserError(f"The run in {config.out} was started with {name} = {before[name]}, not {value}.",
                            "Resume with the same clip and settings, or start over with --overwrite.")


def _restore(body: Body, optimizer, schedule, out: Path) -> tuple[int, float]:
    """Go back to the saved state; returns its step and the seconds trained so far."""
    tensors, state = load_training_state(out)
    body.load_state_dict({name.removeprefix("body."): tensor for name, tensor in tensors.items() if name.startswith("body.")})
    restore_optimizer(optimizer, tensors)
    schedule.last_epoch = state["step"]
    for group, rate, factor in zip(optimizer.param_groups, schedule.base_lrs, schedule.lr_lambdas):
        group["lr"] = rate * factor(state["step"])
    return state["step"], state["seconds"]


def _recipe(clip: Clip, config: BodyTraining) -> dict:
    """What a resumed run must share: the settings that decide the result, and the clip by its motion."""
    settings = {name: getattr(config, name) for name in ("resolution", "gaussians", "steps", "batch_size", "seed")}
    return settings | {"motion": clip.meta["roles"]["listener"]["motion.npy"]["sha256"]}


def _check(config: BodyTraining) -> None:
    least = {"resolution": 16, "gaussians": 100, "steps": 1, "batch_size": 1, "save_every": 1, "seed": 0}
    for name, value in least.items():
        given = getattr(config, name)
        if given is not None and given < value:
            raise UserError(f"--{name.replace('_', '-')} is {given}.", f"Give at least {value}.")


def _provenance(clip: Clip, config: BodyTraining) -> str:
    lines = [f"Learned from the listener of the clip `{clip.path.name}` ({clip.num_frames} frames).",
             f"Consent: {config.consent or 'not stated'}", "Licences of what touched it:"]
    lines += [f"- {entry}" for entry in clip.meta["licences"]] or ["- none recorded"]
    return "\n".join(lines)
