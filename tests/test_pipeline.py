"""`prepare` and `basis`: what they refuse, what they leave alone, and how they go on."""

import os
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("mediapipe")

from toy_clip import SIZE, copy, fails, interrupt, root, run, snapshot, write_video  # noqa: E402

from difflistener import cli  # noqa: E402
from difflistener.clip import Clip  # noqa: E402
from difflistener.media import VideoWriter, read_frames  # noqa: E402

CLIPS = Path(os.environ.get("DIFFLISTENER_CLIPS", Path(__file__).parents[2] / "shared/clips"))


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """Videos and motion files, good and bad, by name."""
    folder = tmp_path_factory.mktemp("inputs")
    for role in ("speaker", "listener"):
        shutil.copy(root() / "videos" / f"{role}.mp4", folder)
    (folder / "empty.mp4").touch()
    (folder / "text.mp4").write_text("not a video\n")
    write_video(folder / "plain.mp4", (np.full((128, 128, 3), 90 + i, np.uint8) for i in range(20)), np.zeros(20 * 640, np.float32))
    exp, pose = np.random.default_rng(0).normal(size=(60, 50)).astype("f4"), np.zeros((60, 6), "f4")
    np.savez(folder / "good.npz", exp=exp, pose=pose)
    np.savez(folder / "unequal.npz", exp=exp, pose=pose[:50])
    np.savez(folder / "columns.npz", exp=exp[:, :49], pose=pose)
    np.savez(folder / "words.npz", exp=np.full((60, 50), "a"), pose=pose)
    np.savez(folder / "lacking.npz", exp=exp)
    exp[7, 3] = np.nan
    np.savez(folder / "nan.npz", exp=exp, pose=pose)
    (folder / "cut.npz").write_bytes((folder / "good.npz").read_bytes()[:900])
    np.save(folder / "array.npy", exp)
    return folder


BAD = {
    "missing": ("--listener missing.mp4", "missing.mp4 does not exist"),
    "empty": ("--listener empty.mp4", "is empty"),
    "text": ("--listener text.mp4", "text.mp4 cannot be read"),
    "no face": ("--listener plain.mp4", "No face was found"),
    "speaker without sound": ("--speaker listener.mp4", "no sound"),
    "listener without pictures": ("--listener sound.wav", "no pictures"),
    "nobody": ("", "Neither a speaker nor a listener"),
    "late start": ("--listener listener.mp4 --start 9", "before --start 9"),
    "start before zero": ("--listener listener.mp4 --start -1", "--start is -1"),
    "start nan": ("--listener listener.mp4 --start nan", "--start is nan"),
    "duration 0": ("--listener listener.mp4 --duration 0", "--duration is 0"),
    "duration nan": ("--listener listener.mp4 --duration nan", "--duration is nan"),
    "test frames": ("--listener listener.mp4 --test-frames 9 9", "--test-frames 9 9 is no block"),
    "size": ("--listener listener.mp4 --size 8", "--size is 8"),
    "too short": ("--listener listener.mp4 --duration 0.4", "9 tracked frames"),
    "no basis": ("--listener listener.mp4 --basis missing", "no basis at missing"),
    "no wav2vec2": ("--speaker speaker.mp4 --listener listener.mp4 --audio wav2vec2 --wav2vec2-model missing", "missing"),
    "no basis file": ("--listener listener.mp4 --basis text.mp4", "not a landmark basis"),
    "dyad without side": ("--dyad speaker.mp4", "--dyad needs --speaker-side"),
    "side without dyad": ("--speaker speaker.mp4 --speaker-side left", "goes with --dyad"),
    "dyad and speaker": ("--dyad speaker.mp4 --speaker speaker.mp4 --speaker-side left", "do not go with it"),
    "two listeners": ("--listener listener.mp4 --listener-motion good.npz", "both given"),
    "unequal": ("--listener-motion unequal.npz", "60 rows of exp and 50 of pose"),
    "columns": ("--listener-motion columns.npz", "exp [60, 49]"),
    "words": ("--listener-motion words.npz", "not stored motion"),
    "lacking": ("--listener-motion lacking.npz", "pose"),
    "nan": ("--listener-motion nan.npz", "not finite at frame 7"),
    "cut": ("--listener-motion cut.npz", "not stored motion"),
    "array": ("--listener-motion array.npy", "not stored motion"),
    "motion text": ("--listener-motion text.mp4", "not stored motion"),
    "motion missing": ("--listener-motion missing.npz", "no file at missing.npz"),
    "motion basis": ("--listener-motion good.npz --motion-basis smpl", "smpl is not known"),
    "motion start": ("--listener-motion good.npz --start 3", "ends at 2.40 s"),
    "both flags": ("--listener listener.mp4 --overwrite --resume", "exclude each other"),
}


@pytest.mark.parametrize("case", list(BAD))
def test_bad_input_is_two_lines_and_leaves_nothing(case, inputs, tmp_path, monkeypatch, capsys):
    arguments, message = BAD[case]
    shutil.copy(root() / "clip/speaker/audio.wav", inputs / "sound.wav")
    monkeypatch.chdir(inputs)
    if "wav2vec2" in arguments:
        # The environment variable is read at import only, and another test may have imported it.
        monkeypatch.setattr(pytest.importorskip("huggingface_hub.constants"), "HF_HUB_OFFLINE", True)
    out = tmp_path / "clip"
    assert message in fails(capsys, "prepare", *arguments.split(), "--out", out)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("arguments", ["", "--overwrite", "--resume"])
def test_a_failure_leaves_an_existing_clip_as_it_was(arguments, inputs, tmp_path, capsys):
    clip = copy("clip", tmp_path)
    before = snapshot(clip)
    source = "listener.mp4" if not arguments else "plain.mp4"
    fails(capsys, "prepare", "--listener", inputs / source, "--out", clip, *arguments.split())
    assert snapshot(clip) == before and [path.name for path in tmp_path.iterdir()] == ["clip"]


def test_output_that_is_no_clip_is_left_alone(inputs, tmp_path, capsys):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/notes.txt").write_text("mine")
    motion = ["prepare", "--listener-motion", inputs / "good.npz", "--overwrite", "--out"]
    assert "not a clip" in fails(capsys, *motion, tmp_path / "folder")
    assert "is a file" in fails(capsys, *motion, tmp_path / "folder/notes.txt")
    assert "Not a directory" in fails(capsys, *motion, tmp_path / "folder/notes.txt/clip")
    assert (tmp_path / "folder/notes.txt").read_text() == "mine"


def test_an_unwritable_folder_is_two_lines(inputs, tmp_path, capsys):
    folder = tmp_path / "locked"
    folder.mkdir(mode=0o500)
    if os.access(folder, os.W_OK):
        pytest.skip("this user may write everywhere (root)")
    assert "Permission denied" in fails(capsys, "prepare", "--listener-motion", inputs / "good.npz", "--out", folder / "clip")


def test_an_unknown_setting_is_named(inputs, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        run("prepare", "--oot", tmp_path / "clip")
    assert stop.value.code == 2 and "--oot" in capsys.readouterr().err


@pytest.mark.parametrize(("damage", "message"), [
    ("{", "damaged"), ("[]", "damaged"), ('{"format": 1}', "damaged"), ('{"format": 9}', "format 9"),
    ('{"format": 1, "num_frames": 9, "basis": null, "licences": [], "roles": {"listener": {"motion.npy": 3}}}', "damaged"),
])  # fmt: skip
def test_a_damaged_clip_json_is_two_lines_everywhere(damage, message, inputs, tmp_path, capsys):
    clip = tmp_path / "clip"
    clip.mkdir()
    (clip / "clip.json").write_text(damage)
    for arguments in (["prepare", "--listener", inputs / "listener.mp4", "--out", clip, "--resume"], ["basis", clip, "--out", tmp_path / "b"],
                      ["train", "body", clip, "--out", tmp_path / "b"], ["train", "brain", clip, "--out", tmp_path / "b"]):
        assert message in fails(capsys, *arguments)
    assert (clip / "clip.json").read_text() == damage and [path.name for path in tmp_path.iterdir()] == ["clip"]


@pytest.mark.parametrize("damage", ["speaker/logmel.npy", "listener/valid.npy", "listener/camera.json",
                                    "listener/mask.npz", "listener/report.png"])
def test_resume_mends_a_damaged_file(damage, inputs, tmp_path):
    clip = copy("clip", tmp_path)
    whole = (clip / damage).read_bytes()
    (clip / damage).write_bytes(whole[: len(whole) // 2])
    assert run("prepare", "--speaker", inputs / "speaker.mp4", "--listener", inputs / "listener.mp4", "--out", clip, "--resume") == 0
    if damage.endswith((".npy", ".json")):
        assert (clip / damage).read_bytes() == whole
    assert len((clip / damage).read_bytes()) > 0.9 * len(whole)


def test_motion_comes_from_a_file(inputs, tmp_path, capsys):
    arguments = ["prepare", "--speaker", inputs / "speaker.mp4", "--listener-motion", inputs / "good.npz", "--start", 1, "--out", tmp_path / "clip"]
    assert run(*arguments, "--basis", root() / "clip") == 0
    assert "warning: --basis is ignored" in capsys.readouterr().err
    clip = Clip.open(tmp_path / "clip")
    with np.load(inputs / "good.npz") as given:
        np.testing.assert_array_equal(clip.read("listener", "motion"), np.hstack([given["exp"], given["pose"]])[25:])
    assert clip.num_frames == 35 and clip.basis == "flame2020" and len(clip.read("speaker", "logmel")) == 35
    before = snapshot(tmp_path)
    assert run(*arguments, "--resume") == 0 and snapshot(tmp_path) == before


def test_sound_alone_is_cut_anew_by_resume(inputs, tmp_path):
    arguments = ["prepare", "--speaker", root() / "clip/speaker/audio.wav", "--out", tmp_path / "clip", "--start", 1, "--duration"]
    assert run(*arguments, 2) == 0 and Clip.open(tmp_path / "clip").num_frames == 50
    assert run(*arguments, 3, "--resume") == 0 and Clip.open(tmp_path / "clip").num_frames == 75


def test_overwrite_takes_the_place_when_whole(inputs, tmp_path):
    arguments = ["prepare", "--listener-motion", inputs / "good.npz", "--out", tmp_path / "clip"]
    assert run(*arguments) == 0
    (tmp_path / "clip/notes.txt").write_text("of the old clip")
    assert run(*arguments, "--duration", 1, "--overwrite") == 0
    assert Clip.open(tmp_path / "clip").num_frames == 25
    assert [path.name for path in tmp_path.iterdir()] == ["clip"] and not (tmp_path / "clip/notes.txt").exists()


def test_basis_refuses_what_it_cannot_use(inputs, tmp_path, capsys):
    assert run("prepare", "--listener-motion", inputs / "good.npz", "--out", tmp_path / "motion") == 0
    assert "tracked face" in fails(capsys, "basis", tmp_path / "motion", "--out", tmp_path / "basis.safetensors")
    clip = copy("clip", tmp_path)
    (clip / "listener/camera.json").write_text("{")
    assert "camera.json is damaged" in fails(capsys, "basis", clip, "--out", tmp_path / "basis.safetensors")
    assert not (tmp_path / "basis.safetensors").exists()
    (tmp_path / "basis.safetensors").write_text("mine")
    assert "exists" in fails(capsys, "basis", root() / "clip", "--out", tmp_path / "basis.safetensors")
    assert (tmp_path / "basis.safetensors").read_text() == "mine"


def test_ctrl_c_keeps_what_was_finished_and_resume_goes_on(inputs, tmp_path):
    out = tmp_path / "clip"
    arguments = ["prepare", "--speaker", inputs / "speaker.mp4", "--listener", inputs / "listener.mp4", "--out", out, "--duration", 3]
    # A file is finished once clip.json has it.
    code, errors = interrupt(arguments, lambda: (out / "clip.json").exists() and "crop.json" in (out / "clip.json").read_text())
    assert code == 130 and "--resume" in errors and "Traceback" not in errors
    tracked = (out / "speaker/landmarks.npy").stat().st_mtime_ns
    assert not (out / "listener/motion.npy").exists()
    assert run(*arguments, "--resume") == 0
    assert (out / "speaker/landmarks.npy").stat().st_mtime_ns == tracked
    assert Clip.open(out).num_frames == 75


def test_warnings_are_one_line_and_only_in_the_command_line(monkeypatch, capsys):
    before = warnings.showwarning
    monkeypatch.setattr(cli, "load", lambda path: cli_settings if path.endswith("Doctor") else lambda settings: warnings.warn("two\nlines", stacklevel=1))
    from dataclasses import make_dataclass

    cli_settings = make_dataclass("Doctor", [], frozen=True)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        monkeypatch.setattr(warnings, "showwarning", before)
        assert cli.main(["doctor"]) == 0
        assert warnings.showwarning is before
    assert capsys.readouterr().err == "warning: two lines\n"


def test_a_face_that_leaves_is_marked_and_bridged(inputs, tmp_path, capsys):
    frames = list(read_frames(inputs / "listener.mp4"))[:100]
    frames[75:] = [np.full_like(frames[0], 90)] * 25
    with VideoWriter(tmp_path / "leaves.mp4", SIZE, SIZE) as writer:
        for frame in frames:
            writer.write_frame(frame)
    assert run("prepare", "--listener", tmp_path / "leaves.mp4", "--out", tmp_path / "clip") == 0
    warned = [line for line in capsys.readouterr().err.splitlines() if "no face" in line]
    assert len(warned) == 1 and warned[0].startswith("warning: leaves.mp4: no face in 25 of 100 frames (3.00-4.00 s)")
    clip = Clip.open(tmp_path / "clip")
    valid, motion = clip.read("listener", "valid"), clip.read("listener", "motion")
    assert valid[:75].all() and not valid[75:].any()
    np.testing.assert_array_equal(motion[75:], np.repeat(motion[74:75], 25, 0))
    assert np.abs(motion[74]).sum() > 0.1


@pytest.mark.clips
@pytest.mark.skipif(not (CLIPS / "face_noface.mov").is_file(), reason=f"face_noface.mov is not in {CLIPS} (DIFFLISTENER_CLIPS)")
def test_a_real_face_that_leaves_is_marked(tmp_path, capsys):
    assert run("prepare", "--listener", CLIPS / "face_noface.mov", "--out", tmp_path / "clip", "--size", 128) == 0
    assert "warning: face_noface.mov: no face" in capsys.readouterr().err
    clip = Clip.open(tmp_path / "clip")
    valid = clip.read("listener", "valid")
    assert valid[:60].all() and not valid[80:].any()
    assert np.isfinite(clip.read("listener", "motion")).all()
