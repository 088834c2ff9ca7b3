"""A convolution with a stride that is right on images one pixel wide too."""

import torch.nn.functional as F
from torch import Tensor, nn


class StridedConv2d(nn.Conv2d):
    """A 3x3 convolution with padding, whose horizontal stride is 1 on images one pixel wide, where that changes nothing.

    With another stride, oneDNN's bfloat16 kernel for the weight gradient leaves most of it unwritten on such images: it
    may be NaN (torch 2.14.1, on processors with AVX-512 BF16).
    """

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__(in_channels, channels, 3, stride=stride, padding=1, bias=False)

    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        down, across = self.stride
        return F.conv2d(x, weight, bias, (down, across if x.shape[-1] > 1 else 1), self.padding)
