"""A net as the runtime sees it: a list of blocks, each with a head."""

from dataclasses import dataclass

import torch
from torch import nn

from fgpipe.config import HeadConfig, ModelConfig
from fgpipe.models.heads import auxiliary_head, classifier
from fgpipe.models.init import initialize
from fgpipe.models.resnet import resnet18


@dataclass
class Net:
    """`blocks[j]` maps `[B, ...]` to the next block's input; `heads[j]` judges its output, the last is the classifier.

    A head has `losses(x, labels)`, as `fgpipe.models.heads.Head` has; `Head(*layers)` makes one from any layers.
    Modules on the meta device get the paper's initialisation where they are used; others keep their weights. Every
    process must build the same net, and a block must give the same output when it is run twice on the same input.
    """

    blocks: list[nn.Module]
    heads: list[nn.Module]

    def __post_init__(self) -> None:
        if len(self.blocks) < 2 or len(self.blocks) != len(self.heads):
            raise ValueError(
                f"a net needs two blocks or more and a head for each; got {len(self.blocks)} and {len(self.heads)}"
            )


def resnet(model: ModelConfig, head: HeadConfig, *, in_channels: int, classes: int) -> Net:
    """The ResNet-18 of a configuration, on the meta device."""
    with torch.device("meta"):
        blocks, last = resnet18(model.blocks, width=model.width, stem=model.stem, in_channels=in_channels)
        heads = [
            auxiliary_head(
                head.name, channels(block), classes, blocks=model.blocks, width=model.width, hidden=head.hidden
            )
            for block in blocks[:-1]
        ]
        return Net(blocks, [*heads, classifier(last, classes)])


def sequential(net: Net) -> nn.Sequential:
    """The net by itself: its blocks, then its classifier, from images `[B, C, H, W]` to logits."""
    return nn.Sequential(*net.blocks, net.heads[-1])


def channels(block: nn.Module) -> int:
    """The channels that leave a block of ours: those of its last BatchNorm."""
    return [layer for layer in block.modules() if isinstance(layer, nn.BatchNorm2d)][-1].num_features


def materialize(
    module: nn.Module, generator: torch.Generator, *, dtype: torch.dtype, device: torch.device
) -> nn.Module:
    """The module on `device`, channels last; drawn from `generator` if it was on the meta device."""
    if any(parameter.is_meta for parameter in module.parameters()):
        to_empty(module)
        initialize(module, generator)
    return module.to(device=device, dtype=dtype).to(memory_format=torch.channels_last)


def to_empty(module: nn.Module) -> None:
    """Move a module from the meta device to the CPU, with any numbers.

    As `nn.Module.to_empty` does, without its `empty_like`: from meta to CPU that imports a symbolic algebra.
    """
    module._apply(lambda tensor: torch.empty(tensor.shape, dtype=tensor.dtype))
