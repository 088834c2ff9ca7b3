"""One timeline of all processes in Chrome's trace event format, for Perfetto (ui.perfetto.dev) and chrome://tracing.

A process is a group of three tracks: compute, batches that arrive, scalars that arrive. Arrows follow a batch from the
block that sends it to its arrival above (within a process, to the forward pass there) and, where the sender has asked
for scalars, on to the block that evaluates them, back, and to the update that they make. Of backpropagation, they
follow each microbatch up and its gradient down.
"""

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from fgpipe.observe.timeline import COMPUTE, NOBODY, RECEIVE, SCALARS, WAITS, Event
from fgpipe.saving import durable

TRACKS = ("compute", "batches in", "scalars in")
_TRACK = {RECEIVE: 1, SCALARS: 2}
_CATEGORY = {**dict.fromkeys(COMPUTE, "compute"), **dict.fromkeys(WAITS, "wait")}
"""Category of the others: communication."""

Placed = tuple[int, Event]
"""A rank, and what happened there."""


def write(
    path: Path, events: Mapping[int, Sequence[Event]], names: Mapping[int, str], about: Mapping[str, Any]
) -> None:
    """Write the trace as JSON.

    Args:
        events: of each rank, on one clock.
        names: what each rank holds.
        about: goes into the trace as it is (`otherData`).
    """
    content = {"traceEvents": list(_records(events, names)), "displayTimeUnit": "ms", "otherData": about}
    durable.write(path, json.dumps(content).encode())


def read(path: Path) -> dict[int, list[Event]]:
    """The events of each rank, from what `write` has written; times count from the first of them."""
    events: dict[int, list[Event]] = defaultdict(list)
    for each in json.loads(path.read_text())["traceEvents"]:
        if each["ph"] == "X":
            began, duration = round(1000 * each["ts"]), round(1000 * each["dur"])
            block, batch, other = (each["args"][name] for name in ("block", "batch", "other"))
            events[each["pid"]].append(Event(each["name"], block, batch, other, began, began + duration))
    return dict(events)


def events(path: Path) -> list[Event]:
    """The events of all ranks together, as `read`."""
    return [event for of_rank in read(path).values() for event in of_rank]


def _records(events: Mapping[int, Sequence[Event]], names: Mapping[int, str]) -> Iterator[dict[str, Any]]:
    start = min((event.began for each in events.values() for event in each), default=0)

    def microseconds(nanoseconds: int) -> float:
        return (nanoseconds - start) / 1000

    for rank, name in names.items():
        yield _named("process_name", rank, 0, f"rank {rank}: {name}")
        for track, what in enumerate(TRACKS):
            yield _named("thread_name", rank, track, what)
    for rank, each in events.items():
        for event in sorted(each, key=lambda event: event.began):
            yield {
                "ph": "X",
                "name": event.kind,
                "cat": _CATEGORY.get(event.kind, "communication"),
                "pid": rank,
                "tid": _track(event),
                "ts": microseconds(event.began),
                "dur": (event.ended - event.began) / 1000,
                "args": {"block": event.block, "batch": event.batch, "other": event.other},
            }
    for number, chain in enumerate(chains(events)):
        for position, (rank, event) in enumerate(chain):
            phase = "s" if position == 0 else "f" if position == len(chain) - 1 else "t"
            flow = {"ph": phase, "name": "batch", "cat": "flow", "id": number}
            yield flow | {"pid": rank, "tid": _track(event), "ts": microseconds(event.began), "bp": "e"}


def _named(what: str, rank: int, track: int, name: str) -> dict[str, Any]:
    return {"ph": "M", "name": what, "pid": rank, "tid": track, "ts": 0, "args": {"name": name}}


def _track(event: Event) -> int:
    return _TRACK.get(event.kind, 0)


def chains(events: Mapping[int, Sequence[Event]]) -> Iterator[list[Placed]]:
    """Each batch's way from a block that sends it, as the docstring above says; at least two events each."""
    first: dict[tuple[str, int, int, int], Placed] = {}
    """Events by kind, block, batch and other end."""
    for rank, each in events.items():
        for event in each:
            first.setdefault((event.kind, event.block, event.batch, event.other), (rank, event))
    by_kind_and_place = {(kind, block, batch): placed for (kind, block, batch, _), placed in first.items()}
    repliers = {(other, batch): placed for (kind, _, batch, other), placed in first.items() if kind == "reply"}
    for kind, block, batch, _ in first:
        if kind == "send":
            reply = repliers.get((block, batch))
            way = [
                by_kind_and_place.get(("send", block, batch)),
                first.get((RECEIVE, block + 1, batch, block)) or by_kind_and_place.get(("forward", block + 1, batch)),
                reply,
                reply
                and (by_kind_and_place.get((SCALARS, block, batch)) or first.get((RECEIVE, block, batch, block + 1))),
                reply and by_kind_and_place.get(("update", block, batch)),
            ]
            found = [placed for placed in way if placed is not None]
            if len(found) > 1:
                yield found
    yield from _microbatches(first)


def _microbatches(first: Mapping[tuple[str, int, int, int], Placed]) -> Iterator[list[Placed]]:
    """Ways up and down again; of backpropagation, whose backward passes name their microbatch."""
    up: dict[tuple[int, int], list[Placed]] = defaultdict(list)
    down: dict[tuple[int, int], list[Placed]] = defaultdict(list)
    for (kind, block, batch, other), placed in sorted(first.items()):
        if kind in ("forward", "backward") and other != NOBODY:
            (up if kind == "forward" else down)[batch, other].append(placed)
    for microbatch, way in down.items():
        yield up[microbatch] + way[::-1]
