"""What `bench live` makes of its measurements: growth of memory, speech against silence, how long the head is still, reactions.

Knows nothing of processes, pages or files. Axes: T frames at 25 fps, D = 56 motion; rotation in radians, times in seconds.
"""

from typing import NamedTuple

import numpy as np

from difflistener.motion import EXPRESSION, FPS, ROTATION

REACTION_S = 1.6
"""Silence begins so long after the last word: nods come up to 0.8 s after it and last up to 0.8 s."""
SHORTEST_S = 1.0
"""A stretch of speech or silence shorter than this is left out."""
LEAST_STRETCHES = 8
"""Of speech and of silence; with fewer, chance decides."""
STILL_DEGREES = 0.5
"""A head that stays within this range about each axis does not visibly move. The tip of the nose is some 0.12 m before the neck,
and a face of 0.16 m that fills half of a 256 pixel picture has 800 pixels a metre: half a degree moves it by 0.8 pixels."""
PERMUTATIONS = 10_000


def growth(times: np.ndarray, values: np.ndarray, after: float = 60.0) -> float | None:
    """How much `values` [n] grew from `after` seconds to the end: the median slope of all pairs of points (Theil and Sen, 1968)
    times that time. None where less than a minute is left."""
    kept = times >= after
    t, y = times[kept], values[kept]
    if len(t) < 2 or t[-1] - t[0] < 59:
        return None
    first, second = np.triu_indices(len(t), 1)
    return float(np.median((y[second] - y[first]) / (t[second] - t[first])) * (t[-1] - t[0]))


def level(sound: np.ndarray, step: int = 640) -> np.ndarray:
    """[n] root mean square of every `step` samples of `sound` [N], by default of each frame."""
    frames = sound[: len(sound) // step * step].reshape(-1, step)
    return np.sqrt((frames.astype(np.float64) ** 2).mean(1))


def align(heard: np.ndarray, said: np.ndarray) -> tuple[np.ndarray, float]:
    """Which frame of `said` [L], played over and over, each frame of `heard` [T] is: [T] int, and the mean correlation.

    Both are levels; their roots are compared, so that loud vowels do not decide alone. The browser's clock and ours may drift
    apart, so each length of L is laid on by itself; the last one overlaps the one before.
    """
    length, total = len(said), len(heard)
    size = min(length, total)
    starts = sorted({*range(0, total - size + 1, size), total - size})
    places, scores = np.empty(total, int), []
    for start in starts:
        shift, score = _lay_on(heard[start : start + size], said)
        places[start : start + size] = (shift + np.arange(size)) % length
        scores.append(score)
    return places, float(np.mean(scores))


def _lay_on(heard: np.ndarray, said: np.ndarray) -> tuple[int, float]:
    """The frame of `said` that `heard` begins with, and the correlation there."""
    frames = (np.arange(len(said))[:, None] + np.arange(len(heard))) % len(said)
    pattern = np.sqrt(said)[frames]
    pattern = pattern - pattern.mean(1, keepdims=True)
    wave = np.sqrt(heard) - np.sqrt(heard).mean()
    scores = pattern @ wave / (np.linalg.norm(pattern, axis=1) * np.linalg.norm(wave) + 1e-12)
    return int(scores.argmax()), float(scores.max())


def is_speech(turns: np.ndarray, frames: int) -> np.ndarray:
    """[frames] bool of one period: from the start of each turn until a reaction to its end is over, also past the period's end."""
    speech = np.zeros(frames, bool)
    for start, end in turns:
        speech[np.arange(round(start * FPS), round((end + REACTION_S) * FPS)) % frames] = True
    return speech


def energy(motion: np.ndarray) -> np.ndarray:
    """[T - 1] How much moves from frame to frame: squared speed of head and of expression, each as a share of its mean."""
    step = np.diff(motion.astype(np.float64), axis=0) ** 2
    parts = [step[:, ROTATION].sum(1), step[:, EXPRESSION].sum(1)]
    return sum(part / (part.mean() + 1e-12) for part in parts) / 2


class Contrast(NamedTuple):
    """Motion in speech against motion in silence."""

    ratio: float
    """Mean energy in speech over that in silence."""
    p: float
    """Of no difference."""
    speech: int
    """Stretches of speech, and below of silence."""
    silence: int


def contrast(motion_energy: np.ndarray, speech: np.ndarray, generator: np.random.Generator) -> Contrast | None:
    """Whether `motion_energy` [T] differs where `speech` [T] is true. None with fewer than `LEAST_STRETCHES` of either.

    Frames depend on their neighbours, so whole stretches are exchanged: of the mean energies of all stretches, so many are called
    speech at random. What is compared is Welch's t of their logarithms, for which exchanging is sound although stretches differ
    in length and so in spread (Janssen 1997). Two-sided.
    """
    borders = np.flatnonzero(np.diff(speech)) + 1
    stretches = [(part.mean(), speech[start]) for start, part in zip((0, *borders), np.split(motion_energy, borders))
                 if len(part) >= SHORTEST_S * FPS]
    values = np.log([mean + 1e-12 for mean, _ in stretches])
    spoken = np.array([label for _, label in stretches], bool)
    if min(spoken.sum(), (~spoken).sum()) < LEAST_STRETCHES:
        return None
    found = abs(_welch(values[None], spoken[None])[0])
    orders = generator.permuted(np.tile(spoken, (PERMUTATIONS, 1)), axis=1)
    # Rounding must not make an arrangement that equals the found one less than it.
    p = (1 + (np.abs(_welch(values[None], orders)) >= found * (1 - 1e-9)).sum()) / (1 + PERMUTATIONS)
    ratio = motion_energy[speech].mean() / (motion_energy[~speech].mean() + 1e-12)
    return Contrast(float(ratio), float(p), int(spoken.sum()), int((~spoken).sum()))


def _welch(values: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """[P] Welch's t of values [1, n] where `chosen` [P, n] against the rest."""
    means, spreads = [], []
    for mask in (chosen, ~chosen):
        count = mask.sum(1)
        mean = (values * mask).sum(1) / count
        variance = ((values - mean[:, None]) ** 2 * mask).sum(1) / (count - 1)
        means.append(mean)
        spreads.append(variance / count)
    return (means[0] - means[1]) / np.sqrt(spreads[0] + spreads[1] + 1e-24)


def longest_still(rotation: np.ndarray) -> float:
    """Seconds of the longest time in which `rotation` [T, 3] stays within `STILL_DEGREES` about every axis."""
    limit = np.radians(STILL_DEGREES)
    longest = start = 0
    for end in range(1, len(rotation) + 1):
        while np.ptp(rotation[start:end], axis=0).max() > limit:
            start += 1
        longest = max(longest, end - start)
    return max(longest - 1, 0) / FPS


def longest_gap(times: np.ndarray) -> float:
    """Longest time between neighbours of `times` [n], 0 for fewer than two."""
    return float(np.diff(times).max(initial=0.0))


def reaction(motion_energy: np.ndarray, ends: np.ndarray, generator: np.random.Generator) -> tuple[float, float, float] | None:
    """Seconds from the ends of phrases, frames `ends` [P] of `motion_energy` [T], to the peak of what moves after them on average:
    the peak, and a 90 % interval drawn by bootstrap over phrases. None with fewer than five."""
    window = round(2.0 * FPS)
    ends = ends[(ends >= 0) & (ends + window <= len(motion_energy))]
    if len(ends) < 5:
        return None
    rows = motion_energy[ends[:, None] + np.arange(window)]
    kernel = np.ones(5) / 5  # 0.2 s
    peak = lambda chosen: np.convolve(chosen.mean(0), kernel, "same").argmax() / FPS
    draws = [peak(rows[generator.integers(len(rows), size=len(rows))]) for _ in range(400)]
    return float(peak(rows)), float(np.quantile(draws, 0.05)), float(np.quantile(draws, 0.95))


STEP_S = 0.01
"""Grid on which two courses are laid over each other."""
LEAST_COMMON_S = 4.0


def lag(times: np.ndarray, values: np.ndarray, later_times: np.ndarray, later_values: np.ndarray,
        within: tuple[float, float] = (-np.inf, np.inf)) -> tuple[float, float] | None:
    """By how many seconds the clock of a second course is ahead: what happens at t in the first, `values` [n] at `times`, happens
    at t + lag in the second; and the correlation of what they have in common. None where that is less than 4 s.

    Both clocks may begin anywhere. The place is that of the best correlation among the lags `within` these bounds where at least
    half of the shorter one is covered, to a fraction of the grid by a parabola.
    """
    first, second = _on_grid(times, values), _on_grid(later_times, later_values)
    shorter = min(len(first), len(second))
    if shorter < LEAST_COMMON_S / STEP_S:
        return None
    size = len(first) + len(second)
    spectra = lambda x: (np.fft.rfft(part, size) for part in (x, x**2, np.ones(len(x))))
    (a, aa, na), (b, bb, nb) = spectra(first), spectra(second)
    sums = [np.roll(np.fft.irfft(np.conj(one) * other, size), len(first) - 1)[: size - 1]
            for one, other in ((a, b), (aa, nb), (na, bb), (na, nb))]
    scores = np.where(sums[3] >= shorter / 2, sums[0] / np.sqrt(np.maximum(sums[1] * sums[2], 1e-18)), -1.0)
    lags = (np.arange(len(scores)) - (len(first) - 1)) * STEP_S + later_times[0] - times[0]
    best = int(np.where((within[0] <= lags) & (lags <= within[1]), scores, -1.0).argmax())
    part = 0.0
    if 0 < best < len(scores) - 1:
        before, here, after = scores[best - 1 : best + 2]
        part = np.clip(0.5 * (before - after) / min(before - 2 * here + after, -1e-12), -0.5, 0.5)
    return float(lags[best] + part * STEP_S), float(scores[best])


def _on_grid(times: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Roots of values at equal steps, their mean taken off."""
    if len(times) < 2:
        return np.zeros(0)
    grid = np.arange(times[0], times[-1], STEP_S)
    course = np.interp(grid, times, np.sqrt(np.maximum(values, 0)))
    return course - course.mean()
