"""Turns rows of the speaker into motion, hop by hop, in a thread of its own: audio features, the brain, and its memory.

The memory holds the last seconds, so that the manner can change without a break, and another sample of the past can be drawn
beside the present. Knows nothing of pictures. Axes: n rows, A audio feature, D = 56 motion.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from time import perf_counter
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from difflistener.brain.model import Brain
from difflistener.brain.stream import Stream, Streams
from difflistener.live.meter import Meter
from difflistener.live.playhead import Beat, Playhead
from difflistener.live.senses import Row, Senses
from difflistener.live.worker import Worker
from difflistener.motion import FPS, NUM_EXPRESSION, NUM_MOTION
from difflistener.prepare.audio import AudioStream, encoder_from_settings

AGAIN_S = 10.0
"""Longest stretch that can be reacted to again."""
LEAST_AGAIN_S = 1.0


class Hop(NamedTuple):
    """n rows of what the listener perceived and how it answered, for a recording: one hop follows the other without a gap."""

    samples: np.ndarray  # [n * 640] float32, filled-in silence included
    expression: np.ndarray  # [n, 50] float32, zeros where the speaker was not seen
    seen: np.ndarray  # [n] bool
    motion: np.ndarray  # [n, 56] float32


@dataclass
class _Moment:
    """A row on its way through the brain; what is None is not known yet, `face` also where the speaker was not seen."""

    row: Row
    feature: np.ndarray | None = None  # [A]
    face: np.ndarray | None = None  # [50]
    motion: np.ndarray | None = None  # [56]


@dataclass
class _Conversation:
    """All that is forgotten at once."""

    memory: deque[_Moment]
    """Moments that were answered."""
    ears: AudioStream | None = None
    stream: Stream | None = None
    heard: deque[_Moment] = field(default_factory=deque)
    """Moments without a feature."""
    felt: deque[_Moment] = field(default_factory=deque)
    """Moments with a feature, not in the stream yet."""
    asked: deque[_Moment] = field(default_factory=deque)
    """Moments in the stream, not answered yet."""
    answered: int = 0
    sample: int = 0


class Mind(Worker):
    """The brain at work on `senses`; motion goes to `head`. `wake` is also the lock of `senses`.

    Args:
        manner: arguments of `Stream`: seed, attitude and so on.

    Raises:
        UserError: as `Stream`, and for features that this version cannot make.
    """

    def __init__(self, brain: Brain, senses: Senses, head: Playhead, manner: dict, clock: Callable[[], float],
                 record: Callable[[Hop], None] | None = None):
        super().__init__("brain")
        self.features_ms, self.brain_ms, self.faces = Meter(clock), Meter(clock), Meter(clock, window_s=5.0)
        self._brain, self._senses, self._head, self._manner = brain, senses, head, manner
        self._clock, self._record = clock, record
        self._encoder = encoder_from_settings(brain.config.audio, brain.config.audio_settings)
        Stream(brain, **manner)
        config = brain.config
        self._hop, self._needed = config.block, config.block + config.look_ahead
        self._lead = -(-max(config.context, config.history) // config.block) * config.block
        self._talk = self._new_conversation()
        self._again: _Again | None = None
        self._changed = False
        self._work_since = math.inf
        self._feeling_ms = 0.0

    # What others ask of it

    def change(self, manner: dict) -> None:
        """Take another manner from the next hop on. Raises `UserError` where it cannot."""
        manner = self._manner | manner
        Stream(self._brain, **manner)
        with self.wake:
            self._manner, self._changed = manner, True

    def clear(self) -> None:
        """Forget all; the next row is the first."""
        with self.wake:
            self._senses.clear(self._clock())
            self._talk, self._again = self._new_conversation(), None
            self._head.clear()

    def react_again(self, seconds: float) -> bool:
        """Begin another sample of the last `seconds`. False where there is less than a second to react to."""
        with self.wake:
            talk = self._talk
            if len(talk.memory) < LEAST_AGAIN_S * FPS:
                return False
            talk.sample += 1
            count = round(min(max(seconds, LEAST_AGAIN_S), AGAIN_S) * FPS)
            self._again = _Again(self._brain, self._manner, talk.sample, list(talk.memory)[-count - self._lead :], count)
            self.wake.notify()
            return True

    def rouse(self) -> None:
        """Go to work if there is a row of sound; to be called with `wake` held."""
        if self._senses.rows_waiting:
            self.wake.notify()

    @property
    def is_late(self) -> bool:
        """Whether it takes longer than a frame, or more than a hop of sound waits."""
        return self._clock() - self._work_since > 1 / FPS or self._senses.rows_waiting > self._hop

    @property
    def is_idle(self) -> bool:
        return math.isinf(self._work_since) and not self._senses.rows_waiting and self._again is None

    def _new_conversation(self) -> _Conversation:
        return _Conversation(deque(maxlen=round(AGAIN_S * FPS) + self._lead))

    # In the thread

    def _prepare(self) -> None:
        self._encoder.stream()  # It may have weights to load.
        Stream(self._brain, **self._manner).push(torch.zeros(self._needed, self._brain.config.audio_dim))

    def _work(self) -> None:
        while True:
            with self.wake:
                while not (self.closing or self._senses.rows_waiting or self._again):
                    self.wake.wait()
                if self.closing:
                    return
                rows, talk, again = self._senses.take(self._hop), self._talk, self._again
                self._work_since = self._clock() if rows else math.inf
            if rows:
                self._feel(talk, rows)
                if len(talk.asked) + len(talk.felt) >= self._needed:
                    self._react(talk)
                self._work_since = math.inf
            elif not again.go_on():
                with self.wake:
                    if self._again is again:
                        self._again = None
                        self._head.put_again(again.motion)

    def _feel(self, talk: _Conversation, rows: list[Row]) -> None:
        begun = perf_counter()
        talk.ears = talk.ears or self._encoder.stream()
        talk.heard.extend(map(_Moment, rows))
        for feature in talk.ears.push(np.concatenate([row.samples for row in rows])):
            talk.heard[0].feature = feature
            talk.felt.append(talk.heard.popleft())
        self._feeling_ms += 1e3 * (perf_counter() - begun)

    def _react(self, talk: _Conversation) -> None:
        with self.wake:
            # Only now, so that pictures that were still being tracked count.
            for moment in talk.felt:
                moment.face = self._senses.face_before(moment.row.end)
            manner, changed, self._changed = self._manner, self._changed, False
        self.features_ms.add(self._feeling_ms)
        self._feeling_ms = 0.0
        begun = perf_counter()
        new = list(talk.felt)
        talk.felt.clear()
        talk.asked.extend(new)
        if talk.stream is None or changed:
            past = [moment.motion for moment in talk.memory][-self._brain.config.history :]
            talk.stream = Stream(self._brain, **manner, start=torch.from_numpy(np.stack(past)) if past else None)
            new = list(talk.asked)
        motion = talk.stream.push(*_perceived(new, self._brain.config.uses_face)).numpy()
        self.brain_ms.add(1e3 * (perf_counter() - begun))
        arrived = [moment.row.newest for moment in talk.asked]
        newest = float(np.fmax.reduce(arrived))
        answered = [talk.asked.popleft() for _ in motion]
        beats = []
        for k, (moment, values) in enumerate(zip(answered, motion)):
            moment.motion = values
            self.faces.add(float(moment.face is not None))
            since = moment.row.first if k % self._hop == 0 else math.nan
            beats.append(Beat(values, talk.answered + k, newest, since))
        with self.wake:
            if self._talk is not talk:
                return
            talk.answered += len(answered)
            talk.memory.extend(answered)
            self._head.put(beats, self._clock())
        if self._record is not None:
            _, expression, seen = _perceived(answered, True)
            samples = np.concatenate([moment.row.samples for moment in answered])
            self._record(Hop(samples, expression.numpy(), seen.numpy(), motion))


def _perceived(moments: list[_Moment], sees: bool) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Features [n, A], expression [n, 50] and whether it was seen [n]; both None for a brain that does not look."""
    features = torch.from_numpy(np.stack([moment.feature for moment in moments]))
    if not sees:
        return features, None, None
    nothing = np.zeros(NUM_EXPRESSION, np.float32)
    faces = np.stack([nothing if moment.face is None else moment.face for moment in moments])
    return features, torch.from_numpy(faces), torch.tensor([moment.face is not None for moment in moments])


class _Again:
    """Another sample of what was answered last, made a hop at a time.

    The moments before the stretch are perceived as they were, with the motion that they had: the samples begin alike.
    """

    def __init__(self, brain: Brain, manner: dict, sample: int, moments: list[_Moment], count: int):
        self._brain, self._manner, self._sample = brain, manner, sample
        hop = brain.config.block
        whole = len(moments) // hop * hop
        self._moments = moments[len(moments) - whole :]
        self._lead = max(whole - count // hop * hop, 0)
        self._streams: Streams | None = None
        self._done = 0
        self._parts: list[Tensor] = []

    @property
    def motion(self) -> np.ndarray:
        """[n, 56], once it is done."""
        return torch.cat(self._parts)[self._lead :].numpy()

    def go_on(self) -> bool:
        """Make one hop more. False when that was the last."""
        if self._streams is None:
            manner = dict(self._manner)
            self._streams = Streams(self._brain, manner.pop("seed"), [self._sample], **manner)
        first, self._done = self._done, self._done + self._brain.config.block
        moments = self._moments[first : self._done]
        kept = np.full((len(moments), NUM_MOTION), np.nan, np.float32)
        for k, moment in enumerate(moments[: max(self._lead - first, 0)]):
            kept[k] = moment.motion
        inputs = [None if part is None else part[None] for part in _perceived(moments, self._brain.config.uses_face)]
        self._parts.append(self._streams.push(*inputs, fixed=torch.from_numpy(kept)[None])[0])
        if self._done < len(self._moments):
            return True
        self._parts.append(self._streams.finish()[0])
        return False
