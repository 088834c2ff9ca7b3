"""Reverse mode, as PyTorch has it."""

from collections.abc import Sequence

import torch
from torch import Tensor


def gradients(
    value: Tensor, tensors: Sequence[Tensor], signal: Tensor | None = None, *, retain_graph: bool = False
) -> tuple[Tensor, ...]:
    """The gradient of `<signal, value>` with respect to each tensor; zeros where `value` does not depend on one.

    Args:
        signal: shaped as `value`; None for a scalar.
    """
    if not tensors or not value.requires_grad:
        return tuple(torch.zeros_like(tensor) for tensor in tensors)
    kept = {"retain_graph": retain_graph, "allow_unused": True, "materialize_grads": True}
    return torch.autograd.grad(value, list(tensors), signal, **kept)
