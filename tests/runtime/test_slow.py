"""Slow links by the clock. Messages may be late on a busy machine, never early: lower bounds are sharp, upper ones loose."""

import threading
import time
from functools import partial

import pytest

from fgpipe.config import LinkConfig
from fgpipe.config.units import bits_per_second, seconds
from fgpipe.wire.slow import Delay, SlowLinks

LOOSE = 2.0
"""Seconds that a busy machine may add."""


class Far:
    """The other end: what has arrived, and when."""

    def __init__(self, rate: float | None, latency: float) -> None:
        self.arrived: list[tuple[int, float]] = []
        self.errors: list[Exception] = []
        self.open = threading.Event()
        self.open.set()
        self.delay = Delay(rate, latency, self.errors.append)
        self.began = time.monotonic()

    def put(self, number: int, size: int = 0, room: int | None = None) -> None:
        self.delay.put(size, partial(self._arrive, number), room)

    def _arrive(self, number: int) -> None:
        self.open.wait()
        if number < 0:
            raise RuntimeError("gone")
        self.arrived.append((number, time.monotonic() - self.began))


def test_latency_is_shared_and_nobody_waits() -> None:
    far = Far(None, 0.3)
    for number in range(20):
        far.put(number, 10**9)
    handed_over = time.monotonic() - far.began
    far.delay.close()
    assert [number for number, _ in far.arrived] == list(range(20))
    assert handed_over < 0.3 <= far.arrived[0][1]
    assert far.arrived[-1][1] < 0.3 + LOOSE, "one latency for all, not 20"


def test_rate_adds_up() -> None:
    """10 messages of 10 ms each on the wire, then 100 ms."""
    far = Far(8e6, 0.1)
    for number in range(10):
        far.put(number, 10_000)
    far.delay.close()
    for number, when in far.arrived:
        assert when >= 0.01 * (number + 1) + 0.1
    assert far.arrived[-1][1] < 0.2 + LOOSE


def test_room_counts_what_has_not_left() -> None:
    """Messages of 100 ms: the third waits until the first has left; a latency of seconds takes no room."""
    far = Far(8e6, 0.5)
    for number in range(4):
        far.put(number, 100_000, room=2)
    waited = time.monotonic() - far.began
    assert not far.arrived and 0.2 <= waited < 0.2 + LOOSE
    far.delay.close()
    assert len(far.arrived) == 4


def test_room_counts_what_is_not_taken() -> None:
    far = Far(None, 0.0)
    far.open.clear()
    far.put(0)
    time.sleep(0.05)
    far.put(1, room=2)
    threading.Timer(0.3, far.open.set).start()
    far.put(2, room=2)
    assert time.monotonic() - far.began >= 0.3
    far.delay.close()
    assert [number for number, _ in far.arrived] == [0, 1, 2]


def test_an_error_is_told_and_nobody_waits_for_room() -> None:
    far = Far(None, 0.0)
    far.put(-1)
    for number in range(5):
        far.put(number, room=2)
    far.delay.close()
    assert [str(error) for error in far.errors] == ["gone"] and not far.arrived


def slow(joined: SlowLinks, rank: int, other: int) -> bool:
    delay = joined.delay(rank, other, lambda error: pytest.fail(str(error)))
    if delay is not None:
        delay.close()
    return delay is not None


def test_sites() -> None:
    everywhere = SlowLinks.of(LinkConfig(rate="100Mbit", rtt="50ms"), 4)
    assert (everywhere.rate, everywhere.latency) == (1e8, 0.025)
    assert all(slow(everywhere, 0, other) for other in (1, 2, 3))
    halves = SlowLinks.of(LinkConfig(rtt="50ms", between=[1]), 4)
    joined = {(rank, other): slow(halves, rank, other) for rank in range(4) for other in range(4)}
    assert joined == {(rank, other): (rank < 2) != (other < 2) for rank, other in joined}
    assert not any(slow(SlowLinks.of(LinkConfig(), 4), 3, other) for other in range(3))


def test_units() -> None:
    assert [bits_per_second(text) for text in ("100Mbit", "100mbit", "2.5Gbit", "64kbit")] == [1e8, 1e8, 2.5e9, 64e3]
    assert [seconds(text) for text in ("50ms", "2s", "500us")] == [0.05, 2.0, 0.0005]
    for text in ("50", "ms", "5 ms", "-5ms", "0ms", "5min"):
        with pytest.raises(ValueError, match="such as 50ms"):
            seconds(text)
