"""Each verb on one toy pair: prepare, basis, train, synthesize, demo. What comes out fits what went in."""

import json

import numpy as np
import pytest

pytest.importorskip("mediapipe")

from toy_clip import FRAMES, SIZE, body, brain, fails, interrupt, root, run, snapshot, write_video  # noqa: E402

from difflistener.basis import LandmarkBasis  # noqa: E402
from difflistener.clip import Clip, read_masks  # noqa: E402
from difflistener.demo import law_recovered  # noqa: E402
from difflistener.media import load_audio, probe, read_frames  # noqa: E402


@pytest.fixture(scope="module")
def toy():
    """Folder with videos/ and clip/ of one pair."""
    return root()


def both(toy):
    return ["prepare", "--speaker", toy / "videos/speaker.mp4", "--listener", toy / "videos/listener.mp4"]


def test_every_feature_has_a_row_for_each_frame(toy):
    clip = Clip.open(toy / "clip")
    assert clip.num_frames == FRAMES
    arrays = {(role, name): entry["shape"][0] for role, files in clip.meta["roles"].items()
              for name, entry in files.items() if name.endswith(".npy")}
    assert {("speaker", "logmel.npy"), ("speaker", "expression.npy"), ("listener", "motion.npy"), ("listener", "torso.npy")} <= set(arrays)
    assert set(arrays.values()) == {FRAMES}
    assert sum(1 for _ in read_masks(clip.file("listener", "mask.npz"))) == FRAMES
    for role in ("speaker", "listener"):
        assert sum(1 for _ in read_frames(clip.file(role, "video.mp4"))) == FRAMES
        assert clip.read(role, "valid").all()
    assert len(load_audio(clip.file("speaker", "audio.wav"))) == FRAMES * 640


def test_the_law_of_the_toy_is_recovered(toy):
    found = law_recovered(toy / "videos/truth.npz", toy / "clip")
    assert found["rotation_rms_degrees"] <= 2
    assert found["mouth_correlation"] >= 0.9 and found["eyelid_correlation"] >= 0.9


def test_resume_of_a_finished_clip_touches_nothing(toy):
    before = snapshot(toy / "clip")
    assert run(*both(toy), "--out", toy / "clip", "--resume") == 0
    assert snapshot(toy / "clip") == before


def test_a_part_in_the_basis_of_another_clip(toy, tmp_path):
    assert run(*both(toy), "--start", 2, "--duration", 1, "--basis", toy / "clip", "--out", tmp_path / "part") == 0
    part, whole = Clip.open(tmp_path / "part"), Clip.open(toy / "clip")
    assert part.num_frames == 25 and part.basis == whole.basis
    rotation, truth = part.motion().rotation, whole.motion().rotation[50:75]
    assert np.degrees(np.abs((rotation - rotation.mean(0)) - (truth - truth.mean(0))).max()) < 3
    sound = load_audio(part.file("speaker", "audio.wav"))
    np.testing.assert_allclose(sound, load_audio(whole.file("speaker", "audio.wav"))[32000:48000], atol=1e-3)


def test_a_shared_basis_and_a_split_screen(toy, tmp_path, capsys):
    """A split screen gives the roles of the two videos, here in the basis of `difflistener basis`."""
    halves = zip(read_frames(toy / "videos/speaker.mp4"), read_frames(toy / "videos/listener.mp4"))
    frames = (np.hstack(pair) for index, pair in enumerate(halves) if index < 50)
    write_video(tmp_path / "dyad.mp4", frames, load_audio(toy / "videos/speaker.mp4")[: 50 * 640])
    basis = tmp_path / "basis.safetensors"
    assert run("basis", toy / "clip", toy / "clip", "--out", basis) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["people"] == 4
    words = ["prepare", "--dyad", tmp_path / "dyad.mp4", "--speaker-side", "left", "--basis", basis, "--out", tmp_path / "clip"]
    assert run(*words) == 0
    split, whole = Clip.open(tmp_path / "clip"), Clip.open(toy / "clip")
    assert split.basis == LandmarkBasis.load(basis).id and split.num_frames == 50
    for role in ("speaker", "listener"):
        ours, theirs = split.read(role, "landmarks"), whole.read(role, "landmarks")[:50]
        assert np.abs(ours - theirs)[..., :2].mean() < 0.02 * SIZE
    np.testing.assert_allclose(split.read("speaker", "logmel").mean(1), whole.read("speaker", "logmel")[:50].mean(1), atol=0.7)


@pytest.fixture(scope="module")
def listened(toy, tmp_path_factory):
    """Two samples beside the clip."""
    out = tmp_path_factory.mktemp("listened")
    assert run(*synthesis(toy), "--side-by-side", toy / "clip", "--num-samples", 2, "--output", out / "a.mp4") == 0
    return out


def synthesis(toy, network="mlp"):
    speaker = toy / "clip/speaker"
    return ["synthesize", "--audio", speaker / "audio.wav", "--visual", speaker / "expression.npy", "--body-checkpoint", body(),
            "--brain-checkpoint", brain(network)]


def test_the_video_has_every_frame_and_the_sound(toy, listened):
    for name in ("a-1", "a-2"):
        video = listened / f"{name}.mp4"
        frames = list(read_frames(video))
        info = probe(video)
        assert len(frames) == FRAMES and info.fps == 25 and info.has_audio
        assert abs(len(load_audio(video)) - FRAMES * 640) <= 640
        assert info.width == 3 * 96 and info.height == 96 + 24
        assert frames[0][24:, 2 * 96 :].std() > 5
        assert np.load(listened / f"{name}.npy").shape == (FRAMES, 56)
    loudness = np.abs(load_audio(listened / "a-1.mp4")).reshape(-1, 640).mean(1)[:FRAMES]
    truth = np.abs(load_audio(toy / "clip/speaker/audio.wav")).reshape(-1, 640).mean(1)
    assert np.corrcoef(loudness, truth[: len(loudness)])[0, 1] > 0.9


def test_a_seed_is_one_reaction(toy, listened, tmp_path):
    for seed in (0, 1):
        assert run(*synthesis(toy), "--seed", seed, "--output", tmp_path / f"{seed}.mp4") == 0
    first = np.load(listened / "a-1.npy")
    np.testing.assert_array_equal(np.load(tmp_path / "0.npy"), first)
    assert np.abs(np.load(tmp_path / "1.npy") - first).max() > 1e-3
    assert np.abs(np.load(listened / "a-2.npy") - first).max() > 1e-3


def test_a_regression_reacts_to_what_is_heard_alone(toy, tmp_path):
    words = [word for word in synthesis(toy, "regression") if word not in ("--visual", toy / "clip/speaker/expression.npy")]
    assert run(*words, "--output", tmp_path / "a.mp4") == 0 and run(*synthesis(toy, "regression"), "--output", tmp_path / "b.mp4") == 0
    heard, seen = np.load(tmp_path / "a.npy"), np.load(tmp_path / "b.npy")
    assert heard.shape == seen.shape == (FRAMES, 56) and not np.array_equal(heard, seen)


def test_a_recording_is_tracked_as_prepare_does(toy, listened, tmp_path):
    video = toy / "videos/speaker.mp4"
    assert run("synthesize", "--audio", video, "--visual", video, "--body-checkpoint", body(), "--brain-checkpoint", brain("mlp"),
               "--output", tmp_path / "a.mp4") == 0
    motion, stored = np.load(tmp_path / "a.npy"), np.load(listened / "a-1.npy")
    assert motion.shape == stored.shape
    assert np.corrcoef(motion[:, :50].ravel(), stored[:, :50].ravel())[0, 1] > 0.8


@pytest.mark.parametrize("kind", ["body", "brain"])
def test_ctrl_c_in_training_saves_and_resume_finishes(kind, toy, tmp_path, capsys):
    out = tmp_path / kind
    small = {"body": ["--resolution", 64, "--gaussians", 500, "--steps", 400, "--save-every", 50],
             "brain": ["--width", 32, "--layers", 1, "--steps", 3000, "--save-every", 50]}[kind]
    words = ["train", kind, toy / "clip", "--out", out, *small]
    code, errors = interrupt(words, lambda: (out / "training_state/state.safetensors").exists())
    assert code == 130 and "--resume" in errors and "Traceback" not in errors
    assert "--resume" in fails(capsys, *words)
    if kind == "brain":
        words[words.index("--steps") + 1] = json.loads((out / "config.json").read_text())["training"]["steps"] + 5
    assert run(*words, "--resume") == 0
    training = json.loads((out / "config.json").read_text())["training"]
    assert training["step" if kind == "body" else "steps"] == words[words.index("--steps") + 1]


def test_the_demo_goes_on_where_it_stopped(tmp_path, capsys):
    out = tmp_path / "demo"
    words = ["demo", "--out", out, "--seconds", 10, "--size", 64, "--body-steps", 3, "--brain-steps", 2000]
    code, errors = interrupt(words, lambda: (out / "brain/run.json").exists(), timeout_s=80)
    assert code == 130 and "Traceback" not in errors
    done = json.loads((out / "demo.json").read_text())["done"]
    assert done == ["videos", "clip", "unseen", "body"]
    assert "brain_steps = 2000, not 5" in fails(capsys, *words[:-1], 5, "--resume")
    before = snapshot(out / "clip") | snapshot(out / "videos") | snapshot(out / "body")
    # Two thousand steps would take the time of all other tests.
    state = json.loads((out / "demo.json").read_text())
    state["settings"]["brain_steps"] = 20
    (out / "demo.json").write_text(json.dumps(state | {"begun": None}))
    assert run(*words[:-1], 20, "--resume") == 0
    assert snapshot(out / "clip") | snapshot(out / "videos") | snapshot(out / "body") == before
    numbers = json.loads((out / "demo.json").read_text())
    assert numbers["finished"] and numbers["brain_steps"] == 20 and len(list(read_frames(out / "listener.mp4"))) == 50
    video = (out / "listener.mp4").stat().st_mtime_ns
    assert run(*words[:-1], 20, "--resume") == 0 and (out / "listener.mp4").stat().st_mtime_ns == video


@pytest.mark.parametrize(("arguments", "message"), [
    ([], "not a demo"), (["--overwrite"], "not a demo"), (["--seconds", "3"], "--seconds is 3"), (["--size", "9"], "--size is 9"),
    (["--overwrite", "--resume"], "exclude each other"), (["--out", "{}/notes.txt"], "is a file"),
])  # fmt: skip
def test_the_demo_leaves_other_folders_alone(arguments, message, tmp_path, capsys):
    (tmp_path / "notes.txt").write_text("mine")
    assert message in fails(capsys, "demo", "--out", tmp_path, *(word.format(tmp_path) for word in arguments))
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("notes.txt", "mine")]
