"""What each block costs per batch, counted, so that processes get runs of blocks of about the same cost."""

import torch
from torch.utils.flop_counter import FlopCounterMode

from fgpipe.gradients.method import Method
from fgpipe.gradients.probes import Lanes
from fgpipe.models.net import Net


def forward_flops(net: Net, shape: tuple[int, ...], heads: bool = False) -> list[int]:
    """FLOPs of one forward pass of each block, or of each head, for an input of `shape` `[B, ...]`.

    The net must be on the meta device, or be small: it is run.
    """
    device = next(net.blocks[0].parameters()).device
    x, counts = torch.zeros(shape, device=device), []
    with torch.no_grad():
        for block, head in zip(net.blocks, net.heads, strict=True):
            with FlopCounterMode(display=False) as counter:
                x = block(x)
            if heads:
                labels = torch.zeros(shape[0], dtype=torch.int64, device=device)
                with FlopCounterMode(display=False) as counter:
                    head.losses(x, labels)
            counts.append(counter.get_total_flops())
    return counts


def block_costs(forward: list[int], method: Method, lanes: Lanes) -> list[int]:
    """FLOPs of a training step of each block: its forward pass, a backward one (twice that) if it makes one, and lanes."""
    costs = []
    for j, flops in enumerate(forward):
        live = set(lanes.on_link(j - 1) if j else ()) | set(lanes.of(j) if method.space == "weight" else ())
        backward = method.is_plain(j) or not method.is_random or method.space == "activity"
        costs.append(flops * (1 + len(live) + (2 if backward else 0)))
    return costs
