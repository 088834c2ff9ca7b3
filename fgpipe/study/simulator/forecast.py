"""Figures of a net on a machine: throughput, busy processes, batches in flight."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate

from fgpipe.plan.topology import runs_of
from fgpipe.study.simulator.engine import Done, Simulation
from fgpipe.study.simulator.machine import Machine
from fgpipe.study.simulator.programs import AsynchronousBackpropagation, Backpropagation, ForwardGradients
from fgpipe.wire.slow import SlowLinks

Net = ForwardGradients | AsynchronousBackpropagation | Backpropagation
FEWEST = 8
"""Batches that a rate of what does not drain is counted over, at least."""
ROUNDS = 5
"""Times those batches, or the largest window, that are simulated, at least; and `FULL` times those in flight."""
FULL = 4


@dataclass(frozen=True)
class Forecast:
    """Figures of a pipeline in steady state."""

    seconds: float
    """Time per batch."""
    busy: tuple[float, ...]
    """Share of time in which each process has work."""
    in_flight: int
    """Batches at a time that have set out and are not done with in every block, at most."""
    held: int
    """Batches at a time that one block has forwarded and not learnt from, at most: its window."""

    @property
    def bottleneck(self) -> int:
        """Process that is busiest."""
        return max(range(len(self.busy)), key=self.busy.__getitem__)


def epoch_seconds(net: Net, sizes: Sequence[int], links: SlowLinks, machine: Machine, batches: int) -> float:
    """Time from an empty pipeline to a drained one."""
    return Simulation(net.programs(sizes, batches), links, machine).run().done[-1].ended


def forecast(net: Net, sizes: Sequence[int], links: SlowLinks, machine: Machine) -> Forecast:
    """Find the steady state, before the last batch sets out and after the first ones have filled the pipeline.

    The rate is seen over a whole number of the largest window's batches, as those come in bursts.

    Args: sizes: blocks per process.
    """
    window, least = (1, 1) if isinstance(net, Backpropagation) else (max(net.windows), FEWEST)
    batches = ROUNDS * max(window, least)
    while True:
        found = Simulation(net.programs(sizes, batches), links, machine).run()
        ends = batch_spans(found.done)
        in_flight = most_at_once(ends.values())
        if FULL * in_flight <= batches:
            break
        batches *= 2
    last = max(batch for batch, (_, ended) in ends.items() if ended <= ends[batches - 1][0])
    span = window * max(1, least // window)
    seconds = (ends[last][1] - ends[last - span][1]) / span
    firsts = [[done for done in found.done if done.job.block == blocks[0]] for blocks in runs_of(sizes)]
    spans = [batch_spans(done) for done in firsts]
    busy = [share(work, of[last - span][0], of[last][0]) for work, of in zip(found.work, spans, strict=True)]
    return Forecast(seconds, tuple(busy), in_flight, max(most_at_once(of.values()) for of in spans))


def share(spans: Iterable[tuple[float, float]], since: float, until: float) -> float:
    """Share of the time between the two that the spans, which do not overlap, cover."""
    return sum(max(0.0, min(e, until) - max(b, since)) for b, e in spans) / (until - since)


def batch_spans(done: Iterable[Done]) -> dict[int, tuple[float, float]]:
    """Times when the first of a batch's jobs began and the last ended."""
    spans: dict[int, list[tuple[float, float]]] = defaultdict(list)
    for each in done:
        spans[each.job.batch].append((each.began, each.ended))
    return {batch: (min(b for b, _ in of), max(e for _, e in of)) for batch, of in spans.items()}


def most_at_once(spans: Iterable[tuple[float, float]]) -> int:
    """Count the spans that hold at one time, at most; one that ends as another begins is over."""
    changes = sorted(change for began, ended in spans for change in ((began, 1), (ended, -1)))
    return max(accumulate(step for _, step in changes), default=0)
