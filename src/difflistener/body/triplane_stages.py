"""What the four stages of the tri-plane body learn from and how: frames, masks, losses, density.

    stage   steps   learns                         from                            on
    torso   1,200   the torso and the neck         pixels of torso and background  the plate (batches, as the linear body)
    mouth   50,000  the mouth branch               pixels of the inner mouth       green
    face    50,000  the face branch                pixels of head and hair         green
    fuse    10,000  face colour and opacity,       all pixels                      our torso and plate
                    mouth colour

A schedule stretches every number of steps here and below, but for the rhythm of densification. Mouth and face first
learn a still shape, then how it moves, with frames that show much of it drawn more often. Written from the description
of TalkingGaussian (see triplane.py). Knows nothing of output folders. Axes: B frames, H, W pixels, T frames of the clip.

Where it is not the published program: there is no torso stage in it; the inner mouth has no class of its own for teeth,
and its mask is not opened for the perceptual loss; fuse sees our torso in place of the filmed one.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from difflistener.body.config import BodyTraining
from difflistener.body.data import BodyData
from difflistener.body.densify import EXTENT, LARGEST, Pull, densify, drop, is_green
from difflistener.body.film import Film
from difflistener.body.model import Gaussians
from difflistener.body.train_linear import BASIS_WEIGHT, OUTSIDE_WEIGHT, SSIM_WEIGHT, make_optimizer
from difflistener.body.triplane import START_OPACITY, Branch, Still, TriplaneBody, inverse_softplus
from difflistener.checkpoint import restore_optimizer, restore_schedule
from difflistener.clip import MASK_LABELS
from difflistener.metrics.image import psnr, ssim
from difflistener.prepare.face_points import mouth_opening

Perceptual = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""How different pictures [B, h, w, 3] look, [B]; `metrics.lpips.Lpips` is one."""

WARM = 3_000
"""Steps in which a branch keeps still."""
DENSIFY_EVERY = 100
"""Steps over which a pull is averaged: not stretched, as thresholds are meant for means over so many frames."""
FAINTEST = (0.05, 0.30)
"""Least opacity that is kept, at the first and at the last densification."""
FEWEST_MOUTH_PIXELS = 20 / 512**2
"""Share of the picture that an inner mouth must fill to be learned from."""
SMALLEST_CROP = 32
"""Least side of the rectangle about the lips, in pixels: what a perceptual network can look at."""
GREEN = (0.0, 1.0, 0.0)
INVISIBLE = -20.0
"""An opacity logit."""
BRANCH_RATES = {"means": 1.6e-4 * EXTENT, "raw_scales": 3e-3, "quats": 1e-3, "opacity_logits": 0.05, "tones": 2.5e-3,
                "shades": 2.5e-3 / 20}
PLANES_RATE, NETWORK_RATE = 5e-3, 5e-4
FUSE_RATE = 1e-3


@dataclass(frozen=True)
class Run:
    """What all stages share."""

    body: TriplaneBody
    data: BodyData
    film: Film
    config: BodyTraining
    perceptual: Perceptual | None

    def at(self, steps: int) -> int:
        """A published number of steps in this run's."""
        return max(1, round(steps * self.config.schedule))

    def order(self, number: int) -> np.random.Generator:
        """What draws the frames of stage `number`."""
        return np.random.default_rng((self.config.seed, number))


# ------------------------------------------------------------------------------------------------------- stages


class Stage:
    """`step` learns from one batch. All that a stage remembers between steps is its optimiser's, or in `memory`."""

    name: str
    steps: int

    def __init__(self, run: Run, learned: list[torch.nn.Parameter], optimizer, schedule):
        self.run, self.optimizer, self.schedule = run, optimizer, schedule
        run.body.requires_grad_(False)
        for parameter in learned:
            parameter.requires_grad_(True)

    @classmethod
    def length(cls, schedule: float) -> int:
        """How many steps it has."""
        return max(1, round(cls.steps * schedule))

    @staticmethod
    def images(config: BodyTraining) -> int:
        """How many pictures a step renders."""
        return 1

    def step(self, number: int) -> torch.Tensor:
        """The loss of step `number`, learned from."""
        loss = self.learn(number)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.schedule.step()
        return loss.detach()

    def learn(self, number: int) -> torch.Tensor:
        """The loss of step `number`, with gradients left in the body."""
        raise NotImplementedError

    def memory(self) -> dict[str, torch.Tensor]:
        return {}

    def restore(self, tensors: dict[str, torch.Tensor], number: int) -> None:
        """Go back to before step `number`."""
        restore_optimizer(self.optimizer, tensors)
        for name, tensor in self.memory().items():
            tensor.copy_(tensors[f"memory.{name}"])
        restore_schedule(self.schedule, number)


class _Torso(Stage):
    name, steps = "torso", 1_200

    def __init__(self, run: Run):
        super().__init__(run, list(run.body.torso.parameters()), *make_optimizer(run.body.torso, self.length(run.config.schedule)))

    @classmethod
    def length(cls, schedule: float) -> int:
        """The whole from a tenth of the schedule on: longer only overfits."""
        return max(1, round(cls.steps * min(1.0, 10 * schedule)))

    @staticmethod
    def images(config):
        return config.batch_size

    def learn(self, number):
        run, body, train = self.run, self.run.body, self.run.data.train
        order = np.random.default_rng((run.config.seed, 0, number))
        index = order.choice(train, run.config.batch_size, replace=len(train) < run.config.batch_size)
        truth, label = (torch.cat([part(i) for i in index]) for part in (run.film.picture, run.film.label))
        outside = torch.from_numpy(run.data.outside[index])[..., None].to(run.config.device)
        rgb, alpha = body.draw(body.torso.gaussians(*run.data.inputs(index, run.config.device)))
        pictures = torch.where(label <= MASK_LABELS["torso"], rgb + (1 - alpha) * body.background, truth)
        deformation = body.torso.deformation
        size = sum((p**2).sum(0).mean() for p in (deformation.position, deformation.opacity, deformation.color))
        loss = _difference(pictures, truth) + OUTSIDE_WEIGHT * (alpha * outside).mean() + BASIS_WEIGHT * size
        loss.backward()
        return loss


class _BranchStage(Stage):
    """What mouth and face have in common: a still shape first, then motion; density control; green for all else."""

    number: int
    threshold: float
    """Pull from which on a Gaussian is doubled."""
    densify_end: int
    tail: int
    """The first step with the perceptual loss."""
    freezes: bool
    """Whether only colours learn in the tail."""
    patch_range: tuple[int, int]
    """Least side of its patches, and one more than the largest, in pixels."""

    def __init__(self, run: Run, branch: Branch):
        self.branch, self.green = branch, torch.tensor(GREEN, device=run.config.device)
        self.has_tail = run.perceptual is not None
        planes = [branch.field.planes.grid]
        networks = [parameter for parameter in branch.field.parameters() if parameter is not planes[0]]
        sets = [{"params": [getattr(branch, name)], "lr": rate, "eps": 1e-15, "weight_decay": 0.0}
                for name, rate in BRANCH_RATES.items()]
        sets += [{"params": planes, "lr": PLANES_RATE, "betas": (0.9, 0.99)},
                 {"params": networks, "lr": NETWORK_RATE, "betas": (0.9, 0.99)}]
        optimizer = torch.optim.AdamW(sets, fused=True)
        fades = [self._fade(name, run) for name in [*BRANCH_RATES, "planes", "networks"]]
        super().__init__(run, list(branch.parameters()), optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, fades))
        self.pull = self.new_pull()
        self.warm, self.last = run.at(WARM), self.length(run.config.schedule)
        self.frames = self.plan()
        self.patches = run.order(10 + self.number).integers(*self.patch_range, self.last)

    def _fade(self, name: str, run: Run) -> Callable[[int], float]:
        def fade(step: int) -> float:
            if self.has_tail and self.freezes and step >= run.at(self.tail) and name not in ("tones", "shades"):
                return 0.0
            if name == "means":
                return 0.01 ** min(1.0, step / run.at(45_000))
            if name in ("planes", "networks"):
                turn = run.at(40_000)
                return 0.5 ** (step / turn) if step < turn else 0.1 ** (step / run.at(50_000))
            return 1.0

        return fade

    def plan(self) -> np.ndarray:
        """The frame of every step [steps]; empty where there is nothing to learn from."""
        raise NotImplementedError

    def memory(self):
        return {"total": self.pull.total, "times": self.pull.times}

    def step(self, number):
        run, branch = self.run, self.branch
        branch.degree = min(2, number // run.at(1_000))
        loss = super().step(number)
        if run.at(500) < number + 1 <= run.at(self.densify_end) and (number + 1) % DENSIFY_EVERY == 0:
            self.densify(number + 1)
        return loss

    def densify(self, done: int) -> None:
        """Double and drop Gaussians after `done` steps."""
        run, low, high = self.run, *FAINTEST
        faintest = low + (high - low) * done / run.at(self.densify_end)
        largest = LARGEST if done > self.warm else float("inf")
        seed = np.random.default_rng((run.config.seed, self.number, done)).integers(1 << 62)
        generator = torch.Generator().manual_seed(int(seed))
        densify(self.branch, self.optimizer, self.pull.mean(), self.threshold, faintest, largest, generator)
        self.pull = self.new_pull()

    def new_pull(self) -> Pull:
        config = self.run.body.config
        return Pull(len(self.branch), self.run.body.K, config.width, config.height)

    def backward(self, loss: torch.Tensor, posed: Gaussians) -> torch.Tensor:
        """Leave gradients in the branch and note the pull on each Gaussian."""
        loss.backward()
        self.pull.add(posed.means.detach()[0], posed.means.grad[0])
        self.colors = posed.colors.detach()[0]
        return loss

    def looks(self, picture: torch.Tensor, truth: torch.Tensor, number: int) -> torch.Tensor:
        """Perceptual difference of pictures, patch by patch."""
        size = min(int(self.patches[number]), *picture.shape[1:3])
        return self.run.perceptual(_patches(picture, size), _patches(truth, size)).mean()


class _Mouth(_BranchStage):
    name, steps, number = "mouth", 50_000, 1
    threshold, densify_end, tail, freezes, patch_range = 2e-4, 50_000, 49_000, True, (32, 43)

    def __init__(self, run: Run):
        super().__init__(run, run.body.mouth)
        if len(self.frames) == 0:
            warnings.warn("No frame shows the inside of the mouth: the body's mouth stays empty.", stacklevel=2)
            drop(self.branch, self.optimizer, torch.ones(len(self.branch), dtype=torch.bool, device=run.config.device))
            with torch.no_grad():
                self.branch.opacity_logits.fill_(INVISIBLE)
            self.pull = self.new_pull()

    def plan(self):
        """Warm-up on the widest mouths; then every 7th frame between the widest and ever smaller ones."""
        run, order = self.run, self.run.order(self.number)
        fewest = FEWEST_MOUTH_PIXELS * np.prod(run.data.size)
        frames = np.array([i for i in run.data.train if int((run.film.label(i) == MASK_LABELS["mouth"]).sum()) >= fewest], int)
        if len(frames) == 0:
            return frames
        opening = mouth_opening(run.data.landmarks[frames])
        top, bottom = np.percentile(opening, 95), opening.min()
        plan = _shuffled(frames, self.last, order)
        plan[: self.warm] = order.choice(frames[opening >= top], len(plan[: self.warm]))
        end = run.at(39_000)
        for step in range(self.warm, min(end, self.last), 7):
            share = (step - self.warm) / (end - self.warm)
            _pick(plan, step, frames[(opening >= top - share * (top - bottom)) & (opening <= top)], order)
        return plan

    def step(self, number):
        return super().step(number) if len(self.frames) else torch.zeros(())

    def learn(self, number):
        run, index = self.run, self.frames[number]
        drive, truth, mouth = run.film.drive.at(index), run.film.picture(index), run.film.label(index) == MASK_LABELS["mouth"]
        lips = torch.zeros_like(mouth)
        rows, columns = run.film.about_lips(index)
        lips[:, rows, columns] = True
        moves = number >= self.warm
        posed = self.branch.pose(drive, self.branch.offsets(drive) if moves else None)
        posed.means.retain_grad()
        rgb, alpha = run.body.draw(posed)
        free = lips & ~mouth  # Between mouth and lips' edge the branch may go on behind the lips.
        loss = _difference(torch.where(free, self.green, rgb + (1 - alpha) * self.green), torch.where(mouth, truth, self.green))
        if moves:
            loss = loss + 1e-3 * torch.where(lips, 1 - alpha, alpha).mean()
        if self.has_tail and number >= run.at(self.tail):
            loss = loss + 0.5 * self.looks(torch.where(free, 0, rgb), torch.where(mouth, truth, 0), number)
        return self.backward(loss, posed)

    def densify(self, done):
        """What is green is not wanted: it becomes small and faint, and is doubled less."""
        green = is_green(self.colors)
        with torch.no_grad():
            self.pull.total[green] *= 0.5
            self.branch.opacity_logits[green] = float(np.log(START_OPACITY / (1 - START_OPACITY)))
            self.branch.raw_scales[green] = inverse_softplus(self.branch.scales[green] / 10)
        super().densify(done)


class _Face(_BranchStage):
    name, steps, number = "face", 50_000, 2
    threshold, densify_end, tail, freezes, patch_range = 5e-4, 49_000, 47_000, False, (64, 97)

    def __init__(self, run: Run):
        super().__init__(run, run.body.face)

    def plan(self):
        """Every 15th frame from a window that slides, first from shut to open mouths, then from open to shut lids."""
        run, order, frames = self.run, self.run.order(self.number), self.run.data.train
        plan = _shuffled(frames, self.last, order)
        opening, closure = mouth_opening(run.data.landmarks[frames]), run.data.eyes[frames, :2].mean(1).numpy()
        for values, begin, end in ((opening, 0, self.warm), (closure, self.warm, run.at(40_000))):
            for step in range(begin, min(end, self.last), 15):
                low, high = values.min(), values.max()
                left = low + (high - low) * 0.7 * (step - begin) / (end - begin)
                _pick(plan, step, frames[(values >= left) & (values <= left + 0.3 * (high - low))], order)
        return plan

    def learn(self, number):
        run, branch, index = self.run, self.branch, self.frames[number]
        drive, truth, label = run.film.drive.at(index), run.film.picture(index), run.film.label(index)
        hair = label == MASK_LABELS["hair"]
        head = hair | (label == MASK_LABELS["head"])
        moves = number >= self.warm
        if moves:
            still = branch.field.still(branch.means)
            offsets = branch.field(still, drive)
            posed = branch.pose(drive, offsets)
            posed.means.retain_grad()
            (rgb, attention), (alpha, _) = (both.split(1) for both in run.body.draw(_with_attention(posed, still)))
        else:
            posed = branch.pose(drive, None)
            posed.means.retain_grad()
            rgb, alpha = run.body.draw(posed)
        # The face learns to move before the hair, which is much larger, has its say.
        learned = head & ~hair if run.at(WARM) < number < run.at(46_000) and number % 7 else head
        picture = rgb + (1 - alpha) * self.green
        if learned is not head:
            picture = torch.where(hair, self.green, picture)
        loss = _difference(picture, torch.where(learned, truth, self.green)) + 1e-3 * (alpha - head.float()).abs().mean()
        rows, columns = run.film.about_lips(index)
        if moves:
            # What lids do does not concern the lips, and neither does anything concern the hair.
            to_lips = attention[:, rows, columns, 1].sum() / attention[..., 1].numel()
            to_hair = (attention[..., :2] * hair).sum() / attention[..., 1].numel()
            loss = loss + 1e-5 * sum(part.abs().mean() for part in offsets) + 1e-4 * (to_lips + to_hair)
        if self.has_tail and number >= run.at(self.tail):
            lips = torch.zeros_like(head)
            lips[:, rows, columns] = True
            target = torch.where(head, truth, self.green)
            crop = slice(None), *run.film.about_lips(index, SMALLEST_CROP)
            loss = loss + 0.01 * run.perceptual(picture[crop], target[crop]).mean()
            loss = loss + 0.2 * self.looks(torch.where(lips, 0, picture), torch.where(lips, 0, target), number)
        return self.backward(loss, posed)

    def densify(self, done):
        """The painted background is nothing to keep."""
        green = is_green(self.colors)
        with torch.no_grad():
            self.branch.opacity_logits[green] = INVISIBLE  # Below the least opacity, so it goes.
        super().densify(done)


class _Fuse(Stage):
    name, steps, number, tail = "fuse", 10_000, 3, 5_000

    def __init__(self, run: Run):
        face, mouth = run.body.face, run.body.mouth
        learned = [face.tones, face.opacity_logits, mouth.tones]
        sets = [{"params": learned, "lr": FUSE_RATE}, {"params": [face.shades, mouth.shades], "lr": FUSE_RATE / 20}]
        optimizer = torch.optim.Adam(sets, eps=1e-15, fused=True)
        steady = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
        super().__init__(run, learned + [face.shades, mouth.shades], optimizer, steady)
        self.frames = _shuffled(run.data.train, self.length(run.config.schedule), run.order(self.number))
        self.patches = run.order(10 + self.number).integers(32, 43, len(self.frames))

    def learn(self, number):
        run, index = self.run, int(self.frames[number])
        truth = run.film.picture(index)
        with torch.no_grad():
            behind = _own_torso(run, index)
        picture, _ = run.body.over(behind, run.film.drive.at(index))
        loss = _difference(picture, truth)
        if run.perceptual is not None and number >= run.at(self.tail):
            size = min(int(self.patches[number]), *run.data.size)
            loss = loss + 0.5 * run.perceptual(_patches(picture, size), _patches(truth, size)).mean()
        loss.backward()
        return loss


STAGES = (_Torso, _Mouth, _Face, _Fuse)
"""In order; mouth and face do not depend on each other."""


# ------------------------------------------------------------------------------------------------------- pieces


def _difference(picture: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    return (picture - truth).abs().mean() + SSIM_WEIGHT * (1 - ssim(picture, truth).mean())


def _patches(picture: torch.Tensor, size: int) -> torch.Tensor:
    """The whole squares [P, size, size, 3] of a picture [1, H, W, 3]."""
    height, width = (side // size * size for side in picture.shape[1:3])
    return picture[0, :height, :width].unflatten(1, (-1, size)).unflatten(0, (-1, size)).transpose(1, 2).flatten(0, 1)


def _with_attention(posed: Gaussians, still: Still) -> Gaussians:
    """Two scenes of the same Gaussians: their colours, and their attention to sound and eyes, which moves none of them."""
    heard, seen = still.hears.norm(dim=1), still.sees.norm(dim=1)
    attention = torch.stack([heard, seen, torch.zeros_like(seen)], 1)[None]
    again = Gaussians(*(values.detach() for values in posed))._replace(colors=attention)
    return Gaussians(*(torch.cat(pair) for pair in zip(posed, again)))


def _own_torso(run: Run, index: int) -> torch.Tensor:
    """The rendered torso over the plate [1, H, W, 3]."""
    rgb, alpha = run.body.draw(run.body.torso.gaussians(*run.data.inputs([index], run.config.device)))
    return rgb + (1 - alpha) * run.body.background


@torch.no_grad()
def score_over_film(run: Run, frames: np.ndarray) -> dict:
    """Scores as the published program takes them: the head over the frame's own filmed torso and background."""
    scores = []
    for index in frames:
        truth = run.film.picture(index)
        behind = torch.where(run.film.label(index) <= MASK_LABELS["torso"], truth, _own_torso(run, index))
        picture, _ = run.body.over(behind, run.film.drive.at(index))
        picture = (picture.clamp(0, 1) * 255 + 0.5).floor() / 255
        scores.append((float(psnr(picture, truth)), float(ssim(picture, truth))))
    mean = np.mean(scores, 0)
    return {"test_psnr_over_filmed_torso": round(float(mean[0]), 3), "test_ssim_over_filmed_torso": round(float(mean[1]), 4)}


def _shuffled(frames: np.ndarray, steps: int, order: np.random.Generator) -> np.ndarray:
    """`steps` frames: all of them in random order, again and again."""
    return np.concatenate([order.permutation(frames) for _ in range(-(-steps // len(frames)))])[:steps]


def _pick(plan: np.ndarray, step: int, frames: np.ndarray, order: np.random.Generator) -> None:
    """Put one of `frames` at `step`, if there is any."""
    if len(frames):
        plan[step] = order.choice(frames)


