"""The face of what a worker drives: a step is a generator, which knows no sockets and calls nobody."""

from collections.abc import Generator, Iterator
from typing import Protocol, TypeVar

from fgpipe.gradients.optim import Trained
from fgpipe.observe.events import StepEvent
from fgpipe.trainers.findings import Findings
from fgpipe.wire.batch import Batch
from fgpipe.wire.feedback.messages import Feedback, Lost, Weights
from fgpipe.wire.gradients import Gradient

Given = Batch | Feedback | Lost | Gradient | Weights
"""What has arrived for a step."""
Message = Batch | Gradient | Weights | Findings | StepEvent
"""Yield of a step: a batch for the block above, a gradient for the one below, weights for a twin, numbers for the host,
readings for blocks below among them, or an event for observers."""
Found = TypeVar("Found")
Part = Generator[Message, None, Found]
"""A part of a step, and what it finds."""


class Step(Protocol):
    """A block, or several that learn as one."""

    index: int
    """The lowest block."""

    def run(self, given: Given) -> Iterator[Message]:
        """Work on what has arrived for an action of the schedule; yield each message as early as it can leave."""

    def trained(self) -> dict[int, dict[str, Trained]]:
        """Everything that each block has learnt, by block and name, when no batch is in flight."""
