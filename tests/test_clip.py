import json

import numpy as np
import pytest

from difflistener.clip import Clip, MaskWriter, read_masks, replacing
from difflistener.errors import UserError


@pytest.fixture
def clip(tmp_path):
    clip = Clip.create(tmp_path / "clip", num_frames=20)
    clip.set(basis="flame2020")
    clip.write("listener", "motion", np.zeros((20, 56), np.float32), "test", {"a": 1})
    clip.write("listener", "valid", np.ones(20, bool), "test", {})
    clip.write("speaker", "logmel", np.zeros((20, 80), np.float32), "test", {})
    return clip


def test_a_clip_opens_as_it_was_written(clip):
    again = Clip.open(clip.path)
    assert again.num_frames == 20 and again.roles() == ["speaker", "listener"]
    assert again.read("speaker", "logmel").shape == (20, 80)
    assert len(again.motion()) == 20 and again.motion().basis == "flame2020"
    entry = again.meta["roles"]["listener"]["motion.npy"]
    assert entry["shape"] == [20, 56] and entry["dtype"] == "float32" and len(entry["sha256"]) == 64


def test_a_feature_of_another_length_is_named_with_the_difference(clip):
    np.save(clip.path / "speaker" / "logmel.npy", np.zeros((23, 80), np.float32))
    with pytest.raises(UserError, match="logmel.npy has 23 rows, 3 more than the clip's 20 frames"):
        Clip.open(clip.path)


def test_writing_a_wrong_shape_or_nan_is_refused(clip):
    with pytest.raises(ValueError, match="19 rows"):
        clip.write("listener", "motion", np.zeros((19, 56), np.float32), "test", {})
    with pytest.raises(ValueError, match=r"expected \(56,\)"):
        clip.write("listener", "motion", np.zeros((20, 50), np.float32), "test", {})
    bad = np.zeros((20, 56), np.float32)
    bad[4] = np.inf
    with pytest.raises(ValueError, match="frame 4"):
        clip.write("listener", "motion", bad, "test", {})
    assert np.array_equal(clip.read("listener", "motion"), np.zeros((20, 56)))


@pytest.mark.parametrize("damage", ["remove", "empty", "nan", "columns"])
def test_a_damaged_feature_is_named(clip, damage):
    path = clip.path / "listener" / "motion.npy"
    if damage == "remove":
        path.unlink()
    elif damage == "empty":
        path.write_bytes(b"")
    else:
        array = np.zeros((20, 55 if damage == "columns" else 56), np.float32)
        array[7, 3] = np.nan if damage == "nan" else 0
        np.save(path, array)
    with pytest.raises(UserError, match="motion.npy") as error:
        Clip.open(clip.path)
    assert damage != "nan" or "frame 7" in str(error.value)


def test_not_a_clip(tmp_path):
    with pytest.raises(UserError, match="not a clip"):
        Clip.open(tmp_path)
    (tmp_path / "clip.json").write_text("{")
    with pytest.raises(UserError, match="damaged"):
        Clip.open(tmp_path)
    (tmp_path / "clip.json").write_text(json.dumps({"format": 99}))
    with pytest.raises(UserError, match="format 99"):
        Clip.open(tmp_path)


def test_a_missing_file_says_what_there_is(clip):
    with pytest.raises(UserError, match="no speaker/expression.npy.*logmel.npy"):
        clip.read("speaker", "expression")


def test_a_stage_is_current_only_with_the_same_settings(clip):
    assert clip.is_current("listener", "motion.npy", {"a": 1})
    assert not clip.is_current("listener", "motion.npy", {"a": 2})
    (clip.path / "listener" / "motion.npy").unlink()
    assert not clip.is_current("listener", "motion.npy", {"a": 1})


def test_a_failed_write_leaves_what_was_there(clip):
    target = clip.path / "listener" / "motion.npy"
    before = target.read_bytes()
    with pytest.raises(RuntimeError), replacing(target) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert target.read_bytes() == before
    assert sorted(p.name for p in target.parent.iterdir()) == ["motion.npy", "valid.npy"]


def test_masks_are_read_as_they_were_written(tmp_path):
    labels = np.random.default_rng(0).integers(0, 5, (150, 6, 8)).astype(np.uint8)
    writer = MaskWriter(tmp_path / "mask.npz")
    for label in labels:
        writer.write(label)
    writer.close()
    assert np.array_equal(np.stack(list(read_masks(tmp_path / "mask.npz"))), labels)
