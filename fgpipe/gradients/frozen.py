"""Runs of a head whose graph outlives the head's updates: its parameters in the graph are copies."""

import torch
from torch import Tensor, nn

from fgpipe.gradients.dual import HeadLosses, call_with, copies


def frozen_logits(head: nn.Module, x: Tensor, *, learns: bool) -> tuple[Tensor, list[Tensor]]:
    """The logits `[B, C]` of a head for `x` `[B, ...]`, from copies of its buffers too: no running statistic counts twice.

    Args: learns: the copies of its trainable parameters, which are returned beside, are part of the graph.
    """
    parameters = {
        name: parameter.detach().clone().requires_grad_(learns and parameter.requires_grad)
        for name, parameter in head.named_parameters()
    }
    with torch.enable_grad():
        logits = call_with(head, parameters | copies(head.named_buffers()), x.clone())
    return logits, [each for each in parameters.values() if each.requires_grad]


def frozen_losses(head: nn.Module, x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
    """The losses `[B]` and logits `[B, C]` of a head for `x` `[B, ...]`, and the copies of its trainable parameters."""
    parameters = {
        f"head.{name}": parameter.detach().clone().requires_grad_(parameter.requires_grad)
        for name, parameter in head.named_parameters()
    }
    run = HeadLosses(head, labels)
    with torch.enable_grad():
        losses = call_with(run, parameters, x.clone())
    return losses, run.others.pop(), [each for each in parameters.values() if each.requires_grad]
