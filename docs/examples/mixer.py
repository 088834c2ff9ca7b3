"""An MLP-Mixer as a plain nn.Sequential, cut in two: torchrun --nproc_per_node=2 docs/examples/mixer.py [key=value ...]

`fgpipe.cut` balances the modules by FLOPs and puts a head on each.
"""

import torch
from torch import Tensor, nn

import fgpipe

TOKENS, WIDTH = 16, 64
KEYS = ["target=local", "optim.name=adamw", "optim=one_cycle", "optim.lr=0.003", "optim.weight_decay=0.01", "epochs=10"]


class Patches(nn.Module):
    """Images `[B, 1, 16, 16]` to tokens `[B, 16, C]`."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(1, WIDTH, 4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.embed(x).flatten(2).transpose(1, 2)


class Mixer(nn.Module):
    """Layers along the tokens, then along the channels."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.tokens = nn.Sequential(nn.Linear(TOKENS, 32), nn.GELU(), nn.Linear(32, TOKENS))
        self.channels = nn.Sequential(nn.Linear(WIDTH, 128), nn.GELU(), nn.Linear(128, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.tokens(self.first(x).transpose(1, 2)).transpose(1, 2)
        return x + self.channels(self.second(x))


def net() -> fgpipe.Net:
    """Two modules of a chain of layers."""
    with torch.device("meta"):
        end = nn.LayerNorm(WIDTH), nn.AdaptiveAvgPool2d((1, None)), nn.Flatten(), nn.Linear(WIDTH, 10)
        model = nn.Sequential(Patches(), Mixer(), Mixer(), Mixer(), *end)
    return fgpipe.cut(model, modules=2, image=(1, 16, 16))


if __name__ == "__main__":
    fgpipe.main(KEYS, net())
