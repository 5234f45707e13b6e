"""What one row of a brain's evaluation scores. Every row, truth and noise too, goes through the same lines.

Distances are taken in two spaces. `motion`: all 56 numbers in `metrics.motion.balanced` units, deviations of the training
clips, expression and pose with equal say. `reaction`: only pitch of the head, smile and brows, which the law's reactions
move, each in deviations of the truth. Most of what a face does is nobody's answer to anything; in 56 numbers a window of it
buries the answers, and an energy score hardly tells the law from noise with its mean and covariance (Pinson & Tastu,
"Discrimination ability of the energy score", 2013). In `reaction` it does.

Knows nothing of brains or files. Axes: K samples, W windows, T frames at 25 fps.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from difflistener.evaluate.brain_rows import Scene
from difflistener.metrics.motion import (
    GROUPS, balanced, best_of, cut_windows, distances, drift, energy_score, frechet, jerk, seam_ratios, shift_test, spectrum,
    spectrum_distance, spread, variance_ratio,
)
from difflistener.motion import EXPRESSION, FPS
from difflistener.toy.codes import read
from difflistener.toy.detect import answers, detect
from difflistener.toy.reactions import ATTITUDES, questions

WARM_UP = 4 * FPS
"""Frames at the start that are not scored: a listener who comes from nowhere has to arrive."""
WINDOW = 2 * FPS
"""Frames of the windows that distances are taken over: a reaction with its delay."""
SETTLED = 1.7
"""Seconds into a silence after which the answer to its last phrase is over."""
UNANSWERED = 2.0
"""Seconds before the end in which a cause may find no answer any more."""
DOINGS = ("smile", "brow", "blink", "gaze_yaw")
PITCH = 50
"""Column of motion."""
MINUTE = 60 * FPS


@dataclass
class RowScore:
    """Figures of a row, and what plots and paired tests need of it."""

    figures: dict
    delays: dict[str, np.ndarray]
    """Question -> delays of all answers, seconds."""
    energy: dict[str, np.ndarray]
    """`motion`, `reaction`, and both in silence: energy score [W] of each window."""
    errors: np.ndarray = field(repr=False)
    """[K] expected least error of 1 to K samples."""


def score_row(
    scenes: list[Scene], reactions: list[np.ndarray], std: np.ndarray, block: int, shifts: int, seed: int
) -> RowScore:
    """Score reactions [K, T, 56] to each scene. `std` [56] sets the units, `block` (frames) where seams are looked for."""
    reaction_std = np.concatenate([_reaction_channels(scene.truth) for scene in scenes]).std(0)
    energy: dict[str, list] = {}
    costs: dict[str, list] = {}
    whole, errors = [], []
    for scene, made in zip(scenes, reactions):
        starts = {"": np.arange(WARM_UP, len(scene) - WINDOW + 1, WINDOW), " in silence": silent_starts(scene)}
        for space, view in (("motion", lambda motion: balanced(motion, std)),
                            ("reaction", lambda motion: _reaction_channels(motion) / reaction_std)):
            seen, truth = view(made), view(scene.truth)
            for where, first in starts.items():
                cost, error, score = _compare(seen, truth, first)
                costs.setdefault(space + where, []).append(cost)
                energy.setdefault(space + where, []).append(score)
                if space + where == "motion":
                    errors.append(error)
            if space == "motion":
                clip = seen[:, WARM_UP:].reshape(len(seen), 1, -1)
                whole.append(energy_score(clip, truth[WARM_UP:].reshape(1, -1))[0])
    energies = {name: np.concatenate(scores) for name, scores in energy.items()}
    curve = best_of(np.concatenate(errors, 1))
    tests = {name: shift_test(cost, shifts, np.random.default_rng((seed, 1)))._asdict() for name, cost in costs.items()}
    events, delays = event_answers(scenes, reactions)
    figures = {
        "energy": {name: _mean(scores) for name, scores in energies.items()} | {"motion of clips": float(np.mean(whole))},
        "windows": {name: len(scores) for name, scores in energies.items()},
        "best_of": {str(k + 1): float(value) for k, value in enumerate(curve)},
        "time_shift": tests, "events": events, **_looks(scenes, reactions, std, block),
    }
    return RowScore(figures, delays, energies, curve)


def silent_starts(scene: Scene) -> np.ndarray:
    """First frames of windows that lie in the speaker's silences, after the last phrase has been answered."""
    starts = [np.arange(max(round((start + SETTLED) * FPS), WARM_UP), min(round(end * FPS), len(scene)) - WINDOW + 1, WINDOW)
              for start, end in scene.script.silences]
    return np.concatenate([np.zeros(0, int), *starts])


def event_answers(scenes: list[Scene], reactions: list[np.ndarray], read: Callable = read) -> tuple[dict, dict[str, np.ndarray]]:
    """For each question of the law: how often and when it was answered, beside what the law says (`law`: given the
    attitude; `law_untold`: the mean over attitudes); and all delays. `read` as of `detect`."""
    found: dict[str, list] = {}
    rate: dict[str, list] = {}
    for scene, samples in zip(scenes, reactions):
        asked = questions(scene.script, scene.attitude, scene.law)
        chance = np.mean([[question.probability for question in questions(scene.script, attitude, scene.law)]
                          for attitude in ATTITUDES], 0)
        seconds = len(scene) / FPS
        for motion in samples:
            events = detect(motion, read)
            for kind, starts in events.items():
                rate.setdefault(kind, []).append(60 * len(starts) / seconds)
            for question, untold in zip(asked, chance):
                times = question.times[(question.times > WARM_UP / FPS) & (question.times < seconds - UNANSWERED)]
                delays = answers(events[question.kind], times, *question.window)
                stated = np.full((len(times), 2), (question.probability, untold))
                found.setdefault(question.name, []).append((delays, stated, question.delay))
    figures, delays = {}, {}
    for name, parts in found.items():
        every = np.concatenate([part[0] for part in parts])
        delays[name] = every[np.isfinite(every)]
        law, law_untold = map(_mean, np.concatenate([part[1] for part in parts]).T)
        law_delay, law_delay_std = parts[0][2] or (float("nan"), float("nan"))
        figures[name] = {
            "causes": len(every), "probability": _mean(np.isfinite(every)),
            "law": law, "law_untold": law_untold,
            "delay": _mean(delays[name]), "delay_std": float(delays[name].std()) if len(delays[name]) else float("nan"),
            "law_delay": law_delay, "law_delay_std": law_delay_std,
        }
    return figures | {"per_minute": {kind: _mean(np.array(rates)) for kind, rates in rate.items()}}, delays


def drift_figures(motion: np.ndarray, std: np.ndarray) -> dict[str, float]:
    """Of reactions [K, T, 56] to a long speaker: the last minute against the first (after the warm-up).

    mean_shift is the root mean square over channels of the change of the mean, in deviations; std_ratio the mean over
    channels of the ratio of deviations; each for all samples taken together. events are nods, smiles and raised brows a minute.
    """
    first, last = motion[:, WARM_UP : WARM_UP + MINUTE], motion[:, -MINUTE:]
    shift, ratio = drift(first.reshape(-1, motion.shape[-1]), last.reshape(-1, motion.shape[-1]), std)
    counts = [np.mean([sum(len(starts) for kind, starts in detect(sample).items() if kind != "blink") for sample in minute])
              for minute in (first, last)]
    return {"mean_shift": shift, "std_ratio": ratio, "events_first": float(counts[0]), "events_last": float(counts[1])}


def _compare(made: np.ndarray, truth: np.ndarray, starts: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Costs [W, W] of all pairs of windows, errors [K, W] and energy scores [W] of those of the same moment."""
    windows, true = cut_windows(made, starts, WINDOW), cut_windows(truth, starts, WINDOW)
    each = distances(windows, true)
    errors = np.diagonal(each, axis1=1, axis2=2)
    return each.mean(0), errors, errors.mean(0) - 0.5 * spread(windows)


def _reaction_channels(motion: np.ndarray) -> np.ndarray:
    """[..., T, 3] pitch, smile and brows of motion [..., T, 56]."""
    doings = read(motion[..., EXPRESSION])
    return np.stack([motion[..., PITCH], doings["smile"], doings["brow"]], -1)


def _looks(scenes: list[Scene], reactions: list[np.ndarray], std: np.ndarray, block: int) -> dict:
    """Figures that do not ask when something was done: variance, Frechet distances, jerk, spectrum, seams."""
    truths = [scene.truth[WARM_UP:] for scene in scenes]
    made = [sample[WARM_UP:] for samples in reactions for sample in samples]
    ratio = variance_ratio(made, truths)
    variance = {name: _mean(ratio[columns]) for name, columns in GROUPS.items()}
    read_made, read_true = ([np.stack([read(clip[:, EXPRESSION])[name] for name in DOINGS], 1) for clip in clips]
                            for clips in (made, truths))
    variance |= dict(zip(DOINGS, map(float, variance_ratio(read_made, read_true))))
    moves = std > 0
    jerks = [np.mean([jerk(clip)[moves] for clip in clips], 0) for clips in (made, truths)]
    density = [np.mean([spectrum(clip[:, moves]) for clip in clips], 0) for clips in (made, truths)]
    speed = [np.concatenate([np.diff(balanced(clip, std), axis=0) for clip in clips]) for clips in (made, truths)]
    all_made, all_true = np.concatenate(made), np.concatenate(truths)
    seams = np.array([seam_ratios(balanced(sample, std), block) for samples in reactions for sample in samples])
    return {
        "variance": variance,
        "variance_channels": {"least": float(np.nanmin(ratio)), "most": float(np.nanmax(ratio))},
        "frechet": {"expression": frechet(all_made[:, EXPRESSION], all_true[:, EXPRESSION]),
                    "pose_e3": 1e3 * frechet(all_made[:, EXPRESSION.stop :], all_true[:, EXPRESSION.stop :]),
                    "velocity": frechet(*speed)},
        "jerk": float((jerks[0] / jerks[1]).mean()), "spectrum_db": spectrum_distance(*density),
        "seam_mean": _mean(seams[:, 0]), "seam_largest": _mean(seams[:, 1]),
    }


def _mean(values: np.ndarray) -> float:
    values = np.asarray(values, float)
    values = values[np.isfinite(values)]
    return float(values.mean()) if len(values) else float("nan")
