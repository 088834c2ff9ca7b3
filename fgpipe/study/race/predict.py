"""Speed of the race's methods on a cluster that nobody has run, by the simulator."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

from fgpipe.config import LinkConfig
from fgpipe.plan.schedule import windows
from fgpipe.plan.topology import balanced, runs_of
from fgpipe.study.contests.contest import AHEAD, AHEAD_OVER_SLOW_LINKS, stages
from fgpipe.study.race.clusters import Stall
from fgpipe.study.race.methods import BLOCKS
from fgpipe.study.simulator.calibration import LATE, Calibration
from fgpipe.study.simulator.forecast import Net, epoch_seconds
from fgpipe.study.simulator.nets import Setting
from fgpipe.study.simulator.programs import AsynchronousBackpropagation, Backpropagation, Costs, ForwardGradients
from fgpipe.wire.slow import SlowLinks

BATCHES = 32
"""A rate is that of so many batches, after as many before."""
LOCAL, GUESSED, RANDOM = "local target", "global target, local guess", "global target, random guess"
"""Names of `Setting.nets`."""


@dataclass(frozen=True)
class AdvisedCluster:
    """Cluster, each process of which has cores of its own."""

    processes: int
    link: LinkConfig
    slow: float = 1.0
    """Factor by which the work of the first process takes longer."""
    stall: Stall | None = None
    """Of the first process."""

    @property
    def ahead(self) -> int:
        """Batches that fill the way from a process to the next and back."""
        return AHEAD_OVER_SLOW_LINKS if self.link.slow else AHEAD


@dataclass(frozen=True)
class Prediction:
    """What the simulator says of a method."""

    images_per_second: float
    staleness: int
    """Updates by which block 0 learns late, at most."""
    bytes_back: float
    """Of all links together, per batch."""
    sizes: tuple[int, ...]
    """Blocks, or modules, per process."""


def predictions(calibration: Calibration, cluster: AdvisedCluster) -> dict[str, Prediction]:
    """Predict every method of the race that the simulator models on such links, by name."""
    setting = Setting(calibration, BLOCKS, cluster.processes)
    sizes, links = setting.split(), SlowLinks.of(only(cluster.link, cluster.processes), cluster.processes)
    nets = setting.nets(links)
    late, local = nets[LATE], nets[LOCAL]
    assert isinstance(late, AsynchronousBackpropagation) and isinstance(local, ForwardGradients), "by their names"
    late = replace(late, windows=stages(sizes, cluster.ahead))
    guessed, random = nets[GUESSED], nets[RANDOM]
    assert isinstance(guessed, ForwardGradients) and isinstance(random, ForwardGradients), "by their names"
    guessed, random = (replace(each, windows=late.windows) for each in (guessed, random))
    rare = replace(guessed, method=replace(guessed.method, every=8))
    found: dict[str, tuple[Net, Sequence[int]]] = {
        "async 1F1B": (late, sizes),
        "async 1F1B look-ahead": (late, sizes),
        "local target 8": (local, sizes),
        "local guess": (guessed, sizes),
        "local guess every 8": (rare, sizes),
        "random guess": (random, sizes),
    }
    if "1F1B" in nets:
        found["1F1B"] = nets["1F1B"], sizes
    for modules in (2, 4):
        merged = grouped(local, late.costs, [BLOCKS // modules] * modules)
        count = min(modules, cluster.processes)
        found[f"local target {modules}"] = merged, balanced([each["forward"] for each in merged.costs], count)
    rates = {name: predicted(*each, calibration, cluster, setting.batch_size) for name, each in found.items()}
    whole = sum(sum(block.values()) for block in late.costs)
    return {"end to end": Prediction(setting.batch_size / whole, 0, 0.0, (BLOCKS,)), **rates}


def grouped(local: ForwardGradients, backward: Costs, modules: Sequence[int]) -> ForwardGradients:
    """The net of a local target whose blocks learn in groups, each with the head of its highest block.

    Args: backward: costs of backpropagation of a whole batch, which all but the highest block of a group have.
    """
    groups, costs = runs_of(modules), []
    for group in groups:
        below = [backward[j] for j in group[:-1]]
        top = dict(local.costs[group[-1]])
        top["forward"] += sum(each["forward"] for each in below)
        top["update"] += sum(each["backward"] + each["update"] for each in below)
        costs.append(top)
    method = replace(local.method, blocks=len(groups))
    activations = [local.activations[group[-1]] for group in groups[:-1]]
    return replace(local, method=method, windows=windows(method, 1), costs=costs, activations=activations)


def predicted(
    net: Net, sizes: Sequence[int], calibration: Calibration, cluster: AdvisedCluster, batch_size: int
) -> Prediction:
    """Args: sizes: blocks, or modules, per process."""

    def slowed(costs: Costs) -> Costs:
        first = range(min(sizes[0], len(costs)))
        return [*(scaled(costs[j], cluster.slow) for j in first), *costs[len(first) :]]

    net = replace(net, costs=slowed(net.costs))
    if isinstance(net, AsynchronousBackpropagation):
        net = replace(net, kept=slowed(net.kept))
    links, machine = SlowLinks.of(only(cluster.link, len(sizes)), len(sizes)), calibration.on(math.inf)
    once, twice = (epoch_seconds(net, sizes, links, machine, count * BATCHES) for count in (1, 2))
    share = 1.0 if cluster.stall is None else cluster.stall.share
    return Prediction(share * BATCHES * batch_size / (twice - once), staleness(net), returned(net, sizes), tuple(sizes))


def scaled(costs: Mapping[str, float], factor: float) -> dict[str, float]:
    """Costs that are so many times as high."""
    return {kind: seconds * factor for kind, seconds in costs.items()}


def only(link: LinkConfig, processes: int) -> LinkConfig:
    """The link without boundaries that so few processes do not have."""
    if link.between is None:
        return link
    between = [boundary for boundary in link.between if boundary < processes - 1]
    return replace(link, between=between)


def staleness(net: Net) -> int:
    """Updates by which block 0 learns late; what drains, or waits for nothing, is not late."""
    return 0 if isinstance(net, Backpropagation) else net.windows[0] - 1


def returned(net: Net, sizes: Sequence[int]) -> float:
    """Bytes that come back from process to process with a batch, in the mean."""
    tops = [end - 1 for end in accumulate(sizes)][:-1]
    if isinstance(net, ForwardGradients):
        method, homes = net.method, [process for process, size in enumerate(sizes) for _ in range(size)]
        asking = [j for j in range(method.blocks) if method.waits(j) and homes[j] != homes[method.target(j)]]
        return sum(net.back(j) for j in asking) / method.every
    return float(sum(map(net.back, tops)))
