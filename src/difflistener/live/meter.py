"""Figures of the last minute, in constant memory. Safe from several threads."""

import threading
from collections import deque
from collections.abc import Callable

import numpy as np

WINDOW_S = 60.0
MOST = 4096


class Meter:
    """Values with the times at which they came, by `clock`."""

    def __init__(self, clock: Callable[[], float], window_s: float = WINDOW_S):
        self._clock, self._window_s = clock, window_s
        self._values: deque[tuple[float, float]] = deque(maxlen=MOST)
        self._lock = threading.Lock()

    def add(self, value: float) -> None:
        with self._lock:
            self._values.append((self._clock(), value))

    def recent(self) -> list[float]:
        """The values within the window, oldest first."""
        now = self._clock()
        with self._lock:
            while self._values and self._values[0][0] <= now - self._window_s:
                self._values.popleft()
            return [value for _, value in self._values]

    def summary(self) -> dict[str, float | None]:
        """The median and the 95th percentile, None without a value."""
        values = self.recent()
        if not values:
            return {"p50": None, "p95": None}
        return {name: round(float(np.percentile(values, rank)), 2) for name, rank in (("p50", 50), ("p95", 95))}
