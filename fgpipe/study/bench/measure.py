"""Time and memory of calls in this process."""

import json
import random
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

from torch.profiler import ProfilerActivity, profile

Name = TypeVar("Name")
_orders = random.Random(0)


def interleaved(
    calls: Mapping[Name, Callable[[], object]], rounds: int, at_least: float = 0.0
) -> dict[Name, list[float]]:
    """Seconds of each call in every round; what comes and goes on the machine meets all of them alike.

    A round makes every call once, in a random order in which none follows itself from one round to the next, as what it
    works on would still be in the cache; two calls alternate. One round that is not timed comes first.

    Args: at_least: seconds; more rounds follow until they are over.
    """
    for call in calls.values():
        call()
    seconds: dict[Name, list[float]] = {name: [] for name in calls}
    order, over = list(calls), time.monotonic() + at_least
    while rounds > 0 or time.monotonic() < over:
        last = order[-1]
        _orders.shuffle(order)
        while len(order) > 1 and order[0] == last:
            _orders.shuffle(order)
        for name in order:
            began = time.perf_counter()
            calls[name]()
            seconds[name].append(time.perf_counter() - began)
        rounds -= 1
    return seconds


def ratios(above: list[float], below: list[float]) -> list[float]:
    """Ratio of each round."""
    return [a / b for a, b in zip(above, below, strict=True)]


def peak_bytes(call: Callable[[], object]) -> int:
    """Peak of what PyTorch's CPU allocator gave out during a call, beyond what was given out before it.

    Every allocation counts, those within kernels too; the call is made once before, for what is allocated only once.
    """
    call()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        kept = call()
    del kept
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "memory.json"
        profiled.export_chrome_trace(str(path))
        events = json.loads(path.read_text())["traceEvents"]
    live = peak = 0
    for event in sorted((event for event in events if event["name"] == "[memory]"), key=lambda event: event["ts"]):
        live += event["args"]["Bytes"]
        peak = max(peak, live)
    return peak
