"""The place where batches and readings for the blocks of one process arrive, from any thread, and where its main thread waits."""

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import TypeVar

from fgpipe.errors import FeedbackError
from fgpipe.observe.timeline import SCALARS, Timeline
from fgpipe.wire.batch import Batch
from fgpipe.wire.feedback.mailbox import Mailbox
from fgpipe.wire.feedback.messages import Feedback, Lost, Request, Weights
from fgpipe.wire.gradients import Gradient, GradientBox
from fgpipe.wire.replay import Replay
from fgpipe.wire.weights import WeightsBox

Found = TypeVar("Found")


class Arrivals(deque[Batch]):
    """The queue of batches before a block.

    Args: taken: called when one is taken.
    """

    def __init__(self, taken: Callable[[], None] = lambda: None) -> None:
        super().__init__()
        self._taken = taken

    def popleft(self) -> Batch:
        self._taken()
        return super().popleft()


class Inbox:
    """Queues of the blocks of a process under one lock.

    Args:
        inputs: a queue for each block that takes batches from another one.
        mailboxes: of those that wait for readings, or for gradients.
        timeline: of this process.
        first: the training batch that the run begins with.
        weights: boxes of the blocks whose twins get their weights from above.
    """

    def __init__(
        self,
        inputs: Mapping[int, Arrivals | Replay],
        mailboxes: Mapping[int, Mailbox | GradientBox],
        timeline: Timeline,
        first: int = 0,
        weights: Mapping[int, WeightsBox] | None = None,
    ) -> None:
        self._weights = weights or {}
        self._inputs, self._mailboxes, self._timeline = inputs, mailboxes, timeline
        self._due = {(block, training): first * training for block in inputs for training in (False, True)}
        """The batch that comes next, by block and whether it is a training batch."""
        self._heard: dict[tuple[int, str], float] = {}
        """Time when something last came for a block, and on which plane (`time.monotonic`)."""
        self._arrived = threading.Condition()
        self._error: Exception | None = None

    def begin(self, batches: range) -> None:
        """Prepare for these training batches."""
        with self._arrived:
            for each in self._inputs.values():
                if isinstance(each, Replay):
                    each.begin(batches)

    def deliver_batch(self, block: int, batch: Batch) -> None:
        """Take a batch that has arrived for a block here.

        Raises:
            RuntimeError: it is not the next one.
        """
        with self._arrived:
            if not batch.extra:
                due = self._due[block, batch.training]
                if batch.id != due and (batch.training or batch.id):  # every evaluation begins with number 0
                    raise RuntimeError(f"block {block} got {batch.name} where number {due} was due")
                self._due[block, batch.training] = batch.id + 1
            self._inputs[block].append(batch)
            self._heard[block, "forward"] = time.monotonic()
            self._arrived.notify()

    def deliver_feedback(self, feedback: Feedback | Lost) -> Request | None:
        """Take readings that have arrived, or the news that they are lost; returns what to ask for in consequence.

        Raises:
            FeedbackError: they are not what a block here waits for.
        """
        began = time.monotonic_ns()
        with self._arrived:
            mailbox = self._mailboxes.get(feedback.receiver)
            if not isinstance(mailbox, Mailbox):
                raise FeedbackError(f"feedback came for block {feedback.receiver}, which asked for none here")
            missing = mailbox.put(feedback)
            self._heard[feedback.receiver, "feedback"] = time.monotonic()
            if self._timeline.on:
                self._timeline.add(SCALARS, feedback.receiver, feedback.batch, began, feedback.sender)
            self._arrived.notify()
            return missing

    def deliver_gradient(self, gradient: Gradient) -> None:
        """Take a gradient that has arrived for a block here.

        Raises:
            LinkError: it is not the next one.
        """
        with self._arrived:
            box = self._mailboxes[gradient.receiver]
            assert isinstance(box, GradientBox), "its block waits for gradients"
            box.put(gradient)
            self._heard[gradient.receiver, box.plane] = time.monotonic()
            self._arrived.notify()

    def deliver_weights(self, weights: Weights) -> None:
        """Take weights that have arrived for a twin here.

        Raises:
            FeedbackError: they are not what a twin here waits for.
        """
        with self._arrived:
            if weights.receiver not in self._weights:
                raise FeedbackError(f"weights came for block {weights.receiver}, which has no twin here")
            self._weights[weights.receiver].put(weights)
            self._arrived.notify()

    def fail(self, error: Exception) -> None:
        """A thread has ended with an error, which `wait` will raise."""
        with self._arrived:
            self._error = self._error or error
            self._arrived.notify()

    def last_heard(self, block: int, plane: str) -> str:
        """Time since something last came for a block on a plane (`forward`, `feedback`, `gradient`), for a person to read."""
        if (block, plane) not in self._heard:
            return "nothing came yet"
        return f"the last message came {time.monotonic() - self._heard[block, plane]:.1f} s ago"

    def holds(self, block: int) -> bool:
        """Tell whether a block takes its batches here."""
        return block in self._inputs

    def waits_for(self, block: int) -> int | None:
        """The block that sends readings or gradients to one here; None if it waits for none."""
        return self._mailboxes[block].sender if block in self._mailboxes else None

    def described(self, block: int) -> tuple[str, str]:
        """What a block that waits for a higher one waits for, and the plane that it comes on."""
        return self._mailboxes[block].content, self._mailboxes[block].plane

    def has_batch(self, block: int) -> bool:
        """A batch waits for a block."""
        return bool(self._inputs[block])

    def take_batch(self, block: int) -> Batch:
        """The oldest batch that waits for a block, or the one that its replay buffer gives."""
        with self._arrived:
            return self._inputs[block].popleft()

    def has_feedback(self, block: int) -> bool:
        """Readings, or a gradient, wait for a block."""
        return block in self._mailboxes and self._mailboxes[block].first() is not None

    def take_feedback(self, block: int) -> Feedback | Lost | Gradient:
        """The oldest readings that wait for a block, or the news that they are lost; or the oldest gradient."""
        with self._arrived:
            return self._mailboxes[block].take()

    def has_twin(self, block: int) -> bool:
        """Tell whether a block here has a twin whose weights come from above."""
        return block in self._weights

    def has_weights(self, block: int, batch: int) -> bool:
        """All weights for the block's twin up to those of a batch are here, if it has one."""
        return block not in self._weights or self._weights[block].complete(batch)

    def awaited_weights(self, block: int, batch: int) -> int:
        """The block above whose weights are not all here."""
        return self._weights[block].missing(batch)

    def take_weights(self, block: int, batch: int) -> list[Weights]:
        """The newest weights for the block's twin, up to those of a batch."""
        with self._arrived:
            return self._weights[block].take(batch) if block in self._weights else []

    def overdue_feedback(self, block: int) -> Request | None:
        """Request for when a block has waited for its readings for long; none for gradients, which do not get lost."""
        with self._arrived:
            return self._mailboxes[block].overdue()

    def wait(self, find: Callable[[], Found | None], deadline: float) -> Found:
        """Wait until `find` finds something in the queues, and return it.

        Raises:
            TimeoutError: `deadline` seconds have passed.
            Exception: whatever `fail` was told.
        """
        give_up = time.monotonic() + deadline
        with self._arrived:
            while True:
                if self._error is not None:
                    raise self._error
                if (found := find()) is not None:
                    return found
                if not self._arrived.wait(give_up - time.monotonic()):
                    raise TimeoutError
