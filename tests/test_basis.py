import numpy as np
import pytest

from difflistener.basis import NUM_LANDMARKS, LandmarkBasis, fit_basis
from difflistener.errors import UserError

WEIGHTS = np.linspace(1, 2, NUM_LANDMARKS)


def movements(frames=300, dimensions=60, seed=0):
    generator = np.random.default_rng(seed)
    directions = np.linalg.qr(generator.normal(size=(NUM_LANDMARKS * 3, dimensions)))[0].T
    size = 0.5 * 0.9 ** np.arange(dimensions)
    return (generator.normal(size=(frames, dimensions)) * size @ directions).reshape(frames, NUM_LANDMARKS, 3)


def test_codes_have_unit_variance_and_decode_to_the_displacement():
    moved = movements(dimensions=30)
    basis = fit_basis([moved], WEIGHTS)
    codes = basis.encode(moved)
    assert codes.shape == (300, 50) and codes.dtype == np.float32
    assert codes[:, :30].std(0) == pytest.approx(np.ones(30), abs=0.05)
    assert np.abs(basis.decode(codes) - moved).max() < 1e-3


def test_fifty_components_keep_the_largest_movements():
    moved = movements(dimensions=60)
    basis = fit_basis([moved], WEIGHTS)
    left = moved - basis.decode(basis.encode(moved))
    assert (left**2).sum() / (moved**2).sum() < 0.01


def test_each_person_has_the_same_say():
    many, few = movements(frames=600, seed=1), 0.5 * movements(frames=60, seed=2)
    once = fit_basis([many, few], WEIGHTS)
    twice = fit_basis([np.repeat(many, 2, 0), few], WEIGHTS)
    assert np.allclose(np.abs(np.sum(once.components[0] * twice.components[0] * np.repeat(WEIGHTS, 3) ** 2)), 1, atol=1e-3)


def test_a_saved_basis_is_the_same_and_keeps_its_id(tmp_path):
    basis = fit_basis([movements()], WEIGHTS)
    basis.save(tmp_path / "basis.safetensors")
    again = LandmarkBasis.load(tmp_path)
    assert again.id == basis.id and basis.id.startswith("landmark:")
    assert np.array_equal(again.components, basis.components)
    assert fit_basis([movements(seed=9)], WEIGHTS).id != basis.id


def test_too_few_frames(tmp_path):
    with pytest.raises(UserError, match="20 tracked frames"):
        fit_basis([movements(frames=20)], WEIGHTS)


@pytest.mark.parametrize("content", [b"", b"hello", None])
def test_a_file_that_is_no_basis(tmp_path, content):
    path = tmp_path / "x.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match="x.safetensors"):
        LandmarkBasis.load(path)
