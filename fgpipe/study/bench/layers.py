"""Cost of lanes through a block of a vision transformer, and what each rule of its layers gains over `torch.func`."""

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fgpipe.study.bench.table import BenchRow, Sizes, at_least, at_most
from fgpipe.study.bench.tangents import measure

PRICE, SPEEDUP = at_most(1.2), at_least(1.0)
TOKENS, WIDTH, HEADS = 64, 192, 3
"""A tiny vision transformer's, on images of 32 x 32 pixels in patches of 4 x 4."""


class Attention(nn.Module):
    """Attention without the linear layers around it: queries, keys and values `[B, T, 3 C]` to `[B, T, C]`."""

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = x.unflatten(2, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


class TransformerBlock(nn.Module):
    """Attention, and two layers at each token, after a norm each: `[B, T, C]` to `[B, T, C]`."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.attention = nn.Sequential(nn.Linear(WIDTH, 3 * WIDTH), Attention(), nn.Linear(WIDTH, WIDTH))
        self.think = nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.first(x))
        return x + self.think(self.second(x))


LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "layer norm": (lambda: nn.LayerNorm(WIDTH), (TOKENS, WIDTH)),
    "group norm": (lambda: nn.GroupNorm(8, 64), (64, 16, 16)),
    "GELU": (nn.GELU, (TOKENS, WIDTH)),
    "SiLU": (nn.SiLU, (TOKENS, WIDTH)),
    "attention": (Attention, (TOKENS, 3 * WIDTH)),
}
"""Layers, and the shape of a sample."""


@torch.no_grad()
def rows(sizes: Sizes) -> Iterator[BenchRow]:
    """Yield the block's price in forward passes, and its speed and each layer's against `vmap(jvp)`."""
    generator = torch.Generator().manual_seed(0)
    for name, (build, shape) in {"vision transformer's block": (TransformerBlock, (TOKENS, WIDTH)), **LAYERS}.items():
        x = torch.randn(sizes.batch, *shape, generator=generator)
        for lanes, figures in measure(build(), x, sizes).items():
            where = f"{name}, {lanes} lane{'s' * (lanes > 1)}"
            if name not in LAYERS:
                yield BenchRow("layers", f"time in forward passes, {where}", figures.price, PRICE)
            yield BenchRow("layers", f"speed against vmap(jvp), {where}", figures.speedup, SPEEDUP)
