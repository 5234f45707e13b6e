"""Trains the tri-plane body on a clip's listener: the stages of `triplane_stages`, one after the other, saved and resumed.

Knows nothing of losses. Axes: T frames of the clip.
"""

import dataclasses
import shutil

import numpy as np
import torch

from difflistener.body.config import BodyTraining
from difflistener.body.data import BodyData
from difflistener.body.film import Film
from difflistener.body.gaussians import GROUPS
from difflistener.body.train import provenance, recipe_of, run_steps, test_sample
from difflistener.body.train_linear import NUM_BASES, start_body
from difflistener.body.triplane import TriplaneBody, TriplaneConfig
from difflistener.body.triplane_stages import STAGES, Perceptual, Run, Stage, score_over_film
from difflistener.checkpoint import load_training_state, optimizer_tensors, save_training_state
from difflistener.clip import Clip
from difflistener.progress import Task

START_FACE, START_MOUTH = 2_000, 10_000
"""How many Gaussians face and mouth start with."""


def train_triplane(config: BodyTraining, clip: Clip, data: BodyData, labels: np.ndarray,
                   perceptual: Perceptual | None = None) -> dict:
    """Train the body and return its summary; the checkpoint stands in `config.out`, which is claimed already.

    Args:
        config: resolved. `gaussians` decides the number on the torso, as in a linear body of so many; `batch_size` is
            that of the torso stage; `schedule` is the length of the stages, 1 for the published one; `steps` is not read.
        labels: [T, H, W] uint8, see MASK_LABELS.
        perceptual: the loss of the last steps of each stage; None leaves it out.
    """
    timetable = [(kind, number) for kind in STAGES for number in range(kind.length(config.schedule))]
    first, seconds, tensors = 0, 0.0, {}
    if config.resume:
        tensors, state = load_training_state(config.out)
        first, seconds = state["step"], state["seconds"]
        body = TriplaneBody(TriplaneConfig(**state["body"]))
        body.load_state_dict({name.removeprefix("body."): tensor for name, tensor in tensors.items() if name.startswith("body.")})
    else:
        body = start_triplane(data, labels, clip.basis, config)
    body.to(config.device)
    film = Film(data, labels, body, clip.read_json("listener", "camera.json"), config.device)
    run = Run(body, data, film, config, perceptual)
    stage = None

    def step(place: int, task: Task) -> None:
        nonlocal stage
        kind, number = timetable[place]
        if type(stage) is not kind:
            stage = kind(run)
            if number:
                stage.restore(tensors, number)
        loss = stage.step(number)
        if place % 100 == 0:
            task.set_note(f"{stage.name}, {len(body.mouth)} + {len(body.face)} Gaussians, loss {float(loss):.4f}")

    def save(done: int, seconds: float) -> None:
        _save(run, stage, done, seconds, recipe_of(clip, config))

    images = sum(kind.images(config) for kind, _ in timetable)
    summary = run_steps(config, data, len(timetable), images, first, seconds, step, lambda: body, save)
    _recount(body)
    summary |= score_over_film(run, test_sample(data))
    body.save_pretrained(config.out, summary, provenance(clip, config))
    shutil.rmtree(config.out / "training_state")
    return summary


def start_triplane(data: BodyData, labels: np.ndarray, basis: str, config: BodyTraining) -> TriplaneBody:
    """A body before its first step: the torso of a linear body, and two clouds of dark dots for face and mouth."""
    linear = start_body(data, labels, basis, config)
    torso = (linear.group == GROUPS["torso"]).nonzero()[:, 0]
    height, width = data.size
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)  # Layers draw their first weights from the global generator.
        body = TriplaneBody(TriplaneConfig(basis, width, height, START_FACE + START_MOUTH + len(torso), NUM_BASES,
                                           num_face=START_FACE, num_mouth=START_MOUTH))
    of_torso = linear.state_dict()
    for name in ("means", "log_scales", "quats", "opacity_logits", "colors", "rigid_logits", "group"):
        of_torso[name] = of_torso[name][torso]
    for name in ("deformation.position", "deformation.opacity", "deformation.color"):
        of_torso[name] = of_torso[name][:, torso]
    body.torso.load_state_dict(of_torso | {"background": linear.background[:0]})
    for name, buffer in body.named_buffers(recurse=False):
        buffer.copy_(getattr(linear, name))
    train = torch.from_numpy(data.train)
    body.motion_range.fit(data.motion[train])
    body.eye_range.fit(data.eyes[train])
    generator = torch.Generator().manual_seed(config.seed)
    for branch in (body.mouth, body.face):
        branch.scatter(generator)
    return body


def _recount(body: TriplaneBody) -> None:
    """Write the numbers of Gaussians into the body's config."""
    counts = {"num_face": len(body.face), "num_mouth": len(body.mouth)}
    body.config = dataclasses.replace(body.config, **counts, num_gaussians=sum(counts.values()) + len(body.torso.means))


def _save(run: Run, stage: Stage, step: int, seconds: float, recipe: dict) -> None:
    _recount(run.body)
    tensors = {f"body.{name}": tensor for name, tensor in run.body.state_dict().items()} | optimizer_tensors(stage.optimizer)
    tensors |= {f"memory.{name}": tensor for name, tensor in stage.memory().items()}
    state = {"step": step, "seconds": seconds, "recipe": recipe, "body": dataclasses.asdict(run.body.config)}
    save_training_state(run.config.out, tensors, state)
