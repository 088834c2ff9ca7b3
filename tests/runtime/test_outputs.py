"""Tensors that a block is given or sends up are nobody else's to write to."""

import pytest
import torch
from torch import Tensor, nn

from fgpipe.trainers.stage import Stage
from fgpipe.wire.batch import Batch
from tests.nets import CHANNELS, KINDS
from tests.test_transparency import BATCH, Pipeline, configuration


def a_stage(target: str = "global") -> Stage:
    return Pipeline(configuration("local", "mlp", "weight", "tensor", target, 8)).stages[1]


def images() -> Tensor:
    return torch.randn(BATCH, 5, 16, 16, dtype=torch.float64)


def sent_by(stage: Stage, x: Tensor, training: bool) -> Tensor:
    batch = Batch(0, 0, training, x, torch.zeros(len(x), dtype=torch.int64))
    return next(message.x for message in stage.run(batch) if isinstance(message, Batch))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("target", ["local", "global"])
def test_a_head_that_writes_over_its_input_gets_a_copy(target: str, training: bool) -> None:
    """The output is on its way up by then."""
    stage, x = a_stage(target), images()
    wanted = sent_by(a_stage(target), x, training)
    stage.head.insert(0, nn.SiLU(inplace=True))
    assert torch.equal(sent_by(stage, x, training), wanted)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("target", ["local", "global"])
@pytest.mark.parametrize("index", [1, 2, 3])
def test_a_block_that_writes_over_its_input_gets_a_copy(index: int, target: str, training: bool) -> None:
    """The input is a receive buffer, or the output of the block below."""
    net = KINDS["blocks that begin in place"]()
    config = configuration("local", "mlp", "weight", "tensor", target, 8)
    config.model.blocks = len(net.blocks)
    stage = Pipeline(config, net).stages[index]
    x = torch.randn(BATCH, CHANNELS, 16, 16, dtype=torch.float64)
    came, wanted = x.clone(), stage.block(x.clone()).detach()
    assert torch.equal(sent_by(stage, x, training), wanted)
    assert torch.equal(x, came)


def test_an_input_that_is_passed_on_is_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    """The buffer that it came in is used again."""
    stage, x = a_stage(), images()
    monkeypatch.setattr(stage.block, "forward", lambda x: x)
    came = x.clone()
    sent = sent_by(stage, x, training=False)
    x.zero_()
    assert torch.equal(sent, came)
