"""Model of what the threads of a simulated machine share, and what its messages cost."""

import heapq
import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count


@dataclass(frozen=True)
class Machine:
    """Cores that threads share, and the cost of a message between processes."""

    cores: float = math.inf
    contention: float = 1.0
    """Factor by which work takes longer while all cores are busy: they share caches and memory."""
    copy: float = 0.0
    """Seconds of the sender's own thread, per byte."""
    receive: float = 0.0
    """Seconds of a thread at either end, per byte."""
    scalars: float = 0.0
    """Seconds from the sending to the arrival of scalars."""
    message: float = 0.0
    """Seconds of a thread at either end, for each message of `torch.distributed.pipelining`, whatever its size."""

    def speed(self, threads: int) -> float:
        """Speed of each of so many threads with work; 1 is that of one alone."""
        if self.cores <= 1:
            return 1 / threads
        busy = (min(threads, self.cores) - 1) / (self.cores - 1) if self.cores < math.inf else 0.0
        return min(1.0, self.cores / threads) / (1 + (self.contention - 1) * busy)


class Cores:
    """Processor sharing: work ends in the order of virtual time, which passes at the speed of every thread."""

    def __init__(self, machine: Machine) -> None:
        self._speed, self._now, self._virtual = machine.speed, 0.0, 0.0
        self._ends: list[tuple[float, int, Callable[[], None]]] = []
        self._number = count()

    def add(self, now: float, seconds: float, done: Callable[[], None]) -> None:
        self._advance(now)
        heapq.heappush(self._ends, (self._virtual + seconds, next(self._number), done))

    def next(self) -> float:
        if not self._ends:
            return math.inf
        return self._now + max(0.0, self._ends[0][0] - self._virtual) / self._speed(len(self._ends))

    def pop(self, now: float) -> Callable[[], None]:
        self._advance(now)
        return heapq.heappop(self._ends)[2]

    def _advance(self, now: float) -> None:
        if self._ends:
            self._virtual += (now - self._now) * self._speed(len(self._ends))
        self._now = now
