"""`guess=local_subspace` (paper, table 6): each sample's target is projected on the span of the batch's local guesses.

The oracle is held to projections by numpy's least squares and eigenvectors, on gradients of plain backward passes;
forward mode to the oracle. Both to 1e-9 in float64, for the reasons in `tests/test_transparency.py`.
"""

import copy
import re
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fgpipe.config import compose_config
from fgpipe.errors import UserError
from fgpipe.gradients.guesses.local_subspace import principal_directions
from fgpipe.gradients.oracle import Estimates
from fgpipe.models.heads import Head
from fgpipe.models.net import Net
from tests.test_transparency import (
    BATCH,
    STEPS,
    TOLERANCE,
    Gated,
    Pipeline,
    Snapshot,
    assert_agrees,
    assert_close,
    configuration,
    record_replies,
)

WIDTHS = (384, 384, 128)
"""Of the block outputs of `net_without_batch_norm` below the last."""
TARGETS = ["global", "intermediate", "local"]


def net_without_batch_norm(head: str) -> Net:
    """With linear heads the guesses of a batch have rank 4: the residuals of 5 classes add up to 0."""
    torch.manual_seed(5)
    blocks = [
        nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        Gated(6),
        nn.Sequential(nn.Conv2d(6, 8, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2)),
        nn.Sequential(nn.Flatten(), nn.Linear(128, 16), nn.Softplus()),
    ]
    if head == "linear":
        heads = [Head(nn.Flatten(), nn.Linear(width, 5)) for width in WIDTHS]
    else:
        heads = [Head(nn.Flatten(), nn.Linear(width, 32), nn.Tanh(), nn.Linear(32, 5)) for width in WIDTHS]
    return Net(blocks, [*heads, Head(nn.Linear(16, 5))])


def pipeline(target: str, head: str, *more: str) -> Pipeline:
    net = net_without_batch_norm(head)
    config = configuration("local_subspace", "linear", "activity", "sample", target, 8, *more)
    config.model.blocks = len(net.blocks)
    return Pipeline(config, net)


def gradients(before: Snapshot, j: int, target: int) -> tuple[np.ndarray, np.ndarray]:
    """Of the mean losses of `target` and of block j with respect to the output of block j: `[B, D]` each."""
    found = []
    heads: list[Any] = before.heads
    for loss_at in (target, j):
        y = before.images
        for k, block in enumerate(copy.deepcopy(before.blocks[: loss_at + 1])):
            y = block(y)
            if k == j:
                place = y
        (gradient,) = torch.autograd.grad(heads[loss_at].losses(y, before.labels)[0].mean(), place)
        found.append(gradient.flatten(1).numpy())
    return found[0], found[1]


def backpropagated(before: Snapshot, j: int, signal: np.ndarray) -> dict[str, Tensor]:
    """What a gradient `[B, D]` at the output of block j gives the block's parameters."""
    y = before.images
    for block in (blocks := copy.deepcopy(before.blocks[: j + 1])):
        y = block(y)
    names, parameters = zip(*blocks[j].named_parameters(), strict=True)
    return dict(zip(names, torch.autograd.grad(y, parameters, torch.tensor(signal).view_as(y)), strict=True))


def assert_projects(found: Estimates, before: Snapshot, project, target: str) -> None:
    for j in range(3):
        wanted, guesses = gradients(before, j, {"global": 3, "intermediate": j + 1, "local": j}[target])
        for name, want in backpropagated(before, j, project(wanted, guesses)).items():
            assert_close(found.blocks[j][name], want, f"block {j} {name}")


def on_the_span(wanted: np.ndarray, guesses: np.ndarray) -> np.ndarray:
    """The least-squares combination of all guesses, for each sample."""
    weights, _, rank, _ = np.linalg.lstsq(guesses.T, wanted.T)
    assert rank in (4, BATCH)
    return (guesses.T @ weights).T


@pytest.mark.parametrize("head", ["linear", "deep"])
@pytest.mark.parametrize("target", TARGETS)
def test_the_oracle_projects_on_the_span(target: str, head: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found, before = pipeline(target, head).step(0)
    assert_projects(found, before, on_the_span, target)
    for j in range(3):
        scalars = found.scalars[j]
        assert scalars is not None and scalars.shape == (BATCH, BATCH)
        assert bool((scalars[4:] == 0).all()) == (head == "linear"), "past the rank"


@pytest.mark.parametrize("count", [1, 3])
def test_few_directions_are_the_first_principal_ones(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def on_the_first(wanted: np.ndarray, guesses: np.ndarray) -> np.ndarray:
        """By the eigenvectors of the matrix of inner products; one direction is a rank-one projection."""
        sizes, vectors = np.linalg.eigh(guesses @ guesses.T)  # in ascending order
        axes = [guesses.T @ vectors[:, -r - 1] / np.sqrt(sizes[-r - 1]) for r in range(count)]
        return np.sum([np.outer(wanted @ axis, axis) for axis in axes], axis=0)

    found, before = pipeline("global", "deep", f"guess.directions={count}").step(0)
    assert_projects(found, before, on_the_first, "global")


def test_the_projection_on_a_local_target_is_the_target(monkeypatch: pytest.MonkeyPatch) -> None:
    found, before = pipeline("local", "deep").step(0)
    assert_projects(found, before, lambda wanted, guesses: wanted, "local")


@pytest.mark.parametrize("more", [[], ["guess.directions=3"]], ids=" ".join)
@pytest.mark.parametrize("head", ["linear", "deep"])
@pytest.mark.parametrize("target", TARGETS)
def test_forward_mode_agrees(target: str, head: str, more: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    trained = pipeline(target, head, *more)
    for batch in range(STEPS):
        assert_agrees(trained, *trained.step(batch), skip_samples=False)


@pytest.mark.parametrize("target", ["global", "intermediate"])
def test_sums_over_samples_with_batch_norm(target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Along each lane all samples move together, which is exact for their sum; a direction's sign is arbitrary."""
    case = ("local_subspace", "cnn", "activity", "sample", target, 8)
    trained = Pipeline(configuration(*case, "guess.directions=3"))
    for batch in range(STEPS):
        replies = record_replies(monkeypatch)
        wanted, before = trained.step(batch)
        assert_agrees(trained, wanted, before, skip_samples=True)
        assert sorted(replies) == list(range(7))
        for block, scalars in replies.items():
            got, exact = torch.tensor(scalars, dtype=torch.float64).view(3, BATCH), wanted.scalars[block]
            assert exact is not None
            error = (got.sum(dim=1).abs() - exact.sum(dim=1).abs()).abs()
            assert (error <= TOLERANCE * exact.abs().sum(dim=1)).all(), f"block {block} at batch {batch}"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(2, 3, 4), (5,)], ids=str)
def test_directions_of_dependent_guesses(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """Orthonormal, of the guesses' span and no more, and zeros in place of what they do not span."""
    rng = torch.Generator().manual_seed(3)
    basis = torch.randn(3, *shape, generator=rng, dtype=torch.float64)
    guesses = torch.einsum("br,r...->b...", torch.randn(9, 3, generator=rng, dtype=torch.float64), basis)
    found = principal_directions(guesses.to(dtype), 9).double()
    assert found.shape == (9, *shape) and found[3:].count_nonzero() == 0
    rows, orthonormal = found[:3].flatten(1), np.linalg.qr(basis.flatten(1).T)[0]
    tolerance = 100 * torch.finfo(dtype).eps
    assert np.allclose(rows @ rows.T, np.eye(3), atol=tolerance)
    assert np.allclose(rows.T @ rows, orthonormal @ orthonormal.T, atol=tolerance)
    assert torch.equal(principal_directions(guesses.to(dtype), 2).double(), found[:2])


def test_no_directions() -> None:
    assert principal_directions(torch.zeros(4, 3), 4).count_nonzero() == 0
    assert principal_directions(torch.tensor([[1.0, torch.nan], [0.0, 1.0]]), 2).isnan().all()


SUBSPACE = ["guess=local_subspace", "space=activity"]


@pytest.mark.parametrize("overrides, expected", [
    (["guess=local_subspace"], "space=weight: allowed: activity with guess=local_subspace"),
    ([*SUBSPACE, "scope=batch"], "scope=batch: allowed: sample with guess=local_subspace"),
    ([*SUBSPACE, "guess.directions=65"], "guess.directions=65: allowed: 1 to batch_size=64, or null"),
    ([*SUBSPACE, "guess.directions=0"], "guess.directions=0: allowed: 1 to batch_size=64, or null"),
    ([*SUBSPACE, "guess.directions=many"], "guess.directions=many: Value 'many' of type 'str' could not be converted"),
    (["guess=local", "guess.directions=8"], "guess.directions=8: allowed: as a key of guess=local, none"),
    ([*SUBSPACE, "lanes=4"], "lanes=4: allowed: exact with guess=local_subspace target=global"),
    ([*SUBSPACE, "decode=smoothed"], "decode=smoothed: allowed: plain with guess=local_subspace target=global"),
    ([*SUBSPACE, "step=normalised"], "step=normalised: allowed: projection with guess=local_subspace target=global"),
])  # fmt: skip
def test_bad_input(overrides: list[str], expected: str) -> None:
    with pytest.raises(UserError, match="^" + re.escape(expected)) as caught:
        compose_config(overrides)
    assert "\n" not in str(caught.value)
