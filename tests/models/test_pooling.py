"""Pooling to a grid is PyTorch's adaptive average pooling, in values, gradients of both orders, and derivatives."""

import pytest
import torch
import torch.nn.functional as F
from torch.func import jvp, vmap

from fgpipe.models.pooling import GridPool2d

SHAPES = [(2, 3, 8, 8), (2, 5, 2, 2), (1, 4, 6, 12), (3, 2, 5, 7), (2, 3, 1, 1)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format], ids=["nhwc", "nchw"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_as_adaptive_pooling(shape: tuple[int, ...], layout: torch.memory_format, dtype: torch.dtype) -> None:
    """Bit for bit where a cell has a power of two of pixels, and one of three and six, to rounding, elsewhere."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype).contiguous(memory_format=layout)
    gradient = torch.randn((*shape[:2], 2, 2), generator=torch.Generator().manual_seed(1)).to(dtype)
    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    mine, expected = GridPool2d(2)(ours), F.adaptive_avg_pool2d(theirs, 2)
    mine.backward(gradient)
    expected.backward(gradient)
    tolerance = 0.0 if shape != (1, 4, 6, 12) else 4 * torch.finfo(dtype).eps
    torch.testing.assert_close(mine, expected, rtol=tolerance, atol=0)
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=tolerance, atol=0)


def test_derivatives() -> None:
    """Against finite differences; under `torch.func` too."""
    pool = GridPool2d(2)
    x = torch.randn(2, 3, 4, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    assert torch.autograd.gradcheck(pool, x, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(pool, x)
    v = torch.randn(5, *x.shape, dtype=torch.float64)
    expected = torch.stack([F.adaptive_avg_pool2d(each, 2) for each in v])
    found = vmap(lambda each: jvp(pool, (x.detach(),), (each,))[1])(v)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
