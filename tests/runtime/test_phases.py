"""Phases by the clock, and how slow a slow block is."""

import math
import statistics
import time

import pytest

from fgpipe.config import SlowConfig
from fgpipe.observe.timeline import Timeline, events_of
from fgpipe.trainers.phases import Phases
from fgpipe.trainers.straggler import Straggler

WORK = 0.02


def took(phases: Phases, kind: str) -> float:
    began = time.monotonic()
    with phases(kind, 0):
        time.sleep(WORK)
    return time.monotonic() - began


def test_compute_takes_longer_and_the_rest_does_not() -> None:
    timeline = Timeline(on=True)
    phases = Phases(3, timeline, Straggler(factor=5, jitter=0, block=3, seed=0))
    assert took(phases, "forward") >= 5 * WORK > took(phases, "send")
    half = Phases(3, timeline, Straggler(factor=5, jitter=0, block=3, seed=0), share=0.5)
    assert took(half, "backward") >= 3 * WORK
    events = events_of(timeline.as_tensor())
    assert [(event.kind, event.block) for event in events] == [("forward", 3), ("send", 3), ("backward", 3)]
    assert events[0].ended - events[0].began >= 5e9 * WORK, "the sleep is part of the phase"


def test_off() -> None:
    """Nothing is recorded and nobody sleeps."""
    timeline = Timeline()
    took(Phases(3, timeline), "forward")
    assert len(timeline.as_tensor()) == 0


@pytest.mark.parametrize("jitter", [0.2, 1.0])
def test_jitter(jitter: float) -> None:
    """Mean and log-deviation of the factors of many batches, where none falls below 1; redrawn, they are the same."""
    straggler = Straggler(factor=1000, jitter=jitter, block=2, seed=7)
    factors = [straggler.factor_for(batch) for batch in range(2000)]
    assert factors == [straggler.factor_for(batch) for batch in range(2000)]
    assert statistics.mean(factors) == pytest.approx(1000, rel=4 * (2.8 if jitter == 1 else 0.21) / 2000**0.5)
    assert statistics.stdev(map(math.log, factors)) == pytest.approx(jitter, rel=0.1)
    other = Straggler(factor=1000, jitter=jitter, block=2, seed=8)
    assert other.factor_for(0) != factors[0]


def test_never_faster() -> None:
    straggler = Straggler(factor=1, jitter=1, block=0, seed=0)
    factors = [straggler.factor_for(batch) for batch in range(200)]
    assert min(factors) == 1.0 < max(factors)


def test_one_block_is_slow() -> None:
    config = SlowConfig(block=3, factor=2.0, jitter=0.0)
    assert Straggler.of(config, 0, 3) == Straggler(2.0, 0.0, 3, 0)
    assert Straggler.of(config, 0, 2) is None and Straggler.of(SlowConfig(), 0, 0) is None


def test_one_process_is_slow() -> None:
    """All of its blocks, and no others."""
    config = SlowConfig(process=1, factor=2.0)
    assert [Straggler.of(config, 0, block, position) is not None for block, position in ((3, 0), (4, 1), (5, 1), (1, 2))] == [
        False, True, True, False,
    ]  # fmt: skip
