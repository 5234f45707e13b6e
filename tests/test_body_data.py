import numpy as np
import torch

from difflistener.body.data import Pictures


def test_pictures_are_indexed_like_the_array_they_are(tmp_path):
    array = np.random.default_rng(0).integers(0, 255, (150, 6, 5, 3), np.uint8)
    np.save(tmp_path / "frames.npy", array)
    pictures = Pictures(tmp_path / "frames.npy")
    assert pictures.shape == array.shape and pictures.dtype == array.dtype and len(pictures) == 150
    for index in (3, -1, np.int64(7), slice(2, 9), slice(None, None, 40), [5, 1, 5], np.array([149, 0]), np.arange(150) > 120, slice(0, 0)):
        assert np.array_equal(pictures[index], array[index])
    assert np.array_equal(np.array(pictures), array)
    assert torch.equal(pictures.to("cpu"), torch.from_numpy(array))
    row = pictures[0]
    row[:] = 0  # A copy, not the file.
    assert np.array_equal(pictures[0], array[0])


def test_pictures_of_truth_values(tmp_path):
    array = np.random.default_rng(0).random((9, 4, 3)) < 0.5
    np.save(tmp_path / "outside.npy", array)
    pictures = Pictures(tmp_path / "outside.npy")
    assert pictures[2].dtype == bool and np.array_equal(pictures[2:5], array[2:5]) and pictures.to("cpu").dtype == torch.bool
