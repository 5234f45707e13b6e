"""`difflistener generate`: motion of clips, as `Brain.generate` makes it and `evaluate motion` reads it."""

import json

import numpy as np
import pytest
import torch
from test_brain import train, write_clip

from difflistener.brain.model import Brain
from difflistener.cli import main
from difflistener.clip import Clip
from difflistener.dataset import load_pair

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("generate")
    for name in ("a", "b"):
        write_clip(folder / "clips" / name, num_frames=80)
    meta = json.loads((folder / "clips/b/clip.json").read_text())
    (folder / "clips/b/clip.json").write_text(json.dumps(meta | {"attitude": "positive"}))
    train([folder / "clips/a", folder / "clips/b"], folder / "brain", steps=3, attitude_dropout=0.0, learning_rate=0.1)
    return folder


def run(world, *words, code=0):
    assert main(["generate", str(world / "brain"), str(world / "clips/a"), str(world / "clips/b"), *map(str, words)]) == code


def expected(world, name, **manner):
    brain, pair = Brain.from_pretrained(world / "brain"), load_pair(world / "clips" / name, "logmel")
    audio, face = (torch.from_numpy(np.array(array, np.float32)) for array in (pair.audio, pair.expression))
    return brain.generate(audio, face, num_steps=2, seed=3, expression_valid=torch.from_numpy(pair.expression_valid), **manner).numpy()


def test_it_is_what_a_brain_generates_and_evaluate_motion_reads(world, tmp_path, capsys):
    run(world, "--out", tmp_path / "made", "--samples", 2, "--num-steps", 2, "--seed", 3)
    made = {name: np.load(tmp_path / f"made/{name}.npy") for name in "ab"}
    assert made["a"].shape == (2, 80, 56)
    assert np.allclose(made["a"][0], expected(world, "a"), atol=1e-5)
    assert np.allclose(made["a"][1], expected(world, "a", sample=1), atol=1e-5)
    assert np.allclose(made["b"][0], expected(world, "b", attitude="positive"), atol=1e-5)
    run(world, "--out", tmp_path / "untold", "--num-steps", 2, "--seed", 3, "--no-attitude")
    assert np.allclose(np.load(tmp_path / "untold/b.npy"), expected(world, "b"), atol=1e-5)
    assert not np.allclose(made["b"][0], expected(world, "b"), atol=1e-3)
    assert main(["evaluate", "motion", str(tmp_path / "made"), str(world / "clips"), "--preset", "honest"]) == 0
    assert "2 sequences" in capsys.readouterr().out


def test_it_can_begin_from_true_frames(world, tmp_path):
    run(world, "--out", tmp_path, "--start-frames", 5, "--num-steps", 2)
    motion, truth = np.load(tmp_path / "a.npy"), Clip.open(world / "clips/a").read("listener", "motion")
    assert motion.shape == (80, 56) and np.array_equal(motion[:5], truth[:5]) and not np.allclose(motion[5:10], truth[5:10])


def test_files_that_are_there_are_kept_or_named(world, tmp_path, capsys):
    np.save(tmp_path / "a.npy", np.zeros(3))
    run(world, "--out", tmp_path, "--num-steps", 2, code=1)
    assert "a.npy exists" in capsys.readouterr().err and not (tmp_path / "b.npy").exists()
    run(world, "--out", tmp_path, "--num-steps", 2, "--resume")
    assert np.load(tmp_path / "a.npy").shape == (3,) and np.load(tmp_path / "b.npy").shape == (80, 56)
    run(world, "--out", tmp_path, "--num-steps", 2, "--overwrite")
    assert np.load(tmp_path / "a.npy").shape == (80, 56)


@pytest.mark.parametrize("change, problem", [
    (lambda clip: clip.set(basis="flame2023"), "speaks basis flame2023"),
    (lambda clip: (clip.path / "speaker/logmel.npy").unlink(), "logmel"),
])
def test_clips_that_do_not_fit(world, tmp_path, capsys, change, problem):
    other = Clip.open(write_clip(tmp_path / "other", num_frames=30))
    change(other)
    assert main(["generate", str(world / "brain"), str(other.path), "--out", str(tmp_path / "made")]) == 1
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 2 and problem in lines[0] and not (tmp_path / "made").exists()


def test_two_clips_of_one_name(world, tmp_path, capsys):
    write_clip(tmp_path / "a", num_frames=30)
    assert main(["generate", str(world / "brain"), str(world / "clips/a"), str(tmp_path / "a"), "--out", str(tmp_path / "made")]) == 1
    assert "would both be written" in capsys.readouterr().err
