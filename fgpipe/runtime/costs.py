"""What each block costs per batch, counted, so that processes get runs of blocks of about the same cost."""

import copy

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from fgpipe.gradients.method import Method
from fgpipe.gradients.probes import Lanes
from fgpipe.models.net import Net


def forward_flops(net: Net, shape: tuple[int, ...], heads: bool = False) -> list[int]:
    """FLOPs of one forward pass of each block, or of each head, for an input of `shape` `[B, ...]`."""
    values, counts = _inputs(net, shape), []
    labels = torch.zeros(shape[0], dtype=torch.int64, device="meta")
    for block, head, x, y in zip(net.blocks, net.heads, values, values[1:], strict=False):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            _ = _on_meta(head).losses(y, labels) if heads else _on_meta(block)(x)
        counts.append(counter.get_total_flops())
    return counts


def input_shapes(net: Net, shape: tuple[int, ...]) -> list[torch.Size]:
    """The shape of each block's input, and of the last one's output, without the batch."""
    return [x.shape[1:] for x in _inputs(net, shape)]


@torch.no_grad()
def _inputs(net: Net, shape: tuple[int, ...]) -> list[Tensor]:
    """What enters each block, and what leaves the last, on the meta device: nothing is computed."""
    values = [torch.zeros(shape, device="meta")]
    for block in net.blocks:
        values.append(_on_meta(block)(values[-1]))
    return values


def _on_meta(module: nn.Module) -> nn.Module:
    return copy.deepcopy(module).to(device="meta", dtype=torch.float32)


def block_costs(forward: list[int], method: Method, lanes: Lanes) -> list[int]:
    """FLOPs of a training step of each block: its forward pass, a backward one (twice that) if it makes one, and lanes."""
    costs = []
    for j, flops in enumerate(forward):
        live = set(lanes.on_link(j - 1) if j else ()) | set(lanes.of(j) if method.space == "weight" else ())
        backward = method.is_plain(j) or not method.is_random or method.space == "activity"
        costs.append(flops * (1 + len(live) + (2 if backward else 0)))
    return costs
