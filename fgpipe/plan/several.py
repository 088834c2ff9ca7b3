"""Blocks that hand several tensors on, such as a skip that crosses a boundary; between blocks they are one, `[B, N]`."""

from collections.abc import Sequence
from math import prod
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from fgpipe.errors import UserError
from fgpipe.models.net import Net
from fgpipe.plan.costs import on_cpu

_packing: WeakKeyDictionary[nn.Module, list[RemovableHandle]] = WeakKeyDictionary()
"""Hooks that an earlier plan gave to a block."""


def as_one(net: Net, image: Sequence[int]) -> Net:
    """The net with hooks that pack a tuple of tensors, and unpack it for the block above and the block's own head.

    A block above, and `losses(x, labels)` of a head, get the tuple as `x`. Names of blocks' parameters stay as they are.

    Args: image: shape, `[C, H, W]`.

    Raises:
        UserError: a block returns a tuple of something else, or the last one returns a tuple.
    """
    for block in net.blocks:
        for handle in _packing.pop(block, []):
            handle.remove()
    heads, beside = list(net.heads), list(net.beside)
    for j, parts in _tuples(net, image).items():
        below, above = net.blocks[j : j + 2]
        packing = below.register_forward_hook(lambda module, given, y: pack(y))
        unpacking = above.register_forward_pre_hook(lambda module, given, parts=parts: (unpack(given[0], parts),))
        _packing.setdefault(below, []).append(packing)
        _packing.setdefault(above, []).append(unpacking)
        for kind in (heads, beside):
            if kind and hasattr(kind[j], "losses"):
                kind[j] = HeadOfSeveral(kind[j], parts)
    return Net(net.blocks, heads, beside)


def _tuples(net: Net, image: Sequence[int]) -> dict[int, list[torch.Size]]:
    """Shapes of the tensors that leave each block which returns a tuple."""
    x: Any = torch.zeros(2, *image)
    found = {}
    for j, block in enumerate(net.blocks):
        try:
            with torch.no_grad():
                x = on_cpu(block)(x)
        except Exception:  # noqa: BLE001 - the check that comes next says what is wrong
            break
        if isinstance(x, tuple):
            found[j] = _shapes(x, j, last=j + 1 == len(net.blocks))
    return found


def _shapes(tensors: tuple[Any, ...], block: int, *, last: bool) -> list[torch.Size]:
    floats = [each for each in tensors if isinstance(each, Tensor) and each.is_floating_point() and len(each) == 2]
    if last or not tensors or len(floats) < len(tensors):
        found = ", ".join(
            str(list(each.shape)) if isinstance(each, Tensor) else type(each).__name__ for each in tensors
        )
        allowed = "one tensor from the last block" if last else "floating-point tensors with a row per sample"
        raise UserError(f"block {block}: gives a tuple of {found}: allowed: {allowed}")
    return [each.shape[1:] for each in floats]


def pack(tensors: tuple[Tensor, ...]) -> Tensor:
    """One tensor `[B, N]` of several `[B, ...]`; images in the order of channels last."""
    rows = [x.permute(0, 2, 3, 1) if x.dim() == 4 else x for x in tensors]
    return torch.cat([x.reshape(len(x), -1) for x in rows], dim=1)


def unpack(x: Tensor, shapes: Sequence[torch.Size]) -> tuple[Tensor, ...]:
    """The inverse of `pack`; images are channels last."""
    found = []
    for part, shape in zip(x.split([prod(shape) for shape in shapes], dim=1), shapes, strict=True):
        if len(shape) == 3:
            channels, height, width = shape
            found.append(part.reshape(-1, height, width, channels).permute(0, 3, 1, 2))
        else:
            found.append(part.reshape(-1, *shape))
    return tuple(found)


class HeadOfSeveral(nn.Module):
    """A head that reads the tuple of a block's tensors."""

    def __init__(self, head: nn.Module, shapes: Sequence[torch.Size]) -> None:
        super().__init__()
        self.head, self._shapes = head, shapes

    def forward(self, x: Tensor) -> Tensor:
        """Logits of what the block has packed, `[B, N]`."""
        return self.head(unpack(x, self._shapes))

    def losses(self, x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Loss of each sample, `[B]`, and logits `[B, C]`."""
        losses, logits = self.head.losses(unpack(x, self._shapes), labels)  # type: ignore[operator]  # a head has it
        return losses, logits
