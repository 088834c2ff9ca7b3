"""The convolution of nets and heads."""

import torch.nn.functional as F
from torch import Tensor, nn


class PaddedConv2d(nn.Conv2d):
    """A convolution without bias, by an odd kernel, padded so that an image is only made smaller by the stride.

    On images one pixel wide the horizontal stride is 1, which changes nothing: with another one, oneDNN's bfloat16 kernel
    for the weight gradient leaves most of it unwritten, and it may be NaN (torch 2.14.1, on processors with AVX-512 BF16).
    """

    def __init__(self, in_channels: int, channels: int, kernel: int = 3, stride: int = 1) -> None:
        super().__init__(in_channels, channels, kernel, stride=stride, padding=kernel // 2, bias=False)

    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        down, across = self.stride
        return F.conv2d(x, weight, bias, (down, across if x.shape[-1] > 1 else 1), self.padding)
