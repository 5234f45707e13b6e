"""`evaluate body`: every row and file on a painted clip with a made-up tracker; faults of silhouettes; what is refused."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.spatial.transform import Rotation
from synthetic_face import template
from test_body import SIZE, write_clip
from toy_clip import change_json

from difflistener.bench import synthetic_body
from difflistener.body.config import BodyTraining
from difflistener.body.data import load_body_data
from difflistener.body.model import Body
from difflistener.body.train import train_body
from difflistener.clip import MASK_LABELS, Clip
from difflistener.errors import UserError
from difflistener.evaluate import body as evaluation
from difflistener.evaluate.body import evaluate_body
from difflistener.evaluate.config import BodyEvaluation
from difflistener.evaluate.large_poses import FACTORS, headings, make_turns, silhouette_faults
from difflistener.evaluate.rows import refine
from difflistener.motion import ROTATION

ROWS = ["contract", "tracked", "refined", "mean frame", "nearest frame", "warp"]


class MadeUpTracker:
    """Puts the template where skin is seen."""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def push(self, frame):
        frame = frame.astype(int)
        skin = np.argwhere((frame[..., 0] > 170) & (frame[..., 0] - frame[..., 2] > 40))
        if len(skin) < 20:
            return None
        across, down = skin.mean(0)[::-1], skin.std(0).mean()
        return (template() * down + [*across, 0]).astype(np.float32)


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def tracker(monkeypatch, tmp_path):
    monkeypatch.setattr("difflistener.prepare.landmarks.FaceTracker", MadeUpTracker)
    monkeypatch.setenv("DIFFLISTENER_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def painted(tmp_path_factory):
    """A clip and a body that has seen a little of it."""
    folder = tmp_path_factory.mktemp("painted")
    valid = np.ones(100, bool)
    valid[90] = False
    write_clip(folder / "clip", valid=valid)
    train_body(BodyTraining(folder / "clip", folder / "body", gaussians=600, steps=40, batch_size=3, device="cpu"))
    return folder


def evaluate(painted, out, **changes):
    return evaluate_body(BodyEvaluation(painted / "body", painted / "clip", out, device="cpu", **changes))


def test_every_row_and_file(painted, tmp_path, capsys):
    figures = evaluate(painted, tmp_path / "scores", refine_steps=16)
    printed = capsys.readouterr().out
    assert json.loads((tmp_path / "scores" / "evaluation.json").read_text()) == json.loads(json.dumps(figures, allow_nan=False))
    assert {path.name for path in (tmp_path / "scores").iterdir()} == {"evaluation.json", "strip.png", "large_poses.png"}
    rows = figures["rows"]
    assert list(rows) == ROWS and figures["frames"] == [75, 100] and figures["scored"] == 24 and figures["learned_from"] == 0
    columns = {"psnr", "ssim", "psnr_head", "lmd_mouth", "lmd_face", "jitter", "lost"}
    assert all(set(row) == columns for row in rows.values())
    assert rows["refined"]["psnr"] > rows["tracked"]["psnr"] + 0.3
    assert rows["tracked"]["psnr"] > rows["mean frame"]["psnr"]
    assert rows["tracked"]["lmd_face"] < rows["mean frame"]["lmd_face"]
    assert rows["mean frame"]["jitter"] < 0.01 < rows["nearest frame"]["jitter"]
    assert "lpips: not measured" in printed and "test images used" in printed and "NOT HELD OUT" not in printed
    assert [line.split("  ")[0] for line in printed.splitlines()[2:8]] == ROWS
    assert Image.open(tmp_path / "scores" / "strip.png").size == (5 * SIZE, 5 * SIZE + 16)
    assert Image.open(tmp_path / "scores" / "large_poses.png").size == (12 * SIZE, 2 * SIZE + 16)
    turned = figures["large_poses"]
    assert set(turned) == {"body", "warp", "film"} and set(turned["warp"]) == {"1", "1.25", "1.5"}
    assert turned["warp"]["1.5"]["fold_percent"] >= turned["warp"]["1"]["fold_percent"]
    assert turned["body"]["1.5"]["fold_percent"] == 0
    assert turned["film"]["0"]["torn_percent"] == 0 and turned["film"]["0"]["lost"] == 0


def test_frames_that_were_learned_from_are_named_and_no_baseline_has_them(painted, tmp_path, capsys):
    figures = evaluate(painted, tmp_path / "scores", refine_steps=0, large_poses=False, frames=(10, 30))
    assert "NOT HELD OUT: the clip leaves 20 of these frames" in capsys.readouterr().out
    assert figures["learned_from"] == 20 and "refined" not in figures["rows"] and "large_poses" not in figures
    assert figures["rows"]["nearest frame"]["psnr"] < 60
    assert not (tmp_path / "scores" / "large_poses.png").exists()


def test_lpips_stands_in_the_table_where_its_weights_are(painted, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(evaluation.lpips, "is_present", lambda network: True)
    blank = classmethod(lambda cls, network, device: cls(network).requires_grad_(False))
    monkeypatch.setattr(evaluation.lpips.Lpips, "published", blank)
    figures = evaluate(painted, tmp_path / "scores", refine_steps=0, large_poses=False, frames=(80, 84))
    printed = capsys.readouterr().out
    assert figures["lpips_network"] == "alex" and "LPIPS" in printed and "not measured" not in printed
    assert 0 < figures["rows"]["tracked"]["lpips"] < figures["rows"]["mean frame"]["lpips"]
    assert figures["rows"]["tracked"]["jitter"] is None  # Four frames have no spectrum.


def test_an_interrupted_evaluation_leaves_no_pictures(painted, tmp_path, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(evaluation, "retrack", interrupt)
    with pytest.raises(KeyboardInterrupt):
        evaluate(painted, tmp_path / "scores")
    assert list((tmp_path / "scores").iterdir()) == []


def test_refining_finds_a_pose_again(painted, tmp_path):
    data, _ = load_body_data(Clip.open(painted / "clip"), SIZE, tmp_path)
    body, index = Body.from_pretrained(painted / "body"), np.array([80, 85])
    spread = data.motion[data.train].std(0)
    tracked = data.translation[index].clone()
    data.translation[index] += torch.tensor([0.08, -0.06, 0])
    off = body.render(*data.inputs(index, "cpu"))
    fitted = refine(body, data, index, spread, 60)
    found = body.render(*fitted)
    truth = torch.from_numpy(data.frames[index])
    errors = [((picture.float() - truth) ** 2).mean() for picture in (off, found)]
    assert errors[1] < 0.8 * errors[0]
    assert ((fitted[1] - tracked)[:, :2].norm(dim=1) < 0.07).all()
    assert torch.equal(fitted[0][:, 53:], data.motion[index][:, 53:])  # A jaw that never moved in training stays.


# ------------------------------------------------------------------------------------------------- refused


CASES = ("basis", "size", "frames", "all", "untracked", "landmarks", "exists", "file", "steps", "weights")


@pytest.mark.parametrize("case", CASES)
def test_what_cannot_be_evaluated_is_named(painted, tmp_path, monkeypatch, case):
    out, settings, copied = tmp_path / "scores", {}, tmp_path / "painted"
    shutil.copytree(painted, copied)
    if case == "basis":
        change_json(copied / "body" / "config.json", basis="landmark:0123456789ab")
    elif case == "size":
        body = synthetic_body(100, 2 * SIZE)
        object.__setattr__(body.config, "basis", Clip.open(copied / "clip").basis)
        body.save_pretrained(copied / "large")
        (copied / "body").rename(copied / "small")
        (copied / "large").rename(copied / "body")
    elif case == "frames":
        settings = {"frames": (90, 101)}
    elif case == "all":
        settings = {"frames": (0, 75)}
    elif case == "untracked":
        settings = {"frames": (90, 91)}
    elif case == "landmarks":
        meta = json.loads((copied / "clip" / "clip.json").read_text())
        del meta["roles"]["listener"]["landmarks.npy"]
        change_json(copied / "clip" / "clip.json", roles=meta["roles"])
    elif case == "exists":
        out.mkdir()
        (out / "evaluation.json").write_text("{}")
    elif case == "file":
        out.write_text("")
    elif case == "steps":
        settings = {"refine_steps": -1}
    else:
        settings = {"lpips": "vgg"}
        absent = Path(tmp_path / "absent.pth").as_uri()
        monkeypatch.setitem(evaluation.lpips.BACKBONES, "vgg", evaluation.lpips.Weights(absent, "0"))
    message = {"basis": "speaks basis landmark:0123456789ab", "size": "pictures of 128x128, the clip .* gives 64x64",
               "frames": "--frames 90 101 are no frames of .* has 100", "all": "Frames 0 to 74 leave none of",
               "untracked": "No face was tracked in frames 90 to 90",
               "landmarks": "no listener/landmarks.npy", "exists": "already holds an evaluation", "file": "is a file",
               "steps": "--refine-steps is -1", "weights": "absent.pth could not be fetched"}[case]
    with pytest.raises(UserError, match=message):
        evaluate(copied, out, **settings)
    assert not out.is_dir() or not list(out.glob(".*"))


# ------------------------------------------------------------------------------------------------- large poses


def test_turns_reach_one_and_a_half_times_the_largest_angle():
    angles = np.array([[0, 0, 0], [0.4, 0.1, 0], [-0.2, 0.05, 0.1], [0.1, -0.3, 0]]) + [0.1, 0.05, 0.02]
    neutral = torch.arange(56.0) / 56
    neutral[ROTATION] = torch.from_numpy(Rotation.from_euler("YXZ", angles[0]).as_rotvec()).float()
    turns = make_turns(Rotation.from_euler("YXZ", angles).as_rotvec(), neutral)
    assert [turn.name for turn in turns] == ["yaw -", "yaw +", "pitch -", "pitch +"]
    for turn, axis, sign, largest in zip(turns, (0, 0, 1, 1), (-1, 1, -1, 1), (0.4, 0.4, 0.3, 0.3)):
        found = Rotation.from_rotvec(turn.motion[:, ROTATION].numpy()).as_euler("YXZ")[list(turn.scored)]
        expected = np.tile(angles[0], (3, 1))
        expected[:, axis] += sign * largest * np.array(FACTORS)
        assert np.allclose(found, expected, atol=1e-5)
        assert torch.allclose(turn.motion[0], neutral) and torch.equal(turn.motion[-1, :50], neutral[:50])
    assert headings()[:4] == ["yaw -1.5", "yaw -1.25", "yaw -1", "yaw +1"] and len(headings()) == 12


def test_specks_and_holes_are_counted():
    person = np.zeros((128, 128), bool)
    person[40:, 30:100] = True
    person[60:70, 50:54] = False
    person[80:85, 80:83] = False
    person[100, 60] = False  # Too small to count.
    person[10:16, 10:20] = True
    person[20, 100] = True
    person[128 - 20 :, 90:100] = False  # Open to the edge of the picture: no hole.
    faults = silhouette_faults(person)
    assert (faults.num_specks, faults.num_holes) == (1, 2)
    assert faults.specks.sum() == 60 and faults.holes.sum() == 40 + 15
    assert faults.specks[12, 15] and faults.holes[65, 52] and not faults.holes[120, 95]


@pytest.mark.parametrize("fill", [False, True])
def test_a_bare_or_full_silhouette_has_no_faults(fill):
    faults = silhouette_faults(np.full((64, 64), fill))
    assert (faults.num_specks, faults.num_holes) == (0, 0) and not (faults.specks | faults.holes).any()


def test_the_head_region_is_the_head_widened():
    labels = np.zeros((512, 512), np.uint8)
    labels[300:, 100:400] = MASK_LABELS["torso"]
    labels[100:200, 200:300] = MASK_LABELS["hair"]
    region = evaluation._head_region(labels)
    rows, columns = np.nonzero(region)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (91, 208, 191, 308)
    assert not region[92, 192]


def test_without_retracking_the_pictures_alone_are_scored(painted, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("difflistener.prepare.landmarks.FaceTracker", None)
    figures = evaluate(painted, tmp_path / "scores", refine_steps=0, retrack=False)
    assert set(figures["rows"]["tracked"]) == {"psnr", "ssim", "psnr_head"} and "large_poses" not in figures
    assert "LMD" not in capsys.readouterr().out
