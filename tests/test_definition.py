"""Equation 1 in plain PyTorch: what a block learns from is the target's gradient, projected on the block's guess.

The oracle of `test_transparency` shares its coefficients with the pipeline; here nets and the draws' generator alone are
fgpipe's. Tolerance as there.
"""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from fgpipe.config.rng import generator
from tests.gradients.test_subspace import net_without_batch_norm
from tests.test_transparency import SPACES, Pipeline, Snapshot, assert_close, configuration


def made(guess: str, space: str, scope: str, target: str, batch_norm: bool) -> Pipeline:
    """A pipeline of 8 blocks, or of 4 without batch norm, where samples do not know of each other."""
    config = configuration(guess, "mlp", space, scope, target, 8)
    if batch_norm:
        return Pipeline(config)
    net = net_without_batch_norm("mlp")
    config.model.blocks = len(net.blocks)
    return Pipeline(config, net)


def gradients(
    before: Snapshot, j: int, target: int, space: str
) -> tuple[list[Tensor], list[Tensor], Tensor, list[Tensor]]:
    """Gradients of the target's loss and of the guess's head's at the parameters of block j, or at its output; that output,
    and the parameters."""
    x = before.images
    with torch.no_grad():
        for block in before.blocks[:j]:
            x = block(x)
    y: Tensor = before.blocks[j](x)
    parameters: list[Tensor] = list(before.blocks[j].parameters())
    places = parameters if space == "weight" else [y]
    z = y
    for block in before.blocks[j + 1 : target + 1]:
        z = block(z)
    head: Any = before.heads[target]  # has `losses`, unlike other modules
    own: Any = before.guess_heads[j] or before.heads[j]
    true = torch.autograd.grad(head.losses(z, before.labels)[0].mean(), places, retain_graph=True)
    guess: Sequence[Tensor] = []
    if own is not None:
        guess = torch.autograd.grad(own.losses(y, before.labels)[0].mean(), places, retain_graph=True)
    return list(true), list(guess), y, parameters


def drawn(before: Snapshot, j: int, like: Sequence[Tensor]) -> list[Tensor]:
    """Gaussian directions of a block and batch."""
    source = generator(before.seed, "guess", j, before.batch)
    return [torch.randn(each.shape, generator=source, dtype=each.dtype) for each in like]


def projected(true: Sequence[Tensor], guess: Sequence[Tensor], scope: str, divided: bool) -> list[Tensor]:
    """c g with one c for each tensor, for all of them, or for each sample."""

    def dot(a: Tensor, b: Tensor) -> Tensor:
        if scope != "sample":
            return (a * b).sum()
        return (a * b).flatten(1).sum(1).view(-1, *[1] * (a.dim() - 1))

    over, under = (list(map(dot, each, guess)) for each in (true, guess))
    if scope == "block":
        over, under = [sum(over, torch.zeros(()))] * len(over), [sum(under, torch.zeros(()))] * len(under)
    return [a / b * g if divided else a * g for a, b, g in zip(over, under, guess, strict=True)]


CASES = [
    (guess, space, scope, target, batch_norm)
    for guess in ("local", "ntk", "gaussian")
    for space, scope in SPACES
    for target, batch_norm in (("global", True), ("global", False), ("intermediate", False))
    if scope != "sample" or not batch_norm
]


@pytest.mark.parametrize("guess, space, scope, target, batch_norm", CASES)
def test_estimates_are_projections(guess: str, space: str, scope: str, target: str, batch_norm: bool) -> None:
    pipeline = made(guess, space, scope, target, batch_norm)
    _, before = pipeline.step(0)
    last = len(before.blocks) - 1
    for j in range(last):
        true, own, y, parameters = gradients(before, j, last if target == "global" else j + 1, space)
        direction = own if guess != "gaussian" else drawn(before, j, true)
        wanted = projected(true, direction, scope, divided=guess != "gaussian")
        if space == "activity":
            wanted = list(torch.autograd.grad(y, parameters, wanted))
        for got, want in zip(pipeline.learnt(j), wanted, strict=True):
            assert_close(got, want, f"block {j}")


def test_signs() -> None:
    """A Rademacher estimate is c s: one size everywhere, of both signs alike, and <gradient, c s> = c^2."""
    pipeline = made("rademacher", "weight", "block", "global", batch_norm=False)
    _, before = pipeline.step(0)
    for j in range(len(before.blocks) - 1):
        true, *_ = gradients(before, j, len(before.blocks) - 1, "weight")
        estimate = torch.cat([each.flatten() for each in pipeline.learnt(j)])
        size = estimate.abs().mean()
        torch.testing.assert_close(estimate.abs(), size.expand_as(estimate), rtol=1e-12, atol=0)
        gradient = torch.cat([each.flatten() for each in true])
        assert float(gradient @ estimate) == pytest.approx(float(size**2), rel=1e-9)
        assert abs(float(estimate.sign().mean())) < 4 / len(estimate) ** 0.5
