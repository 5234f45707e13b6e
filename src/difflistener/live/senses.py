"""What a speaker says and shows, as it arrives, on one time line: rows of 40 ms of sound, and expression codes to go with them.

Fills what is missing with silence and cuts what comes twice or too late. Knows nothing of threads, brains or trackers: its owner
holds a lock. Axes: n samples mono 16 kHz; times in seconds, of the speaker's clock where not said otherwise.
"""

import math
from collections import deque
from typing import NamedTuple

import numpy as np

from difflistener.motion import FPS, NUM_EXPRESSION
from difflistener.prepare.audio import SAMPLE_RATE, SAMPLES_PER_FRAME

MAX_GAP_S = 1.0
"""Longest jump of the speaker's clock that is filled or cut; beyond, it is another clock."""
JITTER_S = 0.01
"""Deviations of a time from the sound before it that mean nothing."""
MAX_WAITING_S = 1.0
SILENCE_AFTER_S = 0.5
SEEN_S = 0.2
"""Age at which codes say nothing any more."""
LOUDEST = 2.0
"""Resampled speech exceeds 1 a little; samples beyond this are of another unit."""
LEVEL_S = 0.5
TALKING = 0.01
"""Root mean square of sound in which somebody talks: 40 dB below full scale."""
_CODES_KEPT = 64
_SAME_S = 1e-6


class Row(NamedTuple):
    """40 ms of sound that are complete."""

    samples: np.ndarray  # [640] float32
    end: float
    first: float  # when its first sample arrived, by the local clock; NaN for filled-in silence
    newest: float  # when its newest sound arrived; NaN where all of it is filled in


class Senses:
    """Sound and face of one speaker. `now` is the local clock."""

    def __init__(self, now: float):
        self.silence_filled_s = self.audio_dropped_s = 0.0
        self._recent = np.zeros(0, np.float32)
        self.clear(now)

    def clear(self, now: float) -> None:
        """Forget all that was said and shown; the counts stay."""
        self._samples = np.zeros(0, np.float32)
        self._arrived = np.zeros(0)
        self._start = 0  # index of the first waiting sample since the conversation began
        self._origin: float | None = None  # the speaker's time of index 0
        self._codes: deque[tuple[float, np.ndarray]] = deque(maxlen=_CODES_KEPT)
        self._quiet_since = now
        self._in_silence = False  # the last sound is filled-in silence
        self._said = -math.inf  # the speaker's time up to which sound has come, by the clock it last had

    # What comes in

    def hear(self, samples: np.ndarray, time: float | None, now: float) -> None:
        """Take sound [n] whose first sample is of `time`, or follows on. Raises `ValueError`, see `Listener.push_audio`."""
        samples = _checked_sound(samples)
        count = len(samples)
        if time is not None:
            time = _checked_time(time)
            ahead = None if self._origin is None else time - self.end
            # Sound that is behind filled-in silence came late, but it is new: it is not cut.
            is_late = self._in_silence and time > self._said - JITTER_S
            if ahead is None or abs(ahead) > MAX_GAP_S or (is_late and ahead < 0):
                self._said = -math.inf
                self._origin = time - self._end_index / SAMPLE_RATE
            elif ahead > JITTER_S:
                self._fill(round(ahead * SAMPLE_RATE))
            elif ahead < -JITTER_S:
                samples = samples[round(-ahead * SAMPLE_RATE) :]
            self._said = max(self._said, time + count / SAMPLE_RATE)
        elif self._origin is None:
            self._origin = 0.0
        if len(samples):
            self._quiet_since, self._in_silence = now, False
            self._append(samples, now)

    def see(self, codes: np.ndarray, time: float | None) -> None:
        """Take codes [50] of `time`; None is the end of the sound. Raises `ValueError` for another shape and for NaN."""
        codes = np.asarray(codes, np.float32)
        if codes.shape != (NUM_EXPRESSION,):
            raise ValueError(f"the expression codes are {list(codes.shape)}, expected [{NUM_EXPRESSION}]")
        if not np.isfinite(codes).all():
            raise ValueError("the expression codes are not all numbers")
        self._codes.append((self.when(time), codes.copy()))

    def when(self, time: float | None) -> float:
        """`time`, or the end of the sound where it is None or of another clock than the sound's."""
        time = None if time is None else _checked_time(time)
        if self._origin is None:
            return 0.0 if time is None else time
        return self.end if time is None or abs(time - self.end) > MAX_GAP_S else time

    def wait(self, now: float) -> None:
        """Hear silence up to `now` once no sound has come for a while, at the pace of the clock."""
        rows = math.floor((now - self._quiet_since - SILENCE_AFTER_S) * FPS)
        if rows <= 0:
            return
        self._origin = 0.0 if self._origin is None else self._origin
        self._quiet_since += rows / FPS
        self._in_silence = True
        self._fill(min(rows, round(MAX_WAITING_S * FPS)) * SAMPLES_PER_FRAME)

    def _fill(self, count: int) -> None:
        self.silence_filled_s += count / SAMPLE_RATE
        self._append(np.zeros(count, np.float32), math.nan)

    def _append(self, samples: np.ndarray, arrived: float) -> None:
        self._samples = np.concatenate([self._samples, samples])
        self._arrived = np.concatenate([self._arrived, np.full(len(samples), arrived)])
        self._recent = np.concatenate([self._recent, samples])[-round(LEVEL_S * SAMPLE_RATE) :]
        late = len(self._samples) - round(MAX_WAITING_S * SAMPLE_RATE)
        if late > 0:
            late = -(-late // SAMPLES_PER_FRAME) * SAMPLES_PER_FRAME
            self.audio_dropped_s += late / SAMPLE_RATE
            self._skip(late)

    def _skip(self, count: int) -> None:
        self._samples, self._arrived = self._samples[count:], self._arrived[count:]
        self._start += count

    # What is there

    @property
    def _end_index(self) -> int:
        return self._start + len(self._samples)

    @property
    def end(self) -> float:
        """The speaker's time at the end of the sound."""
        return (self._origin or 0.0) + self._end_index / SAMPLE_RATE

    @property
    def rows_waiting(self) -> int:
        return len(self._samples) // SAMPLES_PER_FRAME

    def take(self, most: int) -> list[Row]:
        """The oldest rows that wait, at most so many."""
        count = min(self.rows_waiting, most)
        rows = []
        for _ in range(count):
            arrived = self._arrived[:SAMPLES_PER_FRAME]
            end = self._origin + (self._start + SAMPLES_PER_FRAME) / SAMPLE_RATE
            newest = np.fmax.reduce(arrived)
            rows.append(Row(self._samples[:SAMPLES_PER_FRAME].copy(), end, float(arrived[0]), float(newest)))
            self._skip(SAMPLES_PER_FRAME)
        return rows

    def face_before(self, end: float) -> np.ndarray | None:
        """The newest codes [50] from before `end`, or None where the speaker is not seen then."""
        known = [(time, order) for order, (time, _) in enumerate(self._codes) if end - SEEN_S - _SAME_S <= time < end - _SAME_S]
        return self._codes[max(known)[1]][1] if known else None

    def level(self, now: float) -> float:
        """Root mean square of the last half second of sound; 0 where none has come in it."""
        if len(self._recent) == 0 or now - self._quiet_since > LEVEL_S:
            return 0.0
        return float(np.sqrt(np.mean(np.square(self._recent))))


def _checked_sound(samples: np.ndarray) -> np.ndarray:
    samples = np.asarray(samples)
    if samples.ndim != 1 or samples.dtype.kind != "f":
        raise ValueError(f"the sound is {samples.dtype} {list(samples.shape)}, expected float32 [n], mono")
    samples = samples.astype(np.float32)
    bad = np.flatnonzero(~(np.abs(samples) <= LOUDEST))
    if len(bad):
        raise ValueError(f"sample {bad[0]} of the sound is {samples[bad[0]]}, expected -1..1")
    return samples


def _checked_time(time: float) -> float:
    if not math.isfinite(time):
        raise ValueError(f"the time is {time}, expected seconds")
    return float(time)
