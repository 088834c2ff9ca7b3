"""Sparse feedback (`feedback.every`): readings with every K-th batch, the running coefficient between them."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.integration.test_processes import recorded
from tests.test_transparency import Pipeline, assert_close, configuration

DECAY = 0.95
"""Weight of what was before in the running means (docs/reference/algorithm.md)."""


@pytest.mark.parametrize("every", [1, 2, 3, 5])
@pytest.mark.parametrize("target, normalised", [("global", False), ("depth 3", False), ("global", True)])
def test_equal_to_the_oracle(every: int, target: str, normalised: bool) -> None:
    """Each block's estimate is its mean coefficient, by hand from the oracle's of the batches with readings, times its guess."""
    more = [f"feedback.every={every}", "decode=smoothed", f"step={'normalised' if normalised else 'projection'}"]
    pipeline = Pipeline(configuration("local", "mlp", "weight", "block", target, 8, *more))
    totals, sizes, weight = [0.0] * 7, [0.0] * 7, 0.0
    for batch in range(7):
        wanted, _ = pipeline.step(batch)
        asked = batch % every == 0
        weight = DECAY * weight + (1 - DECAY) if asked else weight
        for j in range(7):
            estimate, scalar = wanted.blocks[j], wanted.scalars[j]
            assert scalar is not None
            coefficient = sum(float(each.square().sum()) for each in estimate.values()) / float(scalar)  # s / |g|^2
            if asked:
                totals[j] = DECAY * totals[j] + (1 - DECAY) * coefficient
                sizes[j] = DECAY * sizes[j] + (1 - DECAY) * abs(totals[j] / weight)
            factor = totals[j] / weight
            factor = factor / (sizes[j] / weight) if normalised else factor
            for got, (name, projected) in zip(pipeline.learnt(j), estimate.items(), strict=True):
                assert_close(got, factor / coefficient * projected, f"block {j} {name} at batch {batch}")


def test_nothing_before_the_first_readings() -> None:
    """A batch that is begun before any readings came changes no weight of a block that waits for them."""
    more = ["feedback.every=4", "decode=smoothed", "window=4", "optim.weight_decay=0", "target.depth=3"]
    pipeline = Pipeline(configuration("local", "linear", "weight", "block", "depth 3", 8, *more))
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(3, 8, 3, 16, 16, generator=generator, dtype=torch.float64)
    before = [p.clone() for p in pipeline.stages[0].block.parameters()]
    learnt: list[list[Tensor]] = []

    def source(epoch: int, index: int) -> tuple[Tensor, Tensor]:
        learnt.append([p.clone() for p in pipeline.stages[0].block.parameters()])
        return images[index], torch.arange(8) % 5

    pipeline.trainer.train(0, 3, source)
    assert all(torch.equal(*pair) for each in learnt for pair in zip(each, before, strict=True))
    after = list(pipeline.stages[0].block.parameters())
    assert not all(torch.equal(*pair) for pair in zip(after, before, strict=True)), (
        "batch 0's readings are applied in the end"
    )


RUN = [
    "epochs=2", "batch_size=16", "data.train_samples=112", "data.test_samples=32", "model.width=0.0625", "window=auto",
    "scope=block", "decode=smoothed", "feedback.every=3", "threads=1", "device=cpu", "observe.tensorboard=false",
    "checkpoint.every_steps=5", "optim=constant", "optim.lr=0.01",
]  # fmt: skip


@pytest.mark.slow
def test_processes_and_resuming_change_nothing(tmp_path: Path) -> None:
    """The same bits in 1, 2 and 4 processes, in lanes of either kind, and from a checkpoint between two readings; lanes and
    readings travel with 5 of 14 batches."""
    runs = {"exact": RUN, "coded": [*RUN, "lanes=1"], "intermediate": [*RUN, "target=intermediate"]}
    one, *others = (recorded(tmp_path / str(count), count, runs) for count in (1, 2, 4))
    half, whole = [*RUN, "epochs=1"], [*RUN, f"resume={tmp_path}/halves/half"]
    resumed = recorded(tmp_path / "halves", 2, {"half": half, "resumed": whole})["resumed"]
    for name in runs:
        for many in others:
            assert one[name].keys() == many[name].keys()
            assert not [key for key, value in one[name].items() if not np.array_equal(value, many[name][key])], name
    learnt = [key for key in one["exact"] if not key.startswith("loss")]
    assert learnt and not [key for key in learnt if not np.array_equal(one["exact"][key], resumed[key])]
    summary = json.loads((tmp_path / "2" / "exact" / "summary.json").read_text())
    upwards = next(kinds for kinds in summary["bytes"].values() if "activations" in kinds)
    assert upwards["tangents"]["messages"] == summary["bytes"]["7->0"]["feedback"]["messages"] == 5
