"""Clips -> aligned arrays -> windows -> batches of a speaker and the listener's reaction.

Frames lie whole in the memory of the device that learns: fetching a batch from the disk's files takes longer than a
GPU's step. An hour with log-mel takes 67 MB, with wav2vec 2.0 315 MB.
Knows nothing of networks. Axes: N windows of a batch, T frames at 25 fps, A audio feature, D = 56 motion.

    frames       ... -40 ... -10 -1 | 0 ... 9        block = 10, history = 10, context = 50
    audio, face  [-------------------------]         context frames, up to the end of the block
    history                 [-------]                the listener's own past
    block                            [------]        what the brain is to generate
"""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from difflistener.clip import Clip
from difflistener.errors import UserError
from difflistener.motion import NUM_EXPRESSION, NUM_MOTION, runs


class Stored:
    """A clip's feature [T, ...], opened only while rows are read: a process may have fewer files open than a data set holds."""

    def __init__(self, clip: Clip, role: str, name: str):
        self._read = lambda: clip.read(role, name)
        self.shape: tuple[int, ...] = clip.read(role, name).shape

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows) -> np.ndarray:
        return np.array(self._read()[rows])

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        return np.array(self._read(), dtype)


@dataclass(frozen=True)
class Pair:
    """One clip's speaker and listener, frame by frame. Arrays, or `Stored` ones."""

    path: Path
    basis: str
    motion: np.ndarray | Stored  # [T, 56] of the listener
    valid: np.ndarray  # [T] bool, frames where the listener was seen
    audio: np.ndarray | Stored  # [T, A] of the speaker
    audio_settings: dict  # of the encoder that made the feature
    expression: np.ndarray | Stored | None  # [T, 50] of the speaker
    expression_valid: np.ndarray  # [T] bool, all false without a speaker's face

    def __len__(self) -> int:
        return len(self.motion)

    def longest_valid_run(self) -> "Pair":
        """The frames of the longest run in which the listener was seen, as a pair of its own."""
        start, stop = max(runs(self.valid), key=lambda run: run[1] - run[0], default=(0, 0))
        frames = slice(start, stop)
        return replace(self, motion=self.motion[frames], valid=self.valid[frames], audio=self.audio[frames],
                       expression=None if self.expression is None else self.expression[frames],
                       expression_valid=self.expression_valid[frames])


def load_pair(path: Path, audio: str) -> Pair:
    """Open the clip at `path` with the speaker feature `audio` ("logmel" or "wav2vec2").

    Raises:
        UserError: no clip, a damaged one, one without listener motion or without that feature.
    """
    clip = Clip.open(path)
    if not clip.has("listener", "motion.npy"):
        raise UserError(f"The clip {path} has no listener motion (listener/motion.npy).",
                        "Prepare it again with --listener VIDEO or --listener-motion FILE.")
    if not clip.has("speaker", f"{audio}.npy"):
        features = [name for name in ("logmel", "wav2vec2") if clip.has("speaker", f"{name}.npy")]
        raise UserError(f"The clip {path} has no speaker feature {audio!r} (it has {', '.join(features) or 'none'}).",
                        f"Prepare it again with --audio {audio}, or train with another --audio.")
    has_face = clip.has("speaker", "expression.npy")
    num_frames = clip.num_frames
    if not has_face:
        expression_valid = np.zeros(num_frames, bool)
    elif clip.has("speaker", "valid.npy"):
        expression_valid = np.array(clip.read("speaker", "valid"), bool)
    else:
        expression_valid = np.ones(num_frames, bool)
    valid = clip.read("listener", "valid") if clip.has("listener", "valid.npy") else np.ones(num_frames)
    return Pair(Path(path), clip.basis, Stored(clip, "listener", "motion"), np.array(valid, bool),
                Stored(clip, "speaker", audio), clip.meta["roles"]["speaker"][f"{audio}.npy"]["settings"]["encoder"],
                Stored(clip, "speaker", "expression") if has_face else None, expression_valid)


def load_pairs(paths: list[Path], audio: str) -> list[Pair]:
    """`load_pair` for each clip; all must share basis, audio settings and feature width (`UserError` names two)."""
    pairs = [load_pair(path, audio) for path in paths]
    for pair in pairs[1:]:
        for what, ours, first in (("basis", pair.basis, pairs[0].basis),
                                  (f"{audio} settings", pair.audio_settings, pairs[0].audio_settings),
                                  (f"{audio} width", pair.audio.shape[1], pairs[0].audio.shape[1])):
            if ours != first:
                raise UserError(f"The clips {pairs[0].path} and {pair.path} differ in {what}: {first} and {ours}.",
                                "Prepare one of them again with the settings of the other.")
    return pairs


class Frames:
    """The frames of `pairs`, one clip after the other, float32 on `device`."""

    def __init__(self, pairs: list[Pair], device: torch.device | str = "cpu"):
        self.pairs = pairs
        silent = np.zeros((1, NUM_EXPRESSION), np.float32)

        def join(arrays: list[np.ndarray | Stored]) -> Tensor:
            return torch.from_numpy(np.concatenate(arrays, dtype=np.float32, casting="same_kind")).to(device)

        self.motion = join([pair.motion for pair in pairs])  # [F, 56]
        self.audio = join([pair.audio for pair in pairs])  # [F, A]
        self.expression = join([silent.repeat(len(pair), 0) if pair.expression is None else pair.expression for pair in pairs])
        self.expression_valid = join([pair.expression_valid & (pair.expression is not None) for pair in pairs])  # [F] 0 or 1
        self.length = torch.tensor([len(pair) for pair in pairs], device=device)  # [P]
        self.first = self.length.cumsum(0) - self.length  # [P] of each pair


@dataclass(frozen=True)
class Batch:
    """Windows, not normalised; rows that do not exist are zero and marked absent."""

    audio: Tensor  # [N, context, A]
    audio_present: Tensor  # [N, context] 0 or 1
    expression: Tensor  # [N, context, 50]
    expression_present: Tensor  # [N, context] 0 or 1
    history: Tensor  # [N, history, 56]
    block: Tensor  # [N, block, 56]


class Windows:
    """Every block of `block` frames that crosses no gap of the listener's `valid`.

    History before the first frame of a valid run repeats that frame: the listener is known to start from it. A block
    may reach past the end of a clip: there the speaker is absent and the last frame holds, as in generation.

    Args:
        spans: frames (start, stop) of each pair to draw from; all frames by default.

    Raises:
        UserError: no valid run anywhere is as long as a block.
    """

    def __init__(self, frames: Frames, block: int, history: int, context: int,
                 spans: list[tuple[int, int]] | None = None):
        self.frames = frames
        self.block, self.history, self.context = block, history, context
        pairs, rows, longest = frames.pairs, [], 0
        for index, pair in enumerate(pairs):
            first, last = spans[index] if spans else (0, len(pair))
            for start, stop in runs(pair.valid[first:last]):
                longest = max(longest, stop - start)
                run, end = first + start, first + stop
                starts = np.arange(run, end if end == len(pair) else end - block + 1)
                rows.append(np.stack([np.full_like(starts, index), starts, np.full_like(starts, run)], 1))
        index = np.concatenate(rows) if rows else np.zeros((0, 3), int)
        if len(index) == 0:
            raise UserError(f"No run of valid listener frames in {', '.join(str(p.path) for p in pairs)} is {block} "
                            f"frames long (the longest has {longest}).", "Use longer clips or a smaller block.")
        self.index = torch.from_numpy(index).to(frames.motion.device)  # [W, 3] pair, start, start of its run

    def __len__(self) -> int:
        return len(self.index)

    def take(self, which: Tensor) -> Batch:
        """The windows numbered `which` [N], in that order, on the device of the frames."""
        frames = self.frames
        pair, start, run = self.index[which].T[..., None]
        length, first = frames.length[pair], frames.first[pair]

        def rows(begin: int, end: int) -> Tensor:
            return start + torch.arange(begin, end, device=start.device)

        past = rows(self.block - self.context, self.block)
        inside = ((past >= 0) & (past < length)).float()
        past = first + torch.minimum(past.clamp(min=0), length - 1)
        present = inside * frames.expression_valid[past]
        return Batch(
            audio=frames.audio[past] * inside[..., None], audio_present=inside,
            expression=frames.expression[past] * present[..., None], expression_present=present,
            history=frames.motion[first + torch.maximum(rows(-self.history, 0), run)],
            block=frames.motion[first + torch.minimum(rows(0, self.block), length - 1)],
        )


def holdout_spans(pairs: list[Pair], fraction: float) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """Training and validation spans (start, stop): the tail `fraction` of each clip is held out."""
    cuts = [len(pair) - round(len(pair) * fraction) for pair in pairs]
    return [(0, cut) for cut in cuts], [(cut, len(pair)) for cut, pair in zip(cuts, pairs)]


@dataclass(frozen=True)
class Statistics:
    """Mean and standard deviation per dimension; zero where a dimension never moves."""

    mean: np.ndarray  # [C]
    std: np.ndarray  # [C]


CONSTANT = 1e-4
"""A standard deviation below this (radians, expression units, log-mel units) is a dimension that does not move."""


def statistics(pairs: list[Pair], spans: list[tuple[int, int]]) -> dict[str, Statistics]:
    """Of "motion" [56], "audio" [A] and "expression" [50] over the valid frames in `spans`."""
    result = {}
    for name, width in (("motion", NUM_MOTION), ("audio", pairs[0].audio.shape[1]), ("expression", NUM_EXPRESSION)):
        count, total, squares = 0, np.zeros(width), np.zeros(width)
        offset = None
        for pair, (first, last) in zip(pairs, spans):
            array = getattr(pair, name)
            if array is None:
                continue
            use = {"motion": pair.valid, "expression": pair.expression_valid}.get(name, np.ones(len(pair), bool))
            for start in range(first, last, 4096):
                stop = min(start + 4096, last)
                rows = np.asarray(array[start:stop], np.float64)[use[start:stop]]
                if offset is None and len(rows):
                    offset = rows[0]
                if len(rows):
                    # Sums of differences from one frame: a large constant must not swamp a small variance.
                    count, total, squares = count + len(rows), total + (rows - offset).sum(0), squares + ((rows - offset) ** 2).sum(0)
        if count == 0:
            result[name] = Statistics(np.zeros(width, np.float32), np.zeros(width, np.float32))
            continue
        std = np.sqrt(np.maximum(squares / count - (total / count) ** 2, 0))
        std[std < CONSTANT] = 0
        result[name] = Statistics((offset + total / count).astype(np.float32), std.astype(np.float32))
    return result
