"""Coded lanes: what a code says in the mean, how much it scatters, and what is made of its scalars.

The references are autograd's derivatives and plain sums in Python; from the code under test they take the signs
alone, whose properties are tested first. A failure of the equality with exact lanes only points to who enters which
lane; of the mean only, to signs that are not independent of a probe's own; of the variance only, to probes that share
lanes with others than the formula's.
"""

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fgpipe.gradients.codes import hadamard, signs
from fgpipe.gradients.estimator import StepRule
from fgpipe.gradients.guesses import make
from fgpipe.gradients.method import Method
from fgpipe.gradients.probes import CodedLanes, Decoder, plan_lanes
from fgpipe.models.heads import Head
from fgpipe.models.net import Net
from tests.test_transparency import SPACES, STEPS, Pipeline, Snapshot, assert_agrees, assert_close, configuration

KEY = {"seed": 3, "target": 7, "batch": 11}
CODES = 200
"""Codes that a mean or a variance is taken over."""
TARGETS = ("global", "intermediate", "depth 3")


def net_of_6() -> Net:
    """Batch norm couples the samples. Tensors below the last block: 3, 2, 3, 2, 3."""
    torch.manual_seed(5)
    norm = [nn.Sequential(nn.Conv2d(c, 4, 3, 2, 1, bias=False), nn.BatchNorm2d(4), nn.ReLU()) for c in (3, 4, 4)]
    plain = [nn.Sequential(nn.Conv2d(4, 4, 3, 1, 1), nn.ReLU()) for _ in range(2)]
    blocks = [norm[0], plain[0], norm[1], plain[1], norm[2], nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.ReLU())]
    return Net(blocks, [Head(nn.Flatten(), nn.Linear(width, 5)) for width in (256, 256, 64, 64, 16, 8)])


def pipeline_of_6(guess: str, space: str, scope: str, target: str, *more: str) -> Pipeline:
    config = configuration(guess, "linear", space, scope, target, 8, *more)
    net = net_of_6()
    config.model.blocks = len(net.blocks)
    return Pipeline(config, net)


@pytest.mark.parametrize("order", [1, 2, 8, 64])
def test_hadamard_rows_are_orthogonal(order: int) -> None:
    matrix = hadamard(order).double()
    assert torch.equal(matrix @ matrix.T, order * torch.eye(order, dtype=torch.float64))


SHAPES = [("rademacher", 5, 3, 1), ("rademacher", 3, 1, 4), ("hadamard", 6, 4, 3), ("hadamard", 5, 8, 2)]


@pytest.mark.parametrize("code, probes, lanes, samples", SHAPES)
def test_signs(code: str, probes: int, lanes: int, samples: int) -> None:
    """Signs; the same for the same key, others for another; orthogonal where they should be."""
    first = signs(code, probes, lanes, samples, **KEY)
    assert first.shape == (probes, lanes, samples) and set(first.unique().tolist()) == {-1, 1}
    assert torch.equal(first, signs(code, probes, lanes, samples, **KEY))
    for name in KEY:
        others = [signs(code, probes, lanes, samples, **{**KEY, name: n}) for n in range(20, 30)]
        assert not all(torch.equal(first, other) for other in others), f"another {name} gives other signs"
    if code == "hadamard" and probes <= lanes:
        rows = first.double().permute(2, 0, 1)
        assert torch.equal(rows @ rows.mT, lanes * torch.eye(probes, dtype=torch.float64).expand(samples, -1, -1))


HADAMARD = {
    ("tensor", "global"): 64, ("tensor", "intermediate"): 16, ("tensor", "depth 3"): 32, ("tensor", "local"): 16,
    ("block", "global"): 8, ("block", "intermediate"): 1, ("block", "depth 3"): 4, ("block", "local"): 1,
}  # fmt: skip
"""Rows for the probes of the busiest target of ResNet-18 in 8 blocks, whose blocks have 9 6 9 6 9 6 9 tensors."""


GUESSES = [*(("local", target) for target in TARGETS), ("gaussian", "global"), ("ntk", "local")]


@pytest.mark.slow
@pytest.mark.parametrize("guess, target", GUESSES)
@pytest.mark.parametrize("space, scope", SPACES[:3])
def test_hadamard_is_exact_where_it_fits(
    guess: str, target: str, space: str, scope: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every estimate of every block equals the oracle's."""
    more = (f"lanes={HADAMARD['tensor' if scope == 'tensor' else 'block', target]}", "code=hadamard")
    pipeline = Pipeline(configuration(guess, "mlp", space, scope, target, 8, *more))
    assert isinstance(pipeline.plan.lanes, CodedLanes)
    for batch in range(STEPS):
        assert_agrees(pipeline, *pipeline.step(batch), skip_samples=False)


@pytest.mark.parametrize("guess, target", GUESSES)
def test_hadamard_is_exact_per_sample(guess: str, target: str) -> None:
    """Every estimate equals that of exact lanes, which read each sample's own loss along the guesses of all."""
    lanes = {"global": 8, "depth 3": 4}.get(target, 1)
    case = (guess, "activity", "sample", target)
    exact, coded = (pipeline_of_6(*case, *more) for more in ([], [f"lanes={lanes}", "code=hadamard"]))
    for batch in range(STEPS):
        exact.step(batch), coded.step(batch)
        for j in range(len(exact.stages)):
            for tensor, (a, b) in enumerate(zip(coded.learnt(j), exact.learnt(j), strict=True)):
                assert_close(a, b, f"block {j} tensor {tensor} at batch {batch}")


def decoded(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch, batches: int) -> tuple[dict[int, Tensor], Snapshot]:
    """Block -> scalars `[N, P, S]` of one batch of images under N codes; and the net, which does not change."""
    found: dict[int, list[Tensor]] = {}
    for stage in pipeline.stages:
        decode = stage.decoder.decode

        def record(batch: int, readings: Tensor, decode=decode) -> dict[int, Tensor]:
            scalars = decode(batch, readings)
            for block, values in scalars.items():
                found.setdefault(block, []).append(values)
            return scalars

        monkeypatch.setattr(stage.decoder, "decode", record)
    rng = torch.Generator().manual_seed(7)
    images = torch.randn(8, 3, 16, 16, generator=rng, dtype=torch.float64)
    labels = torch.randint(0, 5, (8,), generator=rng)
    before = Snapshot(pipeline, 0, images, labels)
    for batch in range(batches):
        pipeline.trainer.train(batch, 1, lambda epoch, index: (images, labels))
    return {block: torch.stack(values) for block, values in found.items()}, before


def parts(snapshot: Snapshot) -> Iterator[tuple[int, int, Tensor]]:
    """For each block that asks: itself, its target, and `[P, B, B]`: what sample i' of each guess adds to the
    derivative of sample i's part of the mean loss. Weight space and scope batch: `[P, 1, 1]`, the derivative."""
    method, x, outputs = snapshot.method, snapshot.images, []
    heads: list[Any] = snapshot.heads
    for block in snapshot.blocks:
        outputs.append(x := block(x))
    losses = [head.losses(y, snapshot.labels)[0] for head, y in zip(heads, outputs, strict=True)]
    for j in range(method.last):
        places = list(snapshot.blocks[j].parameters()) if method.space == "weight" else [outputs[j]]
        guess = torch.autograd.grad(losses[j].mean(), places, retain_graph=True)
        target = losses[method.target(j)]
        if method.scope == "sample":
            rows = [torch.autograd.grad(loss / len(target), places, retain_graph=True)[0] for loss in target]
            yield j, method.target(j), torch.stack([(row * guess[0]).flatten(1).sum(1) for row in rows]).unsqueeze(0)
        else:
            gradient = torch.autograd.grad(target.mean(), places, retain_graph=True)
            each = torch.stack([(a * b).sum() for a, b in zip(gradient, guess, strict=True)])
            each = each if method.scope == "tensor" else each.sum(0, keepdim=True)
            yield j, method.target(j), each.reshape(-1, 1, 1)


def chance_of_a_shared_row(probes: int, lanes: int) -> float:
    """That two of P probes, dealt evenly to R rows, get the same one."""
    sizes = [probes // lanes + (row < probes % lanes) for row in range(lanes)]
    return sum(n * (n - 1) for n in sizes) / (probes * (probes - 1)) if probes > 1 else 0.0


STATISTICS = [
    ("weight", "tensor", "global", "rademacher", 3), ("weight", "tensor", "global", "hadamard", 4),
    ("weight", "tensor", "depth 3", "rademacher", 1), ("weight", "block", "global", "rademacher", 2),
    ("weight", "block", "depth 3", "hadamard", 2), ("activity", "batch", "global", "hadamard", 1),
    ("activity", "batch", "depth 3", "rademacher", 3), ("activity", "sample", "global", "rademacher", 2),
    ("activity", "sample", "global", "hadamard", 2), ("activity", "sample", "intermediate", "rademacher", 1),
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("space, scope, target, code, lanes", STATISTICS)
def test_mean_and_variance(
    space: str, scope: str, target: str, code: str, lanes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Var d_p = share * (sum of the squares of all else in the lanes), share = 1 / R or P(same row).

    Means within 4.5 standard errors (some 1e2 values). Of the variance: the mean over the scalars, which are
    correlated, of measured over formula; N = 200 gives it a standard error of some 6 %.
    """
    more = (f"lanes={lanes}", f"code={code}", "optim.lr=1e-30")
    found, snapshot = decoded(pipeline_of_6("local", space, scope, target, *more), monkeypatch, CODES)
    known = {j: (at, part) for j, at, part in parts(snapshot)}
    assert found.keys() == known.keys()
    ratios = []
    for j, values in found.items():
        at, part = known[j]
        together = torch.cat([others for other, others in known.values() if other == at])
        probes, samples = len(together), together.shape[1]
        width = min(lanes, probes if code == "rademacher" else 2 ** math.ceil(math.log2(probes)))
        if code == "rademacher":
            share = other_samples = 1 / width
        else:
            share = chance_of_a_shared_row(probes, width)
            other_samples = 1.0 if probes > width else 0.0
        squares = together.square().sum(dim=2)
        own_row = part.square().sum(dim=2)
        wanted = part.diagonal(dim1=1, dim2=2) if other_samples or samples == 1 else part.sum(dim=2)
        variance = share * (squares.sum(dim=0) - own_row)
        if samples > 1:
            variance = variance + other_samples * (own_row - part.diagonal(dim1=1, dim2=2).square())
        error = (variance / CODES).sqrt()
        assert ((values.mean(dim=0) - wanted).abs() <= 4.5 * error + 1e-12 * wanted.abs()).all(), f"mean of block {j}"
        if variance.max() > 0:
            ratios.append((values.var(dim=0) / variance).flatten())
        else:
            assert values.std(dim=0).max() <= 1e-12 * wanted.abs().max()
    if ratios:
        assert abs(torch.cat(ratios).mean() - 1) < 0.25
    else:
        assert (scope, target) == ("block", "intermediate")


def test_prediction_takes_the_noise_away_and_nothing_else() -> None:
    """With a fixed prediction e the mean stays, and the variance is that of the scalars d - e."""
    method = Method(6, make("local"), "weight", "tensor", None, decode="predicted")
    lanes = plan_lanes(method, [3, 2, 3, 2, 3, 2], 2, "rademacher", 1)
    rng = torch.Generator().manual_seed(2)
    scalars = torch.randn(13, 1, generator=rng, dtype=torch.float64)
    expected = scalars[:, 0] + 0.3 * torch.randn(13, generator=rng, dtype=torch.float64)
    found = []
    for batch in range(10 * CODES):
        decoder = Decoder.of(lanes, 5, scalars)
        assert decoder.prediction is not None
        decoder.prediction.total.copy_(expected), decoder.prediction.weight.fill_(1.0)
        found.append(torch.cat(list(decoder.decode(batch, lanes.encode(5, batch, scalars)).values()))[:, 0])
    surprise = (scalars[:, 0] - expected).square()
    variance = (surprise.sum() - surprise) / 2
    values = torch.stack(found)
    assert ((values.mean(dim=0) - scalars[:, 0]).abs() <= 4.5 * (variance / len(values)).sqrt()).all()
    assert abs((values.var(dim=0) / variance).mean() - 1) < 0.15


class Remembered:
    """`sum 0.95^(T-t) v_t / sum 0.95^(T-t)`, from all values."""

    def __init__(self) -> None:
        self.values: list[float] = []

    def mean(self) -> float:
        ages = range(len(self.values) - 1, -1, -1)
        weights = [0.95**age for age in ages]
        return sum(w * v for w, v in zip(weights, self.values, strict=True)) / sum(weights) if weights else 0.0

    def take(self, value: float) -> float:
        self.values.append(value)
        return self.mean()


def by_hand(code: list[list[float]], scalars: list[float], predictions: list[Remembered] | None) -> list[float]:
    """What is decoded from the lanes, scalar by scalar."""
    probes, lanes = len(code), len(code[0])
    expected = [memory.mean() for memory in predictions] if predictions else [0.0] * probes
    readings = [sum(code[q][r] * (scalars[q] - expected[q]) for q in range(probes)) for r in range(lanes)]
    return [expected[p] + sum(code[p][r] * readings[r] for r in range(lanes)) / lanes for p in range(probes)]


OPTIONS = [
    ("plain", "projection", 4), ("predicted", "projection", 2), ("predicted", "normalised", 2),
    ("smoothed", "projection", 1), ("smoothed", "normalised", 4), ("plain", "normalised", "exact"),
    ("smoothed", "projection", "exact"),
]  # fmt: skip


@pytest.mark.parametrize("decode, step, lanes", OPTIONS)
def test_by_hand(decode: str, step: str, lanes: int | str) -> None:
    """Six batches of the pipeline: each tensor's estimate is the oracle's c g times the factor by hand over c."""
    more = (f"lanes={lanes}", "code=rademacher", f"decode={decode}", f"step={step}")
    pipeline = pipeline_of_6("local", "weight", "tensor", "global", *more)
    predictions = [Remembered() for _ in range(13)] if decode == "predicted" else None
    means, sizes = ([Remembered() for _ in range(13)] for _ in range(2))
    for batch in range(6):
        wanted, _ = pipeline.step(batch)
        estimates = [tensor for block in wanted.blocks[:-1] for tensor in block.values()]
        scalars = torch.cat([each for each in wanted.scalars if each is not None]).flatten().tolist()
        squares = [d * d / float(e.square().sum()) for d, e in zip(scalars, estimates, strict=True)]
        received = scalars
        if isinstance(lanes, int):
            code = signs("rademacher", 13, lanes, 1, seed=1, target=5, batch=batch)[:, :, 0].tolist()
            received = by_hand(code, scalars, predictions)
        for p, (decoded, square) in enumerate(zip(received, squares, strict=True)):
            if predictions:
                predictions[p].take(decoded)
            factor = decoded / square
            if decode == "smoothed":
                factor = means[p].take(factor)
            if step == "normalised":
                factor /= sizes[p].take(abs(factor))
            block, tensor = next((j, p - first) for j, first in ((4, 10), (3, 8), (2, 5), (1, 3), (0, 0)) if p >= first)
            got = pipeline.learnt(block)[tensor]
            assert_close(got, estimates[p] * (factor * square / scalars[p]), f"probe {p} at batch {batch}")


def test_per_sample_by_hand() -> None:
    """Running means of per-sample values are over batches and samples."""
    method = Method(4, make("local"), "activity", "sample", None, decode="smoothed", step="normalised")
    rule, mean, size = (
        StepRule.of(method.decode, method.step, 1, torch.zeros(1, dtype=torch.float64)),
        Remembered(),
        Remembered(),
    )
    lanes = plan_lanes(
        Method(4, make("local"), "activity", "sample", None, decode="predicted"), [1] * 4, 2, "rademacher", 1
    )
    decoder, predictions = Decoder.of(lanes, 3, torch.zeros(1, dtype=torch.float64)), [Remembered() for _ in range(3)]
    rng = torch.Generator().manual_seed(4)
    for batch in range(5):
        scalars = torch.randn(3, 5, generator=rng, dtype=torch.float64)
        got = torch.cat(list(decoder.decode(batch, lanes.encode(3, batch, scalars)).values()))
        code = signs("rademacher", 3, 2, 5, seed=1, target=3, batch=batch)
        columns = [by_hand(code[:, :, i].tolist(), scalars[:, i].tolist(), predictions) for i in range(5)]
        for p in range(3):
            predictions[p].take(sum(column[p] for column in columns) / 5)
        assert torch.allclose(got, torch.tensor(columns, dtype=torch.float64).T, rtol=1e-12, atol=1e-12)
        calm = mean.take(sum(scalars[0].tolist()) / 5)
        factor = calm / size.take(abs(calm))
        assert torch.allclose(rule.factors(scalars[:1]), torch.full((1, 5), factor, dtype=torch.float64), rtol=1e-12)


EMULATED = [
    ("local", "weight", "tensor", "global", "predicted", "normalised"),
    ("local", "weight", "tensor", "depth 3", "smoothed", "projection"),
    ("ntk", "weight", "block", "local", "plain", "normalised"),
    ("gaussian", "weight", "block", "global", "plain", "projection"),
    ("local", "activity", "batch", "depth 3", "predicted", "projection"),
]


@pytest.mark.parametrize("guess, space, scope, target, decode, step", EMULATED)
def test_the_oracle_emulates_lanes(guess: str, space: str, scope: str, target: str, decode: str, step: str) -> None:
    """Five batches of training: every estimate equals the pipeline's."""
    more = ("lanes=1", f"decode={decode}", f"step={step}")
    forward, oracle = (
        pipeline_of_6(guess, space, scope, target, *more, f"tangents={tangents}") for tangents in ("forward", "oracle")
    )
    for batch in range(5):
        rng = torch.Generator().manual_seed(batch)
        images = torch.randn(8, 3, 16, 16, generator=rng, dtype=torch.float64)
        labels = torch.randint(0, 5, (8,), generator=rng)
        for pipeline in (forward, oracle):
            pipeline.trainer.train(batch, 1, lambda *_, batch=(images, labels): batch)
        for j in range(len(forward.stages)):
            for got, wanted in zip(oracle.learnt(j), forward.learnt(j), strict=True):
                assert_close(got, wanted, f"block {j} at batch {batch}")
