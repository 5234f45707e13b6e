"""Clips -> windows: what a window holds, and that it crosses no gap."""

from pathlib import Path

import numpy as np
import pytest
import torch

from difflistener.clip import Clip
from difflistener.dataset import Frames, Windows, holdout_spans, load_pair, load_pairs, statistics
from difflistener.errors import UserError


def write_clip(path, num_frames=60, dim=4, valid=None, face=False, basis="flame2020", offset=0.0):
    """A clip whose every value tells its frame."""
    clip = Clip.create(path, num_frames)
    clip.set(basis=basis)
    frames = np.arange(num_frames, dtype=np.float32)[:, None] + np.float32(offset)
    clip.write("listener", "motion", np.repeat(frames, 56, 1), "test", {})
    clip.write("listener", "valid", np.ones(num_frames, bool) if valid is None else valid, "test", {})
    clip.write("speaker", "logmel", np.repeat(frames + 1000, dim, 1), "test", {"encoder": {"dim": dim}})
    if face:
        clip.write("speaker", "expression", np.repeat(frames + 2000, 50, 1), "test", {})
        clip.write("speaker", "valid", frames[:, 0] != 20, "test", {})
    return path


def test_a_window_is_aligned(tmp_path):
    pair = load_pair(write_clip(tmp_path / "a", face=True), "logmel")
    batch = Windows(Frames([pair]), block=5, history=3, context=12).take(torch.tensor([30]))
    assert batch.block[0, :, 0].tolist() == [30, 31, 32, 33, 34]
    assert batch.history[0, :, 0].tolist() == [27, 28, 29]
    assert batch.audio[0, :, 0].tolist() == list(range(1023, 1035))
    assert batch.expression[0, :, 0].tolist() == list(range(2023, 2035))
    assert batch.audio.shape == (1, 12, 4) and batch.history.shape == (1, 3, 56)


def test_outside_the_clip_is_absent_and_motion_holds(tmp_path):
    windows = Windows(Frames([load_pair(write_clip(tmp_path / "a"), "logmel")]), block=5, history=3, context=12)
    batch = windows.take(torch.tensor([0, 58]))
    assert batch.audio_present[0].tolist() == [0] * 7 + [1] * 5
    assert (batch.audio[0, :7] == 0).all()
    assert batch.history[0, :, 0].tolist() == [0, 0, 0]
    assert batch.block[1, :, 0].tolist() == [58, 59, 59, 59, 59]
    assert batch.audio_present[1].tolist() == [1] * 9 + [0] * 3


def test_no_window_crosses_a_gap(tmp_path):
    valid = np.ones(60, bool)
    valid[20:23] = False
    windows = Windows(Frames([load_pair(write_clip(tmp_path / "a", valid=valid), "logmel")]), block=5, history=8, context=12)
    batch = windows.take(torch.arange(len(windows)))
    for name in ("block", "history"):
        assert not np.isin(getattr(batch, name), [20, 21, 22]).any()
    sides = np.concatenate([batch.history, batch.block], 1)[:, :, 0]
    assert ((sides < 20).all(1) | (sides > 22).all(1)).all()
    after = batch.block[:, 0, 0] == 23
    assert after.sum() == 1 and (batch.history[after][..., 0] == 23).all()


def test_a_face_is_absent_where_it_was_not_seen_or_is_not_there(tmp_path):
    seen = load_pair(write_clip(tmp_path / "a", face=True), "logmel")
    unseen = load_pair(write_clip(tmp_path / "b"), "logmel")
    windows = Windows(Frames([seen, unseen]), block=5, history=3, context=12)
    batch = windows.take(torch.tensor([18, 60 + 18]))
    frames = np.arange(11, 23)
    assert batch.expression_present[0].tolist() == (frames != 20).tolist()
    assert (batch.expression[0, frames == 20] == 0).all()
    assert not batch.expression_present[1].any() and (batch.expression[1] == 0).all()


def test_the_held_out_tail_is_apart(tmp_path):
    pairs = [load_pair(write_clip(tmp_path / "a"), "logmel")]
    train, held = holdout_spans(pairs, 0.25)
    assert train == [(0, 45)] and held == [(45, 60)]
    inside = Windows(Frames(pairs), 5, 3, 12, train)
    outside = Windows(Frames(pairs), 5, 3, 12, held)
    assert inside.take(torch.arange(len(inside))).block.max() == 44
    batch = outside.take(torch.arange(len(outside)))
    assert batch.block.min() == 45 and batch.history.min() == 45


def test_statistics_leave_out_what_was_not_seen(tmp_path):
    valid = np.ones(60, bool)
    valid[:10] = False
    values = statistics([load_pair(write_clip(tmp_path / "a", valid=valid), "logmel")], [(0, 40)])
    assert values["motion"].mean[0] == pytest.approx(np.arange(10, 40).mean())
    assert values["motion"].std[0] == pytest.approx(np.arange(10, 40).std(), rel=1e-5)
    assert values["audio"].mean[0] == pytest.approx(1000 + np.arange(40).mean())
    assert (values["expression"].std == 0).all()


def test_a_large_constant_has_zero_spread(tmp_path):
    clip = Clip.open(write_clip(tmp_path / "a"))
    clip.write("speaker", "logmel", np.full((60, 4), 12345.678, np.float32), "test", {"encoder": {}})
    assert (statistics([load_pair(clip.path, "logmel")], [(0, 60)])["audio"].std == 0).all()


def test_errors_name_the_clip_and_what_it_lacks(tmp_path):
    path = write_clip(tmp_path / "a")
    with pytest.raises(UserError, match=r"a has no speaker feature 'wav2vec2' \(it has logmel\)"):
        load_pair(path, "wav2vec2")
    deaf = Clip.create(tmp_path / "deaf", 60)
    with pytest.raises(UserError, match="deaf has no listener motion"):
        load_pair(deaf.path, "logmel")
    np.save(path / "speaker" / "logmel.npy", np.zeros((58, 4), np.float32))
    with pytest.raises(UserError, match="logmel.npy has 58 rows, 2 fewer"):
        load_pair(path, "logmel")


def test_clips_must_agree(tmp_path):
    first = write_clip(tmp_path / "a")
    with pytest.raises(UserError, match="differ in basis: flame2020 and flame2023"):
        load_pairs([first, write_clip(tmp_path / "b", basis="flame2023")], "logmel")
    with pytest.raises(UserError, match="differ in logmel settings"):
        load_pairs([first, write_clip(tmp_path / "c", dim=6)], "logmel")


def test_no_run_long_enough(tmp_path):
    pair = load_pair(write_clip(tmp_path / "a", valid=np.arange(60) % 5 < 4), "logmel")
    with pytest.raises(UserError, match="longest has 4"):
        Windows(Frames([pair]), block=6, history=3, context=12)


def test_clips_do_not_keep_their_files_open(tmp_path):
    opened = lambda: len(list(Path("/proc/self/fd").iterdir()))
    if not Path("/proc/self/fd").is_dir():
        pytest.skip("needs /proc/self/fd to count open files")
    paths = [write_clip(tmp_path / str(index), face=True) for index in range(20)]
    before = opened()
    pairs = load_pairs(paths, "logmel")
    Frames(pairs)
    assert opened() - before < len(paths) and pairs[3].motion[5:7][:, 0].tolist() == [5, 6]
