"""What `difflistener prepare` is given: the two roles' recordings, checked, and the part of the picture to keep.

Knows nothing of tracking or of the clip's files. Axes: T frames at 25 fps, H, W pixels of the source.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from difflistener.clip import sha256
from difflistener.errors import UserError
from difflistener.media import num_frames, probe, read_frames
from difflistener.motion import FLAME_BASES, FPS
from difflistener.prepare.config import Prepare
from difflistener.stored_motion import read_track

CROP_FACES = 2.6
"""Side of the stored picture in heights of the face: head, hair and shoulders."""
NEARLY_ALL = 0.9
"""A crop that keeps this much of the picture's shorter side keeps all of it."""
MIN_SIZE = 64


@dataclass(frozen=True)
class Source:
    """Where one role's pictures or sound come from."""

    role: str
    path: Path
    side: str | None
    start: float
    has_video: bool
    split: float = 0.5

    def frames(self, count: int) -> Iterator[np.ndarray]:
        """At most `count` pictures [H, W, 3] uint8 at 25 fps."""
        for index, frame in enumerate(read_frames(self.path, self.start)):
            if index == count:
                return
            columns = self.width(frame.shape[1])
            yield {None: frame, "left": frame[:, :columns], "right": frame[:, -columns:]}[self.side]

    def width(self, whole: int) -> int:
        """Columns of this side of a picture with `whole` columns."""
        return int(whole * {None: 1, "left": self.split, "right": 1 - self.split}[self.side])

    def settings(self, count: int) -> dict:
        settings = {"source": self.path.name, "sha256": sha256(self.path), "side": self.side, "start": self.start, "frames": count}
        return settings if self.split == 0.5 else settings | {"split": self.split}


@dataclass(frozen=True)
class Crop:
    """A square of the source picture, and the side it is stored at."""

    left: int
    top: int
    side: int
    size: int

    def __call__(self, frame: np.ndarray) -> np.ndarray:
        import cv2

        part = frame[self.top : self.top + self.side, self.left : self.left + self.side]
        if self.size == self.side:
            return np.ascontiguousarray(part)
        return cv2.resize(part, (self.size, self.size), interpolation=cv2.INTER_AREA)

    def landmarks(self, points: np.ndarray) -> np.ndarray:
        """Landmarks [T, 478, 3] in source pixels -> pixels of the stored picture."""
        scale = self.size / self.side
        return ((points - [self.left, self.top, 0]) * scale).astype(np.float32)


def choose_crop(points: np.ndarray, width: int, height: int, size: int) -> Crop:
    """The square of the source that shows the head with its shoulders over the whole clip.

    Args:
        points: tracked landmarks [T, 478, 3] in source pixels.
        width, height: of the source picture.
        size: longest side to store.
    """
    low, high = np.percentile(points[..., :2].min(1), 2, 0), np.percentile(points[..., :2].max(1), 98, 0)
    face = np.median(np.ptp(points[..., 1], axis=1))
    side = int(min(max(CROP_FACES * face, 1.5 * (high - low).max()), height, width))
    if side > NEARLY_ALL * min(height, width):
        side = min(height, width)
    centre = (low + high) / 2 + [0, 0.1 * face]
    left = int(np.clip(round(centre[0] - side / 2), 0, width - side))
    top = int(np.clip(round(centre[1] - side / 2), 0, height - side))
    return Crop(left, top, side, min(side, size) // 2 * 2)


def find_sources(config: Prepare) -> tuple[list[Source], int]:
    """The sources that the settings name, checked, and the number of frames that all of them have."""
    if config.dyad is not None:
        if config.speaker or config.listener or config.listener_motion:
            raise UserError("--dyad shows both people; --speaker, --listener and --listener-motion do not go with it.", "Leave them out.")
        if config.speaker_side is None:
            raise UserError("--dyad needs --speaker-side.", "Say which half shows the speaker: --speaker-side left or right.")
        if not 0 < config.split < 1:
            raise UserError(f"--split is {config.split:g}.", "Give the share of the width that is left of the dividing line, such as 0.5.")
        other = {"left": "right", "right": "left"}[config.speaker_side]
        given = [("speaker", config.dyad, config.speaker_side), ("listener", config.dyad, other)]
    else:
        if config.speaker_side is not None or config.split != 0.5:
            raise UserError("--speaker-side goes with --dyad, as does --split.", "Give the split-screen video as --dyad.")
        if config.listener and config.listener_motion:
            raise UserError("--listener and --listener-motion are both given.", "Give one of them.")
        given = [("speaker", config.speaker, None), ("listener", config.listener, None)]
    given = [(role, path, side) for role, path, side in given if path is not None]
    if not given and config.listener_motion is None:
        raise UserError("Neither a speaker nor a listener is given.", "Give --speaker and --listener, or --dyad with --speaker-side.")
    if config.size < MIN_SIZE:
        raise UserError(f"--size is {config.size}.", f"Choose at least {MIN_SIZE} pixels.")
    if not (math.isfinite(config.start) and config.start >= 0):
        raise UserError(f"--start is {config.start:g}.", "Give a number of seconds from 0 up.")
    if config.duration is not None and not (math.isfinite(config.duration) and num_frames(config.duration) >= 1):
        raise UserError(f"--duration is {config.duration:g}.", f"Give a number of seconds, at least one frame ({1 / FPS} s).")
    sources, counts = [], []
    for role, path, side in given:
        info = probe(path)
        if role == "speaker" and not info.has_audio:
            raise UserError(f"{path} has no sound; a listener reacts to what the speaker says.", "Give --speaker a file with sound.")
        if role == "listener" and not info.has_video:
            raise UserError(f"{path} has no pictures.", "Give --listener a video.")
        sources.append(Source(role, path, side, config.start, info.has_video and config.listener_motion is None, config.split))
        counts.append(num_frames(info.duration_s - config.start))
        if counts[-1] < 1:
            raise UserError(f"{path} ends at {info.duration_s:.2f} s, before --start {config.start:g}.", "Choose an earlier --start.")
    if config.duration is not None:
        counts.append(num_frames(config.duration))
    if config.listener_motion is not None:
        counts.append(len(read_motion(config)))
    test_frames(config, min(counts))
    return sources, min(counts)


def test_frames(config: Prepare, count: int) -> list[int]:
    """First frame and end of the block of `count` frames that nothing is fitted on."""
    if config.test_frames is None:
        return [max(1, round(0.9 * count)), count]
    first, end = config.test_frames
    if not 0 <= first < end <= count or end - first == count:
        raise UserError(f"--test-frames {first} {end} is no block of {count} frames.", "Give its first frame and its end, and leave some to learn from.")
    return [first, end]


def read_motion(config: Prepare) -> np.ndarray:
    """Stored motion [T, 56] from --start on."""
    path = config.listener_motion
    if config.motion_basis not in FLAME_BASES:
        raise UserError(f"--motion-basis {config.motion_basis} is not known.", f"Known: {', '.join(FLAME_BASES)}.")
    motion = read_track(path)
    first = num_frames(config.start)
    if first >= len(motion):
        raise UserError(f"{path} ends at {len(motion) / FPS:.2f} s, before --start {config.start:g}.", "Choose an earlier --start.")
    return motion[first:]
