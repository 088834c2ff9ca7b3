"""Images made of the 1,797 handwritten digits that the package holds: one digit, or two whose sum is the label.

Source: the test part of Optical Recognition of Handwritten Digits (E. Alpaydin, C. Kaynak; UCI Machine Learning
Repository, CC BY 4.0).
"""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from fgpipe.config.rng import generator
from fgpipe.data.dataset import FIXED_SEED

SIDE, WHITE = 8, 16
"""Pixels of a digit's side, and the largest value of a pixel."""
CLASSES = 10
PAIRS = {"train": 8000, "test": 2000}
"""Pairs of digits that are drawn."""


def one(part: str, side: int) -> tuple[np.ndarray, np.ndarray]:
    """A digit and its value: 1,437 of them for training, the other 360 to test; enlarged to uint8 [N, 1, side, side]."""
    small, labels = _part(part)
    enlarged = interpolate(small.double()[:, None], (side, side), mode="bilinear", antialias=True)
    return _bright(enlarged), labels.numpy()


def sums(part: str) -> tuple[np.ndarray, np.ndarray]:
    """Two digits side by side, and the last digit of their sum; uint8 [N, 1, 16, 16], black above and below.

    Both are drawn with replacement from the digits of `one`, so that no digit of a training image is in a test image.
    """
    small, labels = _part(part)
    drawn = torch.randint(len(labels), (2, PAIRS[part]), generator=generator(FIXED_SEED, f"digit sums {part}"))
    images = torch.zeros(PAIRS[part], 1, 2 * SIDE, 2 * SIDE, dtype=torch.float64)
    for place, index in enumerate(drawn):
        images[:, 0, SIDE // 2 : SIDE // 2 + SIDE, place * SIDE : (place + 1) * SIDE] = small[index]
    return _bright(images), (labels[drawn].sum(0) % CLASSES).numpy()


def _part(part: str) -> tuple[Tensor, Tensor]:
    """Digits as uint8 [N, 8, 8] with values 0 to 16, and labels int64 [N]; the split does not depend on the run's seed."""
    with np.load(Path(__file__).with_name("digits.npz"), allow_pickle=False) as digits:
        images, labels = torch.from_numpy(digits["images"]), torch.from_numpy(digits["labels"].astype(np.int64))
    order = torch.randperm(len(labels), generator=generator(FIXED_SEED, "digits split"))
    train = len(order) * 4 // 5
    kept = order[:train] if part == "train" else order[train:]
    return images[kept], labels[kept]


def _bright(images: Tensor) -> np.ndarray:
    """Values 0 to 16 as 0 to 255."""
    return (images * (255 / WHITE)).round().clamp(0, 255).byte().numpy()
