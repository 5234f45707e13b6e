"""What the head shows now: takes motion as it is made and gives one pose for every tick, whatever happens to the making.

Motion is passed on untouched while it comes in time. Where it does not, or where something is skipped, the head goes on
smoothly. Knows nothing of sound or pictures; `now` is any clock in seconds. Safe from several threads. Axes: D = 56 motion; a
tick is 1/25 s.
"""

import math
import threading
from collections import deque
from typing import NamedTuple

import numpy as np

from difflistener.motion import FPS

EASE_FRAMES = 8
"""A jump is spread over 0.3 s."""
SLACK = 2
"""Frames beyond one batch that may wait before the head jumps."""
PATIENCE, MOST_PATIENCE = 5 * FPS, 40 * FPS
"""Ticks after which motion that always waited longer than it had to is shown sooner: at first, and where that was regretted."""
MARGIN_S = 0.02
"""Time that motion may wait to be shown, because the next comes a little later."""
COAST, DRIFT, DRIFT_BEGINS = 0.6, 0.12, 6
"""Without motion: velocity kept from tick to tick, way to rest made in a tick, ticks until that is reached."""


class Beat(NamedTuple):
    """One frame of motion on its way to be shown."""

    motion: np.ndarray  # [56] float32
    row: int
    heard: float  # when the newest sound that it used arrived
    since: float  # when the first sound of its hop arrived; NaN but for the first frame of a hop


class Pose(NamedTuple):
    """What to show for one tick."""

    motion: np.ndarray  # [56] float32
    beat: Beat | None  # the live motion of this tick, if there is any
    again: bool


class Playhead:
    """A queue of motion with a head that takes one frame a tick."""

    def __init__(self, rest: np.ndarray):
        self.dropped = self.eased = 0
        self.watched = False
        self.rest = rest.astype(np.float32)
        self._lock = threading.Lock()
        self._queue: deque[tuple[float, Beat]] = deque()  # when it was made, and what
        self._again: deque[np.ndarray] = deque()
        self._batch = 1
        self._shown: np.ndarray | None = None
        self._velocity = self._coast = np.zeros_like(self.rest)
        self._offset = np.zeros_like(self.rest)
        self._left_of_offset = 0
        self._jumps = False
        self._starved = 0
        self._heard = math.nan
        self._least_wait, self._watched_ticks, self._patience = math.inf, 0, PATIENCE

    def put(self, beats: list[Beat], now: float) -> None:
        """Motion of one run of the brain. A queue too long to be shown in time is cut to the newest run."""
        with self._lock:
            self._batch = max(self._batch, len(beats))
            self._queue.extend((now, beat) for beat in beats)
            if len(self._queue) > self._batch + SLACK:
                self._cut(len(self._queue) - self._batch)

    def put_again(self, motion: np.ndarray) -> None:
        """Motion [n, 56] to show once instead of what comes."""
        with self._lock:
            self._again = deque(motion)
            self._jumps = True

    def clear(self) -> None:
        """Forget all motion; the head goes on from the pose it is in."""
        with self._lock:
            self._queue.clear()
            self._again.clear()
            self._jumps = True
            self._heard = math.nan

    def take(self, now: float, ticks: int = 1) -> Pose:
        """The pose `ticks` later than the last one that was taken."""
        with self._lock:
            beat = None
            for _ in range(min(ticks, len(self._queue))):
                made, beat = self._queue.popleft()
            self._keep_up(0.0 if beat is None else now - made)
            again = bool(self._again)
            if again:
                for _ in range(min(ticks, len(self._again))):
                    motion = self._again.popleft()
                motion = self._smoothly(motion)
                self._jumps |= not self._again
            elif beat is not None:
                motion = self._smoothly(beat.motion)
            else:
                self.eased += 1
                motion = self._ease_out()
            if self._shown is not None:
                self._velocity = motion - self._shown
            self._shown = motion
            self._heard = self._heard if beat is None else beat.heard
            return Pose(motion, beat, again)

    @property
    def heard(self) -> float:
        """When the newest sound arrived that was used in what is shown."""
        return self._heard

    def _keep_up(self, waited: float) -> None:
        """Motion that `waited` is shown. Where none was shown as soon as it could have been, skip what it waits for."""
        self._least_wait = min(self._least_wait, waited)
        self._watched_ticks += 1
        if self._watched_ticks < self._patience:
            return
        idle = math.floor((self._least_wait - MARGIN_S) * FPS)
        if idle > 0:
            self._cut(min(idle, len(self._queue)))
        elif self._least_wait > 0:
            self._patience = max(self._patience // 2, PATIENCE)
        self._least_wait, self._watched_ticks = math.inf, 0

    def _cut(self, count: int) -> None:
        for _ in range(count):
            self._queue.popleft()
        self.dropped += count if self.watched else 0
        self._jumps = True

    def _smoothly(self, target: np.ndarray) -> np.ndarray:
        if (self._jumps or self._starved) and self._shown is not None:
            self._offset = self._shown + COAST * self._velocity - target
            self._left_of_offset = EASE_FRAMES
        self._jumps, self._starved = False, 0
        if self._left_of_offset == 0:
            return target
        x = self._left_of_offset / (EASE_FRAMES + 1)
        self._left_of_offset -= 1
        return target + self._offset * np.float32(x * x * (3 - 2 * x))

    def _ease_out(self) -> np.ndarray:
        if self._starved == 0:
            self._coast = self._velocity
            self._patience = min(2 * self._patience, MOST_PATIENCE)
        self._starved += 1
        if self._shown is None:
            return self.rest
        self._coast = COAST * self._coast
        rate = DRIFT * min(self._starved / DRIFT_BEGINS, 1)
        return (self._shown + self._coast + rate * (self.rest - self._shown)).astype(np.float32)
