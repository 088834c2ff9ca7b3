"""Makes one number of a run NaN or infinite. Usage: torchrun ... poison.py KIND BLOCK BATCH [key=value ...]."""

import sys
from collections.abc import Callable
from dataclasses import replace as changed

import torch

from fgpipe.train import main
from fgpipe.trainers.stage import Stage

KINDS = [
    ("activation", 3, "activation of batch 2"),
    ("weight", 3, "activation of batch 2"),
    ("tangent", 3, "tangent of batch 2"),
    ("head", 5, "loss of batch 2"),
    ("classifier", 7, "loss of batch 2"),
    ("scalar", 7, "scalar of batch 2"),
    ("test activation", 4, "activation of test batch 0"),
]
"""What is poisoned, a block, and how the error names what shows first there."""


def poison(kind: str, block: int, batch: int, value: float, replace: Callable = setattr) -> None:
    """Patch `Stage` so that at one block, in one batch, one element of something becomes `value`."""
    primal, push, train, evaluate = Stage._primal, Stage._push_lanes, Stage.train, Stage.evaluate
    targets = Stage._evaluate_targets

    def poisoned(tensor: torch.Tensor) -> torch.Tensor:
        mark = torch.zeros(tensor.shape)
        mark[(-1,) * tensor.dim()] = value
        return tensor + mark

    def new_primal(self, weights, given):
        y, push = primal(self, weights, given)
        return (poisoned(y) if (self.index, given.id) == (block, batch) else y), push

    def new_push(self, linear, given, y, guess):
        dy = push(self, linear, given, y, guess)
        return changed(dy, value=poisoned(dy.value)) if (self.index, given.id) == (block, batch) else dy

    def new_train(self, given, send, reply):
        if (self.index, given.id) == (block, batch):
            module = self.block if kind == "weight" else self.head
            parameter = list(module.parameters())[-1 if kind != "weight" else 0]
            parameter.data = poisoned(parameter.data)
        return train(self, given, send, reply)

    def new_targets(self, dy, push_losses, given, reply):
        if (self.index, given.id) == (block, batch):
            return targets(self, dy, lambda tangent: poisoned(push_losses(tangent)), given, reply)
        return targets(self, dy, push_losses, given, reply)

    def new_evaluate(self, given, send):
        if (self.index, given.id) == (block, 0):
            parameter = next(self.block.parameters())
            parameter.data = poisoned(parameter.data)
        return evaluate(self, given, send)

    name, new = {
        "activation": ("_primal", new_primal),
        "tangent": ("_push_lanes", new_push),
        "weight": ("train", new_train),
        "head": ("train", new_train),
        "classifier": ("train", new_train),
        "scalar": ("_evaluate_targets", new_targets),
        "test activation": ("evaluate", new_evaluate),
    }[kind]
    replace(Stage, name, new)


if __name__ == "__main__":
    kind, block, batch, *overrides = sys.argv[1:]
    poison(kind, int(block), int(batch), float("nan"))
    sys.exit(main(overrides))
