"""`difflistener experiment`: reads the recipe, has its cells computed, and writes the report of all that is finished."""

import sys
from dataclasses import asdict, replace
from pathlib import Path

from difflistener.cli import read_recipe, settings_from
from difflistener.clip import write_json
from difflistener.device import resolve_device
from difflistener.errors import UserError
from difflistener.experiment.cells import Cells
from difflistener.experiment.config import Asked, Bodies, Experiment, Recipe
from difflistener.experiment.report import Finished, write_report
from difflistener.experiment.rows import BrainCells, body_scores, check_rows

MARK = "experiment.json"


def experiment(config: Experiment) -> dict:
    """Compute the cells that are missing, and write results.json, tables.md, tables.tex, report.html and pictures.

    An interruption keeps finished cells and the state of the training it falls into.

    Raises:
        UserError: a recipe that says what cannot be, an output folder in use.
    """
    recipe = load_recipe(config.recipe)
    device = resolve_device(config.device)
    _claim(config, recipe)
    cells, found = Cells(config.out / "cells"), Finished()
    try:
        if recipe.brains:
            for row in BrainCells(recipe, cells, device, config.workers).scores():
                found.brains.append(row)
        if recipe.bodies is not None:
            for row in body_scores(recipe, recipe.bodies, cells, device):
                found.bodies.append(row)
    finally:
        if found.brains or found.bodies:
            write_report(config.out, recipe, found)
    print(f"{cells.computed} cells computed, {cells.kept} were there already.\nThe report: {config.out / 'report.html'}", file=sys.stderr)
    return {"report": str(config.out / "report.html"), "computed": cells.computed, "kept": cells.kept}


def load_recipe(path: Path) -> Recipe:
    """Raises `UserError` for a file that is no recipe, unknown settings, and rows that cannot be."""
    recipe = read_recipe(Recipe, path)
    if not isinstance(recipe.title, str):
        raise UserError(f"{path} has no title.", "Give it one; see recipes/experiment-quick.json.")
    rows = recipe.rows or {name: {"brain": name} for name in recipe.brains}
    rows = {name: settings_from(Asked, values, f"{path}, row {name!r}") for name, values in rows.items()}
    bodies = None if recipe.bodies is None else settings_from(Bodies, recipe.bodies, f"{path}, bodies")
    recipe = replace(recipe, rows=rows, bodies=bodies)
    _check_settings(recipe, path)
    check_rows(recipe, path)
    return recipe


def _check_settings(recipe: Recipe, path: Path) -> None:
    from difflistener.body.config import BodyTraining
    from difflistener.brain.config import BrainTraining
    from difflistener.corpus import Corpus
    from difflistener.evaluate.config import BodyEvaluation
    from difflistener.metrics.presets import PRESETS

    settings_from(Corpus, recipe.corpus, f"{path}, corpus")
    for name, given in recipe.brains.items():
        settings_from(BrainTraining, given, f"{path}, brain {name!r}")
    if recipe.bodies is not None:
        for name, given in recipe.bodies.train.items():
            settings_from(BodyTraining, given, f"{path}, body {name!r}")
        settings_from(BodyEvaluation, recipe.bodies.evaluate, f"{path}, bodies")
    if recipe.preset not in PRESETS:
        raise UserError(f"{path} names the preset {recipe.preset!r}.", f"Known presets: {', '.join(PRESETS)}.")


def _claim(config: Experiment, recipe: Recipe) -> None:
    out, mark = config.out, config.out / MARK
    if config.resume and config.overwrite:
        raise UserError("--overwrite and --resume exclude each other.", "Give one of them.")
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file, not a folder.", "Name another --out.")
    if out.is_dir() and any(out.iterdir()):
        if not mark.is_file():
            raise UserError(f"{out} holds files that are not an experiment; they are left alone.", "Name another --out.")
        if not (config.resume or config.overwrite):
            raise UserError(f"{out} already holds an experiment.",
                            "Give --resume to go on with it, --overwrite to replace it, or another --out.")
        if config.overwrite:
            import shutil

            shutil.rmtree(out / "cells", ignore_errors=True)
    out.mkdir(parents=True, exist_ok=True)
    write_json(mark, {"recipe": str(config.recipe), **asdict(recipe) | {"bodies": _plain_bodies(recipe)}})


def _plain_bodies(recipe: Recipe) -> dict | None:
    if recipe.bodies is None:
        return None
    return {name: str(value) if isinstance(value, Path) else value for name, value in asdict(recipe.bodies).items()}
