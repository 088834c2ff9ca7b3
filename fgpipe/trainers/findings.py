"""Numbers of a step that the host must know: all of a block's batch in one transfer, which nobody waits for on a GPU.

NaN and infinity stop the run at the block where they first show, when its numbers arrive: before the block's own update
on the CPU (PyTorch's pipelines: after it), at most one batch later on a GPU, and before anything is saved.
"""

import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from fgpipe.errors import LinkError, NotFiniteError
from fgpipe.observe.events import Scored, StepEvent
from fgpipe.wire.batch import Batch
from fgpipe.wire.feedback.messages import Feedback

Told = Callable[[Sequence[float]], Feedback | StepEvent | None]
"""Function from numbers to what they say."""


class Findings:
    """Numbers that a step finds out, in order; a step yields them once they are all there.

    Args: given: the batch that the step was given by a block below, if one may be at fault.
    """

    def __init__(self, given: Batch | None = None) -> None:
        self._given = given
        self.numbers: list[Tensor] = []
        self._told: list[Told] = []

    def tell(self, numbers: Tensor, told: Told) -> None:
        """Add numbers `[...]`, and what is to be made of them, in their order in memory, on the host."""
        self.numbers.append(numbers.detach().flatten())
        self._told.append(told)

    def finite(self, tensor: Tensor, block: int, what: str) -> None:
        """Add a test for NaN and infinity; `NotFiniteError` names the block and what the tensor is.

        `LinkError` if what the block was given is to blame.
        One sum, which reads the tensor once and writes nothing: it is not finite if any term is not. It may overflow where
        all terms are finite, so only then each term is looked at.
        """
        tensor, given = tensor.detach(), self._given

        def told(numbers: Sequence[float]) -> None:
            if math.isfinite(numbers[0]) or tensor.isfinite().all():
                return
            if block and given is not None and not _is_finite(given):
                raise LinkError(f"block {block - 1} sent {given.name} with NaN or infinity")
            raise NotFiniteError(f"{what} is not finite", block=block)

        self.tell(tensor.sum(), told)

    def score(self, block: int, training: bool, losses: Tensor, logits: Tensor, labels: Tensor) -> None:
        """Add the score of a head: losses `[B]`, logits `[B, classes]`, labels `[B]`."""
        loss = losses.detach().sum(dtype=torch.float64)
        correct = (logits.argmax(dim=1) == labels).sum(dtype=torch.float64)
        samples = len(labels)
        self.tell(
            torch.stack([loss, correct]), lambda numbers: Scored(block, training, numbers[0], numbers[1], samples)
        )

    def send(self) -> "Transfer":
        """Begin the transfer of all numbers."""
        return Transfer(self.numbers, self._told)


def _is_finite(batch: Batch) -> bool:
    """Activation and lanes are finite."""
    tensors = [batch.x] if batch.tangent is None else [batch.x, batch.tangent.value]
    return all(bool(tensor.isfinite().all()) for tensor in tensors)


class Transfer:
    """Numbers on their way to the host, as float64, which holds every number of a smaller type."""

    def __init__(self, parts: Sequence[Tensor], told: Sequence[Told]) -> None:
        self._sizes, self._told = [len(part) for part in parts], told
        numbers = torch.cat([part.double() for part in parts]) if parts else torch.empty(0, dtype=torch.float64)
        self._arrived: torch.cuda.Event | None = None
        if numbers.is_cuda:
            self._host = torch.empty(numbers.shape, dtype=numbers.dtype, pin_memory=True)
            self._host.copy_(numbers, non_blocking=True)
            self._arrived = torch.cuda.Event()
            self._arrived.record()
        else:
            self._host = numbers

    @property
    def arrived(self) -> bool:
        """Nobody would wait for the numbers now."""
        return self._arrived is None or self._arrived.query()

    def read(self) -> Iterator[Feedback | StepEvent]:
        """Wait for the numbers, and yield what they say, in order.

        Raises:
            NotFiniteError: a tensor has a NaN or an infinity.
            LinkError: and what the block was given had one.
        """
        if self._arrived is not None:
            self._arrived.synchronize()
        numbers, start = self._host.tolist(), 0
        for size, told in zip(self._sizes, self._told, strict=True):
            if (message := told(numbers[start : start + size])) is not None:
                yield message
            start += size
