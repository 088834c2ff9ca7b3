"""A module's second run, made the same as its first: its random numbers, dropout masks, attributes and fused kernels."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode


def generators(x: Tensor) -> list[Tensor]:
    """States of the global generators that a module may draw from."""
    return [torch.get_rng_state(), *([torch.cuda.get_rng_state(x.device)] if x.is_cuda else [])]


@contextmanager
def again(drawn: list[Tensor], x: Tensor) -> Iterator[None]:
    """Around a second run: it draws the numbers of the first, which began with these states; none if it drew none."""
    if not drawn:
        yield
        return
    with torch.random.fork_rng([x.device] if x.is_cuda else []):
        torch.set_rng_state(drawn[0])
        if x.is_cuda:
            torch.cuda.set_rng_state(drawn[1], x.device)
        yield


@contextmanager
def attributes_kept(module: nn.Module) -> Iterator[None]:
    """Undo what a run assigns to its layers, such as a tensor of `torch.func` that is dead when it ends."""
    before = [(vars(layer), dict(vars(layer))) for layer in module.modules()]
    try:
        yield
    finally:
        for attributes, kept in before:
            attributes.clear()
            attributes.update(kept)


class Masks(TorchFunctionMode):
    """Dropout with masks that a second run finds again, in the order in which the first made them.

    PyTorch fills a mask in the order of memory, which `vmap` may change.
    """

    def __init__(self) -> None:
        super().__init__()
        self.made: list[Tensor] = []
        self._left: list[Tensor] | None = None

    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)
        self._left = list(self.made)

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        told = dict(zip(("input", "p", "training", "inplace"), args)) | (kwargs or {})
        if function not in DROPOUTS or not told.get("training", True):
            return function(*args, **(kwargs or {}))
        x = told["input"]
        if self._left is None:
            self.made.append(function(torch.ones_like(x.detach()), told.get("p", 0.5), True))
        mask = self.made[-1] if self._left is None else self._left.pop(0)
        return x.mul_(mask) if told.get("inplace") else x * mask


DROPOUTS = (F.dropout, F.dropout1d, F.dropout2d, F.dropout3d)
"""Functions that multiply by a mask."""


class ForwardMode(TorchFunctionMode):
    """Equivalents of what PyTorch fuses into a kernel without forward mode."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return (_weight_norm if function is torch._weight_norm else function)(*args, **(kwargs or {}))


def _weight_norm(v: Tensor, g: Tensor, dim: int = 0) -> Tensor:
    """`g v / |v|`, the norm over all dimensions but `dim`."""
    return v * (g / torch.norm_except_dim(v, 2, dim))
