"""The pooling of heads."""

from typing import Any

import torch.nn.functional as F
from torch import Size, Tensor, nn
from torch.autograd import Function


class GridPool2d(nn.AdaptiveAvgPool2d):
    """Means over the cells of a grid, `[B, C, H, W] -> [B, C, size, size]`, by another backward pass on the CPU.

    PyTorch's copies its input to channels first and its result back to channels last; this one takes a quarter of the time.
    Images that the grid does not divide evenly are left to PyTorch.
    """

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        even = x.dim() == 4 and x.shape[2] % self.size == x.shape[3] % self.size == 0
        if even and x.device.type == "cpu":
            pooled: Tensor = _Pool.apply(x, self.size)
            return pooled
        return super().forward(x)


class _Pool(Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, size: int) -> Tensor:
        return F.avg_pool2d(x, (x.shape[2] // size, x.shape[3] // size))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, int], output: Tensor) -> None:
        ctx.shape, ctx.size = inputs[0].shape, inputs[1]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return spread_over_cells(gradient, ctx.shape), None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, _: None) -> Tensor:
        return _Pool.forward(tangent, ctx.size)


def spread_over_cells(means: Tensor, shape: Size) -> Tensor:
    """The adjoint of the means over cells, `[B, C, size, size]` to `shape`, channels last."""
    batch, channels, height, width = shape
    size = means.shape[2]
    down, across = height // size, width // size
    cells = (means / (down * across)).permute(0, 2, 3, 1)[:, :, None, :, None]
    return (
        cells.expand(batch, size, down, size, across, channels)
        .reshape(batch, height, width, channels)
        .permute(0, 3, 1, 2)
    )
