"""ResNet-18 as a list of blocks (paper, section 4.1 and A.1).

Layer widths are the standard ones (64, 128, 256, 512) times `width`, rounded, at least 1.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from fgpipe.models.convolution import PaddedConv2d

STAGE_WIDTHS = (64, 128, 256, 512)


class Residual(nn.Module):
    """`relu(body(x) + shortcut(x))`."""

    def __init__(self, body: nn.Module, shortcut: nn.Module) -> None:
        super().__init__()
        self.body = body
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.body(x) + self.shortcut(x))


def resnet18(
    blocks: int, *, width: float = 1.0, stem: str = "cifar", in_channels: int = 3
) -> tuple[list[nn.Module], int]:
    """ResNet-18 in 8 residual or 16 plain blocks, without its classifier.

    Args:
        blocks: 8 residual blocks; or 16 plain ones without skips, one layer each but block 0, which has two.
        width: factor on every layer's channels.
        stem: `cifar` (3x3, stride 1) or `imagenet` (7x7, stride 2, then 3x3 max-pooling, stride 2); part of block 0.

    Returns:
        The blocks, and the channels of the last one's output.
    """
    widths = [max(1, round(width * channels)) for channels in STAGE_WIDTHS]
    layers = list(_residual_blocks(widths) if blocks == 8 else _plain_blocks(widths))
    layers[0] = nn.Sequential(*_stem(stem, in_channels, widths[0]), layers[0])
    return layers, widths[-1]


def _stem(kind: str, in_channels: int, channels: int) -> list[nn.Module]:
    if kind == "imagenet":
        return [*_conv_bn(in_channels, channels, kernel=7, stride=2), nn.ReLU(), nn.MaxPool2d(3, stride=2, padding=1)]
    return [*_conv_bn(in_channels, channels), nn.ReLU()]


def _residual_blocks(widths: list[int]) -> Iterator[nn.Module]:
    previous = widths[0]
    for stage, channels in enumerate(widths):
        for position in range(2):
            stride = 2 if position == 0 and stage > 0 else 1
            body = nn.Sequential(*_conv_bn(previous, channels, stride=stride), nn.ReLU(), *_conv_bn(channels, channels))
            straight = stride == 1 and previous == channels
            shortcut = nn.Identity() if straight else nn.Sequential(*_downsample(previous, channels, stride))
            yield Residual(body, shortcut)
            previous = channels


def _downsample(in_channels: int, channels: int, stride: int) -> tuple[nn.Module, ...]:
    """The strided 1x1 convolution of a shortcut, as subsampling and a 1x1 convolution, which is the same map.

    oneDNN's AVX2 kernel for the weight gradient of a strided 1x1 convolution in channels last writes out of bounds
    where the channels are few and no multiple of 8 (torch 2.14.1: 4 to 4 channels end in a corrupted heap).
    """
    return nn.AvgPool2d(1, stride), *_conv_bn(in_channels, channels, kernel=1)


def _plain_blocks(widths: list[int]) -> Iterator[nn.Module]:
    previous = widths[0]
    for stage, channels in enumerate(widths):
        for position in range(4):
            stride = 2 if position == 0 and stage > 0 else 1
            yield nn.Sequential(*_conv_bn(previous, channels, stride=stride), nn.ReLU())
            previous = channels


def _conv_bn(in_channels: int, channels: int, *, kernel: int = 3, stride: int = 1) -> tuple[nn.Module, nn.Module]:
    return PaddedConv2d(in_channels, channels, kernel, stride), nn.BatchNorm2d(channels)
