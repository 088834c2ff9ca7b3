"""Floating-point formats in which a run computes, and sends activations and tangents up."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch

from fgpipe.config import Config

DTYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Precision:
    """Formats of one run."""

    dtype: torch.dtype
    """Format of parameters, guesses, scalars, estimates and updates, and of all compute without autocast."""
    wire: torch.dtype
    """Format of activations and tangents between blocks; within a process too, so that no number depends on the processes."""
    autocast: bool = False
    """Blocks and heads, their tangents included, compute in bfloat16 where PyTorch's autocast does."""

    @classmethod
    def of(cls, config: Config) -> "Precision":
        return cls(DTYPES[config.dtype], DTYPES[config.wire or config.dtype], config.autocast)

    def casting(self, device: torch.device) -> AbstractContextManager[None]:
        """Around the compute of a batch."""
        return torch.autocast(device.type, torch.bfloat16) if self.autocast else nullcontext()
