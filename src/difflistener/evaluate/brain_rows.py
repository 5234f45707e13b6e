"""The rows of a brain's evaluation: ways to answer a speaker, from brains, from the law itself and from what knows nothing.

A row turns a scene into K reactions. Brains and the law look at the speaker; `noise`, `shuffled`, `hold first` and `truth`
are oracles that look at the truth, to show which scores that alone can win. Knows nothing of scores.
Axes: K samples, T frames at 25 fps.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from difflistener.brain.model import Brain
from difflistener.dataset import Pair
from difflistener.evaluate.motion_rows import COPIED, MIRROR_DELAY, NEIGHBOUR_WINDOWS, SEEN
from difflistener.motion import NUM_EXPRESSION, NUM_MOTION
from difflistener.progress import progress
from difflistener.toy.conversation import perfect
from difflistener.toy.reactions import Law, Script, draw_script

SIDE_BY_SIDE = {"cpu": 48, "cuda": 512}
"""Reactions that a brain generates at once."""


@dataclass(frozen=True)
class Scene:
    """A speaker to answer, and, for oracles and scores, what came of it."""

    name: str
    audio: np.ndarray
    """[T, A] of the speaker."""
    expression: np.ndarray
    """[T, 50] of the speaker."""
    script: Script
    attitude: str
    law: Law
    truth: np.ndarray
    """[T, 56]"""

    def __len__(self) -> int:
        return len(self.truth)


Row = Callable[[Scene, int, int], np.ndarray]
"""Scene, number of samples, seed -> reactions [K, T, 56]; fewer than asked where all would be the same."""

NOTES = {"truth": "what happened", "law": "the perfect model, told the attitude", "law untold": "the same, not told the attitude",
         "stranger": "law untold, listening to somebody else",
         "hold first": "oracle: the first true frame", "mean": "of the training clips",
         "noise": "oracle: i.i.d. Gaussian with the moments of the truth", "shuffled": "oracle: true frames in random order",
         "mirror": "the speaker's codes 0.48 s later", "nearest": "listener of the most alike training speaker, 2 s at a time"}


def law_rows() -> dict[str, Row]:
    """Truth and the law itself."""
    return {
        "truth": lambda scene, num, seed: scene.truth[None],
        "law": lambda scene, num, seed: perfect(scene.script, scene.attitude, scene.law, num, seed),
        "law untold": lambda scene, num, seed: perfect(scene.script, None, scene.law, num, seed),
        "stranger": _stranger,
    }


def baseline_rows(train: list[Pair], mean: np.ndarray) -> dict[str, Row]:
    """What learns nothing; `mean` [56] is that of the training clips."""
    return {
        "hold first": lambda scene, num, seed: np.repeat(scene.truth[None, :1], len(scene), 1),
        "mean": lambda scene, num, seed: np.repeat(mean[None, None], len(scene), 1),
        "noise": _noise, "shuffled": _shuffled,
        "mirror": lambda scene, num, seed: _mirror(scene, mean),
        "nearest": NearestSpeaker(train),
    }


def is_told(brain: Brain) -> bool:
    """Whether a brain can be told the listener's attitude."""
    return brain.config.network == "dit"


class BrainRow:
    """A brain as it is; it sees the face if it was trained to, and is told the attitude if it can be and `tell` says so.
    `guidance` is audio_guidance and face_guidance of `Brain.generate`, where other than the brain's own."""

    def __init__(self, brain: Brain, num_steps: int | None, tell: bool, **guidance: float):
        self.brain, self.num_steps, self.tell, self.guidance = brain, num_steps, tell, guidance

    def __call__(self, scene: Scene, num: int, seed: int) -> np.ndarray:
        return self.many([scene], num, [seed])[0]

    def many(self, scenes: list[Scene], num: int, seeds: list[int]) -> list[np.ndarray]:
        """Reactions [K, T, 56] to scenes of one length side by side, each under a seed of its own."""
        brain = self.brain
        num = num if brain.network.is_diffusion else 1
        rows = [(scene, seed, sample) for scene, seed in zip(scenes, seeds) for sample in range(num)]

        def stack(name: str) -> torch.Tensor:
            each = [torch.from_numpy(np.array(getattr(scene, name), np.float32)) for scene in scenes]
            return torch.stack(each).repeat_interleave(num, 0).to(brain.motion.mean.device)

        manner = self.guidance | ({"attitude": [scene.attitude for scene, _, _ in rows]} if self.tell and is_told(brain) else {})
        motion = brain.generate_many(stack("audio"), stack("expression") if brain.config.uses_face else None, num_steps=self.num_steps,
                                     seed=[seed for _, seed, _ in rows], samples=[sample for _, _, sample in rows], **manner)
        return list(motion.unflatten(0, (len(scenes), num)).cpu().numpy())


def react(row: Row, scenes: list[Scene], num: int, seed: int, label: str) -> list[np.ndarray]:
    """Reactions [K, T, 56] of a row to every scene, number n under `seed` + n. Brains answer several scenes at once."""
    most = max(SIDE_BY_SIDE[row.brain.motion.mean.device.type] // num, 1) if isinstance(row, BrainRow) else 1
    chunks: list[list[int]] = []
    for number, scene in enumerate(scenes):
        if chunks and len(chunks[-1]) < most and len(scenes[chunks[-1][0]]) == len(scene):
            chunks[-1].append(number)
        else:
            chunks.append([number])
    made: list[np.ndarray] = []
    for chunk, _ in progress(chunks, label):
        seeds = [seed + number for number in chunk]
        if isinstance(row, BrainRow):
            made += row.many([scenes[number] for number in chunk], num, seeds)
        else:
            made.append(row(scenes[chunk[0]], num, seeds[0]))
    return made


class NearestSpeaker:
    """For every 2 s of a speaker, the listener's motion in the training windows whose speakers were most alike.

    Alike is the Euclidean distance of mel bands (in eight groups), energies and expression, each in units of its deviation
    over the training windows, in means of 0.2 s. Sample k is the k-th nearest.
    """

    def __init__(self, train: list[Pair]):
        starts = [(pair, start) for pair in train for start in range(0, len(pair) - COPIED + 1, COPIED // 2)]
        self.windows = starts[:: -(-len(starts) // NEIGHBOUR_WINDOWS)]
        features = np.stack([_impression(pair.audio, pair.expression, start) for pair, start in self.windows])
        self.std = features.std((0, 1)) + 1e-6
        self.impressions = (features / self.std).reshape(len(features), -1)
        self.norms = (self.impressions**2).sum(1)

    def __call__(self, scene: Scene, num: int, seed: int) -> np.ndarray:
        num = min(num, len(self.windows))
        out = np.empty((num, len(scene), NUM_MOTION), np.float32)
        for start in range(0, len(scene), COPIED):
            begin = min(start, max(len(scene) - COPIED, 0))
            wanted = (_impression(scene.audio, scene.expression, begin) / self.std).ravel()
            nearest = np.argsort(self.norms - 2 * self.impressions @ wanted, kind="stable")[:num]
            for k, index in enumerate(nearest):
                pair, first = self.windows[index]
                out[k, begin : begin + COPIED] = pair.motion[first : first + COPIED][: len(scene) - begin]
        return out


def _impression(audio: np.ndarray, expression: np.ndarray | None, start: int) -> np.ndarray:
    """[SEEN, n] What `COPIED` frames from `start` sound and look like."""
    heard = np.asarray(audio[start : start + COPIED], np.float32)
    heard = np.pad(heard, ((0, COPIED - len(heard)), (0, 0)), mode="edge")
    groups = np.array_split(heard, 12, 1)
    parts = [np.stack([group.mean(1) for group in groups], 1)]
    if expression is not None:
        seen = np.asarray(expression[start : start + COPIED], np.float32)
        parts.append(np.pad(seen, ((0, COPIED - len(seen)), (0, 0)), mode="edge"))
    return np.concatenate(parts, 1).reshape(SEEN, COPIED // SEEN, -1).mean(1)


def _stranger(scene: Scene, num: int, seed: int) -> np.ndarray:
    """What listening is worth: a listener without a fault, but to another speaker for each sample."""
    scripts = [draw_script(scene.script.seconds, np.random.default_rng((seed, k, 4))) for k in range(num)]
    return np.concatenate([perfect(script, None, scene.law, 1, seed + 1000 * k) for k, script in enumerate(scripts)])


def _noise(scene: Scene, num: int, seed: int) -> np.ndarray:
    generator = np.random.default_rng((seed, len(scene)))
    mean, covariance = scene.truth.mean(0, dtype=np.float64), np.cov(scene.truth, rowvar=False)
    values, vectors = np.linalg.eigh(covariance)
    white = generator.standard_normal((num, len(scene), NUM_MOTION))
    return (mean + white @ (vectors * np.sqrt(np.maximum(values, 0))).T).astype(np.float32)


def _shuffled(scene: Scene, num: int, seed: int) -> np.ndarray:
    generator = np.random.default_rng((seed, len(scene)))
    return np.stack([scene.truth[generator.permutation(len(scene))] for _ in range(num)])


def _mirror(scene: Scene, mean: np.ndarray) -> np.ndarray:
    out = np.repeat(mean[None, None], len(scene), 1)
    earlier = np.maximum(np.arange(len(scene)) - MIRROR_DELAY, 0)
    out[0, :, :NUM_EXPRESSION] = np.asarray(scene.expression)[earlier]
    return out
