"""Trains a body on a clip's listener: true motion in, the filmed pictures as target. What every kind of body shares.

Held-out frames are never learned from; their score, beside two trivial baselines, and a strip of truth, render and
difference are written while it trains. Axes: T frames of the clip.
"""

import dataclasses
import json
import time
import warnings
from collections.abc import Callable

import numpy as np
import torch

from difflistener.body.baselines import mean_frame, nearest_frames
from difflistener.body.config import BodyTraining
from difflistener.body.data import BodyData, check_clip, load_body_data
from difflistener.body.model import Body
from difflistener.checkpoint import claim_output, delayed_interrupt, load_training_state, prepare_output
from difflistener.clip import Clip, replacing
from difflistener.device import resolve_device
from difflistener.errors import UserError
from difflistener.metrics import lpips
from difflistener.metrics.image import psnr, ssim
from difflistener.progress import Task, progress

MAX_TEST_FRAMES = 64


def resolve(config: BodyTraining, longest: int) -> BodyTraining:
    """`config` with every default filled in. `longest` is the longer side of the clip's pictures."""
    device = resolve_device(config.device)
    resolution = min(config.resolution or (longest if device == "cuda" else 256), longest)
    return dataclasses.replace(
        config, device=device, resolution=resolution,
        gaussians=config.gaussians or (12_000 if resolution <= 320 else 20_000),
        batch_size=config.batch_size or (12 if device == "cuda" else 3),
        save_every=config.save_every or (300 if config.deformation == "linear" else 10_000),
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
    claim_output(config.out, f"body.{config.deformation}", recipe_of(clip, config))
    data, labels = load_body_data(clip, config.resolution, config.out / "training_state" / "pictures")
    if config.deformation == "triplane":
        from difflistener.body.train_triplane import train_triplane

        return train_triplane(config, clip, data, labels, _perceptual(config.device))
    from difflistener.body.train_linear import train_linear

    return train_linear(config, clip, data, labels)


def _perceptual(device: str) -> lpips.Lpips | None:
    if lpips.is_present("alex"):
        return lpips.Lpips.published("alex", device, fetch=False)
    warnings.warn(f"The published schedule ends with a perceptual loss; it is left out. {lpips.how_to_get('alex')}", stacklevel=2)
    return None


def test_sample(data: BodyData) -> np.ndarray:
    """The held-out frames that are scored: at most `MAX_TEST_FRAMES`, spread evenly."""
    return data.test[np.linspace(0, len(data.test) - 1, min(MAX_TEST_FRAMES, len(data.test))).round().astype(int)]


class Report:
    """Held-out scores, baselines and the picture strip."""

    def __init__(self, config: BodyTraining, data: BodyData):
        self.out, self.data, self.device = config.out, data, config.device
        self.test = test_sample(data)

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


def run_steps(
    config: BodyTraining, data: BodyData, count: int, images: int, first: int, seconds: float,
    step: Callable[[int, Task], None], shown: Callable[[], Body], save: Callable[[int, float], None],
) -> dict:
    """Do steps `first` to `count`, scoring and saving on the way; returns the summary of the run.

    Args:
        images: pictures that all steps together learn from.
        seconds: trained before `first`.
        step: does one; may set the note of the progress line.
        shown: the body as it would be used now.
        save: keeps the state after so many steps and seconds.
    """
    report = Report(config, data)
    with torch.no_grad():
        shown()(data.motion[:1].to(config.device))  # gsplat compiles at its first use: not a part of the training time.
    begun = time.monotonic()
    with delayed_interrupt() as asked:
        for number, task in progress(range(first, count), "train body", total=count, start=first):
            step(number, task)
            is_due = (number + 1) % config.save_every == 0 and number + 1 < count
            if is_due or asked.is_set():
                synchronize(config.device)
                seconds += time.monotonic() - begun
                if is_due:
                    report.add(shown(), number + 1, seconds)
                save(number + 1, seconds)
                begun = time.monotonic()
            if asked.is_set():
                raise KeyboardInterrupt
    synchronize(config.device)
    seconds += time.monotonic() - begun
    summary = report.add(shown(), count, seconds, last=True)
    return summary | {"images_per_s": round(images / max(seconds, 1e-9), 1),
                      "device": torch.cuda.get_device_name() if config.device == "cuda" else "cpu"}


def synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def _check_same_run(clip: Clip, config: BodyTraining) -> None:
    before = load_training_state(config.out)[1]["recipe"]
    for name, value in recipe_of(clip, config).items():
        if before[name] != value:
            raise UserError(f"The run in {config.out} was started with {name} = {before[name]}, not {value}.",
                            "Resume with the same clip and settings, or start over with --overwrite.")


def recipe_of(clip: Clip, config: BodyTraining) -> dict:
    """What a resumed run must share: the settings that decide the result, and the clip by its motion."""
    settings = {name: getattr(config, name) for name in ("deformation", "schedule", "resolution", "gaussians", "steps", "batch_size", "seed")}
    return settings | {"motion": clip.meta["roles"]["listener"]["motion.npy"]["sha256"]}


def _check(config: BodyTraining) -> None:
    least = {"resolution": 16, "gaussians": 100, "steps": 1, "batch_size": 1, "save_every": 1, "seed": 0}
    for name, value in least.items():
        given = getattr(config, name)
        if given is not None and given < value:
            raise UserError(f"--{name.replace('_', '-')} is {given}.", f"Give at least {value}.")
    if not 0 < config.schedule <= 10:
        raise UserError(f"--schedule is {config.schedule:g}.", "Give a share of the published one, above 0; 1 is all of it.")


def provenance(clip: Clip, config: BodyTraining) -> str:
    lines = [f"Learned from the listener of the clip `{clip.path.name}` ({clip.num_frames} frames).",
             f"Consent: {config.consent or 'not stated'}", "Licences of what touched it:"]
    lines += [f"- {entry}" for entry in clip.meta["licences"]] or ["- none recorded"]
    return "\n".join(lines)
