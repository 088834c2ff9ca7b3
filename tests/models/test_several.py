"""Blocks that hand on several tensors."""

import pytest
import torch
from torch import Tensor, nn

from fgpipe.config import compose_config
from fgpipe.errors import UserError
from fgpipe.models.net import Net
from fgpipe.plan.costs import ForwardPass
from fgpipe.plan.plan import DataFacts, Plan
from fgpipe.plan.several import as_one, pack, unpack
from tests.nets import CHANNELS, KINDS, Joining, Splitting, conv, head, net

SEVERAL = KINDS["several tensors between blocks"]


def test_pack() -> None:
    """Unpacked, everything is as it was, images channels last, without a copy of those that were so."""
    x = torch.randn(2, 3, 4, 5), torch.randn(2, 7), torch.randn(2, 3, 4), torch.randn(2, 1, 2, 3, 4), torch.randn(2)
    packed = pack(x)
    assert packed.shape == (2, 60 + 7 + 12 + 24 + 1)
    found = unpack(packed, [each.shape[1:] for each in x])
    assert all(torch.equal(a, b) for a, b in zip(x, found, strict=True))
    assert found[0].stride(1) == 1 and found[0].data_ptr() == packed.data_ptr()


def test_a_net_is_the_same() -> None:
    """Shapes between blocks, the net's output, names of its parameters; also when it is planned again, for another size."""
    whole = SEVERAL()
    x, *blocks = torch.randn(2, 3, 16, 16), *whole.blocks
    names = [list(dict(block.named_parameters())) for block in blocks]
    wanted: Tensor | tuple[Tensor, ...] = x
    for block in blocks:
        wanted = block(wanted)
    for size in (8, 16):
        planned = as_one(whole, (3, size, size))
        sizes = [shape.numel() for shape in ForwardPass.of(planned, (2, 3, size, size)).shapes]
        assert sizes[2:4] == [2 * CHANNELS * size * size + 2] * 2
    for block in planned.blocks:
        x = block(x)
    torch.testing.assert_close(x, wanted)
    assert names == [list(dict(block.named_parameters())) for block in planned.blocks]


class Numbers(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, torch.arange(len(x))


@pytest.mark.parametrize("build, expected", [
    (lambda: net(Numbers(), Joining()), "block 1: gives a tuple of [2, 6, 16, 16], [2]: allowed: floating-point tensors with a row"),
    (lambda: Net([conv(3), Splitting()], [head(), head()]), "block 1: gives a tuple of [2, 6, 16, 16], [2, 6, 16, 16], [2, 2]: allowed: one tensor from"),
    (lambda: net(Splitting(), Joining()), "the head of block 1: "),
])  # fmt: skip
def test_refused(build, expected: str) -> None:
    """Integers, a tuple from the last block, and a head that takes one tensor where there are three."""
    facts = DataFacts(train_batches=1, test_batches=1, classes=5, channels=3, height=16, width=16)
    with pytest.raises(UserError) as caught:
        Plan.make(compose_config(["target=local"]), facts, build())
    assert str(caught.value).startswith(expected)
