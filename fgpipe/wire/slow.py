"""Links that are slower than they are: a rate and a round trip (`link.*`), for studies on one host without root.

Slow boundaries cut the pipeline of processes into sites. Every two sites are joined by a link of their own, which each
process has to itself: a message takes its size over the rate to leave, one after another, and half a round trip to
arrive. It is the sender that keeps it that long, in a thread; nothing is lost, and the order is kept.
"""

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate

from fgpipe.config import LinkConfig
from fgpipe.config.units import bits_per_second, seconds


@dataclass(frozen=True)
class SlowLinks:
    """Which processes a slow link joins, and its figures."""

    rate: float | None
    """Bits per second in each direction; None is as fast as it goes."""
    latency: float
    """Seconds one way."""
    sites: tuple[int, ...]
    """The site of the process at each position of the pipeline."""

    @classmethod
    def of(cls, config: LinkConfig, processes: int) -> "SlowLinks":
        """The links of a configuration that `fgpipe.config` has checked."""
        rate = None if config.rate is None else bits_per_second(config.rate)
        latency = 0.0 if config.rtt is None else seconds(config.rtt) / 2
        between = range(processes - 1) if config.between is None else config.between
        slow = between if rate is not None or latency else ()
        return cls(rate, latency, tuple(accumulate(int(position - 1 in slow) for position in range(processes))))

    def delay(self, position: int, other: int, fail: Callable[[Exception], None]) -> "Delay | None":
        """Delay of messages from one position to another; None between processes of one site.

        Args: fail: told the error of a message that could not be sent.
        """
        return Delay(self.rate, self.latency, fail) if self.sites[position] != self.sites[other] else None


class Delay:
    """One direction of a slow link: sends each message in a thread, when it has reached the other end."""

    def __init__(self, rate: float | None, latency: float, fail: Callable[[Exception], None]) -> None:
        self._seconds_per_byte, self._latency, self._fail = 8 / rate if rate else 0.0, latency, fail
        self._free = 0.0
        """Time when all that was put has left (`time.monotonic`)."""
        self._waiting: deque[tuple[float, float, Callable[[], None]]] = deque()
        """Time when a message has left, when it arrives, and what sends it; the first one stays here while it is sent."""
        self._changed = threading.Condition()
        self._closing, self._failed = False, False
        self._thread = threading.Thread(target=self._run, daemon=True, name="slow-link")
        self._thread.start()

    def put(self, size: int, send: Callable[[], None], room: int | None = None) -> None:
        """Have `send` called, in the thread, when a message of `size` bytes has arrived.

        Args: room: wait until fewer messages than these have not left, or have arrived and are not taken.
        """
        with self._changed:
            while room is not None and not self._failed:
                now = time.monotonic()
                leaving = [left - now for left, _, _ in self._waiting if left > now]
                if len(leaving) + sum(arrived <= now for _, arrived, _ in self._waiting) < room:
                    break
                self._changed.wait(min(leaving, default=None))
            self._free = max(self._free, time.monotonic()) + size * self._seconds_per_byte
            self._waiting.append((self._free, self._free + self._latency, send))
            self._changed.notify_all()

    def _run(self) -> None:
        try:
            while (send := self._next()) is not None:
                send()
                with self._changed:
                    self._waiting.popleft()
                    self._changed.notify_all()
        except Exception as error:  # noqa: BLE001 - of a thread, to be raised in the main one
            with self._changed:
                self._failed = True
                self._changed.notify_all()
            self._fail(error)

    def _next(self) -> Callable[[], None] | None:
        """The first message, when it has arrived; None after the last."""
        with self._changed:
            while True:
                if self._waiting:
                    _, arrived, send = self._waiting[0]
                    if (wait := arrived - time.monotonic()) <= 0:
                        return send
                    self._changed.wait(wait)
                elif self._closing:
                    return None
                else:
                    self._changed.wait()

    def close(self) -> None:
        """Wait until everything that was put has been sent, or failed."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join()
