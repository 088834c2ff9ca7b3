"""Modules of a configuration's ResNet: how many of its blocks learn as one."""

from collections.abc import Sequence
from dataclasses import replace

from fgpipe.config import Config
from fgpipe.models.net import resnet
from fgpipe.plan.costs import ForwardPass, head_flops
from fgpipe.plan.topology import balanced

CHANNELS, CLASSES = 3, 10
"""Numbers that FLOPs are counted with before the data are known; their part of the net is too small to matter."""
MOST = 0.1
"""Share of a module's FLOPs that a head should stay below."""


def resolved(config: Config, processes: int) -> Config:
    """The configuration with a list of modules in place of `model.modules=nproc`, balanced by FLOPs of forward passes.

    Args: processes: of one pipeline.
    """
    if config.model.modules != "nproc":
        return config
    alone = replace(config.model, modules=None)
    net = resnet(alone, config.head, in_channels=CHANNELS, classes=CLASSES)
    flops = ForwardPass.of(net, (2, CHANNELS, config.data.size, config.data.size)).flops
    return replace(config, model=replace(config.model, modules=list(balanced(flops, min(processes, len(flops))))))


def dear_heads(config: Config, flops: Sequence[int]) -> dict[int, float]:
    """Modules whose head has more than `MOST` of their FLOPs, and its share.

    Args: flops: of each module, on two images.
    """
    net = resnet(config.model, config.head, in_channels=CHANNELS, classes=CLASSES)
    heads = head_flops(net, (2, CHANNELS, config.data.size, config.data.size))
    return {j: head / own for j, (head, own) in enumerate(zip(heads, flops, strict=True)) if head > MOST * own}
