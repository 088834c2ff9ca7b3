"""Floating-point formats in which a run computes, and sends activations and tangents up."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from fgpipe.config import Config
from fgpipe.plan import int8

DTYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Precision:
    """Formats of one run."""

    dtype: torch.dtype
    """Format of parameters, guesses, scalars, estimates and updates, and of all compute without autocast."""
    wire: torch.dtype
    """Format of activations and tangents between blocks; within a process too, so that no number depends on the processes."""
    int8: bool = False
    """They are rounded to 8 bits a number (`plan.int8`), which a link packs; `wire` is their format before and after."""
    autocast: bool = False
    """Blocks and heads, their tangents included, compute in bfloat16 where PyTorch's autocast does."""

    @classmethod
    def of(cls, config: Config) -> "Precision":
        packed = config.wire == "int8"
        wire = config.dtype if config.wire is None or packed else config.wire
        return cls(DTYPES[config.dtype], DTYPES[wire], packed, config.autocast)

    def rounded(self, x: Tensor, groups: int = 1) -> Tensor:
        """Activations, or so many stacked tangents of them, `[groups * B, ...]`, as they are between blocks."""
        if not self.int8:
            return x.to(self.wire)
        if x.dim() != 4:
            return int8.rounded(x, groups)
        return int8.rounded(x.permute(0, 2, 3, 1), groups).permute(0, 3, 1, 2)

    def bytes_of(self, shape: torch.Size) -> int:
        """Bytes on a link of one activation, or of one of its tangents, for all samples: `[B, C, H, W]`, or `[B, ..., C]`."""
        if not self.int8:
            return self.wire.itemsize * shape.numel()
        return shape.numel() + int8.SCALE * (shape[1] if len(shape) == 4 else shape[-1])

    def casting(self, device: torch.device) -> AbstractContextManager[None]:
        """Around the compute of a batch."""
        return torch.autocast(device.type, torch.bfloat16) if self.autocast else nullcontext()
