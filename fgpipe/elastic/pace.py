"""How fast a block goes, so that a gap below it changes that as little as its buffer allows."""

import time
from collections import deque

SHARE, FEW = 0.2, 4
"""Weight of the newest interval in the mean, and intervals before there is one."""
LATE = 1.5
"""Intervals after a batch of the stream by which the next one is late."""
WINDOW, MOST = 10.0, 10_000
"""Seconds that a rate is taken over, and steps at most."""
LONGEST = 1.0
"""Seconds that a block waits before it looks whether the run ends."""


class Pace:
    """Mean seconds from one step of the stream to the next, as long as they follow each other."""

    def __init__(self) -> None:
        self.interval = 0.0
        self._count, self._last, self._again = 0, 0.0, False
        self._recent: deque[float] = deque(maxlen=MOST)

    def begin(self, *, extra: bool) -> None:
        """A step begins."""
        now = time.monotonic()
        if not extra and not self._again and self._last:
            self._count += 1
            took = min(now - self._last, 4 * self.interval) if self._count > FEW else now - self._last
            self.interval += max(SHARE, 1 / self._count) * (took - self.interval)
        self._last, self._again = now, extra
        self._recent.append(now)

    @property
    def patience(self) -> float:
        """Seconds to wait for a new batch before an extra step: until it is late, or an interval after the last extra one."""
        if not self.known:
            return LONGEST
        due = self._last + self.interval * (1 if self._again else LATE)
        return min(LONGEST, max(0.0, due - time.monotonic()))

    @property
    def rate(self) -> float:
        """Steps per second of late, extra ones included."""
        now = time.monotonic()
        recent = [each for each in self._recent.copy() if now - each < WINDOW]
        return max(0, len(recent) - 1) / (now - recent[0]) if recent else 0.0

    @property
    def known(self) -> bool:
        """Whether there were steps enough to tell."""
        return self._count >= FEW
