"""A listener that reacts while somebody talks: sound and pictures of the speaker in, pictures of the listener out.

Tracking, features with the brain, and the body each have a thread of their own, so that none waits for another and the event
loop for none of them. The clock is the speaker's sound: 40 ms of it are one row, and one frame of motion. Motion is what
`synthesize` generates of the same sound and face, bit for bit on the CPU. Knows nothing of networks, sockets or files.
Axes: n samples mono 16 kHz, H, W pixels, D = 56 motion; times in seconds.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Callable
from time import perf_counter
from typing import NamedTuple

import numpy as np
import torch

from difflistener.body.model import Body
from difflistener.body.render import Renderer
from difflistener.brain.model import Brain
from difflistener.errors import UserError
from difflistener.live.meter import Meter
from difflistener.live.mind import Hop, Mind
from difflistener.live.playhead import Playhead
from difflistener.live.senses import TALKING, Senses
from difflistener.live.worker import Worker
from difflistener.motion import FPS, require_same_basis

__all__ = ["Frame", "Hop", "Listener"]

FPS_WINDOW_S = 5.0
MIN_PICTURE = 16
"""Least height and width of a picture of the speaker."""


class Frame(NamedTuple):
    """A picture of the listener, for now."""

    picture: np.ndarray  # [H, W, 3] uint8
    motion: np.ndarray  # [56] float32, what the picture shows
    number: int  # counts the 25 frames a second that are due; a gap is frames that were skipped
    heard: float  # when the newest sound arrived that this motion used, by `clock`; NaN before any sound and in filled-in silence
    age_ms: float  # from then until now; NaN like `heard`
    again: bool  # whether it shows another sample of the last seconds (`react_again`); `heard` is then of the present beneath it
    row: int  # the frame of motion shown, counted from the start or the last `clear`; -1 where none is (eased, or again)


class Listener:
    """One person who listens.

    >>> async with Listener(brain, body) as listener:
    ...     listener.push_audio(samples)           # from anywhere, whenever there is some
    ...     async for frame in listener.frames():  # 25 a second
    ...         show(frame.picture)

    Args:
        seed, attitude, audio_guidance, face_guidance, num_steps: as of `Brain.generate`.
        track: whether `push_video` may be used; the tracker is only loaded at the first picture.
        clock: seconds that never go back.
        record: called with every `Hop`, in the brain's thread: it must be quick.

    Raises:
        UserError: a brain that does not stream, a body of another basis, an unknown attitude, and so on.
    """

    def __init__(self, brain: Brain, body: Body, *, seed: int = 0, attitude: str | None = None,
                 audio_guidance: float | None = None, face_guidance: float | None = None, num_steps: int | None = None,
                 track: bool = True, clock: Callable[[], float] = time.monotonic, record: Callable[[Hop], None] | None = None):
        require_same_basis(brain.config.basis, body.config.basis, "given", "given")
        self._brain, self._clock, self._track = brain, clock, track
        self._senses = Senses(clock())
        self._head = Playhead(brain.motion.mean.cpu().numpy())
        manner = {"seed": seed, "attitude": attitude, "audio_guidance": audio_guidance, "face_guidance": face_guidance,
                  "num_steps": num_steps}
        self._mind = Mind(brain, self._senses, self._head, manner, clock, record)
        self._painter = Painter(body, self._head.rest, clock)
        self._eyes = Eyes(brain.landmark_basis, self._see, clock)
        self._workers = (self._mind, self._painter, self._eyes)
        self._delay_ms, self._handed_out = Meter(clock), Meter(clock, FPS_WINDOW_S)
        self._frames = self._dropped = self._brain_late = 0
        self._number = 0
        self._viewer: object | None = None
        self._begun: float | None = None
        self._closed = False
        self._threads_before: int | None = None
        self._sleep = asyncio.sleep

    async def __aenter__(self) -> Listener:
        """Start the threads. Raises `UserError` where the brain's features cannot be made here."""
        self._threads_before = torch.get_num_threads()
        try:
            for worker in self._workers:
                await worker.start()
        except BaseException:
            await self.close()
            raise
        self._mind.clear()
        return self

    async def __aexit__(self, *_) -> None:
        await self.close()

    async def close(self) -> None:
        """End the threads and wait for them; `frames` ends too. Closing twice is closing once."""
        self._closed = True
        for worker in self._workers:
            worker.end()
        for worker in self._workers:
            await worker.ended()
        if self._threads_before is not None:
            torch.set_num_threads(self._threads_before)

    @property
    def sees(self) -> bool:
        """Whether `push_video` is of use: the brain looks at faces, in a landmark basis, and `track` is on."""
        return self._track and self._brain.sees

    # What comes in: all of these return at once, from any thread, and do nothing after `close`

    def push_audio(self, samples: np.ndarray, time: float | None = None) -> None:
        """Sound [n] of the speaker, float, mono, 16 kHz, within -1..1.

        Args:
            time: of the first sample, by the speaker's clock; None follows on what came before. A gap of up to 1 s is filled
                with silence, an overlap is cut; a larger jump either way restarts the clock. Deviations up to 10 ms
                are jitter.

        More than 1 s that waits for the brain is too late: the oldest is dropped, and counted.

        Raises:
            ValueError: another shape or type, a sample that is no finite number or far outside, a time that is none.
        """
        if self._closed:
            return
        with self._mind.wake:
            self._senses.hear(samples, time, self._clock())
            self._mind.rouse()

    def push_video(self, frame: np.ndarray, time: float | None = None) -> None:
        """A picture [H, W, 3] uint8 RGB of the speaker, which must not change afterwards. Only the newest waits for the tracker.

        Args:
            time: when it was taken, by the clock of `push_audio`; None, or a time more than 1 s from the sound's, is now.

        Raises:
            ValueError: another shape or type, a time that is none.
            UserError: this listener does not see (`sees`), or tracking does not work here (its package is missing).
        """
        if self._closed:
            return
        if not self.sees:
            raise UserError("This listener does not see.",
                            "Use a brain trained with faces in a landmark basis, and track=True; or push expression codes.")
        if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3 or min(frame.shape[:2]) < MIN_PICTURE:
            raise ValueError(f"the picture is {frame.dtype} {list(frame.shape)}, expected uint8 [H, W, 3], "
                             f"H and W {MIN_PICTURE} or more")
        if isinstance(self._eyes.failure, UserError):
            raise self._eyes.failure
        with self._mind.wake:
            time = self._senses.when(time)
        self._eyes.look(frame, time)

    def push_expression(self, codes: np.ndarray, time: float | None = None) -> None:
        """Expression codes [50] of the speaker in the brain's basis, from a tracker of one's own, instead of `push_video`.

        Every row of the brain gets the newest codes from before its end, as long as they are not older than 0.2 s; else the
        speaker is not seen. `time` as in `push_video`. Raises `ValueError` for another shape and for NaN.
        """
        if not self._closed:
            self._see(codes, time)

    def _see(self, codes: np.ndarray, time: float | None) -> None:
        with self._mind.wake:
            self._senses.see(codes, time)

    # What comes out

    async def frames(self) -> AsyncIterator[Frame]:
        """25 frames a second by `clock`, until `close`. A frame that is late is skipped, never queued; what nobody waits for is
        not drawn. There is one consumer: another call takes over, and the one before ends.

        Where motion is missing, because the brain is late or the sound was cut, the last motion eases out and the head drifts to
        rest; after 0.5 s without sound the listener hears silence and lives on. Raises what a thread died of.
        """
        self._viewer = viewer = object()
        self._head.watched = True
        begun, tick = self._clock(), 0
        self._begun = begun if self._begun is None else self._begun
        try:
            while True:
                early = begun + tick / FPS - self._clock()
                if early > 0:
                    await self._sleep(early)
                if self._closed or self._viewer is not viewer:
                    return
                now = self._clock()
                missed = max(math.floor((now - begun) * FPS + 1e-6) - tick, 0)
                frame = await self._frame(now, missed)
                if frame is None or self._viewer is not viewer:
                    return
                tick += 1 + missed
                yield frame
        finally:
            if self._viewer is viewer:
                self._viewer, self._head.watched = None, False

    async def _frame(self, now: float, missed: int) -> Frame | None:
        """What is due at `now`, after so many frames that nobody could take. None where the listener was closed meanwhile."""
        with self._mind.wake:
            self._senses.wait(now)
            self._mind.rouse()
        self._dropped += missed
        self._number += missed
        pose = self._head.take(now, 1 + missed)
        eased = pose.beat is None and not pose.again
        self._brain_late += eased and self._mind.is_late
        for worker in self._workers:
            if worker.failure is not None and not (worker is self._eyes and isinstance(worker.failure, UserError)):
                raise worker.failure
        picture = await self._painter.paint(pose.motion)
        if picture is None:
            return None
        done = self._clock()
        if pose.beat is not None and not pose.again and not math.isnan(pose.beat.since):
            self._delay_ms.add(1e3 * (done - pose.beat.since))
        self._handed_out.add(done)
        self._frames += 1
        self._number += 1
        row = -1 if eased or pose.again else pose.beat.row
        return Frame(picture, pose.motion, self._number - 1, self._head.heard, 1e3 * (done - self._head.heard), pose.again, row)

    def react_again(self, seconds: float = 5.0) -> None:
        """Show another sample of the reaction to the last `seconds` (1 to 10), or to what there is, once, as soon as it is made.

        The listener goes on listening meanwhile, and is back in the present afterwards. Every call is a further sample.

        Raises:
            UserError: less than 1 s was heard.
        """
        if not self._closed and not self._mind.react_again(seconds):
            raise UserError("There is nothing to react to again yet.", "Talk for a second or more first.")

    def change(self, **manner) -> None:
        """React in another manner from now on: any of seed, attitude, audio_guidance, face_guidance. The past is kept.

        Raises:
            UserError: as `Listener`; all is left as it was.
        """
        unknown = manner.keys() - {"seed", "attitude", "audio_guidance", "face_guidance"}
        if unknown:
            raise TypeError(f"change() has no {', '.join(sorted(unknown))}")
        if not self._closed:
            self._mind.change(manner)

    def clear(self) -> None:
        """Forget the conversation: the next row is the first. The counts of `stats` stay."""
        if not self._closed:
            self._mind.clear()

    def stats(self) -> dict:
        """How it is going, ready for JSON (None where there is nothing to measure yet):

        frames (handed out), fps (of the last 5 s), dropped (frames of motion or of time that were due and not shown), eased
        (frames shown without motion), brain_late (those of them while the brain was behind the sound), silence_filled_s,
        audio_dropped_s, video_skipped (pictures), face_seen (share of the rows of the last 5 s), delay_ms {p50, p95} (from the
        arrival of the first sound of a hop until the first frame that used it was handed out, over the last 60 s), track_ms,
        features_ms, brain_ms, body_ms {p50, p95} (of one run each: a picture, a hop, a hop, a frame; the last 60 s), level (root
        mean square of the last 0.5 s of sound), talking (whether that is a voice).
        """
        now = self._clock()
        with self._mind.wake:
            level = self._senses.level(now)
            filled, lost = self._senses.silence_filled_s, self._senses.audio_dropped_s
        faces = self._mind.faces.recent()
        fps = None
        if self._begun is not None and now >= self._begun + 1.0:
            fps = round(len(self._handed_out.recent()) / min(now - self._begun, FPS_WINDOW_S), 2)
        return {"frames": self._frames, "fps": fps, "dropped": self._dropped + self._head.dropped, "eased": self._head.eased,
                "brain_late": self._brain_late, "silence_filled_s": round(filled, 3), "audio_dropped_s": round(lost, 3),
                "video_skipped": self._eyes.skipped, "face_seen": round(sum(faces) / len(faces), 3) if faces else None,
                "delay_ms": self._delay_ms.summary(), "track_ms": self._eyes.track_ms.summary(),
                "features_ms": self._mind.features_ms.summary(), "brain_ms": self._mind.brain_ms.summary(),
                "body_ms": self._painter.body_ms.summary(), "level": round(level, 4), "talking": level > TALKING}


class Eyes(Worker):
    """Tracks the newest picture of the speaker, and tells `see` its codes."""

    def __init__(self, basis, see: Callable[[np.ndarray, float], None], clock: Callable[[], float]):
        super().__init__("eyes")
        self.skipped = 0
        self.track_ms = Meter(clock)
        self._basis, self._tell = basis, see
        self._waiting: tuple[np.ndarray, float] | None = None

    def look(self, frame: np.ndarray, time: float) -> None:
        with self.wake:
            self.skipped += self._waiting is not None
            self._waiting = frame, time
            self.wake.notify()

    def _work(self) -> None:
        tracker = None
        try:
            while True:
                with self.wake:
                    while not (self.closing or self._waiting):
                        self.wake.wait()
                    if self.closing:
                        return
                    (frame, time), self._waiting = self._waiting, None
                if tracker is None:
                    from difflistener.live.tracker import SpeakerTracker

                    tracker = SpeakerTracker(self._basis)
                begun = perf_counter()
                codes = tracker.push(frame)
                self.track_ms.add(1e3 * (perf_counter() - begun))
                if codes is not None:
                    self._tell(codes, time)
        finally:
            if tracker is not None:
                tracker.close()


class Painter(Worker):
    """Draws the body in a pose, when asked."""

    def __init__(self, body: Body, rest: np.ndarray, clock: Callable[[], float]):
        super().__init__("body")
        self.body_ms = Meter(clock)
        self._renderer, self._rest = Renderer(body), rest
        self._asked: tuple[np.ndarray, asyncio.Future] | None = None

    async def paint(self, motion: np.ndarray) -> np.ndarray | None:
        """The picture [H, W, 3] uint8 of motion [56]; None where the thread ends, or somebody else asks, before."""
        future = asyncio.get_running_loop().create_future()
        with self.wake:
            self._refuse()
            if self.closing:
                return None
            self._asked = motion, future
            self.wake.notify()
        return await future

    def _refuse(self) -> None:
        if self._asked is not None:
            self.tell(self._asked[1])
        self._asked = None

    def _prepare(self) -> None:
        self._draw(self._rest)

    def _draw(self, motion: np.ndarray) -> np.ndarray:
        return self._renderer(torch.from_numpy(motion)[None])[0].cpu().numpy()

    def _work(self) -> None:
        try:
            while True:
                with self.wake:
                    while not (self.closing or self._asked):
                        self.wake.wait()
                    if self.closing:
                        return
                    (motion, future), self._asked = self._asked, None
                begun = perf_counter()
                try:
                    picture = self._draw(motion)
                except Exception as error:
                    self.tell(future, error=error)
                    raise
                self.body_ms.add(1e3 * (perf_counter() - begun))
                self.tell(future, picture)
        finally:
            with self.wake:
                self.closing = True
                self._refuse()
