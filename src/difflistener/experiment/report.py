"""The tables of an experiment and the report around them: results.json, tables.md, tables.tex, report.html, pictures.

A figure is the mean over seeds, with the least and the most where there are several seeds. report.html holds its pictures
itself and needs no network. Knows nothing of how cells are computed.
"""

import base64
import html
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from difflistener import __version__
from difflistener.clip import replacing, write_json
from difflistener.evaluate.brain_rows import NOTES
from difflistener.evaluate.motion import decimals
from difflistener.experiment.cells import Cell
from difflistener.experiment.config import Recipe
from difflistener.experiment.plots import is_trained, plot_examples, plot_quality, plot_strips

Row = tuple[str, int, Cell]


@dataclass
class Finished:
    """(row, seed, cell) of all that is finished."""

    brains: list[Row] = field(default_factory=list)
    bodies: list[Row] = field(default_factory=list)


class Column(NamedTuple):
    """A figure of a result; `value` gives None where a row has none."""

    title: str
    places: int
    better: str
    """less, more, one (the nearer to 1) or none."""
    value: Callable[[dict[str, Any]], float | None]


class Table(NamedTuple):
    title: str
    text: str
    columns: list[Column]
    rows: dict[str, list[dict[str, Any]]]
    """Row -> result of each seed."""


def write_report(out: Path, recipe: Recipe, found: Finished) -> None:
    """Write everything into the folder `out`."""
    tables = [*([_brain_table(found.brains)] if found.brains else []), *([_body_table(found.bodies)] if found.bodies else [])]
    pictures = _draw(out, found)
    write_json(out / "results.json", {
        "title": recipe.title, "seeds": list(recipe.seeds),
        "tables": {table.title: {name: {column.title: _spread(column, results) for column in table.columns}
                                 for name, results in table.rows.items()} for table in tables},
        "cells": [{"row": name, "seed": seed, "cell": str(cell.folder.relative_to(out)), "result": cell.result}
                  for name, seed, cell in (*found.brains, *found.bodies)],
    })
    _write(out / "tables.md", "\n\n".join(_markdown(table) for table in tables) + "\n")
    _write(out / "tables.tex", "\n\n".join(_latex(table) for table in tables) + "\n")
    _write(out / "report.html", _html(recipe, tables, pictures))


def _write(path: Path, text: str) -> None:
    with replacing(path) as temporary:
        temporary.write_text(text)


def _by_row(rows: list[Row]) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {}
    for name, _, cell in rows:
        found.setdefault(name, []).append(cell.result)
    return found


def _brain_table(rows: list[Row]) -> Table:
    found = _by_row(rows)
    law = found["law"][0] if "law" in found else None

    def over_law(space: str) -> Callable[[dict], float | None]:
        return lambda result: None if law is None else 100 * (result["energy"][space] / law["energy"][space] - 1)

    def asked(result: dict) -> list[dict]:
        return [figures for name, figures in result["events"].items() if name != "per_minute"]

    def worst_rate(result: dict) -> float | None:
        return max((abs(figures["probability"] - figures["law"]) for figures in asked(result)), default=None)

    def worst_delay(result: dict) -> float | None:
        known = [abs(figures["delay"] - figures["law_delay"]) for figures in asked(result)
                 if figures["law_delay"] is not None and figures["delay"] is not None]
        return 1000 * max(known) if known else None

    columns = [
        Column("reaction, % over law", 1, "less", over_law("reaction")), Column("motion, % over law", 1, "less", over_law("motion")),
        Column("rate, off by", 3, "less", worst_rate), Column("delay, off by ms", 0, "less", worst_delay),
        *(Column(f"var {group}", 2, "one", lambda result, group=group: result["variance"][group])
          for group in ("expression", "rotation", "jaw")),
        Column("best of 1", 3, "none", lambda result: list(result["best_of"].values())[0]),
        Column("best of K", 3, "none", lambda result: list(result["best_of"].values())[-1]),
        Column("shift p", 3, "none", lambda result: result["time_shift"]["motion"]["p"]),
        Column("silence p", 3, "none", lambda result: result["time_shift"]["motion in silence"]["p"]),
        Column("jerk", 2, "one", lambda result: result["jerk"]), Column("seam", 2, "one", lambda result: result["seam_largest"]),
    ]
    given = next(iter(found.values()))[0]["preset"]
    for metric, groups in given.items():
        for group in groups:
            def score(result, metric=metric, group=group):
                return result["preset"].get(metric, {}).get(group)

            known = [value for results in found.values() for result in results if (value := score(result)) is not None]
            columns.append(Column(f"{metric} {group}", decimals(known), "none", score))
    columns += [Column("train s", 0, "none", lambda result: result.get("train_seconds")),
                Column("x real time", 1, "none", lambda result: result["times_real_time"] if "train_seconds" in result else None)]
    text = ("Energy scores of 2 s windows (reaction: head pitch, smile and brows; motion: all 56 numbers), as excess over the perfect listener, "
            "who is told the attitude; the largest deviation of a rate or a delay of answers from the stated law; variance, jerk and largest "
            "seam against the truth (1 is right); p of the time-shift tests; then a published preset, which noise or a frozen face may win.")
    return Table("Brains", text, columns, found)


def _body_table(rows: list[Row]) -> Table:
    found: dict[str, list[dict[str, Any]]] = {}
    for name, _, cell in rows:
        result, turned = cell.result, cell.result.get("large_poses") or {}
        common = {key: value for key, value in result.items() if not isinstance(value, dict)}
        found.setdefault(name, []).append(result["rows"]["tracked"] | common | {"turned": turned.get("body")})
        for other in ("warp", "nearest frame", "mean frame"):
            # They learn nothing, so every cell has the same.
            found.setdefault({"warp": "2-D warp"}.get(other, other), [result["rows"][other] | {"turned": turned.get(other)}])
    found = dict(sorted(found.items(), key=lambda item: "train_seconds" not in item[1][0]))

    def at(factor: str, key: str) -> Callable[[dict], float | None]:
        return lambda result: (result["turned"] or {}).get(factor, {}).get(key)

    columns = [Column(title, places, better, lambda result, key=key: result.get(key)) for key, title, places, better in (
        ("psnr", "PSNR", 2, "more"), ("ssim", "SSIM", 4, "more"), ("psnr_head", "head PSNR", 2, "more"), ("lpips", "LPIPS", 4, "less"),
        ("lmd_mouth", "LMD mouth", 2, "less"), ("lmd_face", "LMD face", 2, "less"), ("jitter", "jitter", 2, "one"))]
    columns += [Column(f"{title} at {factor}", places, "less", at(factor, key)) for factor in ("1", "1.25", "1.5")
                for key, title, places in (("landmark_px", "px", 1), ("torn_percent", "torn %", 2))]
    columns += [Column("train s", 0, "none", lambda result: result.get("train_seconds")),
                Column("images/s", 0, "none", lambda result: result.get("images_per_s"))]
    columns = [column for column in columns if any(column.value(result) is not None for results in found.values() for result in results)]
    text = ("Pictures from tracked motion on frames that nothing has learned from. Then the head turned to 1, 1.25 and 1.5 times the largest "
            "yaw and pitch of training: landmarks found again in the picture, and holes, specks and folds as a share of the silhouette.")
    return Table("Bodies", text, columns, found)


def _spread(column: Column, results: list[dict[str, Any]]) -> list[float] | None:
    """Mean, least and most over seeds."""
    values = [value for result in results if (value := column.value(result)) is not None]
    return [float(np.mean(values)), float(min(values)), float(max(values))] if values else None


def _best(table: Table, column: Column) -> float | None:
    """The best mean among what was trained."""
    means = [spread[0] for results in table.rows.values() if is_trained(results[0]) and (spread := _spread(column, results))]
    if not means or column.better == "none":
        return None
    return max(means) if column.better == "more" else min(means, key=lambda mean: abs(mean - 1)) if column.better == "one" else min(means)


def _cells(table: Table, bold: Callable[[str], str], spread_as: Callable[[str, str, str], str]) -> list[list[str]]:
    best = [_best(table, column) for column in table.columns]
    lines = []
    for name, results in table.rows.items():
        line = [name]
        for column, top in zip(table.columns, best):
            spread = _spread(column, results)
            if spread is None:
                line.append("-")
                continue
            mean, least, most = (f"{value:.{column.places}f}" for value in spread)
            shown = bold(mean) if top is not None and spread[0] == top and is_trained(results[0]) else mean
            line.append(shown if len(results) == 1 else spread_as(shown, least, most))
        lines.append(line)
    return lines


def _markdown(table: Table) -> str:
    lines = _cells(table, lambda text: f"**{text}**", lambda mean, least, most: f"{mean} ({least}..{most})")
    heads = ["", *(column.title for column in table.columns)]
    rows = [heads, ["---"] * len(heads), *lines]
    return f"## {table.title}\n\n{table.text}\n\n" + "\n".join("| " + " | ".join(row) + " |" for row in rows)


def _latex(table: Table) -> str:
    """A booktabs table; \\usepackage{booktabs} and, for its width, graphicx."""
    def safe(text: str) -> str:
        return "".join({"%": r"\%", "_": r"\_", "&": r"\&", "#": r"\#"}.get(letter, letter) for letter in text)

    lines = _cells(table, lambda text: rf"\textbf{{{text}}}", lambda mean, least, most: rf"{mean} {{\scriptsize({least}..{most})}}")
    heads = " & ".join(["", *(safe(column.title) for column in table.columns)])
    body = "\n".join(" & ".join([safe(line[0]), *line[1:]]) + r" \\" for line in lines)
    columns = "l" + "r" * len(table.columns)
    return (f"% {table.title}\n\\begin{{table}}\n\\centering\n\\resizebox{{\\linewidth}}{{!}}{{\\begin{{tabular}}{{{columns}}}\n\\toprule\n"
            f"{heads} \\\\\n\\midrule\n{body}\n\\bottomrule\n\\end{{tabular}}}}\n\\caption{{{safe(table.text)}}}\n\\end{{table}}")


STYLE = """body{font:15px/1.5 system-ui,sans-serif;max-width:1200px;margin:2em auto;padding:0 1em;color:#222}
h1,h2{line-height:1.2}.wide{overflow-x:auto}table{border-collapse:collapse;font-size:12.5px;white-space:nowrap}
th,td{padding:3px 9px;text-align:right;border-bottom:1px solid #ddd}th{vertical-align:bottom;white-space:normal;min-width:4em}
td:first-child,th:first-child{text-align:left;position:sticky;left:0;background:#fff}small{color:#777}
tr.untrained td{color:#666}img{max-width:100%;border:1px solid #eee}figure{margin:2em 0}figcaption{color:#555}
pre{background:#f6f6f6;padding:1em;overflow-x:auto;font-size:12px}"""


def _html(recipe: Recipe, tables: list[Table], pictures: dict[Path, str]) -> str:
    import platform
    from importlib.metadata import version

    parts = [f"<h1>{html.escape(recipe.title)}</h1><p>{html.escape(recipe.text)}</p>"]
    for table in tables:
        lines = _cells(table, lambda text: f"<b>{text}</b>", lambda mean, least, most: f"{mean} <small>({least}..{most})</small>")
        head = "".join(f"<th>{html.escape(title)}</th>" for title in ["", *(column.title for column in table.columns)])
        body = "".join(_html_row(line, results) for line, results in zip(lines, table.rows.values()))
        parts.append(f"<h2>{table.title}</h2><p>{html.escape(table.text)} Means over seeds {list(recipe.seeds)} (least..most); grey rows learn "
                     f'nothing, or are the law itself.</p><div class="wide"><table><tr>{head}</tr>{body}</table></div>')
    for path, caption in pictures.items():
        kind = "jpeg" if path.suffix == ".jpg" else "png"
        data = base64.b64encode(path.read_bytes()).decode()
        caption = html.escape(caption)
        parts.append(f'<figure><img alt="{caption}" src="data:image/{kind};base64,{data}"><figcaption>{caption}</figcaption></figure>')
    packages = f"difflistener {__version__}, " + ", ".join(f"{name} {version(name)}" for name in ("torch", "numpy", "scipy", "scikit-learn", "diffusers"))
    notes = "".join(f"<li>{html.escape(name)}: {html.escape(note)}</li>" for name, note in NOTES.items())
    settings = json.dumps({"corpus": recipe.corpus, "brains": recipe.brains, "rows": {name: vars(row) for name, row in recipe.rows.items()},
                           "samples": recipe.samples, "preset": recipe.preset, "bodies": recipe.bodies and vars(recipe.bodies)}, indent=1, default=str)
    parts.append(f"<h2>Rows that learn nothing</h2><ul>{notes}</ul><h2>How it was made</h2><p>Python {platform.python_version()} on {platform.machine()}; "
                 f"{packages}.</p><pre>{html.escape(settings)}</pre>")
    return f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{html.escape(recipe.title)}</title><style>{STYLE}</style>{"".join(parts)}</html>\n'


def _html_row(line: list[str], results: list[dict[str, Any]]) -> str:
    kind = "" if is_trained(results[0]) else ' class="untrained"'
    note = NOTES.get(line[0], "")
    first = f'<td title="{html.escape(note)}">{html.escape(line[0])}</td>'
    return f"<tr{kind}>{first}{''.join(f'<td>{cell}</td>' for cell in line[1:])}</tr>"


def _draw(out: Path, found: Finished) -> dict[Path, str]:
    """The pictures and their captions."""
    first: dict[str, Cell] = {}
    for name, _, cell in found.brains:
        first.setdefault(name, cell)
    pictures: dict[Path, str] = {}
    if {"truth", "law"} <= set(first):
        plot_examples(out / "fan.png", out / "delays.png", first)
        pictures[out / "fan.png"] = "Reactions to the first test conversation over what its true listener did: head pitch, smile and brows."
        pictures[out / "delays.png"] = "How late causes are answered: histograms of all answers, and the stated law as a curve."
        trained = [(name, cell.result) for name, _, cell in found.brains if is_trained(cell.result)]
        plot_quality(out / "quality.png", trained, {name: first[name].result for name in ("law", "stranger") if name in first})
        pictures[out / "quality.png"] = "Energy score of reactions against steps of generation and against seconds of training; every point is a seed."
    shown = {}
    for name, _, cell in found.bodies:
        if name not in shown and (cell.folder / "scores" / "large_poses.png").is_file():
            shown[name] = cell.folder / "scores" / "large_poses.png"
    if shown:
        plot_strips(out / "poses.jpg", shown)
        pictures[out / "poses.jpg"] = "The head turned beyond the poses of training, the body and the 2-D warp of the neutral frame."
    return pictures
