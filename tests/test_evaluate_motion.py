"""`evaluate motion`: finds sequences in files, clips and folders, scores every row by the same code, says what is wrong where."""

import json
import tracemalloc
import typing

import numpy as np
import pytest
from toy_clip import fails, run

from difflistener.clip import Clip
from difflistener.evaluate.motion import evaluate_motion
from difflistener.evaluate.motion_config import MotionEvaluation
from difflistener.evaluate.motion_rows import COPIED, MIRROR_DELAY, NearestSpeaker, baseline_rows
from difflistener.metrics.presets import PRESETS
from difflistener.metrics.published import Sequence

LENGTHS = {"anna": 130, "ben": 210, "cleo": 120}
ROWS = ["hold first", "hold mean", "noise", "shuffled", "mirror", "nearest", "truth"]


def motion(frames, seed, *samples):
    noise = np.random.default_rng(seed).standard_normal((*samples, frames, 56))
    return (np.cumsum(noise, -2) * 0.1 * np.linspace(0.2, 1, 56)).astype(np.float32)


def save(folder, name, array):
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / f"{name}.npy", array)


@pytest.fixture
def data(tmp_path):
    """pred, truth and speaker of three sequences, and train with listener and speaker."""
    for index, (name, frames) in enumerate(LENGTHS.items()):
        save(tmp_path / "pred", name, motion(frames, index))
        save(tmp_path / "truth", name, motion(frames, 10 + index))
        save(tmp_path / "speaker", name, motion(frames, 20 + index))
        save(tmp_path / "train" / "listener", name, motion(frames, 30 + index))
        save(tmp_path / "train" / "speaker", name, motion(frames, 40 + index))
    return tmp_path


def settings(data, preset="dualtalk", **changes):
    return MotionEvaluation(**{"pred": data / "pred", "truth": data / "truth", "preset": preset, "speaker": data / "speaker",
                               "train": data / "train"} | changes)


def clip_at(path, frames, seed, speaker=("expression",), basis="flame2020"):
    clip = Clip.create(path, num_frames=frames)
    clip.set(basis=basis)
    clip.write("listener", "motion", motion(frames, seed), "test", {})
    for name in speaker:
        clip.write("speaker", name, motion(frames, seed + 1)[:, : 50 if name == "expression" else 56], "test", {})
    return clip


def test_the_command_line_offers_every_preset():
    assert typing.get_args(typing.get_type_hints(MotionEvaluation)["preset"]) == tuple(PRESETS)


@pytest.mark.parametrize("preset", PRESETS)
def test_figures_are_those_of_the_preset_and_all_rows_are_there(data, preset, capsys):
    out = data / "scores.json"
    assert run("evaluate", "motion", data / "pred", data / "truth", "--speaker", data / "speaker", "--train", data / "train",
               "--preset", preset, "--json", out) == 0
    shown = capsys.readouterr().out
    figures = json.loads(out.read_text())
    assert json.loads(shown.splitlines()[-1]) == figures
    assert set(figures) == {"preset", "definition", "settings", "versions", "sequences", "metrics", "rows"}
    assert figures["preset"] == preset and figures["sequences"] == 3 and list(figures["rows"]) == ROWS
    assert set(figures["versions"]) == {"numpy", "scipy", "scikit-learn", "difflistener"}
    for text in (PRESETS[preset].definition, *ROWS, *figures["versions"].values(), *figures["metrics"],
                 *(f"{key} {value}" for key, value in PRESETS[preset].settings.items())):
        assert text in shown
    parts = ("pred", "truth", "speaker")
    read = {name: [np.load(data / part / f"{name}.npy").astype(float) for part in parts] for name in LENGTHS}
    expected = PRESETS[preset].score(Sequence(*arrays, name) for name, arrays in read.items())
    assert set(figures["metrics"]) == set(expected)
    for metric, groups in expected.items():
        assert figures["metrics"][metric] == pytest.approx(groups, rel=1e-12), metric
    perfect = figures["rows"]["truth"]
    zeros = [value for metric in ("FD", "P-FD", "MSE", "L1", "energy", "FD velocity", "rPCC", "STS")
             for value in perfect.get(metric, {}).values()]
    assert zeros and max(zeros) < 1e-9


def test_rows_are_what_they_say(data):
    figures = evaluate_motion(settings(data))
    truth = [np.load(data / "truth" / f"{name}.npy").astype(float) for name in sorted(LENGTHS)]
    trace = np.mean([clip[:, :50].var(0, ddof=1).sum() for clip in truth])
    rows = figures["rows"]
    assert rows["hold mean"]["FD"]["expression"] == pytest.approx(trace, rel=1e-9)
    assert rows["hold first"]["FD"]["expression"] > trace and rows["shuffled"]["FD"]["expression"] < 1e-9
    assert 0 < rows["noise"]["FD"]["jaw"] < rows["hold mean"]["FD"]["jaw"] / 5
    assert rows["shuffled"]["MSE"]["jaw"] > rows["hold mean"]["MSE"]["jaw"] > 0
    assert evaluate_motion(settings(data)) == figures
    assert evaluate_motion(settings(data, seed=1))["rows"]["noise"] != rows["noise"]


def test_baselines_by_hand():
    truth, speaker = motion(60, 1).astype(float), motion(60, 2).astype(float)[:, :50]
    rows = baseline_rows(None, True)
    assert list(rows) == [name for name in ROWS if name != "nearest"] and "mirror" not in baseline_rows(None, False)
    mirror = rows["mirror"](truth, speaker, 4, None)
    assert mirror.shape == (1, 60, 56) and np.array_equal(mirror[0, MIRROR_DELAY + 5, :50], speaker[5])
    assert np.allclose(mirror[0, :, 50:], truth.mean(0)[50:]) and np.array_equal(mirror[0, 3, :50], speaker[0])
    noise = rows["noise"](truth, None, 400, np.random.default_rng(0)).reshape(-1, 56)
    assert np.abs(noise.mean(0) - truth.mean(0)).max() < 0.05
    covariance = np.cov(truth, rowvar=False)
    assert np.abs(np.cov(noise, rowvar=False) - covariance).max() < 0.05 * covariance.max()
    shuffled = rows["shuffled"](truth, None, 2, np.random.default_rng(0))
    assert not np.array_equal(*shuffled) and np.array_equal(np.sort(shuffled[1], 0), np.sort(truth, 0))


def test_the_nearest_neighbour_finds_a_speaker_it_has_seen(data):
    """A speaker of the training set, 50 frames from frame 75 of ben: his listener at these frames comes back."""
    row = NearestSpeaker(data / "train")
    speaker, listener = (np.load(data / "train" / kind / "ben.npy").astype(float) for kind in ("speaker", "listener"))
    found = row(np.zeros((COPIED, 56)), speaker[75 : 75 + COPIED, :50], 2, None)
    assert found.shape == (2, COPIED, 56) and np.array_equal(found[0], listener[75 : 75 + COPIED])
    assert not np.array_equal(found[1], found[0])
    assert np.isfinite(row(np.zeros((20, 56)), speaker[:20], 1, None)).all()
    assert np.array_equal(row(np.zeros((110, 56)), speaker[75 - 60 : 125], 1, None)[0, 60:], listener[75:125])


def test_clips_single_and_in_folders(data, capsys):
    for index, name in enumerate(("one", "two")):
        clip_at(data / "clips" / name, 110, index)
        save(data / "made", name, motion(110, 50 + index))
    clips = data / "clips"
    figures = evaluate_motion(MotionEvaluation(data / "made", clips, "dualtalk", speaker=clips, train=clips))
    assert figures["sequences"] == 2 and set(figures["metrics"]["P-FD"]) == {"expression"} and list(figures["rows"]) == ROWS
    assert "mirror" in figures["rows"]
    single = evaluate_motion(MotionEvaluation(data / "made" / "one.npy", data / "clips" / "one", "vico-l1"))
    assert single["sequences"] == 1 and "mirror" not in single["rows"] and "without --speaker" in capsys.readouterr().out
    clip_at(data / "whole", 110, 1, ("expression", "motion"))
    whole = evaluate_motion(MotionEvaluation(data / "made" / "one.npy", data / "whole", "dim", speaker=data / "whole"))
    assert set(whole["metrics"]["P-FD"]) == {"expression", "pose", "all"}


def test_frames_in_which_nobody_was_tracked_are_told(tmp_path, capsys):
    clip_at(tmp_path / "gap", 110, 1)
    seen = np.ones(110, bool)
    seen[20:27] = False
    Clip.open(tmp_path / "gap").write("listener", "valid", seen, "test", {})
    np.save(tmp_path / "made.npy", motion(110, 2))
    evaluate_motion(MotionEvaluation(tmp_path / "made.npy", tmp_path / "gap", "vico-l1"))
    assert "nobody was tracked" in (shown := capsys.readouterr().out) and "(7)" in shown


def test_unequal_lengths_are_cut_and_told(data, capsys):
    save(data / "pred", "ben", motion(250, 1))
    save(data / "speaker", "anna", motion(125, 20))
    figures = evaluate_motion(settings(data))
    shown = capsys.readouterr().out
    assert "2 of 3 sequences have unequal lengths and are cut to the shortest" in shown
    assert "anna (pred 130, truth 130, speaker 125)" in shown and "ben (pred 250, truth 210, speaker 210)" in shown
    for kind in ("pred", "truth", "speaker"):
        for name, frames in (("anna", 125), ("ben", 210)):
            save(data / kind, name, np.load(data / kind / f"{name}.npy")[:frames])
    cut = evaluate_motion(settings(data))
    assert cut["metrics"] == figures["metrics"] and cut["rows"] == figures["rows"]


def test_vico_pads_by_the_last_frame(tmp_path, capsys):
    """Truth of zeros, 4 frames; predictions 1, 3 in two frames -> 1, 3, 3, 3: mean 2.5; and a longer one is cut."""
    for name, values in (("short", [1, 3]), ("long", [2, 2, 2, 2, 9, 9])):
        save(tmp_path / name / "truth", "x", np.zeros((4, 56)))
        save(tmp_path / name / "pred", "x", np.repeat(np.array(values, float)[:, None], 56, 1))
        figures = evaluate_motion(MotionEvaluation(tmp_path / name / "pred", tmp_path / name / "truth", "vico-l1"))
        assert figures["metrics"]["L1"]["expression"] == {"short": 2.5, "long": 2.0}[name]
        assert "padded or cut to the truth" in capsys.readouterr().out


def test_samples_are_all_used_by_honest_and_the_first_by_others(data):
    plain = evaluate_motion(settings(data))
    for index, (name, frames) in enumerate(LENGTHS.items()):
        save(data / "pred", name, np.concatenate([motion(frames, index)[None], motion(frames, 70 + index, 2)]))
    assert evaluate_motion(settings(data))["metrics"] == plain["metrics"]
    figures = evaluate_motion(settings(data, "honest"))
    assert figures["settings"]["samples"] == 3
    assert {"best of 1", "best of 2", "best of 3"} < set(figures["metrics"]) and "best of 3" in figures["rows"]["noise"]
    assert "best of 2" not in figures["rows"]["hold first"]


def test_sequences_that_dim_leaves_out_are_told(data, capsys):
    save(data / "truth", "anna", motion(4, 1))
    figures = evaluate_motion(settings(data, "dim"))
    assert figures["sequences"] == 2 and "1 of 3 sequences are left out" in capsys.readouterr().out
    json.dumps(figures, allow_nan=False)


def test_undefined_is_none_in_the_json(data):
    save(data / "pred", "anna", np.zeros((130, 56)))
    assert evaluate_motion(settings(data))["metrics"]["rPCC"]["jaw"] is None


def evaluate(capsys, data, *more, preset="dualtalk", pred="pred", truth="truth"):
    return fails(capsys, "evaluate", "motion", data / pred, data / truth, "--preset", preset, *more)


def test_nan_is_refused_with_file_frame_and_value(data, capsys):
    bad = np.load(data / "pred" / "ben.npy")
    bad[[90, 41], 52] = np.nan
    save(data / "pred", "ben", bad)
    assert "pred/ben.npy is not finite at frame 41: column 52 is nan" in evaluate(capsys, data)
    several = motion(210, 1, 3)
    several[2, 30, 7], several[1, 31, 0] = np.inf, np.nan
    save(data / "pred", "ben", several)
    assert "pred/ben.npy is not finite at frame 30 of sample 2: column 7 is inf" in evaluate(capsys, data)


def test_short_clips_are_named(data, capsys):
    save(data / "truth", "cleo", motion(100, 1))
    error = evaluate(capsys, data)
    assert "pred/cleo.npy has 100 frames; preset dualtalk needs at least 101" in error
    assert run("evaluate", "motion", data / "pred", data / "truth", "--preset", "timar") == 0
    for name in LENGTHS:
        save(data / "truth", name, motion(3, 1))
    assert "No sequence is left to score" in evaluate(capsys, data, preset="dim")


def test_missing_names_are_named(data, capsys):
    (data / "pred" / "ben.npy").unlink()
    (data / "speaker" / "anna.npy").unlink()
    assert "pred lacks 1 of 3 sequences: ben." in evaluate(capsys, data)
    save(data / "pred", "ben", motion(210, 1))
    assert "speaker lacks 1 of 3 sequences: anna." in evaluate(capsys, data, "--speaker", data / "speaker")
    save(data / "pred", "zoe", motion(210, 1))
    assert "truth lacks 1 of 4 sequences: zoe." in evaluate(capsys, data)
    assert "is one sequence" in evaluate(capsys, data, pred="pred/ben.npy")


def test_wrong_inputs_are_named(data, capsys):
    wrong = {"shape [130, 55]": motion(130, 1)[:, :55], "shape [0, 56]": np.zeros((0, 56)), "shape [130]": np.zeros(130),
             "not an array of numbers": np.full((130, 56), "a")}
    for message, array in wrong.items():
        save(data / "pred", "anna", array)
        error = evaluate(capsys, data)
        assert "anna.npy" in error and (message in error or "0" in message)
    (data / "pred" / "anna.npy").write_bytes(b"no array")
    assert "not a readable .npy" in evaluate(capsys, data)
    save(data / "pred", "anna", motion(130, 1))
    save(data / "truth", "anna", motion(130, 1, 2))
    assert "truth/anna.npy has shape [2, 130, 56]" in evaluate(capsys, data)


def test_empty_and_absent_folders_and_other_mistakes(data, capsys):
    (data / "empty").mkdir()
    save(data / "none", "x", motion(20, 1))
    assert "empty holds no .npy file and no clip" in evaluate(capsys, data, pred="empty")
    assert "nowhere does not exist" in evaluate(capsys, data, pred="nowhere")
    assert "There is no file" in evaluate(capsys, data, pred="x.npy")
    assert "--train is given without --speaker" in evaluate(capsys, data, "--train", data / "train")
    assert "no listener of at least 50 frames" in evaluate(capsys, data, "--speaker", data / "speaker", "--train", data / "none")
    assert "is a folder" in evaluate(capsys, data, "--json", data)
    assert "--seed is -1" in evaluate(capsys, data, "--seed", "-1")
    clip_at(data / "truth" / "anna", 130, 1)
    assert "two sequences named anna" in evaluate(capsys, data)


def test_two_bases_are_not_compared(data, capsys):
    clip_at(data / "a", 130, 1)
    clip_at(data / "b", 130, 1, basis="landmark:1")
    assert "speaks basis landmark:1" in evaluate(capsys, data, pred="a", truth="b")
    clip_at(data / "c", 130, 1, speaker=())
    assert "no speaker/expression.npy" in evaluate(capsys, data, "--speaker", data / "c", pred="a", truth="a")


def test_a_json_that_stands_survives_a_failure(data, capsys, monkeypatch):
    out = data / "scores.json"
    out.write_text("old")
    bad = motion(120, 1)
    bad[3] = np.nan
    save(data / "truth", "cleo", bad)
    evaluate(capsys, data, "--json", out)
    assert out.read_text() == "old"
    save(data / "truth", "cleo", motion(120, 1))

    def full(*_):
        raise OSError(28, "No space left on device", str(out))

    with monkeypatch.context() as patch:
        patch.setattr("pathlib.Path.write_text", full)
        assert "could not be written" in evaluate(capsys, data, "--json", out)
    assert out.read_text() == "old" and not list(data.glob(".*scores.json"))
    assert run("evaluate", "motion", data / "pred", data / "truth", "--preset", "dualtalk", "--json", out) == 0
    assert json.loads(out.read_text())["preset"] == "dualtalk"


def test_memory_does_not_grow_with_the_number_of_sequences(tmp_path):
    """Peaks for 2 and for 10 sequences of 0.9 MB a part, of presets that pool nothing but moments."""
    peaks = []
    for index in range(10):
        for kind in ("pred", "truth", "speaker"):
            save(tmp_path / kind, str(index), motion(2000, index))
        if index in (1, 9):
            tracemalloc.start()
            evaluate_motion(settings(tmp_path, "lm-listener", train=None))
            peaks.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
    assert peaks[1] < 1.2 * peaks[0]
