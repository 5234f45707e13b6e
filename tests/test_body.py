"""The body: rotations, deformation, seeds, pose, checkpoints; training on a made-up clip, interrupted and resumed."""

import json
import os
import signal

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from scipy.spatial.transform import Rotation
from synthetic_face import poses, see, template

from difflistener.basis import fit_basis
from difflistener.bench import Bench, bench, synthetic_body, synthetic_motion
from difflistener.body import train as training
from difflistener.body import train_linear
from difflistener.body.config import BodyTraining
from difflistener.body.data import load_body_data
from difflistener.body.deformation import MARGIN, LinearDeformation, soft_clamp
from difflistener.body.gaussians import GROUPS, SHARES, Reference, seed_gaussians
from difflistener.body.geometry import matrix_from_axis_angle, multiply, quaternion_from_axis_angle
from difflistener.body.model import Body, Follow
from difflistener.body.train import resolve, train_body
from difflistener.checkpoint import save_checkpoint
from difflistener.clip import MASK_LABELS, Clip, MaskWriter, write_json
from difflistener.errors import UserError
from difflistener.media import VideoWriter
from difflistener.motion import ROTATION
from difflistener.prepare.bundle import Camera
from difflistener.prepare.posture import find_posture, fit_follow

SIZE = 64
CAMERA = Camera(190.0, SIZE / 2, SIZE / 2)


pytestmark = pytest.mark.usefixtures("one_thread")


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# ------------------------------------------------------------------------------------------------- geometry


def test_rotations_agree_with_scipy():
    vectors = torch.cat([random(50, 3).double() * 2, torch.zeros(1, 3), torch.tensor([[torch.pi, 0, 0], [1e-9, 0, 0]])])
    truth = Rotation.from_rotvec(vectors.numpy())
    assert np.allclose(matrix_from_axis_angle(vectors), truth.as_matrix(), atol=1e-12)
    quaternions = quaternion_from_axis_angle(vectors)
    assert np.allclose(Rotation.from_quat(quaternions.numpy(), scalar_first=True).as_matrix(), truth.as_matrix(), atol=1e-12)
    left, right = quaternions[:25], quaternions[25:50]
    product = Rotation.from_quat(multiply(left, right).numpy(), scalar_first=True)
    assert np.allclose(product.as_matrix(), (truth[:25] * truth[25:50]).as_matrix(), atol=1e-12)


@pytest.mark.parametrize("size", [0.0, 1e-30, 1e-12, 1e-6, 1e-3])
def test_a_rotation_is_smooth_at_zero(size):
    """d R / d vector at zero are the cross-product matrices."""
    vector = torch.tensor([size, -size, size])
    jacobian = torch.autograd.functional.jacobian(matrix_from_axis_angle, vector)
    cross = np.stack([np.cross(axis, np.eye(3)).T for axis in np.eye(3)], -1)  # [row, column, axis]
    assert np.allclose(jacobian, cross, atol=5e-3)


# ---------------------------------------------------------------------------------------------- deformation


def test_soft_clamp_is_the_identity_inside_and_bounded_outside():
    low, high = torch.tensor([-1.0]), torch.tensor([3.0])
    inside = torch.linspace(-1, 3, 101)[:, None]
    assert torch.equal(soft_clamp(inside, low, high), inside)
    wide = torch.linspace(-20, 20, 4001)[:, None]
    held = soft_clamp(wide, low, high)
    assert (held.diff(dim=0) >= -1e-6).all()
    margin = MARGIN * 4 + 1e-3
    assert held.min() == pytest.approx(-1 - margin) and held.max() == pytest.approx(3 + margin)
    beyond = soft_clamp(torch.tensor([[3.1]]), low, high)
    assert 3.05 < beyond.item() < 3.1


def test_soft_clamp_of_a_range_of_zero_is_no_nan():
    values = torch.tensor([-1e30, -1.0, 0.5, 1.0, 1e30], requires_grad=True)
    edge = torch.full((5,), 0.5)
    held = soft_clamp(values, edge, edge)
    held.sum().backward()
    assert (held - 0.5).abs().max() <= 0.0011 and torch.isfinite(values.grad).all()


def deformation(num_gaussians=30, num_codes=14, **scales):
    """A started deformation, its training motion [200, 56] and its seeds' bases [N, J, 3]."""
    motion = random(200, 56) * torch.linspace(0.5, 2, 56) + torch.linspace(-1, 1, 56)
    bases = random(num_gaussians, num_codes, 3, seed=1)
    torch.manual_seed(0)
    linear = LinearDeformation(num_gaussians, 20)
    linear.start_from(motion, bases, torch.linspace(1, 0.2, 56))
    return linear, motion, bases


def test_the_first_codes_move_the_seeds_as_they_move_the_face():
    linear, motion, bases = deformation()
    away = random(5, 14, seed=2) * 0.3
    driven = motion.mean(0).repeat(5, 1)
    driven[:, :14] += away
    move, fade, tint = linear(driven)
    assert torch.allclose(move, torch.einsum("bj,nji->bni", away, bases), atol=1e-5)
    assert not fade.any() and not tint.any()
    driven[:, 14:] += 0.1  # Later codes have no seed, so they move nothing yet.
    assert torch.allclose(linear(driven)[0], move, atol=1e-5)


def test_the_rotation_has_its_own_mixtures():
    linear, motion, _ = deformation()
    driven = motion.mean(0).repeat(2, 1)
    driven[1, ROTATION] += motion.std(0)[ROTATION] / 2
    change = linear.psi(driven).diff(dim=0)[0]
    assert torch.allclose(change[14:17], linear.gain[ROTATION] / 2, atol=1e-5)
    assert not change[:14].any() and not change[17:].any()


@pytest.mark.parametrize("sign", [-1, 1])
def test_extreme_motion_is_held(sign):
    body = make_body()
    motion = random(200, 56) * 0.2
    body.deformation.start_from(motion, random(body.config.num_gaussians, 14, 3) * 0.05, torch.ones(56))
    for parameter in (body.deformation.opacity, body.deformation.color):
        parameter.normal_(0, 0.05, generator=torch.Generator().manual_seed(0))
    far, farther = (sign * std * motion.std(0)[None] + motion.mean(0) for std in (1000, 1e6))
    for near, limit in zip(body.deformation(far), body.deformation(farther)):
        assert torch.allclose(near, limit, atol=1e-4) and limit.abs().max() < 10
    pictures, alpha = body(far)
    assert torch.isfinite(pictures).all() and pictures.abs().max() < 10
    assert 0 <= alpha.min() and alpha.max() <= 1


# ---------------------------------------------------------------------------------------------------- seeds


def reference(torso=True) -> Reference:
    """A face that looks straight ahead: hair above, a torso below."""
    rows, columns = np.mgrid[:SIZE, :SIZE]
    labels = np.zeros((SIZE, SIZE), np.uint8)
    labels[(np.abs(columns - 32) < 26) & (rows > 46)] = MASK_LABELS["torso"] if torso else 0
    labels[((columns - 32) / 16) ** 2 + ((rows - 28) / 22) ** 2 < 1] = MASK_LABELS["head"]
    labels[(labels == MASK_LABELS["head"]) & (rows < 14)] = MASK_LABELS["hair"]
    image = np.random.default_rng(0).random((SIZE, SIZE, 3))
    K = np.array([[CAMERA.focal, 0, CAMERA.cx], [0, CAMERA.focal, CAMERA.cy], [0, 0, 1]])
    return Reference(image, labels, Rotation.from_rotvec([0.05, 0.1, 0]).as_matrix(), np.array([0, 0.1, 11.0]), K)


def seeds(count=1000, seed=0, **changes):
    codes = np.random.default_rng(1).normal(size=(14, 478, 3)) * 0.05
    return seed_gaussians(count, template(), codes, reference(**changes), MASK_LABELS, np.random.default_rng(seed))


def seeds_in_picture(found, group, where):
    points = found.means[found.group == GROUPS[group]].double().numpy() @ where.rotation.T + where.translation
    return CAMERA.project(points), points


def test_seeds_are_counted_by_group():
    found = seeds()
    counts = np.bincount(found.group, minlength=4)
    assert counts.sum() == 1000 == len(found.means)
    assert [int(1000 * SHARES[name]) for name in ("face", "mouth", "hair")] == counts[:3].tolist()
    assert found.bases.shape == (1000, 14, 3) and torch.isfinite(found.means).all()
    assert found.colors.min() >= 0 and found.colors.max() <= 1 and found.colors.std() > 0.1
    is_face = found.group == GROUPS["face"]
    assert found.bases[is_face].abs().amax((1, 2)).min() > 0 and not found.bases[found.group >= GROUPS["hair"]].any()
    assert (found.rigid[found.group != GROUPS["torso"]] == 4).all()
    assert found.rigid[found.group == GROUPS["torso"]].min() == pytest.approx(-4, abs=0.01)


def test_the_seed_decides_the_points():
    first, again, other = seeds(), seeds(), seeds(seed=1)
    assert all(torch.equal(getattr(first, name), getattr(again, name)) for name in vars(first))
    assert not torch.equal(first.means, other.means)


def test_seeds_stand_where_their_labels_are():
    found, where = seeds(), reference()
    for group, wanted in (("hair", ("head", "hair")), ("torso", ("torso",))):
        pixel, _ = seeds_in_picture(found, group, where)
        column, row = np.floor(pixel + 1e-4).astype(int).T
        labels = where.labels[row.clip(0, SIZE - 1), column.clip(0, SIZE - 1)]
        assert np.isin(labels, [MASK_LABELS[name] for name in wanted]).mean() > 0.99, group
    _, torso = seeds_in_picture(found, "torso", where)
    assert np.allclose(torso[:, 2], torso[0, 2], atol=1e-4)
    lips = template()[[78, 308, 13, 14]]
    mouth = found.means[found.group == GROUPS["mouth"]].numpy()
    assert (mouth[:, 0] >= lips[:, 0].min()).all() and (mouth[:, 0] <= lips[:, 0].max()).all()


def test_the_back_of_the_skull_is_not_coloured_by_the_face_before_it():
    """Hair .2, skin .8: behind the cheeks hair down to the lips, skin below; before them what the picture shows."""
    where = reference()
    shades = np.select([where.labels == MASK_LABELS["hair"], where.labels == MASK_LABELS["head"]], [0.2, 0.8], 0.5)
    where.image[:] = shades[..., None]
    codes = np.zeros((14, 478, 3))
    found = seed_gaussians(4000, template(), codes, where, MASK_LABELS, np.random.default_rng(0))
    pixel, _ = seeds_in_picture(found, "hair", where)
    column, row = np.floor(pixel + 1e-4).astype(int).T
    is_hair = found.group == GROUPS["hair"]
    points, colors = found.means[is_hair].numpy(), found.colors[is_hair][:, 0].numpy()
    back = points[:, 2] > template()[[234, 454], 2].mean()
    high = points[:, 1] < template()[13, 1]
    assert (back & ~high).sum() > 20 and (back & high).sum() > 50 and (~back).sum() > 50
    assert np.allclose(colors[back & high], 0.2) and np.allclose(colors[back & ~high], 0.8)
    assert np.mean(np.isclose(colors, shades[row, column])[~back]) > 0.99


def test_a_picture_without_a_torso_is_seeded_on_the_person():
    found = seeds(torso=False)
    assert len(found.means) == 1000 and torch.isfinite(found.means).all()
    pixel, _ = seeds_in_picture(found, "torso", reference(torso=False))
    column, row = np.floor(pixel + 1e-4).astype(int).T
    assert (reference(torso=False).labels[row, column] != 0).mean() > 0.99


# ----------------------------------------------------------------------------------------------------- body


def make_body(gaussians=400, size=SIZE) -> Body:
    """bench's synthetic head, each Gaussian either all head or all torso."""
    body = synthetic_body(gaussians, size)
    body.rigid_logits.mul_(10)
    return body


def numbers(*rows):
    return torch.tensor(rows, dtype=torch.float32)


def test_a_body_renders_batches():
    body = make_body()
    motion = synthetic_motion(3)
    pictures, alpha = body(motion)
    assert pictures.shape == (3, SIZE, SIZE, 3) and alpha.shape == (3, SIZE, SIZE, 1)
    assert not torch.equal(pictures[0], pictures[2]) and alpha.max() > 0.9 and alpha.min() < 0.01
    assert torch.allclose(body(motion[2:])[0], pictures[2:], atol=1e-6)
    render = body.render(motion)
    assert render.dtype == torch.uint8 and render.device.type == "cpu" and render.shape == (3, SIZE, SIZE, 3)
    assert (render.float() / 255 - pictures.clamp(0, 1)).abs().max() <= 0.51 / 255


def test_the_background_shows_where_nothing_covers_it():
    body = make_body()
    body.background.copy_(random(SIZE, SIZE, 3).abs())
    pictures, alpha = body(synthetic_motion(1))
    bare = alpha[0, ..., 0] == 0
    assert bare.any() and torch.equal(pictures[0][bare], body.background[bare])


def test_the_head_moves_without_the_torso():
    body = make_body()
    body.deformation.position.zero_()  # The rotation is one of its inputs, for the torso too.
    is_torso = body.rigid_logits < 0
    still = torch.zeros(3, 56)
    still[2, ROTATION] = numbers(0.1, -0.3, 0.2)
    translation, torso = numbers([0, 0, 10], [0.3, -0.2, 10.5], [0, 0, 10]), torch.zeros(3, 3)
    means, quats, *_ = body.gaussians(still, translation, torso, None)
    assert torch.allclose(means[1:, is_torso], means[:1, is_torso], atol=1e-5)
    assert torch.allclose(quats[1:, is_torso], quats[:1, is_torso], atol=1e-5)
    head = means[:, ~is_torso]
    assert torch.allclose(head[1] - head[0], numbers([0.3, -0.2, 0.5]), atol=1e-5)
    turn = Rotation.from_rotvec([0.1, -0.3, 0.2])
    assert np.allclose(head[2] - translation[2], turn.apply(head[0] - translation[0]), atol=1e-5)
    turned = Rotation.from_quat(quats[2, ~is_torso], scalar_first=True)
    assert np.allclose(turned.as_matrix(), (turn * Rotation.from_quat(quats[0, ~is_torso], scalar_first=True)).as_matrix(), atol=1e-5)


@pytest.mark.parametrize("shoulder", [(0.0, 0.0, 0.0), (0.2, -0.3, 0.1)])
def test_torso_numbers_mean_what_the_tracker_says(shoulder):
    """R(angle) (p - c) + c + W (dx, dy), at the depth of the reference head; see prepare/torso.py."""
    body = make_body()
    body.reference_rotation.copy_(numbers(*shoulder))
    is_torso = body.rigid_logits < 0
    # Put the torso on the plane of the reference head's depth.
    flat = random(int(is_torso.sum()), 3) * numbers(2, 1, 0)
    body.means[is_torso] = torch.from_numpy(Rotation.from_rotvec(shoulder).inv().apply(flat)).float()
    body.deformation.position.zero_()
    dx, dy, angle = 0.1, -0.05, 0.2
    means, quats, *_ = body.gaussians(torch.zeros(2, 56), torch.zeros(2, 3) + numbers(0, 0, 10), numbers([0, 0, 0], [dx, dy, angle]), None)
    assert torch.equal(means[0, ~is_torso], means[1, ~is_torso])
    K, centre = body.K.numpy(), np.array([SIZE / 2, SIZE / 2])
    before, after = ((means[k, is_torso].numpy() @ K.T / means[k, is_torso, 2:].numpy())[:, :2] for k in (0, 1))
    cos, sin = np.cos(angle), np.sin(angle)
    expected = (before - centre) @ np.array([[cos, -sin], [sin, cos]]).T + centre + SIZE * np.array([dx, dy])
    assert np.allclose(after, expected, atol=1e-3) and np.abs(after - before).max() > 3
    first, second = (Rotation.from_quat(quats[k, is_torso], scalar_first=True) for k in (0, 1))
    assert np.allclose(second.as_matrix(), (Rotation.from_rotvec([0, 0, angle]) * first).as_matrix(), atol=1e-5)


def test_a_torso_shift_shifts_the_picture():
    body = make_body()
    is_torso = body.rigid_logits < 0
    body.means[is_torso] *= numbers(0.5, 0.5, 0)
    body.opacity_logits[~is_torso] = -20
    pictures, _ = body(torch.zeros(2, 56), None, numbers([0, 0, 0], [8 / SIZE, 4 / SIZE, 0]))
    # The projection's affine approximation changes a little across the picture.
    assert (pictures[1, 4:, 8:] - pictures[0, :-4, :-8]).abs().mean() < 5e-3 < (pictures[1] - pictures[0]).abs().mean()


def test_motion_alone_places_head_torso_and_eyes():
    body = make_body()
    rotation, codes = random(400, 3) * 0.25 + numbers(0.4, -0.3, 0.2), random(400, 50, seed=2)
    neck, torso_map, std = numbers([0.2, 1.1, 11], [0.1, 1.6, 0.4]), random(4, 3, seed=1) * 0.2, random(6, seed=4).abs() * 0.1
    eye_slope, eye_offset = random(50, 4, seed=3) * 0.1, numbers(0.2, 0.1, 0, 0.3)
    motion, eyes = torch.cat([codes, rotation, torch.zeros(400, 3)], 1), codes @ eye_slope + eye_offset
    body.set_follow(Follow(neck, torso_map, std), motion, eyes)
    translation, torso, followed_eyes = body.follow(motion)
    posture = codes[:, 44:] * std
    assert torch.allclose(translation, neck[0] - matrix_from_axis_angle(rotation) @ neck[1] + posture[:, :3], atol=1e-5)
    assert torch.allclose(torso, rotation @ torso_map[:3] + torso_map[3] + posture[:, 3:], atol=1e-5)
    assert torch.allclose(followed_eyes, eyes, atol=0.05)
    untracked, tracked = body(motion[:2])[0], body(motion[:2], translation[:2], torso[:2], eyes[:2])[0]
    assert torch.allclose(untracked, tracked, atol=1e-5)


def test_a_checkpoint_gives_the_same_pictures(tmp_path):
    body = make_body()
    body.background.copy_(random(SIZE, SIZE, 3).sigmoid())
    body.save_pretrained(tmp_path / "body", {"steps": 3}, "Consent: given")
    again = Body.from_pretrained(tmp_path / "body")
    assert again.config == body.config and not any(p.requires_grad for p in again.parameters())
    # Bases are stored in half precision and the plate in 8 bits.
    assert (again(synthetic_motion(2))[0] - body(synthetic_motion(2))[0]).abs().max() < 0.5 / 255 + 1e-3
    card = (tmp_path / "body" / "README.md").read_text()
    assert "Consent: given" in card and "steps: 3" in card
    assert json.loads((tmp_path / "body" / "config.json").read_text())["type"] == "body.linear"


def test_a_brain_is_not_a_body(tmp_path):
    save_checkpoint(tmp_path, "brain.mlp", {"basis": "flame2020"}, {"x": torch.zeros(1)}, "card")
    with pytest.raises(UserError, match="brain.mlp checkpoint where a body is wanted"):
        Body.from_pretrained(tmp_path)


@pytest.mark.parametrize("damage", ["cut", "other shape", "unknown key"])
def test_a_damaged_checkpoint_is_named(tmp_path, damage):
    make_body().save_pretrained(tmp_path)
    weights, config = tmp_path / "model.safetensors", tmp_path / "config.json"
    if damage == "cut":
        weights.write_bytes(weights.read_bytes()[:-100])
    else:
        values = json.loads(config.read_text())
        write_json(config, values | ({"num_bases": 7} if damage == "other shape" else {"widht": 64}))
    message = {"cut": "model.safetensors is damaged", "other shape": "does not fit its config.json",
               "unknown key": "'widht'; the nearest known one is 'width'"}[damage]
    with pytest.raises(UserError, match=message):
        Body.from_pretrained(tmp_path)


# ------------------------------------------------------------------------------------------------- training


def write_clip(path, num_frames=100, num_train=75, valid=None, video=True):
    """A painted head with eyes and a mouth that opens, over a torso that sways, before a plain wall."""
    rng = np.random.default_rng(0)
    time = np.arange(num_frames) / 25
    rotation, translation = poses(num_frames, distance=11.0)
    torso = np.stack([0.04 * np.sin(2 * time), 0.02 * np.cos(3 * time), 0.05 * np.sin(1.5 * time)], 1).astype(np.float32)
    opening = 0.5 + 0.5 * np.sin(4 * time)
    face = template()
    change = np.zeros((num_frames, 478, 3))
    change[:, [14, 17, 87, 317, 178, 402], 1] = 0.25 * opening[:, None]
    change += 1e-3 * rng.normal(size=change.shape)
    follow = fit_follow(rotation, translation, torso)
    posture = find_posture(follow, rotation, translation, torso)
    basis = fit_basis([change], np.ones(478), [posture])
    landmarks = see(CAMERA, rotation, translation, face + change)
    motion = np.concatenate([basis.encode(change, posture), rotation, np.zeros((num_frames, 3))], 1).astype(np.float32)

    clip = Clip.create(path, num_frames)
    clip.set(basis=basis.id, test_frames=(num_train, num_frames), licences=["made up"])
    basis.save(path / "basis.safetensors")
    features = {"motion": motion, "translation": translation.astype(np.float32), "torso": torso, "landmarks": landmarks,
                "eyes": np.zeros((num_frames, 4), np.float32), "valid": np.ones(num_frames, bool) if valid is None else valid}
    for name, array in features.items():
        clip.write("listener", name, array, "test", {})
    wall = np.full((SIZE, SIZE, 3), (120, 150, 130), np.uint8)
    with clip.adding("listener", "background.png", "test", {}) as temporary:
        Image.fromarray(wall).save(temporary, format="PNG")
    with clip.adding("listener", "camera.json", "test", {}) as temporary:
        camera = {"width": SIZE, "height": SIZE, "focal": CAMERA.focal, "cx": CAMERA.cx, "cy": CAMERA.cy}
        write_json(temporary, camera | {"template": face.tolist(), "neck": follow.neck.tolist(), "torso_map": follow.torso_map.tolist()})
    if not video:
        return path
    with clip.adding("listener", "video.mp4", "test", {}) as temporary_video, \
            clip.adding("listener", "mask.npz", "test", {}) as temporary_mask:
        masks = MaskWriter(temporary_mask)
        with VideoWriter(temporary_video, SIZE, SIZE, crf=10) as writer:
            for points, sway, open_ in zip(landmarks, torso, opening):
                picture, labels = paint(wall, points[:, :2], sway, open_)
                writer.write_frame(picture)
                masks.write(labels)
        masks.close()
    return path


def paint(wall, points, sway, opening):
    """One picture [H, W, 3] uint8 and its labels."""
    rows, columns = np.mgrid[:SIZE, :SIZE] + 0.5
    picture, labels = wall.astype(float), np.zeros((SIZE, SIZE), np.uint8)

    def blob(x, y, across, down, color, label):
        nonlocal picture
        far = np.hypot((columns - x) / across, (rows - y) / down)
        cover = np.clip((1 - far) * min(across, down) + 0.5, 0, 1)[..., None]
        picture = picture * (1 - cover) + np.array(color) * cover
        labels[cover[..., 0] > 0.5] = label

    blob(32 + SIZE * sway[0], 66 + SIZE * sway[1], 26, 16, (40, 60, 140), MASK_LABELS["torso"])
    x, y = points[[10, 152]].mean(0)
    blob(x, y - 1, 17, 22, (70, 45, 30), MASK_LABELS["hair"])
    blob(x, y, 14, 18, (220, 170, 140), MASK_LABELS["head"])
    for eye in (points[[33, 133]].mean(0), points[[263, 362]].mean(0)):
        blob(*eye, 2.5, 1.8, (30, 30, 50), MASK_LABELS["head"])
    blob(*points[[13, 14]].mean(0), 4.5, 1.5 + 2 * opening, (130, 30, 40), MASK_LABELS["head"])
    return (picture + 0.5).astype(np.uint8), labels


def train(clip, out, **changes):
    settings = {"gaussians": 800, "steps": 60, "batch_size": 3, "save_every": 25, "device": "cpu", "consent": "nobody: painted"}
    return train_body(BodyTraining(clip, out, **settings | changes))


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return write_clip(tmp_path_factory.mktemp("clips") / "painted")


@pytest.fixture(scope="module")
def trained(clip, tmp_path_factory):
    """An unbroken run: its folder, summary and losses."""
    out = tmp_path_factory.mktemp("bodies") / "whole"
    losses, step = [], train_linear._Trainer.step

    def recorded(self, number):
        losses.append(float(loss := step(self, number)))
        return loss

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_linear._Trainer, "step", recorded)
        summary = train(clip, out)
    return out, summary, losses


def rows(out):
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def test_training_learns_the_person(trained):
    out, summary, losses = trained
    assert len(losses) == 60 and np.mean(losses[-10:]) < 0.6 * np.mean(losses[:3])
    assert summary["test_psnr"] > summary["mean_frame_psnr"] + 1
    assert rows(out)[-1]["test_psnr"] > rows(out)[0]["test_psnr"]


def test_what_no_frame_shows_keeps_the_colour_of_its_start(clip, tmp_path):
    """A Gaussian that cannot be seen is drawn back to the colour it had: d/dc w (c - c0)^2 / 3N = 2 w 0.3 / 3N."""
    config = resolve(BodyTraining(clip, tmp_path / "body", gaussians=800, batch_size=3, device="cpu"), SIZE)
    data, labels = load_body_data(Clip.open(clip), None, tmp_path / "pictures")
    body = train_linear.start_body(data, labels, Clip.open(clip).basis, config)
    trainer = train_linear._Trainer(body, data, config)
    with torch.no_grad():
        body.opacity_logits[5] = -40
        body.colors[5] += 0.3
    trainer.step(0)
    assert torch.allclose(body.colors.grad[5], torch.tensor(2 * train_linear.COLOR_WEIGHT * 0.3 / 2400), rtol=1e-3)


def test_training_leaves_a_body_with_its_scores(trained, clip):
    out, summary, _ = trained
    assert sorted(path.name for path in out.iterdir()) == [
        "README.md", "config.json", "metrics.jsonl", "model.safetensors", "run.json", "strip.png"]
    assert [row["step"] for row in rows(out)] == [25, 50, 60]
    assert rows(out)[-1]["test_frames"] == 25 and "mean_frame_psnr" in rows(out)[-1] and "mean_frame_psnr" not in rows(out)[0]
    assert np.asarray(Image.open(out / "strip.png")).shape == (4 * SIZE, 3 * SIZE, 3)
    config = json.loads((out / "config.json").read_text())
    assert config["training"] == summary and config["basis"] == Clip.open(clip).basis
    assert "nobody: painted" in (out / "README.md").read_text() and "made up" in (out / "README.md").read_text()


def test_the_saved_body_renders_the_held_out_frames(trained, clip, tmp_path):
    """The strip's and the score's claim, from files alone."""
    out, summary, _ = trained
    data, _ = load_body_data(Clip.open(clip), None, tmp_path)
    test = data.test
    pictures = Body.from_pretrained(out).render(*data.inputs(test, "cpu")).numpy()
    error = ((pictures.astype(float) - data.frames[test]) ** 2).mean((1, 2, 3)) / 255**2
    assert (-10 * np.log10(error)).mean() == pytest.approx(summary["test_psnr"], abs=0.01)


def test_an_interrupted_run_resumes_to_the_same_bits(trained, clip, tmp_path, monkeypatch):
    whole, broken, step = trained[0], tmp_path / "broken", train_linear._Trainer.step

    def interrupted(self, number):
        if number == 36:
            os.kill(os.getpid(), signal.SIGINT)
        return step(self, number)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(train_linear._Trainer, "step", interrupted)
        train(clip, broken)
    assert not (broken / "model.safetensors").exists()
    with pytest.raises(UserError, match="started with batch_size = 3, not 4"):
        train(clip, broken, resume=True, batch_size=4)
    with pytest.raises(UserError, match="started with motion = "):
        train(write_clip(tmp_path / "longer", num_frames=110), broken, resume=True)

    def killed(self, number):
        assert number >= 37
        if number == 57:
            raise SystemExit
        return step(self, number)

    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(train_linear._Trainer, "step", killed)
        train(clip, broken, resume=True)
    train(clip, broken, resume=True)
    one, other = load_file(whole / "model.safetensors"), load_file(broken / "model.safetensors")
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
    scores = [[{k: v for k, v in row.items() if k != "train_seconds"} for row in rows(out)] for out in (whole, broken)]
    assert scores[0] == scores[1]
    assert (broken / "run.json").read_bytes() == (whole / "run.json").read_bytes()
    assert not (broken / "training_state").exists()


def test_another_seed_gives_another_body(clip, tmp_path, trained):
    train(clip, tmp_path / "one", steps=2)
    train(clip, tmp_path / "two", steps=2, seed=1)
    means = [load_file(tmp_path / name / "model.safetensors")["means"] for name in ("one", "two")]
    assert not torch.equal(*means)


def test_a_body_is_replaced_only_when_asked(trained, clip, tmp_path):
    out = tmp_path / "body"
    train(clip, out, steps=2)
    before = (out / "model.safetensors").read_bytes()
    with pytest.raises(UserError, match="already holds a training run"):
        train(clip, out, steps=3)
    with pytest.raises(UserError, match="no training state to resume"):
        train(clip, out, steps=2, resume=True)
    assert (out / "model.safetensors").read_bytes() == before
    train(clip, out, steps=3, overwrite=True)
    assert (out / "model.safetensors").read_bytes() != before and [row["step"] for row in rows(out)] == [3]


def test_pictures_can_be_made_smaller(clip, tmp_path):
    data, labels = load_body_data(Clip.open(clip), 32, tmp_path)
    full, _ = load_body_data(Clip.open(clip), None, tmp_path)
    assert data.size == (32, 32) == labels.shape[1:] and full.size == (SIZE, SIZE)
    assert np.allclose(data.K[:2], full.K[:2] / 2) and data.background.shape == (32, 32, 3)
    mean = full.frames[7].reshape(32, 2, 32, 2, 3).mean((1, 3))
    assert np.abs(data.frames[7] - mean).max() <= 0.5
    assert not (np.array(data.outside) & (np.array(labels) != 0)).any() and np.array(data.outside).mean() > 0.1
    assert data.train.tolist() == list(range(75)) and data.test.tolist() == list(range(75, 100))


@pytest.mark.parametrize(("changes", "message"), [
    ({"video": False}, "has no listener/video.mp4"),
    ({"video": False, "valid": np.arange(100) < 40}, "has no listener/video.mp4"),
    ({"valid": np.arange(100) >= 20}, "has 55 tracked frames to learn from and 25 held out"),
    ({"valid": np.arange(100) < 75}, "has 75 tracked frames to learn from and 0 held out"),
])
def test_an_unfit_clip_is_refused_and_leaves_no_folder(tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        train(write_clip(tmp_path / "clip", **changes), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_mask_that_ends_early_is_named(tmp_path):
    path = write_clip(tmp_path / "clip")
    clip = Clip.open(path)
    with clip.adding("listener", "mask.npz", "test", {}) as temporary:
        masks = MaskWriter(temporary)
        for _ in range(60):
            masks.write(np.zeros((SIZE, SIZE)))
        masks.close()
    with pytest.raises(UserError, match="ends after 60 of 100 frames"):
        load_body_data(clip, None, tmp_path / "cache")
    assert not list((tmp_path / "cache").iterdir())


@pytest.mark.parametrize("changes", [{"steps": 0}, {"gaussians": 3}, {"batch_size": 0}, {"save_every": 0}, {"resolution": 8}, {"seed": -1}])
def test_settings_out_of_range_are_named(clip, tmp_path, changes):
    (name, value), = changes.items()
    with pytest.raises(UserError, match=f"--{name.replace('_', '-')} is {value}"):
        train(clip, tmp_path / "out", **changes)
    assert not (tmp_path / "out").exists()


def test_seeds_stand_where_the_face_is_at_its_mean_motion(clip, tmp_path):
    """A body's offsets are zero at the mean motion, also where the basis has another mean than the clip."""
    path = write_clip(tmp_path / "clip")
    shifted = Clip.open(path)
    motion = np.array(shifted.read("listener", "motion"))
    motion[:, 0] += 3
    shifted.write("listener", "motion", motion, "test", {})
    config = training.resolve(BodyTraining(path, tmp_path / "out", gaussians=800, device="cpu"), SIZE)
    bodies, faces = [], []
    for source in (Clip.open(clip), Clip.open(path)):
        data, labels = load_body_data(source, None, tmp_path / source.path.name)
        bodies.append(train_linear.start_body(data, labels, source.basis, config))
        faces.append(data)
    code = np.zeros((2, 50), np.float32)
    code[1, 0] = 3
    moved = np.diff(faces[0].basis.decode(code), axis=0)[0]
    is_face = bodies[0].group == GROUPS["face"]
    change = (bodies[1].means - bodies[0].means)[is_face].detach().norm(dim=1).max()
    assert change > 0.5 * np.linalg.norm(moved, axis=1).max() > 0.1


# ---------------------------------------------------------------------------------------------------- bench


def test_bench_returns_figures(capsys):
    figures = bench(Bench(frames=4, size=64, gaussians=500, device="cpu"))
    assert figures["size"] == "64x64" and figures["gaussians"] == 500 and figures["device"].startswith("cpu")
    assert all(figures[name] > 0 for name in ("body_fps", "encoder_fps", "end_to_end_fps", "times_real_time"))
    assert figures["times_real_time"] == pytest.approx(figures["end_to_end_fps"] / 25, abs=0.01)
    assert "brain_fps" not in figures and "end_to_end_fps" in capsys.readouterr().out
    with pytest.raises(UserError, match="--frames is 0"):
        bench(Bench(frames=0, device="cpu"))
