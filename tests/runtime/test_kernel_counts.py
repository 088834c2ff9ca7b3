"""A training step computes nothing twice: PyTorch's profiler counts its kernels, and the net's layers say how many."""

import pytest
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from fgpipe.study.bench.cells import COMMON, step_of

NORM = (nn.BatchNorm1d, nn.BatchNorm2d)
RUN = [*COMMON, "guess=local", "head=mlp", "model.width=0.0625"]
GLOBAL = ["target=global", "lanes=1"]


@pytest.mark.parametrize(
    "overrides, guessing, carrying", [
        (["space=weight", "target=local"], 0, 0),
        (["space=weight", *GLOBAL], 7, 8),
        (["space=activity", "scope=sample", *GLOBAL], 0, 7),
    ]
)  # fmt: skip
def test_every_kernel_once(overrides: list[str], guessing: int, carrying: int) -> None:
    """One forward pass of each block and its head, one backward pass of both, and the lane.

    The lane meets conv(x, dW) in the blocks that guess weights, and conv(dx, W) in the blocks that carry it but for the
    net's first layer, which no lane comes to. Its batch norms, in these blocks and the last head, run the backward kernel.
    In activity space the guess's backward pass is the head's and the block's own is the update's (eq. 5); a lane sets out
    above block 0.

    Args:
        guessing: the lowest so many blocks guess weights.
        carrying: the highest so many blocks carry the lane.
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
    carried = slice(8 - carrying, 8)
    lane = sum(convolutions[:guessing]) + sum(convolutions[carried]) - (carrying == 8)
    normalised = sum(norms[carried]) + (carrying > 0) * head_norms[7]
    expected = {
        "aten::convolution": sum(convolutions) + lane,
        "aten::convolution_backward": sum(convolutions),
        "aten::native_batch_norm": sum(norms) + sum(head_norms),
        "aten::native_batch_norm_backward": sum(norms) + sum(head_norms) + normalised,
    }
    assert {name: counts[name] for name in expected} == expected
