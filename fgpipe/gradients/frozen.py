"""Runs of a head whose graph outlives the head's updates: its parameters in the graph are copies."""

import torch
from torch import Tensor, nn

from fgpipe.gradients.dual import HeadLosses, call_with, copies


def frozen_logits(head: nn.Module, x: Tensor, labels: Tensor, *, learns: bool) -> tuple[Tensor, list[Tensor]]:
    """The logits `[B, C]` of a head for `x` `[B, ...]`, from copies of its buffers too: no running statistic counts twice.

    Args: learns: the copies of its trainable parameters, which are returned beside, are part of the graph.
    """
    run = HeadLosses(head, labels, as_logits=True)
    return _run(run, copies(run.named_buffers()), x, learns=learns)


def frozen_losses(head: nn.Module, x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
    """The losses `[B]` and logits `[B, C]` of a head for `x` `[B, ...]`, and the copies of its trainable parameters."""
    run = HeadLosses(head, labels)
    losses, parameters = _run(run, {}, x, learns=True)
    return losses, run.others.pop(), parameters


def _run(run: HeadLosses, buffers: dict[str, Tensor], x: Tensor, *, learns: bool) -> tuple[Tensor, list[Tensor]]:
    """What a head's run gives with copies of its parameters, and the copies that are trainable."""
    parameters = {
        name: parameter.detach().clone().requires_grad_(learns and parameter.requires_grad)
        for name, parameter in run.named_parameters()
    }
    with torch.enable_grad():
        found = call_with(run, parameters | buffers, x.clone())
    return found, [each for each in parameters.values() if each.requires_grad]
