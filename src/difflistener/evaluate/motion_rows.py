"""The baselines of `difflistener evaluate motion`: motion that learns nothing, from the truth or the speaker of a sequence.

Those marked oracle look at the truth, to show what a metric gives for that alone. Knows nothing of metrics.
Axes: K samples, W windows, T frames at 25 fps, D = 56 motion.
"""

import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

from difflistener.errors import UserError
from difflistener.evaluate.motion_files import find
from difflistener.motion import NUM_EXPRESSION

MIRROR_DELAY = 12
"""Frames by which the mirror follows the speaker: 0.48 s, the mean delay of the corpus law."""
COPIED = 50
"""Frames that the nearest neighbour copies at once."""
SEEN = 10
"""Means over time in which a neighbour's speaker is compared."""
NEIGHBOUR_WINDOWS = 12_000
"""Training windows to choose from, spread evenly: more do not fit comfortably into memory."""

Row = Callable[[np.ndarray, np.ndarray | None, int, np.random.Generator], np.ndarray]
"""Truth [T, 56], speaker [T, 50 or 56] or None, number of samples, generator -> motion [K, T, 56]; one sample where all
would be the same."""

NOTES = {"model": "the prediction", "hold first": "oracle: the first true frame",
         "hold mean": "oracle: the mean of the true frames",
         "noise": "oracle: i.i.d. Gaussian with mean and covariance of the true frames",
         "shuffled": "oracle: the true frames in random order",
         "mirror": "the speaker 0.48 s later; what the speaker lacks is held at the true mean",
         "nearest": "listener of the training speaker whose expression was most alike, 2 s at a time", "truth": "what happened"}


def baseline_rows(train: Path | None, with_speaker: bool) -> dict[str, Row]:
    """The baselines that these inputs allow, by name."""
    rows: dict[str, Row] = {
        "hold first": lambda truth, speaker, num, generator: np.repeat(truth[None, :1], len(truth), 1),
        "hold mean": lambda truth, speaker, num, generator: np.repeat(truth.mean(0)[None, None], len(truth), 1),
        "noise": _noise,
        "shuffled": lambda truth, speaker, num, generator: np.stack([generator.permutation(truth) for _ in range(num)]),
    }
    if with_speaker:
        rows["mirror"] = _mirror
    if train is not None:
        rows["nearest"] = NearestSpeaker(train)
    return rows | {"truth": lambda truth, speaker, num, generator: truth[None]}


def generator_of(name: str, seed: int) -> np.random.Generator:
    """Random numbers of the baselines of one sequence: its neighbours do not change them."""
    return np.random.default_rng((seed, zlib.crc32(name.encode()), 1))


class NearestSpeaker:
    """For every 2 s of a speaker, the listener of the training windows whose speakers' expression was most alike: Euclidean
    distance of means over 0.2 s, each column in units of its deviation over these windows. Sample k is the k-th nearest.

    Holds the impressions of at most `NEIGHBOUR_WINDOWS` windows; listeners stay in their files.
    """

    def __init__(self, train: Path):
        parts = [train / "listener", train / "speaker"]
        folders = parts if all(part.is_dir() for part in parts) else [train, train]
        listeners, speakers = map(find, folders, ("truth", "speaker"))
        names = sorted(set(listeners) & set(speakers), key=str)
        lengths = {name: min(listeners[name].frames, speakers[name].frames) for name in names}
        windows = [(name, start) for name in names for start in range(0, lengths[name] - COPIED + 1, COPIED // 2)]
        if not windows:
            raise UserError(f"{train} has no listener of at least {COPIED} frames with a speaker of the same name.",
                            "Give --train a folder of clips, or one with the folders listener and speaker.")
        self.windows = windows[:: -(-len(windows) // NEIGHBOUR_WINDOWS)]
        self.listeners = listeners
        seen: dict[str | None, list[int]] = {}
        for name, start in self.windows:
            seen.setdefault(name, []).append(start)
        impressions = np.concatenate([_impressions(speakers[name].read(), starts) for name, starts in seen.items()])
        self.std = impressions.std((0, 1)) + 1e-6
        self.impressions = (impressions / self.std).reshape(len(impressions), -1)

    def __call__(self, truth: np.ndarray, speaker: np.ndarray, num: int, generator: np.random.Generator) -> np.ndarray:
        num = min(num, len(self.windows))
        out = np.empty((num, *truth.shape))
        for start in range(0, len(truth), COPIED):
            begin = min(start, max(len(truth) - COPIED, 0))
            wanted = (_impressions(speaker, [begin]) / self.std).ravel()
            order = np.argsort(((self.impressions - wanted) ** 2).sum(1), kind="stable")
            for k, index in enumerate(order[:num]):
                name, first = self.windows[index]
                copied = self.listeners[name].read()[first : first + COPIED]
                out[k, begin : begin + COPIED] = copied[: len(truth) - begin]
        return out


def _impressions(speaker: np.ndarray, starts: list[int]) -> np.ndarray:
    """[W, SEEN, 50] What the speaker [T, 50 or 56] looks like over `COPIED` frames from each start."""
    windows = [speaker[start : start + COPIED, :NUM_EXPRESSION] for start in starts]
    padded = [np.pad(window, ((0, COPIED - len(window)), (0, 0)), mode="edge") for window in windows]
    return np.stack(padded).reshape(len(starts), SEEN, COPIED // SEEN, NUM_EXPRESSION).mean(2)


def _noise(truth: np.ndarray, speaker: np.ndarray | None, num: int, generator: np.random.Generator) -> np.ndarray:
    centred = truth - truth.mean(0)
    factor = np.linalg.qr(centred, mode="r") / np.sqrt(max(len(truth) - 1, 1))
    return truth.mean(0) + generator.standard_normal((num, len(truth), len(factor))) @ factor


def _mirror(truth: np.ndarray, speaker: np.ndarray, num: int, generator: np.random.Generator) -> np.ndarray:
    out = np.repeat(truth.mean(0)[None, None], len(truth), 1)
    out[0, :, : speaker.shape[1]] = speaker[np.maximum(np.arange(len(truth)) - MIRROR_DELAY, 0)]
    return out
