"""Every tensor on the meta device is drawn from the run's keys, whatever its layer, or refused; real ones are kept."""

import pytest
import torch
from torch import Tensor, nn

from fgpipe.config.rng import generator
from fgpipe.gradients.guesses import make, redraw
from fgpipe.models.heads import Head
from fgpipe.models.init import NotInitialized, materialize

LAYERS = {
    "convolution": lambda: nn.Conv1d(3, 4, 3),
    "transposed convolution": lambda: nn.ConvTranspose2d(3, 4, 3),
    "linear": lambda: nn.Linear(3, 4),
    "bilinear": lambda: nn.Bilinear(3, 4, 5),
    "group norm": lambda: nn.GroupNorm(2, 4),
    "layer norm": lambda: nn.LayerNorm(4),
    "instance norm": lambda: nn.InstanceNorm2d(4, affine=True, track_running_stats=True),
    "batch norm": lambda: nn.BatchNorm3d(4),
    "prelu": lambda: nn.PReLU(),
    "embedding": lambda: nn.Embedding(3, 4),
    "recurrent": lambda: nn.LSTM(3, 4),
    "attention": lambda: nn.MultiheadAttention(4, 2),
}
RANDOM = ("convolution", "transposed convolution", "linear", "bilinear", "embedding", "recurrent", "attention")


class Bare(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(3))


class Flags(nn.Module):
    mask: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mask", torch.ones(3, dtype=torch.bool))

    def reset_parameters(self) -> None:
        self.mask.fill_(True)


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(3, 3), nn.Linear(3, 3)
        self.two.weight = self.one.weight


def materialized(make, seed: int = 0) -> nn.Module:
    with torch.device("meta"):
        module = make()
    return materialize(module, generator(seed, "block"), dtype=torch.float32, device=torch.device("cpu"))


def tensors(module: nn.Module) -> dict[str, Tensor]:
    return dict([*module.named_parameters(), *module.named_buffers()])


@pytest.mark.parametrize("name", LAYERS)
def test_drawn_as_pytorch_draws(name: str) -> None:
    """Of the size and spread of a layer that was never on the meta device; the same for the same key, and no other."""
    drawn, again, other = (tensors(materialized(LAYERS[name], seed)) for seed in (0, 0, 1))
    for key, plain in tensors(LAYERS[name]()).items():
        assert drawn[key].shape == plain.shape and drawn[key].isfinite().all()
        assert torch.equal(drawn[key], again[key])
        if plain.numel() > 1 and plain.is_floating_point():
            assert (plain.std() == 0) == (drawn[key].std() == 0) or "bias" in key
    assert (name in RANDOM) == any(not torch.equal(value, other[key]) for key, value in drawn.items())


def test_spread() -> None:
    """The paper's Kaiming numbers for convolutions and linear layers, PyTorch's for others: to 5 % of some thousand draws."""
    wanted = {
        "0.weight": (2 / (9 * 16)) ** 0.5,
        "1.weight": (2 / 64) ** 0.5,
        "2.weight": 1.0,  # standard normal
        "3.weight_ih_l0": 64**-0.5 / 3**0.5,  # uniform below the root of 1 / hidden
    }
    drawn = tensors(
        materialized(
            lambda: nn.Sequential(nn.Conv2d(16, 32, 3), nn.Linear(64, 64), nn.Embedding(100, 50), nn.LSTM(64, 64))
        )
    )
    assert {key: drawn[key].std().item() for key in wanted} == pytest.approx(wanted, rel=0.05)
    assert all(abs(drawn[key].mean().item()) < 0.05 * std for key, std in wanted.items())


def test_layers_alike_are_drawn_apart_and_the_global_generator_is_left() -> None:
    before = torch.get_rng_state()
    drawn = tensors(materialized(lambda: nn.Sequential(nn.Embedding(3, 4), nn.Embedding(3, 4))))
    assert not torch.equal(drawn["0.weight"], drawn["1.weight"])
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("make", [Bare, Flags, lambda: nn.Sequential(nn.Linear(2, 2), Bare())])
def test_what_no_layer_draws_is_refused(make) -> None:
    with pytest.raises(NotInitialized, match=r"(gain|mask): \w+ has no reset_parameters that draws it"):
        materialized(make)


def test_real_tensors_are_kept() -> None:
    """A module that is partly on the meta device: its pretrained layer, one with a real bias, and one without numbers."""
    pretrained, half = nn.Linear(3, 3), nn.Linear(3, 3, device="meta")
    half.bias = nn.Parameter(torch.tensor([1.0, 2.0, 3.0]))
    wanted = {"0.weight": pretrained.weight.clone(), "0.bias": pretrained.bias.clone(), "1.bias": half.bias.clone()}
    module = nn.Sequential(pretrained, half, nn.GroupNorm(1, 3, device="meta"))
    materialize(module, generator(0, "block"), dtype=torch.float32, device=torch.device("cpu"))
    found = tensors(module)
    assert all(torch.equal(found[name], value) for name, value in wanted.items())
    assert found["1.weight"].isfinite().all() and torch.equal(found["2.weight"], torch.ones(3))


def test_tied_weights_stay_tied() -> None:
    module = materialized(Twice)
    assert isinstance(module, Twice)
    assert module.one.weight is module.two.weight


def test_ntk_draws_all_layers_anew() -> None:
    """For every batch, and as often as it is asked for the same; fixed_ntk never."""
    head = Head(nn.ConvTranspose1d(3, 4, 3), nn.Flatten(), nn.Bilinear(2, 2, 2), nn.PReLU())
    for guess, differs in (("ntk", True), ("fixed_ntk", False)):
        drawn = []
        for batch in (0, 1, 0):
            redraw(head, make(guess), 5, 2, batch)
            drawn.append({name: value.clone() for name, value in head.named_parameters()})
        for name in ("0.weight", "2.weight", "2.bias"):
            assert torch.equal(drawn[0][name], drawn[1][name]) != differs
            assert torch.equal(drawn[0][name], drawn[2][name])
