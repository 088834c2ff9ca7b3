"""The optimizer, against `torch.optim.SGD` going tensor by tensor, in float64."""

import copy

import pytest
import torch
from torch import Tensor, nn

from fgpipe.config import compose_config
from fgpipe.gradients.optim import Optimizer, learning_rate

LAYOUTS = {"channels last": torch.channels_last, "contiguous": torch.contiguous_format}


def net() -> nn.Module:
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 5, 1), nn.Flatten(), nn.Linear(45, 2)
    return nn.Sequential(*layers).double().to(memory_format=torch.channels_last)


def estimates(module: nn.Module, step: int, layout: torch.memory_format) -> list[Tensor]:
    generator = torch.Generator().manual_seed(step)
    found = [torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in module.parameters()]
    return [each.contiguous(memory_format=layout) if each.dim() == 4 else each for each in found]


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_steps_are_sgd(momentum: float, layout: torch.memory_format) -> None:
    """Whatever the layout of the estimates, and on from restored momentum, which a checkpoint holds contiguous."""
    config = compose_config(
        [f"optim.momentum={momentum}", "optim.weight_decay=0.01", "optim.lr=0.1", "optim.gamma=0.5"]
    )
    ours, theirs = net(), net()
    rate = learning_rate(config.optim, batches=1, epochs=6)
    reference = torch.optim.SGD(theirs.parameters(), momentum=momentum, weight_decay=0.01, foreach=False)
    optimizer = Optimizer([ours], config.optim, rate)
    for step in range(6):
        if step == 3:
            kept = [each if each is None else each.contiguous() for each in optimizer.momentum()]
            ours = copy.deepcopy(ours)
            optimizer = Optimizer([ours], config.optim, rate)
            optimizer.restore(kept)
        found = estimates(ours, step, layout)
        optimizer.step(found, step)
        reference.param_groups[0]["lr"] = rate(step)
        for parameter, estimate in zip(theirs.parameters(), found, strict=True):
            parameter.grad = estimate.clone()
        reference.step()
        torch.testing.assert_close(list(ours.parameters()), list(theirs.parameters()), rtol=1e-12, atol=1e-12)
