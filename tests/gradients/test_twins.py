"""Twins: with all blocks above and fresh weights they give backpropagation's gradient; stale ones, their own copy's.

References are autograd on the net before the batch, with copies of weights that the test keeps itself.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import grad
from torch.nn import functional as F

from fgpipe.config import compose_config
from fgpipe.errors import UserError
from fgpipe.models.heads import Head
from fgpipe.models.net import Net, deep_copy
from fgpipe.plan.plan import DataFacts, Plan
from tests.gradients.test_two_heads import assert_learnt, outputs, unit
from tests.test_transparency import Pipeline, Snapshot, assert_agrees, assert_close, configuration


def pipeline(*keys: str, target: str = "global", blocks: int = 8) -> Pipeline:
    return Pipeline(configuration("twins", "mlp", "activity", "sample", target, blocks, *keys))


def steps(
    run: Pipeline, batches: int, every: int
) -> Iterator[tuple[int, Snapshot, Sequence[nn.Module], Sequence[Any]]]:
    """Train on batches; yield each with the net before it, and the blocks and heads of the last multiple of `every`."""
    blocks: Sequence[nn.Module] = ()
    heads: Sequence[Any] = ()
    for batch in range(batches):
        wanted, before = run.step(batch)
        assert_agrees(run, wanted, before, skip_samples=False)
        if batch % every == 0:
            blocks, heads = [deep_copy(each) for each in before.blocks], [deep_copy(each) for each in before.heads]
        yield batch, before, blocks, heads


def error_of(before: Snapshot, y: Tensor) -> Tensor:
    classifier: Any = before.heads[-1]
    logits = classifier(y)
    return (logits.softmax(1) - F.one_hot(before.labels, logits.shape[1])).detach() / len(logits)


def test_all_blocks_and_fresh_weights_are_backpropagation() -> None:
    """In lock-step; in the oracle as in the pipeline."""
    run = pipeline("guess.ahead=null", "guess.every=1")
    for batch in range(3):
        wanted, before = run.step(batch)
        assert_agrees(run, wanted, before, skip_samples=False)
        classifier: Any = before.heads[-1]
        loss = classifier.losses(outputs(before)[-1], before.labels)[0].mean()
        for j in range(7):
            named = list(before.blocks[j].named_parameters())
            true = grad(loss, [each for _, each in named], retain_graph=True)
            for got, want, (name, _) in zip(run.learnt(j), true, named, strict=True):
                assert_close(got, want, f"block {j} {name} at batch {batch}")


@pytest.mark.parametrize("ahead, every, path", [("1", 2, "whole"), ("3", 3, "whole"), ("null", 2, "skip")])
def test_stale_copies(ahead: str, every: int, path: str) -> None:
    """Of the weights that the blocks above had at the last multiple of `every`."""
    run = pipeline(f"guess.ahead={ahead}", f"guess.every={every}", f"guess.path={path}")
    for _, before, blocks, heads in steps(run, 4, every):
        ys = outputs(before)
        error = error_of(before, ys[-1])
        for j in range(7):
            last = 7 if ahead == "null" else min(7, j + int(ahead))
            x = ys[j]
            for block in blocks[j + 1 : last + 1]:
                x = torch.relu(block.shortcut(x)) if path == "skip" else block(x)  # type: ignore[operator]
            (wanted_at_output,) = grad(heads[last](x), ys[j], error, retain_graph=True)
            assert_learnt(run, before, ys, j, wanted_at_output)


@pytest.mark.parametrize(
    "second, share, second_every", [("own", 1, 1), ("own", 0.25, 3), ("error", 0.5, 1), ("error", 0.5, 2)]
)
def test_beside_the_own_gradient(second: str, share: float, second_every: int) -> None:
    """Both through stale copies; a share of 1 has no size of its own gradient; between, the own gradient alone."""
    every, target = 2, "local" if second == "own" else "global"
    keys = (
        f"guess.second={second}",
        f"guess.share={share}",
        f"guess.every={every}",
        f"guess.second_every={second_every}",
    )
    for batch, before, blocks, heads in steps(run := pipeline(*keys, target=target), 3, every):
        ys = outputs(before)
        for j in range(7):
            logits = heads[j + 1](blocks[j + 1](ys[j]))
            error = error_of(before, ys[-1])
            if second == "own":
                error = (logits.softmax(1) - F.one_hot(before.labels, logits.shape[1])).detach() / len(logits)
            (aim,) = grad(logits, ys[j], error, retain_graph=True)
            if share < 1:
                head: Any = before.heads[j]
                (own,) = grad(head.losses(ys[j], before.labels)[0].mean(), ys[j], retain_graph=True)
                between = batch % second_every > 0
                aim = own if between else own.square().sum().sqrt() * unit((1 - share) * unit(own) + share * unit(aim))
            assert_learnt(run, before, ys, j, aim)


def test_a_private_head_of_the_same_shape() -> None:
    """The control: it has weights of its own, which learn from the labels."""
    run = pipeline("guess.weights=private", "guess.ahead=2")
    for batch in range(2):
        wanted, before = run.step(batch)
        assert_agrees(run, wanted, before, skip_samples=False)
        ys = outputs(before)
        error = error_of(before, ys[-1])
        for j in range(7):
            (wanted_at_output,) = grad(before.guess_heads[j](ys[j]), ys[j], error, retain_graph=True)
            assert_learnt(run, before, ys, j, wanted_at_output)
            (own, *_), (theirs, *_) = before.guess_heads[j].parameters(), before.blocks[j + 1].parameters()
            assert not torch.equal(own, theirs)


@pytest.mark.parametrize("arguments, line", [
    (["guess.ahead=0"], "guess.ahead=0: allowed: a whole number of at least 1, or null"),
    (["guess.every=0"], "guess.every=0: allowed: a whole number of at least 1"),
    (["guess.path=long"], "guess.path=long: allowed: whole | skip"),
    (["guess.weights=lent"], "guess.weights=lent: allowed: copied | private"),
    (["guess.second=exact"], "guess.second=exact: allowed: error | own"),
    (["guess.second=own"], "guess.second=own: allowed: error with target=global, or own with target=local"),
    (["guess.share=2"], "guess.share=2: allowed: a number above 0 and at most 1"),
    (["guess.second_every=0"], "guess.second_every=0: allowed: a whole number of at least 1"),
    (["guess.second_every=2"], "guess.second_every=2: allowed: 1 with guess.share=1"),
    (["replicas=2"], "replicas=2: allowed: 1 with guess=twins, whose weights come from block to block"),
    (["head.learns=distilled"], "head.learns=distilled: allowed: labels with guess=twins guess.weights=copied"),
])  # fmt: skip
def test_refused(arguments: list[str], line: str) -> None:
    with pytest.raises(UserError) as caught:
        compose_config(["guess=twins", "space=activity", *arguments])
    assert str(caught.value) == line


def test_blocks_that_draw_are_refused() -> None:
    """A twin would draw other numbers than its block."""

    def head() -> Head:
        return Head(nn.Flatten(), nn.Linear(2 * 16, 5))

    blocks = [nn.Conv2d(1, 2, 3, stride=4, padding=1), nn.Sequential(nn.Conv2d(2, 2, 3, padding=1), nn.Dropout(0.5))]
    config = configuration("twins", "mlp", "activity", "sample", "global", 8, "model.modules=[4,4]")
    facts = DataFacts(train_batches=1, test_batches=1, classes=5, channels=1, height=16, width=16)
    with pytest.raises(UserError, match="^guess=twins: allowed: another one with blocks that may draw numbers"):
        Plan.make(config, facts, Net(blocks, [head(), head()]))
