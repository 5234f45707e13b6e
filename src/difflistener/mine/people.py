"""Pictures spread over a recording -> where its two people are. Knows nothing of sound or expression.

Faces are linked over time by overlap; two that are there most of the time, side by side, are the people.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from difflistener.errors import UserError
from difflistener.media import MediaInfo, read_frames
from difflistener.motion import FPS
from difflistener.progress import progress

SAMPLES = 60
"""Pictures looked at, at least half a second apart."""
STEADY = 0.4
"""Part of the pictures in which a face must be seen to be one of the people."""
OVERLAP = 0.2
"""Least intersection over union of a face with where it usually is."""
AROUND = 3.2
"""Side of the square followed around a face, in heights of the face."""
CLEAR = 0.15
"""Room, in widths of a face, that a dividing line in the middle leaves to both faces."""


@dataclass(frozen=True)
class Place:
    """The square of the picture that shows one person's head, and the usual height of the face in it, in pixels."""

    left: int
    top: int
    right: int
    bottom: int
    face: float

    def cut(self, frame: np.ndarray) -> np.ndarray:
        """The square of `frame` [H, W, 3]."""
        return frame[self.top : self.bottom, self.left : self.right]


@dataclass(frozen=True)
class People:
    """Two people, left first, and the line between them as a share of the picture's width."""

    places: tuple[Place, Place]
    split: float


def find_people(video: Path, info: MediaInfo) -> People:
    """Look at pictures all over `video`.

    Raises:
        UserError: fewer or more than two steady faces, or two that are not side by side.
    """
    from difflistener.prepare.landmarks import FaceFinder

    count = int(np.clip(2 * info.duration_s, 1, SAMPLES))
    found = []
    with FaceFinder() as finder:
        for k, _ in progress(range(count), "look for people"):
            time = np.floor(info.duration_s * (k + 0.5) / count * FPS) / FPS
            try:
                frame = next(read_frames(video, time, 1 / FPS))
            except UserError:
                # A recording that was cut off ends before it says so.
                if not found:
                    raise
                break
            found.append([_box(face) for face in finder.find(frame)])
    return place_people(link(found), len(found), info.width, info.height, video.name)


def _box(face: np.ndarray) -> np.ndarray:
    """Left, top, right, bottom [4] of landmarks [478, 3]."""
    return np.concatenate([face[:, :2].min(0), face[:, :2].max(0)])


def link(found: Iterable[list[np.ndarray]]) -> list[np.ndarray]:
    """Tracks, each [N, 4] boxes (left, top, right, bottom; at most one a picture), of the boxes found in each picture."""
    tracks: list[list[np.ndarray]] = []
    for boxes in found:
        taken = set()
        for box in sorted(boxes, key=lambda box: box[1] - box[3]):
            likeness = [_overlap(box, np.median(track, 0)) for track in tracks]
            best = int(np.argmax(likeness)) if likeness else 0
            if not likeness or likeness[best] < OVERLAP:
                best = len(tracks)
                tracks.append([])
            if best not in taken:
                tracks[best].append(box)
                taken.add(best)
    return [np.array(track) for track in tracks]


def _overlap(a: np.ndarray, b: np.ndarray) -> float:
    """Intersection over union of two boxes."""
    area = lambda low, high: float(np.prod(np.maximum(high - low, 0)))  # noqa: E731
    both = area(np.maximum(a[:2], b[:2]), np.minimum(a[2:], b[2:]))
    return both / (area(a[:2], a[2:]) + area(b[:2], b[2:]) - both)


def place_people(tracks: list[np.ndarray], pictures: int, width: int, height: int, name: str) -> People:
    """The two people of the tracks [N, 4] that were linked in so many `pictures` of `name`."""
    steady = [track for track in tracks if len(track) >= STEADY * pictures]
    if len(steady) != 2:
        shares = ", ".join(f"{len(track) / pictures:.0%}" for track in sorted(tracks, key=len, reverse=True)[:4]) or "0%"
        count = ("no steady face", "one steady face")[len(steady)] if len(steady) < 2 else f"{len(steady)} steady faces"
        raise UserError(f"{name} shows {count}, not two (faces are in {shares} of {pictures} pictures; {STEADY:.0%} are asked).",
                        "Use a recording that shows two people throughout, from the front, camera still; cut others out first.")
    left, right = sorted((_usual(track) for track in steady), key=lambda box: box[0] + box[2])
    if left[2] >= right[0]:
        raise UserError(f"The two faces of {name} are not side by side.", "Rearrange it: one person left, one right.")
    room = CLEAR * min(left[2] - left[0], right[2] - right[0])
    middle = width / 2
    if not left[2] + room < middle < right[0] - room:
        middle = round((left[2] + right[0]) / 2)
    places = (_place(left, 0, int(middle), height), _place(right, int(np.ceil(middle)), width, height))
    return People(places, middle / width)


def _usual(track: np.ndarray) -> np.ndarray:
    """Box that holds a face almost always, and the height of the face [5]."""
    height = np.median(track[:, 3] - track[:, 1])
    return np.concatenate([np.percentile(track[:, :2], 10, axis=0), np.percentile(track[:, 2:], 90, axis=0), [height]])


def _place(box: np.ndarray, first: int, end: int, height: int) -> Place:
    """The square around a usual `box`, as far as it lies in columns `first` to `end`."""
    half = AROUND * box[4] / 2
    x, y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
    return Place(int(max(first, x - half)), int(max(0, y - half)), int(min(end, x + half)), int(min(height, y + half)),
                 float(box[4]))
