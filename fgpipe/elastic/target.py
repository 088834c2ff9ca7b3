"""Whether a block follows its target or, while that is out of reach, its own loss; and the readings that it waits for."""

import time
from collections.abc import Iterator
from dataclasses import replace

from fgpipe.config import Config
from fgpipe.config.schema import TargetConfig
from fgpipe.elastic.directory import Directory
from fgpipe.elastic.feedback import FeedbackIn
from fgpipe.elastic.pace import Pace
from fgpipe.elastic.tally import Tally
from fgpipe.plan.plan import DataFacts, Plan
from fgpipe.trainers.stage import Stage
from fgpipe.wire.batch import Batch
from fgpipe.wire.feedback.messages import Feedback, Lost

ROUNDS, LEAST = 2, 1.0
"""A block that can follow its own loss waits for readings as long as so many windows of steps take, and for so many
seconds at least; one that cannot, for the deadline."""
HOLD = 4.0
"""Seconds that a block follows its own loss after readings that did not come."""
BRIEF = 0.02
"""Seconds of a wait for readings while nothing else can be done."""


def own_plan(config: Config, facts: DataFacts, block: int) -> Plan:
    """The plan of a run whose blocks follow their own losses."""
    local = replace(config, target=TargetConfig("local", 0))
    return Plan.make(local, facts, rank=block, world_size=config.blocks)


class Target:
    """The way of one block to its target and back.

    Args:
        stage: follows the target.
        own: follows the block's own loss, with the same weights; None where it cannot.
        readings: None if the block waits for none.
    """

    def __init__(
        self,
        plan: Plan,
        stage: Stage,
        own: Stage | None,
        readings: FeedbackIn | None,
        directory: Directory,
        tally: Tally,
    ) -> None:
        self._stage, self._own, self._readings, self._directory, self._tally = stage, own, readings, directory, tally
        block, method = stage.index, plan.method
        self._block, self._window, self._target = block, plan.windows[block], method.target(block)
        self._laden = block > 0 and bool(plan.lanes.on_link(block - 1))
        self._follows_own = 0.0
        """Until then (`time.monotonic`)."""
        self._deadline = plan.config.deadline
        self._sent: dict[int, tuple[float, list[int]]] = {}
        """When each batch in flight went up, and to which generations."""

    @property
    def waits(self) -> bool:
        """Whether the block's updates wait for readings at all."""
        return self._readings is not None

    @property
    def in_flight(self) -> int:
        """Batches whose readings are waited for."""
        return len(self._stage.in_flight)

    @property
    def full(self) -> bool:
        """Whether no other batch may be taken before readings have come."""
        return self.waits and self.in_flight >= self._window

    @property
    def may_begin(self) -> bool:
        """Whether a batch may be taken: the target is in reach, or the block can do without."""
        return self.may_repeat or self.in_reach

    @property
    def may_repeat(self) -> bool:
        """Whether a used batch may be trained on again, which is on the block's own loss."""
        return not self.waits or self._own is not None

    @property
    def in_reach(self) -> bool:
        """Whether all blocks up to the target are there."""
        return all(map(self._directory.alive, self._above))

    @property
    def _above(self) -> range:
        return range(self._block + 1, self._target + 1)

    def _generations(self) -> list[int]:
        return [self._directory.generation(block) for block in self._above]

    def stage_for(self, batch: Batch) -> Stage:
        """The one that runs a batch."""
        if not self.waits:
            return self._stage
        laden = batch.tangent is not None or not self._laden
        follows = laden and not batch.extra and self.in_reach and time.monotonic() >= self._follows_own
        if self._own is not None and not follows:
            return self._own
        self._sent[batch.id] = time.monotonic(), self._generations()
        return self._stage

    def answers(self, pace: Pace, *, wait: bool) -> Iterator[Feedback | Lost]:
        """Readings of the oldest batches in flight, as far as they have come, or the news that they will not.

        Args: wait: there is nothing else to do.
        """
        if self._readings is None or not self._stage.in_flight:
            return
        if (found := self._readings.take(BRIEF if wait else 0)) is not None:
            while self._stage.in_flight and self._stage.in_flight[0].batch < found.batch:
                yield self._lost()
            if self._stage.in_flight and self._stage.in_flight[0].batch == found.batch:
                self._sent.pop(found.batch, None)
                yield found
            else:
                self._tally.add("late")
            return
        oldest = self._stage.in_flight[0].batch
        began, generations = self._sent[oldest]
        patience = max(LEAST, ROUNDS * self._window * pace.interval) if self._own is not None else self._deadline
        replaced = generations != self._generations()  # whoever had the batch is gone
        if replaced or time.monotonic() - began > patience or not self.in_reach:
            self._follows_own = time.monotonic() + HOLD
            yield self._lost()

    def _lost(self) -> Lost:
        batch = self._stage.in_flight[0].batch
        self._sent.pop(batch, None)
        self._tally.add("skipped")
        return Lost(0, batch, self._target, self._block)
