"""The feedback plane: where a block finds its scalars, and how they are sent."""

import math
from abc import ABC, abstractmethod
from collections import deque

from fgpipe.runtime.feedback.messages import Feedback, FeedbackError


class Mailbox:
    """The scalars that have arrived for one block, in the order of the batches.

    Everything is checked on arrival: the sender, the probes, the number of scalars, the batch. A batch that was
    here before is dropped and counted; one that skips a batch is an error.
    """

    def __init__(self, block: int, sender: int, probes: int, samples: int, run: int, first: int = 0) -> None:
        """
        Args:
            probes, samples: a message must have P probes and P * S scalars.
            first: the batch that the first message must be for.
        """
        self._expected = (run, sender, block, tuple(range(probes)), probes * samples)
        self._next = first
        self._waiting: deque[Feedback] = deque()
        self.duplicates = 0

    def put(self, feedback: Feedback) -> None:
        """Accept a message that has arrived.

        Raises:
            FeedbackError: it is not what this block waits for; the line names the block, the batch and the field.
        """
        got = (feedback.run, feedback.sender, feedback.receiver, feedback.probes, len(feedback.scalars))
        for name, have, want in zip(("run", "sender", "receiver", "probes", "scalars"), got, self._expected, strict=True):
            if have != want:
                raise FeedbackError(f"feedback for batch {feedback.batch}: {name} is {have}, expected {want}")
        if not all(map(math.isfinite, feedback.scalars)):
            raise FeedbackError(f"feedback for batch {feedback.batch} from block {feedback.sender} is not finite")
        if feedback.batch < self._next:
            self.duplicates += 1
            return
        if feedback.batch > self._next:
            raise FeedbackError(f"feedback for batch {feedback.batch} came before that for batch {self._next}")
        self._next += 1
        self._waiting.append(feedback)

    def first(self) -> Feedback | None:
        """The oldest message that is not yet taken."""
        return self._waiting[0] if self._waiting else None

    def take(self) -> Feedback:
        """Remove the oldest message."""
        return self._waiting.popleft()


class FeedbackPlane(ABC):
    """Carries scalars from whoever evaluated a target straight to the block that asked."""

    @abstractmethod
    def send(self, feedback: Feedback) -> None:
        """Hand a message over; does not wait for its receiver."""

    @abstractmethod
    def close(self) -> None:
        """Wait until everything that was sent has left, and free the sockets."""
