"""Re-tracking: what landmark distance and jitter count, and that a video without a face is a finding, not an error."""

import numpy as np
import pytest
from synthetic_face import template

from difflistener.metrics.retrack import compare, jitter_power, landmark_distance, retrack
from difflistener.motion import FPS
from difflistener.prepare.face_points import LIPS


def still(num_frames=100):
    return np.tile(100 + 20 * template()[:, :2], (num_frames, 1, 1)).astype(np.float32)


def wave(hertz, amplitude, num_frames=128):
    """A face that shakes from side to side."""
    points = still(num_frames)
    points[..., 0] += amplitude * np.sin(2 * np.pi * hertz * np.arange(num_frames) / FPS + 0.3)[:, None]
    return points


def all_of(points):
    return np.ones(len(points), bool)


def test_a_shifted_face_has_its_mouth_in_place():
    truth = still(5)
    moved = truth + np.float32([3, 4])
    assert landmark_distance(moved, truth, all_of(truth)) == pytest.approx({"lmd_mouth": 0, "lmd_face": 5}, abs=1e-4)
    wide = truth.copy()
    wide[:, LIPS[::2], 0] += 1
    wide[:, LIPS[1::2], 0] -= 1
    assert len(LIPS) == 40
    assert landmark_distance(wide, truth, all_of(truth))["lmd_mouth"] == pytest.approx(1, abs=1e-4)
    assert landmark_distance(wide, truth, all_of(truth))["lmd_face"] == pytest.approx(40 / 478, abs=1e-4)


def test_only_frames_with_a_face_count():
    truth, moved, valid = still(5), still(5), np.array([True, True, False, True, False])
    moved[~valid] = 0
    assert landmark_distance(moved, truth, valid) == {"lmd_mouth": 0, "lmd_face": 0}
    assert np.isnan(list(landmark_distance(moved, truth, np.zeros(5, bool)).values())).all()


@pytest.mark.parametrize("hertz, share", [(1, 0), (4, 0), (8, 1), (11, 1)])
def test_jitter_is_the_power_above_six_hertz(hertz, share):
    points = wave(hertz, 0.5)
    points[..., 1] += np.linspace(0, 40, len(points))[:, None]  # A drift is no jitter.
    assert jitter_power(points, all_of(points)) == pytest.approx(share * 0.5**2 / 2, rel=0.05, abs=2e-3)


def test_jitter_of_noise_is_its_share_of_the_band():
    noise = np.random.default_rng(0).normal(0, 0.2, (400, 478, 2))
    points = still(400) + noise
    assert jitter_power(points, all_of(points)) == pytest.approx(2 * 0.04 * (12.5 - 6) / 12.5, rel=0.05)


def test_a_gap_adds_no_jitter_and_few_frames_give_none():
    points = wave(1, 0.5)
    valid = all_of(points)
    valid[40:44] = False
    points[~valid] = 0
    assert jitter_power(points, valid) < 2e-3
    assert np.isnan(jitter_power(points[:15], valid[:15])) and np.isnan(jitter_power(points, np.zeros(len(points), bool)))


def test_figures_stand_beside_the_films():
    truth, render = wave(8, 0.5), wave(8, 1.0)
    found, film = all_of(truth), all_of(truth)
    found[[3, 60]], film[[60, 90]] = False, False
    render[~found], truth[~film] = 0, 0
    figures = compare(render, found, truth, film)
    assert figures["jitter"] == pytest.approx(4, rel=0.02) and figures["lost"] == 1
    assert figures["lmd_mouth"] < 1e-4 and 0.1 < figures["lmd_face"] < 0.5
    assert compare(truth, film, truth, film)["jitter"] == pytest.approx(1)
    none = compare(render, np.zeros(len(found), bool), truth, film)
    assert none["lost"] == 126 and np.isnan([none[name] for name in ("lmd_mouth", "lmd_face", "jitter")]).all()


def test_a_video_without_a_face_is_a_finding():
    pytest.importorskip("mediapipe")
    points, found = retrack(np.zeros((3, 64, 64, 3), np.uint8))
    assert points.shape == (3, 478, 2) and not found.any() and not points.any()
    assert retrack([])[1].shape == (0,)
