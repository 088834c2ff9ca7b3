"""The feedback plane within one process."""

from collections.abc import Callable

from fgpipe.runtime.feedback.base import FeedbackPlane
from fgpipe.runtime.feedback.messages import Feedback


class MemoryFeedback(FeedbackPlane):
    """Hands messages straight to the worker, unencoded."""

    def __init__(self, deliver: Callable[[Feedback], None]) -> None:
        self._deliver = deliver

    def send(self, feedback: Feedback) -> None:
        self._deliver(feedback)

    def close(self) -> None:
        pass
