"""The preset `honest`: scores of generated listeners that neither a constant offset nor a frozen or shuffled face can win.

Clips are never mixed up with each other: means are taken off each clip, and every dimension counts alone. Groups are
expression, rotation and jaw, each in its own units. Knows nothing of files.
Axes: K samples, W windows, T frames at 25 fps, D = columns of a group, L lags.
"""

from collections.abc import Iterable

import numpy as np

from difflistener.errors import UserError
from difflistener.metrics.motion import (
    GROUPS, Moments, best_of, cut_windows, distances, frechet, jerk, ratio, shift_test, spectrum, spectrum_distance, spread,
    variance,
)
from difflistener.metrics.published import Scores, Sequence
from difflistener.motion import FPS

WINDOW = 2 * FPS
"""Frames over which errors are taken: a reaction with its delay."""


def honest(sequences: Iterable[Sequence], settings: dict, seed: int) -> Scores:
    """Score sequences; all samples count.

    rPCC         |r(truth, speaker) - r(pred, speaker)| of each clip and dimension without its mean, mean over dimensions,
                 samples and clips; r of what does not move is 0
    Var ratio    variance over time, pred / truth, of each dimension: mean, least and most over dimensions; the target is 1
    FD velocity  Frechet distance of velocities (a frame), clips pooled
    FD windows   the same of windows of 1 s, half overlapped, from which the true clip's mean is taken
    TLCC         correlation of listener and speaker dimension by dimension at lags within 2 s, mean over dimensions, samples
                 and clips: its largest absolute value, and at what lag in s (positive: the listener follows); clips too
                 short for all lags are left out
    spectrum dB  `spectrum_distance` of power densities, mean over clips
    jerk ratio   root mean square jerk, pred / truth, of each dimension, mean over dimensions
    energy       energy score (`metrics.motion.energy_score`) of windows of 2 s, in the group's units
    best of k    expected least error of k of the K samples
    shift p      `metrics.motion.shift_test` on windows of 2 s; NaN where no clip has four of them

    Memory: factors of at most D x 25 columns, and [T / 50]^2 costs a clip. NaN stands where the truth does not move.
    """
    groups = {name: _Group(settings) for name in GROUPS}
    samples = None
    for sequence in sequences:
        if samples not in (None, len(sequence.samples)):
            raise UserError(f"{sequence.name} has {len(sequence.samples)} samples, those before have {samples}.",
                            "Give equally many samples of every sequence.")
        samples = len(sequence.samples)
        for name, columns in GROUPS.items():
            groups[name].add(sequence.samples[:, :, columns], sequence.truth[:, columns], sequence.heard(columns))
    if samples is None:
        return {}
    scores: Scores = {}
    for name, group in groups.items():
        for metric, value in group.scores(seed).items():
            scores.setdefault(metric, {})[name] = value
    return scores


class _Group:
    """Running sums of one group of columns."""

    def __init__(self, settings: dict):
        self.settings = settings
        self.clips = 0
        self.looks = {name: [0.0, 0.0] for name in ("variance", "jerk", "spectrum")}  # Sums of pred and of truth.
        self.velocities, self.windows = (Moments(), Moments()), (Moments(), Moments())
        self.synchrony, self.num_synchrony, self.lags, self.num_lags = 0.0, 0, 0.0, 0
        self.energy, self.best, self.num_windows, self.costs = 0.0, 0.0, 0, []

    def add(self, samples: np.ndarray, truth: np.ndarray, speaker: np.ndarray | None) -> None:
        """One clip: samples [K, T, D], truth [T, D], speaker [T, D]."""
        self.clips += 1
        self._add_looks(samples, truth)
        self._add_errors(samples, truth)
        if speaker is not None:
            self._add_synchrony(samples, truth, speaker)

    def _add_looks(self, samples: np.ndarray, truth: np.ndarray) -> None:
        for name, figure in (("variance", variance), ("jerk", jerk), ("spectrum", spectrum)):
            sums = self.looks[name]
            sums[0], sums[1] = sums[0] + np.mean([figure(sample) for sample in samples], 0), sums[1] + figure(truth)
        length, stride = self.settings["fd_window"], self.settings["fd_stride"]
        starts = np.arange(0, len(truth) - length + 1, stride)
        for side, clips in enumerate((samples, truth[None])):
            for clip in clips:
                self.velocities[side].add(np.diff(clip, axis=0))
                self.windows[side].add(cut_windows(clip - truth.mean(0), starts, length))

    def _add_errors(self, samples: np.ndarray, truth: np.ndarray) -> None:
        starts = np.arange(0, len(truth) - self.settings["window"] + 1, self.settings["window"])
        made, true = (cut_windows(motion, starts, self.settings["window"]) for motion in (samples, truth))
        each = distances(made, true)
        errors = np.sqrt(((made - true) ** 2).mean(-1))
        self.energy += (errors.mean(0) - 0.5 * spread(made)).sum()
        self.best = self.best + best_of(errors) * len(starts)
        self.num_windows += len(starts)
        self.costs.append(each.mean(0))

    def _add_synchrony(self, samples: np.ndarray, truth: np.ndarray, speaker: np.ndarray) -> None:
        live = ~np.isnan(lagged_correlation(truth, speaker, 0)[0])
        if not live.any():
            return
        true, most = lagged_correlation(truth[:, live], speaker[:, live], 0), self.settings["most_lag"]
        for sample in samples[:, :, live]:
            made = np.nan_to_num(lagged_correlation(sample, speaker[:, live], 0))
            self.synchrony += float(np.abs(true - made).mean())
            self.num_synchrony += 1
            if len(truth) > 2 * (most + 1):
                self.lags = self.lags + np.nan_to_num(lagged_correlation(sample, speaker[:, live], most)).mean(1)
                self.num_lags += 1

    def scores(self, seed: int) -> dict[str, float]:
        variances, jerks = (ratio(*self.looks[name]) for name in ("variance", "jerk"))
        variances, jerks = variances[np.isfinite(variances)], jerks[np.isfinite(jerks)]
        dead, nan = not len(variances), float("nan")
        density = [total / self.clips for total in self.looks["spectrum"]]
        figures = {}
        if self.num_synchrony:
            figures["rPCC"] = self.synchrony / self.num_synchrony
        if self.num_lags:
            figures["TLCC"], figures["TLCC lag s"] = _peak(self.lags / self.num_lags)
        figures |= {
            "Var ratio": nan if dead else float(variances.mean()),
            "Var least": nan if dead else float(variances.min()), "Var most": nan if dead else float(variances.max()),
            "FD velocity": frechet(*self.velocities), "FD windows": frechet(*self.windows),
            "spectrum dB": nan if dead else spectrum_distance(*density),
            "jerk ratio": float(jerks.mean()) if len(jerks) else nan,
            "energy": float(self.energy / self.num_windows),
        }
        figures |= {f"best of {k + 1}": float(value) for k, value in enumerate(self.best / self.num_windows)}
        test = shift_test(self.costs, self.settings["shifts"], np.random.default_rng((seed, 1)))
        return figures | {"shift p": nan if dead else test.p}


def lagged_correlation(listener: np.ndarray, speaker: np.ndarray, most: int) -> np.ndarray:
    """[2 most + 1, D] Correlation over time of listener [T, D] at frame t + lag with speaker [T, D] at frame t, for lags
    -most to most, means taken off over the frames that overlap. NaN where one of them does not move. Needs T > most + 1."""
    num = len(listener)
    rows = []
    for lag in range(-most, most + 1):
        first, second = listener[max(lag, 0) : num + min(lag, 0)], speaker[max(-lag, 0) : num - max(lag, 0)]
        moves = (np.ptp(first, 0) > 0) & (np.ptp(second, 0) > 0)
        first, second = first - first.mean(0), second - second.mean(0)
        norm = np.linalg.norm(first, axis=0) * np.linalg.norm(second, axis=0)
        rows.append(np.divide((first * second).sum(0), norm, out=np.full(len(norm), np.nan), where=moves))
    return np.stack(rows)


def _peak(curve: np.ndarray) -> tuple[float, float]:
    """Largest absolute value of a curve over lags, with its sign, and its lag in s; NaN where nothing moves."""
    if not curve.any():
        return 0.0, float("nan")
    at = int(np.abs(curve).argmax())
    return float(curve[at]), (at - len(curve) // 2) / FPS
