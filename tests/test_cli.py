import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from difflistener import cli
from difflistener.errors import UserError


def run(*arguments, **options):
    return subprocess.run([sys.executable, "-m", "difflistener", *map(str, arguments)], capture_output=True, text=True, **options)


def test_help_imports_nothing_heavy():
    code = "import sys; from difflistener.cli import main; main(['--help']); print(sorted({m.split('.')[0] for m in sys.modules}))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0 and "synthesize" in result.stdout
    assert not {"torch", "numpy", "tyro", "av", "mediapipe", "diffusers"} & set(eval(result.stdout.splitlines()[-1]))


@pytest.mark.parametrize("verb", list(cli.VERBS))
def test_every_verb_explains_itself_without_torch(verb):
    code = f"import sys; from difflistener.cli import main\ntry: main({[*verb.split(), '--help']!r})\nfinally: print('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0 and f"difflistener {verb}" in result.stdout
    assert result.stdout.splitlines()[-1] == "False"


def test_an_unknown_verb_names_the_nearest(capsys):
    assert cli.main(["prepar"]) == 2
    assert "difflistener prepare" in capsys.readouterr().err
    assert cli.main(["train"]) == 2
    assert "train body" in capsys.readouterr().err


@dataclass(frozen=True)
class Settings:
    out: Path
    steps: int = 3
    names: tuple[str, ...] = ()


def test_a_recipe_gives_defaults_that_the_command_line_overrides(tmp_path):
    recipe = tmp_path / "recipe.json"
    recipe.write_text(json.dumps({"steps": 7, "names": ["a", "b"]}))
    settings = cli.parse(Settings, "x", ["--config", str(recipe), "--out", "there"])
    assert settings == Settings(Path("there"), 7, ("a", "b"))
    assert cli.parse(Settings, "x", ["--config", str(recipe), "--out", "there", "--steps", "1"]).steps == 1


@pytest.mark.parametrize(("content", "message"), [("{", "not JSON"), ('{"step": 1}', "'step'"), (None, "no recipe")])
def test_a_bad_recipe_is_named(tmp_path, content, message):
    recipe = tmp_path / "recipe.json"
    if content is not None:
        recipe.write_text(content)
    with pytest.raises(UserError, match=message) as error:
        cli.parse(Settings, "x", ["--config", str(recipe), "--out", "there"])
    assert "step'" not in message or "Did you mean 'steps'" in error.value.remedy


MISSING = {
    "prepare": ["--listener", "missing.mp4", "--out", "clip"],
    "basis": ["missing", "--out", "basis.safetensors"],
    "train body": ["missing", "--out", "body"],
    "train brain": ["missing", "--out", "brain"],
    "synthesize": ["--audio", "a.wav", "--body-checkpoint", "b", "--brain-checkpoint", "c", "--output", "o.mp4"],
    "evaluate body": ["missing", "--clip", "missing", "--out", "scores"],
    "evaluate brain": ["missing", "--corpus", "missing", "--out", "scores"],
    "evaluate motion": ["missing", "missing", "--preset", "dim", "--json", "out.json"],
    "experiment": ["missing.json", "--out", "out"],
    "import": ["missing", "--out", "clips"],
    "generate": ["missing", "missing", "--out", "made"],
    "mine": ["missing.mp4", "--out", "mined"],
    "assets add": ["missing.pkl"],
    "export body": ["missing", "--out", "h.ply"],
    "view": ["missing"],
    "bench body": ["missing"],
    "bench listener": ["--body-checkpoint", "missing"],
}


@pytest.mark.parametrize("verb", list(MISSING))
def test_a_missing_file_gives_two_lines_and_leaves_nothing(verb, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main([*verb.split(), *MISSING[verb]]) == 1
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 2 and lines[0].startswith("error: ")
    assert list(tmp_path.iterdir()) == []


def test_an_interruption_is_said_and_has_its_own_exit_code(monkeypatch, capsys):
    def stop(settings):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "load", lambda path: Settings if path.endswith(("Doctor", "Bench")) else stop)
    assert cli.main(["doctor", "--out", "x"]) == 130
    assert "interrupted" in capsys.readouterr().err


def test_a_full_disk_is_two_lines(monkeypatch, capsys):
    def fill(settings):
        raise OSError(28, "No space left on device", "x.npy")

    monkeypatch.setattr(cli, "load", lambda path: Settings if path.endswith("Doctor") else fill)
    assert cli.main(["doctor", "--out", "x"]) == 1
    assert len(capsys.readouterr().err.strip().splitlines()) == 2


def test_doctor_reports_every_part(capsys):
    assert cli.main(["doctor", "--json"]) == 0
    findings = json.loads(capsys.readouterr().out.splitlines()[0])
    parts = {finding["part"] for finding in findings}
    assert {"python", "torch", "CUDA", "CPU rasteriser", "media", "mediapipe", "transformers", "gsplat"} <= parts
    assert all(np.char.str_len(f["detail"]) > 0 for f in findings)
