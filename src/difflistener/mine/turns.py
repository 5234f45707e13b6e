"""Voice and lips -> who speaks in every frame, and the segments in which one speaks and the other listens.

A person speaks where there is a voice and their lips move clearly more than the other's; what is unclear is nobody's.
Knows nothing of pictures or files. Axes: T frames at 25 fps; 2 people, left first; NOBODY = -1.
"""

from dataclasses import dataclass

import numpy as np

from difflistener.motion import FPS, fillable, runs

NOBODY = -1
LIP_SECONDS = 0.16
"""Deviation of the Gaussian over which lip motion is measured."""
SLOW_SECONDS = 0.4
"""Deviation of the Gaussian beyond which a change of the mouth is a smile, not a syllable."""
LEAST_MOTION = 0.015
"""Lip motion of a person's livelier moments, at least, in distances of the outer eye corners: below lies tracking noise."""
STILL = 0.25
"""Lips that move less than this part of a person's livelier moments do not speak."""
CLEARLY = 1.6
"""How many times more than the other's the lips of the one who speaks move."""
BLIP = 5
"""Speech of fewer frames is nobody's."""


@dataclass(frozen=True)
class Segment:
    """Frames in which one person speaks and the other does not."""

    start: int
    stop: int
    speaker: int
    voice: float
    """Share of the frames in which the speaker speaks."""
    overlap: float
    """Share of the frames with a voice in which the listener's lips may be speaking too."""
    answered: int | None
    """Frame in which the listener begins to speak, where the next turn is the listener's."""


def lip_motion(lips: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """How much the lips move around each frame [T], of lip distances [T]; in their unit, zero where not valid."""
    from scipy.ndimage import gaussian_filter1d

    good = np.flatnonzero(valid)
    if len(good) == 0:
        return np.zeros(len(lips))
    filled = np.interp(np.arange(len(lips)), good, lips[good])
    fast = filled - gaussian_filter1d(filled, SLOW_SECONDS * FPS)
    return np.sqrt(gaussian_filter1d(fast**2, LIP_SECONDS * FPS)) * fillable(valid)


def find_speakers(voice: np.ndarray, lips: np.ndarray, valid: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Who speaks [T] (0 left, 1 right, NOBODY), and where both may speak [T] bool.

    Args:
        voice: [T] bool.
        lips: distance of the lips [T, 2].
        valid: [T, 2] bool, frames in which the face is seen.
    """
    motion = np.stack([lip_motion(lips[:, person], valid[:, person]) for person in (0, 1)], 1)
    # Some mumble: each mouth is measured by its own livelier moments.
    lively = np.percentile(motion[voice], 90, axis=0) if voice.any() else np.zeros(2)
    motion = motion / np.maximum(lively, LEAST_MOTION)
    moves = motion > STILL
    seen = fillable(valid[:, 0]) & fillable(valid[:, 1])
    speaker = np.full(len(voice), NOBODY)
    for person in (0, 1):
        speaker[voice & seen & moves[:, person] & (motion[:, person] > CLEARLY * motion[:, 1 - person])] = person
    both = voice & seen & moves.all(1) & (speaker == NOBODY)
    for person in (0, 1):
        for start, stop in runs(speaker == person):
            if stop - start < BLIP:
                speaker[start:stop] = NOBODY
    return speaker, both


def find_turns(speaker: np.ndarray, both: np.ndarray, seen: np.ndarray, bridge: int) -> list[tuple[int, int, int]]:
    """(start, stop, person), in order: runs of one speaker, joined over at most `bridge` frames that are nobody's.

    A turn ends with up to `bridge` frames in which neither speaks and the listener still reacts. It never reaches into
    frames that are not `seen` [T], nor ends in frames in which `both` [T] may speak.
    """
    spoken = sorted((start, stop, person) for person in (0, 1) for start, stop in runs(speaker == person))
    turns: list[tuple[int, int, int]] = []
    for start, stop, person in spoken:
        before = turns[-1] if turns else None
        if before and before[2] == person and start - before[1] <= bridge and seen[before[1] : start].all():
            turns[-1] = (before[0], stop, person)
        else:
            turns.append((start, stop, person))
    ends = [start for start, _, _ in turns[1:]] + [len(speaker)]
    result = []
    for (start, stop, person), limit in zip(turns, ends):
        tail = (seen & ~both)[stop : min(stop + bridge, limit)]
        result.append((start, stop + (len(tail) if tail.all() else int(np.argmin(tail))), person))
    return result


def find_segments(voice: np.ndarray, lips: np.ndarray, valid: np.ndarray, min_frames: int, max_frames: int,
                  bridge: int) -> tuple[list[Segment], int]:
    """Segments of `min_frames` and more, those beyond `max_frames` divided evenly; and the length of the longest turn."""
    speaker, both = find_speakers(voice, lips, valid)
    turns = find_turns(speaker, both, fillable(valid[:, 0]) & fillable(valid[:, 1]), bridge)
    segments = []
    for index, (first, end, person) in enumerate(turns):
        if end - first < min_frames:
            continue
        following = turns[index + 1] if index + 1 < len(turns) else None
        answered = following[0] if following and following[2] != person else None
        edges = np.linspace(first, end, -(-(end - first) // max_frames) + 1).round().astype(int).tolist()
        for start, stop in zip(edges, edges[1:]):
            voiced = max(int(voice[start:stop].sum()), 1)
            overlap = (both[start:stop] | (speaker[start:stop] == 1 - person)).sum() / voiced
            segments.append(Segment(start, stop, person, float((speaker[start:stop] == person).mean()), float(overlap),
                                    answered if stop == end else None))
    return segments, max((stop - start for start, stop, _ in turns), default=0)
