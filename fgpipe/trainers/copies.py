"""Weights on their way to twins below: what a block sends of its own, and takes for the twin that it has."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fgpipe.models.twins import Twin
from fgpipe.plan.plan import Plan
from fgpipe.wire.feedback.messages import Weights


class Copies:
    """Copied weights of one block (`guess=twins`).

    After every `guess.every` batches that a block is done with, its weights go to the blocks below that have a copy. They
    carry the number of the batch that comes next.
    """

    def __init__(self, plan: Plan, index: int, block: nn.Module, head: Any, twin: Any, run: int) -> None:
        """Args: twin: the block's own; anything else where it has none."""
        method, self._index, self._run = plan.method, index, run
        self._method, self._twin = method, twin if method.has_copies(index) and isinstance(twin, Twin) else None
        self._pieces: dict[int, list[nn.Parameter]] = {}
        """The parameters that each block below has copies of."""
        shape = method.guess.twin
        for receiver in range(index) if shape is not None else ():
            if index in plan.weights_from(receiver):
                assert shape is not None
                last = method.sources(receiver)[-1] == index
                parts = [shape.part(block), *([head] if last else [])]
                self._pieces[receiver] = [each for part in parts for each in part.parameters()]

    def after(self, batch: int) -> Iterator[Weights]:
        """Weights to send when the block is done with a batch."""
        if self._method.copies(batch + 1):
            for receiver, parameters in self._pieces.items():
                yield Weights(self._run, batch + 1, self._index, receiver, _packed(parameters))

    @torch.no_grad()
    def take(self, weights: Weights) -> None:
        """Give the twin the weights that have come of a block above."""
        assert self._twin is not None, "nobody sends weights to a block without a twin"
        piece = self._twin.pieces()[self._method.sources(self._index).index(weights.sender)]
        values = torch.frombuffer(bytearray(weights.values), dtype=piece[0].dtype)
        for parameter, part in zip(piece, values.split([each.numel() for each in piece]), strict=True):
            parameter.copy_(part.view(parameter.shape))


def _packed(parameters: Sequence[Tensor]) -> bytes:
    """The numbers of parameters, one after the other, as they are in memory."""
    return torch.cat([each.detach().flatten() for each in parameters]).cpu().numpy().tobytes()
