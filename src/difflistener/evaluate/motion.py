"""`difflistener evaluate motion`: generated motion against true motion, by the definitions of a preset (metrics/presets.py).

Every row, model and baselines (motion_rows.py) alike, goes through the same code. Sequences are read one at a time, once
for every row; only a preset with a pooled SID holds frames of all of them. Axes: K samples, T frames at 25 fps, D = 56 motion.
"""

import math
from collections.abc import Iterator
from importlib.metadata import version

import numpy as np

from difflistener import __version__
from difflistener.clip import write_json
from difflistener.errors import UserError
from difflistener.evaluate.motion_config import MotionEvaluation
from difflistener.evaluate.motion_files import Matched, listed, match
from difflistener.evaluate.motion_rows import NOTES, Row, baseline_rows, generator_of
from difflistener.evaluate.report import print_table
from difflistener.metrics.presets import PRESETS, Preset
from difflistener.metrics.published import Scores, Sequence
from difflistener.motion import FPS
from difflistener.progress import progress

COLUMNS_OF_TABLE = 8


def evaluate_motion(config: MotionEvaluation) -> dict:
    """Score motion; prints the definition, settings, versions and tables, writes --json, returns the figures.

    `metrics` are the model's, `rows` those of the baselines: metric -> group -> value, None where it is not defined.
    """
    _check(config)
    preset = PRESETS[config.preset]
    matched, notes = _admitted(match(config.pred, config.truth, config.speaker), preset)
    samples = max(sequence.pred.num_samples for sequence in matched) if preset.uses_all_samples else 1
    rows: dict[str, Row | None] = {"model": None} | baseline_rows(config.train, config.speaker is not None)
    scores = {name: _finite(preset.score(_sequences(name, row, matched, preset, samples, config.seed), config.seed))
              for name, row in rows.items()}
    lengths = "predictions padded by their last frame, or cut, to the truth" if preset.pads else "cut to the shortest"
    figures = {
        "preset": preset.name, "definition": preset.definition,
        "settings": preset.settings | {
            "pred": str(config.pred), "truth": str(config.truth), "speaker": config.speaker and str(config.speaker),
            "train": config.train and str(config.train), "seed": config.seed, "samples": samples, "fps": FPS, "lengths": lengths,
            "frames": f"{preset.least} or more" if preset.most is None else f"{preset.least} to {preset.most}"},
        "versions": {name: version(name) for name in ("numpy", "scipy", "scikit-learn")} | {"difflistener": __version__},
        "sequences": len(matched), "metrics": scores.pop("model"), "rows": scores,
    }
    if config.json is not None:
        write_json(config.json, figures)
    _print(figures, notes)
    return figures


def _check(config: MotionEvaluation) -> None:
    if config.seed < 0:
        raise UserError(f"--seed is {config.seed}.", "Give at least 0.")
    if config.train is not None and config.speaker is None:
        raise UserError("--train is given without --speaker.",
                        "The nearest neighbour is that of the speaker: give --speaker too.")
    if config.json is not None and config.json.is_dir():
        raise UserError(f"{config.json} is a folder.", "Name a file for --json.")


def _admitted(matched: list[Matched], preset: Preset) -> tuple[list[Matched], list[str]]:
    """The sequences that the preset scores, and what to tell of lengths."""
    notes = []
    uneven = [sequence.lengths() for sequence in matched if not sequence.is_even()]
    if uneven:
        done = "padded or cut to the truth" if preset.pads else "cut to the shortest, from the start"
        notes.append(f"{len(uneven)} of {len(matched)} sequences have unequal lengths and are {done}: {listed(uneven)}")
    unseen = [f"{sequence.name} ({sequence.truth.unseen})" for sequence in matched if sequence.truth.unseen]
    if unseen:
        notes.append(f"{len(unseen)} of {len(matched)} true sequences have frames in which nobody was tracked; they are scored as "
                     f"interpolated: {listed(unseen)}")
    kept = [sequence for sequence in matched if preset.admits(str(sequence.pred.path), sequence.frames(preset.pads))]
    if len(kept) < len(matched):
        skipped = [sequence.lengths() for sequence in matched if sequence not in kept]
        notes.append(f"{len(skipped)} of {len(matched)} sequences are left out, as preset {preset.name} takes those of "
                     f"{preset.least} to {preset.most} frames: {listed(skipped)}")
    return kept or matched, notes


def _sequences(
    name: str, row: Row | None, matched: list[Matched], preset: Preset, samples: int, seed: int
) -> Iterator[Sequence]:
    """The sequences with the prediction of a row, read one at a time; `row` None is the model itself."""
    for sequence, _ in progress(matched, f"score {name}"):
        frames = sequence.frames(preset.pads)
        truth = sequence.truth.read()[:frames]
        speaker = None if sequence.speaker is None else _fit(sequence.speaker.read(), frames)
        if row is None:
            pred = _fit(sequence.pred.read(), frames)
        else:
            pred = row(truth, speaker, samples, generator_of(sequence.name, seed))
        yield Sequence(pred, truth, speaker, sequence.name)


def _fit(motion: np.ndarray, frames: int) -> np.ndarray:
    """Motion [..., T, D] cut to `frames`, or padded by its last frame."""
    return motion[..., np.minimum(np.arange(frames), motion.shape[-2] - 1), :]


def _finite(scores: Scores) -> dict:
    """`scores` ready for JSON: None for what is not defined."""
    return {metric: {group: value if math.isfinite(value) else None for group, value in groups.items()}
            for metric, groups in scores.items()}


def _print(figures: dict, notes: list[str]) -> None:
    print(f"preset {figures['preset']}: {figures['definition']}")
    for title in ("settings", "versions"):
        print(f"{title}: " + ", ".join(f"{key} {value}" for key, value in figures[title].items()))
    print(f"{figures['sequences']} sequences")
    for note in notes:
        print(f"note: {note}")
    if figures["settings"]["speaker"] is None:
        print("note: without --speaker there is no metric that looks at the speaker, and no mirror")
    rows = {"model": figures["metrics"]} | figures["rows"]
    metrics = list(dict.fromkeys(metric for scores in rows.values() for metric in scores))
    groups = list(dict.fromkeys(group for scores in rows.values() for values in scores.values() for group in values))
    for group in groups:
        shown = [metric for metric in metrics if any(group in scores.get(metric, {}) for scores in rows.values())]
        table = {name: {metric: scores.get(metric, {}).get(group) for metric in shown} | {"note": NOTES[name]}
                 for name, scores in rows.items()}
        for first in range(0, len(shown), COLUMNS_OF_TABLE):
            columns = {metric: (metric, decimals([row[metric] for row in table.values()]))
                       for metric in shown[first : first + COLUMNS_OF_TABLE]}
            print(f"\n{group}")
            print_table(table, columns)


def decimals(values: list[float | None]) -> int:
    """Decimals that show four digits of the largest of `values`."""
    largest = max((abs(value) for value in values if value), default=1.0)
    return min(max(3 - math.floor(math.log10(largest)), 0), 8)
