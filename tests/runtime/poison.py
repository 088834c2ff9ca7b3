"""Makes one number of a run NaN or infinite. Usage: torchrun ... poison.py KIND BLOCK BATCH [key=value ...]."""

import sys
from collections.abc import Callable, Iterator
from dataclasses import replace as changed
from typing import Any

import torch
from torch import Tensor

from fgpipe.gradients import Tangent
from fgpipe.train import main
from fgpipe.trainers import stage as stages
from fgpipe.trainers.stage import Stage
from fgpipe.trainers.step import Message
from fgpipe.wire.batch import Batch

KINDS = [
    ("activation", 3, "activation of batch 2"),
    ("weight", 3, "activation of batch 2"),
    ("tangent", 3, "tangent of batch 2"),
    ("head", 5, "loss of batch 2"),
    ("classifier", 7, "loss of batch 2"),
    ("reading", 7, "reading of batch 2"),
    ("test activation", 4, "activation of test batch 0"),
]
"""Poisoned thing, its block, and the error's name of what shows first there."""


def poison(kind: str, block: int, batch: int, value: float, replace: Callable[..., None] = setattr) -> None:
    """At one block, in one batch, let one element of something become `value`."""
    here = False
    run, linearize, linearize_head = Stage.run, stages.linearize, stages.linearize_head

    def poisoned(tensor: Tensor) -> Tensor:
        mark = torch.zeros(tensor.shape)
        mark[(-1,) * tensor.dim()] = value
        return tensor + mark

    def new_run(self: Stage, given: Any) -> Iterator[Message]:
        nonlocal here
        wanted = (block, 0, False) if kind == "test activation" else (block, batch, True)
        here = isinstance(given, Batch) and (self.index, given.id, given.training) == wanted
        if here and kind in ("weight", "test activation", "head", "classifier"):
            parameters = list((self.head if kind in ("head", "classifier") else self.block).parameters())
            parameter = parameters[-1 if kind in ("head", "classifier") else 0]
            parameter.data = poisoned(parameter.data)
        yield from run(self, given)

    def new_linearize(*arguments: Any) -> Any:
        y, push = linearize(*arguments)
        if here and kind == "activation":
            y = poisoned(y)

        def new_push(*arguments: Any) -> Tangent | None:
            dy = push(*arguments)
            return changed(dy, value=poisoned(dy.value)) if here and kind == "tangent" and dy is not None else dy

        return y, new_push

    def new_linearize_head(*arguments: Any) -> Any:
        losses, logits, read = linearize_head(*arguments)
        return losses, logits, lambda dx: poisoned(read(dx)) if here and kind == "reading" else read(dx)

    replace(Stage, "run", new_run)
    replace(stages, "linearize", new_linearize)
    replace(stages, "linearize_head", new_linearize_head)


if __name__ == "__main__":
    kind, block, batch, *overrides = sys.argv[1:]
    poison(kind, int(block), int(batch), float("nan"))
    sys.exit(main(overrides))
