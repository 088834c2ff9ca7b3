"""Heads that learn from the target's probabilities, against autograd on the soft cross-entropy of the net before the batch."""

from typing import Any

import pytest
import torch
from torch.autograd import grad
from torch.nn import functional as F

from fgpipe.config import compose_config
from fgpipe.errors import UserError
from tests.gradients.test_two_heads import outputs
from tests.test_transparency import Pipeline, assert_agrees, assert_close, configuration


@pytest.mark.parametrize("guess, part", [("error", "head"), ("mixture", "beside")])
@pytest.mark.parametrize("head", ["mlp", "strided"])
def test_the_gradient_of_the_soft_cross_entropy(guess: str, part: str, head: str) -> None:
    pipeline = Pipeline(configuration(guess, head, "activity", "sample", "global", 8, "head.learns=distilled"))
    for batch in range(2):
        wanted, before = pipeline.step(batch)
        assert_agrees(pipeline, wanted, before, skip_samples=False)
        ys = outputs(before)
        classifier: Any = before.heads[-1]
        said = classifier(ys[-1]).softmax(1).detach()
        for j, y in enumerate(ys[:-1]):
            pupil: Any = before.heads[j] if part == "head" else before.guess_heads[j]
            named = list(pupil.named_parameters())
            taught = grad(F.cross_entropy(pupil(y.detach()), said), [each for _, each in named])
            for got, want, (name, _) in zip(pipeline.learnt(j, part), taught, named, strict=True):
                assert_close(got, want, f"{part} {j} {name} at batch {batch}")


def test_end_to_end_with_distilled_heads_beside_it() -> None:
    """The oracle's observed heads, for the sieve; the blocks learn as without."""
    keys = ["guess=end_to_end", "tangents=oracle", "observe.heads=true"]
    one, other = (
        Pipeline(configuration("end_to_end", "mlp", "weight", "tensor", "global", 8, *keys, f"head.learns={how}"))
        for how in ("labels", "distilled")
    )
    images, labels = torch.randn(8, 3, 16, 16, dtype=torch.float64), torch.arange(8) % 5
    for each in (one, other):
        each.trainer.train(0, 1, lambda epoch, index: (images, labels))
    for j in range(8):
        assert all(map(lambda a, b: a.equal(b), one.learnt(j), other.learnt(j)))
        same = all(map(lambda a, b: a.equal(b), one.learnt(j, "head"), other.learnt(j, "head")))
        assert same == (j == 7), "only the classifier learns from labels in both"


@pytest.mark.parametrize("arguments", [["guess=local"], ["guess=error", "space=activity", "target=local"], ["guess=end_to_end"]])  # fmt: skip
def test_refused(arguments: list[str]) -> None:
    with pytest.raises(UserError, match=r"^head.learns=distilled: allowed: labels unless guess=error \| mixture"):
        compose_config([*arguments, "head.learns=distilled"])
