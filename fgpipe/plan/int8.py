"""`wire=int8`: activations, tangents and gradients in a byte for each number, and a float32 for each channel.

A channel of a tensor is scaled so that its largest number, by magnitude, is 127; the rest is rounded to whole numbers.
What is rounded is float32 still, and packing it for a link loses nothing: the scale is found again in the numbers.
Channels are in the last dimension, as on a link (NHWC). A batch and each of its lanes are scaled apart.
"""

import torch
from torch import Tensor

LARGEST = 127
LEAST = 1e-30
"""A channel with smaller numbers only is 0."""
SCALE = torch.float32.itemsize


def rounded(x: Tensor, groups: int = 1) -> Tensor:
    """The numbers `[groups * B, ..., C]`, float32, as they are after a link."""
    whole, scales = _quantized(x, groups)
    return (whole * scales).view(x.shape)


def pack(x: Tensor, groups: int = 1) -> Tensor:
    """The bytes of rounded numbers `[groups * B, ..., C]`, int8 `[packed_size]`: the numbers, then the scales."""
    whole, scales = _quantized(x, groups)
    return torch.cat([whole.to(torch.int8).flatten(), scales.flatten().contiguous().view(torch.int8)])


def unpack(packed: Tensor, shape: torch.Size, groups: int = 1) -> Tensor:
    """The inverse: numbers `[groups * B, ..., C]`, float32."""
    count = shape.numel()
    scales = packed[count:].clone().view(torch.float32).view(groups, 1, shape[-1])
    return (packed[:count].view(groups, -1, shape[-1]) * scales).view(shape)


def packed_size(shape: torch.Size, groups: int = 1) -> int:
    """Bytes of so many numbers."""
    return shape.numel() + SCALE * groups * shape[-1]


def _quantized(x: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    """Whole numbers `[groups, n, C]`, in float32, and scales `[groups, 1, C]`."""
    by_channel = x.reshape(groups, -1, x.shape[-1])
    most = by_channel.abs().amax(dim=1, keepdim=True)
    scales = torch.where(most < LEAST, 0.0, most / LARGEST)
    for _ in range(2):  # until 127 times the scale gives the scale again: then what is rounded has the same one
        scales = scales * LARGEST / LARGEST
    return torch.round(by_channel / torch.where(scales == 0, 1.0, scales)), scales
