"""The readings that have arrived for one block, in the order of the batches, and what is done about lost ones."""

import math
from collections import deque
from dataclasses import dataclass

from fgpipe.errors import FeedbackError
from fgpipe.observe.metrics import Metrics
from fgpipe.wire.feedback.messages import Feedback, Lost, Request


@dataclass(frozen=True)
class Due:
    """Terms that every message to a block that waits for readings meets."""

    run: int
    sender: int
    """The block that evaluates the target."""
    receiver: int
    probes: int
    numbers: int
    """Count for all probes together; the plan's, so that nothing larger is ever taken (`Method.numbers`)."""
    every: int = 1
    """Messages come with every so many-th batch (`Method.every`)."""

    def check(self, message: Feedback | Lost) -> None:
        """Raises: FeedbackError: it is not; the line names the batch and the field."""
        what = f"feedback for batch {message.batch}"
        for name in ("run", "sender", "receiver"):
            if (have := getattr(message, name)) != (want := getattr(self, name)):
                raise FeedbackError(f"{what}: {name} is {have}, expected {want}")
        if message.batch % self.every:
            raise FeedbackError(f"{what}: batch is {message.batch}, expected a multiple of {self.every}")
        if isinstance(message, Lost):
            return
        if message.probes != tuple(range(self.probes)):
            raise FeedbackError(f"{what}: probes are not 0 to {self.probes - 1}")
        if len(message.numbers) != self.numbers:
            raise FeedbackError(f"{what}: numbers are {len(message.numbers)}, expected {self.numbers}")
        if not all(map(math.isfinite, message.numbers)):
            raise FeedbackError(f"{what} from block {message.sender} is not finite")


class Mailbox:
    """Everything is checked on arrival, and nowhere else: the run, the sender, the probes, how many numbers, that they are
    finite, and the batch.

    A batch that was here before is dropped and counted. One ahead of its turn waits here; there can be no more of
    them than the block has other batches in flight. When all of these have arrived, the one whose turn it is counts
    as missing: it is asked for again, skipped and counted, or an error.
    """

    def __init__(self, due: Due, first: int = 0, *, window: int, lost: str, metrics: Metrics) -> None:
        """
        Args:
            due: the messages that the block waits for.
            first: the batch that the block begins with.
            window: batches that may be in flight at the block.
            lost: `retry`, `skip` or `fail`.
            metrics: counts what happens to the messages.
        """
        self.due, self._metrics, self._window, self._lost = due, metrics, window, lost
        self._next = self._to_take = math.ceil(first / due.every) * due.every
        """The first batch that has not come, in order; and the batch that will be taken next."""
        self._most = math.ceil(window / due.every)
        """Batches in flight at the block whose readings are waited for, at most."""
        self._ahead: dict[int, Feedback | Lost] = {}
        self._waiting: deque[Feedback | Lost] = deque()

    plane, content = "feedback", "readings"
    """Names in messages."""

    @property
    def sender(self) -> int:
        """The block whose messages come here."""
        return self.due.sender

    def put(self, message: Feedback | Lost) -> Request | None:
        """Accept a message that has arrived.

        Returns:
            What to ask for, if the message shows that an earlier one is missing.

        Raises:
            FeedbackError: it is not what this block waits for, or `lost=fail` and an earlier one is missing; the line
                names the block, the batch and the field.
        """
        self.due.check(message)
        batch = message.batch
        if batch < self._next or batch in self._ahead:
            self._metrics.count(self.due.receiver, "duplicates")
            return None
        if isinstance(message, Lost) and self._lost != "skip":
            raise FeedbackError(
                f"feedback for batch {batch}: block {self.due.sender} sent it once, and does not have it any more"
            )
        if batch >= self._to_take + self._window:
            raise FeedbackError(f"feedback for batch {batch} came before block {self.due.receiver} can have sent it on")
        self._ahead[batch] = message
        self._put_in_order()
        return self._handle_missing() if len(self._ahead) >= max(1, self._most - 1) else None

    def _put_in_order(self) -> None:
        while self._next in self._ahead:
            self._waiting.append(self._ahead.pop(self._next))
            self._next += self.due.every

    def _handle_missing(self) -> Request | None:
        if self._lost == "fail":
            raise FeedbackError(f"feedback for batches {sorted(self._ahead)} came, that for batch {self._next} did not")
        if self._lost == "skip":
            self._ahead[self._next] = Lost(self.due.run, self._next, self.due.sender, self.due.receiver)
            self._put_in_order()
            return None
        return self.overdue()

    def overdue(self) -> Request | None:
        """Request for when the block has waited for long: the batch whose turn it is. Nothing with `lost=fail`."""
        return None if self._lost == "fail" else Request(self.due.run, self._next, self.due.receiver, self.due.sender)

    def first(self) -> Feedback | Lost | None:
        """The oldest message that is not yet taken."""
        return self._waiting[0] if self._waiting else None

    def take(self) -> Feedback | Lost:
        """Remove the oldest message: the batch's readings, or the news that they are lost."""
        self._to_take += self.due.every
        return self._waiting.popleft()
