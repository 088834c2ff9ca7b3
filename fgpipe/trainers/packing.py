"""`wire=int8` for `torch.distributed.pipelining`, which moves activations and gradients of autograd: packed ones.

What crosses a link is a tensor of autograd in both directions, so bytes stand in a float32 tensor a quarter as long,
whose numbers mean nothing: it is moved and never computed with.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from fgpipe.plan import int8
from fgpipe.plan.precision import Precision
from fgpipe.trainers.rounding import Rounding


class Rounded(Function):
    """An activation in the format of a link, whose gradient is in that format already."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, precision: Precision) -> Tensor:
        return precision.rounded(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


class Sending(Function):
    """An activation that came from the block below, whose gradient goes there in the format of a link."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, rounding: Rounding) -> Tensor:
        ctx.rounding = rounding
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return ctx.rounding(gradient), None


class Packed(Function):
    """Rounded numbers `[B, ..., C]` to floats of bytes, and the gradient back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.shape = x.shape
        return to_floats(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return from_floats(gradient, ctx.shape)


class Unpacked(Function):
    """The inverse of `Packed`."""

    @staticmethod
    def forward(ctx: Any, floats: Tensor, shape: torch.Size) -> Tensor:
        return from_floats(floats, shape)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return to_floats(gradient), None


def floats_of(shape: torch.Size) -> int:
    """Floats that hold the bytes of so many numbers."""
    return -(-int8.packed_size(shape) // torch.float32.itemsize)


def to_floats(x: Tensor) -> Tensor:
    """Rounded numbers `[B, ..., C]` as float32 `[floats_of]`."""
    packed = int8.pack(x)
    room = packed.new_zeros(torch.float32.itemsize * floats_of(x.shape))
    room[: len(packed)] = packed
    return room.view(torch.float32)


def from_floats(floats: Tensor, shape: torch.Size) -> Tensor:
    """The inverse of `to_floats`."""
    return int8.unpack(floats.contiguous().view(torch.int8)[: int8.packed_size(shape)], shape)
