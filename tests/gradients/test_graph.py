"""Which modules `torch.fx` traces for us, and that others come to no harm by the attempt; their tangents: `test_rules.py`."""

import copy

import pytest
import torch
from torch import Tensor, nn

from fgpipe.gradients import Tangent, linearize
from fgpipe.gradients.dual import there
from fgpipe.gradients.rules.graph import traced
from tests.gradients.authored import DRAWING, OTHERWISE, TRACED, UNTRACED


@pytest.mark.parametrize("name", TRACED)
def test_traced(name: str) -> None:
    module, x = TRACED[name](), torch.randn(4, 3, 8, 8)
    assert traced(module, x) is not None and traced(module, x) is traced(module)


@pytest.mark.parametrize("name", [*UNTRACED, *OTHERWISE, *DRAWING])
def test_untraced(name: str) -> None:
    """Nothing that a forward pass changes is changed by the attempt: attributes, buffers, random numbers."""
    module = (UNTRACED | OTHERWISE | DRAWING)[name]()
    x = torch.randn(4, 3, 8, 8)
    attributes, buffers, numbers = (
        dict(vars(module)),
        copy.deepcopy(dict(module.named_buffers())),
        torch.get_rng_state(),
    )
    assert traced(module, x) is None and traced(module) is None
    assert vars(module) == attributes
    assert all(torch.equal(buffer, buffers[key]) for key, buffer in module.named_buffers())
    assert torch.equal(torch.get_rng_state(), numbers)


def test_traced_anew_when_attributes_change() -> None:
    """The mode, and a number that a program changes between batches."""

    class Mode(nn.Module):
        factor = 1.0

        def forward(self, x: Tensor) -> Tensor:
            return x.exp() if self.training else self.factor * x

    module, x = Mode().double(), torch.randn(4, 3, dtype=torch.float64)
    for factor in (x.exp(), torch.full_like(x, 2.0), torch.full_like(x, 3.0)):
        y, push = linearize(module, x)
        torch.testing.assert_close(y, module(x))
        torch.testing.assert_close(there(push(Tangent((0,), torch.ones_like(x)), {})).value, factor)
        module.eval()
        module.factor = 1 + module.factor


def test_nothing_is_run_twice() -> None:
    """A traced module's forward pass is made once, with its graph for autograd."""
    calls = []

    class Layer(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            calls.append(x)
            return super().forward(x)

    module, x = Layer(4, 4), torch.randn(2, 4)
    assert traced(module, x) is not None
    calls.clear()
    y, push = linearize(module, x)
    push(Tangent((0,), torch.randn(2, 4)), {})
    assert not calls and y.requires_grad
