"""Nets of the kinds that users bring, for images of 3x16x16 and 5 classes, in blocks of one size."""

import warnings
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, weight_norm
from torchvision.models.convnext import CNBlock

from fgpipe.models.heads import Head
from fgpipe.models.net import Net

CHANNELS = 6


class Doubled(nn.Module):
    """Writes over its input."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mul_(2)


class Tied(nn.Module):
    """Two layers with one parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = (nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1) for _ in range(2))
        self.two.weight = self.one.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.two(torch.tanh(self.one(x)))


class Attention(nn.Module):
    """Pixels as tokens; PyTorch's fused kernel, which has no forward mode."""

    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Linear(CHANNELS, 3 * CHANNELS)

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(2).mT
        y = F.scaled_dot_product_attention(*self.project(tokens).chunk(3, dim=-1))
        return (tokens + y).mT.unflatten(2, x.shape[2:])


class MultiHead(nn.Module):
    """The same by PyTorch's layer."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(CHANNELS, 2, dropout, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(2).mT
        y, _ = self.attention(tokens, tokens, tokens, need_weights=False)
        return (tokens + y).mT.unflatten(2, x.shape[2:])


class WithWeights(MultiHead):
    """`MultiHead` by the layer's own products instead of the fused kernel."""

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(2).mT
        return self.attention(tokens, tokens, tokens, need_weights=True)[0].mT.unflatten(2, x.shape[2:])


class ToTokens(nn.Module):
    """`[B, C, H, W]` to normalised tokens `[B, T, C]`."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(CHANNELS)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x.flatten(2).mT)


class Recurrent(nn.Module):
    """Reads tokens in their order."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(CHANNELS, CHANNELS, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.gru(x)[0]


class Spectral(nn.Module):
    """Scales frequencies."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(CHANNELS, 16, 9))

    def forward(self, x: Tensor) -> Tensor:
        return torch.fft.irfft2(torch.fft.rfft2(x) * self.gain, s=x.shape[2:])


class Splitting(nn.Module):
    """Hands its input on beside what it makes of it, for a sum further up."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.tokens = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1), nn.Linear(CHANNELS, 2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return torch.tanh(self.conv(x)), x, self.tokens(x.mean(dim=(2, 3)))


class Joining(nn.Module):
    """Reads three tensors, the sum of which is one; a block or, with pooling, the beginning of a head."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1)

    def forward(self, x: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        y, skip, scale = x
        return self.conv(y) * scale.mean(dim=1)[:, None, None, None] + skip


class Middle(Joining):
    """Several tensors in, several out."""

    def forward(self, x: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:  # type: ignore[override]
        return torch.tanh(super().forward(x)), x[1], x[2]


class RunningScale(nn.Module):
    """Divides by a running mean, which it updates first."""

    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1)
        self.register_buffer("scale", torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        y = torch.tanh(self.conv(x))
        self.scale = 0.5 * self.scale + 0.5 * x.detach().abs().mean()
        return y / self.scale


class Spare(nn.Module):
    """Has a parameter that it does not use."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.spare = nn.Conv2d(CHANNELS, CHANNELS, 1), nn.Parameter(torch.ones(3))

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.conv(x))


def conv(channels: int = CHANNELS) -> nn.Conv2d:
    return nn.Conv2d(channels, CHANNELS, 3, padding=1)


def frozen(module: nn.Module) -> nn.Module:
    return module.requires_grad_(False)


def half_frozen(module: nn.Sequential) -> nn.Module:
    module[0].requires_grad_(False)
    return module


def hooked_weight_norm() -> nn.Module:
    """Weight norm from before parametrizations: a hook that computes the weight."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return weight_norm(conv())


class Dropping(nn.Module):
    """Dropout by the function, of a part of what it makes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = conv()

    def forward(self, x: Tensor) -> Tensor:
        return x + F.dropout(torch.tanh(self.conv(x)), 0.4, self.training)


def head(*layers: nn.Module) -> Head:
    return Head(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * CHANNELS, 5))


def net(*blocks: nn.Module, heads: dict[int, nn.Module] | None = None) -> Net:
    """A net whose first block is a convolution; `heads` replaces some."""
    every = [nn.Sequential(conv(3), nn.Tanh()), *blocks, nn.Sequential(conv(), nn.BatchNorm2d(CHANNELS), nn.ReLU())]
    return Net(every, [(heads or {}).get(j, head()) for j in range(len(every))])


KINDS: dict[str, Callable[[], Net]] = {
    "in-place layers": lambda: net(
        nn.Sequential(conv(), nn.SiLU(inplace=True), nn.BatchNorm2d(CHANNELS), conv(), nn.Hardswish(inplace=True)),
        nn.Sequential(conv(), nn.ELU(inplace=True), conv(), nn.LeakyReLU(0.1, inplace=True), conv(), Doubled()),
    ),
    "blocks that begin in place": lambda: net(
        nn.Sequential(nn.SiLU(inplace=True), conv()),
        nn.Sequential(nn.Identity(), nn.Sequential(Doubled()), conv(), nn.ReLU(inplace=True)),
        nn.Sequential(nn.Threshold(0.1, 0.0, inplace=True), conv()),
    ),
    "heads that begin in place": lambda: net(
        nn.Sequential(conv(), nn.Tanh()),
        heads={0: head(nn.ReLU(inplace=True)), 1: head(Doubled(), nn.SELU(inplace=True))},
    ),
    "tied weights": lambda: net(Tied(), nn.Sequential(conv(), Tied())),
    "frozen parameters": lambda: net(half_frozen(nn.Sequential(conv(), nn.Tanh(), conv()))),
    "frozen blocks and heads": lambda: net(frozen(conv()), conv(), heads={1: frozen(head()), 2: frozen(head())}),
    "blocks without parameters": lambda: net(nn.MaxPool2d(2), conv(), nn.AvgPool2d(2)),
    "a head without parameters": lambda: net(
        conv(), heads={1: Head(nn.AdaptiveAvgPool2d(1), nn.Flatten()), 2: Head(nn.AdaptiveAvgPool2d(1), nn.Flatten())}
    ),
    "a parameter without use": lambda: net(Spare()),
    "attention": lambda: net(Attention(), MultiHead()),
    "attention with weights": lambda: net(WithWeights()),
    "tokens": lambda: Net(
        [conv(3), ToTokens(), nn.Sequential(nn.Linear(CHANNELS, CHANNELS), nn.GELU())],
        [head(), *(Head(nn.Flatten(), nn.Linear(256 * CHANNELS, 5)) for _ in range(2))],
    ),
    "a recurrent block": lambda: Net(
        [
            nn.Sequential(conv(3), nn.AvgPool2d(4)),
            nn.Sequential(ToTokens(), Recurrent()),
            nn.Linear(CHANNELS, CHANNELS),
        ],
        [head(), *(Head(nn.Flatten(), nn.Linear(16 * CHANNELS, 5)) for _ in range(2))],
    ),
    "Fourier transforms": lambda: net(Spectral()),
    "ConvNeXt": lambda: net(CNBlock(CHANNELS, layer_scale=0.1, stochastic_depth_prob=0.0)),
    "dropout": lambda: net(nn.Sequential(conv(), nn.Dropout(0.3), conv(), nn.Dropout2d(0.2)), Dropping()),
    "dropout within attention": lambda: net(MultiHead(0.2), WithWeights(0.2)),
    "stochastic depth": lambda: net(CNBlock(CHANNELS, layer_scale=0.1, stochastic_depth_prob=0.5)),
    "weight norm": lambda: net(parametrizations.weight_norm(conv()), nn.Sequential(conv(), hooked_weight_norm())),
    "several tensors between blocks": lambda: net(
        Splitting(), Middle(), Joining(), heads={1: head(Joining()), 2: head(Joining())}
    ),
    "buffers that a forward pass changes": lambda: net(RunningScale(), conv()),
}
"""Nets by what is special about them."""
