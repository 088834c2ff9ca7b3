"""A net as the runtime sees it: a list of blocks, each with a head."""

import copy
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, zip_longest
from typing import Any

import torch
from torch import Tensor, nn

from fgpipe.config import HeadConfig, ModelConfig
from fgpipe.models.heads import Head, PredSim, auxiliary_head, classifier
from fgpipe.models.resnet import resnet18

VIEWS = (nn.Identity, nn.Flatten, nn.Unflatten, nn.modules.dropout._DropoutNd)
"""Layers that may return their input itself, or a view of it."""
DRAWING = (nn.modules.dropout._DropoutNd, nn.RReLU, nn.RNNBase, nn.MultiheadAttention, nn.TransformerEncoderLayer)
"""Layers of PyTorch that draw random numbers in training, or may."""


@dataclass
class Net:
    """`blocks[j]` maps `[B, ...]` to the next block's input; `heads[j]` judges its output, the last is the classifier.

    A block may hand on a tuple of tensors, which the next block and the head get as `x`. A head has `losses(x, labels)`,
    as `fgpipe.models.heads.Head` has; `Head(*layers)` makes one from any layers. Tensors on the meta device get the
    paper's initialisation where they are used; others keep their numbers. Every process must build the same net.
    `fgpipe.gradients.check` says what a block and a head must be like.
    """

    blocks: Sequence[nn.Module]
    heads: Sequence[nn.Module]
    beside: Sequence[nn.Module] = ()
    """A second head for each block but the last, for guesses that want one (`Guess.second_head`)."""

    def __post_init__(self) -> None:
        if not self.blocks or len(self.blocks) != len(self.heads):
            raise ValueError(
                f"a net needs a block or more and a head for each; got {len(self.blocks)} and {len(self.heads)}"
            )
        for kind, modules in (("block", self.blocks), ("head", self.heads), ("head beside", self.beside)):
            for j, module in enumerate(modules):
                if not isinstance(module, nn.Module):
                    raise TypeError(f"{kind} {j} of a net is an nn.Module; got {type(module).__name__}")
        if self.beside and len(self.beside) != len(self.blocks) - 1:
            raise ValueError(
                f"a net of {len(self.blocks)} blocks has {len(self.blocks) - 1} heads beside, or none; got {len(self.beside)}"
            )


def resnet(
    model: ModelConfig, head: HeadConfig, *, in_channels: int, classes: int, beside: HeadConfig | None = None
) -> Net:
    """The ResNet-18 of a configuration, on the meta device.

    Args: beside: the second head of each block but the last, if there is any.
    """
    with torch.device("meta"):
        units, last = resnet18(model.blocks, width=model.width, stem=model.stem, in_channels=in_channels)
        blocks = grouped(units, model.modules or [1] * len(units))
        heads, second = (
            [
                auxiliary_head(
                    each.name, channels(block), classes, blocks=model.blocks, width=model.width, hidden=each.hidden
                )
                for block in blocks[:-1]
                if each is not None
            ]
            for each in (head, beside)
        )
        return Net(blocks, [*heads, classifier(last, classes)], second)


def grouped(units: Sequence[nn.Module], sizes: Sequence[int]) -> list[nn.Module]:
    """Modules of so many units each, in order; of one unit, itself."""
    ends = accumulate(sizes)
    groups = [units[end - size : end] for end, size in zip(ends, sizes, strict=True)]
    return [group[0] if len(group) == 1 else nn.Sequential(*group) for group in groups]


def fingerprints(net: Net) -> Tensor:
    """A number for each block and its heads, int64 `[blocks]`: equal for equal names, shapes, types and values.

    Tensors on the meta device have no values yet; they are drawn later, the same ones in every process.
    """
    found = []
    for parts in zip_longest(net.blocks, net.heads, net.beside):
        digest = hashlib.blake2b(digest_size=8)
        for at, part in enumerate(parts):
            for name, value in {} if part is None else part.state_dict().items():
                if isinstance(value, Tensor):
                    digest.update(f"{at}.{name} {list(value.shape)} {value.dtype} {value.is_meta}".encode())
                    if not value.is_meta:
                        digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
        found.append(int.from_bytes(digest.digest(), "little", signed=True))
    return torch.tensor(found, device="cpu")


def sequential(net: Net) -> nn.Sequential:
    """The net by itself: its blocks, then its classifier, from images `[B, C, H, W]` to logits."""
    return nn.Sequential(*net.blocks, net.heads[-1])


def channels(block: nn.Module) -> int:
    """The channels that leave a block of ours: those of its last BatchNorm."""
    return [layer for layer in block.modules() if isinstance(layer, nn.BatchNorm2d)][-1].num_features


def deep_copy(module: nn.Module) -> nn.Module:
    """A deep copy, also of a module that has put a tensor with a graph into an attribute, as weight norm's hook does."""
    attributes = (value for layer in module.modules() for value in vars(layer).values() if isinstance(value, Tensor))
    return copy.deepcopy(
        module, {id(value): value.detach().clone() for value in attributes if value.grad_fn is not None}
    )


def input_for(module: Any, x: Tensor) -> Tensor:
    """Input for a block or a head: `x`, or a copy if the module may write over it (`inplace=True`, `x.mul_()`)."""
    return x.clone() if _may_write(module) else x


def _may_write(module: Any) -> bool:
    """Some layer up to the first that makes a tensor of its own is not known to leave its input as it is."""
    if getattr(type(module), "losses", Head.losses) not in (Head.losses, PredSim.losses):
        return True
    for layer in _in_order(module):
        known = type(layer).forward.__module__.startswith(("torch.nn.modules.", "fgpipe.models."))
        if not known or layer._forward_pre_hooks or getattr(layer, "inplace", False):
            return True
        if not isinstance(layer, VIEWS):
            break
    return False


def may_draw(module: nn.Module) -> bool:
    """Tell whether a module may draw random numbers in training: unless all its layers are known not to."""
    return any(
        isinstance(layer, DRAWING)
        or not type(layer).forward.__module__.startswith(("torch.nn.modules.", "fgpipe.models."))
        for layer in module.modules()
    )


def _in_order(module: nn.Module) -> Iterator[nn.Module]:
    if type(module).forward is not nn.Sequential.forward or module._forward_pre_hooks:
        yield module
        return
    for layer in module.children():
        yield from _in_order(layer)
