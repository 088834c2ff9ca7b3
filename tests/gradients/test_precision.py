"""bfloat16 for compute, bfloat16 and int8 for the wire: how far it takes the estimates from the float64 oracle."""

import pytest
import torch

from tests.test_transparency import BATCH, Pipeline, Snapshot, configuration

Case = tuple[str, str, str, str, str]
CASES: list[Case] = [  # no random guesses: their draws differ between formats
    ("local", "mlp", "weight", "tensor", "global"),
    ("ntk", "cnn", "weight", "block", "intermediate"),
    ("local", "linear", "activity", "batch", "global"),
    ("local", "mlp", "weight", "tensor", "local"),
]


def in_float64(before: Snapshot) -> list[torch.Tensor]:
    """The oracle's estimates of each block, one vector, from the same weights and images."""
    for module in (*before.blocks, *before.heads, *before.guess_heads):
        if module is not None:
            module.double()
    return [torch.cat([tensor.flatten() for tensor in block.values()]) for block in before.oracle().blocks]


def errors(case: Case, monkeypatch: pytest.MonkeyPatch, *overrides: str) -> torch.Tensor:
    """`[steps, J]`: each block's relative error."""
    pipeline = Pipeline(configuration(*case, 8, "dtype=float32", *overrides))
    rows = []
    for batch in range(3):
        rng = torch.Generator().manual_seed(batch)
        images, labels = torch.randn(BATCH, 3, 16, 16, generator=rng), torch.randint(0, 5, (BATCH,), generator=rng)
        wanted = in_float64(Snapshot(pipeline, batch, images.double(), labels))
        pipeline.trainer.train(batch, 1, lambda *_, drawn=(images, labels): drawn)
        got = [torch.cat([each.flatten() for each in pipeline.learnt(j)]) for j in range(len(pipeline.stages))]
        rows.append(torch.stack([(a - b).norm() / b.norm() for a, b in zip(got, wanted, strict=True)]))
    return torch.stack(rows)


@pytest.mark.parametrize("case", CASES, ids=" ".join)
def test_bfloat16_is_used_and_near(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """float32 is near the oracle; each use of bfloat16 is well apart from it, and still of the estimate's size.

    Eight samples through BatchNorm are hard on eight bits: medians from 8 % to 52 %.
    """
    full = errors(case, monkeypatch).median()
    assert full < 1e-4
    for overrides in (["wire=bfloat16"], ["wire=int8"], ["autocast=true"], ["autocast=true", "wire=bfloat16"]):
        assert 100 * full < errors(case, monkeypatch, *overrides).median() < 0.7, overrides
