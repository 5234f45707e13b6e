"""`synthesize`: what it refuses, what it leaves alone, and what an interrupted run leaves behind."""

import shutil

import numpy as np
import pytest

pytest.importorskip("mediapipe")

import torch  # noqa: E402
from toy_clip import FRAMES, body, brain, change_json, copy, fails, interrupt, root, run, snapshot, write_video  # noqa: E402


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs")
    speaker = root() / "clip/speaker"
    audio, face = np.load(speaker / "logmel.npy"), np.load(speaker / "expression.npy")
    np.save(folder / "audio.npy", audio)
    np.save(folder / "face.npy", face)
    np.save(folder / "short.npy", face[:-7])
    np.save(folder / "wide.npy", np.hstack([audio, audio]))
    np.save(folder / "flat.npy", audio[:, 0])
    np.save(folder / "words.npy", np.full(audio.shape, "a"))
    bad = audio.copy()
    bad[11, 2] = np.nan
    np.save(folder / "nan.npy", bad)
    with (folder / "zipped.npy").open("wb") as file:
        np.savez(file, audio=audio)
    (folder / "text.npy").write_text("not numbers\n")
    (folder / "text.mp4").write_text("not a video\n")
    (folder / "empty.mp4").touch()
    (folder / "empty.npy").touch()
    write_video(folder / "plain.mp4", (np.full((128, 128, 3), 90 + i % 9, np.uint8) for i in range(FRAMES)), np.zeros(FRAMES * 640, np.float32))
    shutil.copy(speaker / "audio.wav", folder / "audio.wav")
    shutil.copy(root() / "videos/listener.mp4", folder / "silent.mp4")
    return folder


def arguments(inputs, out, **changes):
    given = {"audio": "audio.npy", "visual": "face.npy", "body-checkpoint": body(), "brain-checkpoint": brain("mlp"), "output": out} | changes
    return ["synthesize", *(word for name, value in given.items() if value is not None for word in (f"--{name}", value))]


BAD = {
    "missing": ({"audio": "missing.wav"}, "missing.wav does not exist"),
    "missing array": ({"audio": "missing.npy"}, "no file at missing.npy"),
    "empty": ({"audio": "empty.mp4"}, "is empty"),
    "empty array": ({"audio": "empty.npy"}, "not a readable .npy"),
    "text": ({"audio": "text.mp4"}, "cannot be read"),
    "text array": ({"audio": "text.npy"}, "not a readable .npy"),
    "archive": ({"audio": "zipped.npy"}, "not an array of numbers"),
    "words": ({"audio": "words.npy"}, "not an array of numbers"),
    "no sound": ({"audio": "silent.mp4"}, "no sound"),
    "no pictures": ({"audio": "audio.wav", "visual": "audio.wav"}, "no pictures"),
    "no face": ({"audio": "plain.mp4", "visual": "plain.mp4"}, "No face was found"),
    "unequal": ({"visual": "short.npy"}, f"{FRAMES} frames, short.npy has {FRAMES - 7}"),
    "wide": ({"audio": "wide.npy"}, "has shape"),
    "flat": ({"audio": "flat.npy"}, "has shape"),
    "face as audio": ({"visual": "audio.npy"}, "expression codes [T, 50]"),
    "nan": ({"audio": "nan.npy"}, "nan.npy is not finite at frame 11"),
    "suffix": ({"output": "listener.avi"}, "not an .mp4"),
    "samples": ({"num-samples": 0}, "--num-samples is 0"),
    "steps": ({"num-steps": 51}, "51 DDIM steps"),
    "seed": ({"seed": -1}, "Seed -1"),
    "no body": ({"body-checkpoint": "missing"}, "missing is not a checkpoint"),
    "no brain": ({"brain-checkpoint": "missing"}, "missing is not a checkpoint"),
    "no clip": ({"side-by-side": "missing"}, "missing is not a clip"),
}


@pytest.mark.parametrize("case", list(BAD))
def test_bad_input_is_two_lines_and_leaves_nothing(case, inputs, tmp_path, monkeypatch, capsys):
    changes, message = BAD[case]
    monkeypatch.chdir(inputs)
    before = snapshot(inputs)
    assert message in fails(capsys, *arguments(inputs, tmp_path / "new/listener.mp4", **changes))
    assert list(tmp_path.iterdir()) == [] and snapshot(inputs) == before


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
@pytest.mark.parametrize("verb", ["synthesize", "bench body", "bench listener"])
def test_a_gpu_that_is_not_there_is_two_lines(verb, inputs, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(inputs)
    words = arguments(inputs, tmp_path / "a.mp4") if verb == "synthesize" else verb.split()
    assert "--device cuda" in fails(capsys, *words, "--device", "cuda")


def test_a_body_as_brain_and_another_basis_are_refused(inputs, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(inputs)
    assert "body.linear checkpoint where a brain is wanted" in fails(
        capsys, *arguments(inputs, tmp_path / "a.mp4", **{"brain-checkpoint": body()}))  # fmt: skip
    other = copy("body", tmp_path)
    change_json(other / "config.json", basis="landmark:other")
    assert "speaks basis landmark:other" in fails(capsys, *arguments(inputs, tmp_path / "a.mp4", **{"body-checkpoint": other}))


@pytest.mark.parametrize("kind", ["body", "brain"])
@pytest.mark.parametrize(("file", "content", "message"), [
    ("model.safetensors", b"", "damaged"), ("model.safetensors", b"x" * 99, "damaged"), ("model.safetensors", None, "no model.safetensors"),
    ("config.json", b"{", "damaged"), ("config.json", b"\xff\xfe", "damaged"), ("config.json", b"[]", "not written by difflistener"),
    ("config.json", b'{"library": "difflistener", "type": 3}', "not written by difflistener"),
])  # fmt: skip
def test_a_corrupt_checkpoint_is_two_lines(kind, file, content, message, inputs, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(inputs)
    damaged = copy(kind, tmp_path)
    (damaged / file).unlink()
    if content is not None:
        (damaged / file).write_bytes(content)
    assert message in fails(capsys, *arguments(inputs, tmp_path / "a.mp4", **{f"{kind}-checkpoint": damaged}))


def test_an_unknown_key_of_a_checkpoint_is_named(inputs, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(inputs)
    changed = copy("brain", tmp_path)
    change_json(changed / "config.json", contex=3)
    assert "the nearest known one is 'context'" in fails(capsys, *arguments(inputs, tmp_path / "a.mp4", **{"brain-checkpoint": changed}))


@pytest.mark.parametrize("name", ["a.mp4", "a.npy"])
def test_what_stands_at_the_output_is_kept(name, inputs, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(inputs)
    (tmp_path / name).write_bytes(b"mine")
    assert f"{name} exists" in fails(capsys, *arguments(inputs, tmp_path / "a.mp4"))
    fails(capsys, *arguments(inputs, tmp_path / "a.mp4", visual="short.npy"), "--overwrite")
    assert (tmp_path / name).read_bytes() == b"mine"
    assert run(*arguments(inputs, tmp_path / "a.mp4"), "--overwrite") == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.mp4", "a.npy"] and (tmp_path / name).read_bytes() != b"mine"


def test_the_speaker_is_never_written_over(inputs, monkeypatch, capsys):
    monkeypatch.chdir(inputs)
    before = snapshot(inputs)
    assert "write over" in fails(capsys, *arguments(inputs, "audio.mp4"), "--overwrite")
    assert "write over" in fails(capsys, *arguments(inputs, "plain.mp4", audio="plain.mp4"), "--overwrite")
    assert snapshot(inputs) == before


def test_ctrl_c_leaves_no_part_of_a_video(inputs, tmp_path, monkeypatch):
    monkeypatch.chdir(inputs)
    (tmp_path / "out").mkdir()
    (tmp_path / "out/a.mp4").write_bytes(b"old")
    rows = np.tile(np.load("audio.npy"), (10, 1))
    np.save(tmp_path / "long.npy", rows)
    words = arguments(inputs, tmp_path / "out/a.mp4", audio=tmp_path / "long.npy", visual=None)
    code, errors = interrupt([*words, "--overwrite"], lambda: list((tmp_path / "out").glob(".*.part")))
    assert code == 130 and "interrupted" in errors and "Traceback" not in errors
    assert [(path.name, path.read_bytes()) for path in (tmp_path / "out").iterdir()] == [("a.mp4", b"old")]
