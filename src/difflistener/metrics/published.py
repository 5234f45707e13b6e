"""The arithmetic that published tables of listening heads share, over one clip or, in constant memory, over many.

What is put together how, under which paper's name, is in `presets.py`. Knows nothing of files or models. Everything is
computed in float64. Source of each formula: the authors' public code as described in the text beside it.
Axes: K samples, T frames at 25 fps, D = 56 motion or the columns of a group, N frames of any origin.
"""

import warnings
import zlib
from dataclasses import dataclass

import numpy as np

from difflistener.errors import UserError
from difflistener.metrics.motion import Moments
from difflistener.motion import NUM_EXPRESSION, NUM_MOTION, check_finite

Scores = dict[str, dict[str, float]]
"""Metric -> group of columns -> value."""

EPSILON = 1e-6
"""Inside the logarithm of SID, as all public code has it: one occupied cluster scores -1.44e-6, not 0."""


@dataclass(frozen=True)
class Sequence:
    """One listener as generated and as filmed, frame by frame. Raises `ValueError` where shapes disagree or a number is
    not finite."""

    pred: np.ndarray
    """[T, 56], or [K, T, 56] for K samples of the same reaction."""
    truth: np.ndarray
    """[T, 56]"""
    speaker: np.ndarray | None = None
    """[T, 56], or [T, 50] where only the expression is known."""
    name: str = "sequence"
    """For errors, and the key of what is drawn for it: neither order nor neighbours change a result."""

    def __post_init__(self):
        num = len(self.truth)
        if self.truth.shape != (num, NUM_MOTION) or self.pred.shape[-2:] != (num, NUM_MOTION) or self.pred.ndim not in (2, 3):
            raise ValueError(f"{self.name}: pred {self.pred.shape} and truth {self.truth.shape} are not [T, 56] of one length")
        if self.speaker is not None and self.speaker.shape not in ((num, NUM_EXPRESSION), (num, NUM_MOTION)):
            raise ValueError(f"{self.name}: speaker {self.speaker.shape} is not [{num}, 50] or [{num}, 56]")
        check_finite(self.samples.transpose(1, 0, 2), f"{self.name}: pred")
        check_finite(self.truth, f"{self.name}: truth")
        if self.speaker is not None:
            check_finite(self.speaker, f"{self.name}: speaker")

    @property
    def samples(self) -> np.ndarray:
        """[K, T, 56]"""
        return self.pred if self.pred.ndim == 3 else self.pred[None]

    @property
    def first(self) -> np.ndarray:
        """[T, 56] The first sample."""
        return self.samples[0]

    def heard(self, columns: slice) -> np.ndarray | None:
        """[T, D] The speaker's columns of a group; None where the speaker, or these columns, are not known."""
        return self.speaker[:, columns] if self.speaker is not None and self.speaker.shape[1] >= columns.stop else None

    def generator(self, seed: int) -> np.random.Generator:
        """Random numbers of this sequence alone."""
        return np.random.default_rng((seed, zlib.crc32(self.name.encode())))


class Tally:
    """Means over clips of metrics by group."""

    def __init__(self):
        self._sums: dict[str, dict[str, np.ndarray]] = {}

    def add(self, metric: str, group: str, value: float) -> None:
        groups = self._sums.setdefault(metric, {})
        groups[group] = groups.get(group, 0) + np.array([value, 1.0])

    def means(self) -> Scores:
        return {metric: {group: float(total / count) for group, (total, count) in groups.items()}
                for metric, groups in self._sums.items()}


def sid(fitted_on: np.ndarray, scored: np.ndarray, clusters: int) -> float:
    """Shannon index for diversity, bits: -sum p log2(p + 1e-6) with p the shares of frames `scored` [N, D] among the
    `clusters` of a K-means fitted on frames `fitted_on` [M, D]. At most log2(clusters).

    K-means is scikit-learn's with random_state 0 and n_init 'auto'; another version of it can change SID by 0.4 bit.
    """
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # Fewer distinct frames than clusters: a frozen face.
        means = KMeans(clusters, random_state=0, n_init="auto").fit(np.ascontiguousarray(fitted_on, np.float64))
    share = np.bincount(means.predict(np.ascontiguousarray(scored, np.float64)), minlength=clusters) / len(scored)
    return float(-(share * np.log2(share + EPSILON)).sum())


class PooledSid:
    """SID of all clips together, K-means fitted on the true frames. Holds the frames of a group of all clips, true and
    generated: their number is what memory grows with."""

    def __init__(self, clusters: int):
        self.clusters = clusters
        self._pred, self._truth = [], []

    def add(self, pred: np.ndarray, truth: np.ndarray) -> None:
        self._pred.append(pred)
        self._truth.append(truth)

    def value(self) -> float:
        truth = np.concatenate(self._truth)
        if len(truth) < self.clusters:
            raise UserError(f"All sequences together have {len(truth)} frames; SID with {self.clusters} clusters needs as many.",
                            "Give longer sequences or more of them.")
        return sid(truth, np.concatenate(self._pred), self.clusters)


class Variance:
    """Variance (ddof 0) of all numbers of all frames and columns taken together: one scalar, so that differences between
    the means of columns, and of clips, count as variance."""

    def __init__(self):
        self._moments = Moments()

    def add(self, frames: np.ndarray) -> None:
        self._moments.add(frames.reshape(-1, 1))

    def value(self) -> float:
        return float((self._moments.factor**2).sum() * (self._moments.count - 1) / self._moments.count)


class Correlation:
    """rPCC = |corr(truth, speaker) - corr(pred, speaker)|, each correlation (Pearson) over all numbers of all frames and
    columns taken together: mostly of the constant difference between columns. NaN where one side is one number throughout."""

    def __init__(self):
        self._moments = Moments()

    def add(self, pred: np.ndarray, truth: np.ndarray, speaker: np.ndarray) -> "Correlation":
        self._moments.add(np.stack([truth.ravel(), pred.ravel(), speaker.ravel()], 1))
        return self

    def value(self) -> float:
        covariance = self._moments.factor.T @ self._moments.factor
        std = np.sqrt(np.diag(covariance))
        std[std <= 1e-12 * np.abs(self._moments.mean)] = np.nan
        to_speaker = covariance[:, 2] / std / std[2]
        return float(abs(to_speaker[0] - to_speaker[1]))


class Steps:
    """STS = sqrt(10 sum (step of truth - step of pred)^2): a sum over frames and columns that grows with what is given.

    Clips that are added one after the other count as one long array: the jump from each to the next is a step too.
    """

    def __init__(self):
        self._sum, self._last = 0.0, None

    def add(self, pred: np.ndarray, truth: np.ndarray) -> "Steps":
        off = truth - pred
        self._sum += float((np.diff(off, axis=0) ** 2).sum())
        if self._last is not None:
            self._sum += float(((off[0] - self._last) ** 2).sum())
        self._last = off[-1]
        return self

    def value(self) -> float:
        return float(np.sqrt(10 * self._sum))


class StandardisedL2:
    """Mean over the frames of all clips, but for the first `skip` of each, of the Euclidean distance of prediction and
    smoothed truth, every column in units of the deviation *between clips* of its deviation over time. None for one clip,
    which has no such unit. Holds the differences of all clips."""

    def __init__(self, skip: int):
        self.skip = skip
        self._off, self._units = [], []

    def add(self, pred: np.ndarray, truth: np.ndarray) -> None:
        truth = bilateral(truth)
        self._units.append(truth.std(0))
        self._off.append((pred - truth)[self.skip :])

    def value(self) -> float | None:
        if len(self._off) < 2:
            return None
        return float(np.linalg.norm(np.concatenate(self._off) / (np.std(self._units, 0) + 1e-10), axis=1).mean())


def bilateral(frames: np.ndarray, reach: int = 2, sigma: float = 20.0) -> np.ndarray:
    """OpenCV's bilateral filter of each column of frames [T, D] as a picture one pixel wide, mirrored at its ends: means
    over 2 `reach` + 1 frames, weighted by the pixels of a round window in that row, and by exp(-difference^2 / 2 sigma^2)."""
    across = np.arange(-reach, reach + 1)
    square = across[:, None] ** 2 + across**2
    weights = (np.exp(-square / (2 * sigma**2)) * (square <= reach**2)).sum(1)
    padded = np.pad(frames, ((reach, reach), (0, 0)), "reflect")
    total, norm = np.zeros_like(frames), np.zeros_like(frames)
    for shift, weight in enumerate(weights):
        near = padded[shift : shift + len(frames)]
        weight = weight * np.exp(-((near - frames) ** 2) / (2 * sigma**2))
        total, norm = total + weight * near, norm + weight
    return total / norm


def diversity(frames: np.ndarray, pairs: int, generator: np.random.Generator) -> float:
    """Mean Euclidean distance of `pairs` pairs of frames [T, D]: two sets of frames, each without repetition, drawn
    independently, so that a frame can meet itself. Needs T >= pairs."""
    first, second = (generator.choice(len(frames), pairs, replace=False) for _ in range(2))
    return float(np.linalg.norm(frames[first] - frames[second], axis=1).mean())
