"""A training step computes nothing twice: PyTorch's profiler counts its kernels, and the net's layers say how many."""

import pytest
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from fgpipe.study.bench.cells import COMMON, step_of

NORM = (nn.BatchNorm1d, nn.BatchNorm2d)
RUN = [*COMMON, "guess=local", "space=weight", "head=mlp", "model.width=0.0625"]


@pytest.mark.parametrize("overrides, lane", [(["target=local"], False), (["target=global", "lanes=1"], True)])
def test_every_kernel_once(overrides: list[str], lane: bool) -> None:
    """One forward pass of each block and its head, one backward pass of both for the guess, and the lane.

    The lane meets conv(x, dW) in the blocks that guess, which are all but the last, and conv(dx, W) in every convolution
    but the very first, which no lane comes to. Its batch norms, in all blocks and the last head, run the backward kernel.
    """
    images, labels = torch.randn(4, 3, 16, 16), torch.tensor([0, 1, 2, 3])
    step, trained = step_of([*RUN, *overrides], images, labels)

    def layers(kind: type | tuple[type, ...], part: str) -> list[int]:
        return [sum(isinstance(layer, kind) for layer in trained[j][part].module.modules()) for j in range(8)]

    convolutions, norms = layers(nn.Conv2d, "block"), layers(NORM, "block")
    head_norms = layers(NORM, "head")
    assert sum(convolutions) == sum(norms) == 20 and not any(layers(nn.Conv2d, "head"))
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        step()
    counts = {event.key: event.count for event in profiled.key_averages()}
    expected = {
        "aten::convolution": sum(convolutions) + lane * (sum(convolutions[:7]) + sum(convolutions) - 1),
        "aten::convolution_backward": sum(convolutions),
        "aten::native_batch_norm": sum(norms) + sum(head_norms),
        "aten::native_batch_norm_backward": sum(norms) + sum(head_norms) + lane * (sum(norms) + head_norms[7]),
    }
    assert {name: counts[name] for name in expected} == expected
