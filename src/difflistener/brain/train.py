"""Trains a brain on clips. Files, progress and clocks are here; the arithmetic is in `model` and `diffusion`.

Batches, noise and dropout are pure functions of (seed, step): a resumed run continues to the same loss bit for bit
on the CPU, and there is no random state to save.
"""

import dataclasses
import json
import math
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from difflistener.basis import LandmarkBasis
from difflistener.brain.config import BrainConfig, BrainTraining
from difflistener.brain.diffusion import keyed_generator
from difflistener.brain.distil import Distillation
from difflistener.brain.dit import DiT
from difflistener.brain.gradients import Gradients
from difflistener.brain.lessons import LESSONS, any_of
from difflistener.brain.model import Brain
from difflistener.brain.overfit import overfit_report
from difflistener.brain.parallel import Workers
from difflistener.checkpoint import (
    claim_output, delayed_interrupt, load_training_state, optimizer_tensors, prepare_output, restore_optimizer,
    save_training_state,
)
from difflistener.clip import Clip, replacing
from difflistener.dataset import Frames, Pair, holdout_spans, load_pairs, statistics
from difflistener.device import resolve_device
from difflistener.errors import UserError
from difflistener.progress import progress

MAY_CHANGE = ("steps", "save_every", "device")
"""Settings that a resumed run may give anew."""
WEIGHT_DECAY, MUON_WEIGHT_DECAY = 0.01, 0.1
BYPRODUCTS = ("metrics.jsonl", "overfit.png", "overfit.json")


def train_brain(config: BrainTraining) -> dict[str, Any]:
    """Train on `config.clips`, write the checkpoint to `config.out` and return its training summary.

    Ctrl-C saves the state and raises KeyboardInterrupt; `resume` then continues to the loss of an unbroken run.

    Raises:
        UserError: a clip that lacks something, an output folder in use, settings that do not fit.
    """
    config = config.complete()
    _check(config)
    workers = Workers(resolve_device(config.device))
    if config.batch_size % workers.count:
        raise UserError(f"A batch of {config.batch_size} cannot be shared evenly by {workers.count} processes.",
                        f"Give a --batch-size that is a multiple of {workers.count}.")
    try:
        return _train(config, workers)
    finally:
        workers.leave()


def _train(config: BrainTraining, workers: Workers) -> dict[str, Any]:
    teacher = Brain.from_pretrained(config.distil, workers.device) if config.distil else None
    if teacher:
        config = _as_taught(config, teacher)
    pairs = load_pairs(list(config.clips), config.audio)
    if teacher:
        _check_taught(pairs, config, teacher)
    if config.overfit:
        pairs = [pairs[0].longest_valid_run()]
    trainer = Trainer(pairs, config, workers, teacher)
    if workers.is_first:
        prepare_output(config.out, config.overwrite, config.resume, BYPRODUCTS)
    workers.wait()
    if config.resume:
        trainer.restore()
    if not workers.is_first:
        with delayed_interrupt() as asked:
            trainer.run(asked)
        return {}
    claim_output(config.out, f"brain.{config.network}", {"clips": [str(clip) for clip in config.clips], **_recipe(config)})
    with delayed_interrupt() as asked:
        stopped = trainer.run(asked)
        summary = trainer.save()
    if stopped:
        raise KeyboardInterrupt
    if config.overfit:
        summary["overfit"] = overfit_report(trainer.brain(), pairs[0], config.out)
        trainer.brain().save_pretrained(config.out, summary)
    return summary


class Trainer:
    """A brain, its average, its optimiser and the step they stand at."""

    def __init__(self, pairs: list[Pair], config: BrainTraining, workers: Workers, teacher: Brain | None = None):
        self.config, self.out, self.pairs, self.workers = config, config.out, pairs, workers
        self.device = workers.device
        holdout = 0.0 if config.overfit else config.holdout
        spans, held = holdout_spans(pairs, holdout)
        lessons = partial(Distillation, teacher=teacher) if teacher else LESSONS[config.network]
        frames = Frames(pairs, self.device)
        self.lessons = lessons(frames, config, spans)
        self.validation = _held_out(lessons, frames, config, held) if holdout else None
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)  # Layers draw their first weights from the global generator.
            self.raw = Brain(brain_config(config, pairs), _landmark_basis(pairs[0])).to(self.device)
        for name, values in statistics(pairs, spans).items():
            getattr(self.raw, name).set(values)
        self.lessons.prepare(self.raw)
        self.network = workers.share(self.raw.network)
        loss = partial(self.lessons.loss, self.raw, self.network, augment=True, rows=workers.rows)
        self.gradients = Gradients(loss, self.raw.network.parameters(), self.device == "cuda" and workers.count == 1)
        self.average = AveragedModel(self.raw.network, multi_avg_fn=_average(config.ema))
        self.optimizers = _optimizers(self.raw.network, config.learning_rate)
        self.step, self.seconds = 0, 0.0
        self.best_step, self.best_loss = 0, float("inf")
        self.best: dict[str, Tensor] = {}  # Averaged weights with the least validation loss, none without validation.
        self.total = torch.zeros((), device=self.device)  # Sum of losses since the last line of metrics.jsonl.

    def run(self, asked: threading.Event) -> bool:
        """Train to the last step, or until `asked` to stop in any process, saving on the way. Whether it was stopped."""
        config, workers = self.config, self.workers
        left = range(self.step, config.steps)
        begun = time.monotonic()
        shown = progress(left, f"brain ({config.network})", config.steps, self.step)
        for step, task in shown if workers.is_first else ((step, None) for step in left):
            self.total += self._update(step)
            self.step = step + 1
            now = time.monotonic()
            self.seconds, begun = self.seconds + now - begun, now
            is_logged = self.step % 100 == 0 or self.step == config.steps
            if is_logged:
                total = self._finite_total()
                self.total.zero_()
            if workers.is_first and is_logged:
                row = {"step": self.step, "loss": total / ((self.step - 1) % 100 + 1), "seconds": round(self.seconds, 1)}
                if self.validation:
                    row["validation_loss"] = self._validate()
                self._log(row)
                task.set_note(" ".join(f"{name} {row[name]:.4f}" for name in ("loss", "validation_loss") if name in row))
            stops = workers.any(asked.is_set())
            saves = self.step % config.save_every == 0 and self.step < config.steps
            if saves or stops:
                self.total.fill_(self._finite_total())
            if saves and workers.is_first:
                self.save()
                begun = time.monotonic()
            if stops:
                return True
        return False

    def _update(self, step: int) -> Tensor:
        """The loss [] of this process's share. It is not looked at here: a GPU would stand still meanwhile."""
        config, raw = self.config, self.raw
        which = any_of(len(self.lessons), config.batch_size, self.device, config.seed, step)
        loss = self.gradients(which, config.seed, step)
        torch.nn.utils.clip_grad_norm_(raw.network.parameters(), 1.0)
        for optimizer in self.optimizers.values():
            for group in optimizer.param_groups:
                group["lr"] = config.learning_rate * learning_rate_factor(step, config.steps)
            optimizer.step()
        self.average.update_parameters(raw.network)
        return loss

    def _finite_total(self) -> float:
        """The sum of losses, mean over processes."""
        total = self.workers.mean(self.total)
        if not math.isfinite(total):
            raise UserError(f"The loss became {total} by step {self.step}.",
                            "Go on from the last checkpoint with --resume, or start over with a lower --learning-rate.")
        return total

    def _validate(self) -> float:
        """Validation loss of the averaged weights, which are kept if it is the least so far: a small clip is soon
        learned by heart, and from then on every step makes the brain worse for other speech."""
        loss = self.validation_loss(self.averaged())
        if loss < self.best_loss:
            self.best_step, self.best_loss = self.step, loss
            self.best = {name: value.clone() for name, value in self.average.module.state_dict().items()}
        return loss

    @torch.no_grad()
    def validation_loss(self, brain: Brain) -> float:
        """Loss on held-out windows, always the same ones with the same noise."""
        which = torch.randperm(len(self.validation), generator=keyed_generator(self.config.seed))[: self.validation.sample]
        generator = keyed_generator(self.config.seed, device=self.device)
        return self.validation.loss(brain, brain.network, which.to(self.device), generator, augment=False).item()

    def averaged(self) -> Brain:
        """The brain with averaged weights as they are now."""
        return self._with(self.average.module.state_dict())

    def brain(self) -> Brain:
        """The brain to use: averaged weights, from the step that did best on held-out windows if there are any."""
        return self._with(self.best or self.average.module.state_dict())

    def _with(self, weights: dict[str, Tensor]) -> Brain:
        brain = Brain(self.raw.config, self.raw.landmark_basis).to(self.device).eval()
        brain.load_state_dict(self.raw.state_dict() | {f"network.{name}": value for name, value in weights.items()})
        return brain

    def save(self) -> dict[str, Any]:
        """Write checkpoint and training state; returns the training summary."""
        summary = {
            "clips": [{"path": str(pair.path), "frames": len(pair), "licences": _licences(pair)} for pair in self.pairs],
            "steps": self.step, "seconds": round(self.seconds, 1), "windows": len(self.lessons),
            "recipe": _recipe(self.config),
        }
        if self.best:
            summary |= {"best_step": self.best_step, "validation_loss": round(self.best_loss, 4)}
        self.brain().save_pretrained(self.out, summary)
        tensors = {f"raw.{name}": value for name, value in self.raw.state_dict().items()}
        tensors |= {f"average.{name}": value for name, value in self.average.state_dict().items()}
        tensors |= {f"best.{name}": value for name, value in self.best.items()}
        for name, optimizer in self.optimizers.items():
            tensors |= optimizer_tensors(optimizer, name)
        save_training_state(self.out, tensors,
                            {"step": self.step, "seconds": self.seconds, "total": self.total.item(),
                             "best": [self.best_step, self.best_loss], "recipe": _recipe(self.config),
                             "clips": _fingerprint(self.pairs)})
        return summary

    def restore(self) -> None:
        """Go back to the saved training state, if it is of the same settings and clips."""
        out, config = self.out, self.config
        tensors, state = load_training_state(out)
        for name, value in _recipe(config).items():
            before = state["recipe"].get(name)
            if name not in MAY_CHANGE and before != value:
                raise UserError(f"The run in {out} was started with {name} = {before}, not {value}.",
                                "Resume with the same settings, or start over with --overwrite.")
        if state["clips"] != _fingerprint(self.pairs):
            raise UserError(f"The run in {out} was started on other clips.",
                            "Resume with the same clips, or start over with --overwrite.")
        is_reported = not config.overfit or (out / "overfit.json").is_file()
        if state["step"] >= config.steps and is_reported:
            raise UserError(f"The run in {out} has done all of its {state['step']} steps.",
                            "Give --steps with a larger number to train on.")

        def part(prefix):
            return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}

        self.raw.load_state_dict(part("raw."))
        self.average.load_state_dict(part("average."))
        for name, optimizer in self.optimizers.items():
            restore_optimizer(optimizer, tensors, name)
        self.best = {name: value.to(self.device) for name, value in part("best.").items()}
        self.step, self.seconds = state["step"], state["seconds"]
        self.total.fill_(state["total"])
        self.best_step, self.best_loss = state["best"]
        # A killed run may have logged steps that it did not save: they are done again.
        log = out / "metrics.jsonl"
        rows = [line for line in log.read_text().splitlines() if json.loads(line)["step"] <= self.step] if log.is_file() else []
        with replacing(log) as temporary:
            temporary.write_text("".join(f"{line}\n" for line in rows))

    def _log(self, row: dict[str, Any]) -> None:
        with (self.out / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")


def brain_config(config: BrainTraining, pairs: list[Pair]) -> BrainConfig:
    """What the trained brain will be."""
    return BrainConfig(network=config.network, basis=pairs[0].basis, audio=config.audio, audio_dim=pairs[0].audio.shape[1],
                       uses_face=config.face and any(pair.expression is not None for pair in pairs),
                       audio_settings=pairs[0].audio_settings, block=config.block, history=config.history,
                       context=config.context, width=config.width, layers=config.layers, heads=config.heads,
                       look_ahead=config.look_ahead, prediction=config.prediction, audio_guidance=config.audio_guidance,
                       face_guidance=config.face_guidance,
                       **({"num_steps": config.distil_steps, "distilled": True} if config.distil else {}))


def _as_taught(config: BrainTraining, teacher: Brain) -> BrainTraining:
    """`config` with the shape and the senses of its teacher."""
    own = teacher.config
    if own.network != "dit" or own.distilled:
        raise UserError(f"The brain {config.distil} is {'itself distilled' if own.distilled else 'of network ' + own.network}.",
                        "Distil a brain that was trained with --network dit.")
    shared = ("audio", "block", "history", "context", "width", "layers", "heads", "look_ahead", "prediction")
    return dataclasses.replace(config, network="dit", face=own.uses_face, audio_guidance=1.0, face_guidance=1.0,
                               **{name: getattr(own, name) for name in shared})


def _check_taught(pairs: list[Pair], config: BrainTraining, teacher: Brain) -> None:
    own, remedy = teacher.config, "Distil it on clips like those that it was trained on."
    if own.basis != pairs[0].basis:
        raise UserError(f"The brain {config.distil} speaks basis {own.basis}, the clips basis {pairs[0].basis}.", remedy)
    if own.audio_settings != pairs[0].audio_settings:
        raise UserError(f"The brain {config.distil} hears {own.audio} with other settings than the clips have.", remedy)
    if own.uses_face and all(pair.expression is None for pair in pairs):
        raise UserError(f"The brain {config.distil} sees the speaker's face, and no clip has one.", remedy)


def learning_rate_factor(step: int, steps: int) -> float:
    """Rises over the first hundred steps (or twentieth of the run), falls linearly to zero at the end."""
    warm = min(100, max(steps // 20, 1))
    return min((step + 1) / warm, (steps - step) / max(steps - warm, 1))


def _optimizers(network: nn.Module, learning_rate: float) -> dict[str, torch.optim.Optimizer]:
    """AdamW, and Muon (Jordan et al. 2024) for what the network calls `hidden`: a conversation is nearly all noise, and Muon
    also follows the few directions in which something is reacted to."""
    hidden = network.hidden() if isinstance(network, DiT) else []
    others = [parameter for parameter in network.parameters() if all(parameter is not one for one in hidden)]
    optimizers = {"optimizer": torch.optim.AdamW(others, lr=learning_rate, weight_decay=WEIGHT_DECAY, fused=True)}
    if hidden:
        optimizers["muon"] = torch.optim.Muon(hidden, lr=learning_rate, weight_decay=MUON_WEIGHT_DECAY,
                                               adjust_lr_fn="match_rms_adamw")
    return optimizers


def _held_out(lessons, frames: Frames, config: BrainTraining, held: list[tuple[int, int]]):
    try:
        return lessons(frames, config, held)
    except UserError as error:
        raise UserError(f"The end of the clips, held out to validate on, is of no use with --holdout {config.holdout:g}: {error.problem}",
                        "Choose another --holdout; with 0 all frames are learned and none are validated on.") from error


def _average(decay: float):
    """Running average whose decay grows with the number of updates, so that the first weights are soon forgotten."""

    @torch.no_grad()
    def update(averaged: list[Tensor], current: list[Tensor], num_averaged: Tensor) -> None:
        keep = min(decay, float((1 + num_averaged) / (10 + num_averaged)))
        torch._foreach_lerp_(averaged, current, 1 - keep)

    return update


def _check(config: BrainTraining) -> None:
    if not config.clips:
        raise UserError("No clip was given.", "Name at least one clip folder.")
    for name in ("steps", "batch_size", "block", "history", "save_every", "width", "layers", "heads", "sequence"):
        if getattr(config, name) < 1:
            raise UserError(f"--{name.replace('_', '-')} is {getattr(config, name)}.", "Give a number above zero.")
    if config.seed < 0:
        raise UserError(f"--seed is {config.seed}.", "Give a number from 0 up.")
    if not 0 <= config.holdout < 1:
        raise UserError(f"--holdout is {config.holdout}.", "Give a share from 0 up to, but not including, 1.")
    resolve_device(config.device)
    if config.network == "dit":
        _check_dit(config)
    elif config.context < config.block:
        raise UserError(f"A context of {config.context} frames does not hold a block of {config.block}.", "Give a larger --context.")
    if not 1 <= config.distil_steps <= 4:
        raise UserError(f"--distil-steps is {config.distil_steps}.", "Give 1 to 4.")
    if config.overfit and len(config.clips) != 1:
        raise UserError(f"--overfit learns one clip by heart; {len(config.clips)} were given.", "Name one clip.")


def _check_dit(config: BrainTraining) -> None:
    if config.width % (2 * config.heads):
        raise UserError(f"A width of {config.width} is not a multiple of twice {config.heads} heads.", "Change --width or --heads.")
    if not 0 <= config.look_ahead < config.context:
        raise UserError(f"--look-ahead is {config.look_ahead}.", f"Give a number from 0 to {config.context - 1}, less than --context.")
    if config.block > min(config.history, config.sequence):
        raise UserError(f"A block of {config.block} frames is longer than the history of {config.history} or the sequence of "
                        f"{config.sequence}.", "Give a smaller --block.")


def _recipe(config: BrainTraining) -> dict[str, Any]:
    """The settings that decide the result, as JSON values."""
    return {name: str(value) if isinstance(value, Path) else value for name, value in dataclasses.asdict(config).items()
            if name not in ("clips", "out", "resume", "overwrite")}


def _fingerprint(pairs: list[Pair]) -> list[str]:
    return [Clip.open(pair.path, check=False).meta["roles"]["listener"]["motion.npy"]["sha256"] for pair in pairs]


def _licences(pair: Pair) -> list:
    return Clip.open(pair.path, check=False).meta["licences"]


def _landmark_basis(pair: Pair) -> LandmarkBasis | None:
    return LandmarkBasis.load(pair.path) if (pair.path / "basis.safetensors").is_file() else None
