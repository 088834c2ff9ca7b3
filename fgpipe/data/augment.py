"""Random crops and flips of whole batches, each sample with its own draw.

Every augmentation is a function of images and drawn parameters; the parameters are drawn apart, so that a test
can repeat them sample by sample. B is the batch, C the channels, S the side of the input, s of the output.
"""

import math
from dataclasses import dataclass

import torch
from torch import Generator, Tensor
from torch.nn.functional import grid_sample, interpolate, pad

SCALE = (0.08, 1.0)
"""Part of the image's area that a resized crop covers."""
RATIO = (3 / 4, 4 / 3)
"""Width over height of a resized crop."""
ATTEMPTS = 10
"""Draws until the box fits the image, as in torchvision; then the whole image is taken."""
CENTRE = 0.875
"""Part of the side that the centre crop keeps: 224 of 256 for ImageNet."""


@dataclass(frozen=True)
class Boxes:
    """Crops in pixels of the input image, with whether each is flipped afterwards."""

    tops: Tensor
    """int64 [B]."""
    lefts: Tensor
    """int64 [B]."""
    heights: Tensor
    """int64 [B]."""
    widths: Tensor
    """int64 [B]."""
    flips: Tensor
    """bool [B]."""


def draw_crops(rng: Generator, batch: int, side: int, padding: int) -> Boxes:
    """Boxes of the image's own side inside the padded image, flipped with probability 1/2."""
    tops, lefts = torch.randint(2 * padding + 1, (2, batch), generator=rng)
    sides = torch.full((batch,), side)
    return Boxes(tops, lefts, sides, sides, _draw_flips(rng, batch))


def draw_resized_crops(rng: Generator, batch: int, side: int) -> Boxes:
    """torchvision's `RandomResizedCrop.get_params` for square images, and a flip with probability 1/2."""
    fractions, log_ratios, tops, lefts = torch.rand(4, batch, ATTEMPTS + 1, generator=rng, dtype=torch.float64)
    areas = side**2 * (SCALE[0] + (SCALE[1] - SCALE[0]) * fractions)
    ratios = torch.exp(math.log(RATIO[0]) + math.log(RATIO[1] / RATIO[0]) * log_ratios)
    heights, widths = (areas / ratios).sqrt().round(), (areas * ratios).sqrt().round()
    heights[:, -1], widths[:, -1] = side, side
    fits = (heights >= 1) & (heights <= side) & (widths >= 1) & (widths <= side)
    first = fits.byte().argmax(1, keepdim=True)
    height, width, top, left = (values.gather(1, first)[:, 0] for values in (heights, widths, tops, lefts))
    tops, lefts = (top * (side - height + 1)).long(), (left * (side - width + 1)).long()
    return Boxes(tops, lefts, height.long(), width.long(), _draw_flips(rng, batch))


def _draw_flips(rng: Generator, batch: int) -> Tensor:
    return torch.rand(batch, generator=rng) < 0.5


def crop_flip(images: Tensor, boxes: Boxes, padding: int) -> Tensor:
    """Pad with black, crop to the input's size and flip horizontally: uint8 [B, C, S, S] to the same."""
    side = images.shape[-1]
    windows = pad(images, (padding,) * 4).unfold(2, side, 1).unfold(3, side, 1)  # [B, C, top, left, S, S], a view
    cropped = windows[torch.arange(len(images)), :, boxes.tops, boxes.lefts]
    return torch.where(boxes.flips[:, None, None, None], cropped.flip(3), cropped)


def resized_crop_flip(images: Tensor, boxes: Boxes, size: int) -> Tensor:
    """Crop, resize to `size` (bilinear, without antialiasing) and flip: float [B, C, S, S] to [B, C, s, s].

    Sampling positions stay inside the box, so that the result is that of resizing the crop by itself.
    """
    side = images.shape[-1]
    steps = (torch.arange(size, dtype=images.dtype) + 0.5) / size

    def positions(starts: Tensor, lengths: Tensor, steps: Tensor) -> Tensor:
        """[B, s], from -1 (centre of the first pixel) to 1 (centre of the last)."""
        inside = (lengths[:, None] * steps - 0.5).clamp(min=0).minimum(lengths[:, None] - 1)
        return (starts[:, None] + inside) * (2 / (side - 1)) - 1

    rows = positions(boxes.tops, boxes.heights, steps)
    columns = positions(boxes.lefts, boxes.widths, torch.where(boxes.flips[:, None], steps.flip(0), steps))
    shape = (len(images), size, size)
    grid = torch.stack([columns[:, None, :].expand(shape), rows[:, :, None].expand(shape)], dim=-1)
    return grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=True)


def centre_crop(images: Tensor, size: int) -> Tensor:
    """The middle of the images: uint8 [B, C, S, S] to [B, C, s, s].

    They are shrunk first (bilinear, antialiased) so that the crop shows seven eighths of the side, or more where
    the input has too few pixels for that.
    """
    side = min(images.shape[-1], round(size / CENTRE))
    if side != images.shape[-1]:
        images = interpolate(images, (side, side), mode="bilinear", antialias=True)
    start = (side - size) // 2
    return images[..., start : start + size, start : start + size]
