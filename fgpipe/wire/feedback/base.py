"""The feedback plane: how scalars are sent, and asked for again."""

from abc import ABC, abstractmethod

from fgpipe.wire.feedback.messages import Feedback, Request


class FeedbackPlane(ABC):
    """Carries scalars from whoever evaluated a target straight to the block that asked."""

    @abstractmethod
    def send(self, feedback: Feedback) -> None:
        """Hand a message over; does not wait for its receiver."""

    @abstractmethod
    def ask(self, request: Request) -> None:
        """Ask for scalars that should be here. They come again if their target has been evaluated; else later, once."""

    @abstractmethod
    def close(self) -> None:
        """Wait until everything that was sent has left, and free the sockets."""
