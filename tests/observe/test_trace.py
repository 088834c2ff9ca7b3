"""The timeline's record, and the trace that is made of hand-written ones."""

import copy
import json
import time
import tracemalloc
from collections import defaultdict
from pathlib import Path

import pytest

from fgpipe.observe import trace
from fgpipe.observe.timeline import KINDS, Event, Timeline, events_of
from tests.observe.chrome import faults

EVENTS = {
    0: [Event("forward", 0, 5, -1, 1000, 2000), Event("send", 0, 5, 1, 2000, 2600), Event("wait for feedback", 0, 5, 1, 2600, 9000),
        Event("scalars", 0, 5, 1, 8000, 8500), Event("update", 0, 5, -1, 9000, 9500)],
    1: [Event("receive", 1, 5, 0, 3000, 3500), Event("forward", 1, 5, -1, 4000, 5000), Event("read", 1, 5, -1, 5000, 6000),
        Event("reply", 1, 5, 0, 6000, 7000), Event("update", 1, 5, -1, 7000, 9999)],
}  # fmt: skip
WAY = ["send", "receive", "reply", "scalars", "update"]


def written(path: Path) -> dict:
    trace.write(path / "trace.json", EVENTS, {0: "block 0", 1: "block 1"}, {"note": "by hand"})
    return json.loads((path / "trace.json").read_text())


def test_record() -> None:
    timeline = Timeline(on=True, limit=3)
    for batch in range(5):
        timeline.add("forward", 2, batch, time.monotonic_ns(), 7)
    events = events_of(timeline.as_tensor())
    assert [event[:4] for event in events] == [("forward", 2, batch, 7) for batch in range(3)] and timeline.dropped == 2
    assert all(0 < event.began <= event.ended <= time.monotonic_ns() for event in events)
    assert Timeline().as_tensor().shape == (0, 6)


def test_bytes_of_an_event() -> None:
    """What the docs say: 200 at most, of what Python allocates."""
    timeline, number = Timeline(on=True), 10_000
    tracemalloc.start()
    for batch in range(1000, 1000 + number):
        timeline.add("forward", 300, batch, time.monotonic_ns(), 7)
    taken, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert 100 * number < taken < 200 * number


def test_trace(tmp_path: Path) -> None:
    made = written(tmp_path)
    assert not list(faults(made))
    slices = {(each["name"], each["pid"]): each for each in made["traceEvents"] if each["ph"] == "X"}
    assert len(slices) == 10 and slices["update", 1]["ts"] == 6.0 and slices["update", 1]["dur"] == 2.999
    assert slices["reply", 1]["args"] == {"block": 1, "batch": 5, "other": 0}
    flow = [each for each in made["traceEvents"] if each["ph"] in "stf"]
    began = {event.kind: event.began for events in (EVENTS[1], EVENTS[0]) for event in events}
    assert [each["ts"] for each in flow] == [(began[kind] - 1000) / 1000 for kind in WAY]
    assert [each["pid"] for each in flow] == [0, 1, 1, 0, 0]
    assert made["otherData"] == {"note": "by hand"}


def test_read_back(tmp_path: Path) -> None:
    written(tmp_path)
    moved = {
        rank: sorted(
            (event._replace(began=event.began - 1000, ended=event.ended - 1000) for event in events),
            key=lambda e: e.began,
        )
        for rank, events in EVENTS.items()
    }
    assert trace.read(tmp_path / "trace.json") == moved
    assert trace.events(tmp_path / "trace.json") == [event for events in moved.values() for event in events]


def test_ways() -> None:
    """A local target's arrow ends above, at the arrival or in one process at the forward pass; backpropagation's comes back."""
    without = {
        rank: [event for event in events if event.kind not in ("reply", "scalars")] for rank, events in EVENTS.items()
    }
    assert [[event.kind for _, event in way] for way in trace.chains(without)] == [WAY[:2]]
    within = {0: without[0] + without[1][1:]}
    assert [[event.kind for _, event in way] for way in trace.chains(within)] == [["send", "forward"]]
    passes = defaultdict(list)
    for rank in range(3):
        for microbatch in range(2):
            passes[rank].append(
                Event("forward", rank, 0, microbatch, 10 * rank + microbatch, 10 * rank + microbatch + 1)
            )
            passes[rank].append(Event("backward", rank, 0, microbatch, 100 - 10 * rank + microbatch, 100))
    ways = [[(event.kind, rank, event.other) for rank, event in way] for way in trace.chains(passes)]
    up_and_down = [*(("forward", rank) for rank in (0, 1, 2)), *(("backward", rank) for rank in (2, 1, 0))]
    assert ways == [[(*place, microbatch) for place in up_and_down] for microbatch in range(2)]


@pytest.mark.parametrize(
    "break_it, found",
    [
        (
            lambda events: events.remove(next(each for each in events if each["ph"] == "f")),
            "not a start, steps and an end",
        ),
        (lambda events: next(each for each in events if each["ph"] == "X").update(dur=-1), "dur is negative"),
        (lambda events: next(each for each in events if each["ph"] == "X").pop("tid"), "tid is missing"),
        (lambda events: next(each for each in events if each["ph"] == "f").update(ts=0.5), "goes back in time"),
        (lambda events: next(each for each in events if each["ph"] == "f").update(ts=99.0), "outside all slices"),
        (lambda events: next(each for each in events if each["name"] == "forward").update(dur=1.5), "overlap"),
    ],
)
def test_the_check_finds(break_it, found: str, tmp_path: Path) -> None:
    """The negative control of `faults`."""
    made = copy.deepcopy(written(tmp_path))
    break_it(made["traceEvents"])
    assert any(found in fault for fault in faults(made))


def test_every_kind_is_once() -> None:
    assert len(KINDS) == len(set(KINDS))
