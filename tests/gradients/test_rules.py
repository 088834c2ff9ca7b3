"""Each tangent rule against `torch.func.jvp` and against central differences, in float64.

A failure names the layer whose rule is wrong. The inputs avoid kinks (ReLU at 0, ties in max-pooling) with
probability one, so both references are exact up to rounding and to the differences' O(step^2).
"""

import copy
import itertools
from typing import TypeVar

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, jvp
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from fgpipe.gradients import Direction, Tangent, linearize, linearize_losses
from fgpipe.gradients.dual import add, insert, there
from fgpipe.models.convolution import PaddedConv2d
from fgpipe.models.heads import Head, PredSim, auxiliary_head, classifier
from fgpipe.models.pooling import GridPool2d
from fgpipe.models.resnet import Residual, resnet18
from fgpipe.study.bench.measure import peak_bytes
from tests.gradients.authored import TRACED, UNTRACED

IMAGES = (4, 3, 8, 8)
Module = TypeVar("Module", bound=nn.Module)


class Gated(nn.Module):
    """A block of a kind that has no rule of ours."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm = nn.GroupNorm(1, channels)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.norm(self.conv(x))) * torch.sigmoid(x)


class Shifted(nn.ReLU):
    """A subclass that overrides forward: the parent's rule must not serve it."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x - 0.3)


class Broadcast(nn.Module):
    """Ends in an expanded view."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(dim=(2, 3), keepdim=True).expand_as(x)


class Tied(nn.Module):
    """Two layers with one parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 3, 1, bias=False), nn.Conv2d(3, 3, 1, bias=False)
        self.two.weight = self.one.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.two(torch.tanh(self.one(x)))


def twice(layer: nn.Module) -> nn.Module:
    return nn.Sequential(layer, nn.BatchNorm2d(3), layer)


def residual(stride: int) -> Residual:
    body = nn.Sequential(nn.Conv2d(3, 5, 3, stride, 1), nn.BatchNorm2d(5), nn.ReLU(), nn.Conv2d(5, 5, 3, 1, 1))
    return Residual(body, nn.Sequential(nn.Conv2d(3, 5, 1, stride), nn.BatchNorm2d(5)))


class Standardised(nn.Conv2d):
    """A convolution that is not linear in its weight."""

    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return super()._conv_forward(x, weight / weight.std(), bias)


LAYERS = {
    "conv": lambda: nn.Conv2d(3, 5, 3, stride=2, padding=1),
    "conv without bias": lambda: nn.Conv2d(3, 5, 1, bias=False),
    "conv, circular padding": lambda: nn.Conv2d(3, 5, 3, padding=1, padding_mode="circular"),
    "conv, strided, of one pixel": lambda: nn.Sequential(nn.AdaptiveAvgPool2d(1), PaddedConv2d(3, 5, stride=2)),
    "conv, standardised weight": lambda: Standardised(3, 5, 3),
    "linear": lambda: nn.Sequential(nn.Flatten(), nn.Linear(192, 7)),
    "linear on the last axis": lambda: nn.Linear(8, 6),
    "batch norm": lambda: nn.BatchNorm2d(3),
    "batch norm without affine": lambda: nn.BatchNorm2d(3, affine=False),
    "batch norm on features": lambda: nn.Sequential(nn.Flatten(), nn.BatchNorm1d(192)),
    "batch norm, cumulative": lambda: nn.BatchNorm2d(3, momentum=None),
    "batch norm, evaluating": lambda: nn.BatchNorm2d(3).eval(),
    "batch norm and relu": lambda: nn.Sequential(nn.BatchNorm2d(3), nn.ReLU()),
    "batch norm and relu, cumulative": lambda: nn.Sequential(nn.BatchNorm2d(3, momentum=None), nn.ReLU()),
    "batch norm and relu, evaluating": lambda: nn.Sequential(nn.BatchNorm2d(3), nn.ReLU()).eval(),
    "batch norm and a hooked relu": lambda: nn.Sequential(nn.BatchNorm2d(3), _hooked()),
    "relu": lambda: nn.ReLU(),
    "relu in place": lambda: nn.Sequential(nn.BatchNorm2d(3), nn.ReLU(inplace=True)),
    "overridden relu": lambda: Shifted(),
    "max pool": lambda: nn.MaxPool2d(3, stride=2, padding=1),
    "average pool": lambda: nn.AvgPool2d(2),
    "adaptive pool": lambda: nn.AdaptiveAvgPool2d(2),
    "grid pool": lambda: GridPool2d(2),
    "flatten everything": lambda: nn.Sequential(nn.Flatten(0), nn.Unflatten(0, (4, 192))),
    "layer norm": lambda: nn.LayerNorm(8),
    "layer norm over two axes": lambda: nn.LayerNorm((8, 8)),
    "layer norm without affine": lambda: nn.LayerNorm(8, elementwise_affine=False),
    "group norm": lambda: nn.Sequential(nn.Conv2d(3, 6, 1), nn.GroupNorm(3, 6)),
    "group norm without affine": lambda: nn.GroupNorm(1, 3, affine=False),
    "group norm of tokens": lambda: nn.Sequential(nn.Flatten(2), nn.GroupNorm(3, 3)),
    "gelu": lambda: nn.GELU(),
    "gelu, tanh": lambda: nn.GELU("tanh"),
    "silu": lambda: nn.SiLU(),
    "silu in place": lambda: nn.Sequential(nn.Conv2d(3, 3, 1), nn.SiLU(inplace=True)),
    "dropout, evaluating": lambda: nn.Dropout().eval(),
    "residual": lambda: residual(2),
    "resnet block with stem": lambda: resnet18(8, width=0.0625)[0][0],
    "imagenet stem": lambda: resnet18(8, width=0.0625, stem="imagenet")[0][0],
    "plain block": lambda: resnet18(16, width=0.0625)[0][0],
    "no rule": lambda: Gated(3),
    "no rule inside": lambda: nn.Sequential(nn.Conv2d(3, 4, 1), Gated(4), nn.BatchNorm2d(4)),
    "hooked": lambda: _hooked(),
    "a forward pass of the instance's own": lambda: _changed(),
    "a layer twice": lambda: twice(nn.ReLU()),
    "a layer with weights twice": lambda: twice(nn.Conv2d(3, 3, 3, padding=1)),
    "a view in a residual": lambda: Residual(nn.Sequential(nn.BatchNorm2d(3), Broadcast()), nn.Identity()),
    **TRACED,
    **{f"untraced: {name}": build for name, build in UNTRACED.items()},
    "batch norm of a view": lambda: nn.Sequential(Broadcast(), nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)),
}


def _changed() -> nn.Module:
    layer = nn.ReLU()
    layer.forward = torch.sigmoid  # type: ignore[method-assign]
    return layer


def _hooked() -> nn.Module:
    layer = nn.ReLU()
    layer.register_forward_hook(lambda module, args, y: 2 * y)
    return layer


def randomized(module: Module) -> Module:
    module = module.double()
    for parameter in module.parameters():
        nn.init.normal_(parameter, mean=0.2)
    return module


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(1)


@pytest.mark.parametrize("fresh", [False, True], ids=["kept", "fresh"])
@pytest.mark.parametrize("build", LAYERS.values(), ids=LAYERS.keys())
def test_rule(build, fresh: bool) -> None:
    """Three lanes: one from below, one from below that a weight direction joins, one of weights alone.

    What is pushed is written over only if it is fresh.
    """
    module = randomized(build())
    x = torch.randn(IMAGES, dtype=torch.float64)
    dx = torch.randn(2, *IMAGES, dtype=torch.float64)
    dp = {name: torch.randn_like(p) for name, p in module.named_parameters()}
    reference = copy.deepcopy(module)
    y, push = linearize(module, x)
    given, directions = (
        dx.flatten(0, 1).clone(),
        {name: Direction(d.clone(), {5: -0.5, 9: 2.0}) for name, d in dp.items()},
    )
    got = there(push(Tangent((3, 5), given, fresh), directions))
    assert fresh or torch.equal(given, dx.flatten(0, 1))
    assert all(torch.equal(directions[name].value, d) for name, d in dp.items())
    assert all(isinstance(p, nn.Parameter) for p in module.parameters()), "the module has its own ones again"

    zero = torch.zeros_like(x)
    for lane, (below, factor) in {3: (dx[0], 0.0), 5: (dx[1], -0.5), 9: (zero, 2.0)}.items():
        weights = {name: factor * d for name, d in dp.items()}
        y_reference, want = _jvp(reference, x, below, weights)
        torch.testing.assert_close(y, y_reference, rtol=1e-12, atol=1e-12)
        if lane not in got.lanes:
            assert not dp and lane == 9, "a lane may be missing only where nothing was put in"
            continue
        have = got.per_lane()[got.lanes.index(lane)]
        torch.testing.assert_close(have, want, rtol=1e-9, atol=1e-10)
        torch.testing.assert_close(have, _differences(reference, x, below, weights), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("below", [(), (0,), (0, 100)], ids=["none below", "one below", "two below"])
@pytest.mark.parametrize("build", LAYERS.values(), ids=LAYERS.keys())
def test_own_lanes(build, below: tuple[int, ...]) -> None:
    """Every parameter has a lane of its own, the first of them one that comes from below too; channels last, as in runs."""
    module = randomized(build()).to(memory_format=torch.channels_last)
    x = torch.randn(IMAGES, dtype=torch.float64).contiguous(memory_format=torch.channels_last)
    dp = {name: torch.randn_like(p) for name, p in module.named_parameters()}
    dx = {lane: torch.randn_like(x) for lane in below}
    reference = copy.deepcopy(module)
    _, push = linearize(module, x)
    directions = {name: Direction(d.clone(), {lane: 1.0}) for lane, (name, d) in enumerate(dp.items())}
    got = push(Tangent(below, torch.cat(list(dx.values()))) if below else None, directions)
    assert all(torch.equal(directions[name].value, d) for name, d in dp.items())
    found = dict(zip(got.lanes, got.per_lane(), strict=True)) if got else {}
    assert set(found) == {*below, *range(len(dp))}
    for lane, have in found.items():
        weights = {name: d * (lane == own) for own, (name, d) in enumerate(dp.items())}
        want = _jvp(reference, x, dx.get(lane, torch.zeros_like(x)), weights)[1]
        torch.testing.assert_close(have, want, rtol=1e-9, atol=1e-10)


def test_parameters_with_two_names() -> None:
    """In two layers; those of a layer in two places are among `LAYERS`. The module has its own ones afterwards."""
    module = Tied().double()
    x, dx = torch.randn(2, *IMAGES, dtype=torch.float64)
    (name, parameter), *others = module.named_parameters()
    assert not others
    d = torch.randn_like(parameter)

    def at(t: float) -> Tensor:
        moved = copy.deepcopy(module)
        with torch.no_grad():
            moved.one.weight.add_(t * d)
        return moved(x + t * dx)

    got = there(linearize(module, x)[1](Tangent((0,), dx), {name: Direction(d, {0: 1.0})}))
    torch.testing.assert_close(got.value, (at(1e-6) - at(-1e-6)) / 2e-6, rtol=1e-5, atol=1e-6)
    assert module.one.weight is parameter and module.two.weight is parameter


def test_only_fresh_is_written() -> None:
    """By sums and insertions; the result has the type of the sum."""
    for fresh in itertools.product([False, True], repeat=2):
        values = torch.randn(4, 3), torch.randn(4, 3, dtype=torch.float64)
        for one, two in (values, values[::-1]):
            first, second = Tangent((1, 2), one.clone(), fresh[0]), Tangent((2, 3), two.clone(), fresh[1])
            same = Tangent((1, 2), two.clone(), fresh[1])
            kept = [(each, each.value.clone()) for each in (first, second, same) if not each.fresh]
            total = there(add(first, same))
            assert total.value.dtype == torch.float64
            torch.testing.assert_close(total.value, one + two.double(), check_dtype=False)
            first = first if not fresh[0] else Tangent((1, 2), one.clone(), True)
            total = there(add(first, second))
            assert total.lanes == (1, 2, 3) and total.value.dtype == torch.float64
            want = torch.cat([one[:2].double(), one[2:] + two[:2].double(), two[2:].double()])
            torch.testing.assert_close(total.value, want)
            assert all(torch.equal(each.value, value) for each, value in kept)
    direction, given = torch.randn(2, 3), torch.randn(2, 3, dtype=torch.bfloat16)
    for tangent in (None, Tangent((1,), given.clone())):
        before = direction.clone()
        got = there(insert(insert(tangent, direction, {1: 1.0}), direction, {1: 1.0, 4: -2.0}))
        assert got.lanes == (1, 4) and torch.equal(direction, before)
        assert tangent is None or torch.equal(tangent.value, given) and got.value.dtype == torch.bfloat16
        torch.testing.assert_close(got.value[2:], (-2 * direction).to(got.value.dtype))


@pytest.mark.parametrize("build", LAYERS.values(), ids=LAYERS.keys())
def test_one_lane(build) -> None:
    """A single lane from below, without directions of the parameters; it is read only."""
    module = randomized(build())
    x, dx = torch.randn(2, *IMAGES, dtype=torch.float64)
    reference, given = copy.deepcopy(module), dx.clone()
    _, push = linearize(module, x)
    got = there(push(Tangent((3,), given), {}))
    assert got.lanes == (3,)
    still = {name: torch.zeros_like(p) for name, p in reference.named_parameters()}
    torch.testing.assert_close(got.value, _jvp(reference, x, dx, still)[1], rtol=1e-9, atol=1e-10)
    assert torch.equal(given, dx)


def _call(module: nn.Module, moved: dict[str, Tensor], x: Tensor) -> Tensor:
    buffers = {name: buffer.clone() for name, buffer in module.named_buffers()}
    return functional_call(module, {**moved, **buffers}, (x.clone(),), tie_weights=False)


def _jvp(module: nn.Module, x: Tensor, dx: Tensor, dp: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    parameters = {name: p.detach() for name, p in module.named_parameters()}
    with sdpa_kernel(SDPBackend.MATH):
        pair = jvp(lambda p, x: _call(module, p, x), (parameters, x), (dp, dx))
    return pair[0], pair[1]


@torch.no_grad()
def _differences(module: nn.Module, x: Tensor, dx: Tensor, dp: dict[str, Tensor], step: float = 1e-6) -> Tensor:
    def at(t: float) -> Tensor:
        return _call(module, {name: p + t * dp[name] for name, p in module.named_parameters()}, x + t * dx)

    return (at(step) - at(-step)) / (2 * step)


HEADS = {
    "classifier": lambda: classifier(6, 5),
    **{
        name: lambda name=name: auxiliary_head(name, 6, 5, blocks=8, hidden=7)
        for name in ("cnn", "mlp", "linear", "predsim", "spatial", "strided")
    },
    "a head without a rule": lambda: Head(nn.Flatten(), nn.Softplus(), nn.Linear(216, 5)),
}


class Squared(Head):
    def losses(self, x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        logits = self(x)
        return (logits - nn.functional.one_hot(labels, 5)).square().sum(dim=1), logits


HEADS["another loss"] = lambda: Squared(nn.Flatten(), nn.Linear(216, 5))


@pytest.mark.parametrize("build", HEADS.values(), ids=HEADS.keys())
def test_losses(build) -> None:
    """The derivative of each sample's loss along each lane."""
    head = randomized(build())
    x, labels = torch.randn(4, 6, 6, 6, dtype=torch.float64), torch.tensor([0, 3, 3, 1])
    dx = torch.randn(2, *x.shape, dtype=torch.float64)
    reference = copy.deepcopy(head)
    losses, logits, push = linearize_losses(head, x, labels)
    got = push(Tangent((0, 4), dx.flatten(0, 1)))
    want = torch.stack([jvp(lambda x: copy.deepcopy(reference).losses(x, labels)[0], (x,), (lane,))[1] for lane in dx])
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-11)
    step = 1e-6
    differences = [
        (reference.losses(x + step * lane, labels)[0] - reference.losses(x - step * lane, labels)[0]) / (2 * step)
        for lane in dx
    ]
    torch.testing.assert_close(got, torch.stack(differences), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close((losses, logits), reference.losses(x, labels))


def test_similarity_of_dead_channels() -> None:
    """A channel that is constant over space has the tangent zero, not NaN."""
    head = randomized(PredSim(3, 5))
    nn.init.zeros_(head.similarity.weight[1])
    x = torch.randn(4, 3, 5, 5, dtype=torch.float64)
    derivative = linearize_losses(head, x, torch.tensor([0, 1, 2, 3]))[2](Tangent((0,), torch.randn_like(x)))
    assert derivative.isfinite().all()


@pytest.mark.parametrize("name", ["batch norm", "batch norm, cumulative", "no rule inside"])
def test_running_statistics_are_updated_once(name: str) -> None:
    module = randomized(LAYERS[name]())
    plain = copy.deepcopy(module)
    x = torch.randn(IMAGES, dtype=torch.float64)
    _, push = linearize(module, x)
    push(Tangent((0,), torch.randn_like(x)), {})
    plain(x)
    for got, want in zip(module.buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("lanes", [4, 7])
@torch.no_grad()
def test_peak_memory(lanes: int) -> None:
    """Of a residual block and its lanes: 1 + R times a forward pass's, as the primal's activations go while lanes pass."""
    block = resnet18(8, width=0.25)[0][1]
    x, dx = torch.randn(8, 16, 32, 32), torch.randn(lanes * 8, 16, 32, 32)

    def ours() -> tuple[Tensor, Tangent | None]:
        y, push = linearize(block, x)
        return y, push(Tangent(tuple(range(lanes)), dx), {})

    assert peak_bytes(ours) <= 1.1 * (1 + lanes) * peak_bytes(lambda: block(x))


def test_a_push_is_called_once() -> None:
    push = linearize(resnet18(8, width=0.0625)[0][1], torch.randn(2, 4, 8, 8))[1]
    push(Tangent((0,), torch.randn(2, 4, 8, 8)), {})
    with pytest.raises(RuntimeError, match="once"):
        push(Tangent((0,), torch.randn(2, 4, 8, 8)), {})


def blocks() -> list[nn.Module]:
    biased = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU())
    return [*resnet18(8, width=0.0625)[0][:3], biased]


class Layouts(TorchDispatchMode):
    """Notes the operations that made an image which is not channels last."""

    def __init__(self) -> None:
        super().__init__()
        self.others: list[str] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        made = [each for each in pytree.tree_leaves(result) if isinstance(each, Tensor) and each.dim() == 4]
        written = [each for each in made if 0 not in each.stride()]  # the others are expanded views
        if not all(each.is_contiguous(memory_format=torch.channels_last) for each in written):
            self.others.append(str(function))
        return result


@pytest.mark.parametrize("below", [(), (100,), (100, 101)], ids=["none", "one", "two"])
@pytest.mark.parametrize("index", range(4), ids=["stem", "plain", "shortcut", "biased"])
def test_lanes_stay_channels_last(index: int, below: tuple[int, ...]) -> None:
    """In every operation, so that none converts: of a stem, a plain block and one with a shortcut, with probes of its own."""
    block = blocks()[index].to(memory_format=torch.channels_last)
    channels = next(module for module in block.modules() if isinstance(module, nn.Conv2d)).in_channels
    x = torch.randn(2, channels, 8, 8).to(memory_format=torch.channels_last)
    dx = torch.randn(2 * len(below), channels, 8, 8).to(memory_format=torch.channels_last)
    directions = {
        name: Direction(torch.randn_like(p), {i: 1.0}) for i, (name, p) in enumerate(block.named_parameters())
    }
    with Layouts() as layouts:
        y, push = linearize(block, x)
        dy = there(push(Tangent(below, dx) if below else None, directions))
    assert layouts.others == []
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert dy.value.is_contiguous(memory_format=torch.channels_last)
    assert set(dy.lanes) == {*below, *range(len(directions))}
