"""The FLAME layer against a plain one, the fit to landmarks, `prepare --tracker flame`, and the map between bases."""

import json
import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation
from synthetic_flame import arrays, embedding, landmark_model, published, scene

from difflistener import cli
from difflistener.assets import EMBEDDING, AddAsset, add_asset, load_asset
from difflistener.basis_map import RIDGE, BasisMap, fit_map
from difflistener.clip import Clip
from difflistener.errors import UserError
from difflistener.flame import Flame, FlameLandmarks, rodrigues
from difflistener.motion import Motion
from difflistener.prepare.bundle import rotation_matrices
from difflistener.prepare.flame_fit import FLIP, fit_flame

pytestmark = pytest.mark.usefixtures("one_thread")


def plain_flame(model: dict, shape, expression, pose) -> tuple[np.ndarray, np.ndarray]:
    """One head, vertex by vertex, in numpy: Li et al. 2017, equations 1 to 5, with 4x4 matrices."""
    rest = model["v_template"].astype(float).copy()
    for k, value in enumerate(shape):
        rest += value * model["shapedirs"][:, :, k]
    for k, value in enumerate(expression):
        rest += value * model["shapedirs"][:, :, 300 + k]
    joints = model["J_regressor"].astype(float) @ rest
    turns = [Rotation.from_rotvec(r).as_matrix() for r in pose]
    k = 0
    for turn in turns[1:]:
        for row in range(3):
            for column in range(3):
                rest = rest + (turn[row, column] - float(row == column)) * model["posedirs"][:, :, k]
                k += 1
    world = []
    for joint, parent in enumerate(model["parents"]):
        local = np.eye(4)
        local[:3, :3], local[:3, 3] = turns[joint], joints[joint] - (joints[parent] if parent >= 0 else 0)
        world.append(world[parent] @ local if parent >= 0 else local)
    vertices = np.empty_like(rest)
    for v, point in enumerate(rest):
        vertices[v] = sum(weight * (matrix @ np.append(point - joint, 1))[:3]
                          for weight, matrix, joint in zip(model["weights"][v], world, joints))
    return vertices, np.array([matrix[:3, 3] for matrix in world])


def inputs(batch: int, size: float = 0.5, num_shape: int = 20, num_expression: int = 15):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(batch, *shape, generator=generator, dtype=torch.float64) * size
            for shape in ((num_shape,), (num_expression,), (5, 3))]


def test_the_layer_equals_the_plain_one():
    model = arrays()
    shape, expression, pose = inputs(3)
    vertices, joints = Flame(model).double()(shape, expression, pose)
    for b in range(3):
        expected, places = plain_flame(model, shape[b].numpy(), expression[b].numpy(), pose[b].numpy())
        np.testing.assert_allclose(vertices[b], expected, atol=1e-7)
        np.testing.assert_allclose(joints[b], places, atol=1e-7)


def test_landmarks_of_the_part_are_those_of_the_whole():
    flame, stored = Flame(arrays()), embedding()
    model = landmark_model()
    values = [part.float() for part in inputs(4)]
    vertices, joints = flame(*values)
    landmarks, same = model(*values)
    triangles = flame.faces[torch.as_tensor(stored["lmk_face_idx"].astype(int))]
    expected = (vertices[:, triangles] * torch.as_tensor(stored["lmk_b_coords"][..., None], dtype=torch.float32)).sum(2)
    torch.testing.assert_close(landmarks, expected, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(joints, same)
    with pytest.raises(UserError, match="triangles that this FLAME model lacks"):
        FlameLandmarks(flame, {"face_index": np.array([380]), "barycentric": np.ones((1, 3)) / 3, "indices": np.array([0])})


def test_the_layer_at_rest_is_the_template_and_too_many_coefficients_are_refused():
    flame = Flame(arrays())
    zero = torch.zeros(2, 5, 3)
    vertices = flame(torch.zeros(1, 300), torch.zeros(2, 100), zero)[0]
    torch.testing.assert_close(vertices, flame.template.expand(2, -1, -1), atol=1e-7, rtol=0)
    with pytest.raises(ValueError, match="100 expression"):
        flame(torch.zeros(1, 5), torch.zeros(2, 101), zero)


def test_gradients_of_the_layer():
    model = landmark_model().double()
    values = [part.requires_grad_() for part in inputs(1, 0.3, 3, 3)]
    assert torch.autograd.gradcheck(lambda *v: model(*v)[0][:, ::20], values)
    still = [torch.zeros_like(part).requires_grad_() for part in values]
    assert torch.autograd.gradcheck(lambda *v: model(*v)[0][:, ::20], still)


@pytest.mark.parametrize("size", [0.0, 1e-9, 1e-5, 9e-5, 2e-4, 1.0, np.pi, 4.0])
def test_rodrigues_is_exact_at_every_angle(size):
    axis = np.random.default_rng(0).normal(size=(6, 3))
    vectors = torch.tensor(size * axis / np.linalg.norm(axis, axis=1, keepdims=True), requires_grad=True)
    for kind, tolerance in ((torch.float64, 1e-12), (torch.float32, 2e-6)):
        expected = Rotation.from_rotvec(vectors.detach()).as_matrix()
        np.testing.assert_allclose(rodrigues(vectors.to(kind)).detach(), expected, atol=tolerance)
    (slope,) = torch.autograd.grad(rodrigues(vectors)[:, 2, 1].sum(), vectors)
    assert torch.isfinite(slope).all()
    if size < 1e-8:
        np.testing.assert_allclose(slope, np.tile([1.0, 0, 0], (6, 1)), atol=1e-8)


def degrees(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.degrees((Rotation.from_rotvec(a) * Rotation.from_rotvec(b).inv()).magnitude())


@pytest.fixture(scope="module")
def fitted(one_thread):
    """120 frames without noise, of which a few are invalid and hold nonsense."""
    true = scene(120)
    true.valid[40:46] = False
    true.valid[118:] = False
    true.landmarks[~true.valid] = 1e4
    return true, fit_flame(true.model, true.landmarks, true.valid, true.track, true.gaze)


def test_the_fit_gets_the_landmarks_back(fitted):
    true, found = fitted
    assert np.nanmax(found.reprojection_px) < 0.5
    assert np.isnan(found.reprojection_px[~true.valid]).all() and np.isfinite(found.expression).all()
    assert found.expression.shape == (120, 50) and found.shape.shape == (100,)


def test_the_fit_gets_head_and_jaw_back(fitted):
    """How a head turns is seen to a degree; how its neutral face stands, only to a few: there a shape can pass for a turn."""
    true, found = fitted
    good = true.valid
    assert degrees(found.rotation, true.rotation)[good].max() < 4
    constant = (Rotation.from_rotvec(true.rotation[good]).inv() * Rotation.from_rotvec(found.rotation[good])).mean()
    turned = (Rotation.from_rotvec(true.rotation) * constant).as_rotvec()
    assert degrees(found.rotation, turned)[good].mean() < 1
    assert degrees(found.jaw, true.jaw)[good].mean() < 3
    assert np.corrcoef(found.jaw[good, 0], true.jaw[good, 0])[0, 1] > 0.95


def test_what_is_stored_places_the_head(fitted):
    """Rotation, translation, origin, scale and shape say where landmarks are, and the template goes with the same pose."""
    true, found = fitted
    eyes = np.column_stack([true.gaze[:, 1], -true.gaze[:, 0], 0 * true.gaze[:, 0]])
    pose = np.stack([-found.neck, found.neck, found.jaw, eyes, eyes], 1)
    values = [torch.as_tensor(part, dtype=torch.float32) for part in (found.shape[None], found.expression, pose)]
    points, joints = true.model(*values)
    rest = true.model.part.rest(*values[:2])[1]
    head = (points - (joints - rest)[:, 1, None]).numpy() * FLIP * found.scale
    camera = true.track.camera
    matrices = rotation_matrices(found.rotation).transpose(0, 2, 1)
    placed = (head - found.origin) @ matrices + found.translation[:, None]
    error = np.linalg.norm(camera.project(placed) - true.landmarks[:, true.model.indices, :2], axis=-1).mean(1)
    np.testing.assert_allclose(error[true.valid], found.reprojection_px[true.valid], atol=0.02)
    tracked = true.track.project(true.track.template)[true.valid][:, true.model.indices]
    again = camera.project(found.template @ matrices + found.translation[:, None])[true.valid][:, true.model.indices]
    assert np.linalg.norm(again - tracked, axis=-1).mean() < 3


def test_outliers_do_not_move_the_fit():
    true = scene(40, noise_px=0.3)
    true.landmarks[::3, true.model.indices[:6], :2] += 60
    found = fit_flame(true.model, true.landmarks, true.valid, true.track, true.gaze)
    untouched = np.arange(40) % 3 > 0
    assert found.reprojection_px[untouched].mean() < 0.6
    assert np.abs(found.expression[~untouched]).max() < 5


@pytest.fixture
def added(tmp_path, monkeypatch):
    monkeypatch.setenv("DIFFLISTENER_DATA", str(tmp_path / "data"))
    (tmp_path / "model.pkl").write_bytes(pickle.dumps(published(), 2))
    np.savez(tmp_path / "embedding.npz", **embedding())
    add_asset(AddAsset(tmp_path / "model.pkl", "flame2023"))
    add_asset(AddAsset(tmp_path / "embedding.npz"))


def track_clip(path, true) -> Clip:
    """A clip that was tracked: landmarks and validity of both roles, no pictures."""
    clip = Clip.create(path, len(true.valid))
    clip.set(test_frames=[50, 60])
    for role in ("speaker", "listener"):
        clip.write(role, "landmarks", true.landmarks, "test", {})
        clip.write(role, "valid", true.valid, "test", {})
        with clip.adding(role, "video.mp4", "test", {}) as temporary:
            temporary.touch()
    return clip


def test_the_stage_writes_flame_motion(added, tmp_path, monkeypatch):
    from types import SimpleNamespace

    from difflistener.prepare import pipeline

    true = scene(60)
    true.valid[20:24] = False
    clip = track_clip(tmp_path / "clip", true)
    (clip.path / "basis.safetensors").touch()
    fits = []
    monkeypatch.setattr(pipeline, "_fit_pose", lambda clip, role: fits.append(role) or true.track)
    monkeypatch.setattr("difflistener.prepare.face_points.gaze", lambda points, valid: true.gaze.astype(np.float32))
    monkeypatch.setattr(pipeline, "probe", lambda path: SimpleNamespace(width=512, height=512))
    pipeline._flame_stage(clip, "flame2023")
    clip = Clip.open(clip.path)
    motion = clip.motion()
    assert clip.basis == motion.basis == "flame2023" and not (clip.path / "basis.safetensors").exists()
    assert "flame2023 codes" in clip.meta["licences"][0]
    np.testing.assert_array_equal(motion.valid, true.valid)
    assert degrees(motion.rotation, true.rotation)[true.valid].max() < 4 and np.abs(motion.jaw[:, 0]).max() > 0.2
    assert degrees(motion.jaw * FLIP, true.jaw)[true.valid].mean() < 3, "in the axes of the rotation"
    camera = clip.read_json("listener", "camera.json")
    assert camera["reprojection_px"] < 0.5 and len(camera["flame"]["shape"]) == 100
    np.testing.assert_array_equal(clip.read("speaker", "expression"), motion.expression)
    assert clip.read("speaker", "jaw").shape == clip.read("listener", "neck").shape == (60, 3)
    pipeline._flame_stage(clip, "flame2023")
    assert fits == ["speaker", "listener"]


def test_a_model_that_does_not_fit_is_said(added, tmp_path, monkeypatch):
    from types import SimpleNamespace

    from difflistener.prepare import pipeline

    true = scene(20)
    true.landmarks[:, true.model.indices] = true.landmarks[:, true.model.indices[::-1]]
    monkeypatch.setattr(pipeline, "_fit_pose", lambda clip, role: true.track)
    monkeypatch.setattr(pipeline, "probe", lambda path: SimpleNamespace(width=512, height=512))
    clip = track_clip(tmp_path / "clip", true)
    clip.set(test_frames=[18, 20])
    with pytest.warns(UserWarning, match="listener: flame2023 fits the landmarks badly"):
        pipeline._flame_stage(clip, "flame2023")


def test_prepare_says_what_is_missing_before_it_tracks(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("DIFFLISTENER_DATA", str(tmp_path / "data"))
    np.savez(tmp_path / "track.npz", exp=np.zeros((60, 50), "f4"), pose=np.zeros((60, 6), "f4"))
    prepare = ["prepare", "--listener-motion", str(tmp_path / "track.npz"), "--out", str(tmp_path / "clip"), "--tracker"]
    for tracker in ("flame", "flame2020"):
        assert cli.main([*prepare, tracker]) == 1
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 2 and "difflistener assets add" in lines[1]
    assert not (tmp_path / "clip").exists()


def test_prepare_refuses_settings_that_flame_would_ignore(added, tmp_path, capsys):
    np.savez(tmp_path / "track.npz", exp=np.zeros((60, 50), "f4"), pose=np.zeros((60, 6), "f4"))
    motion, out = str(tmp_path / "track.npz"), str(tmp_path / "clip")
    assert cli.main(["prepare", "--listener-motion", motion, "--out", out, "--tracker", "flame"]) == 1
    assert "does not go with" in capsys.readouterr().err
    assert load_asset(EMBEDDING)["indices"].shape == (105,) and not (tmp_path / "clip").exists()


# ------------------------------------------------------------------------------------------------ map between bases


def both(num_frames: int = 600, noise: float = 0.1, seed: int = 0) -> tuple[Motion, Motion, np.ndarray]:
    """Landmark and FLAME motion of the same frames, tied by a known map [44, 53]."""
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(num_frames, 56)).astype(np.float32)
    values[:, 50:53] *= 0.2
    values[:, 53:] = 0
    tie = rng.normal(size=(44, 53)) * np.concatenate([np.full(50, 0.15), np.full(3, 0.01)])
    other = values.copy()
    face = values[:, :44] @ tie + 0.3
    face[:, :50] += noise * rng.normal(size=(num_frames, 50))
    other[:, :50], other[:, 53:] = face[:, :50], face[:, 50:]
    turn = Rotation.from_rotvec([0.15, 0.01, 0])
    other[:, 50:53] = (Rotation.from_rotvec(values[:, 50:53]) * turn).as_rotvec()
    valid = np.ones(num_frames, bool)
    return Motion(values, "landmark:abc", valid), Motion(other, "flame2023", valid), tie


def test_the_map_is_found_and_its_error_measured():
    landmark, flame, tie = both()
    held_out = np.arange(600) >= 500
    made = fit_map(landmark, flame, held_out)
    assert np.abs(made.weight - tie).max() < 0.05
    assert made.error[:50].mean() == pytest.approx(0.1, rel=0.15) and made.error[50:].max() < 0.002
    assert 0.95 < made.explained < 0.999
    mapped = made.apply(landmark)
    assert mapped.basis == "flame2023" and mapped.values.dtype == np.float32
    assert np.sqrt(((mapped.expression - flame.expression)[held_out] ** 2).mean()) == pytest.approx(0.1, rel=0.2)
    assert degrees(mapped.rotation, flame.rotation).max() < 0.1
    with pytest.raises(UserError, match="leads from landmark:abc to flame2023"):
        made.apply(flame)


def test_ridge_regression_equals_the_textbook():
    landmark, flame, _ = both(200)
    valid = np.arange(200) % 5 > 0
    made = fit_map(replace(landmark, valid=valid), flame, np.arange(200) >= 150)
    rows = np.flatnonzero(valid[:150])
    codes = np.column_stack([landmark.values[rows, :44], np.ones(len(rows))]).astype(float)
    penalty = RIDGE * len(rows) * np.diag([1.0] * 44 + [0])
    expected = np.linalg.solve(codes.T @ codes + penalty, codes.T @ np.concatenate([flame.expression, flame.jaw], 1)[rows])
    np.testing.assert_allclose(np.vstack([made.weight, made.bias]), expected, atol=1e-5)


def test_a_map_needs_frames_and_survives_a_file(tmp_path):
    landmark, flame, _ = both(100)
    with pytest.raises(UserError, match="learned on 40 frames"):
        fit_map(landmark, flame, np.arange(100) >= 40)
    made = fit_map(landmark, flame, np.arange(100) >= 90)
    made.save(tmp_path / "map.safetensors")
    again = BasisMap.load(tmp_path / "map.safetensors")
    assert (again.source, again.target, again.explained) == (made.source, made.target, made.explained)
    np.testing.assert_array_equal(again.apply(landmark).values, made.apply(landmark).values)
    for content in (b"", b"damaged" * 9):
        (tmp_path / "bad").write_bytes(content)
        with pytest.raises(UserError, match="not a basis map"):
            BasisMap.load(tmp_path / "bad")


def store(path, motion: Motion) -> str:
    clip = Clip.create(path, len(motion))
    clip.set(basis=motion.basis, test_frames=[len(motion) - 30, len(motion)])
    clip.write("listener", "motion", motion.values, "test", {})
    clip.write("listener", "valid", motion.valid, "test", {})
    return str(path)


def test_the_verb_maps_two_clips(tmp_path, capsys):
    landmark, flame, _ = both(200)
    clips = [store(tmp_path / "a", landmark), store(tmp_path / "b", flame)]
    out = ["--out", str(tmp_path / "map")]
    assert cli.main(["map", "bases", *clips, *out]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["from"] == "landmark:abc" and summary["held_out_explained"] > 0.9
    swapped = [*clips[::-1], *out, "--overwrite"]
    for arguments, message in (([*clips, *out], "exists"), (swapped, "in basis flame2023 and landmark:abc")):
        assert cli.main(["map", "bases", *arguments]) == 1
        assert message in capsys.readouterr().err
    short = store(tmp_path / "c", Motion(flame.values[:150], flame.basis, flame.valid[:150]))
    assert cli.main(["map", "bases", clips[0], short, *out, "--overwrite"]) == 1
    assert "200 frames" in capsys.readouterr().err
