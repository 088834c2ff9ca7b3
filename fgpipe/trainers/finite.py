"""NaN and infinity stop the run at the block where they first show."""

import math

import torch
from torch import Tensor

from fgpipe.errors import NotFiniteError


@torch.no_grad()
def check_finite(tensor: Tensor, block: int, what: str) -> None:
    """Refuse a tensor with a NaN or an infinity.

    One sum, which reads the tensor once and writes nothing: it is not finite if any term is not. It may overflow where
    all terms are finite, so only then each term is looked at.

    Raises:
        NotFiniteError: names the block and what the tensor is.
    """
    if not math.isfinite(tensor.sum().item()) and not tensor.isfinite().all():
        raise NotFiniteError(f"{what} is not finite", block=block)
