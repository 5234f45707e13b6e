import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from difflistener.prepare.posture import find_posture, fit_follow


def tracked(frames=400):
    generator = np.random.default_rng(0)
    rotation = generator.normal(size=(frames, 3)) * 0.25 + [0.4, -0.3, 0.2]
    head, camera = np.array([0.1, 1.6, 0.4]), np.array([0.2, 1.1, 11])
    slope, offset = generator.normal(size=(3, 3)) * 0.2, np.array([0.02, -0.01, 0.03])
    translation = camera - Rotation.from_rotvec(rotation).as_matrix() @ head
    return rotation, translation, rotation @ slope + offset, np.stack([camera, head]), np.vstack([slope, offset])


def test_a_neck_and_its_torso_are_recovered():
    rotation, translation, torso, neck, torso_map = tracked()
    follow = fit_follow(rotation, translation, torso)
    assert follow.neck == pytest.approx(neck, abs=0.02) and follow.torso_map == pytest.approx(torso_map, abs=0.01)
    assert np.abs(find_posture(follow, rotation, translation, torso)).max() < 0.03


def test_posture_is_what_the_rotation_does_not_say():
    rotation, translation, torso, _, _ = tracked()
    follow = fit_follow(rotation, translation, torso)
    lean = np.random.default_rng(1).normal(size=(400, 6)) * 0.1
    posture = find_posture(follow, rotation, translation + lean[:, :3], torso + lean[:, 3:])
    assert posture == pytest.approx(lean, abs=0.03)
    without = find_posture(fit_follow(rotation, translation, None), rotation, translation, None)
    assert np.isnan(without[:, 3:]).all() and np.isfinite(without[:, :3]).all()


def test_a_head_that_never_turns_keeps_a_usual_neck():
    still = np.zeros((100, 3))
    follow = fit_follow(still, still + [0, 0, 11], still)
    assert follow.neck[1] == pytest.approx([0, 1, 0.2], abs=1e-4)
    assert follow.translation(still[:1])[0] == pytest.approx([0, 0, 11], abs=1e-4)
    nobody = fit_follow(still[:0], still[:0], None)
    assert np.isfinite(nobody.neck).all()
