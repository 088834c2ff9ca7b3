"""Costs of each block per batch, counted, so that processes get runs of blocks of about the same cost."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook

from fgpipe.gradients.method import Method
from fgpipe.gradients.probes import Lanes
from fgpipe.models.init import allocate
from fgpipe.models.net import Net, deep_copy

COUNTED = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)


@dataclass(frozen=True)
class ForwardPass:
    """Shapes and FLOPs of one forward pass of a net's blocks."""

    shapes: tuple[torch.Size, ...]
    """Shape of each block's input, and of the last one's output, without the batch."""
    flops: tuple[int, ...]
    """FLOPs of each block, for the whole batch: those of convolutions and linear layers, a multiplication and an addition
    counted as two; all else counts as free."""

    @classmethod
    def of(cls, net: Net, shape: tuple[int, ...]) -> "ForwardPass":
        """Args: shape: of the images, `[B, ...]`."""
        values, flops = _run(net, shape)
        return cls(tuple(x.shape[1:] for x in values), tuple(flops))


def head_flops(net: Net, shape: tuple[int, ...]) -> list[int]:
    """FLOPs of each head's losses, counted as those of blocks, for images of `shape` `[B, ...]`."""
    labels = torch.zeros(shape[0], dtype=torch.int64)
    outputs = _run(net, shape)[0][1:]
    return [_count(on_cpu(head).losses, y, labels)[1] for head, y in zip(net.heads, outputs, strict=True)]


def _run(net: Net, shape: tuple[int, ...]) -> tuple[list[Tensor], list[int]]:
    """Shapes that enter each block and leave the last, numbers without a meaning, and the FLOPs of each block.

    On the CPU: the meta device would import PyTorch's compiler, which takes each process more than a second.
    """
    values, counts = [torch.zeros(shape)], []
    for block in net.blocks:
        y, flops = _count(on_cpu(block), values[-1])
        values.append(y)
        counts.append(flops)
    return values, counts


@torch.no_grad()
def _count(run: Any, *inputs: Tensor) -> tuple[Any, int]:
    """Result of `run`, and the FLOPs of the layers that it calls."""
    flops = 0

    def add(layer: nn.Module, _: Any, y: Tensor) -> None:
        nonlocal flops
        if isinstance(layer, COUNTED):
            flops += 2 * y.numel() * layer.weight[0].numel()

    handle = register_module_forward_hook(add)
    try:
        y = run(*inputs)
        return y, flops
    finally:
        handle.remove()


def on_cpu(module: nn.Module) -> Any:
    """A copy to try shapes with; on the meta device it has no weights, and any will do."""
    tried = deep_copy(module).eval()
    allocate(tried)
    return tried.to(device="cpu", dtype=torch.float32)


def block_costs(forward: Sequence[int], method: Method, lanes: Lanes) -> list[int]:
    """FLOPs of a training step of each block: its forward pass, a backward one (twice that) if it makes one, and lanes."""
    costs = []
    for j, flops in enumerate(forward):
        live = set(lanes.on_link(j - 1) if j else ()) | set(lanes.of(j) if method.space == "weight" else ())
        backward = method.is_plain(j) or method.guess.head is not None or method.space == "activity"
        costs.append(flops * (1 + len(live) + (2 if backward else 0)))
    return costs
