"""What a block sends up is nobody else's to write to."""

import pytest
import torch
from torch import Tensor, nn

from fgpipe.runtime.links.base import Batch
from tests.test_transparency import BATCH, Pipeline, configuration


def batch(x: Tensor) -> Batch:
    return Batch(0, 0, False, x, torch.zeros(len(x), dtype=torch.int64))


@pytest.mark.parametrize("target", ["local", "global"])
def test_a_head_that_writes_over_the_output_is_refused(target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In training and in evaluation."""
    pipeline = Pipeline(configuration("local", "mlp", "weight", "tensor", target, 8), monkeypatch)
    pipeline.stages[2].head.insert(0, nn.SiLU(inplace=True))
    wanted = "^the head of block 2 writes over the block's output"
    with pytest.raises(RuntimeError, match=wanted):
        pipeline.step(0)
    x = torch.randn(BATCH, 5, 16, 16, dtype=torch.float64)
    with pytest.raises(RuntimeError, match=wanted):
        pipeline.stages[2].evaluate(batch(x), lambda sent: None)


def test_an_input_that_is_passed_on_is_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    """The buffer that it came in is used again."""
    stage = Pipeline(configuration("local", "mlp", "weight", "tensor", "global", 8), monkeypatch).stages[1]
    monkeypatch.setattr(stage.block, "forward", lambda x: x)
    x = torch.randn(BATCH, 5, 16, 16, dtype=torch.float64)
    came, sent = x.clone(), []
    stage.evaluate(batch(x), sent.append)
    x.zero_()
    assert torch.equal(sent[0].x, came)
