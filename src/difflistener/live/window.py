"""No queue to the page: room for the newest item only, whether the way there has room for another frame, and how fine a one.

Knows nothing of sockets; times are seconds of a clock.
"""

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable

from difflistener.motion import FPS

SLACK_S = 0.15
"""How much longer than the quickest of late a frame may be under way before no more are sent."""
FIRST_TRIP_S = 0.5
"""What a frame's way is taken for before one was timed."""
RATE_S = 1.0
"""Over which frames are counted."""
PROBE_S = 1.0
"""After so long without news of the page, one frame is sent to see."""


class Fineness:
    """How finely pictures are encoded: coarser when the way is full, finer again while it is not."""

    FULL, HALF = (45, 88), (45, 80)  # least and best JPEG quality, of whole pictures and of those at half the size
    COARSER, FINER = 3.0, 0.2  # a frame

    def __init__(self):
        self.quality: float = self.FULL[1]
        self.is_half = False

    def skipped(self) -> None:
        """A frame was held back."""
        self.quality -= self.COARSER
        if self.quality < self.FULL[0] and not self.is_half:
            self.is_half, self.quality = True, self.HALF[1]
        self.quality = max(self.quality, self.HALF[0])

    def sent(self) -> None:
        """A frame went out."""
        self.quality += self.FINER
        best = (self.HALF if self.is_half else self.FULL)[1]
        if self.quality > best:
            # Best at half the size takes as many bytes as a middling whole picture.
            self.quality = (self.FULL[0] + self.FULL[1]) / 2 if self.is_half else best
            self.is_half = False


class Newest:
    """Room for one item: a newer one takes its place."""

    def __init__(self):
        self.skipped = 0
        self._item = None
        self._new = asyncio.Event()

    def put(self, item) -> None:
        self.skipped += self._item is not None
        self._item = item
        self._new.set()

    async def get(self):
        """The newest item, once there is one; it is taken out."""
        await self._new.wait()
        self._new.clear()
        item, self._item = self._item, None
        return item


class Window:
    """Whether another frame may go on its way to the page, judged by how long the last ones took.

    A socket, and more so a forwarded port, takes in seconds of pictures before it blocks: they would be seen late. So the page
    says which frame it has shown, and no more are sent while one is under way for longer than the quickest of late and some.
    Where that has held frames back, even the quickest may have stood in line: from time to time the way is let run empty, and
    the next frame shows how long it is.
    """

    KEPT_S = 10.0

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        self._clock = clock
        self._under_way: deque[tuple[int, float]] = deque(maxlen=1000)
        self._trips: deque[tuple[float, float]] = deque()  # (when, seconds), the quickest first
        self._shown: deque[float] = deque()  # when the page showed a frame, of late
        self._begun = math.inf  # when it showed the first
        self._news_at = -math.inf
        self._held_back = self._empties = False
        self._lone: int | None = None  # number of a frame that went alone

    def has_room(self) -> bool:
        now = self._clock()
        if not self._under_way:
            return True
        oldest, newest = self._under_way[0][1], self._under_way[-1][1]
        if now - max(newest, self._news_at) >= PROBE_S:
            return True
        quickest = self._trips[0][1] if self._trips else FIRST_TRIP_S
        room_s = quickest + SLACK_S
        has_room = not self._empties and now - oldest <= room_s and len(self._under_way) < max(2, self._rate(now) * room_s)
        self._held_back |= not has_room
        return has_room

    def _rate(self, now: float) -> float:
        """Frames a second that the page shows now."""
        while self._shown and self._shown[0] < now - RATE_S:
            self._shown.popleft()
        return FPS if now - self._begun < RATE_S else len(self._shown) / RATE_S

    def sent(self, number: int) -> None:
        """Frame `number`, larger than all before, was sent."""
        if self._empties and not self._under_way:
            self._lone, self._empties = number, False
        self._under_way.append((number, self._clock()))

    def seen(self, number: int) -> None:
        """The page has shown frame `number`; those before it are no longer under way either."""
        now, sent = self._clock(), None
        self._shown.append(now)
        self._begun = min(self._begun, now)
        while self._under_way and self._under_way[0][0] <= number:
            sent = self._under_way.popleft()
        if sent is None or sent[0] != number:
            return
        self._news_at = now
        trip = now - sent[1]
        if number == self._lone:
            self._trips.clear()
            self._held_back = False
        while self._trips and self._trips[-1][1] >= trip:
            self._trips.pop()
        self._trips.append((now, trip))
        if self._trips[0][0] < now - self.KEPT_S:
            self._empties = self._held_back
            if not self._held_back:
                self._trips.popleft()
