"""`difflistener evaluate brain`: does a brain react as the law has it, to this speaker, and never the same way twice?

The corpus has a known law (`toy/reactions.py`), so the right answer is known: the rows `law` (told the listener's attitude) and
`law untold` are the perfect models, and what they score is the best that can be scored. `stranger` shows what listening is
worth. Every other row, trivial ones too, goes through the same code (`brain_scores.py`); what the rows are is in
`brain_rows.py`. No number alone means anything: noise wins Frechet distances, a mean wins errors.

    energy          energy score of 2 s windows, and of whole clips; the proper score: lower is better, nothing beats the law.
                    Of all 56 numbers, and of those that reactions move (`reaction`), where it tells most
    best of K       expected least error of K samples: falls with K only for a model whose samples differ in the right way
    time shift      is the distance to the truth of this moment less than to that of other moments? p over the shifts
    silence         the same in the speaker's silences, where only the face can cause a reaction
    events          how often and how late causes are answered, against what the law states
    variance, Frechet distances, jerk, spectrum, seams, drift    what a single sample looks like

Axes: K samples, T frames at 25 fps, D = 56 motion.
"""

from pathlib import Path

import numpy as np

from difflistener.brain.model import Brain
from difflistener.checkpoint import read_header
from difflistener.clip import Clip, write_json
from difflistener.corpus import clips_of, draw_pair, read_truth
from difflistener.dataset import Pair, load_pairs, statistics
from difflistener.device import resolve_device
from difflistener.errors import UserError
from difflistener.evaluate.brain_config import BrainEvaluation
from difflistener.evaluate.brain_plots import plot_best_of, plot_events, plot_fan
from difflistener.evaluate.brain_report import print_brain_tables
from difflistener.evaluate.brain_rows import NOTES, BrainRow, Row, Scene, baseline_rows, is_told, law_rows, react
from difflistener.evaluate.brain_scores import RowScore, drift_figures, score_row
from difflistener.evaluate.report import check_output, plain
from difflistener.metrics.motion import paired_test
from difflistener.motion import FPS
from difflistener.prepare.audio import encoder_from_settings
from difflistener.progress import progress
from difflistener.toy.codes import BASIS
from difflistener.toy.reactions import Law

MAIN, AUDIO_ONLY = "brain", "audio only"
LONG = 2
"""Key of the long conversation, beside 0 for train and 1 for test clips."""


def evaluate_brain(config: BrainEvaluation) -> dict:
    """Score a brain; prints the tables, writes evaluation.json and the pictures, returns the figures."""
    _check(config)
    device = resolve_device(config.device)
    brains = _load(config, device)
    main = brains[MAIN]
    tests, trains = clips_of(config.corpus, "test"), clips_of(config.corpus, "train")
    tests = tests[: config.clips]
    pairs = load_pairs([*tests, *trains], main.config.audio)
    _check_fit(brains, pairs[0], config)
    train = pairs[len(tests) :]
    moments = statistics(train, [(0, len(pair)) for pair in train])["motion"]
    scenes = [read_scene(pair) for pair in pairs[: len(tests)]]
    rows: dict[str, Row] = {name: BrainRow(brain, config.num_steps, config.attitude) for name, brain in brains.items()}
    rows |= law_rows() | baseline_rows(train, moments.mean)
    config.out.mkdir(parents=True, exist_ok=True)

    scores: dict[str, RowScore] = {}
    shown: dict[str, np.ndarray] = {}
    for name, row in rows.items():
        made = react(row, scenes, config.samples, config.seed, f"react {name}")
        scores[name] = score_row(scenes, made, moments.std, main.config.block, config.shifts, config.seed)
        shown[name] = made[0]
    figures = {
        "brain": str(config.brain), "corpus": str(config.corpus), "clips": len(scenes), "seconds": sum(map(len, scenes)) / FPS,
        "learned_from": _learned_from(config.brain, tests), "samples": config.samples, "num_steps": main.num_steps(config.num_steps),
        "shifts": config.shifts, "block": main.config.block, "notes": {name: NOTES.get(name, "") for name in rows},
        "rows": {name: score.figures for name, score in scores.items()},
    }
    for name, row in figures["rows"].items():
        told = name == "law" or (config.attitude and name in brains and is_told(brains[name]))
        row["compared_with"] = "law" if told else "law untold"
        perfect = figures["rows"][row["compared_with"]]["energy"]
        row["over_law"] = {space: value / perfect[space] - 1 for space, value in row["energy"].items()}
    if AUDIO_ONLY in scores:
        figures["face"] = _face(scores, config)
    if config.drift_minutes:
        generated = {name: row for name, row in rows.items() if name in brains or name == "law"}
        figures["drift"] = _drift(config, generated, main, moments.std)
    figures = plain(figures)
    write_json(config.out / "evaluation.json", figures)
    plot_fan(config.out / "fan.png", scenes[0].truth, {name: shown[name] for name in (MAIN, "law")}, scenes[0].script)
    plot_events(config.out / "events.png", {name: (scores[name].figures["events"], scores[name].delays) for name in [*brains, "law"]})
    plot_best_of(config.out / "best_of.png", scores)
    print_brain_tables(figures)
    return figures


def _check(config: BrainEvaluation) -> None:
    check_output(config.out, config.overwrite)
    for name, least in (("samples", 2), ("shifts", 100), ("drift_samples", 1), ("seed", 0)):
        if getattr(config, name) < least:
            raise UserError(f"--{name.replace('_', '-')} is {getattr(config, name)}.", f"Give at least {least}.")
    if config.clips is not None and config.clips < 1:
        raise UserError(f"--clips is {config.clips}.", "Give at least 1, or leave it out for all.")
    if config.drift_minutes and not config.drift_minutes >= 2.5:
        raise UserError(f"--drift-minutes is {config.drift_minutes}.",
                        "A first and a last minute need at least 2.5; 0 leaves drift out.")


def _load(config: BrainEvaluation, device: str) -> dict[str, Brain]:
    folders = {MAIN: config.brain}
    if config.audio_only is not None:
        folders[AUDIO_ONLY] = config.audio_only
    for entry in config.beside:
        name, _, folder = entry.partition("=")
        if not name or not folder:
            raise UserError(f"--beside {entry} names no brain.", "Give NAME=FOLDER, such as mlp=brains/mlp.")
        if name in folders or name in NOTES:
            raise UserError(f"--beside {entry}: there is a row {name!r} already.", "Choose another name.")
        folders[name] = Path(folder)
    brains = {name: Brain.from_pretrained(folder, device) for name, folder in folders.items()}
    if config.audio_only is not None and brains[AUDIO_ONLY].config.uses_face:
        raise UserError(f"The brain {config.audio_only} was trained with the face.",
                        "Give --audio-only a brain trained with --no-face.")
    return brains


def _check_fit(brains: dict[str, Brain], pair: Pair, config: BrainEvaluation) -> None:
    for name, brain in brains.items():
        if brain.basis != pair.basis:
            raise UserError(f"The brain in row {name!r} speaks basis {brain.basis}, the corpus basis {pair.basis}.",
                            "Evaluate a brain that was trained on a corpus.")
        if brain.config.audio != brains[MAIN].config.audio or brain.config.audio_settings != pair.audio_settings:
            raise UserError(f"The brain in row {name!r} hears {brain.config.audio} with other settings than the corpus has.",
                            "Evaluate brains that were trained on this corpus.")
    if pair.basis != BASIS:
        raise UserError(f"The clips of {config.corpus} have basis {pair.basis}; events are read in basis {BASIS}.",
                        f"Make a corpus with: difflistener corpus --out {config.corpus}")


def read_scene(pair: Pair) -> Scene:
    """A clip of a corpus as a scene."""
    truth = read_truth(Clip.open(pair.path, check=False))
    expression = None if pair.expression is None else np.array(pair.expression)
    return Scene(pair.path.name, np.array(pair.audio), expression, truth.script, truth.attitude, truth.law, np.array(pair.motion))


def _long_scene(config: BrainEvaluation, brain: Brain) -> Scene:
    """A conversation of `drift_minutes` that no corpus holds."""
    speaker, listener = draw_pair(60 * config.drift_minutes, (config.seed, LONG, 0))
    encoder = encoder_from_settings(brain.config.audio, brain.config.audio_settings)
    audio = encoder.encode(speaker.sound, len(listener.motion))
    return Scene("long", audio, speaker.expression, speaker.script, listener.attitude, Law(), listener.motion)


def _drift(config: BrainEvaluation, rows: dict[str, Row], brain: Brain, std: np.ndarray) -> dict[str, dict]:
    scene = _long_scene(config, brain)
    return {name: drift_figures(row(scene, config.drift_samples, config.seed), std)
            for (name, row), _ in progress(list(rows.items()), "drift")}


def _face(scores: dict[str, RowScore], config: BrainEvaluation) -> dict:
    """What seeing the face adds over a brain that only hears: difference of energy scores, below zero where it helps."""
    result = {}
    for name, without in scores[AUDIO_ONLY].energy.items():
        with_face = scores[MAIN].energy[name]
        if len(with_face):
            difference, p = paired_test(with_face, without, max(config.shifts, 1000), np.random.default_rng((config.seed, 3)))
            result[name] = {"difference": difference, "share": difference / without.mean(), "p": p, "windows": len(with_face)}
    return result


def _learned_from(brain: Path, tests: list[Path]) -> int:
    """How many of the test clips the brain was trained on, as far as its checkpoint says."""
    clips = (read_header(brain).get("training") or {}).get("clips", [])
    known = {Path(clip["path"]).resolve() for clip in clips}
    return sum(path.resolve() in known for path in tests)
