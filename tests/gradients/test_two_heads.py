"""Guesses with a second head, against formulas of their own: autograd on the net before the batch, from the heads' losses.

The estimates are written down here once more, as the documentation says them, so that a failure of one guess alone points to
its file, and of both to the second head.
"""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import grad
from torch.nn import functional as F

from fgpipe.config import compose_config
from fgpipe.errors import UserError
from fgpipe.models.heads import Head
from fgpipe.models.net import Net
from fgpipe.plan.plan import DataFacts, Plan
from tests.test_transparency import Pipeline, Snapshot, assert_close, configuration


def unit(x: Tensor) -> Tensor:
    return x / x.square().sum().sqrt()


def outputs(before: Snapshot) -> list[Tensor]:
    found, x = [], before.images
    for block in before.blocks:
        found.append(x := block(x))
    return found


def own_gradients(before: Snapshot, y: Tensor, j: int) -> list[Tensor]:
    """The gradients at a block's output of the mean losses of its two heads."""
    heads: list[Any] = [before.heads[j], before.guess_heads[j]]
    return [grad(head.losses(y, before.labels)[0].mean(), y, retain_graph=True)[0] for head in heads]


def assert_learnt(pipeline: Pipeline, before: Snapshot, ys: Sequence[Tensor], j: int, wanted: Tensor) -> None:
    """The block has descended what the wanted gradient of its output gives for its parameters."""
    parameters = list(before.blocks[j].named_parameters())
    through = grad(ys[j], [each for _, each in parameters], wanted, retain_graph=True)
    for got, want, (name, _) in zip(pipeline.learnt(j), through, parameters, strict=True):
        assert_close(got, want, f"block {j} {name}")


@pytest.mark.parametrize("second", ["error", "own"])
@pytest.mark.parametrize("share", [0.5, 0.25])
def test_mixture(second: str, share: float) -> None:
    target = "local" if second == "own" else "global"
    keys = f"guess.second={second}", f"guess.share={share}"
    pipeline = Pipeline(configuration("mixture", "mlp", "activity", "sample", target, 8, *keys))
    for batch in range(2):
        _, before = pipeline.step(batch)
        ys = outputs(before)
        classifier: Any = before.heads[-1]
        logits = classifier(ys[-1])
        error = (logits.softmax(1) - F.one_hot(before.labels, logits.shape[1])).detach() / len(logits)
        for j in range(7):
            own, beside = own_gradients(before, ys[j], j)
            if second == "error":
                (beside,) = grad(before.guess_heads[j](ys[j]), ys[j], error, retain_graph=True)
            mixed = (1 - share) * unit(own) + share * unit(beside)
            assert_learnt(pipeline, before, ys, j, own.square().sum().sqrt() * unit(mixed))


def test_portfolio() -> None:
    """Least squares on the target's gradient at the output, within the cone of the two directions."""
    pipeline = Pipeline(configuration("portfolio", "mlp", "activity", "batch", "global", 8))
    rested = 0
    for batch in range(2):
        _, before = pipeline.step(batch)
        ys = outputs(before)
        classifier: Any = before.heads[-1]
        loss = classifier.losses(ys[-1], before.labels)[0].mean()
        for j in range(7):
            own, beside = own_gradients(before, ys[j], j)
            basis = torch.stack([unit(own).flatten(), unit(beside).flatten()], dim=1)
            (true,) = grad(loss, ys[j], retain_graph=True)
            worth = torch.linalg.lstsq(basis, true.flatten()[:, None]).solution[:, 0].clamp_min(0)
            found = (basis @ worth).view_as(own)
            rested += int(not worth.any())
            wanted = own.square().sum().sqrt() * unit(found) if worth.any() else torch.zeros_like(own)
            assert_learnt(pipeline, before, ys, j, wanted)
    assert rested < 14


@pytest.mark.parametrize("guess, scope", [("mixture", "sample"), ("portfolio", "batch")])
def test_the_second_head_learns_from_its_own_loss(guess: str, scope: str) -> None:
    pipeline = Pipeline(configuration(guess, "mlp", "activity", scope, "global", 8))
    _, before = pipeline.step(0)
    for j, y in enumerate(outputs(before)[:-1]):
        head: Any = before.guess_heads[j]
        named = list(head.named_parameters())
        wanted = grad(head.losses(y.detach(), before.labels)[0].mean(), [each for _, each in named])
        for got, want, (name, _) in zip(pipeline.learnt(j, "beside"), wanted, named, strict=True):
            assert_close(got, want, f"second head {j} {name}")


@pytest.mark.parametrize("arguments, line", [
    (["guess=mixture", "space=activity", "guess.second=other"], "guess.second=other: allowed: error | own | exact"),
    (["guess=mixture", "space=activity", "guess.second_every=2", "replicas=2"], "guess.second_every=2: allowed: 1 with replicas=2"),
    (["guess=mixture", "space=activity", "guess.second=own"], "guess.second=own: allowed: error with target=global, or own with target=local"),
    (["guess=mixture", "space=activity", "guess.second=exact"], "guess.second=exact: allowed: error with tangents=forward, or exact with tangents=oracle"),
    (["guess=mixture", "space=activity", "guess.share=0"], "guess.share=0: allowed: a number above 0 and at most 1"),
    (["guess=mixture"], "space=weight: allowed: activity with guess=mixture"),
    (["guess=portfolio", "space=activity", "scope=batch", "guess.beside=deep"], "guess.beside=deep: allowed: cnn | mlp | linear | predsim | spatial | strided"),
    (["guess=portfolio", "space=activity", "scope=batch", "guess.hidden=0"], "guess.hidden=0: allowed: a whole number of at least 1, or null"),
])  # fmt: skip
def test_refused(arguments: list[str], line: str) -> None:
    with pytest.raises(UserError) as caught:
        compose_config(arguments)
    assert str(caught.value) == line


def small_net(beside: int) -> Net:
    def head() -> Head:
        return Head(nn.Flatten(), nn.Linear(2 * 16, 5))

    blocks = [nn.Conv2d(1, 2, 3, stride=4, padding=1), nn.Sequential(nn.ReLU(), nn.Conv2d(2, 2, 3, padding=1))]
    return Net(blocks, [head(), head()], [head() for _ in range(beside)])


def test_a_net_of_ones_own_brings_its_second_heads() -> None:
    config = configuration("mixture", "mlp", "activity", "sample", "global", 8, "model.modules=[4,4]")
    facts = DataFacts(train_batches=1, test_batches=1, classes=5, channels=1, height=16, width=16)
    with pytest.raises(
        UserError, match=r"^guess=mixture: allowed: one without a second head, as the net has none beside"
    ):
        Plan.make(config, facts, small_net(0))
    with pytest.raises(ValueError, match=r"^a net of 2 blocks has 1 heads beside, or none; got 2"):
        small_net(2)
    pipeline = Pipeline(config, small_net(1), channels=1)
    wanted, before = pipeline.step(0)
    (y, _), (name, weight) = outputs(before), next(iter(before.blocks[0].named_parameters()))
    assert wanted.beside[0] and before.guess_heads[1] is None
    own, _ = own_gradients(before, y, 0)
    logits = before.heads[1](before.blocks[1](y))
    error = (logits.softmax(1) - F.one_hot(before.labels, 5)).detach() / len(logits)
    (second,) = grad(before.guess_heads[0](y), y, error, retain_graph=True)
    (through,) = grad(y, weight, own.norm() * unit(unit(own) + unit(second)))
    assert_close(pipeline.learnt(0)[0], through, name)
