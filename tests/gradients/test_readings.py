"""Readings of more than one number: rows of as many as there are classes, along a lane or without one.

The references are autograd's gradients on a copy of the net; a failure of the row guess alone points to the tangents of
the logits, of both to what becomes of rows between the target and the block.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fgpipe.config import compose_config
from fgpipe.errors import FeedbackError, UserError
from fgpipe.gradients import estimator
from fgpipe.gradients.estimator import StepRule
from fgpipe.gradients.frozen import frozen_logits
from fgpipe.gradients.guesses import Guess, GuessHead, View, guess
from fgpipe.gradients.readings import Reading, linearize_head
from fgpipe.models.heads import Head
from fgpipe.wire.feedback.mailbox import Due
from fgpipe.wire.feedback.messages import Feedback
from tests.nets import CHANNELS
from tests.nets import head as small_head
from tests.test_transparency import BATCH, STEPS, Pipeline, assert_agrees, assert_close, configuration

CLASSES = 5


@guess("rows")
@dataclass(frozen=True)
class Rows(Guess):
    """Twice the local gradient, asked for twice, times a sum of the logits' derivatives, each with a weight of its own."""

    head: ClassVar[GuessHead | None] = GuessHead.TRAINED
    reading: ClassVar[Reading] = Reading.LOGITS

    def propose(self, view: View) -> Sequence[Tensor]:
        return [first + second for first, second in zip(view.gradient(), view.gradient(), strict=True)]

    def estimate(
        self, directions: Sequence[Tensor], readings: Tensor, scope: str, step: StepRule, places: Sequence[Tensor]
    ) -> Sequence[Tensor]:
        weights = torch.arange(readings[0].numel(), dtype=readings.dtype).cos().view(readings[0].shape)
        sums = (readings * weights).sum(dim=2)
        return estimator.scaled(directions, sums if scope == "sample" else sums.sum(dim=1, keepdim=True), scope)


CASES = [
    (space, scope, target)
    for space, scope in (("weight", "tensor"), ("weight", "block"), ("activity", "batch"), ("activity", "sample"))
    for target in ("global", "local", "intermediate", "depth 3")
]


@pytest.mark.parametrize("space, scope, target", CASES)
def test_rows_along_lanes(space: str, scope: str, target: str) -> None:
    """Every estimate is the oracle's, whose rows are derivatives of vector-Jacobian products."""
    pipeline = Pipeline(configuration("rows", "mlp", space, scope, target, 8))
    for batch in range(STEPS):
        assert_agrees(pipeline, *pipeline.step(batch), skip_samples=False)


@pytest.mark.parametrize("head", ["cnn", "mlp", "linear"])
def test_an_error_through_the_own_head(head: str) -> None:
    """With a local target the estimate is the gradient of the block's own loss, by autograd on a copy of the net."""
    pipeline = Pipeline(configuration("error", head, "activity", "sample", "local", 8))
    _, before = pipeline.step(0)
    x = before.images
    heads: list[Any] = before.heads
    for j in range(7):
        y = before.blocks[j](x.detach())
        loss = heads[j].losses(y, before.labels)[0].mean()
        wanted = torch.autograd.grad(loss, list(before.blocks[j].parameters()))
        for got, want in zip(pipeline.learnt(j), wanted, strict=True):
            assert_close(got, want, f"block {j}")
        x = y


@guess("error_and_gradient")
@dataclass(frozen=True)
class ErrorAndGradient(Guess):
    """The local gradient, which frees its graph, times a sum of the target's error."""

    head: ClassVar[GuessHead | None] = GuessHead.TRAINED
    reading: ClassVar[Reading] = Reading.ERROR

    def propose(self, view: View) -> Sequence[Tensor]:
        return view.gradient()

    def estimate(
        self, directions: Sequence[Tensor], readings: Tensor, scope: str, step: StepRule, places: Sequence[Tensor]
    ) -> Sequence[Tensor]:
        return [readings.square().sum() * each for each in directions]


@pytest.mark.parametrize("target", ["global", "local", "intermediate"])
def test_an_error_beside_the_gradient(target: str) -> None:
    """A block that is others' target gives them its error though its own guess has freed the graph."""
    pipeline = Pipeline(configuration("error_and_gradient", "mlp", "weight", "block", target, 8))
    for batch in range(STEPS):
        assert_agrees(pipeline, *pipeline.step(batch), skip_samples=False)


class LossesAlone(nn.Module):
    """A head without a forward pass of its own."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head

    def losses(self, x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        return self.head.losses(x, labels)  # type: ignore[operator]


def test_a_head_may_have_losses_alone() -> None:
    """An error passes it as it passes the head that it has, whose running statistics are updated by its own loss alone."""
    own = small_head(nn.BatchNorm2d(CHANNELS))
    x, labels = torch.randn(6, CHANNELS, 8, 8), torch.arange(6) % 5
    found, copies = frozen_logits(LossesAlone(copy.deepcopy(own)), x, labels, learns=True)
    before = copy.deepcopy(own.state_dict())
    assert torch.equal(found, copy.deepcopy(own)(x)) and len(copies) == len(list(own.parameters()))
    frozen_logits(own, x, labels, learns=False)
    assert all(torch.equal(value, before[name]) for name, value in own.state_dict().items())


def test_the_error_is_softmax_minus_onehot() -> None:
    torch.manual_seed(0)
    x, labels = torch.randn(6, 3, dtype=torch.float64), torch.tensor([0, 1, 2, 3, 4, 0])
    head = Head(nn.Linear(3, CLASSES).double())
    _, logits, read = linearize_head(head, x, labels, Reading.ERROR, "sample")
    wanted = logits.softmax(dim=1) - F.one_hot(labels, CLASSES)
    assert torch.allclose(read(None), wanted[None].detach(), rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("name, probes", [("error", 1), ("rows", 1)])
def test_no_message_is_larger_than_its_rows(name: str, probes: int) -> None:
    """What is not P * B * C numbers is refused on arrival; an activation has 8 times as many at block 0."""
    plan = Pipeline(configuration(name, "mlp", "activity", "sample", "global", 8)).plan
    numbers = plan.method.numbers(plan.lanes.counts[0])
    assert numbers == probes * BATCH * CLASSES < BATCH * plan.forward.shapes[1].numel() / 8
    due = Due(run=1, sender=7, receiver=0, probes=probes, numbers=numbers)
    due.check(Feedback(1, 0, 7, 0, tuple(range(probes)), (0.5,) * numbers))
    for wrong in (numbers - probes, numbers + probes, BATCH * plan.forward.shapes[1].numel()):
        with pytest.raises(FeedbackError, match=f"batch 0: numbers are {wrong}, expected {numbers}"):
            due.check(Feedback(1, 0, 7, 0, tuple(range(probes)), (0.5,) * wrong))


@pytest.mark.parametrize(
    "key, only", [("lanes=2", "exact"), ("decode=smoothed", "plain"), ("step=normalised", "projection")]
)
def test_rows_are_not_coded(key: str, only: str) -> None:
    with pytest.raises(UserError, match=f"{key}: allowed: {only} with guess=error, whose readings are rows"):
        compose_config(["guess=error", "space=activity", key])
