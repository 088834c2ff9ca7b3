"""Where batches and scalars for the stages of one process arrive, from any thread, and where its main thread waits."""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import TypeVar

from fgpipe.observe.timeline import SCALARS, Timeline
from fgpipe.wire.feedback.messages import Feedback, FeedbackError, Lost, Request
from fgpipe.wire.links.base import Batch
from fgpipe.wire.mailbox import Mailbox
from fgpipe.wire.replay import Replay

Found = TypeVar("Found")


class Inbox:
    """Queues of the blocks of a process under one lock.

    Args:
        blocks: the blocks of this process.
        mailboxes: of those that wait for scalars.
        timeline: of this process.
        replays: in place of a block's queue of batches, where there are any.
    """

    def __init__(
        self,
        blocks: Iterable[int],
        mailboxes: Mapping[int, Mailbox],
        timeline: Timeline,
        replays: Mapping[int, Replay] | None = None,
    ) -> None:
        self._replays = replays or {}
        self._inputs: dict[int, deque[Batch] | Replay] = {block: self._replays.get(block, deque()) for block in blocks}
        self._mailboxes, self._timeline = mailboxes, timeline
        self._heard: dict[tuple[int, str], float] = {}
        """When something last came for a block, and on which plane (`time.monotonic`)."""
        self._arrived = threading.Condition()
        self._error: Exception | None = None

    def begin(self, batches: range) -> None:
        """These training batches come next."""
        with self._arrived:
            for replay in self._replays.values():
                replay.begin(batches)

    def deliver_batch(self, block: int, batch: Batch) -> None:
        """A batch has arrived for a block here."""
        with self._arrived:
            self._inputs[block].append(batch)
            self._heard[block, "forward"] = time.monotonic()
            self._arrived.notify()

    def deliver_feedback(self, feedback: Feedback | Lost) -> Request | None:
        """Scalars have arrived, or the news that they are lost; returns what to ask for in consequence.

        Raises:
            FeedbackError: they are not what a block here waits for.
        """
        began = time.monotonic_ns()
        with self._arrived:
            mailbox = self._mailboxes.get(feedback.receiver)
            if mailbox is None:
                raise FeedbackError(f"feedback came for block {feedback.receiver}, which asked for none here")
            missing = mailbox.put(feedback)
            self._heard[feedback.receiver, "feedback"] = time.monotonic()
            if self._timeline.on:
                self._timeline.add(SCALARS, feedback.receiver, feedback.batch, began, feedback.sender)
            self._arrived.notify()
            return missing

    def fail(self, error: Exception) -> None:
        """A thread has ended with an error, which `wait` will raise."""
        with self._arrived:
            self._error = self._error or error
            self._arrived.notify()

    def last_heard(self, block: int, plane: str) -> str:
        """When something last came for a block on a plane (`forward`, `feedback`), for a person to read."""
        if (block, plane) not in self._heard:
            return "nothing came yet"
        return f"the last message came {time.monotonic() - self._heard[block, plane]:.1f} s ago"

    def scalars_from(self, block: int) -> int:
        """The block that evaluates the target of one that waits for scalars."""
        return self._mailboxes[block].sender

    def has_batch(self, block: int) -> bool:
        """A batch waits for a block."""
        return bool(self._inputs[block])

    def take_batch(self, block: int) -> Batch:
        """The oldest batch that waits for a block, or the one that its replay buffer gives."""
        with self._arrived:
            return self._inputs[block].popleft()

    def has_feedback(self, block: int) -> bool:
        """Scalars wait for a block."""
        return block in self._mailboxes and self._mailboxes[block].first() is not None

    def take_feedback(self, block: int) -> Feedback | Lost:
        """The oldest scalars that wait for a block, or the news that they are lost."""
        with self._arrived:
            return self._mailboxes[block].take()

    def overdue_feedback(self, block: int) -> Request | None:
        """What to ask for when a block has waited for its scalars for long."""
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
