"""The loops in plain PyTorch that speed is measured against do the same updates as our own, in float64.

After three batches with momentum and weight decay, every tensor has moved as the oracle's has, to 1e-9 of the move:
the sums of both have at most some 1e5 products, whose rounding is about 1e-13.
"""

import copy

import pytest
import torch
from torch import Tensor, nn

from fgpipe.config import compose_config
from fgpipe.plan.plan import DataFacts
from fgpipe.study.bench.plain import PlainLoop
from fgpipe.study.bench.two_passes import TwoBackwardPasses
from fgpipe.trainers.build import local_trainer
from fgpipe.trainers.oracle import OracleStep

COMMON = [
    "tangents=oracle",
    "dtype=float64",
    "window=1",
    "model.width=0.08",
    "head.hidden=64",
    "batch_size=8",
    "seed=1",
]
COMMON += ["optim=constant", "optim.lr=0.02"]


class Trained:
    """A net that the oracle trains."""

    def __init__(self, *overrides: str) -> None:
        trainer = local_trainer(compose_config([*COMMON, *overrides]), DataFacts(3, 1, 5, 3, 16, 16))
        (step,) = trainer.steps.values()
        assert isinstance(step, OracleStep)
        self.train = trainer.train
        self.blocks, self.heads = ([getattr(each, name) for each in step.learners] for name in ("block", "head"))


def batches() -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(7)
    images = torch.randn(3, 8, 3, 16, 16, generator=generator, dtype=torch.float64)
    return list(zip(images, torch.randint(0, 5, (3, 8), generator=generator), strict=True))


def assert_moved_alike(got: nn.Module, want: nn.Module, before: nn.Module) -> None:
    """Parameters and running statistics."""
    for (name, a), b, start in zip(
        got.state_dict().items(), want.state_dict().values(), before.state_dict().values(), strict=True
    ):
        move = (b - start).double().norm()
        assert move > 0, f"{name} has not moved"
        assert (a - b).double().norm() <= 1e-9 * move, name


@pytest.mark.parametrize("head", ["mlp", "cnn", "predsim"])
def test_two_backward_passes(head: str) -> None:
    trainer = Trained("guess=local", "target=global", "space=activity", "scope=sample", f"head={head}")
    before = nn.ModuleList(copy.deepcopy([*trainer.blocks, *trainer.heads]))
    ours = copy.deepcopy(before)
    trainer.train(0, 3, lambda epoch, index: batches()[index])
    baseline = TwoBackwardPasses(list(ours)[:8], list(ours)[8:], compose_config(COMMON).optim)
    for images, labels in batches():
        baseline.step(images, labels)
    assert_moved_alike(ours, nn.ModuleList([*trainer.blocks, *trainer.heads]), before)


def test_plain_loop() -> None:
    trainer = Trained("guess=end_to_end")
    before = copy.deepcopy(nn.Sequential(*trainer.blocks, trainer.heads[-1]))
    net = copy.deepcopy(before)
    trainer.train(0, 3, lambda epoch, index: batches()[index])
    baseline = PlainLoop(net, compose_config(COMMON).optim)
    for images, labels in batches():
        baseline.step(images, labels)
    assert_moved_alike(net, nn.Sequential(*trainer.blocks, trainer.heads[-1]), before)
