"""Baselines: means, nearest motions, and a warp that puts landmarks where the motion asks and leaves the border alone."""

import numpy as np
import pytest
import torch
from synthetic_face import poses, see, template

from difflistener.basis import fit_basis
from difflistener.body import baselines
from difflistener.body.baselines import (
    CONTROLS,
    LandmarkWarp,
    fold_mask,
    mean_frame,
    nearest_frames,
    neutral_frame,
    project_landmarks,
)
from difflistener.body.data import BodyData
from difflistener.body.model import Follow
from difflistener.motion import ROTATION
from difflistener.prepare.bundle import Camera

HEIGHT, WIDTH, FRAMES = 64, 80, 70
CAMERA = Camera(190.0, 40.0, 30.0)


@pytest.fixture(scope="module")
def data():
    """A face that turns and opens its mouth, with pictures of smooth colour."""
    rng = np.random.default_rng(0)
    rotation, translation = poses(FRAMES)
    change = np.zeros((FRAMES, 478, 3))
    change[:, [14, 17, 87, 317, 178, 402], 1] = 0.2 * rng.random((FRAMES, 1))
    change += 1e-3 * rng.normal(size=change.shape)
    basis = fit_basis([change], np.ones(478), [np.zeros((1, 6))])
    motion = np.concatenate([basis.encode(change), rotation, np.zeros((FRAMES, 3))], 1).astype(np.float32)
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    waves = [128 + 100 * np.sin(rows / 9 + k / 5) * np.cos(columns / 11) for k in range(FRAMES)]
    frames = np.stack([np.stack([wave, columns * 3.0, rows * 3.0], -1) for wave in waves]).astype(np.uint8)
    K = np.array([[CAMERA.focal, 0, CAMERA.cx], [0, CAMERA.focal, CAMERA.cy], [0, 0, 1]])
    zeros = torch.zeros(FRAMES, 4)
    return BodyData(
        frames=frames, outside=np.zeros((FRAMES, HEIGHT, WIDTH), bool), motion=torch.from_numpy(motion),
        translation=torch.from_numpy(translation).float(), torso=zeros[:, :3], eyes=zeros,
        landmarks=see(CAMERA, rotation, translation, template() + change), valid=np.ones(FRAMES, bool),
        train=np.arange(60), test=np.arange(60, FRAMES), background=torch.zeros(HEIGHT, WIDTH, 3), K=K, template=template(),
        basis=basis, follow=Follow(torch.zeros(2, 3), torch.zeros(4, 3), torch.zeros(6)))


def test_the_mean_frame_is_the_mean_of_the_training_frames(data):
    mean = mean_frame(data, data.train)
    assert mean.dtype == np.uint8 and np.abs(mean - data.frames[:60].mean(0)).max() <= 0.51


def test_a_known_motion_is_nearest_to_itself(data):
    index = np.array([5, 17, 59])
    assert np.array_equal(nearest_frames(data.motion[index], data, data.train), index)
    assert np.isin(nearest_frames(data.motion[index], data, np.arange(20, 40)), np.arange(20, 40)).all()


def test_a_head_pose_matters_more_than_a_code(data):
    spread = data.motion[data.train].std(0)
    motion = data.motion[[10]].repeat(2, 1)
    motion[0, ROTATION.start] += spread[ROTATION.start]
    motion[1, 0] += spread[0]
    far = baselines.motion_distance(motion, data.motion[[10]], spread)
    assert far[0, 0] == pytest.approx(baselines.ROTATION_WEIGHT, rel=1e-3) and far[1, 0] == pytest.approx(1, rel=1e-3)


def test_the_neutral_frame_is_a_training_frame_near_the_median(data):
    train = np.arange(10, 50)
    index = neutral_frame(data, train)
    away = (data.motion[train] - data.motion[train].median(0).values)[:, ROTATION].abs().sum(1)
    assert index in train and away[index - 10] <= away.median()


def test_landmarks_fall_where_the_tracker_saw_them(data):
    projected = project_landmarks(data, data.motion, data.translation)
    assert np.abs(projected - data.landmarks[..., :2]).mean() < 0.1


def test_the_neutral_motion_gives_the_neutral_frame_back(data):
    warp = LandmarkWarp(data, data.train)
    index = [warp.index]
    assert np.array_equal(warp.render(data.motion[index], data.translation[index])[0], data.frames[warp.index])


def test_the_warp_puts_landmarks_where_motion_asks_and_pins_the_border(data, monkeypatch):
    monkeypatch.setattr(baselines, "SMOOTHING", 0.0)
    monkeypatch.setattr(baselines, "GRID_STEP", 1)
    warp = LandmarkWarp(data, data.train)
    index = [int((data.motion[:, ROTATION] - data.motion[warp.index, ROTATION]).norm(dim=1).argmax())]
    asked = project_landmarks(data, data.motion[index], data.translation[index])[0, CONTROLS]
    source = project_landmarks(data, data.motion[[warp.index]], data.translation[[warp.index]])[0, CONTROLS]
    assert np.linalg.norm(asked - source, axis=1).mean() > 2
    (places,) = warp.maps(data.motion[index], data.translation[index])
    column, row = np.floor(asked).astype(int).T
    assert np.median(np.linalg.norm(places[row, column] - source, axis=1)) < 1.0
    pixels = np.stack(np.meshgrid(np.arange(WIDTH) + 0.5, np.arange(HEIGHT) + 0.5), -1)
    for edge in ((0,), (-1,), (slice(None), 0), (slice(None), -1)):
        assert np.abs(places - pixels)[edge].max() < 1.5
    picture = warp.render(data.motion[index], data.translation[index])[0].astype(float)
    # Channels 1 and 2 are ramps: they tell where each pixel came from.
    inside = (places > 1).all(-1) & (places < (WIDTH - 1, HEIGHT - 1)).all(-1)
    assert np.abs(picture[..., 1] / 3 + 0.5 - places[..., 0])[inside].max() < 0.3
    assert np.abs(picture[..., 2] / 3 + 0.5 - places[..., 1])[inside].max() < 0.3


def test_the_coarse_spline_is_near_the_fine_one(data, monkeypatch):
    index = [0, 25]
    coarse = np.stack(list(LandmarkWarp(data, data.train).maps(data.motion[index], data.translation[index])))
    monkeypatch.setattr(baselines, "GRID_STEP", 1)
    fine = np.stack(list(LandmarkWarp(data, data.train).maps(data.motion[index], data.translation[index])))
    assert np.median(np.abs(coarse - fine)) < 0.02


def test_folds_are_where_the_map_runs_backwards():
    rows, columns = np.mgrid[:40, :60].astype(float)
    assert not fold_mask(np.stack([columns, rows], -1)).any()
    back = np.where(columns < 30, columns, np.where(columns < 40, 60 - columns, columns - 20))
    folds = fold_mask(np.stack([back, rows], -1))
    assert folds[:, 31:39].all() and not folds[:, :29].any() and not folds[:, 42:].any()
