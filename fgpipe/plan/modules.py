"""Modules of a configuration's ResNet: how many of its blocks learn as one."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import zip_longest

from fgpipe.config import Config
from fgpipe.models.net import Net, resnet
from fgpipe.plan.costs import ForwardPass, head_flops
from fgpipe.plan.plan import of_config
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
    """Modules whose heads have more than `MOST` of their FLOPs together, and the share.

    Args: flops: of each module, on two images.
    """
    shape = 2, CHANNELS, config.data.size, config.data.size
    net = of_config(config, CHANNELS, CLASSES)
    heads = head_flops(net, shape)
    beside = head_flops(Net(net.blocks, [*net.beside, net.heads[-1]]), shape)[:-1] if net.beside else []
    shares = [(head + second) / own for head, second, own in zip_longest(heads, beside, flops, fillvalue=0)]
    return {j: share for j, share in enumerate(shares) if share > MOST}
