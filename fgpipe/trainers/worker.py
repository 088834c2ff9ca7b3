"""The loop of one process: it runs its stages' actions as soon as what they need is there.

Compute happens in the main thread; what arrives from other processes is put into the inbox by threads, and the main
thread sleeps on it when no stage can go on. Of several stages that can, the highest goes first, so that few batches
wait between the stages of one process.
"""

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor

from fgpipe.gradients.optim import Trained
from fgpipe.observe.timeline import WAITS, Timeline
from fgpipe.plan.schedule import Action, Apply, Forward, actions, drain, turn
from fgpipe.trainers.stage import Stage
from fgpipe.wire.feedback.base import FeedbackPlane
from fgpipe.wire.feedback.messages import Lost
from fgpipe.wire.inbox import Inbox
from fgpipe.wire.links.base import Batch, Link

Source = Callable[[int, int], tuple[Tensor, Tensor]]
"""From epoch and index of a batch to images and labels."""
PATIENCE = 10
"""A process that has had nothing to do for this fraction of the deadline asks for the scalars that it waits for."""
SHORT = 100_000
"""Nanoseconds of looking into the inbox that the timeline does not call waiting."""


def never() -> bool:
    """Do not stop before the end."""
    return False


class Stalled(RuntimeError):
    """Nothing arrived within the deadline."""


@dataclass(eq=False)
class Node:
    """A stage and what it is connected to."""

    stage: Stage
    window: int
    waits: bool
    """The stage waits for scalars."""
    link: Link | None
    """To the block above; None for the last block."""
    taken: Callable[[], None] | None
    """Called when a batch from another process is taken from the inbox, unless a replay buffer stands there."""
    pending: deque[Action] = field(default_factory=deque)


class Worker:
    """Runs the stages of one process.

    Args:
        nodes: lowest block first.
        feedback: carries the replies of these stages.
        eager: apply scalars as soon as they are there instead of when the window demands it.
        fixed_order: take actions in an order that no timing changes, as replicas must: they wait for each other.
        deadline: seconds without anything to do after which the run is given up.
        timeline: of this process.
    """

    def __init__(
        self,
        nodes: list[Node],
        inbox: Inbox,
        feedback: FeedbackPlane,
        *,
        eager: bool,
        fixed_order: bool,
        deadline: float,
        timeline: Timeline,
    ) -> None:
        self._nodes, self._inbox, self._feedback, self._timeline = nodes, inbox, feedback, timeline
        self._eager, self._fixed_order, self._deadline = eager, fixed_order, deadline
        self._end = 0

    def train(
        self,
        epoch: int,
        batches: int,
        source: Source | None,
        indices: range | None = None,
        stop: Callable[[], bool] = never,
    ) -> int:
        """Train for one epoch of `batches` batches, or a part of it, and drain the pipeline.

        Args:
            source: the images, for whoever holds block 0.
            indices: which batches of the epoch, without gaps; all if None.
            stop: asked by whoever holds block 0 as each batch sets out: drain after this one, and end? The answer
                travels with the batch, so that every block ends at the same one.

        Returns:
            The index of the first batch that was not trained.

        Raises:
            Stalled, LinkError, FeedbackError: another process is gone, silent or wrong.
            NotFiniteError: a number here is not finite.
        """
        indices, start = indices or range(batches), epoch * batches
        self._end = start + indices.stop
        ids = range(start + indices.start, start + indices.stop)
        self._inbox.begin(ids)
        for node in self._nodes:
            node.pending.extend(actions(ids, node.window, node.waits))
        self._run(
            self._next_in_training, lambda batch: _from_source(source, batch, epoch, True, batch - start, drain=stop())
        )
        return self._end - start

    def evaluate(self, epoch: int, batches: int, source: Source | None) -> None:
        """Send the test set through; arguments and errors as for `train`."""
        for node in self._nodes:
            node.pending.extend(Forward(batch) for batch in range(batches))
        self._run(self._next, lambda batch: _from_source(source, batch, epoch, False, batch))

    def trained(self) -> dict[int, dict[str, Trained]]:
        """What each block here has learnt, by block and name; it is all there is to save of a drained pipeline."""
        return {node.stage.index: node.stage.trained() for node in self._nodes}

    def close(self) -> None:
        """Wait until everything that was sent has left."""
        for node in self._nodes:
            if node.link is not None:
                node.link.close()
        self._feedback.close()

    def _run(self, choose: Callable[[], Node], first: Callable[[int], Batch]) -> None:
        """Run all pending actions; `choose` waits for the next node, `first` makes the batches of block 0."""
        while any(node.pending for node in self._nodes):
            node = choose()
            action = node.pending.popleft()
            if isinstance(action, Forward):
                self._forward(node, action.batch, first)
            elif not node.stage.has_applied(action.batch):  # eager may have been there before
                self._apply(node.stage)

    def _apply(self, stage: Stage) -> None:
        found = self._inbox.take_feedback(stage.index)
        if isinstance(found, Lost):
            stage.skip(found.batch)
        else:
            stage.apply(found)

    def _next_in_training(self) -> Node:
        if not self._timeline.on:
            return self._next()
        began = time.monotonic_ns()
        node = self._next()
        if time.monotonic_ns() - began > SHORT:
            action, block = node.pending[0], node.stage.index
            is_input = isinstance(action, Forward)
            other = block - 1 if is_input else self._inbox.scalars_from(block)
            self._timeline.add(WAITS[0] if is_input else WAITS[1], block, action.batch, began, other)
        return node

    def _next(self) -> Node:
        """The highest stage that can go on, or in a fixed order the one whose turn it is, once there is one."""
        busy = [node for node in reversed(self._nodes) if node.pending]
        if self._fixed_order:
            busy = [min(busy, key=lambda node: turn(node.pending, node.stage.index))]
        for _ in range(PATIENCE):
            try:
                return self._inbox.wait(lambda: next(filter(self._can_go_on, busy), None), self._deadline / PATIENCE)
            except TimeoutError:
                self._ask(busy)
        waits = "; ".join(f"block {node.stage.index} for {self._waits_for(node)}" for node in busy)
        raise Stalled(f"nothing arrived for {self._deadline:g} s; waiting: {waits}")

    def _waits_for(self, node: Node) -> str:
        """What, of which batch, from whom, on which plane, and when something last came there."""
        action, block = node.pending[0], node.stage.index
        if isinstance(action, Forward):
            what, sender, plane = "its input", block - 1, "forward"
        else:
            what, sender, plane = "its scalars", self._inbox.scalars_from(block), "feedback"
        heard = self._inbox.last_heard(block, plane)
        return f"{what} of batch {action.batch} from block {sender} ({plane} plane; {heard})"

    def _ask(self, waiting: list[Node]) -> None:
        """Ask for the scalars that are waited for: the message may be lost, with none after it to show that."""
        for node in waiting:
            if isinstance(node.pending[0], Apply) and (request := self._inbox.overdue_feedback(node.stage.index)):
                self._feedback.ask(request)

    def _can_go_on(self, node: Node) -> bool:
        action, block = node.pending[0], node.stage.index
        if isinstance(action, Forward):
            return block == 0 or self._inbox.has_batch(block)
        return node.stage.has_applied(action.batch) or self._inbox.has_feedback(block)

    def _forward(self, node: Node, expected: int, first: Callable[[int], Batch]) -> None:
        stage = node.stage
        while self._eager and self._inbox.has_feedback(stage.index):
            self._apply(stage)
        batch = first(expected) if stage.index == 0 else self._inbox.take_batch(stage.index)
        if node.taken is not None:
            node.taken()
        if batch.id != expected:
            raise RuntimeError(f"block {stage.index} got batch {batch.id} where batch {expected} was due")
        send = _no_block_above if node.link is None else node.link.send
        if batch.extra:
            node.pending.appendleft(Forward(expected))  # the step itself is still to come
            leaves = node is self._nodes[-1]
            stage.train(batch, None if leaves else send, self._feedback.send)
        elif batch.training:
            stage.train(batch, send, self._feedback.send)
            if batch.drain:
                node.pending = drain(node.pending, batch.id)
                self._end = batch.id + 1
        else:
            stage.evaluate(batch, send)


def _from_source(
    source: Source | None, batch: int, epoch: int, training: bool, index: int, drain: bool = False
) -> Batch:
    assert source is not None, "the process of block 0 has the images"
    images, labels = source(epoch, index)
    return Batch(batch, epoch, training, images, labels, drain=drain)


def _no_block_above(batch: Batch) -> None:
    raise AssertionError("the last block sends nothing upwards")
