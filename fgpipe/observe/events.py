"""The events of a step, for whoever observes it; a step yields them beside the messages that leave the block."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Worked:
    """The end of a piece of work, which began at the event or message before it."""

    kind: str
    """One of `timeline.COMPUTE`."""


@dataclass(frozen=True)
class Scored:
    """The score of a block's head on one batch."""

    block: int
    training: bool
    loss: float
    """Summed over the samples."""
    correct: float
    samples: int


@dataclass(frozen=True, eq=False)
class Learnt:
    """An update of a block or its head, which has been made."""

    block: int
    part: str
    """`block` or `head`."""
    estimates: Sequence[Tensor]
    """The gradient estimate of each trainable parameter; changed by nobody until the step goes on."""
    staleness: int | None = None
    """Updates of the block since the batch's forward pass; None where no readings are waited for."""


@dataclass(frozen=True)
class Skipped:
    """A batch whose readings are lost, so that no update is made of it."""

    block: int


@dataclass(frozen=True)
class Aligned:
    """The cosines of guess and global target of each block below the last, on one training batch."""

    batch: int
    cosines: Sequence[float]


StepEvent = Worked | Scored | Learnt | Skipped | Aligned
