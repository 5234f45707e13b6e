"""`difflistener experiment`: what a recipe may say, that finished cells are kept, and what the report holds."""

import json
import re

import pytest

from difflistener.cli import main
from difflistener.errors import UserError
from difflistener.experiment import rows
from difflistener.experiment.cells import Cells
from difflistener.experiment.config import Experiment
from difflistener.experiment.plots import best_of_each
from difflistener.experiment.report import Cell, Finished, write_report
from difflistener.experiment.run import experiment, load_recipe

TINY = {
    "title": "Tiny & quick", "text": "Nothing is learned here.", "seeds": [0, 1],
    "corpus": {"hours": 0.02, "test_hours": 0.02, "clip_seconds": 36, "seed": 0},
    "brains": {"average": {"network": "regression", "steps": 2, "width": 32, "layers": 1},
               "dit": {"steps": 2, "batch_size": 2, "width": 32, "layers": 1, "history": 4, "sequence": 16}},
    "rows": {"average": {"brain": "average"}, "dit, 2 steps": {"brain": "dit", "num_steps": 2}},
    "samples": 2, "shifts": 100, "preset": "avatar-forcing",
}

pytestmark = pytest.mark.usefixtures("one_thread")


def write_recipe(path, **changes):
    path.write_text(json.dumps(TINY | changes))
    return path


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("experiment")
    recipe = write_recipe(folder / "recipe.json")
    summary = experiment(Experiment(recipe, folder / "out", device="cpu"))
    return recipe, folder / "out", summary


def test_the_report_holds_every_row(finished):
    _, out, summary = finished
    results = json.loads((out / "results.json").read_text())
    table = results["tables"]["Brains"]
    assert {"average", "dit, 2 steps", "law", "truth", "noise", "shuffled", "hold first", "nearest", "mirror"} <= set(table)
    mean, least, most = table["average"]["var expression"]
    per_seed = [cell["result"]["variance"]["expression"] for cell in results["cells"] if cell["row"] == "average"]
    assert len(per_seed) == 2 and least == min(per_seed) and most == max(per_seed) and mean == pytest.approx(sum(per_seed) / 2)
    assert table["law"]["reaction, % over law"][0] == 0
    assert summary["computed"] == 1 + 4 + 4 + 10 and summary["kept"] == 0
    for name in ("tables.md", "tables.tex", "report.html", "fan.png", "delays.png", "quality.png"):
        assert (out / name).stat().st_size > 500, name
    markdown = (out / "tables.md").read_text().splitlines()
    assert len({line.count("|") for line in markdown if line.startswith("|")}) == 1
    latex = (out / "tables.tex").read_text()
    assert latex.count(r"\toprule") == latex.count(r"\bottomrule") == 1 and r"\%" in latex and not re.search(r"(?<!\\)%(?! Brains)", latex)


def test_the_page_needs_nothing_else(finished):
    page = (finished[1] / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 3
    linked = re.findall(r"""(?:src|href)\s*=\s*["']([^"']*)""", page) + re.findall(r"url\(|@import|<script", page)
    assert len(linked) == 3 and all(link.startswith("data:") for link in linked) and "Tiny &amp; quick" in page


def test_finished_cells_are_kept(finished):
    recipe, out, _ = finished
    assert experiment(Experiment(recipe, out, device="cpu", resume=True))["computed"] == 0
    more = write_recipe(recipe.with_name("more.json"), rows=TINY["rows"] | {"dit, 1 step": {"brain": "dit", "num_steps": 1}})
    again = experiment(Experiment(more, out, device="cpu", resume=True))
    assert again["computed"] == 2, "one new row, two seeds"
    assert "dit, 1 step" in json.loads((out / "results.json").read_text())["tables"]["Brains"]


def test_an_interruption_keeps_what_is_finished(tmp_path, monkeypatch):
    recipe, out = write_recipe(tmp_path / "recipe.json", seeds=[0]), tmp_path / "out"
    real, calls = rows.Scorer.score, []

    def stop(self, *arguments):
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(self, *arguments)

    monkeypatch.setattr(rows.Scorer, "score", stop)
    with pytest.raises(KeyboardInterrupt):
        experiment(Experiment(recipe, out, device="cpu"))
    assert set(json.loads((out / "results.json").read_text())["tables"]["Brains"]) == {"average"}
    monkeypatch.setattr(rows.Scorer, "score", real)
    assert experiment(Experiment(recipe, out, device="cpu", resume=True))["kept"] == 1 + 2 + 1


def test_the_pictures_show_the_best_row_of_each_brain():
    def cell(brain, energy):
        trained = {"brain": brain, "train_seconds": 1.0} if brain else {}
        return Cell(None, "", trained | {"energy": {"reaction": energy}})

    cells = {"one step": cell("dit", 0.7), "regression": cell("regression", 0.9), "fifteen": cell("dit", 0.5), "law": cell(None, 0.4),
             "fifty": cell("dit", 0.6)}
    assert best_of_each(cells) == ["regression", "fifteen"]


def test_a_cell_is_its_settings(tmp_path):
    cells = Cells(tmp_path)
    first = cells.get("kind", "A name!", {"steps": 1}, lambda folder: {"value": 1})
    assert first.folder.name == f"a-name-{first.digest}"
    assert cells.get("kind", "A name!", {"steps": 1}, None).result == {"value": 1}
    assert cells.get("kind", "A name!", {"steps": 2}, lambda folder: {"value": 2}).result == {"value": 2}
    with pytest.raises(ZeroDivisionError):
        cells.get("kind", "other", {}, lambda folder: 1 / 0)
    assert cells.get("kind", "other", {}, lambda folder: {"value": 3}).result == {"value": 3}, "a broken cell is computed again"


def test_bodies_stand_beside_the_warp(tmp_path):
    turned = {factor: {"landmark_px": 2.0, "torn_percent": 0.1} for factor in ("1", "1.25", "1.5")}

    def cell(number):
        row = {"psnr": 30.0 + number, "ssim": 0.95, "psnr_head": 27.0, "jitter": None}
        result = {"rows": {name: row for name in ("tracked", "contract", "warp", "nearest frame", "mean frame")},
                  "large_poses": {"body": turned, "warp": {key: {"landmark_px": 9.0, "torn_percent": 2.0} for key in turned}},
                  "train_seconds": 5.0, "images_per_s": 100.0}
        return Cell(tmp_path / "cells" / str(number), "", result)

    recipe = load_recipe(write_recipe(tmp_path / "recipe.json"))
    write_report(tmp_path, recipe, Finished(bodies=[("linear", 0, cell(0)), ("linear", 1, cell(1)), ("triplane", 0, cell(2))]))
    table = json.loads((tmp_path / "results.json").read_text())["tables"]["Bodies"]
    assert list(table) == ["linear", "triplane", "2-D warp", "nearest frame", "mean frame"]
    assert table["linear"]["PSNR"] == [30.5, 30.0, 31.0] and table["2-D warp"]["px at 1.5"] == [9.0, 9.0, 9.0]
    assert "jitter" not in table["linear"] and table["nearest frame"]["px at 1.5"] is None


@pytest.mark.parametrize("changes, problem", [
    ({"rows": {"a": {"brain": "b"}}}, "row 'a' is of brain 'b'"),
    ({"rows": {"a": {"brain": "dit", "num_step": 3}}}, "row 'a' has the unknown setting 'num_step'"),
    ({"brains": {"dit": {"step": 3}}, "rows": {}}, "brain 'dit' has the unknown setting 'step'"),
    ({"brains": {"dit": {"distil": "other"}}, "rows": {}}, "distilled from 'other'"),
    ({"seeds": []}, r"seeds are \[\]"), ({"samples": 1}, "samples is 1"), ({"preset": "best"}, "preset 'best'"),
    ({"brains": {}, "rows": {}}, "neither brains nor bodies"), ({"bodies": {"films": 3}}, "unknown setting 'films'"),
    ({"corpus": {"days": 3}}, "unknown setting 'days'"), ({"titel": "x"}, "unknown setting 'titel'"),
])
def test_what_a_recipe_may_not_say(tmp_path, changes, problem):
    with pytest.raises(UserError, match=problem):
        load_recipe(write_recipe(tmp_path / "recipe.json", **changes))


def test_output_in_use_is_left_alone(tmp_path, capsys):
    recipe = write_recipe(tmp_path / "recipe.json")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("years")
    assert main(["experiment", str(recipe), "--out", str(tmp_path / "out"), "--overwrite"]) == 1
    assert "not an experiment" in capsys.readouterr().err and (tmp_path / "out" / "thesis.tex").read_text() == "years"


@pytest.mark.parametrize("name", ["experiment-quick", "experiment-claims"])
def test_the_recipes_are_sound(name, request):
    recipe = load_recipe(request.config.rootpath / "recipes" / f"{name}.json")
    assert recipe.rows and recipe.bodies.train
