"""The weights that have arrived for the twin of one block."""

from collections import deque
from collections.abc import Mapping

from fgpipe.errors import FeedbackError
from fgpipe.wire.feedback.messages import Weights


class WeightsBox:
    """Weights from blocks above, in the order of the batches; everything is checked on arrival.

    Args:
        sizes: bytes of one message from each sender.
        every: batches from one message to the next.
        first: the batch that the block begins with.
    """

    def __init__(self, run: int, receiver: int, sizes: Mapping[int, int], every: int, first: int = 0) -> None:
        self._run, self._receiver, self._sizes, self._every = run, receiver, sizes, every
        self._due = dict.fromkeys(sizes, first // every * every + every)
        """Number of each sender's next message."""
        self._waiting: deque[Weights] = deque()

    def put(self, weights: Weights) -> None:
        """Accept what has arrived.

        Raises:
            FeedbackError: it is not what the block waits for; the line names the batch and the field.
        """
        what = f"weights for batch {weights.batch}"
        if weights.run != self._run:
            raise FeedbackError(f"{what}: run is {weights.run}, expected {self._run}")
        if weights.sender not in self._sizes:
            raise FeedbackError(f"{what}: sender is {weights.sender}, expected one of {sorted(self._sizes)}")
        if weights.batch != self._due[weights.sender]:
            raise FeedbackError(f"{what}: block {weights.sender} should have sent {self._due[weights.sender]}")
        if len(weights.values) != self._sizes[weights.sender]:
            raise FeedbackError(f"{what}: bytes are {len(weights.values)}, expected {self._sizes[weights.sender]}")
        self._due[weights.sender] += self._every
        self._waiting.append(weights)

    def complete(self, batch: int) -> bool:
        """All weights up to those of `batch` are here."""
        return all(due > batch for due in self._due.values())

    def missing(self, batch: int) -> int:
        """The lowest block whose weights are waited for."""
        return min(sender for sender, due in self._due.items() if due <= batch)

    def take(self, batch: int) -> list[Weights]:
        """Remove those up to `batch`, oldest first; of each sender the newest is enough."""
        newest = {each.sender: each for each in self._waiting if each.batch <= batch}
        self._waiting = deque(each for each in self._waiting if each.batch > batch)
        return list(newest.values())
