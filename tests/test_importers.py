"""Importers: what each published layout holds arrives in clips, and what is wrong with one clip is said and stops no other."""

import csv
import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from difflistener import cli
from difflistener.clip import Clip
from difflistener.dataset import load_pairs
from difflistener.errors import UserError
from difflistener.importers import run as module
from difflistener.importers.config import Import
from difflistener.importers.layouts import LAYOUTS, detect
from difflistener.importers.run import import_folder
from difflistener.importers.source import Track, resample
from difflistener.media import VideoWriter, load_audio, write_wav
from difflistener.prepare.audio import LogMel

CLIPS = Path(os.environ.get("DIFFLISTENER_CLIPS", Path(__file__).parents[2] / "shared/clips"))
TABLE = ("attitude", "audio", "listener", "speaker", "listener_id", "speaker_id", "data_split")


# Tiny data sets


FLAME_AXES = np.array([1] * 50 + [1, -1, -1] * 2, np.float32)
"""FLAME's y points up and its z at the camera."""


def in_flame_axes(values):
    """Motion [T, 56] of a clip as a tracker stores it."""
    return np.asarray(values) * FLAME_AXES


def motion(frames: int, seed: int) -> np.ndarray:
    """[frames, 56]: smooth, within half a radian."""
    generator = np.random.default_rng(seed)
    phase = np.arange(frames)[:, None] / 20 + generator.uniform(0, 6, 56)
    return (np.sin(phase) * np.where(np.arange(56) < 50, 1.0, 0.3)).astype(np.float32)


def write_npz(path: Path, values: np.ndarray, **more) -> None:
    np.savez(path, exp=values[:, :50], pose=values[:, 50:], shape=np.zeros((len(values), 100), "f4"), **more)


def write_sound(path: Path, seconds: float, seed: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_wav(path, np.random.default_rng(seed).normal(size=round(seconds * 16000)) * 0.1)


def write_emoca(folder: Path, values: np.ndarray, lost=(), first: int = 1) -> None:
    for number, row in enumerate(values, first):
        if number not in lost:
            frame = folder / "EMOCA_v2_lr_mse_20" / f"{number:06d}_000"
            frame.mkdir(parents=True)
            np.save(frame / "exp.npy", row[:50]), np.save(frame / "pose.npy", row[50:])


def write_table(path: Path, rows: list[dict], header: bool = True) -> None:
    with path.open("w", newline="") as file:
        table = csv.writer(file)
        if header:
            table.writerow(TABLE)
        table.writerows([row[name] for name in TABLE] for row in rows)


def write_picture_file(path: Path, frames: int = 10) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with VideoWriter(path, 64, 64) as writer:
        for number in range(frames):
            writer.write_frame(np.full((64, 64, 3), 10 * number, np.uint8))


def dualtalk(folder: Path) -> Path:
    for index, name in enumerate(("train/a", "train/b", "test/c", "ood/d")):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        for side in (1, 2):
            write_npz(folder / f"{name}_speaker{side}.npz", motion(30, 10 * index + side))
            write_sound(folder / f"{name}_speaker{side}.wav", 28.8 / 25, side)
    return folder


VICO = [dict(zip(TABLE, ("Positive", "talk_3_4", "one.0", "one.1", "7", "9", "train"))),
        dict(zip(TABLE, ("negative", "other_5_6", "two.0", "two.1", "8", "9", "ood")))]


def vico_emoca(folder: Path, header: bool = True) -> Path:
    folder.mkdir()
    write_table(folder / "RLD_data.csv", VICO, header)
    for index, row in enumerate(VICO):
        for role in ("listener", "speaker"):
            lost = (5, 6) if role == "listener" else ()
            write_emoca(folder / "emoca" / row[role], motion(36, 10 * index + len(role)), lost)
        write_sound(folder / "audios" / f"{row['audio']}.wav", 36 / 30)
    return folder


def vico(folder: Path) -> Path:
    folder.mkdir()
    write_table(folder / "RLD_data.csv", VICO)
    for row in VICO:
        for role in ("listener", "speaker"):
            write_picture_file(folder / "videos" / f"{row[role]}.mp4")
        write_sound(folder / "audios" / f"{row['audio']}.wav", 0.4)
    return folder


def vico_challenge(folder: Path) -> Path:
    folder.mkdir()
    for split, uuid in (("train", "u1"), ("test", "u2")):
        (folder / f"{split}.csv").write_text(f"video_id,uuid,speaker_id,listener_id\nv,{uuid},1,2\n")
        inside = "test" if split == "test" else ""  # As the PIRender step leaves it.
        for role in ("listener", "speaker"):
            write_picture_file(folder / "videos" / inside / f"{uuid}.{role}.mp4")
        write_sound(folder / "audios" / f"{uuid}.wav", 0.4)
    return folder


def learning2listen(folder: Path) -> Path:
    for person, split, count in (("conan", "train", 2), ("fallon", "test", 1)):
        part = folder / "data" / person / split
        part.mkdir(parents=True)
        for side in (0, 1):
            for kind in ("list", "speak"):
                faces = np.zeros((count, 64, 184), np.float32)
                for row in range(count):
                    faces[row, :, :56] = motion(64, 100 * row + 10 * side + len(kind))
                np.save(part / f"p{side}_{kind}_faces_clean_deca.npy", faces)
            np.save(part / f"p{side}_speak_files_clean_deca.npy", np.full((count, 64, 3), f"{person}_video"))
    return folder


def segment(seed: int, frames: int = 60, tensors: bool = False) -> dict:
    import torch

    found = {"fname": f"show{seed}", "split_start_frame": np.int64(3), "split_end_frame": 3 + frames,
             "p0_shape": np.zeros((frames, 100))}
    for side in (0, 1):
        values = motion(frames, seed + side)
        found |= {f"p{side}_exp": values[:, :50], f"p{side}_pose": values[:, 50:]}
    return {key: torch.from_numpy(value) if tensors and isinstance(value, np.ndarray) else value for key, value in found.items()}


def lm_listener(folder: Path) -> Path:
    import torch

    place = folder / "dataset/trevor"
    place.mkdir(parents=True)
    torch.save([segment(0), segment(10)], place / "segments_train.pth")
    torch.save([segment(20, tensors=True)], place / "segments_val.pth")
    return folder


def frames(folder: Path) -> Path:
    for index, name in enumerate(("anna", "ben")):
        write_emoca(folder / name, motion(20, index), first=0)
    return folder


def tracks(folder: Path) -> Path:
    folder.mkdir()
    values = motion(20, 0)
    exp, rotation, jaw = values[:, :50], values[:, 50:53], values[:, 53:]
    write_npz(folder / "emoca.npz", values)
    np.savez(folder / "smirk.npz", expression_params=exp, pose_params=rotation, jaw_params=jaw)
    np.savez(folder / "vhap.npz", expr=np.hstack([exp, exp]), rotation=rotation, neck_pose=0.2 * jaw, jaw_pose=jaw)
    return folder


def vhap(folder: Path) -> Path:
    values = motion(10, 0)
    (folder / "carl/flame_param").mkdir(parents=True)
    for number, row in enumerate(values):
        np.savez(folder / f"carl/flame_param/{number:05d}.npz", expr=row[None, :50], rotation=row[None, 50:53],
                 neck_pose=np.zeros((1, 3)), jaw_pose=row[None, 53:], shape=np.zeros(300))
    return folder


MAKE = {"dualtalk": dualtalk, "vico-emoca": vico_emoca, "vico-challenge": vico_challenge, "vico": vico,
        "learning2listen": learning2listen, "lm-listener": lm_listener, "vhap": vhap, "frames": frames, "tracks": tracks}


def table(path: Path) -> list[dict]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def skipped(out: Path) -> dict[str, str]:
    return {row["clip"]: row["reason"] for row in table(out / "skipped.csv")}


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def check_rows(clip: Clip) -> None:
    for role, files in clip.meta["roles"].items():
        for name, entry in files.items():
            if name.endswith(".npy"):
                assert entry["shape"][0] == clip.num_frames, f"{role}/{name}"


# What arrives


@pytest.mark.parametrize("name", list(LAYOUTS))
def test_each_layout_is_told_by_what_lies_there(name, tmp_path):
    assert set(MAKE) == set(LAYOUTS)
    assert detect(MAKE[name](tmp_path / "data_set")) == name


def test_resampling_keeps_speed_on_the_sphere_and_on_the_line():
    times = np.arange(61) / 30
    start, speed = Rotation.from_rotvec([0.9, -0.4, 0.3]), np.array([0.2, 1.1, -0.5])
    turning = (Rotation.from_rotvec(times[:, None] * speed) * start).as_rotvec()
    values = np.hstack([np.outer(times, np.arange(50)), turning, turning[:, ::-1]]).astype(np.float32)
    valid = times != times[10]
    found = resample(Track(values, valid), 30)
    at = np.arange(51) / 25
    assert len(found) == 51 and found.values.dtype == np.float32
    np.testing.assert_allclose(found.values[:, :50], np.outer(at, np.arange(50)), atol=2e-5)
    wanted = Rotation.from_rotvec(at[:, None] * speed) * start
    assert (wanted * Rotation.from_rotvec(found.values[:, 50:53]).inv()).magnitude().max() < 1e-6
    assert np.flatnonzero(~found.valid).tolist() == [8, 9]  # Source frames 9.6 and 10.8.
    np.testing.assert_allclose(found.values[::5], values[::6], atol=1e-6)


@pytest.mark.parametrize(("count", "fps", "wanted"), [(64, 30, 53), (1, 30, 1), (2, 30, 1), (30, 30, 25), (31, 30, 26),
                                                      (10, 12.5, 19), (7, 25, 7)])
def test_resampling_never_goes_past_the_last_frame(count, fps, wanted):
    assert len(resample(Track(motion(count, 0), np.ones(count, bool)), fps)) == wanted


def test_dualtalk_gives_both_directions(tmp_path):
    data = dualtalk(tmp_path / "data")
    found = import_folder(Import(data, tmp_path / "out"))
    assert found["imported"] == 8 and found["skipped"] == 0 and found["splits"] == {"train": 4, "test": 2, "ood": 2}
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"train", "test", "ood", "import.json", "index.csv"}
    for listener, speaker in ((1, 2), (2, 1)):
        clip = Clip.open(tmp_path / f"out/train/b_listener{listener}")
        check_rows(clip)
        # 30 frames of motion, 28.8 of sound: cut to the shorter.
        assert clip.num_frames == 29 and clip.basis == "flame2020"
        assert clip.meta["split"] == "train" and clip.meta["conversation"] == "b"
        np.testing.assert_array_equal(in_flame_axes(clip.read("listener", "motion")), motion(30, 10 + listener)[:29])
        np.testing.assert_array_equal(clip.read("speaker", "expression"), motion(30, 10 + speaker)[:29, :50])
        np.testing.assert_array_equal(clip.read("speaker", "rotation") * FLAME_AXES[50:53], motion(30, 10 + speaker)[:29, 50:53])
        sound = load_audio(data / f"train/b_speaker{speaker}.wav")
        assert np.abs(load_audio(clip.file("speaker", "audio.wav"))[: len(sound)] - sound).max() < 1e-4
        assert len(load_audio(clip.file("speaker", "audio.wav"))) == 29 * 640
        assert any("DualTalk" in entry and "Apache-2.0" in entry for entry in clip.meta["licences"])
    pairs = load_pairs(sorted((tmp_path / "out/train").iterdir()), "logmel")
    assert pairs[0].audio_settings == LogMel().settings() and pairs[0].expression_valid.all()


def test_a_clip_is_what_prepare_makes_of_the_same_files(tmp_path):
    data = dualtalk(tmp_path / "data")
    import_folder(Import(data, tmp_path / "out", limit=1))
    assert cli.main(["prepare", "--listener-motion", str(data / "train/a_speaker1.npz"),
                     "--speaker", str(data / "train/a_speaker2.wav"), "--out", str(tmp_path / "prepared")]) == 0
    ours, theirs = Clip.open(tmp_path / "out/train/a_listener1"), Clip.open(tmp_path / "prepared")
    assert ours.basis == theirs.basis and ours.num_frames == theirs.num_frames
    for role, name in (("listener", "motion"), ("listener", "valid"), ("speaker", "logmel")):
        np.testing.assert_array_equal(ours.read(role, name), theirs.read(role, name))
    assert ours.meta["roles"]["speaker"]["logmel.npy"] == theirs.meta["roles"]["speaker"]["logmel.npy"]
    load_pairs([ours.path, theirs.path], "logmel")


def test_a_direction_that_lacks_its_track_is_named(tmp_path, capsys):
    data = dualtalk(tmp_path / "data")
    (data / "train/a_speaker2.npz").unlink()
    assert cli.main(["import", str(data), "--out", str(tmp_path / "out")]) == 0
    assert "1 of 8 clips could not be imported" in capsys.readouterr().err
    reasons = skipped(tmp_path / "out")
    assert list(reasons) == ["train/a_listener2"] and "lacks a_speaker2.npz" in reasons["train/a_listener2"]
    clip = Clip.open(tmp_path / "out/train/a_listener1")
    assert not clip.has("speaker", "expression.npy") and clip.has("speaker", "logmel.npy")


@pytest.mark.skipif(not (CLIPS / "dualtalk").is_dir(), reason=f"dualtalk is not in {CLIPS} (DIFFLISTENER_CLIPS)")
def test_the_real_pairs_of_dualtalk(tmp_path):
    with pytest.warns(UserWarning, match="2 of 4 clips could not be imported"):
        found = import_folder(Import(CLIPS / "dualtalk", tmp_path / "out"))
    assert found["imported"] == 2 and found["skipped"] == 2 and found["splits"] == {"none": 2}
    clip = Clip.open(tmp_path / "out/xkHwlcDSOjc_sub_video_109_000_listener1")
    assert clip.num_frames == 749 and "split" not in clip.meta
    with np.load(CLIPS / "dualtalk/xkHwlcDSOjc_sub_video_109_000_speaker1.npz") as source:
        np.testing.assert_array_equal(in_flame_axes(clip.read("listener", "motion")), np.hstack([source["exp"], source["pose"]])[:749])
    load_pairs([clip.path, tmp_path / "out/UbjUDM1MiGE_sub_video_72_listener2"], "logmel")


@pytest.mark.parametrize("header", [True, False])
def test_vico_of_emoca_by_name_and_by_place(header, tmp_path):
    data = vico_emoca(tmp_path / "data", header)
    import_folder(Import(data, tmp_path / "out"))
    clip = Clip.open(tmp_path / "out/train/talk_3_4")
    check_rows(clip)
    assert clip.num_frames == 30
    assert {key: clip.meta[key] for key in ("attitude", "split", "conversation", "speaker_id", "listener_id")} == {
        "attitude": "positive", "split": "train", "conversation": "talk", "speaker_id": "9", "listener_id": "7"}
    assert any("ViCo" in entry and "EMOCA" in entry for entry in clip.meta["licences"])
    assert clip.meta["roles"]["listener"]["motion.npy"]["settings"]["fps"] == 30
    whole = motion(36, 8)
    np.testing.assert_allclose(in_flame_axes(clip.read("listener", "motion"))[::5], whole[::6], atol=1e-6)
    np.testing.assert_allclose(clip.read("speaker", "expression")[::5], motion(36, 7)[::6, :50], atol=1e-6)
    # Frames 5 and 6, the fifth and sixth, were not tracked: interpolated, and marked.
    assert np.flatnonzero(~clip.read("listener", "valid")).tolist() == [3, 4] and clip.read("speaker", "valid").all()
    assert np.abs(in_flame_axes(clip.read("listener", "motion"))[4] - resample(Track(whole, np.ones(36, bool)), 30).values[4]).max() < 0.02
    assert Clip.open(tmp_path / "out/ood/other_5_6").meta["attitude"] == "negative"
    assert [row["split"] for row in table(tmp_path / "out/index.csv")] == ["train", "ood"]
    load_pairs([clip.path], "logmel")


def test_the_first_of_several_faces_is_taken(tmp_path):
    data = frames(tmp_path / "data")
    frame = data / "anna/EMOCA_v2_lr_mse_20/000003_001"
    frame.mkdir()
    np.save(frame / "exp.npy", np.full(50, 9.0)), np.save(frame / "pose.npy", np.zeros(6))
    import_folder(Import(data, tmp_path / "out"))
    np.testing.assert_array_equal(in_flame_axes(Clip.open(tmp_path / "out/anna").read("listener", "motion")), motion(20, 0))


STUB = """#!/bin/sh
echo "$1" >> {log}
verb=$1; all="$*"
while [ $# -gt 0 ]; do if [ "$1" = --out ]; then out=$2; fi; shift; done
case $verb in
  prepare) [ -d "$out" ] || {{ mkdir -p "${{out%/*}}"; cp -r {template} "$out"; }};;
  basis) touch "$out";;
  import) exec {python} -m difflistener $all;;
esac
"""


def test_videos_become_a_script_that_prepares_and_marks(tmp_path, capsys, monkeypatch):
    data, out = vico(tmp_path / "data"), tmp_path / "out"
    assert cli.main(["import", str(data), "--out", str(out)]) == 0
    told = capsys.readouterr()
    assert json.loads(told.out)["listed"] == 2 and "prepare.sh" in told.err and "videos only" in told.err
    assert not (out / "train").exists() and not list(out.rglob(".*"))
    # The speakers' videos are silent: their sound is joined to them.
    joined = out / "speakers/train_talk_3_4.mkv"
    sound = load_audio(data / "audios/talk_3_4.wav")
    assert np.array_equal(load_audio(joined)[: len(sound)], sound) and str(joined) in (out / "prepare.sh").read_text()
    rows = [(row["clip"], row["attitude"], row["frames"]) for row in table(out / "index.csv")]
    assert rows == [("train/talk_3_4", "positive", ""), ("ood/other_5_6", "negative", "")]

    template = Clip.create(tmp_path / "template", 10)
    template.set(basis="flame2020")
    template.write("listener", "motion", motion(10, 0), "test", {})
    template.write("speaker", "expression", motion(10, 0)[:, :50], "test", {})
    template.write("speaker", "valid", np.ones(10, bool), "test", {})
    (tmp_path / "bin").mkdir()
    stub = STUB.format(log=tmp_path / "log", template=template.path, python=sys.executable)
    (tmp_path / "bin/difflistener").write_text(stub)
    (tmp_path / "bin/difflistener").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    for done in ("prepare basis prepare prepare import", "prepare prepare import"):  # The basis is fitted once, on train.
        (tmp_path / "log").unlink(missing_ok=True)
        subprocess.run([out / "prepare.sh"], check=True, capture_output=True)
        assert (tmp_path / "log").read_text().split() == done.split()
    clip = Clip.open(out / "train/talk_3_4")
    assert clip.meta["attitude"] == "positive" and clip.meta["split"] == "train" and "ViCo" in clip.meta["licences"][0]
    assert [row["frames"] for row in table(out / "index.csv")] == ["10", "10"]


def test_the_challenge_is_listed_with_its_splits(tmp_path):
    found = import_folder(Import(vico_challenge(tmp_path / "data"), tmp_path / "out"))
    assert found["listed"] == 2 and found["prepared"] == 0 and found["splits"] == {"train": 1, "test": 1}
    script = (tmp_path / "out/prepare.sh").read_text()
    for name in ("test/u2.listener.mp4", "u1.listener.mp4"):
        assert str(tmp_path / "data/videos" / name) in script


def test_the_listener_of_learning2listen_sits_on_the_left_but_for_fallon(tmp_path):
    with pytest.warns(UserWarning, match="no sound"):
        found = import_folder(Import(learning2listen(tmp_path / "data"), tmp_path / "out"))
    assert found["splits"] == {"train": 2, "test": 1}
    for name, side, row in (("train/conan-00001", 0, 1), ("test/fallon-00000", 1, 0)):
        clip = Clip.open(tmp_path / "out" / name)
        check_rows(clip)
        assert clip.num_frames == 53 and list(clip.meta["roles"]["speaker"]) == ["expression.npy", "rotation.npy", "valid.npy"]
        listener, speaker = motion(64, 100 * row + 10 * side + 4), motion(64, 100 * row + 10 * (1 - side) + 5)
        np.testing.assert_allclose(in_flame_axes(clip.read("listener", "motion"))[::5], listener[:63:6], atol=1e-6)
        np.testing.assert_allclose(clip.read("speaker", "expression")[::5], speaker[:63:6, :50], atol=1e-6)
        assert clip.meta["conversation"].endswith("_video")


def test_segments_of_lm_listener_as_arrays_and_as_tensors(tmp_path):
    with pytest.warns(UserWarning, match="no sound"):
        found = import_folder(Import(lm_listener(tmp_path / "data"), tmp_path / "out"))
    assert found["splits"] == {"train": 2, "val": 1}
    for name, seed in (("train/trevor-00001", 10), ("val/trevor-00000", 20)):
        clip = Clip.open(tmp_path / "out" / name)
        assert clip.meta["conversation"] == f"show{seed}" and clip.num_frames == 50
        np.testing.assert_allclose(in_flame_axes(clip.read("listener", "motion"))[::5], motion(60, seed)[::6], atol=1e-6)
        np.testing.assert_allclose(clip.read("speaker", "expression")[::5], motion(60, seed + 1)[::6, :50], atol=1e-6)


class Trap:
    def __reduce__(self):
        return os.mkdir, ("sprung",)


@pytest.mark.filterwarnings("ignore:lm-listener holds no sound", "ignore:.*could not be imported")
def test_code_in_a_file_is_never_run(tmp_path, monkeypatch):
    import torch

    monkeypatch.chdir(tmp_path)
    data = lm_listener(tmp_path / "data")
    torch.save([Trap()], data / "dataset/trevor/segments_train.pth")
    import_folder(Import(data, tmp_path / "out"))
    assert "weights_only=False" in skipped(tmp_path / "out")["train/trevor"] and (tmp_path / "out/val/trevor-00000").is_dir()
    results = tracks(tmp_path / "results")
    np.savez(results / "object.npz", exp=np.array([Trap()], object), pose=np.zeros((1, 6)))
    (results / "smirk.pkl").write_bytes(pickle.dumps(Trap()))
    import_folder(Import(results, tmp_path / "tracks"))
    assert set(skipped(tmp_path / "tracks")) == {"object", "smirk"}
    (tmp_path / "only").mkdir()
    (tmp_path / "only/a.pkl").write_bytes(pickle.dumps(Trap()))
    with pytest.raises(UserError, match="only pickles such as a.pkl"):
        import_folder(Import(tmp_path / "only", tmp_path / "none"))
    assert not (tmp_path / "sprung").exists() and not (tmp_path / "none").exists()


def test_results_of_single_people(tmp_path):
    import_folder(Import(frames(tmp_path / "a"), tmp_path / "frames", fps=50))
    clip = Clip.open(tmp_path / "frames/ben")
    assert clip.roles() == ["listener"] and clip.num_frames == 10
    assert clip.basis == "flame2020" and "split" not in clip.meta
    np.testing.assert_allclose(in_flame_axes(clip.read("listener", "motion")), motion(20, 1)[::2], atol=1e-6)
    import_folder(Import(tracks(tmp_path / "b"), tmp_path / "tracks", motion_basis="flame2023"))
    emoca, smirk, neck = (Clip.open(tmp_path / "tracks" / name).motion() for name in ("emoca", "smirk", "vhap"))
    assert emoca.basis == "flame2023" and np.array_equal(in_flame_axes(emoca.values), motion(20, 0))
    assert np.array_equal(smirk.values, emoca.values)
    assert np.array_equal(neck.expression, emoca.expression) and np.array_equal(neck.jaw, emoca.jaw)
    wanted = Rotation.from_rotvec(emoca.rotation) * Rotation.from_rotvec(0.2 * emoca.jaw)
    assert (wanted * Rotation.from_rotvec(neck.rotation).inv()).magnitude().max() < 1e-6
    import_folder(Import(vhap(tmp_path / "c"), tmp_path / "vhap"))
    np.testing.assert_allclose(in_flame_axes(Clip.open(tmp_path / "vhap/carl").read("listener", "motion")), motion(10, 0), atol=1e-6)


# What is wrong


def with_nan() -> np.ndarray:
    values = motion(30, 0)
    values[7, 3] = np.nan
    return values


BAD_TALKS = {
    "sound missing": (lambda talk: talk("wav").unlink(), "speaker2.wav"),
    "sound empty": (lambda talk: talk("wav").write_bytes(b""), "is empty"),
    "sound too short": (lambda talk: write_sound(talk("wav"), 27 / 25), "has 30 frames at 25 fps"),
    "nan": (lambda talk: write_npz(talk("npz"), with_nan()), "not finite at frame 7"),
    "lengths": (lambda talk: write_npz(talk("npz"), motion(33, 0)), "has 33 frames at 25 fps"),
    "columns": (lambda talk: np.savez(talk("npz"), exp=np.zeros((30, 49)), pose=np.zeros((30, 6))), "[30, 49]"),
    "array missing": (lambda talk: np.savez(talk("npz"), exp=np.zeros((30, 50))), "pose"),
    "cut": (lambda talk: talk("npz").write_bytes(talk("npz").read_bytes()[:700]), "is not stored motion"),
}


@pytest.mark.filterwarnings("ignore:.*could not be imported")
@pytest.mark.parametrize("case", list(BAD_TALKS))
def test_a_bad_talk_is_skipped_with_its_reason(case, tmp_path):
    data = dualtalk(tmp_path / "data")
    shutil.rmtree(data / "ood"), shutil.rmtree(data / "test")
    break_it, reason = BAD_TALKS[case]
    break_it(lambda kind: data / f"train/a_speaker2.{kind}")
    found = import_folder(Import(data, tmp_path / "out"))
    reasons = skipped(tmp_path / "out")
    assert found["skipped"] == len(reasons) and found["imported"] == 4 - len(reasons)
    assert {"train/a_listener1"} <= set(reasons) <= {"train/a_listener1", "train/a_listener2"}
    assert reason in reasons["train/a_listener1"] and "a_speaker2" in reasons["train/a_listener1"]
    assert not list((tmp_path / "out").glob(".clip-*")) and (tmp_path / "out/train/b_listener1/clip.json").is_file()


def damage_emoca(data: Path, kind: str) -> None:
    frame = data / "emoca/one.0/EMOCA_v2_lr_mse_20/000003_000"
    if kind == "pose":
        (frame / "pose.npy").unlink()
    elif kind == "shape":
        np.save(frame / "exp.npy", np.zeros(49))
    elif kind == "nan":
        np.save(frame / "exp.npy", np.full(50, np.nan))
    elif kind == "half":
        for number in range(8, 34):
            shutil.rmtree(frame.with_name(f"{number:06d}_000"), ignore_errors=True)
    elif kind == "end":
        for number in range(30, 37):
            shutil.rmtree(frame.with_name(f"{number:06d}_000"))
    elif kind == "person":
        shutil.rmtree(data / "emoca/one.0")
    elif kind == "sound":
        (data / "audios/talk_3_4.wav").unlink()
    else:
        write_table(data / "RLD_data.csv", [VICO[0] | {"attitude": kind}, VICO[1]])


@pytest.mark.filterwarnings("ignore:.*could not be imported")
@pytest.mark.parametrize(("kind", "reason"), [
    ("pose", "pose.npy is missing"), ("shape", "[49]"), ("nan", "not finite at frame 2"), ("half", "holds 8 of 36 frames"),
    ("end", "one.0 has 24"), ("person", "one.0 is missing"), ("sound", "talk_3_4.wav does not exist"), ("bored", "'bored'")])
def test_a_bad_clip_of_vico_is_skipped_with_its_reason(kind, reason, tmp_path):
    data = vico_emoca(tmp_path / "data")
    damage_emoca(data, kind)
    assert import_folder(Import(data, tmp_path / "out"))["imported"] == 1
    assert reason in skipped(tmp_path / "out")["train/talk_3_4"]


@pytest.mark.filterwarnings("ignore:.*could not be imported", "ignore:.*holds no sound")
def test_a_bad_part_of_learning2listen_is_skipped_with_its_reason(tmp_path):
    data = learning2listen(tmp_path / "data")
    part = data / "data/fallon/test"
    faces = part / "p0_speak_faces_clean_deca.npy"
    for break_it, reason in ((lambda: np.save(faces, np.zeros((2, 64, 184), "f4")), "holds 2"),
                             (lambda: np.save(faces, np.zeros((1, 64, 50), "f4")), "[1, 64, 50]"),
                             (faces.unlink, "is missing")):
        break_it()
        assert import_folder(Import(data, tmp_path / "out", overwrite=True))["imported"] == 2
        assert reason in skipped(tmp_path / "out")["test/fallon"]


@pytest.mark.filterwarnings("ignore:.*could not be imported", "ignore:.*holds no sound")
def test_a_bad_segment_is_skipped_with_its_reason(tmp_path):
    import torch

    place = lm_listener(tmp_path / "data") / "dataset/trevor"
    lacking = segment(0)
    del lacking["p1_exp"]
    torch.save([lacking, segment(1) | {"p0_exp": np.zeros((59, 50))}, 3, segment(2)], place / "segments_train.pth")
    (place / "segments_val.pth").write_bytes(b"no")
    assert import_folder(Import(tmp_path / "data", tmp_path / "out"))["imported"] == 1
    reasons = skipped(tmp_path / "out")
    assert set(reasons) == {"val/trevor", "train/trevor-00000", "train/trevor-00001", "train/trevor-00002"}
    assert "lacks p1_exp" in reasons["train/trevor-00000"] and "[59, 50]" in reasons["train/trevor-00001"]


@pytest.mark.filterwarnings("ignore:.*could not be imported")
def test_names_that_repeat_or_leave_the_folder_do_no_harm(tmp_path):
    data = vico_emoca(tmp_path / "data")
    write_table(data / "RLD_data.csv", [VICO[0], VICO[0], VICO[1] | {"data_split": "../../up"}])
    found = import_folder(Import(data, tmp_path / "out"))
    assert (found["imported"], found["skipped"]) == (2, 1) and len(table(tmp_path / "out/index.csv")) == 2
    assert "several clips called train/talk_3_4" in skipped(tmp_path / "out")["train/talk_3_4"]
    assert {path.name for path in tmp_path.iterdir()} == {"data", "out"} and Clip.open(tmp_path / "out/_.._up/other_5_6")


WRONG = {
    "no folder": ([], "missing", "no folder at"),
    "empty folder": ([], "empty", "no layout that is known"),
    "unknown layout": (["--layout", "dualtalks"], "empty", "no layout 'dualtalks'"),
    "other layout": (["--layout", "vico-emoca"], "talks", "holds no emoca/"),
    "no table": (["--layout", "vico"], "videos", "no RLD_data.csv"),
    "empty table": ([], "empty table", "holds no clip"),
    "narrow table": ([], "narrow table", "3 columns, expected 7"),
    "empty challenge": ([], "empty challenge", "hold no clip"),
    "odd challenge": ([], "odd challenge", "lacks the column listener_id"),
    "no clip": ([], "broken", "None of the 2 clips"),
    "workers": (["--workers", "0"], "talks", "--workers is 0"),
    "limit": (["--limit", "0"], "talks", "--limit is 0"),
    "fps": (["--fps", "0"], "talks", "--fps is 0"),
    "basis": (["--motion-basis", "bfm"], "talks", "bfm is not known"),
    "both": (["--resume", "--overwrite"], "talks", "exclude each other"),
}


@pytest.fixture(scope="module")
def wrong(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wrong")
    dualtalk(folder / "talks")
    for name, text in (("empty table", ""), ("narrow table", "a,b,c\n1,2,3\n"),
                       ("empty challenge", "video_id,uuid,speaker_id,listener_id\n"),
                       ("odd challenge", "video_id,uuid,speaker_id\n1,2,3\n")):
        (folder / name / "videos").mkdir(parents=True)
        (folder / name / "train.csv").write_text(text)
    (folder / "videos/videos").mkdir(parents=True)
    (folder / "empty").mkdir()
    shutil.copytree(folder / "talks/ood", folder / "broken")
    for path in (folder / "broken").glob("*.npz"):
        path.write_bytes(b"no")
    return folder


@pytest.mark.parametrize("case", list(WRONG))
def test_a_wrong_folder_or_setting_is_two_lines(case, wrong, tmp_path, capsys):
    arguments, folder, said = WRONG[case]
    assert cli.main(["import", str(wrong / folder), "--out", str(tmp_path / "out"), *arguments]) == 1
    lines = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("import ")]
    assert len(lines) == 2 and said in lines[0], lines
    assert {path.name for path in tmp_path.rglob("*")} == ({"out", "import.json", "skipped.csv"} if case == "no clip" else set())


def test_settings_that_a_data_set_states_itself_are_said_to_be_ignored(tmp_path):
    with pytest.warns(UserWarning, match="--fps is ignored"):
        import_folder(Import(dualtalk(tmp_path / "data"), tmp_path / "out", fps=30, limit=1))


# Many clips


def test_interrupted_resumed_or_parallel_the_clips_are_the_same(tmp_path, monkeypatch):
    data = dualtalk(tmp_path / "data")
    import_folder(Import(data, tmp_path / "one"))
    monkeypatch.setattr(module, "audio_stage", stop_at(3))
    with pytest.raises(KeyboardInterrupt):
        import_folder(Import(data, tmp_path / "two"))
    monkeypatch.undo()
    assert len(list((tmp_path / "two").glob("*/*/clip.json"))) == 2 and not list((tmp_path / "two").glob(".clip-*"))
    first = (tmp_path / "two/train/a_listener1/clip.json").stat().st_mtime_ns
    with pytest.raises(UserError, match="already holds an import"):
        import_folder(Import(data, tmp_path / "two"))
    assert import_folder(Import(data, tmp_path / "two", resume=True, limit=4))["before"] == 2
    assert import_folder(Import(data, tmp_path / "two", resume=True, workers=2))["imported"] == 4
    assert (tmp_path / "two/train/a_listener1/clip.json").stat().st_mtime_ns == first
    assert snapshot(tmp_path / "one") == snapshot(tmp_path / "two")


def stop_at(count: int):
    done = iter(range(1, count))
    real = module.audio_stage

    def stage(*arguments):
        if next(done, None) is None:
            raise KeyboardInterrupt
        real(*arguments)

    return stage


def test_output_in_use_is_kept_or_replaced_as_told(tmp_path):
    data = dualtalk(tmp_path / "data")
    out = tmp_path / "out"
    import_folder(Import(data, out, limit=1))
    with pytest.raises(UserError, match=r"started with layout = dualtalk, not frames"):
        import_folder(Import(frames(tmp_path / "frames"), out, resume=True))
    (out / "notes.txt").write_text("mine")
    import_folder(Import(tmp_path / "frames", out, overwrite=True))
    assert {path.name for path in out.iterdir()} == {"anna", "ben", "train", "notes.txt", "import.json", "index.csv"}
    assert not list((out / "train").iterdir())
    (tmp_path / "other").mkdir()
    (tmp_path / "other/thesis.txt").write_text("mine")
    with pytest.raises(UserError, match="not an import; they are left alone"):
        import_folder(Import(data, tmp_path / "other", overwrite=True))
    with pytest.raises(UserError, match="is a file"):
        import_folder(Import(data, tmp_path / "other/thesis.txt"))
    assert snapshot(tmp_path / "other") == {"thesis.txt": b"mine"}


@pytest.mark.filterwarnings("ignore:.*holds no sound")
def test_opening_sequences_does_not_grow_with_their_number(tmp_path, monkeypatch):
    """One look at a folder, whatever the number of clips; each clip opens its own two arrays."""
    part = tmp_path / "data/conan/train"
    part.mkdir(parents=True)
    for name in ("p0_list", "p1_speak"):
        np.save(part / f"{name}_faces_clean_deca.npy", np.zeros((60, 10, 184), np.float32))
    looks = []
    real = Path.glob
    monkeypatch.setattr(Path, "glob", lambda self, pattern: looks.append(pattern) or real(self, pattern))
    counts = []
    for limit in (20, 40):
        looks.clear()
        import_folder(Import(tmp_path / "data", tmp_path / f"out{limit}", limit=limit))
        counts.append(len(looks))
    assert counts[0] == counts[1] < 20
