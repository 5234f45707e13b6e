"""What the cells of an experiment compute: corpus, trained brains and bodies, and the scores of each row.

Every figure comes from the code of `evaluate brain` and `evaluate body`; here it is only asked for. Axes: K samples, T frames.
"""

import shutil
import time
from collections.abc import Iterator
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np

from difflistener.clip import Clip
from difflistener.errors import UserError
from difflistener.experiment.cells import Cell, Cells
from difflistener.experiment.config import Asked, Bodies, Recipe

EXAMPLE = "example.npz"
"""Reactions [K, T, 56] to the beginning of the first test conversation, delays of each question and errors of the best of K."""
EXAMPLE_FRAMES = 1000


class BrainCells:
    """The brain table: trains what the recipe names, then scores every row with every seed."""

    def __init__(self, recipe: Recipe, cells: Cells, device: str, workers: int):
        self.recipe, self.cells, self.device = recipe, cells, device
        self.corpus = cells.get("corpus", "corpus", recipe.corpus, lambda folder: _draw(folder, recipe.corpus, workers))
        self.trained: dict[tuple[str, int], Cell] = {}

    def brain(self, name: str, seed: int) -> Cell:
        """The trained brain of a name; one that is distilled from another comes after it."""
        if (name, seed) not in self.trained:
            given = dict(self.recipe.brains[name])
            settings = {"corpus": self.corpus.digest, "seed": seed, **given}
            if "distil" in given:
                teacher = self.brain(given["distil"], seed)
                settings["distil"], given["distil"] = teacher.digest, teacher.folder / "brain"
            self.trained[name, seed] = self.cells.get("brain", f"{name} seed {seed}", settings, partial(self._train, given=given, seed=seed))
        return self.trained[name, seed]

    def scores(self) -> Iterator[tuple[str, int, Cell]]:
        """(row, seed, cell) of each row of the recipe, then of the law and of what learns nothing, first seed only."""
        from difflistener.evaluate.brain_rows import NOTES

        recipe = self.recipe
        asked = {"samples": recipe.samples, "test_clips": recipe.test_clips, "shifts": recipe.shifts, "preset": recipe.preset}
        for seed in recipe.seeds:
            for name, row in recipe.rows.items():
                brain = self.brain(row.brain, seed)
                settings = {"brain": brain.digest, "row": vars(row), "seed": seed, **asked}
                compute = partial(self._score_brain, cell=brain, row=row, seed=seed)
                yield name, seed, self.cells.get("scores", f"{name} seed {seed}", settings, compute)
        seed = recipe.seeds[0]
        for name in NOTES:
            settings = {"corpus": self.corpus.digest, "row": name, "seed": seed, **asked}
            yield name, seed, self.cells.get("scores", name, settings, partial(self._score_other, name=name, seed=seed))

    @cached_property
    def scorer(self) -> "Scorer":
        return Scorer(self.corpus.folder / "corpus", self.recipe)

    def _train(self, folder: Path, given: dict[str, Any], seed: int) -> dict[str, Any]:
        from difflistener.brain.config import BrainTraining
        from difflistener.brain.train import train_brain
        from difflistener.checkpoint import how_to_go_on
        from difflistener.corpus import clips_of

        clips = tuple(clips_of(self.corpus.folder / "corpus", "train"))
        summary = train_brain(BrainTraining(clips, folder / "brain", seed=seed, device=self.device, **how_to_go_on(folder / "brain"), **given))
        shutil.rmtree(folder / "brain" / "training_state", ignore_errors=True)
        return {"train_seconds": summary["seconds"], "steps": summary["steps"]}

    def _score_brain(self, folder: Path, cell: Cell, row: Asked, seed: int) -> dict[str, Any]:
        from difflistener.brain.model import Brain
        from difflistener.evaluate.brain_rows import BrainRow

        brain = Brain.from_pretrained(cell.folder / "brain", self.device)
        manner = {name: value for name in ("audio_guidance", "face_guidance") if (value := getattr(row, name)) is not None}
        result = self.scorer.score(folder, BrainRow(brain, row.num_steps, True, **manner), seed, brain.config.block)
        return result | {"train_seconds": cell.result["train_seconds"], "brain": row.brain,
                         "num_steps": brain.num_steps(row.num_steps) if brain.network.is_diffusion else 1}

    def _score_other(self, folder: Path, name: str, seed: int) -> dict[str, Any]:
        return self.scorer.score(folder, self.scorer.others[name], seed)


class Scorer:
    """Scores rows on the test conversations of a corpus."""

    def __init__(self, corpus: Path, recipe: Recipe):
        from difflistener.corpus import clips_of
        from difflistener.dataset import load_pairs, statistics
        from difflistener.evaluate.brain import read_scene
        from difflistener.evaluate.brain_rows import Row, baseline_rows, law_rows

        self.recipe = recipe
        train = load_pairs(clips_of(corpus, "train"), "logmel")
        self.moments = statistics(train, [(0, len(pair)) for pair in train])["motion"]
        self.scenes = [read_scene(pair) for pair in load_pairs(clips_of(corpus, "test")[: recipe.test_clips], "logmel")]
        self.others: dict[str, Row] = law_rows() | baseline_rows(train, self.moments.mean)

    def score(self, folder: Path, row, seed: int, block: int = 2) -> dict[str, Any]:
        """Figures of a row, which turns a scene into reactions [K, T, 56]."""
        from difflistener.evaluate.brain_rows import react
        from difflistener.evaluate.brain_scores import score_row
        from difflistener.evaluate.report import plain
        from difflistener.metrics.presets import PRESETS
        from difflistener.metrics.published import Sequence
        from difflistener.motion import FPS

        recipe, begun = self.recipe, time.monotonic()
        made = react(row, self.scenes, recipe.samples, seed, "react")
        seconds = time.monotonic() - begun
        score = score_row(self.scenes, made, self.moments.std, block, recipe.shifts, seed)
        np.savez_compressed(folder / EXAMPLE, reactions=made[0][:, :EXAMPLE_FRAMES].astype(np.float16), errors=score.errors,
                            **{f"delays {name}": delays for name, delays in score.delays.items()})
        sequences = (Sequence(samples, scene.truth, np.asarray(scene.expression), scene.name) for scene, samples in zip(self.scenes, made))
        given = PRESETS[recipe.preset].score(sequences, seed)
        frames = sum(samples.shape[0] * samples.shape[1] for samples in made)
        return plain({**score.figures, "preset": given, "times_real_time": frames / FPS / max(seconds, 1e-9)})


def body_scores(recipe: Recipe, bodies: Bodies, cells: Cells, device: str) -> Iterator[tuple[str, int, Cell]]:
    """(row, seed, cell) of each trained body; a cell's result is that of `evaluate body` and its folder holds the strips."""
    if bodies.clip is None:
        toy = {"seconds": bodies.seconds, "size": bodies.size}
        source = cells.get("film", "toy", toy, lambda folder: _film(folder, bodies))
        clip, known = source.folder / "clip", source.digest
    else:
        clip, known = bodies.clip, Clip.open(bodies.clip).digest
    for seed in recipe.seeds:
        for name, given in bodies.train.items():
            settings = {"clip": known, "seed": seed, **given}
            train = partial(_train_body, clip=clip, given=given, seed=seed, device=device)
            body = cells.get("body", f"{name} seed {seed}", settings, train)
            score = partial(_score_body, body=body, clip=clip, given=bodies.evaluate, device=device)
            yield name, seed, cells.get("pictures", f"{name} seed {seed}", {"body": body.digest, **bodies.evaluate}, score)


def _draw(folder: Path, given: dict[str, Any], workers: int) -> dict[str, Any]:
    from difflistener.corpus import Corpus, write_corpus

    write_corpus(Corpus(folder / "corpus", workers=workers, resume=(folder / "corpus").exists(), **given))
    return {}


def _film(folder: Path, bodies: Bodies) -> dict[str, Any]:
    from difflistener.prepare.config import Prepare
    from difflistener.prepare.pipeline import prepare
    from difflistener.toy import write_pair

    write_pair(folder / "videos", bodies.seconds, 0, bodies.size)
    return prepare(Prepare(folder / "clip", listener=folder / "videos" / "listener.mp4", size=bodies.size,
                           resume=(folder / "clip").exists()))


def _train_body(folder: Path, clip: Path, given: dict[str, Any], seed: int, device: str) -> dict[str, Any]:
    from difflistener.body.config import BodyTraining
    from difflistener.body.train import train_body
    from difflistener.checkpoint import how_to_go_on

    summary = train_body(BodyTraining(clip, folder / "body", seed=seed, device=device, **how_to_go_on(folder / "body"), **given))
    shutil.rmtree(folder / "body" / "training_state", ignore_errors=True)
    return {"train_seconds": summary["train_seconds"], "images_per_s": summary["images_per_s"]}


def _score_body(folder: Path, body: Cell, clip: Path, given: dict[str, Any], device: str) -> dict[str, Any]:
    from difflistener.evaluate.body import evaluate_body
    from difflistener.evaluate.config import BodyEvaluation

    figures = evaluate_body(BodyEvaluation(body.folder / "body", clip, folder / "scores", device=device, overwrite=True, **given))
    return {"rows": figures["rows"], "large_poses": figures.get("large_poses"), **body.result}


def check_rows(recipe: Recipe, where: Path) -> None:
    """Raise `UserError` for rows of brains that the recipe does not train, and other things that cannot be."""
    for name, row in recipe.rows.items():
        if row.brain not in recipe.brains:
            raise UserError(f"{where}: row {name!r} is of brain {row.brain!r}, which the recipe does not train.",
                            f"Its brains are {', '.join(recipe.brains) or 'none'}.")
    for name, given in recipe.brains.items():
        if "distil" in given and (given["distil"] not in recipe.brains or given["distil"] == name):
            raise UserError(f"{where}: brain {name!r} is distilled from {given['distil']!r}, which the recipe does not train.",
                            f"Its brains are {', '.join(recipe.brains)}.")
    if not recipe.seeds or min(recipe.seeds) < 0 or len(set(recipe.seeds)) < len(recipe.seeds):
        raise UserError(f"{where}: seeds are {list(recipe.seeds)}.", "Give at least one, each from 0 up and once.")
    if recipe.samples < 2 or recipe.shifts < 100:
        raise UserError(f"{where}: samples is {recipe.samples}, shifts is {recipe.shifts}.", "Give at least 2 samples and 100 shifts.")
    if not recipe.brains and recipe.bodies is None:
        raise UserError(f"{where} names neither brains nor bodies.", "Name at least one row; see recipes/experiment-quick.json.")
