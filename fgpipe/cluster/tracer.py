"""`trace=true`: the timelines of all processes, brought to one clock and merged into `trace.json` of the run folder."""

from dataclasses import asdict
from pathlib import Path

import torch

from fgpipe.cluster.clock import Offset, offsets, to_rank_0
from fgpipe.cluster.process import Cluster, prefix
from fgpipe.observe import trace
from fgpipe.observe.timeline import LIMIT, Event, Timeline, events_of
from fgpipe.plan.topology import Topology


class Tracer:
    """This process's timeline and, at the end, what the others hand to the reporting one. Does nothing unless `on`."""

    def __init__(self, on: bool, cluster: Cluster, topology: Topology) -> None:
        self.timeline = Timeline(on)
        self._cluster, self._topology = cluster, topology
        self._before: list[Offset] = []

    def begin(self) -> None:
        """Compare the clocks before anything is recorded; collective."""
        if self.timeline.on:
            self._before = self._offsets()

    def end(self, folder: Path | None) -> None:
        """Compare the clocks again and merge; collective.

        Args: folder: the run's, on the reporting process; None on the others.
        """
        if not self.timeline.on:
            return
        after, rank = self._offsets(), self._cluster.place.rank
        dropped = torch.zeros(len(after), dtype=torch.int64)
        dropped[rank] = self.timeline.dropped
        past_limit = {"limit": LIMIT, "events": self._cluster.sum(dropped).tolist()}
        tables = self._cluster.collect(self.timeline.as_tensor(), self._topology.reporter)
        if folder is None:
            return
        clocks = list(zip(self._before, after, strict=True))
        events = {
            other: [_moved(event, *clocks[other]) for event in events_of(table)] for other, table in enumerate(tables)
        }
        about = {
            "clock": "CLOCK_MONOTONIC of rank 0, which ranks of one host share; the others' times are moved by their offset",
            "origin": min((event.began for each in events.values() for event in each), default=0),
            "offsets": [
                {"rank": other, "same_host_as": host, "before": asdict(first), "after": asdict(last)}
                for other, (host, (first, last)) in enumerate(zip(self._cluster.hosts, clocks, strict=True))
            ],
            "dropped": past_limit,
        }
        names = {other: prefix(self._topology, other).strip("[]") for other in events}
        trace.write(folder / "trace.json", events, names, about)

    def _offsets(self) -> list[Offset]:
        return offsets(self._cluster.place.rank, self._cluster.hosts, self._cluster.sum)


def _moved(event: Event, before: Offset, after: Offset) -> Event:
    began, ended = (to_rank_0(time, before, after) for time in (event.began, event.ended))
    return event._replace(began=began, ended=ended)
