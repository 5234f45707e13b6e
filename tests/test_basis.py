import numpy as np
import pytest

from difflistener.basis import NUM_LANDMARKS, LandmarkBasis, fit_basis
from difflistener.errors import UserError

WEIGHTS = np.linspace(1, 2, NUM_LANDMARKS)
STILL = np.zeros((1, 6))


def movements(frames=300, dimensions=60, seed=0):
    generator = np.random.default_rng(seed)
    directions = np.linalg.qr(generator.normal(size=(NUM_LANDMARKS * 3, dimensions)))[0].T
    size = 0.5 * 0.9 ** np.arange(dimensions)
    return (generator.normal(size=(frames, dimensions)) * size @ directions).reshape(frames, NUM_LANDMARKS, 3)


def test_codes_have_unit_variance_and_decode_to_the_displacement():
    moved = movements(dimensions=30)
    basis = fit_basis([moved], WEIGHTS, [STILL])
    codes = basis.encode(moved)
    assert codes.shape == (300, 50) and codes.dtype == np.float32
    assert codes[:, :30].std(0) == pytest.approx(np.ones(30), abs=0.05)
    assert np.abs(basis.decode(codes) - moved).max() < 1e-3


def test_44_components_keep_the_largest_movements():
    moved = movements(dimensions=60)
    basis = fit_basis([moved], WEIGHTS, [STILL])
    left = moved - basis.decode(basis.encode(moved))
    assert (left**2).sum() / (moved**2).sum() < 0.01


def test_posture_fills_the_last_six_codes():
    generator = np.random.default_rng(0)
    leaning, sitting = generator.normal(size=(200, 6)) * [0.2, 0.1, 0.3, 0.02, 0.01, 0.05], np.full((50, 6), np.nan)
    sitting[:, :3] = 0
    moved = movements(frames=200)
    basis = fit_basis([moved, movements(frames=50, seed=1)], WEIGHTS, [leaning, sitting])
    # The head's shift is known of both people, the torso of one.
    spread = np.sqrt((leaning**2).mean(0)) * np.sqrt([0.5, 0.5, 0.5, 1, 1, 1])
    assert basis.posture_std == pytest.approx(spread, rel=1e-3)
    codes = basis.encode(moved, leaning)
    assert codes[:, 44:] * basis.posture_std == pytest.approx(leaning, abs=1e-5)
    assert np.array_equal(basis.decode(codes), basis.decode(basis.encode(moved)))


def test_each_person_has_the_same_say():
    many, few = movements(frames=600, seed=1), 0.5 * movements(frames=60, seed=2)
    once = fit_basis([many, few], WEIGHTS, [STILL, STILL])
    twice = fit_basis([np.repeat(many, 2, 0), few], WEIGHTS, [STILL, STILL])
    assert np.allclose(np.abs(np.sum(once.components[0] * twice.components[0] * np.repeat(WEIGHTS, 3) ** 2)), 1, atol=1e-3)


def test_a_saved_basis_is_the_same_and_keeps_its_id(tmp_path):
    basis = fit_basis([movements()], WEIGHTS, [STILL])
    basis.save(tmp_path / "basis.safetensors")
    again = LandmarkBasis.load(tmp_path)
    assert again.id == basis.id and basis.id.startswith("landmark:")
    assert np.array_equal(again.components, basis.components)
    assert fit_basis([movements(seed=9)], WEIGHTS, [STILL]).id != basis.id


def test_too_few_frames(tmp_path):
    with pytest.raises(UserError, match="20 tracked frames"):
        fit_basis([movements(frames=20)], WEIGHTS, [STILL])


@pytest.mark.parametrize("content", [b"", b"hello", None])
def test_a_file_that_is_no_basis(tmp_path, content):
    path = tmp_path / "x.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match="x.safetensors"):
        LandmarkBasis.load(path)
