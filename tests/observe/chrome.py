"""What a trace in Chrome's event format must be, and which of it a file breaks.

From the format's specification (Trace Event Format, Google 2016): the fields of complete, metadata and flow events;
slices of one thread nest or do not overlap; a flow is one start, any steps and one end, each within a slice.
"""

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

NUMBER = (int, float)
FIELDS: dict[str, dict[str, type | tuple[type, ...]]] = {
    "X": {"name": str, "cat": str, "pid": int, "tid": int, "ts": NUMBER, "dur": NUMBER, "args": dict},
    "M": {"name": str, "pid": int, "tid": int, "args": dict},
    **{key: {"name": str, "cat": str, "pid": int, "tid": int, "ts": NUMBER, "id": int} for key in "stf"},
}
Record = dict[str, Any]


def faults(trace: Record) -> Iterator[str]:
    """Everything that is wrong with a trace."""
    if not isinstance(trace.get("otherData"), dict) or not isinstance(trace.get("traceEvents"), list):
        yield "no traceEvents or no otherData"
        return
    wrong = [fault for record in trace["traceEvents"] for fault in _of_fields(record)]
    yield from wrong
    if wrong:
        return
    slices, flows, named = defaultdict(list), defaultdict(list), set()
    for record in trace["traceEvents"]:
        track = (record["pid"], record["tid"])
        if record["ph"] == "X":
            began = _nanoseconds(record["ts"])
            slices[track].append((began, began + _nanoseconds(record["dur"]), record["name"]))
        elif record["ph"] == "M":
            named.add(track)
        else:
            flows[record["id"]].append(record)
    for track, found in slices.items():
        if track not in named:
            yield f"track {track} has no name"
        found.sort()
        for (_, ended, first), (began, _, second) in pairwise(found):
            if began < ended:
                yield f"{first} and {second} overlap on track {track}"
    for number, flow in flows.items():
        yield from _of_flow(number, flow, slices)


def _of_fields(record: Record) -> Iterator[str]:
    fields = FIELDS.get(record.get("ph", ""))
    if fields is None:
        yield f"unknown kind of event: {record}"
        return
    for field, kind in fields.items():
        if not isinstance(record.get(field), kind) or isinstance(record[field], bool):
            yield f"{field} is missing or of a wrong type: {record}"
        elif field in ("ts", "dur") and record[field] < 0:
            yield f"{field} is negative: {record}"


def _of_flow(number: int, flow: list[Record], slices: dict[tuple[int, int], list]) -> Iterator[str]:
    kinds = "".join(record["ph"] for record in flow)
    if len(kinds) < 2 or kinds != "s" + "t" * (len(kinds) - 2) + "f":
        yield f"flow {number} is {kinds}, not a start, steps and an end"
    times = [_nanoseconds(record["ts"]) for record in flow]
    if times != sorted(times):
        yield f"flow {number} goes back in time"
    for record, time in zip(flow, times, strict=True):
        found = slices[record["pid"], record["tid"]]
        at = bisect_right(found, (time, float("inf"))) - 1
        if at < 0 or time > found[at][1]:
            yield f"flow {number} has a point outside all slices"


def _nanoseconds(microseconds: float) -> int:
    return round(1000 * microseconds)
