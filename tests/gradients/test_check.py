"""Nets that cannot be trained, or whose tangents would be wrong, are refused before training, in one line."""

import random
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from fgpipe.config import compose_config
from fgpipe.errors import UserError
from fgpipe.models.heads import Head
from fgpipe.models.net import Net
from fgpipe.plan.plan import DataFacts, Plan
from tests.nets import CHANNELS, conv, frozen, head, net


class Gone(nn.Module):
    """Leaves out its layer now and then, by Python's own generator."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = conv()

    def forward(self, x: Tensor) -> Tensor:
        return x if random.random() < 0.01 else self.conv(x)


class Counting(nn.Module):
    """Gives another output each time."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.calls = conv(), 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.conv(x) * self.calls


class Stopped(nn.Module):
    """A factor that reverse mode takes for a constant, and forward mode does not."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = conv()

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            factor = x.square()
        return self.conv(x) * factor


class Straight(torch.autograd.Function):
    """Rounding that reverse mode passes through and forward mode has no tangent of."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.round()

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        pass

    @staticmethod
    def backward(ctx, dy: Tensor) -> Tensor:
        return dy

    @staticmethod
    def jvp(ctx, dx: Tensor) -> Tensor:
        return torch.zeros_like(dx)


class Rounded(nn.Module):
    """Its tangent is zero, its gradient is not."""

    def forward(self, x: Tensor) -> Tensor:
        return Straight.apply(x)


class Bare(nn.Module):
    """Its parameter has no initialisation but its constructor's."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(CHANNELS, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gain


class Squared(Head):
    """One loss for the whole batch."""

    def losses(self, x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        losses, logits = super().losses(x, labels)
        return losses.mean(), logits


class Half(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.half()


def shared_layer() -> Net:
    layer = conv()
    return net(layer, nn.Sequential(nn.Tanh(), layer))


def shared_with_a_head() -> Net:
    layer = conv()
    return net(layer, heads={0: head(layer)})


def shared_memory() -> Net:
    first, second = conv(), conv()
    second.weight.data = first.weight.data
    return net(first, second)


def on_meta(make: Callable[[], nn.Module]) -> nn.Module:
    with torch.device("meta"):
        return make()


REFUSED: dict[str, tuple[Callable[[], Net], str]] = {
    "a layer in two blocks": (shared_layer, "block 2: 1.weight is block 1's too: allowed: tensors of its own"),
    "a layer in a block and a head": (
        shared_with_a_head,
        "the head of block 0: 0.weight is block 1's too: allowed: tensors",
    ),
    "memory of two parameters": (shared_memory, "block 2: weight is block 1's too: allowed: tensors of its own"),
    "a layer left out": (lambda: net(nn.Sequential(Gone())), r"block 1: 0 \(Gone\) draws random numbers"),
    "dropout in a head": (
        lambda: net(heads={1: head(nn.Dropout2d(0.1))}),
        r"the head of block 1: 0 \(Dropout2d\) draws",
    ),
    "state outside buffers": (lambda: net(Counting()), "block 1: gives another output when it is run again"),
    "a gradient stopped in one mode": (lambda: net(Stopped()), "block 1: the derivative is .* in reverse mode and"),
    "a tangent that is zero": (
        lambda: net(Rounded()),
        "block 1: the derivative is .* in reverse mode and 0 in forward",
    ),
    "no forward mode": (
        lambda: net(parametrizations.spectral_norm(conv())),
        r"block 1: parametrizations.weight.0 \(_SpectralNorm\): NotImplementedError: Trying to use",
    ),
    "no initialisation": (lambda: net(on_meta(Bare)), "block 1: gain: Bare has no reset_parameters that draws it"),
    "too few outputs": (
        lambda: net(heads={1: Head(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * CHANNELS, 4))}),
        r"the head of block 1: logits of \[3, 4\]: allowed: 3 rows of at least 5, the classes",
    ),
    "lazy": (
        lambda: net(nn.LazyConv2d(CHANNELS, 3)),
        "block 1: weight has no shape yet: allowed: layers that are told",
    ),
    "no losses": (
        lambda: net(heads={0: nn.Flatten()}),
        r"the head of block 0: Flatten has no losses\(x, labels\): allowed: ",
    ),
    "one loss": (
        lambda: net(heads={0: Squared(*head())}),
        r"the head of block 0: losses of \[\] for 3 samples: allowed: one",
    ),
    "shapes that do not fit": (lambda: net(nn.Conv2d(7, CHANNELS, 3)), "block 1: RuntimeError: .*7 channels"),
    "a layer within that does not fit": (
        lambda: net(nn.Sequential(conv(), nn.Sequential(nn.ReLU(), nn.Conv2d(7, CHANNELS, 3)))),
        r"block 1: 1.1 \(Conv2d\): RuntimeError: .*7 channels",
    ),
    "no tensor": (lambda: net(nn.Sequential(conv(), nn.LSTM(16, 16))), "block 1: "),
    "another type": (
        lambda: net(Half()),
        "block 1: gives torch.float16 for an input of torch.float64: allowed: the same",
    ),
    "all frozen": (
        lambda: Net([frozen(part) for part in net().blocks], [frozen(part) for part in net().heads]),
        "the net: no trainable parameters: allowed: at least one",
    ),
}
"""What is wrong, a net with it, and the line."""


def plan(net: Net, *overrides: str) -> Plan:
    facts = DataFacts(train_batches=1, test_batches=1, classes=5, channels=3, height=16, width=16)
    config = compose_config(["window=1", "dtype=float64", *overrides])
    config.model.blocks = len(net.blocks)
    return Plan.make(config, facts, net)


@pytest.mark.parametrize("what", REFUSED)
def test_refused(what: str) -> None:
    make, line = REFUSED[what]
    with pytest.raises(UserError, match=f"^{line}") as refused:
        plan(make())
    assert "\n" not in str(refused.value)


def test_what_no_tangent_passes_needs_no_forward_mode() -> None:
    """Nothing is refused for what the run does not use."""
    assert plan(net(Stopped()), "target=local").method.depth == 0


def test_the_net_is_left_as_it_is() -> None:
    own = net(nn.Sequential(conv(), nn.BatchNorm2d(CHANNELS)))
    before = {name: value.clone() for name, value in nn.ModuleList(own.blocks).state_dict().items()}
    generator = torch.get_rng_state()
    plan(own)
    assert all(torch.equal(value, before[name]) for name, value in nn.ModuleList(own.blocks).state_dict().items())
    assert torch.equal(torch.get_rng_state(), generator)


def test_second_heads_are_checked() -> None:
    """By a guess that has them; another one does not look at them."""
    own = net(conv())
    keys = "guess=mixture", "space=activity"
    assert plan(Net(own.blocks, own.heads, [head(), head()]), *keys).net.beside
    for beside, line in (
        ([head(), nn.Flatten()], r"the head beside that of block 1: Flatten has no losses\(x, labels\)"),
        ([own.heads[0], head()], "the head beside that of block 0: .* is the head of block 0's too"),
    ):
        assert plan(Net(own.blocks, own.heads, beside), "guess=local").net.beside
        with pytest.raises(UserError, match=f"^{line}"):
            plan(Net(own.blocks, own.heads, beside), *keys)


def test_the_classifier_is_not_drawn_anew() -> None:
    """`ntk` draws the other heads; the classifier is what tangents pass."""
    assert plan(net(heads={1: head(Bare())}), "guess=ntk").method.guess.name == "ntk"
    with pytest.raises(UserError, match="^the head of block 1: the derivative is .* in reverse mode and 0 in forward"):
        plan(net(heads={1: head(Rounded())}), "guess=ntk")


def test_an_untrained_head_must_be_drawn_anew() -> None:
    """`ntk` draws it for every batch."""
    own = net(heads={0: head(Bare())})
    assert plan(own, "guess=local").method.guess.name == "local"
    with pytest.raises(UserError, match="^the head of block 0: 0.gain: Bare has no reset_parameters that draws it"):
        plan(own, "guess=ntk")
