"""Twins: heads that are what the net has above a block, or a part of it, with weights of their own."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from fgpipe.models.net import Net, deep_copy
from fgpipe.models.resnet import Residual


@dataclass(frozen=True)
class TwinShape:
    """What a twin is made of."""

    ahead: int | None
    """Blocks above; None: all."""
    path: str
    """`whole`, or `skip`: residual blocks without their bodies, others whole."""

    def sources(self, block: int, blocks: int) -> range:
        """The blocks that the twin of a block has, of so many in the net; the head is that of the last."""
        last = blocks - 1 if self.ahead is None else min(block + self.ahead, blocks - 1)
        return range(block + 1, last + 1)

    def receivers(self, source: int, blocks: int) -> list[int]:
        """The blocks whose twins have block `source`."""
        return [block for block in range(source) if source in self.sources(block, blocks)]

    def part(self, block: nn.Module) -> nn.Module:
        """The part of a block that a twin has; it shares the block's parameters."""
        return skip_path(block) if self.path == "skip" else block


class Skip(nn.Module):
    """A residual block without its body: `relu(shortcut(x))`."""

    def __init__(self, shortcut: nn.Module) -> None:
        super().__init__()
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.shortcut(x))


def skip_path(block: nn.Module) -> nn.Module:
    """A block, or a sequence of them, whose residual blocks have no bodies; parameters are shared."""
    if isinstance(block, Residual):
        return Skip(block.shortcut)
    return nn.Sequential(*map(skip_path, block)) if type(block) is nn.Sequential else block


class Twin(nn.Module):
    """Blocks and the head above the last of them, as a head."""

    def __init__(self, blocks: Sequence[nn.Module], head: Any) -> None:
        super().__init__()
        self.blocks, self.head = nn.Sequential(*blocks), head

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(x))

    def losses(self, x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """As `Head.losses`."""
        return self.head.losses(self.blocks(x), labels)

    def pieces(self) -> list[list[nn.Parameter]]:
        """The parameters of each of its blocks, the head's with those of the last."""
        found = [list(block.parameters()) for block in self.blocks]
        found[-1] += self.head.parameters()
        return found


def with_twins(net: Net, shape: TwinShape) -> Net:
    """The net with a twin beside the head of each block but the last."""
    beside = []
    for j in range(len(net.blocks) - 1):
        sources = shape.sources(j, len(net.blocks))
        parts = [deep_copy(shape.part(net.blocks[k])) for k in sources]
        beside.append(Twin(parts, deep_copy(net.heads[sources[-1]])))
    return replace(net, beside=beside)
