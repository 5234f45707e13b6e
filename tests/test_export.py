"""Export: the .ply read back by an independent parser and rendered again; sequences interrupted and resumed."""

import errno
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from difflistener.bench import synthetic_body, synthetic_motion
from difflistener.body.model import Body
from difflistener.body.raster import rasterize
from difflistener.clip import Clip
from difflistener.errors import UserError
from difflistener.export import ExportBody, encode_ply, export_body
from difflistener.motion import ROTATION
from difflistener.stored_motion import load_motion

SIZE, COUNT = 64, 300
INRIA = ("x y z nx ny nz f_dc_0 f_dc_1 f_dc_2 opacity scale_0 scale_1 scale_2 rot_0 rot_1 rot_2 rot_3").split()


def read_ply(content: bytes) -> tuple[dict[str, np.ndarray], list[str]]:
    """Columns by name and comments, as the format's own description says; nothing of the writer is used."""
    header, body = content.split(b"end_header\n", 1)
    lines = header.decode("ascii").splitlines()
    assert lines[0] == "ply" and lines[1] == "format binary_little_endian 1.0"
    (count,) = (int(line.split()[2]) for line in lines if line.startswith("element vertex "))
    names = [line.split()[2] for line in lines if line.startswith("property float ")]
    assert len(lines) == 3 + len(names) + sum(line.startswith("comment ") for line in lines)
    table = np.frombuffer(body, "<f4").reshape(count, len(names))
    return dict(zip(names, table.T)), [line[8:] for line in lines if line.startswith("comment ")]


def stack(columns, *names) -> torch.Tensor:
    return torch.from_numpy(np.stack([columns[name] for name in names], -1))[None]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A small body with colours beyond 0..1, a head off the axis and a torso that follows."""
    body = synthetic_body(COUNT, SIZE)
    body.background.copy_(torch.rand(SIZE, SIZE, 3, generator=torch.Generator().manual_seed(1)))
    body.colors.mul_(1.4).sub_(0.2)
    body.neck.copy_(torch.tensor([[0.3, 0.9, 10.0], [0.0, 0.8, 0.2]]))
    body.torso_map[1, 0] = 0.2
    body.reference_rotation[1] = 0.2
    path = tmp_path_factory.mktemp("bodies") / "body"
    body.save_pretrained(path)
    return path


@pytest.fixture
def motion(tmp_path):
    path = tmp_path / "motion.npy"
    np.save(path, synthetic_motion(5).numpy())
    return path


def test_a_ply_read_back_renders_the_same_picture(folder, motion, tmp_path):
    body, out = Body.from_pretrained(folder), tmp_path / "new" / "head.ply"
    summary = export_body(ExportBody(folder, out, motion=motion, frame=3))
    columns, comments = read_ply(out.read_bytes())
    assert list(columns) == INRIA and len(columns["x"]) == COUNT == summary["gaussians"]
    (camera,) = (torch.tensor([float(value) for value in line.split()[5:8]]) for line in comments if line.startswith("filmed"))
    w2c = torch.eye(4)[None]
    w2c[0, :3, 3] = -camera
    rgb, alpha = rasterize(
        stack(columns, "x", "y", "z"), stack(columns, "rot_0", "rot_1", "rot_2", "rot_3"),
        stack(columns, "scale_0", "scale_1", "scale_2").exp(), stack(columns, "opacity")[..., 0].sigmoid(),
        0.5 + 0.28209479177387814 * stack(columns, "f_dc_0", "f_dc_1", "f_dc_2"), w2c, body.K[None], SIZE, SIZE)
    picture = (rgb + (1 - alpha) * body.background).clamp(0, 1) * 255
    rendered = body.render(synthetic_motion(5)[3:4]).float()
    assert alpha.mean() > 0.2 and (picture - rendered).abs().max() < 0.6
    other = body.render(synthetic_motion(5)[:1]).float()
    assert (picture - other).abs().max() > 20


def test_the_head_lies_at_the_origin_in_the_reference_pose(folder, tmp_path):
    body, out = Body.from_pretrained(folder), tmp_path / "head.ply"
    export_body(ExportBody(folder, out))
    columns, _ = read_ply(out.read_bytes())
    pose = torch.zeros(1, 56)
    pose[:, ROTATION] = body.reference_rotation
    translation, torso, eyes = body.follow(pose)
    means = body.gaussians(pose, translation, torso, eyes).means
    assert torch.allclose(stack(columns, "x", "y", "z"), means - translation, atol=1e-5)


def test_attributes_are_those_of_the_format():
    half = np.float32(0.5)
    content = encode_ply(
        np.array([[1, 2, 3], [0, 0, 0]], np.float32), np.array([[2, 0, 0, 0], [0, 0, 3, 4]], np.float32),
        np.array([[1, np.e, 1 / np.e], [1, 1, 1]], np.float32), np.array([0.5, 1.0], np.float32),
        np.array([[half, half + 0.28209479177387814, 0], [half, half, half]], np.float32), ["two of them"])
    columns, comments = read_ply(content)
    assert comments == ["two of them"] and content.count(b"\n", 0, content.index(b"end_header")) == 4 + len(INRIA)
    expected = [1, 2, 3, 0, 0, 0, 0, 1, -0.5 / 0.28209479177387814, 0, 0, 1, -1, 1, 0, 0, 0]
    assert np.allclose([columns[name][0] for name in INRIA], expected, atol=1e-6)
    assert np.isfinite([columns[name][1] for name in INRIA]).all() and columns["opacity"][1] > 13
    assert np.allclose([columns[f"rot_{k}"][1] for k in range(4)], [0, 0, 0.6, 0.8])


def test_a_sequence_holds_every_frame(folder, motion, tmp_path):
    out = tmp_path / "frames"
    assert export_body(ExportBody(folder, out, "ply-sequence", motion))["written"] == 5
    assert sorted(path.name for path in out.iterdir()) == [*(f"frame_0000{k}.ply" for k in range(5)), "sequence.json"]
    export_body(ExportBody(folder, tmp_path / "one.ply", motion=motion, frame=4))
    one, row = (read_ply(path.read_bytes())[0] for path in (tmp_path / "one.ply", out / "frame_00004.ply"))
    assert all(np.allclose(one[name], row[name], atol=1e-4) for name in INRIA)


def test_an_interrupted_sequence_keeps_whole_files_and_resumes(folder, motion, tmp_path, monkeypatch):
    out, write = tmp_path / "frames", Path.write_bytes
    config = ExportBody(folder, out, "ply-sequence", motion)

    def stopped(path, content):
        if "frame_00003" in path.name:
            write(path, content[:1000])
            raise KeyboardInterrupt
        return write(path, content)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Path, "write_bytes", stopped)
        export_body(config)
    whole = {path.name: path.stat().st_mtime_ns for path in out.glob("*.ply")}
    assert sorted(whole) == [f"frame_0000{k}.ply" for k in range(3)] and len(list(out.iterdir())) == 4
    with pytest.raises(UserError, match="already holds a sequence"):
        export_body(config)
    assert export_body(ExportBody(folder, out, "ply-sequence", motion, resume=True))["written"] == 2
    assert all((out / name).stat().st_mtime_ns == before for name, before in whole.items())
    assert len({len(path.read_bytes()) // COUNT for path in out.glob("*.ply")}) == 1


def test_a_sequence_is_not_mixed_with_another(folder, motion, tmp_path):
    out = tmp_path / "frames"
    export_body(ExportBody(folder, out, "ply-sequence", motion))
    np.save(motion, synthetic_motion(3).numpy())
    with pytest.raises(UserError, match="another frames"):
        export_body(ExportBody(folder, out, "ply-sequence", motion, resume=True))
    np.save(motion, synthetic_motion(5).numpy() + 1)
    with pytest.raises(UserError, match="another motion"):
        export_body(ExportBody(folder, out, "ply-sequence", motion, resume=True))
    np.save(motion, synthetic_motion(2).numpy())
    export_body(ExportBody(folder, out, "ply-sequence", motion, overwrite=True))
    assert len(list(out.glob("frame_*.ply"))) == 2 and json.loads((out / "sequence.json").read_text())["frames"] == 2


def test_a_full_disk_is_said_and_whole_files_stay(folder, motion, tmp_path, monkeypatch):
    out, write = tmp_path / "frames", Path.write_bytes
    config = ExportBody(folder, out, "ply-sequence", motion)
    with monkeypatch.context() as patch, pytest.raises(UserError, match="5 frames need 0.0 GB, .* has 0.0 GB free"):
        patch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**6, 10**6, 1000))
        export_body(config)

    def full(path, content):
        if "frame_00002" in path.name:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(path, content)

    with monkeypatch.context() as patch, pytest.raises(UserError, match="disk is full: .*frame_00002.ply") as error:
        patch.setattr(Path, "write_bytes", full)
        export_body(config)
    assert "--resume" in error.value.remedy
    assert sorted(path.name for path in out.iterdir()) == ["frame_00000.ply", "frame_00001.ply", "sequence.json"]


def test_what_stands_there_is_left_alone(folder, motion, tmp_path):
    (tmp_path / "head.ply").write_text("old")
    with pytest.raises(UserError, match="head.ply exists"):
        export_body(ExportBody(folder, tmp_path / "head.ply"))
    assert (tmp_path / "head.ply").read_text() == "old"
    export_body(ExportBody(folder, tmp_path / "head.ply", overwrite=True))
    assert (tmp_path / "head.ply").read_bytes().startswith(b"ply\n")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "frame_00000.ply").write_text("mine")
    for flags in ({}, {"overwrite": True}, {"resume": True}):
        with pytest.raises(UserError, match="not a sequence of difflistener"):
            export_body(ExportBody(folder, tmp_path / "photos", "ply-sequence", motion, **flags))
    assert (tmp_path / "photos" / "frame_00000.ply").read_text() == "mine"


@pytest.mark.parametrize(("changes", "message"), [
    ({"out": "head.obj"}, "not a .ply file"),
    ({"frame": 2}, "without --motion"),
    ({"resume": True}, "--resume goes with"),
    ({"motion": "motion.npy", "frame": 5}, "frames 0 to 4"),
    ({"motion": "motion.npy", "frame": -1}, "frames 0 to 4"),
    ({"to": "ply-sequence"}, "needs a motion"),
    ({"to": "ply-sequence", "motion": "motion.npy", "frame": 0}, "--frame goes with"),
    ({"to": "ply-sequence", "motion": "motion.npy", "resume": True, "overwrite": True}, "exclude each other"),
    ({"to": "ply-sequence", "motion": "motion.npy", "resume": True}, "no sequence to resume"),
    ({"to": "ply-sequence", "motion": "motion.npy", "out": "motion.npy"}, "is a file"),
    ({"motion": "missing.npy"}, "no file at"),
])
def test_settings_that_do_not_go_together_are_named(folder, motion, tmp_path, changes, message):
    values = {"out": "head.ply", **changes}
    for name in {"out", "motion"} & values.keys():
        values[name] = tmp_path / values[name]
    with pytest.raises(UserError, match=message):
        export_body(ExportBody(folder, **values))
    assert [path.name for path in tmp_path.iterdir()] == ["motion.npy"]


# ------------------------------------------------------------------------------------------- stored motion


def test_motion_is_read_in_every_form(tmp_path):
    motion = synthetic_motion(4).numpy()
    np.save(tmp_path / "a.npy", motion.astype(np.float64))
    np.savez(tmp_path / "b.npz", exp=motion[:, :50], pose=motion[:, 50:] * np.array([1, -1, -1] * 2, np.float32))
    clip = Clip.create(tmp_path / "clip", 4)
    clip.set(basis="flame2023")
    clip.write("listener", "motion", motion, "test", {})
    clip.write("listener", "valid", np.ones(4, bool), "test", {})
    for name in ("a.npy", "b.npz", "clip"):
        read = load_motion(tmp_path / name, "flame2023")
        assert read.dtype == np.float32 and np.array_equal(read, motion)
    with pytest.raises(UserError, match="speaks basis flame2023, the body speaks basis landmark:x"):
        load_motion(tmp_path / "clip", "landmark:x")
