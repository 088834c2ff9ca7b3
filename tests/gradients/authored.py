"""Modules whose forward pass is their author's own, for images `[B, 3, 8, 8]`: some that `torch.fx` traces, some not."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.resnet import Bottleneck


class Encoder(nn.Module):
    """Attention and two layers at each of 24 tokens of 8 features, with positions of two kinds."""

    at: Tensor

    def __init__(self, **attention: Any) -> None:
        super().__init__()
        self.options = attention
        self.position, self.indices = nn.Embedding(24, 8), nn.Parameter(torch.zeros(24, 8))
        self.register_buffer("at", torch.arange(24))
        self.first, self.second = nn.LayerNorm(8), nn.LayerNorm(8)
        self.attend, self.project = nn.Linear(8, 24), nn.Linear(8, 8)
        self.think = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8))

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1, 2)
        x = x + self.position(self.at) + self.indices
        q, k, v = self.attend(self.first(x)).unflatten(2, (3, 2, -1)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, **self.options)
        x = x + self.project(mixed.transpose(1, 2).reshape(x.shape[0], x.shape[1], -1))
        y = self.think(self.second(x))
        y += x
        return y


class Arithmetic(nn.Module):
    """Functions of one value twice, of values with and without tangents, and of constants."""

    shift: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.weight = nn.Parameter(torch.ones(8)), nn.Parameter(torch.ones(5, 8))
        self.bias = nn.Parameter(torch.zeros(5))
        self.register_buffer("shift", torch.linspace(0, 1, 8))

    def forward(self, x: Tensor) -> Tensor:
        a, b = (2 * x - self.shift).chunk(2, dim=2)
        a = a * a + torch.tanh(b) * self.scale - self.scale
        both = torch.cat([a, b, F.silu(a)], dim=1) / (1 + b.square().mean(dim=1, keepdim=True))
        mixed = both @ both.mT
        mixed = torch.where(mixed > 0, mixed, 0.1 * mixed)
        out = F.linear(both, self.weight, self.bias).flatten(2)
        return torch.add(F.gelu(out, approximate="tanh"), mixed.sum(dim=(2, 3)).unsqueeze(-1), alpha=0.3)


class Affine(nn.Module):
    """Constants beside values in functions that are linear without them."""

    shift: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("shift", torch.linspace(0, 1, 96).view(4, 3, 1, 8))

    def forward(self, x: Tensor) -> Tensor:
        both = torch.cat([x, self.shift], dim=2)
        both = F.pad(both, (1, 1), value=2.0)
        return torch.stack([both, 3 * both], dim=1).flatten(1, 2)


class Nested(nn.Module):
    """Modules of an author's within another's, one of which takes two values."""

    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Conv2d(3, 3, 1)

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return F.relu(self.layer(x) - y)

    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(3, 1, 1))

        def forward(self, x: Tensor) -> Tensor:
            return x.mul(self.scale)

    def __init__(self) -> None:
        super().__init__()
        self.pair, self.scaled, self.norm = self.Pair(), self.Scaled(), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.pair(self.scaled(x), x)) - self.scaled(x)


class Several(nn.Module):
    """Layers of its own and of PyTorch's that give several values, and a call by keyword alone."""

    class Three(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(8, 12)

        def forward(self, x: Tensor) -> tuple[Tensor, ...]:
            return self.layer(x).chunk(3, -1)

    def __init__(self) -> None:
        super().__init__()
        self.three = self.Three()

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.three(x)
        return F.gelu(input=q) * k + v


TRACED: dict[str, Callable[[], nn.Module]] = {
    "several values": Several,
    "encoder": Encoder,
    "encoder, causal": lambda: Encoder(is_causal=True),
    "encoder, scaled": lambda: Encoder(scale=0.7),
    "arithmetic": Arithmetic,
    "affine": Affine,
    "nested": Nested,
    "torchvision's bottleneck": lambda: Bottleneck(3, 4, downsample=nn.Conv2d(3, 16, 1)),
}


class Indexed(nn.Module):
    """Pools that give indices too, and a cell that gives two states."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = nn.MaxPool2d(2, return_indices=True)
        self.adaptive = nn.AdaptiveMaxPool2d(2, return_indices=True)
        self.cell = nn.LSTMCell(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.cell(self.adaptive(self.pool(x)[0])[0].flatten(1))[0]


class Branching(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * x if x.sum() > 0 else x


class Writing(nn.Module):
    """Counts in a buffer, by which it multiplies."""

    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        self.count.add_(1)
        return self.count * x


class OverNeeded(nn.Module):
    """Writes over what reverse mode needs; forward mode does without."""

    def forward(self, x: Tensor) -> Tensor:
        x = 2 * x
        y = x.exp()
        y += x
        return y


class OverInput(nn.Module):
    """Reads what it has written over."""

    def __init__(self) -> None:
        super().__init__()
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(x) + x


class OverView(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        x = 2 * x
        y = x.flatten(1)
        y += 1
        return x.square()


class Assigning(nn.Module):
    """Replaces a buffer."""

    mean: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.mean = 0.9 * self.mean + 0.1
        return x - self.mean


class Stopped(nn.Module):
    """Has a factor that reverse mode takes for a constant."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            factor = x.square()
        return x * factor


class Reversed(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return 2 * x

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Tensor:
        return -2 * dy

    @staticmethod
    def jvp(ctx: Any, dx: Tensor) -> Tensor:
        return -2 * dx


class Reversing(nn.Module):
    """Has a derivative of its author's own."""

    def forward(self, x: Tensor) -> Tensor:
        return Reversed.apply(x)


class Remembering(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        self.seen = 3 * x
        return self.seen.tanh()


class Counting(nn.Module):
    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        type(self).calls += 1
        return x.cumsum(dim=1)


UNTRACED: dict[str, Callable[[], nn.Module]] = {
    "a branch": Branching,
    "a buffer that counts": Writing,
    "a buffer that is replaced": Assigning,
    "in place on a value that is read again": OverInput,
    "in place on what reverse mode needs": OverNeeded,
    "in place on a view": OverView,
    "an attribute": Remembering,
    "an unknown function": Counting,
}


class Skipping(nn.Module):
    """Left out at random, by a number that tracing would draw once."""

    def forward(self, x: Tensor) -> Tensor:
        return x if torch.rand(()) < 0.5 else 2 * x


class Dropping(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x, 0.5)


class Attending(nn.Module):
    """Attention with a dropout of its own."""

    def forward(self, x: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(x, x, x, dropout_p=0.5)


OTHERWISE: dict[str, Callable[[], nn.Module]] = {"no_grad": Stopped, "a function with its own derivative": Reversing}
"""Forward and reverse mode differ, or differ from what the forward pass computes."""
DRAWING: dict[str, Callable[[], nn.Module]] = {"skipping": Skipping, "dropping": Dropping, "attending": Attending}
