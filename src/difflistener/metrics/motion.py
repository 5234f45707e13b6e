"""How good generated motion is: scores over several samples, distances of distributions, and tests with a p-value.

No score here is enough alone: Frechet distances cannot see time or the speaker, distances to the one true reaction favour
the mean, variance favours noise. Knows nothing of brains or files.
Axes: K samples of one reaction, W windows, T frames at 25 fps, D = 56 motion or any other number of channels.
"""

import math
from functools import reduce
from typing import NamedTuple

import numpy as np
from scipy.signal import welch
from scipy.special import gammaln

from difflistener.motion import EXPRESSION, FPS, JAW, NUM_EXPRESSION, NUM_MOTION, ROTATION

GROUPS = {"expression": EXPRESSION, "rotation": ROTATION, "jaw": JAW}
SPECTRUM_FRAMES = 128
"""Frames of one window of a spectrum: 5 s."""


def balanced(motion: np.ndarray, std: np.ndarray) -> np.ndarray:
    """Motion [..., 56] in units of `std` [56], scaled so that expression and pose (rotation and jaw) have equal say.

    The mean square over the 56 columns of a difference is then half the mean square over the 50 of expression plus half
    that over the 6 of pose. Channels that do not move in truth (`std` 0) are left out.
    """
    num_pose = NUM_MOTION - NUM_EXPRESSION
    weight = np.sqrt(NUM_MOTION / 2 / np.repeat([NUM_EXPRESSION, num_pose], [NUM_EXPRESSION, num_pose]))
    return motion * np.where(std > 0, weight / np.where(std > 0, std, 1), 0).astype(np.float32)


def cut_windows(motion: np.ndarray, starts: np.ndarray, length: int) -> np.ndarray:
    """Windows [..., W, length * D] of motion [..., T, D] that begin at frames `starts` [W]."""
    rows = motion[..., starts[:, None] + np.arange(length), :]
    return rows.reshape(*rows.shape[:-2], length * motion.shape[-1])


def distances(samples: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Root mean square difference [K, W, V] of windows `samples` [K, W, C] from windows `truth` [V, C], each with each."""
    samples, truth = samples.astype(np.float64), truth.astype(np.float64)
    squares = (samples**2).sum(-1)[..., None] + (truth**2).sum(-1) - 2 * samples @ truth.T
    return np.sqrt(np.maximum(squares, 0) / truth.shape[-1])


def spread(samples: np.ndarray) -> np.ndarray:
    """[W] Mean root mean square difference between two different samples of windows [K, W, C]; 0 for one sample."""
    num = len(samples)
    if num < 2:
        return np.zeros(samples.shape[1])
    pairs = [np.sqrt(np.mean((samples[a] - samples[b]) ** 2, -1, dtype=np.float64)) for a in range(num) for b in range(a)]
    return np.mean(pairs, 0)


def energy_score(samples: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """[W] Energy score of samples [K, W, C] of windows against what happened, [W, C]. Lower is better.

    ES = mean_k |x_k - y| - 1/2 mean_{k != l} |x_k - x_l|, the norm being the root mean square over C (Gneiting & Raftery,
    "Strictly Proper Scoring Rules, Prediction, and Estimation", JASA 2007, equation 22, with the unbiased mean over
    pairs of Ferro, "Fair scores for ensemble forecasts", 2014). In expectation nothing scores below the true
    distribution: a mean loses by its missing spread, noise by its distance. One sample scores its distance.
    """
    error = np.sqrt(np.mean((samples - truth) ** 2, -1, dtype=np.float64)).mean(0)
    return error - 0.5 * spread(samples)


def best_of(errors: np.ndarray) -> np.ndarray:
    """[K] Expected least error of 1, 2, ... K samples drawn from errors [K, W] without replacement, mean over W.

    Exact over all choices: the i-th smallest of K is the least of k chosen ones in C(K-i, k-1) of C(K, k) cases.
    """
    num = len(errors)
    ordered = np.sort(errors, 0).reshape(num, -1).mean(1)
    rank = np.arange(1, num + 1)
    return np.array([float((ordered * np.exp(_log_choose(num - rank, k - 1) - _log_choose(num, k))).sum()) for k in rank])


def _log_choose(n, k):
    n = np.asarray(n, float)
    with np.errstate(invalid="ignore"):
        value = gammaln(n + 1) - gammaln(k + 1) - gammaln(n - k + 1)
    return np.where(n < k, -np.inf, value)


class Moments:
    """Number, mean [D] and covariance [D, D] of frames that come in pieces; memory does not grow with their number.

    Holds a triangular factor of the scatter instead of the scatter: a QR decomposition for every piece loses nothing
    where the covariance is singular, and a piece's mean enters as one more row (Chan, Golub & LeVeque 1983).
    """

    def __init__(self, *pieces: np.ndarray):
        self.count, self.mean, self._rows = 0, 0.0, []
        for piece in pieces:
            self.add(piece)

    def add(self, frames: np.ndarray) -> None:
        """Take in frames [N, D]."""
        if not len(frames):
            return
        mean = frames.mean(0, dtype=np.float64)
        count = self.count + len(frames)
        if self.count:
            self._rows.append(np.sqrt(self.count * len(frames) / count) * (mean - self.mean)[None])
        self._rows.append(frames - mean)
        self.mean = self.mean + (mean - self.mean) * (len(frames) / count)
        self.count = count
        if sum(map(len, self._rows)) > 3 * frames.shape[1]:
            self._compress()

    def _compress(self) -> None:
        self._rows = [np.linalg.qr(np.concatenate(self._rows), mode="r")]

    @property
    def factor(self) -> np.ndarray:
        """R [at most D, D] with R^T R the covariance (ddof 1). Raises `ValueError` for fewer than two frames."""
        if self.count < 2:
            raise ValueError(f"a covariance needs two frames, not {self.count}")
        if len(self._rows) > 1 or len(self._rows[0]) > self._rows[0].shape[1]:
            self._compress()
        return self._rows[0] / np.sqrt(self.count - 1)


def frechet(first: np.ndarray | Moments, second: np.ndarray | Moments) -> float:
    """Frechet distance |m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^1/2) of the Gaussians of frames [N, D] and [M, D], or of their
    moments (Dowson & Landau 1982), covariances with ddof 1.

    tr (S1 S2)^1/2 is the nuclear norm of X1 X2^T / sqrt((N-1)(M-1)) with X the centred frames, here through the
    triangular factors of X1 and X2: exact where covariances are singular, never complex. Rounding below zero is cut off.
    """
    first, second = (frames if isinstance(frames, Moments) else Moments(frames) for frames in (first, second))
    cross = np.linalg.svd(first.factor @ second.factor.T, compute_uv=False).sum()
    trace = (first.factor**2).sum() + (second.factor**2).sum()
    return max(float(((first.mean - second.mean) ** 2).sum() + trace - 2 * cross), 0.0)


def variance(motion: np.ndarray) -> np.ndarray:
    """[D] Variance over time of motion [T, D], ddof 0; exactly 0 for what stands still, whose rounded mean may be off it."""
    return np.where(np.ptp(motion, 0) > 0, motion.var(0, dtype=np.float64), 0.0)


def variance_ratio(generated: list[np.ndarray], truth: list[np.ndarray]) -> np.ndarray:
    """[D] Variance over time within each clip [T, D], mean over clips, of generated against true motion; the target is 1.

    NaN where the truth does not move.
    """
    return ratio(*(np.mean([variance(clip) for clip in clips], 0) for clips in (generated, truth)))


def ratio(made: np.ndarray, true: np.ndarray) -> np.ndarray:
    """[D] made / true; NaN where `true` is 0."""
    return np.divide(made, true, out=np.full(len(true), np.nan), where=true > 0)


def jerk(motion: np.ndarray) -> np.ndarray:
    """[D] Root mean square third derivative of motion [T, D], a second cubed."""
    return np.sqrt((np.diff(motion.astype(np.float64), 3, 0) ** 2).mean(0)) * FPS**3


def spectrum(motion: np.ndarray) -> np.ndarray:
    """[F, D] Welch's power density of motion [T, D]: Hann windows of 5 s, half overlapped, means taken off; no 0 Hz.

    Shorter motion is one window, filled up with zeros: the frequencies are the same for every length.
    """
    return welch(motion, FPS, nperseg=min(SPECTRUM_FRAMES, len(motion)), nfft=SPECTRUM_FRAMES, axis=0)[1][1:]


def spectrum_distance(density: np.ndarray, truth: np.ndarray) -> float:
    """Mean over frequencies and channels of |10 log10 (density / truth)| in dB, for densities [F, D]; at most 60 dB each."""
    moves = truth.max(0) > 0
    ratio = np.maximum(density[:, moves], 1e-30) / np.maximum(truth[:, moves], 1e-30)
    return float(np.minimum(np.abs(10 * np.log10(ratio)), 60).mean())


def seam_ratios(motion: np.ndarray, block: int) -> tuple[float, float]:
    """Steps of motion [T, D] into a new block of `block` frames against steps inside: ratios of the mean and of the largest.

    A step is the root mean square change over channels: give motion in comparable units. 1 is seamless; NaN where
    nothing moves or there is only one block.
    """
    steps = np.sqrt((np.diff(motion.astype(np.float64), axis=0) ** 2).mean(1))
    edge = np.arange(1, len(motion)) % block == 0
    if not edge.any() or edge.all() or not steps[~edge].any():
        return float("nan"), float("nan")
    return float(steps[edge].mean() / steps[~edge].mean()), float(steps[edge].max() / steps[~edge].max())


def drift(first: np.ndarray, last: np.ndarray, std: np.ndarray) -> tuple[float, float]:
    """Root mean square change of the channels' means, in `std` [D], and mean ratio of their deviations, from frames
    `first` [T, D] to frames `last`. No drift is (0, 1), but for the chance in a finite stretch."""
    moves = std > 0
    shift = (last.mean(0) - first.mean(0))[moves] / std[moves]
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = last.std(0)[moves] / first.std(0)[moves]
    return float(np.sqrt((shift**2).mean())), float(ratio.mean())


class ShiftTest(NamedTuple):
    """Does motion belong to its own speaker?"""

    aligned: float
    """Mean distance from the truth of the same moment."""
    shifted: float
    """Mean distance from the truth of another moment."""
    p: float
    """Share of shifts that are no worse than none, itself among them."""


def shift_test(costs: list[np.ndarray], shifts: int, generator: np.random.Generator) -> ShiftTest:
    """Compare each window with the truth of its own moment and with that of other moments.

    Generated motion depends on the speaker alone, so shifting the truth against it is shifting the speaker against the
    truth. Each of `shifts` draws shifts every clip by a number of windows of its own, around its end, by at least two:
    next neighbours overlap in cause. p is that of a permutation test, (1 + count) / (1 + shifts). Where there are no more
    than `shifts` ways to shift, each is taken once: a single short clip proves little.

    Args:
        costs: for each clip [W, W], the distance of generated window w from true window v. Clips of fewer than four
            windows are left out; NaN where none is left.
    """
    costs = [cost for cost in costs if len(cost) >= 4]
    if not costs:
        return ShiftTest(float("nan"), float("nan"), float("nan"))
    total = sum(map(len, costs))
    shifted = [np.array([np.roll(cost, -shift, 1).trace() for shift in range(2, len(cost) - 1)]) for cost in costs]
    if math.prod(map(len, shifted)) <= shifts:
        null = reduce(np.add.outer, shifted).ravel() / total
    else:
        null = sum(values[generator.integers(len(values), size=shifts)] for values in shifted) / total
    aligned = sum(np.trace(cost) for cost in costs) / total
    # Rounding must not make a face that never moves differ from itself.
    as_good = null <= aligned + 1e-9 * abs(aligned)
    return ShiftTest(float(aligned), float(null.mean()), float((1 + as_good.sum()) / (1 + len(null))))


def paired_test(first: np.ndarray, second: np.ndarray, draws: int, generator: np.random.Generator) -> tuple[float, float]:
    """Mean of `first` - `second` [W], and the p-value that it is below zero only by chance: signs flipped at random."""
    difference = first - second
    null = (generator.choice([-1.0, 1.0], (draws, len(difference))) * difference).mean(1)
    return float(difference.mean()), float((1 + (null <= difference.mean()).sum()) / (1 + draws))
