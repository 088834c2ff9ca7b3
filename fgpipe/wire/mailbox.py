"""The scalars that have arrived for one block, in the order of the batches, and what is done about lost ones."""

import math
from collections import deque

from fgpipe.observe.metrics import Metrics
from fgpipe.wire.feedback.messages import Feedback, FeedbackError, Lost, Request


class Mailbox:
    """Everything is checked on arrival: the run, the sender, the probes, the number of scalars, the batch.

    A batch that was here before is dropped and counted. One ahead of its turn waits here; there can be no more of
    them than the block has other batches in flight. When all of these have arrived, the one whose turn it is counts
    as missing: it is asked for again, skipped and counted, or an error.
    """

    def __init__(
        self,
        block: int,
        sender: int,
        probes: int,
        samples: int,
        run: int,
        first: int = 0,
        *,
        window: int,
        lost: str,
        metrics: Metrics,
    ) -> None:
        """
        Args:
            sender: the block that evaluates the target.
            probes, samples: a message must have P probes and P * S scalars.
            first: the batch that the block begins with.
            window: batches that may be in flight at the block.
            lost: `retry`, `skip` or `fail`.
            metrics: counts what happens to the messages.
        """
        self._block, self.sender, self._run, self._metrics = block, sender, run, metrics
        self._expected = (run, sender, block)
        self._probes, self._scalars = tuple(range(probes)), probes * samples
        self._window, self._lost = window, lost
        self._next = first
        """The first batch that has not come, in order."""
        self._to_take = first
        """The batch that will be taken next."""
        self._ahead: dict[int, Feedback | Lost] = {}
        self._waiting: deque[Feedback | Lost] = deque()

    def put(self, message: Feedback | Lost) -> Request | None:
        """Accept a message that has arrived.

        Returns:
            What to ask for, if the message shows that an earlier one is missing.

        Raises:
            FeedbackError: it is not what this block waits for, or `lost=fail` and an earlier one is missing; the line
                names the block, the batch and the field.
        """
        self._check(message)
        batch = message.batch
        if batch < self._next or batch in self._ahead:
            self._metrics.count(self._block, "duplicates")
            return None
        if isinstance(message, Lost) and self._lost != "skip":
            raise FeedbackError(
                f"feedback for batch {batch}: block {self.sender} sent it once, and does not have it any more"
            )
        if batch >= self._to_take + self._window:
            raise FeedbackError(f"feedback for batch {batch} came before block {self._block} can have sent it on")
        self._ahead[batch] = message
        self._put_in_order()
        return self._handle_missing() if len(self._ahead) >= max(1, self._window - 1) else None

    def _check(self, message: Feedback | Lost) -> None:
        what = f"feedback for batch {message.batch}"
        got = (message.run, message.sender, message.receiver)
        for name, have, want in zip(("run", "sender", "receiver"), got, self._expected, strict=True):
            if have != want:
                raise FeedbackError(f"{what}: {name} is {have}, expected {want}")
        if isinstance(message, Lost):
            return
        if message.probes != self._probes:
            raise FeedbackError(f"{what}: probes are not 0 to {len(self._probes) - 1}")
        if len(message.scalars) != self._scalars:
            raise FeedbackError(f"{what}: scalars are {len(message.scalars)}, expected {self._scalars}")
        if not all(map(math.isfinite, message.scalars)):
            raise FeedbackError(f"{what} from block {message.sender} is not finite")

    def _put_in_order(self) -> None:
        while self._next in self._ahead:
            self._waiting.append(self._ahead.pop(self._next))
            self._next += 1

    def _handle_missing(self) -> Request | None:
        if self._lost == "fail":
            raise FeedbackError(f"feedback for batches {sorted(self._ahead)} came, that for batch {self._next} did not")
        if self._lost == "skip":
            self._ahead[self._next] = Lost(self._run, self._next, self.sender, self._block)
            self._put_in_order()
            return None
        return self.overdue()

    def overdue(self) -> Request | None:
        """What to ask for when the block has waited for long: the batch whose turn it is. Nothing with `lost=fail`."""
        return None if self._lost == "fail" else Request(self._run, self._next, self._block, self.sender)

    def first(self) -> Feedback | Lost | None:
        """The oldest message that is not yet taken."""
        return self._waiting[0] if self._waiting else None

    def take(self) -> Feedback | Lost:
        """Remove the oldest message: the batch's scalars, or the news that they are lost."""
        self._to_take += 1
        return self._waiting.popleft()
