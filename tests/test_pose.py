import dataclasses

import numpy as np
import pytest
from scipy.spatial.transform import Rotation
from synthetic_face import pictures, poses, see, template

from difflistener.basis import fit_basis
from difflistener.errors import UserError
from difflistener.prepare import face_points as fp
from difflistener.prepare.bundle import (Camera, Observations, Smoothness, adjust, left_jacobians, rotation_matrices,
                                         skew)
from difflistener.prepare.expression import encode, landmark_weights, reprojection_error
from difflistener.prepare.flow import refine_with_flow
from difflistener.prepare.pose import VIEWING_DISTANCE, displacements, find_cuts, fit_head, fit_poses, start_poses

CAMERA = Camera(1100.0, 256.0, 256.0)

STILL = np.zeros((1, 6))


def degrees_between(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.degrees((Rotation.from_rotvec(a) * Rotation.from_rotvec(b).inv()).magnitude())


def clip(num_frames: int, noise_px: float = 0.5, seed: int = 0):
    face = template(seed)
    rotation, translation = poses(num_frames, seed)
    return face, rotation, translation, see(CAMERA, rotation, translation, face, noise_px)


@pytest.mark.parametrize("num_frames", [60, 1000])
def test_fit_head_recovers_poses_and_template(num_frames):
    face, rotation, translation, landmarks = clip(num_frames)
    track = fit_head(landmarks, np.ones(num_frames, bool), 512, 512, focal=1100.0)
    assert degrees_between(track.rotation, rotation).mean() < 0.3
    assert np.abs(track.translation - translation)[:, :2].mean() < 0.02
    assert np.abs(track.translation[:, 2] / translation[:, 2] - 1).mean() < 0.01
    assert np.linalg.norm(track.template - face, axis=1).mean() < 0.03
    assert np.linalg.norm(np.subtract(*track.template[fp.OUTER_EYE_CORNERS])) == pytest.approx(1)
    assert np.linalg.norm(track.project(track.template) - landmarks[..., :2], axis=-1).mean() < 1.0


def test_default_focal_puts_the_head_at_viewing_distance():
    _, _, _, landmarks = clip(80)
    track = fit_head(landmarks, np.ones(80, bool), 512, 512)
    assert np.median(track.translation[:, 2]) == pytest.approx(VIEWING_DISTANCE, rel=0.08)
    assert fit_head(landmarks, np.ones(80, bool), 512, 512, focal=900.0).focal == 900.0


def test_signs_nod_turn_and_tilt():
    """Positive x nods the nose down, positive y turns it to the left of the picture, positive z lowers the right eye of the picture."""
    face = template()
    still = np.zeros((50, 3))
    for axis in range(3):
        rotation = still.copy()
        rotation[25:, axis] = 0.3
        place = np.tile([0.0, 0.0, 11.0], (50, 1))
        landmarks = see(CAMERA, rotation, place, face, 0.2)
        moved = landmarks[-1] - landmarks[0]
        nose = moved[1] - moved[fp.EARS].mean(0)
        assert (nose[1] > 0, nose[0] < 0, moved[263, 1] > moved[33, 1])[axis]
        cuts = np.arange(50) == 25
        track = fit_head(landmarks, np.ones(50, bool), 512, 512, focal=1100.0, cuts=cuts)
        assert track.rotation[40:, axis].mean() - track.rotation[:10, axis].mean() == pytest.approx(0.3, abs=0.02)


def test_gaps_are_ignored_and_interpolated():
    _, rotation, _, landmarks = clip(120)
    valid = np.ones(120, bool)
    valid[[0, 1, 50, 51, 52, 119]] = False
    landmarks[~valid] = 0
    track = fit_head(landmarks, valid, 512, 512, focal=1100.0)
    error = degrees_between(track.rotation, rotation)
    assert error[valid].mean() < 0.3 and error[50:53].max() < 1.5
    assert np.isfinite(track.rotation).all() and np.isfinite(track.translation).all()


def test_cuts_are_found_and_not_smoothed_over():
    face, rotation, translation, _ = clip(150)
    rotation[75:, 1] += 0.3
    translation[75:, 0] += 0.6
    landmarks = see(CAMERA, rotation, translation, face, 0.3)
    assert np.flatnonzero(find_cuts(landmarks, np.ones(150, bool))).tolist() == [75]
    track = fit_head(landmarks, np.ones(150, bool), 512, 512, focal=1100.0)
    assert degrees_between(track.rotation, rotation)[73:77].max() < 0.5


def test_a_fast_nod_is_kept():
    face = template()
    rotation, translation = poses(100)
    rotation[:, 0] += np.radians(5) * np.sin(2 * np.pi * 3 * np.arange(100) / 25)
    track = fit_head(see(CAMERA, rotation, translation, face, 0.5), np.ones(100, bool), 512, 512, focal=1100.0)
    assert degrees_between(track.rotation, rotation).mean() < 0.4


def test_fit_head_is_deterministic_and_refuses_no_face():
    *_, landmarks = clip(60)
    valid = np.ones(60, bool)
    first, second = (fit_head(landmarks, valid, 512, 512) for _ in range(2))
    assert np.array_equal(first.rotation, second.rotation) and np.array_equal(first.template, second.template)
    with pytest.raises(UserError):
        fit_head(landmarks, ~valid, 512, 512)


def test_fit_poses_of_single_frames_needs_no_clip():
    face, rotation, translation, landmarks = clip(40, noise_px=0.3)
    start = start_poses(landmarks[7:8], face, CAMERA)
    found, moved = fit_poses(landmarks[7:8], face, CAMERA, *start)
    assert degrees_between(found, rotation[7:8])[0] < 0.5
    assert np.abs(moved - translation[7])[0, :2].max() < 0.02
    together = fit_poses(landmarks, face, CAMERA, *start_poses(landmarks, face, CAMERA))[0]
    assert np.allclose(together[7], found[0], atol=2e-3)


def test_jacobians_match_differences():
    rng = np.random.default_rng(0)
    for vector in (rng.normal(0, 0.5, 3), np.full(3, 1e-6)):
        step = 1e-6 * rng.normal(size=3)
        left = rotation_matrices(vector + step)
        right = Rotation.from_rotvec(left_jacobians(vector) @ step).as_matrix() @ rotation_matrices(vector)
        assert np.abs(left - right).max() < 1e-10
        assert np.allclose(rotation_matrices(vector), Rotation.from_rotvec(vector).as_matrix())
    point = rng.normal(size=3) + (0, 0, 8)
    numeric = np.stack([(CAMERA.project(point + d) - CAMERA.project(point - d)) / 2e-5 for d in 1e-5 * np.eye(3)], -1)
    assert np.allclose(CAMERA.jacobian(point), numeric, rtol=1e-5)
    assert np.allclose(skew(point) @ (1, 2, 3), np.cross(point, (1, 2, 3)))


def test_adjust_reaches_the_truth_and_ignores_outliers():
    rng = np.random.default_rng(0)
    rotation, translation = poses(40)
    points = rng.uniform(-0.8, 0.8, (60, 3))
    placed = points @ rotation_matrices(rotation).transpose(0, 2, 1) + translation[:, None]
    xy = CAMERA.project(placed).reshape(-1, 2) + rng.normal(0, 0.2, (2400, 2))
    xy[rng.random(2400) < 0.1] += 40
    seen = Observations(np.repeat(np.arange(40), 60), np.tile(np.arange(60), 40), xy, np.ones(2400))
    smooth = Smoothness(0.05, 0.1, np.concatenate([[False], np.ones(38, bool), [False]]))
    start = rotation + rng.normal(0, 0.02, rotation.shape), translation + rng.normal(0, 0.05, translation.shape)
    found, _, moved = adjust(seen, CAMERA, *start, points + rng.normal(0, 0.03, points.shape), np.full(60, 100.0), smooth,
                             [20, 10, 5, 2, 2, 2, 1, 1])
    placed = moved @ rotation_matrices(found).transpose(0, 2, 1) + adjust(seen, CAMERA, *start, points, np.full(60, 1e6), smooth,
                                                                        [20, 5, 2, 1])[1][:, None]
    relative = Rotation.from_rotvec(found) * Rotation.from_rotvec(rotation).inv()
    assert np.degrees((relative * relative[0].inv()).magnitude()).mean() < 0.5
    assert np.median(np.linalg.norm(CAMERA.project(placed).reshape(-1, 2) - xy, axis=1)) < 3


def jittered(num_frames: int):
    """A textured head, and landmarks that slide together over it as tracked ones do."""
    face = template()
    rotation, translation = poses(num_frames, swing=(0.12, 0.2, 0.05))
    camera = Camera(720.0, 120.0, 120.0)
    landmarks = see(camera, rotation, translation, face)
    rng = np.random.default_rng(3)
    tilt = rng.normal(0, 0.012, (num_frames, 3))
    slid = see(camera, (Rotation.from_rotvec(tilt) * Rotation.from_rotvec(rotation)).as_rotvec(), translation, face)
    frames = list(pictures(camera, rotation, translation, 240, 240))
    return camera, rotation, landmarks, slid, frames


def test_flow_steadies_poses_of_sliding_landmarks():
    pytest.importorskip("cv2")
    camera, rotation, landmarks, slid, frames = jittered(40)
    valid = np.ones(40, bool)
    track = fit_head(slid, valid, 240, 240, focal=720.0)
    refined = refine_with_flow(iter(frames), track, slid, valid)

    def unsteadiness(found):
        error = Rotation.from_rotvec(rotation).inv() * Rotation.from_rotvec(found.rotation)
        return np.degrees((error * error.mean().inv()).magnitude()).mean()

    assert refined.residual_px < 0.5
    assert unsteadiness(refined) < 0.5 * unsteadiness(track)
    assert unsteadiness(refined) < 0.3


def test_flow_breaks_at_gaps_and_cuts():
    pytest.importorskip("cv2")
    camera, rotation, landmarks, slid, frames = jittered(40)
    order = [*range(20), *range(39, 19, -1)]
    frames = [frames[k] if k < 20 else np.roll(frames[k][::-1], 7, 1) for k in order]
    frames[20:] = [np.ascontiguousarray(f[::-1]) for f in frames[20:]]
    landmarks = slid[order]
    landmarks[20:, :, 0] += 7
    valid = np.ones(40, bool)
    valid[8] = False
    track = fit_head(landmarks, valid, 240, 240, focal=720.0)
    refined = refine_with_flow(iter(frames), track, landmarks, valid)
    assert refined.cuts[20] and np.isfinite(refined.rotation).all()
    with pytest.raises(ValueError, match="frames"):
        refine_with_flow(iter(frames[:30]), track, landmarks, valid)


def expressive(num_frames: int = 200):
    """A face that talks and blinks, and its landmarks."""
    rest, mouth_open, shut = template(), template(mouth_height=0.1), template(lid_height=0.005)
    time = np.arange(num_frames)
    talk = np.clip(np.sin(time / 3), 0, 1)
    blink = np.isin(time % 50, (20, 21, 22)) * np.array([0.7, 1.0, 0.6])[np.clip(time % 50 - 20, 0, 2)]
    rng = np.random.default_rng(0)
    rest_of = rng.normal(0, 0.0008, (40, 478, 3))
    faces = rest + talk[:, None, None] * (mouth_open - rest) + blink[:, None, None] * (shut - rest)
    faces = faces + np.tensordot(rng.normal(size=(num_frames, 40)), rest_of, 1)
    rotation, translation = poses(num_frames)
    return blink, see(CAMERA, rotation, translation, faces, 0.2)


def test_codes_keep_blinks_and_reproject():
    blink, landmarks = expressive()
    valid = np.ones(len(landmarks), bool)
    valid[100:103] = False
    track = fit_head(landmarks, valid, 512, 512, focal=1100.0)
    basis = fit_basis([displacements(track, landmarks, valid)[valid]], landmark_weights(), [STILL])
    codes = encode(track, landmarks, valid, basis, STILL.repeat(len(track), 0))
    error = reprojection_error(track, landmarks, valid, basis, codes)
    rest = reprojection_error(track, landmarks, valid, basis, np.zeros_like(codes))
    assert np.isnan(error[~valid]).all() and np.nanmean(error) < 0.5 * np.nanmean(rest) and np.nanmean(error) < 1.5
    closure = fp.eye_closure(track.project(track.template + basis.decode(codes)).astype(np.float32), valid)
    tracked = fp.eye_closure(landmarks[..., :2], valid)
    assert np.corrcoef(closure[valid, 0], tracked[valid, 0])[0, 1] > 0.95
    shut = valid & (blink == 1)
    assert closure[shut].mean() > 0.9 * tracked[shut].mean() > 0.7
    assert np.isfinite(codes).all() and 0.3 < codes[valid].std(0)[:5].mean() < 1.5


def test_codes_of_one_frame_equal_those_of_the_clip():
    _, landmarks = expressive(120)
    valid = np.ones(120, bool)
    track = fit_head(landmarks, valid, 512, 512, focal=1100.0)
    basis = fit_basis([displacements(track, landmarks, valid)], landmark_weights(), [STILL])
    whole = encode(track, landmarks, valid, basis, STILL.repeat(120, 0), smooth=0)
    one = dataclasses.replace(track, rotation=track.rotation[30:31], translation=track.translation[30:31],
                              cuts=track.cuts[30:31])
    assert np.allclose(encode(one, landmarks[30:31], valid[30:31], basis, STILL, smooth=0)[0], whole[30], atol=1e-4)


def test_encode_inverts_decode():
    _, landmarks = expressive(120)
    valid = np.ones(120, bool)
    track = fit_head(landmarks, valid, 512, 512, focal=1100.0)
    basis = fit_basis([displacements(track, landmarks, valid)], landmark_weights(), [STILL])
    codes = np.random.default_rng(0).normal(0, 1, (120, 50)).astype(np.float32)
    again = encode(track, track.project(track.template + basis.decode(codes)), valid, basis, STILL.repeat(120, 0), smooth=0)
    assert np.abs(again - codes)[:, :5].mean() < 0.1
    error = reprojection_error(track, track.project(track.template + basis.decode(codes)), valid, basis, again)
    assert error.mean() < 0.3


def test_neutral_template_has_a_closed_mouth_and_open_eyes():
    _, landmarks = expressive()
    track = fit_head(landmarks, np.ones(len(landmarks), bool), 512, 512, focal=1100.0)
    gap = np.linalg.norm(track.template[13] - track.template[14])
    assert gap < 0.06
    assert fp.eye_opening(track.template[None]).min() > 0.8 * fp.eye_opening(template()[None]).min()
