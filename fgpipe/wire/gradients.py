"""Gradients on their way back in asynchronous backpropagation, one for each batch.

A gradient is as large as the activation that it belongs to. It goes down on a link like those that batches go up on.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fgpipe.errors import LinkError
from fgpipe.wire.batch import Batch


@dataclass(eq=False)
class Gradient:
    """The gradient of the last loss at a block's output."""

    batch: int
    """The training batch, by its number."""
    receiver: int
    """The block whose output it is of."""
    x: Tensor
    """`[B, ...]`, shaped as the output."""
    drain: bool = False
    """As `Batch.drain`."""

    def as_batch(self) -> Batch:
        """The gradient as a link carries it: a batch without labels."""
        return Batch(self.batch, 0, True, self.x, torch.empty(0, dtype=torch.int64), drain=self.drain)

    @classmethod
    def of(cls, batch: Batch, receiver: int) -> "Gradient":
        """The inverse of `as_batch`."""
        return cls(batch.id, receiver, batch.x, batch.drain)


class GradientBox:
    """The gradients that have arrived for one block, in the order of the batches, as links keep it."""

    plane, content = "gradient", "gradient"
    """Names in messages."""

    def __init__(self, block: int, due: range, taken: Callable[[], None] = lambda: None) -> None:
        """
        Args:
            due: the batches whose gradients come.
            taken: called when a gradient is taken.
        """
        self._block, self._due, self._taken = block, due.start, taken
        self._waiting: deque[Gradient] = deque()

    @property
    def sender(self) -> int:
        """The block whose gradients come here."""
        return self._block + 1

    def put(self, gradient: Gradient) -> None:
        """Accept one that has arrived.

        Raises:
            LinkError: it is not the next one.
        """
        if gradient.batch != self._due:
            what = f"block {self._block} got the gradient of batch {gradient.batch} where number {self._due} was due"
            raise LinkError(what)
        self._due += 1
        self._waiting.append(gradient)

    def first(self) -> Gradient | None:
        """The oldest that is not yet taken."""
        return self._waiting[0] if self._waiting else None

    def take(self) -> Gradient:
        """Remove the oldest."""
        self._taken()
        return self._waiting.popleft()

    def overdue(self) -> None:
        """Nothing to ask for: links lose nothing."""
