"""Auxiliary heads and the net's classifier (paper, section 4.1, A.2 and B.2).

A head turns a block's output into logits; its loss per sample is `Head.losses`. Any `Head(*layers)` of a user's
own can stand beside a block of theirs.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from fgpipe.models.convolution import PaddedConv2d
from fgpipe.models.pooling import GridPool2d

HIDDEN = {"cnn": {8: 32, 16: 16}, "mlp": {8: 1024, 16: 512}, "spatial": {8: 256, 16: 256}, "strided": {8: 512, 16: 512}}
"""Hidden channels (cnn, spatial, strided) and features (mlp) at width 1, by the number of blocks; two are not the paper's."""
SIMILARITY_WEIGHT = 0.99
"""Weight of predsim's similarity loss; its cross-entropy has the rest (Nokland and Eidnes, 2019)."""


class Head(nn.Sequential):
    """Layers from a block's output `[B, C, H, W]` to logits `[B, classes]`, under cross-entropy.

    They must not write over the block's output, which is on its way to the block above: that ends the run.
    """

    def losses(self, x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The loss of each sample `[B]` and the logits `[B, classes]`. The head's loss is the mean of the former."""
        logits = self(x)
        return F.cross_entropy(logits, labels, reduction="none"), logits


class PredSim(nn.Module):
    """Nokland and Eidnes' predsim: similarity matching on a 3x3 convolution, and a linear classifier.

    The similarity loss is the mean over all pairs of samples; the loss of one sample is the mean of its row.
    """

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.predict = nn.Sequential(*_pooled_linear(channels, classes))
        self.similarity = nn.Conv2d(channels, channels, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.predict(x)

    def losses(self, x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        logits = self(x)
        wanted = similarity_matrix(F.one_hot(labels, logits.shape[1]).to(x.dtype))
        mismatch = (similarity_matrix(spread(self.similarity(x))) - wanted).square().mean(dim=1)
        predicted = F.cross_entropy(logits, labels, reduction="none")
        return SIMILARITY_WEIGHT * mismatch + (1 - SIMILARITY_WEIGHT) * predicted, logits


def spread(z: Tensor) -> Tensor:
    """The standard deviation of each channel over space, `[B, C, H, W] -> [B, C]`; the values themselves for one pixel."""
    pixels = z.flatten(2)
    return pixels.std(dim=2) if pixels.shape[2] > 1 else pixels.squeeze(2)


def similarity_matrix(features: Tensor) -> Tensor:
    """Cosine similarities of the samples' centred features, `[B, F] -> [B, B]`."""
    return (unit := unit_rows(features)) @ unit.T


def unit_rows(features: Tensor) -> Tensor:
    """Each row of `[B, F]` less its mean, over its norm."""
    centred = features - features.mean(dim=1, keepdim=True)
    return centred / (centred.norm(dim=1, keepdim=True) + 1e-8)


def _pooled_linear(channels: int, classes: int, pool: int = 2) -> list[nn.Module]:
    return [
        GridPool2d(pool) if pool > 1 else nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(channels * pool**2, classes),
    ]


def linear_head(channels: int, classes: int, *, pool: int = 2) -> Head:
    """BatchNorm, average pooling to `pool` x `pool`, linear."""
    return Head(nn.BatchNorm2d(channels), *_pooled_linear(channels, classes, pool))


def classifier(channels: int, classes: int) -> Head:
    """The net's own: the linear head with global average pooling."""
    return linear_head(channels, classes, pool=1)


def cnn_head(channels: int, classes: int, hidden: int) -> Head:
    """A 1x1 convolution to `hidden` channels, three 3x3 ones with stride 2, pooling to 2x2, linear."""
    layers: list[nn.Module] = [nn.Conv2d(channels, hidden, 1, bias=False), nn.BatchNorm2d(hidden), nn.ReLU()]
    for _ in range(3):
        layers += [PaddedConv2d(hidden, hidden, stride=2), nn.BatchNorm2d(hidden), nn.ReLU()]
    return Head(*layers, *_pooled_linear(hidden, classes))


def spatial_head(channels: int, classes: int, hidden: int) -> Head:
    """Three 3x3 convolutions at the block's resolution, of its channels or `hidden`, global average pooling, linear.

    Its gradient at the block's output differs from pixel to pixel, that of a head which pools first does not.
    """
    hidden, layers = min(channels, hidden), []
    for size in (channels, hidden, hidden):
        layers += [PaddedConv2d(size, hidden), nn.BatchNorm2d(hidden), nn.ReLU()]
    return Head(*layers, *_pooled_linear(hidden, classes, pool=1))


def strided_head(channels: int, classes: int, hidden: int) -> Head:
    """Strided 3x3 convolutions, each to twice the channels, up to `hidden`; at least one; global average pooling, linear.

    Shaped as what a net that halves its resolution has above the block, one layer for each stage, as in AugLocal (Ma et al.,
    2024), at a fraction of the FLOPs: each convolution takes half of one in the block.
    """
    layers: list[nn.Module] = []
    while not layers or channels < hidden:
        wider = max(channels, min(2 * channels, hidden))
        layers += [PaddedConv2d(channels, wider, stride=2), nn.BatchNorm2d(wider), nn.ReLU()]
        channels = wider
    return Head(*layers, *_pooled_linear(channels, classes, pool=1))


def mlp_head(channels: int, classes: int, hidden: int) -> Head:
    """Pooling to 2x2, three linear layers of `hidden` features with BatchNorm, linear."""
    layers: list[nn.Module] = [GridPool2d(2), nn.Flatten()]
    features = 4 * channels
    for _ in range(3):
        layers += [nn.Linear(features, hidden, bias=False), nn.BatchNorm1d(hidden), nn.ReLU()]
        features = hidden
    return Head(*layers, nn.Linear(hidden, classes))


def auxiliary_head(
    name: str, channels: int, classes: int, *, blocks: int, width: float = 1.0, hidden: int | None = None
) -> Head | PredSim:
    """The head `name` (the paper's cnn, mlp, linear or predsim; spatial; strided) for a block's output of `channels` channels.

    Args:
        hidden: size at width 1; None takes the paper's for the number of blocks. It scales with `width`.
    """
    if name == "linear":
        return linear_head(channels, classes)
    if name == "predsim":
        return PredSim(channels, classes)
    size = max(1, round(width * (hidden or HIDDEN[name][blocks])))
    return {"cnn": cnn_head, "mlp": mlp_head, "spatial": spatial_head, "strided": strided_head}[name](
        channels, classes, size
    )
