"""The tri-plane body: planes, fields, layers, checkpoints, density; its stages on a made-up clip, interrupted and resumed."""

import json
import os
import signal

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from scipy.spatial.transform import Rotation
from test_body import SIZE, numbers, random, write_clip

from difflistener.bench import synthetic_motion
from difflistener.body import train_triplane as training
from difflistener.body import triplane_stages as stages
from difflistener.body.config import BodyTraining
from difflistener.body.data import load_body_data
from difflistener.body.densify import EXTENT, SPLIT_ABOVE, Pull, densify, drop, is_green
from difflistener.body.film import Film
from difflistener.body.geometry import multiply
from difflistener.body.model import Body
from difflistener.body.train import resolve
from difflistener.body.triplane import (
    BOUND,
    DC,
    DEGREE_ENDS,
    FEATURES,
    HEAD_UNIT,
    HEARD,
    Branch,
    FaceField,
    MouthField,
    Planes,
    TriplaneBody,
    TriplaneConfig,
    inverse_softplus,
)
from difflistener.checkpoint import load_training_state
from difflistener.clip import MASK_LABELS, Clip
from difflistener.errors import UserError
from difflistener.motion import ROTATION
from difflistener.prepare.face_points import mouth_opening


pytestmark = pytest.mark.usefixtures("one_thread")


def make_body(face=300, mouth=80, torso=120) -> TriplaneBody:
    """A head of lit dots over a patch of torso, with fields that move it well."""
    torch.manual_seed(0)
    body = TriplaneBody(TriplaneConfig("landmark:synthetic", SIZE, SIZE, face + mouth + torso, num_face=face, num_mouth=mouth))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for branch in (body.mouth, body.face):
            branch.scatter(generator)
            branch.tones.normal_(generator=generator)
            branch.shades.normal_(0, 0.2, generator=generator)
            branch.opacity_logits.fill_(1.0)
            branch.raw_scales.fill_(-5.5)
            branch.field.planes.grid.normal_(generator=generator)
        body.torso.means.normal_(generator=generator).add_(numbers(0, 2, 0))
        body.torso.log_scales.fill_(-1.5)
        body.torso.colors.uniform_(generator=generator)
        body.torso.rigid_logits.fill_(-4.0)
        for buffer in (body.K, body.torso.K):
            buffer.copy_(numbers([190, 0, SIZE / 2], [0, 190, SIZE / 2], [0, 0, 1]))
        body.neck[0, 2] = 11.0
        body.background.copy_(random(SIZE, SIZE, 3).sigmoid())
    return body


# ---------------------------------------------------------------------------------------------------- planes


@pytest.mark.parametrize(("finest", "cells"), [(38.4, (16, 39)), (57.6, (16, 58))])
def test_planes_are_twelve_grids_a_plane(finest, cells):
    planes = Planes(finest)
    assert (planes.cells[0], planes.cells[-1]) == cells and all(a < b for a, b in zip(planes.cells, planes.cells[1:]))
    with torch.no_grad():
        planes.grid.normal_(generator=torch.Generator().manual_seed(0))
    points = (torch.rand(50, 3, generator=torch.Generator().manual_seed(1)) * 2 - 1) * 1.2 * BOUND
    found = planes(points)
    assert found.shape == (50, FEATURES)
    inside = (points / BOUND).clamp(-1, 1)
    for plane, axes in enumerate([(0, 1), (1, 2), (0, 2)]):
        for level, count in enumerate(planes.cells):
            row = plane * 12 + level
            grid = planes.grid[row : row + 1, :, : count + 1, : count + 1]
            one = F.grid_sample(grid, inside[None, None, :, list(axes)], align_corners=True)[0, 0, 0]
            assert torch.allclose(found[:, row], one, atol=1e-5)
    assert sum((count + 1) ** 2 for count in Planes(38.4).cells) == 9407  # The published 9.4k numbers a plane.


def test_padding_of_coarse_levels_is_never_read():
    planes = Planes(38.4)
    planes(random(500, 3) * BOUND).sum().backward()
    for row in range(FEATURES):
        used = planes.cells[row % 12] + 1
        outside = planes.grid.grad[row, 0].clone()
        outside[:used, :used] = 0
        assert outside.abs().max() < 1e-4 and planes.grid.grad[row].abs().max() > 1


# ---------------------------------------------------------------------------------------------------- fields


def test_the_face_field_is_one_network_over_features_sound_and_eyes():
    body = make_body()
    field, drive = body.face.field, body.drive(synthetic_motion(3), random(3, 3), random(3, 4, seed=2))
    features = field.planes(body.face.means)
    heard = field.hears(features) * field.ear(drive.theta)[:, None]
    eyes = torch.cat([field.lids(drive.eyes), drive.eyes[:, :2].mean(1, keepdim=True)], 1)
    seen = torch.relu(field.sees(features)) * eyes[:, None]
    move, turn, grow = field.layers(torch.cat([features.expand(3, -1, -1), heard, seen], -1)).split([3, 4, 3], -1)
    found = body.face.offsets(drive)
    for one, other in zip(found, (move * 1e-2, turn, grow)):
        assert torch.allclose(one, other, atol=1e-5) and other.abs().max() > 1e-4
    assert [layer.weight.shape for layer in field.layers[::2]] == [(64, 74), (64, 64), (10, 64)]


def test_the_mouth_moves_mostly_up_and_down():
    body = make_body()
    field, drive = body.mouth.field, body.drive(synthetic_motion(2), random(2, 3), random(2, 4))
    features = field.planes(body.mouth.means)
    out = field.layers(torch.cat([features.expand(2, -1, -1), field.ear(drive.theta)[:, None].expand(-1, len(features), -1)], -1))
    move, turn, grow = body.mouth.offsets(drive)
    assert torch.allclose(move, out * 1e-2 * numbers(0.2, 1, 0.2), atol=1e-6) and (turn, grow) == (0, 0)
    assert field.layers[0].weight.shape == (32, FEATURES + HEARD)


@pytest.mark.parametrize("kind", [MouthField, FaceField])
def test_gradients_reach_grids_and_networks(kind):
    body = make_body()
    branch = body.face if kind is FaceField else body.mouth
    drive = body.drive(synthetic_motion(3), random(3, 3), random(3, 4))
    sum((part**2).sum() for part in branch.offsets(drive) if torch.is_tensor(part)).backward()
    for name, parameter in branch.field.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize("sign", [-1, 1])
def test_extreme_motion_is_held(sign):
    body = make_body()
    motion, eyes = random(200, 56) * 0.2, random(200, 4, seed=1) * 0.2
    body.motion_range.fit(motion)
    body.eye_range.fit(eyes)
    far, farther = ((sign * size * torch.ones(1, 56), sign * size * torch.ones(1, 4)) for size in (1e3, 1e6))
    known = body.drive(motion, torch.zeros(200, 3), eyes)
    one, other = (body.drive(motion, torch.zeros(1, 3), eyes) for motion, eyes in (far, farther))
    assert torch.allclose(one.theta, other.theta, atol=1e-4) and torch.allclose(one.eyes, other.eyes, atol=1e-4)
    assert one.theta.abs().max() < 1.5 * known.theta.abs().max() and one.eyes.abs().max() < 1.5 * known.eyes.abs().max()
    pictures, covered = body(farther[0], eyes=farther[1])
    assert torch.isfinite(pictures).all() and 0 <= covered.min() and covered.max() <= 1


def test_harmonics_are_orthonormal():
    """By quadrature on a Fibonacci sphere; the constant one is among them."""
    count = 20_000
    height = 1 - 2 * (torch.arange(count, dtype=torch.float64) + 0.5) / count
    angle = torch.pi * (1 + 5**0.5) * torch.arange(count, dtype=torch.float64)
    view = torch.stack([angle.cos() * (1 - height**2).sqrt(), angle.sin() * (1 - height**2).sqrt(), height], 1)[None]
    branch = Branch(DEGREE_ENDS[2], MouthField()).double()
    with torch.no_grad():
        branch.tones.fill_(10.0)  # Far from the limit at black.
        branch.shades[range(8), range(8)] = 1.0
        values = branch._colors(view.transpose(0, 1).expand(-1, 8, -1))[..., 0] - 0.5 - 10 * DC
    values = torch.cat([torch.full((count, 1), DC, dtype=torch.float64), values], 1)
    gram = values.T @ values * 4 * torch.pi / count
    assert torch.allclose(gram, torch.eye(9, dtype=torch.float64), atol=1e-4)


def test_a_colour_depends_on_the_side_it_is_seen_from():
    body = make_body()
    motion = torch.zeros(2, 56)
    motion[1, ROTATION.start + 1] = 1.0
    drive = body.drive(motion, numbers([0, 0, 11], [0, 0, 11]), torch.zeros(2, 4))
    both = body.face.pose(drive, None)
    view = F.normalize(both.means, dim=-1) @ drive.rotation
    centre = -(drive.rotation.transpose(1, 2) @ drive.translation[..., None])[:, :, 0] / HEAD_UNIT
    assert torch.allclose(view, F.normalize(body.face.means - centre[:, None], dim=-1), atol=1e-5)
    assert (both.colors[0] - both.colors[1]).abs().max() > 0.1
    body.face.degree = 0
    plain = body.face.pose(drive, None).colors
    assert torch.allclose(plain, (DC * body.face.tones + 0.5).clamp_min(0).expand(2, -1, -1), atol=1e-6)


# ------------------------------------------------------------------------------------------------------ body


def test_a_branch_goes_with_the_head():
    body = make_body()
    motion = torch.zeros(1, 56)
    motion[0, ROTATION] = numbers(0.1, -0.4, 0.2)
    posed = body.face.pose(body.drive(motion, numbers([0.3, -0.2, 10.5]), torch.zeros(1, 4)), None)
    turn = Rotation.from_rotvec([0.1, -0.4, 0.2])
    local = body.face.means.detach().numpy() * HEAD_UNIT
    assert np.allclose(posed.means[0].detach(), turn.apply(local) + [0.3, -0.2, 10.5], atol=1e-4)
    quaternion = torch.from_numpy(turn.as_quat(scalar_first=True)).float()
    assert torch.allclose(posed.quats[0], multiply(quaternion[None], body.face.quats), atol=1e-5)
    assert torch.allclose(posed.scales[0], body.face.scales * HEAD_UNIT)


def test_layers_are_composed_as_published():
    body = make_body()
    motion, translation, torso, eyes = synthetic_motion(2), numbers([0, 0, 11], [0.1, 0, 11]), torch.zeros(2, 3), random(2, 4)
    pictures, covered = body(motion, translation, torso, eyes)
    assert pictures.shape == (2, SIZE, SIZE, 3) and covered.shape == (2, SIZE, SIZE, 1)
    drive = body.drive(motion, translation, eyes)
    c_m, a_m = body.draw(body.mouth.pose(drive, body.mouth.offsets(drive)))
    c_f, a_f = body.draw(body.face.pose(drive, body.face.offsets(drive)))
    c_t, a_t = body.draw(body.torso.gaussians(motion, translation, torso, eyes))
    expected = c_f + (1 - a_f) * (c_m + (1 - a_m) * (c_t + (1 - a_t) * body.background))
    assert torch.allclose(pictures, expected, atol=1e-5)
    assert torch.allclose(covered, 1 - (1 - a_f) * (1 - a_m) * (1 - a_t), atol=1e-5)
    assert all(a.max() > 0.5 and a.min() < 0.1 for a in (a_m, a_f, a_t))
    film = random(2, SIZE, SIZE, 3, seed=5).sigmoid()
    over, _ = body.over(film, drive)
    assert torch.allclose(over, c_f + (1 - a_f) * (c_m + (1 - a_m) * film), atol=1e-5)


def test_all_gaussians_stand_in_one_set():
    body = make_body()
    inputs = synthetic_motion(2), numbers([0, 0, 11], [0.1, 0, 11]), torch.zeros(2, 3), random(2, 4)
    every = body.gaussians(*inputs)
    assert [tuple(values.shape) for values in every] == [(2, 500, 3), (2, 500, 4), (2, 500, 3), (2, 500), (2, 500, 3)]
    drive = body.drive(inputs[0], inputs[1], inputs[3])
    face = body.face.pose(drive, body.face.offsets(drive))
    assert all(torch.equal(whole[:, 200:], part.expand_as(whole[:, 200:])) for whole, part in zip(every, face))


def test_baking_changes_no_picture():
    body = make_body()
    motion = synthetic_motion(2)
    with torch.no_grad():
        plain, _ = body(motion)
        body.eval()
        assert body.face.baked is not None and torch.allclose(body(motion)[0], plain, atol=1e-6)
        body.double().float()
        assert body.face.baked.first.dtype == torch.float32 and torch.allclose(body(motion)[0], plain, atol=1e-5)
        body.train()
        body.face.means.add_(0.01)
        assert body.face.baked is None and not torch.allclose(body(motion)[0], plain, atol=1e-3)


def test_a_checkpoint_gives_the_same_pictures(tmp_path):
    body = make_body()
    body.save_pretrained(tmp_path / "body", {"steps": 3})
    again = Body.from_pretrained(tmp_path / "body")
    assert isinstance(again, TriplaneBody) and again.config == body.config and again.face.baked is not None
    # Bases of the torso are stored in half precision and the plate in 8 bits.
    assert (again(synthetic_motion(2))[0] - body(synthetic_motion(2))[0]).abs().max() < 0.5 / 255 + 1e-3
    config = tmp_path / "body" / "config.json"
    values = json.loads(config.read_text())
    assert values["type"] == "body.triplane"
    assert (values["num_gaussians"], values["num_face"], values["num_mouth"]) == (500, 300, 80)
    config.write_text(json.dumps(values | {"num_face": 299}))
    with pytest.raises(UserError, match="does not fit its config.json"):
        Body.from_pretrained(tmp_path / "body")


# ------------------------------------------------------------------------------------------------- densification


def test_pull_is_the_gradient_in_the_picture():
    K = numbers([190, 0, 30], [0, 170, 34], [0, 0, 1])
    means = (random(40, 3) + numbers(0, 0, 11)).requires_grad_()
    weight = random(40, 2, seed=1)
    pixels = means[:, :2] / means[:, 2:] * numbers(190, 170) + numbers(30, 34)
    (pixels / numbers(32, 24) * weight).sum().backward()
    seen = ((pixels > 0) & (pixels < numbers(64, 48))).all(1)
    pull = Pull(40, K, 64, 48)
    pull.add(means.detach(), means.grad)
    pull.add(means.detach(), means.grad * 3)
    assert 5 < seen.sum() < 35
    assert torch.allclose(pull.mean(), 2 * weight.norm(dim=1) * seen, rtol=1e-4)


def growing_branch():
    """Six Gaussians with moments: 0 and 1 small, 2 and 3 wide, 4 faint, 5 huge."""
    branch = Branch(6, MouthField())
    with torch.no_grad():
        branch.means.copy_(torch.arange(18.0).reshape(6, 3))
        branch.raw_scales.copy_(inverse_softplus(SPLIT_ABOVE * numbers(0.5, 0.5, 2, 2, 0.5, 1000))[:, None].expand(-1, 3))
        branch.opacity_logits.copy_(numbers(2, 2, 2, 2, -5, 2))
    optimizer = torch.optim.AdamW([{"params": [getattr(branch, name)], "lr": 1e-9} for name in Branch.PER_GAUSSIAN], fused=True)
    for name in Branch.PER_GAUSSIAN:
        getattr(branch, name).grad = torch.ones_like(getattr(branch, name))
    optimizer.step()
    return branch, optimizer


def test_small_gaussians_are_copied_and_wide_ones_split():
    branch, optimizer = growing_branch()
    means, scales = branch.means.detach().clone(), branch.scales.detach().clone()
    densify(branch, optimizer, numbers(1, 0, 1, 0, 0, 0), 0.5, 0.05, 0.5 * EXTENT, torch.Generator().manual_seed(0))
    assert len(branch) == 6  # Kept 0, 1, 3; a copy of 0; two halves of 2. 4 is too faint and 5 too large.
    assert torch.equal(branch.means[:4], means[[0, 1, 3, 0]])
    assert torch.allclose(branch.scales[4:], scales[[2, 2]] / 1.6) and torch.allclose(branch.scales[:4], scales[[0, 1, 3, 0]])
    away = (branch.means[4:] - means[2]) / scales[2]
    assert 0 < away.abs().max() < 4 and not torch.equal(away[0], away[1])
    for name in Branch.PER_GAUSSIAN:
        moments = optimizer.state[getattr(branch, name)]["exp_avg"]
        assert (moments[:3] > 0).all() and not moments[3:].any() and moments.shape == getattr(branch, name).shape
    branch.means.grad = torch.ones_like(branch.means)
    optimizer.step()
    assert len(optimizer.state) == len(Branch.PER_GAUSSIAN)


def test_halves_lie_along_the_axes_of_the_whole():
    branch, optimizer = growing_branch()
    with torch.no_grad():
        branch.raw_scales[2] = inverse_softplus(SPLIT_ABOVE * numbers(2, 1e-3, 1e-3))
        branch.quats[2] = 3 * torch.from_numpy(Rotation.from_rotvec([0, 0, np.pi / 3]).as_quat(scalar_first=True))
        before = branch.means[2].clone()
    densify(branch, optimizer, numbers(0, 0, 1, 0, 0, 0), 0.5, 0.05, float("inf"), torch.Generator().manual_seed(0))
    away = F.normalize(branch.means[-2:] - before, dim=1)
    assert torch.allclose(away.abs(), numbers(0.5, 3**0.5 / 2, 0).expand(2, 3), atol=0.05)


def test_one_gaussian_always_stays():
    branch, optimizer = growing_branch()
    drop(branch, optimizer, torch.ones(6, dtype=torch.bool))
    assert len(branch) == 1 and branch.opacity_logits.item() == pytest.approx(2)


def test_green_is_what_the_background_is_painted():
    assert is_green(numbers([0, 1, 0], [0.1, 0.9, 0.1], [0.2, 1, 0], [0.5, 0.5, 0.5])).tolist() == [True, True, False, False]


# ------------------------------------------------------------------------------------------------- training


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return Clip.open(write_clip(tmp_path_factory.mktemp("clips") / "painted"))


@pytest.fixture(scope="module")
def loaded(clip, tmp_path_factory):
    """Data, and labels with the painted mouth as the inner mouth."""
    data, labels = load_body_data(clip, None, tmp_path_factory.mktemp("pictures"))
    labels = np.array(labels)
    labels[np.abs(np.array(data.frames).astype(int) - [130, 30, 40]).max(-1) < 40] = MASK_LABELS["mouth"]
    return data, labels


SCHEDULE = 0.002
"""24 steps on the torso, 100 on the mouth, 100 on the face, 20 to fuse."""


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(training, "START_FACE", 300)
    monkeypatch.setattr(training, "START_MOUTH", 150)
    monkeypatch.setattr(stages, "DENSIFY_EVERY", 10)


def train(clip, loaded, out, perceptual=None, schedule=SCHEDULE, **changes):
    settings = {"gaussians": 400, "batch_size": 2, "save_every": 1000, "device": "cpu", "schedule": schedule}
    config = resolve(BodyTraining(clip.path, out, **settings | changes), SIZE)
    (out / "training_state").mkdir(parents=True, exist_ok=True)
    return training.train_triplane(config, clip, *loaded, perceptual)


@pytest.fixture(scope="module")
def trained(clip, loaded, tmp_path_factory):
    """An unbroken run: its folder, summary, and losses by stage."""
    losses, step = {}, stages.Stage.step

    def recorded(self, number):
        losses.setdefault(self.name, []).append(float(loss := step(self, number)))
        return loss

    out = tmp_path_factory.mktemp("bodies") / "whole"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stages.Stage, "step", recorded)
        for name, value in (("START_FACE", 300), ("START_MOUTH", 150)):
            patch.setattr(training, name, value)
        patch.setattr(stages, "DENSIFY_EVERY", 10)
        summary = train(clip, loaded, out, save_every=150)
    return out, summary, losses


def test_each_stage_learns(trained):
    _, summary, losses = trained
    assert {name: len(values) for name, values in losses.items()} == {"torso": 24, "mouth": 100, "face": 100, "fuse": 20}
    for name, share in (("torso", 0.8), ("mouth", 0.5), ("face", 0.8)):
        assert np.mean(losses[name][-5:]) < share * np.mean(losses[name][:5]), name


def test_fusing_changes_colours_and_the_face_s_opacity_alone(clip, loaded):
    run = make_run(clip, loaded)
    before = {name: tensor.clone() for name, tensor in run.body.state_dict().items()}
    stage = stages._Fuse(run)
    stage.frames[:] = 7
    losses = [float(stage.step(number)) for number in range(30)]
    assert losses[-1] < losses[0]
    changed = {name for name, tensor in run.body.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {"face.tones", "face.shades", "face.opacity_logits", "mouth.tones", "mouth.shades"}


def test_training_leaves_a_body_with_its_scores(trained):
    out, summary, _ = trained
    left = {"README.md", "config.json", "metrics.jsonl", "model.safetensors", "strip.png"}
    assert {path.name for path in out.iterdir()} == left
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [150, 244] and "nearest_frame_psnr" in summary and summary["images_per_s"] > 0
    assert summary["test_psnr_over_filmed_torso"] > summary["test_psnr"] > 8
    config = json.loads((out / "config.json").read_text())
    assert config["training"] == summary
    body = Body.from_pretrained(out)
    assert (len(body.face), len(body.mouth)) == (config["num_face"], config["num_mouth"]) != (300, 150)


def test_the_saved_body_renders_the_held_out_frames(trained, loaded):
    out, summary, _ = trained
    data, _ = loaded
    pictures = Body.from_pretrained(out).render(*data.inputs(data.test, "cpu")).numpy()
    error = ((pictures.astype(float) - data.frames[data.test]) ** 2).mean((1, 2, 3)) / 255**2
    assert (-10 * np.log10(error)).mean() == pytest.approx(summary["test_psnr"], abs=0.01)


@pytest.mark.parametrize("stops", [(10, 95), (124, 185)])
def test_an_interrupted_run_resumes_to_the_same_bits(trained, clip, loaded, tmp_path, monkeypatch, stops):
    """Inside a stage, and between two."""
    out, step, done = tmp_path / "broken", stages.Stage.step, 0

    def interrupted(self, number):
        nonlocal done
        done += 1
        if done in stops:
            os.kill(os.getpid(), signal.SIGINT)
        return step(self, number)

    monkeypatch.setattr(stages.Stage, "step", interrupted)
    for stop in stops:
        with pytest.raises(KeyboardInterrupt):
            train(clip, loaded, out, resume=done > 0)
        assert load_training_state(out)[1]["step"] == done == stop
    train(clip, loaded, out, resume=True)
    one, other = load_file(trained[0] / "model.safetensors"), load_file(out / "model.safetensors")
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_a_closed_mouth_stays_empty(clip, loaded, tmp_path):
    data, labels = loaded
    closed = np.where(labels == MASK_LABELS["mouth"], MASK_LABELS["head"], labels)
    with pytest.warns(UserWarning, match="No frame shows the inside of the mouth"):
        train(clip, (data, closed), tmp_path / "out", schedule=0.0001)
    body = Body.from_pretrained(tmp_path / "out")
    assert len(body.mouth) == 1 and body.mouth.opacity_logits.max() < -10


def test_the_perceptual_loss_sees_patches_of_the_last_steps(clip, loaded, tmp_path):
    shapes = []

    def perceptual(image, truth):
        shapes.append(tuple(image.shape))
        return ((image - truth) ** 2).mean((1, 2, 3))

    train(clip, loaded, tmp_path / "out", perceptual, schedule=0.001)
    # One of 50 steps of the mouth, three of the face (lips and patches), half of the fusion.
    assert len(shapes) == 1 + 2 * 3 + 5
    assert all(shape[0] >= 1 and min(shape[1:3]) >= 32 and shape[3] == 3 for shape in shapes)


def make_run(clip, loaded, schedule=0.01, **changes):
    data, labels = loaded
    config = resolve(BodyTraining(clip.path, clip.path / "out", gaussians=400, schedule=schedule, device="cpu"), SIZE)
    body = training.start_triplane(data, labels, clip.basis, config)
    film = Film(data, changes.pop("labels", labels), body, clip.read_json("listener", "camera.json"), "cpu")
    return stages.Run(body, data, film, config, None)


def test_the_torso_starts_as_a_linear_body_has_it(clip, loaded):
    body = make_run(clip, loaded).body
    assert len(body.torso.means) == body.config.num_torso > 100 and (body.torso.group == 3).all()
    assert torch.equal(body.torso.K, body.K) and body.torso.background.numel() == 0
    assert body.background.mean() > 0.3 and body.neck.abs().max() > 1


def test_frames_that_show_much_come_more_often(clip, loaded):
    data, labels = loaded
    labels = labels.copy()
    poor = data.train[::3]
    labels[poor] = np.where(labels[poor] == MASK_LABELS["mouth"], MASK_LABELS["head"], labels[poor])
    run = make_run(clip, loaded, labels=labels)
    opening = mouth_opening(data.landmarks)
    mouth = stages._Mouth(run).frames
    assert len(mouth) == 500 and set(mouth) <= set(data.train) - set(poor)
    usable = np.setdiff1d(data.train, poor)
    assert (opening[mouth[:30]] >= np.percentile(opening[usable], 95)).all()
    assert opening[mouth[30:100:7]].mean() > opening[mouth[330:390:7]].mean() > opening[usable].mean() - 0.01
    face = stages._Face(run).frames
    assert set(face) == set(data.train)
    assert np.bincount(face, minlength=100)[:75].min() >= 3


def test_rates_fall_as_published(clip, loaded):
    stage = stages._Face(make_run(clip, loaded, schedule=1.0))
    names = [*stages.BRANCH_RATES, "planes", "networks"]
    rates = dict(zip(names, stage.schedule.lr_lambdas))
    assert rates["means"](45_000) == rates["means"](50_000) == pytest.approx(0.01) and rates["tones"](49_999) == 1
    assert rates["planes"](39_999) == pytest.approx(0.5, abs=1e-4) and rates["networks"](40_000) == pytest.approx(0.1**0.8)
    assert stage.optimizer.param_groups[0]["initial_lr"] == pytest.approx(1.6e-4 * EXTENT)


def test_what_is_green_goes(clip, loaded):
    run = make_run(clip, loaded)
    for kind in (stages._Mouth, stages._Face):
        stage = kind(run)
        branch = stage.branch
        stage.colors = torch.zeros(len(branch), 3)
        stage.colors[:10, 1] = 1.0
        stage.pull.total[:10], stage.pull.times[:10] = 1.5 * stage.threshold, 1
        with torch.no_grad():
            branch.opacity_logits.fill_(2.0)
            branch.raw_scales.fill_(-5.0)
        before, scales = branch.means.detach().clone(), branch.scales.detach().clone()
        stage.densify(20)
        if kind is stages._Face:
            assert torch.equal(branch.means, before[10:])
        else:  # Small and faint at first, and not doubled at half its pull.
            assert torch.equal(branch.means, before) and torch.allclose(branch.scales[:10], scales[:10] / 10, rtol=1e-3)
            assert torch.allclose(torch.sigmoid(branch.opacity_logits[:10]), torch.tensor(0.1))
            stage.colors = torch.zeros(len(branch), 3)
            stage.densify(200)  # A fifth of the way later a tenth is too faint.
            assert torch.equal(branch.means, before[10:])


def test_the_rectangle_about_the_lips_grows_within_the_picture(clip, loaded):
    film = make_run(clip, loaded).film
    data, labels = loaded
    rows, columns = film.about_lips(7)
    assert (labels[7][rows, columns] == MASK_LABELS["mouth"]).sum() > 0.5 * (labels[7] == MASK_LABELS["mouth"]).sum() > 5
    film.lips[7] = [[60, 0], [64, 5]]
    assert film.about_lips(7) == (slice(0, 5), slice(60, 64))
    assert film.about_lips(7, 32) == (slice(0, 32), slice(32, 64)) and film.about_lips(7, 99) == (slice(0, 64), slice(0, 64))


def test_patches_tile_the_picture():
    picture = random(1, 70, 99, 3)
    patches = stages._patches(picture, 32)
    assert patches.shape == (6, 32, 32, 3)
    assert torch.equal(patches[4], picture[0, 32:64, 32:64])
