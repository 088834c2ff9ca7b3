"""A small vision transformer in three processes: torchrun --nproc_per_node=3 docs/examples/vit.py [key=value ...]

Tokens travel from block to block, [B, T, C], with their tangents where a target lies above.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fgpipe

SIDE, PATCH, WIDTH, HEADS = 16, 4, 64, 4
KEYS = ["target=local", "optim.name=adamw", "optim=one_cycle", "optim.lr=0.003", "optim.weight_decay=0.01",
        "optim.decay_norms=false", "epochs=10"]  # fmt: skip


class Patches(nn.Module):
    """Images `[B, 1, 16, 16]` to tokens `[B, 16, C]`, with a position each."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(1, WIDTH, PATCH, PATCH)
        self.position = nn.Embedding((SIDE // PATCH) ** 2, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.embed(x).flatten(2).transpose(1, 2) + self.position.weight


class Encoder(nn.Module):
    """Attention and two layers at each token, each added to what they read."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.attend, self.project = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.think = nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.attend(self.first(x)).unflatten(2, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x = x + self.project(mixed)
        return x + self.think(self.second(x))


def head() -> fgpipe.Head:
    """The mean over tokens, then a linear layer."""
    return fgpipe.Head(nn.LayerNorm(WIDTH), nn.AdaptiveAvgPool2d((1, None)), nn.Flatten(), nn.Linear(WIDTH, 10))


def net() -> fgpipe.Net:
    """A block for each process; their weights are drawn where they are used, the same for every process."""
    with torch.device("meta"):
        blocks = [nn.Sequential(Patches(), Encoder()), Encoder(), Encoder()]
        return fgpipe.Net(blocks, [head() for _ in blocks])


if __name__ == "__main__":
    fgpipe.main(KEYS, net())
