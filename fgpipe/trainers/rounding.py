"""Gradients in the format of a link; with 8 bits what rounding took from one gradient is added to the next.

So over batches nothing is lost of their sum (error feedback, Seide et al. 2014; Karimireddy et al. 2019). Deviation:
there the gradients are of parameters; here they are of activations, whose samples change from batch to batch.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fgpipe.plan.precision import Precision


class Rounding:
    """Rounds the gradients that one block sends down, in their order."""

    def __init__(self, precision: Precision, residual: nn.Parameter | None) -> None:
        """Args: residual: zeros shaped as a gradient; None without error feedback."""
        self._precision, self._residual = precision, residual

    @classmethod
    def of(cls, precision: Precision, shape: Sequence[int], device: torch.device) -> "Rounding":
        """Args: shape: of a gradient; of no dimension for a block that sends none."""
        if not precision.int8 or not shape:
            return cls(precision, None)
        zeros = torch.zeros(*shape, dtype=precision.dtype, device=device)
        return cls(precision, nn.Parameter(zeros, requires_grad=False))

    @property
    def memory(self) -> nn.Module | None:
        """What a checkpoint needs."""
        return None if self._residual is None else nn.ParameterList([self._residual])

    @torch.no_grad()
    def __call__(self, gradient: Tensor) -> Tensor:
        """The gradient as it is after the link."""
        if self._residual is None:
            return self._precision.rounded(gradient)
        whole = gradient + self._residual
        sent = self._precision.rounded(whole)
        self._residual.copy_(whole - sent)
        return sent
