"""Contestants of a simulated table: ours and pipelined backpropagation, on a net of any number of blocks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from statistics import fmean

from fgpipe.config import compose_config
from fgpipe.gradients.method import Method
from fgpipe.gradients.probes import plan_lanes
from fgpipe.plan.plan import DataFacts, Plan
from fgpipe.plan.schedule import windows
from fgpipe.plan.topology import balanced
from fgpipe.study.common.synthetic import CLASSES, SHAPE
from fgpipe.study.contests.contest import AHEAD, AHEAD_OVER_SLOW_LINKS, asynchronous, stages
from fgpipe.study.simulator.calibration import DEFAULTS, LATE, METHODS, Calibration
from fgpipe.study.simulator.forecast import Net
from fgpipe.study.simulator.programs import (
    AsynchronousBackpropagation,
    Backpropagation,
    ForwardGradients,
    Orders,
    microbatches,
)
from fgpipe.wire.slow import SlowLinks

SCHEDULES = {"GPipe": "gpipe", "1F1B": "1f1b"}


def equal_blocks(costs: Sequence[Mapping[str, float]], blocks: int) -> list[dict[str, float]]:
    """Costs of a net of so many blocks whose forward passes take the mean time of the measured ones.

    The first block and the last have the work of the measured ones, the others the mean of those between, all scaled
    to the same forward pass. A net of one block pushes nothing and reads nothing.
    """
    forward = fmean(block["forward"] for block in costs)
    between = {kind: fmean(block.get(kind, 0.0) for block in costs[1:-1]) for kind in costs[1]}

    def scaled(block: Mapping[str, float]) -> dict[str, float]:
        return {kind: seconds * forward / block["forward"] for kind, seconds in block.items()}

    if blocks == 1:
        return [{kind: seconds for kind, seconds in scaled(costs[-1]).items() if kind not in ("push", "read")}]
    return [scaled(costs[0]), *(scaled(between) for _ in range(blocks - 2)), scaled(costs[-1])]


@lru_cache
def _plan(arguments: tuple[str, ...]) -> Plan:
    config = compose_config(arguments)
    return Plan.make(config, DataFacts(1, 1, CLASSES, SHAPE[2], config.data.size, config.data.size))


@lru_cache
def _orders(arguments: tuple[str, ...]) -> Orders:
    return Orders.of(_plan(arguments))


@dataclass(frozen=True)
class Setting:
    """One net, and how it is divided.

    Args:
        calibration: of the measured net.
        stages: blocks of the simulated one; those of the measured one are taken as they are, others made equal.
        window: as `config.window`.
        equal: make the blocks equal for any number of them.
    """

    calibration: Calibration
    stages: int
    processes: int
    window: int | str | Sequence[int] = "auto"
    equal: bool = False

    def _arguments(self, *overrides: str) -> tuple[str, ...]:
        """Arguments of the measured net."""
        return (*DEFAULTS, *self.calibration.arguments, *overrides)

    def _plan(self, *overrides: str) -> Plan:
        """Plan of the measured net."""
        return _plan(self._arguments(*overrides))

    @property
    def _local(self) -> Plan:
        """Plan of the measured net, of a method that is simulated anyway: each takes a fifth of a second."""
        return self._plan(*METHODS["local target"])

    @property
    def batch_size(self) -> int:
        """Images of a batch."""
        return self._local.config.batch_size

    @property
    def is_measured(self) -> bool:
        """Tell whether the net has the measured blocks."""
        return not self.equal and self.stages == len(self.calibration.costs["local target"])

    def nets(self, links: SlowLinks) -> dict[str, Net]:
        """Make the nets, by the contestant's name.

        GPipe and 1F1B are left out over links with a round trip: how often `torch.distributed.pipelining` waits for
        one is not modelled. Asynchronous 1F1B has the windows of `stages`, as in contests, unless `window` says others.
        """
        found: dict[str, Net] = {name: self._forward(name, overrides) for name, overrides in METHODS.items()}
        slow = links.latency > 0 or links.rate is not None
        found[LATE] = self._late(AHEAD_OVER_SLOW_LINKS if slow else AHEAD)
        if links.latency:
            return found
        config, activations = self._local.config, self._activations()
        count = microbatches(config.batch_size, max(config.microbatches, self.processes))
        costs = self._fit(self.calibration.of_piece(config.batch_size // count))
        return found | {name: Backpropagation(kind, count, costs, activations) for name, kind in SCHEDULES.items()}

    def _forward(self, name: str, overrides: Sequence[str]) -> ForwardGradients:
        plan, costs = self._plan(*overrides), self._fit(self.calibration.costs[name])
        method, lanes, config = plan.method, plan.lanes, plan.config
        if not self.is_measured:
            method = replace(method, blocks=self.stages)
            tensors = len(list(plan.net.blocks[1].parameters()))
            lanes = plan_lanes(method, [tensors] * self.stages, config.lanes, config.code, config.seed)
        return ForwardGradients(
            method,
            lanes,
            windows(method, self.window),
            costs,
            self._activations(),
            config.batch_size,
            _orders(self._arguments(*overrides)),
        )

    def _late(self, ahead: int) -> AsynchronousBackpropagation:
        batch_size = self.batch_size
        method = replace(Method.of(compose_config(asynchronous(self.processes)[LATE])), blocks=self.stages)
        wanted = stages(self.split(), ahead) if self.window == "auto" else self.window
        alone, kept = (self._fit(each) for each in (self.calibration.late, self.calibration.kept))
        return AsynchronousBackpropagation(windows(method, wanted), alone, self._activations(), batch_size, kept)

    def _fit(self, costs: Sequence[Mapping[str, float]]) -> Sequence[Mapping[str, float]]:
        return costs if self.is_measured else equal_blocks(costs, self.stages)

    def _activations(self) -> list[int]:
        """Bytes of a batch at each boundary of blocks."""
        sizes = self._local.link_bytes
        return sizes if self.is_measured else [round(fmean(sizes))] * (self.stages - 1)

    def split(self) -> list[int]:
        """Blocks per process, balanced by the time of forward passes."""
        costs = self._fit(self.calibration.costs["local target"])
        return list(balanced([block["forward"] for block in costs], self.processes))
