"""Pictures of an experiment's report. Writes PNG and JPEG files; reads the examples that score cells keep."""

from pathlib import Path
from typing import Any

import numpy as np

from difflistener.clip import replacing
from difflistener.evaluate.brain_plots import Axes, plot_events, plot_fan
from difflistener.experiment.cells import Cell
from difflistener.experiment.rows import EXAMPLE

MOST_ROWS = 5
STRIP_WIDTH = 1600


def is_trained(result: dict[str, Any]) -> bool:
    """Whether a row learned anything."""
    return result.get("train_seconds") is not None


def plot_examples(fan: Path, delays: Path, cells: dict[str, Cell]) -> None:
    """Reactions and delays of the best row of each trained brain, as many as there is room for, and of the law."""
    examples = {name: _example(cells[name]) for name in [*_spread_over(best_of_each(cells), MOST_ROWS), "law"]}
    plot_fan(fan, _example(cells["truth"])["reactions"][0], {name: example["reactions"] for name, example in examples.items()})
    plot_events(delays, {name: (cells[name].result["events"], {key.removeprefix("delays "): value for key, value in example.items()})
                         for name, example in examples.items()})


def plot_quality(path: Path, trained: list[tuple[str, dict[str, Any]]], marks: dict[str, dict[str, Any]]) -> None:
    """Energy score of reactions against steps and training seconds, for (row, result) of every seed; `marks` are lines."""
    with Axes(path, 1, 2, (11, 4)) as axes:
        for axis, key, label in zip(axes[0], ("num_steps", "train_seconds"), ("steps of generation", "seconds of training")):
            for name in dict.fromkeys(name for name, _ in trained):
                results = [result for row, result in trained if row == name]
                x, y = zip(*((max(result[key], 0.1), result["energy"]["reaction"]) for result in results))
                axis.plot(x, y, "o", label=name, alpha=0.8)
            for style, (name, result) in zip(("-", "--"), marks.items()):
                axis.axhline(result["energy"]["reaction"], color="black", linewidth=0.8, linestyle=style, label=name)
            axis.set_xscale("log")
            axis.set_xlabel(label)
        axes[0, 0].set_ylabel("energy score of reactions, lower is better")
        axes[0, 1].legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))


def plot_strips(path: Path, sheets: dict[str, Path]) -> None:
    """Sheets of turned heads, one under the other, each under its name."""
    from PIL import Image, ImageDraw

    pictures = []
    for name, sheet in sheets.items():
        with Image.open(sheet) as opened:
            picture = opened.convert("RGB")
        height = round(picture.height * STRIP_WIDTH / picture.width)
        bar = Image.new("RGB", (STRIP_WIDTH, 20), "white")
        ImageDraw.Draw(bar).text((4, 4), name, fill="black")
        pictures += [bar, picture.resize((STRIP_WIDTH, height), Image.LANCZOS)]
    whole = Image.new("RGB", (STRIP_WIDTH, sum(picture.height for picture in pictures)), "white")
    top = 0
    for picture in pictures:
        whole.paste(picture, (0, top))
        top += picture.height
    with replacing(path) as temporary:
        whole.save(temporary, format="JPEG", quality=88)


def _example(cell: Cell) -> dict[str, np.ndarray]:
    with np.load(cell.folder / EXAMPLE) as arrays:
        return dict(arrays)


def best_of_each(cells: dict[str, Cell]) -> list[str]:
    """The row of each trained brain that reacts best, in the order of `cells`."""
    best: dict[str, str] = {}
    for name, cell in cells.items():
        if is_trained(cell.result):
            brain = cell.result["brain"]
            best[brain] = min(best.get(brain, name), name, key=lambda row: cells[row].result["energy"]["reaction"])
    return [name for name in cells if name in best.values()]


def _spread_over(names: list[str], most: int) -> list[str]:
    """At most so many of `names`, spread evenly over them, in order."""
    if len(names) <= most:
        return names
    return [names[index] for index in np.linspace(0, len(names) - 1, most).round().astype(int)]
