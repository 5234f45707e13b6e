import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from difflistener.errors import UserError
from difflistener.motion import EXPRESSION, JAW, NUM_MOTION, ROTATION, Motion, fill_gaps, fillable, require_same_basis, runs, unwrap_rotation


def make(frames=5, **changes):
    values = np.arange(frames * NUM_MOTION, dtype=np.float32).reshape(frames, NUM_MOTION)
    return Motion(**({"values": values, "basis": "flame2020", "valid": np.ones(frames, bool)} | changes))


def test_the_slices_cover_all_numbers_once():
    columns = np.arange(NUM_MOTION)
    assert np.array_equal(np.concatenate([columns[EXPRESSION], columns[ROTATION], columns[JAW]]), columns)
    motion = make()
    assert motion.expression.shape == (5, 50) and motion.rotation.shape == motion.jaw.shape == (5, 3)


def test_a_wrong_shape_names_the_array():
    with pytest.raises(ValueError, match=r"eyes has shape \(5, 3\), expected \(5, 4\)"):
        make(eyes=np.zeros((5, 3), np.float32))


def test_a_number_that_is_not_finite_names_the_frame():
    values = np.zeros((5, NUM_MOTION), np.float32)
    values[3, 7] = np.nan
    with pytest.raises(ValueError, match="frame 3"):
        make(values=values)


def test_another_basis_is_refused_with_both_names():
    require_same_basis("a", "a", "x", "y")
    with pytest.raises(UserError, match="landmark:1.*flame2020"):
        require_same_basis("landmark:1", "flame2020", "brains/x", "bodies/y")


def test_runs():
    assert runs(np.array([1, 1, 0, 0, 1], bool)) == [(0, 2), (4, 5)]
    assert runs(np.zeros(3, bool)) == []


def test_gaps_are_interpolated_and_valid_rows_untouched():
    values = np.array([[0.0], [9], [9], [3], [9]], np.float32)
    valid = np.array([1, 0, 0, 1, 0], bool)
    assert fill_gaps(values, valid)[:, 0].tolist() == [0, 1, 2, 3, 3]
    with pytest.raises(ValueError):
        fill_gaps(values, np.zeros(5, bool))


def test_rotations_are_interpolated_on_the_sphere():
    ends = Rotation.from_euler("xyz", [[0, 0, 0], [0, 80, 0]], degrees=True).as_rotvec()
    track = np.stack([ends[0], ends[0], ends[1]]).astype(np.float32)
    filled = fill_gaps(track, np.array([1, 0, 1], bool), is_rotation=True)
    assert np.degrees(filled[1]) == pytest.approx([0, 40, 0], abs=1e-3)


def test_only_short_inner_gaps_may_be_filled():
    valid = np.ones(40, bool)
    valid[:2] = valid[10:13] = valid[20:35] = False
    usable = fillable(valid)
    assert not usable[:2].any() and usable[10:13].all() and not usable[20:35].any()


def test_unwrapping_removes_full_turns():
    angle = np.linspace(3.0, 3.3, 8)
    track = Rotation.from_rotvec(np.outer(angle, [0, 1, 0])).as_rotvec()
    assert np.abs(np.diff(track[:, 1])).max() > 5
    assert np.allclose(unwrap_rotation(track)[:, 1], angle)
