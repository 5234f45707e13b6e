"""`evaluate brain`: the law itself passes every test, who does not listen fails the right ones."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from difflistener.brain.config import BrainConfig
from difflistener.brain.model import Brain
from difflistener.corpus import Corpus, write_corpus
from difflistener.dataset import Pair, load_pairs
from difflistener.errors import UserError
from difflistener.evaluate.brain import _learned_from, evaluate_brain
from difflistener.evaluate.brain_config import BrainEvaluation
from difflistener.evaluate.brain_rows import COPIED, BrainRow, NearestSpeaker, Scene, baseline_rows, law_rows, react
from difflistener.evaluate.brain_scores import WARM_UP, WINDOW, drift_figures, score_row, silent_starts
from difflistener.prepare.audio import LogMel
from difflistener.toy.conversation import draw_listener, draw_speaker, perfect
from difflistener.toy.reactions import ATTITUDES, Law

LAW = Law()
EVENTS = ("nod to a phrase", "nod to brows", "smile to a smile", "brows to brows")
ROWS = ["brain", "truth", "law", "law untold", "stranger", "hold first", "mean", "noise", "shuffled", "mirror", "nearest"]


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def scenes():
    """Ten minutes in five conversations."""
    made = []
    for seed in range(5):
        speaker = draw_speaker(120, (7, seed))
        listener = draw_listener(speaker.script, ATTITUDES[seed % 3], LAW, (8, seed))
        silent = np.zeros((3000, 84), np.float32)
        made.append(Scene(str(seed), silent, speaker.expression, speaker.script, listener.attitude, LAW, listener.motion))
    return made


@pytest.fixture(scope="module")
def std(scenes):
    return np.concatenate([scene.truth for scene in scenes]).std(0)


def score(scenes, std, react, num=4):
    return score_row(scenes, [react(scene, num, seed) for seed, scene in enumerate(scenes)], std, 10, 200, 0)


@pytest.fixture(scope="module")
def law_score(scenes, std):
    return score(scenes, std, law_rows()["law"])


def test_the_law_passes_everything(law_score):
    figures = law_score.figures
    for name in EVENTS:
        event = figures["events"][name]
        assert abs(event["probability"] - event["law"]) < 0.06 and abs(event["delay"] - event["law_delay"]) < 0.04, name
        assert event["law_untold"] == pytest.approx(np.mean({"nod": LAW.nod_probability, "smile": LAW.smile_probability,
                                                             "brows": LAW.brow_probability}[name.split()[0]]))
    assert figures["events"]["nod to a pause"]["probability"] < 0.02
    assert all(0.8 < figures["variance"][name] < 1.2 for name in ("expression", "rotation", "jaw"))
    assert all(test["p"] < 0.01 for test in figures["time_shift"].values())
    assert figures["jerk"] == pytest.approx(1, abs=0.03) and figures["spectrum_db"] < 1
    assert figures["seam_mean"] == pytest.approx(1, abs=0.05)
    assert list(figures["best_of"].values()) == sorted(figures["best_of"].values(), reverse=True)


def test_the_truth_scores_nothing(scenes, std):
    figures = score(scenes, std, law_rows()["truth"]).figures
    assert max(figures["energy"].values()) < 1e-6 and figures["frechet"]["expression"] < 1e-6 and figures["spectrum_db"] == 0
    assert figures["variance"]["smile"] == pytest.approx(1) and figures["jerk"] == pytest.approx(1)


def test_listening_is_worth_something_and_so_is_the_attitude(scenes, std, law_score):
    best = law_score.figures
    stranger, untold = (score(scenes, std, law_rows()[name]).figures for name in ("stranger", "law untold"))
    assert best["energy"]["reaction"] < untold["energy"]["reaction"] < stranger["energy"]["reaction"] - 0.03
    assert stranger["time_shift"]["motion"]["p"] > 0.02 < stranger["time_shift"]["reaction in silence"]["p"]
    assert 0.7 < stranger["variance"]["rotation"] < 1.3 and stranger["spectrum_db"] < 1.5  # It looks right all the same.


def test_who_only_hears_fails_in_silence_alone(scenes, std):
    """A listener who answers phrases, and never sees a face."""

    def blind(scene, num, seed):
        script = replace(scene.script, smiles=np.zeros((0, 3)), flashes=np.zeros((0, 4)))
        return perfect(script, scene.attitude, LAW, num, seed)

    figures = score(scenes, std, blind).figures
    assert figures["time_shift"]["reaction"]["p"] < 0.01 and figures["time_shift"]["reaction in silence"]["p"] > 0.05
    nods, smiles = figures["events"]["nod to a phrase"], figures["events"]["smile to a smile"]
    assert nods["probability"] == pytest.approx(nods["law"], abs=0.06) and smiles["probability"] < smiles["law"] - 0.15


def test_noise_and_a_frozen_face_are_seen_through(scenes, std, law_score):
    rows = baseline_rows_of(scenes)
    noise, frozen, shuffled = (score(scenes, std, rows[name]).figures for name in ("noise", "mean", "shuffled"))
    for figures in (noise, shuffled):
        assert figures["frechet"]["expression"] < law_score.figures["frechet"]["expression"]  # The trap.
        assert figures["jerk"] > 3 and figures["spectrum_db"] > 5 and figures["frechet"]["velocity"] > 10
        assert figures["time_shift"]["motion"]["p"] > 0.02 and figures["events"]["nod to a pause"]["probability"] > 0.2
        assert figures["energy"]["reaction"] > law_score.figures["energy"]["reaction"] + 0.03
    assert frozen["variance"]["expression"] == 0 and frozen["time_shift"]["motion"]["p"] == 1
    assert frozen["events"]["nod to a phrase"]["probability"] == 0
    assert frozen["best_of"] == {"1": pytest.approx(frozen["energy"]["motion"])}


def baseline_rows_of(scenes):
    mean = np.concatenate([scene.truth for scene in scenes]).mean(0)
    seen = np.ones(3000, bool)
    pairs = [Pair(Path(scene.name), "toy-law", scene.truth, seen, scene.audio, {}, scene.expression, seen) for scene in scenes[:2]]
    return baseline_rows(pairs, mean)


def test_baselines_are_what_they_say(scenes):
    rows = baseline_rows_of(scenes)
    scene = scenes[0]
    assert np.array_equal(rows["hold first"](scene, 3, 0), np.repeat(scene.truth[None, :1], 3000, 1))
    assert np.array_equal(rows["mirror"](scene, 3, 0)[0, 500, :50], scene.expression[488])
    shuffled = rows["shuffled"](scene, 2, 0)
    assert np.array_equal(np.sort(shuffled[1], 0), np.sort(scene.truth, 0)) and not np.array_equal(shuffled[0], shuffled[1])
    noise = rows["noise"](scene, 2, 0)
    assert np.abs(noise[0].std(0) / scene.truth.std(0) - 1).max() < 0.1
    # The nearest to a speaker of the training clips is the speaker itself: its listener comes back.
    nearest = rows["nearest"](scene, 2, 0)
    assert np.array_equal(nearest[0], scene.truth) and not np.array_equal(nearest[1], scene.truth)
    for name, row in (law_rows() | rows).items():
        assert np.array_equal(row(scene, 2, 0), row(scene, 2, 0)), name
    short = replace(scene, audio=scene.audio[:30], expression=scene.expression[:30], truth=scene.truth[:30])
    assert rows["nearest"](short, 2, 0).shape == (2, 30, 56)
    assert isinstance(rows["nearest"], NearestSpeaker) and COPIED == 50


def test_silent_windows_lie_in_silences(scenes):
    for scene in scenes:
        starts = silent_starts(scene)
        assert len(starts) >= 4 and (starts >= WARM_UP).all() and (np.diff(starts) >= WINDOW).all()
        for start in starts / 25:
            inside = (scene.script.silences[:, 0] + 1.6 < start) & (start + 2 < scene.script.silences[:, 1] + 0.04)
            assert inside.any()


def test_drift_is_seen(scenes, std):
    motion = np.stack([scene.truth for scene in scenes[:2]]).repeat(2, 1)
    still = drift_figures(motion, std)
    ramp = np.linspace(0, 1, motion.shape[1])[:, None]
    growing = drift_figures(motion * (1 + ramp) + 3 * ramp * std, std)
    assert still["mean_shift"] < 0.5 and still["std_ratio"] == pytest.approx(1, abs=0.2)
    assert growing["mean_shift"] > 1.5 and growing["std_ratio"] > 1.5


# The verb


def make_brain(path, network="mlp", uses_face=True, basis="toy-law", clips=()):
    """An untrained brain with an output of its own for each seed, about as wide as the corpus."""
    torch.manual_seed(0)
    settings = json.loads(json.dumps(LogMel().settings()))
    brain = Brain(BrainConfig(network, basis, "logmel", 84, uses_face, settings, block=25, history=3, context=30,
                              width=16, layers=1))
    brain.motion.std.fill_(0.1)
    brain.save_pretrained(path, {"clips": list(clips)})
    return path


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A small corpus and untrained brains."""
    folder = tmp_path_factory.mktemp("world")
    write_corpus(Corpus(folder / "corpus", hours=60 / 3600, test_hours=60 / 3600, clip_seconds=30.0))
    make_brain(folder / "brain")
    make_brain(folder / "blind", uses_face=False)
    make_brain(folder / "regression", "regression")
    return folder


def evaluate(world, out, brain="brain", **changes):
    settings = {"samples": 2, "num_steps": 2, "drift_minutes": 0.0, "shifts": 100, "device": "cpu"} | changes
    return evaluate_brain(BrainEvaluation(world / brain, world / "corpus", out, **settings))


def test_every_row_table_and_file(world, tmp_path, capsys):
    figures = evaluate(world, tmp_path / "scores", drift_minutes=2.5, drift_samples=1, beside=(f"plain={world / 'regression'}",),
                       audio_only=world / "blind")
    printed = capsys.readouterr().out
    assert json.loads((tmp_path / "scores/evaluation.json").read_text()) == json.loads(json.dumps(figures, allow_nan=False))
    assert {path.name for path in (tmp_path / "scores").iterdir()} == {"evaluation.json", "fan.png", "events.png", "best_of.png"}
    assert list(figures["rows"]) == ["brain", "audio only", "plain", *ROWS[1:]]
    assert len({json.dumps(list(row), sort_keys=True) for row in figures["rows"].values()}) == 1
    assert figures["rows"]["law untold"]["over_law"]["reaction"] == 0 and figures["clips"] == 2 and figures["learned_from"] == 0
    assert set(figures["drift"]) == {"brain", "audio only", "plain", "law"} and figures["face"]["motion"]["windows"] == 2 * 13
    assert len(figures["rows"]["brain"]["best_of"]) == 2 and len(figures["rows"]["plain"]["best_of"]) == 1
    for said in ("stated", "nod|phrase", "what the face adds", "drift:", "reaction", "seam largest"):
        assert said in printed
    assert "NOT HELD OUT" not in printed and all(f"\n{name}" in printed for name in figures["rows"])
    assert Image.open(tmp_path / "scores/fan.png").size == (1400, 700)


def test_a_brain_row_is_generate(world):
    brain = Brain.from_pretrained(world / "brain")
    pair = load_pairs([world / "corpus/test/0000"], "logmel")[0]
    scene = Scene("one", pair.audio[:60], pair.expression[:60], None, "neutral", LAW, pair.motion[:60])
    made = BrainRow(brain, 2, True)(scene, 3, 5)
    audio, face = (torch.from_numpy(np.array(feature)) for feature in (scene.audio, scene.expression))
    assert np.allclose(made[2], brain.generate(audio, face, num_steps=2, seed=5, sample=2).numpy(), atol=1e-5)
    assert BrainRow(Brain.from_pretrained(world / "regression"), 2, True)(scene, 3, 5).shape == (1, 60, 56)


def test_a_dit_is_told_the_attitude_and_compared_with_the_law_that_knows_it(world, tmp_path):
    make_brain(tmp_path / "dit", "dit")
    brain = Brain.from_pretrained(tmp_path / "dit")
    torch.nn.init.normal_(brain.network.attitude.weight)
    torch.nn.init.normal_(brain.network.last.weight, std=0.1)
    pair = load_pairs([world / "corpus/test/0000"], "logmel")[0]
    scenes = [Scene("one", pair.audio[:60], pair.expression[:60], None, attitude, LAW, pair.motion[:60])
              for attitude in ATTITUDES]
    told = [BrainRow(brain, 2, True)(scene, 2, 5) for scene in scenes]
    assert told[0].shape == (2, 60, 56) and not np.allclose(told[0], told[1]) and not np.allclose(told[0][0], told[0][1])
    short = Scene("short", pair.audio[:40], pair.expression[:40], None, "neutral", LAW, pair.motion[:40])
    together = react(BrainRow(brain, 2, True), [*scenes, short], 2, 5, "react")
    alone = [BrainRow(brain, 2, True)(scene, 2, 5 + number) for number, scene in enumerate([*scenes, short])]
    assert all(np.allclose(one, other, atol=1e-4) for one, other in zip(together, alone)) and len(together[3][0]) == 40
    untold = [BrainRow(brain, 2, False)(scene, 2, 5) for scene in scenes]
    assert np.array_equal(untold[0], untold[1])
    rows = evaluate(world, tmp_path / "scores", tmp_path / "dit", clips=1, beside=(f"mlp={world / 'brain'}",))["rows"]
    compared = [rows[name]["compared_with"] for name in ("brain", "mlp", "law", "noise")]
    assert compared == ["law", "law untold", "law", "law untold"]


def test_clips_that_were_learned_from_are_counted(tmp_path):
    tests = [tmp_path / "corpus/test/0000", tmp_path / "corpus/test/0001"]
    make_brain(tmp_path / "brain", clips=[{"path": str(tmp_path / "corpus/../corpus/test/0001")}, {"path": "elsewhere"}])
    assert _learned_from(tmp_path / "brain", tests) == 1 and _learned_from(tmp_path / "brain", tests[:1]) == 0


@pytest.mark.parametrize("changes, said", [
    ({"samples": 1}, "--samples is 1"), ({"shifts": 50}, "--shifts is 50"), ({"beside": ("nothing",)}, "names no brain"),
    ({"beside": ("law=x",)}, "a row 'law' already"), ({"clips": 0}, "--clips is 0"),
    ({"drift_minutes": 1.0}, "--drift-minutes is 1.0"), ({"seed": -1}, "--seed is -1"),
])
def test_settings_that_do_not_fit_are_refused(world, tmp_path, changes, said):
    with pytest.raises(UserError, match=said):
        evaluate(world, tmp_path / "scores", **changes)
    assert not (tmp_path / "scores").exists()


def test_brains_of_another_kind_are_refused(world, tmp_path):
    make_brain(tmp_path / "flame", basis="flame2020")
    with pytest.raises(UserError, match="speaks basis flame2020"):
        evaluate(world, tmp_path / "scores", beside=(f"other={tmp_path / 'flame'}",))
    with pytest.raises(UserError, match="was trained with the face"):
        evaluate(world, tmp_path / "scores", audio_only=world / "brain")
    make_brain(tmp_path / "deaf")
    config = tmp_path / "deaf" / "config.json"
    config.write_text(config.read_text().replace('"hop": 160', '"hop": 161'))
    with pytest.raises(UserError, match="other settings than the corpus"):
        evaluate(world, tmp_path / "scores", beside=(f"other={tmp_path / 'deaf'}",))
    (tmp_path / "scores").mkdir(exist_ok=True)
    (tmp_path / "scores/evaluation.json").write_text("{}")
    with pytest.raises(UserError, match="already holds an evaluation"):
        evaluate(world, tmp_path / "scores")
    with pytest.raises(UserError, match="no test clips"):
        evaluate_brain(BrainEvaluation(world / "brain", tmp_path, tmp_path / "new"))
