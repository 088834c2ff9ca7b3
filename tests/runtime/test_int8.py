"""Eight bits on the wire: the format against its definition, and error feedback against a loop that keeps the error."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fgpipe.plan import int8
from fgpipe.plan.precision import Precision
from fgpipe.trainers.packing import from_floats, to_floats
from fgpipe.trainers.rounding import Rounding

PRECISION = Precision(torch.float32, torch.float32, int8=True)


@given(seed=st.integers(0, 2**32), groups=st.integers(1, 3), samples=st.integers(1, 4), channels=st.integers(1, 40))
@settings(max_examples=200, deadline=None)
def test_format(seed: int, groups: int, samples: int, channels: int) -> None:
    """Within half a step of the channel's largest number over 127; rounded once is rounded for good, and packing loses none."""
    rng = torch.Generator().manual_seed(seed)
    x = torch.randn(groups * samples, 3, 2, channels, generator=rng)
    x *= torch.exp(12 * torch.randn(channels, generator=rng))
    x[..., 0] = 0
    got = int8.rounded(x, groups)
    steps = x.view(groups, -1, channels).abs().numpy().max(axis=1, keepdims=True) / 127
    off = np.abs((got - x).view(groups, -1, channels).numpy())
    assert (off <= 0.50001 * steps).all() and (got[..., 0] == 0).all()
    assert torch.equal(int8.rounded(got, groups), got)
    packed = int8.pack(got, groups)
    assert packed.dtype == torch.int8 and len(packed) == int8.packed_size(x.shape, groups)
    assert len(packed) == x.numel() + 4 * groups * channels
    assert torch.equal(int8.unpack(packed, x.shape, groups), got)
    assert torch.equal(from_floats(to_floats(int8.rounded(x)), x.shape), int8.rounded(x))


def test_not_a_number_stays_one() -> None:
    """So that who receives it finds it."""
    for bad in (float("nan"), float("inf")):
        assert not int8.rounded(torch.tensor([[1.0, 2.0], [bad, 3.0]]))[:, 0].isfinite().all()


@pytest.mark.parametrize("shape", [(4, 3, 5, 5), (4, 6), (4, 7, 3)])
def test_error_feedback(shape: tuple[int, ...]) -> None:
    """Each gradient is sent with what rounding has taken from those before; channels are dimension 1 of maps, else the last."""
    rounding, rng = Rounding.of(PRECISION, shape, torch.device("cpu")), torch.Generator().manual_seed(1)
    error = torch.zeros(shape)
    for _ in range(5):
        g = torch.randn(shape, generator=rng)
        dims = (0, 2, 3) if len(shape) == 4 else tuple(range(len(shape) - 1))
        whole = g + error
        step = whole.abs().amax(dims, keepdim=True) / 127
        want = (whole / step).round() * step
        got = rounding(g)
        torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-7)
        error = whole - got
    assert rounding.memory is not None
    torch.testing.assert_close(next(rounding.memory.parameters()), error)
    assert Rounding.of(Precision(torch.float32, torch.bfloat16), shape, torch.device("cpu")).memory is None
