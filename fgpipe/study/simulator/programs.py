"""Work of every process, in order: forward gradients and asynchronous 1F1B by `plan.schedule`, backpropagation that drains
as GPipe or 1F1B."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch

from fgpipe.gradients.method import Method
from fgpipe.gradients.probes import Lanes
from fgpipe.observe.events import Worked
from fgpipe.plan.plan import Plan
from fgpipe.plan.precision import Precision
from fgpipe.plan.schedule import Forward, actions
from fgpipe.plan.topology import runs_of
from fgpipe.study.simulator.engine import Job, Message
from fgpipe.trainers.build import local_stages
from fgpipe.trainers.findings import Findings
from fgpipe.wire.batch import Batch, canonical
from fgpipe.wire.feedback.messages import Feedback

LABEL, NUMBER = 8, 8
"""Bytes of one label, and of one number of a reading."""
SAMPLES = 2
"""Samples of a batch of noise."""
Costs = Sequence[Mapping[str, float]]
"""Seconds of each block by kind (`observe.timeline.COMPUTE`); a kind that is missing takes none."""
Programs = list[list[list[Job]]]
"""Jobs by process and node."""


def microbatches(batch_size: int, least: int) -> int:
    """Least divisor of the batch that gives every process a microbatch, or the whole batch in single samples."""
    return next((count for count in range(least, batch_size) if batch_size % count == 0), batch_size)


Order = tuple[str, ...]
"""Pieces of work (`observe.timeline.COMPUTE`), `send` and `reply`, as they come in a step on a training batch."""


@dataclass(frozen=True)
class Orders:
    """Steps of a net's blocks, and of any other net that learns alike."""

    steps: tuple[Order, ...]

    @classmethod
    def of(cls, plan: Plan) -> "Orders":
        """Read them off the stages of a net of at least three blocks, as they train on a batch of noise."""
        facts, orders = plan.facts, []
        images = torch.randn(SAMPLES, facts.channels, facts.height, facts.width, dtype=Precision.of(plan.config).dtype)
        batch = Batch(0, 0, True, canonical(images), torch.zeros(SAMPLES, dtype=torch.int64))
        for stage in local_stages(plan):
            order: list[str] = []
            for message in stage.run(batch):
                if isinstance(message, Batch):
                    order, above = [*order, "send"], message
                elif isinstance(message, Findings):
                    replies = any(isinstance(each, Feedback) for each in message.send().read())
                    order += ["reply"] * replies
                elif isinstance(message, Worked):
                    order.append(message.kind)
            orders.append(tuple(order))
            batch = above
        return cls(tuple(orders))

    def step(self, block: int, blocks: int) -> Order:
        """Step of a block of a net of so many: its own, or that of the first, the last or one between."""
        if blocks == len(self.steps) or block == 0 < blocks - 1:
            return self.steps[block]
        return self.steps[-1 if block == blocks - 1 else -2]


@dataclass(frozen=True)
class ForwardGradients:
    """Net that learns by `method`, with steps in the order of the stages themselves."""

    method: Method
    lanes: Lanes
    windows: Sequence[int]
    costs: Costs
    activations: Sequence[int]
    """Bytes of each block's output, but the last one's."""
    batch_size: int
    orders: Orders

    def up(self, block: int, batch: int = 0) -> int:
        """Bytes that leave a block upwards with a batch: activation, tangents, labels."""
        lanes = len(self.lanes.on_link(block)) if self.method.asks(batch) else 0
        return self.activations[block] * (1 + lanes) + LABEL * self.batch_size

    def back(self, block: int) -> int:
        """Bytes of the readings of a block's probes on one batch."""
        return NUMBER * self.method.numbers(self.lanes.counts[block])

    def programs(self, sizes: Sequence[int], batches: int) -> Programs:
        """Args: sizes: blocks per process."""
        homes = [process for process, size in enumerate(sizes) for _ in range(size)]
        return [[self._block(j, homes, range(batches)) for j in blocks] for blocks in runs_of(sizes)]

    def _block(self, j: int, homes: Sequence[int], batches: range) -> list[Job]:
        method, costs, jobs = self.method, self.costs[j], []
        order = self.orders.step(j, method.blocks)
        asking = [k for k in range(j) if method.waits(k) and method.target(k) == j]
        without = [kind for kind in order if kind not in ("push", "read", "reply")] + ["update"] * method.waits(j)
        """Step on a batch that no lane rides with."""

        def steps(batch: int) -> Iterator[tuple[float, Message | None]]:
            sends: dict[str, list[tuple[str, int, int, str]]] = {
                "send": [("batch", j + 1, self.up(j, batch), "batches")] if j < method.last else [],
                "reply": [("scalars", k, self.back(k), "scalars") for k in asking],
            }  # kind of message -> what is sent for which block, its bytes, its plane
            seconds = 0.0
            for kind in order if method.asks(batch) else without:
                seconds += costs.get(kind, 0.0)
                for what, k, size, plane in sends.get(kind, ()):
                    yield seconds, Message((what, k, batch), homes[k], size, plane)
                    seconds = 0.0
            yield seconds, None

        for action in actions(batches, self.windows[j], method.waits(j), method.every):
            if isinstance(action, Forward):
                needs = ("batch", j, action.batch) if j else None
                jobs.append(Job("forward", j, action.batch, needs, tuple(steps(action.batch))))
            else:
                update = ((costs.get("update", 0.0), None),)
                jobs.append(Job("apply", j, action.batch, ("scalars", j, action.batch), update))
        return jobs


@dataclass(frozen=True)
class Backpropagation:
    """Net that learns from each batch in microbatches, with one stage per process, drained before the next one."""

    schedule: str
    """Name: gpipe | 1f1b."""
    microbatches: int
    costs: Costs
    """`forward`, `loss` and `backward` of a microbatch, `update` of a batch."""
    activations: Sequence[int]
    """Bytes of a batch, as above."""

    def order(self, process: int, processes: int) -> list[tuple[str, int]]:
        """Passes of a batch: `forward` or `backward`, and the microbatch."""
        count = self.microbatches
        ahead = count if self.schedule == "gpipe" else min(count, processes - process)
        order = [("forward", i) for i in range(ahead)]
        for i in range(count):
            order.append(("backward", i))
            order += [("forward", i + ahead)] * (i + ahead < count)
        return order

    def up(self, block: int) -> int:
        """Bytes of activations that leave a block upwards with every batch."""
        return self.activations[block]

    def back(self, block: int) -> int:
        """Bytes of gradients that come back to a block with every batch."""
        return self.activations[block]

    def programs(self, sizes: Sequence[int], batches: int) -> Programs:
        """Args: sizes: blocks per process."""
        return [
            [[job for batch in range(batches) for job in self._batch(p, blocks, len(sizes), batch)]]
            for p, blocks in enumerate(runs_of(sizes))
        ]

    def _batch(self, p: int, blocks: range, processes: int, batch: int) -> list[Job]:
        def total(*kinds: str) -> float:
            return sum(self.costs[j].get(kind, 0.0) for j in blocks for kind in kinds)

        def job(kind: str, needs: tuple | None, seconds: float, message: Message | None = None) -> Job:
            return Job(kind, blocks[0], batch, needs, ((seconds, message),))

        last, jobs = p == processes - 1, []
        for kind, i in self.order(p, processes):
            if kind == "forward":
                size = 0 if last else self.up(blocks[-1]) // self.microbatches
                above = None if last else Message(("batch", p + 1, batch, i), p + 1, size, "microbatches")
                jobs.append(job(kind, ("batch", p, batch, i) if p else None, total("forward", "loss"), above))
            else:
                size = self.back(blocks[0] - 1) // self.microbatches if p else 0
                below = Message(("gradient", p - 1, batch, i), p - 1, size, "microbatches") if p else None
                jobs.append(job(kind, None if last else ("gradient", p, batch, i), total(kind), below))
        return [*jobs, job("apply", None, total("update"))]


@dataclass(frozen=True)
class AsynchronousBackpropagation:
    """Net that learns by asynchronous 1F1B: the order of forward gradients, with a gradient for every batch."""

    windows: Sequence[int]
    costs: Costs
    """`forward`, `loss`, `backward` and `update` of a batch."""
    activations: Sequence[int]
    """Bytes of each block's output, but the last one's."""
    batch_size: int
    kept: Costs = ()
    """The same of a block whose window is above 1; empty: no others."""

    def up(self, block: int) -> int:
        """Bytes that leave a block upwards with a batch: activation, labels."""
        return self.activations[block] + LABEL * self.batch_size

    def back(self, block: int) -> int:
        """Bytes of the gradient that comes back to a block with a batch."""
        return self.activations[block]

    def programs(self, sizes: Sequence[int], batches: int) -> Programs:
        """Args: sizes: blocks per process."""
        homes = [process for process, size in enumerate(sizes) for _ in range(size)]
        return [[self._block(j, homes, range(batches)) for j in blocks] for blocks in runs_of(sizes)]

    def _block(self, j: int, homes: Sequence[int], batches: range) -> list[Job]:
        costs = (self.kept or self.costs)[j] if self.windows[j] > 1 else self.costs[j]
        last, jobs = len(homes) - 1, []

        def took(*kinds: str) -> float:
            return sum(costs.get(kind, 0.0) for kind in kinds)

        def back(batch: int) -> list[tuple[float, Message | None]]:
            below = Message(("gradient", j - 1, batch), homes[j - 1], self.back(j - 1), "gradients") if j else None
            return [(took("backward"), below), (took("update"), None)]

        def forward(batch: int) -> list[tuple[float, Message | None]]:
            if j == last:
                return [(took("forward", "loss"), None), *back(batch)]
            return [(took("forward"), Message(("batch", j + 1, batch), homes[j + 1], self.up(j), "batches"))]

        for action in actions(batches, self.windows[j], j < last):
            batch = action.batch
            if isinstance(action, Forward):
                steps = forward(batch)
                jobs.append(Job("forward", j, batch, ("batch", j, batch) if j else None, tuple(steps)))
            else:
                jobs.append(Job("apply", j, batch, ("gradient", j, batch), tuple(back(batch))))
        return jobs
