"""A data set in memory, fixed subsets of it, and the checks that every source shares."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fgpipe.config.rng import generator
from fgpipe.errors import UserError, bad_value

FIXED_SEED = 0
"""Splits and subsets are drawn with this seed, so that runs with different seeds see the same samples."""


@dataclass(frozen=True)
class Dataset:
    """Decoded images and their labels; S is `data.stored_size`, C the number of channels."""

    train_images: Tensor
    """uint8 [N, C, S, S], 0 to 255."""
    train_labels: Tensor
    """int64 [N], from 0 to classes - 1."""
    test_images: Tensor
    """uint8 [M, C, S, S], 0 to 255."""
    test_labels: Tensor
    """int64 [M], from 0 to classes - 1."""
    classes: int
    notes: tuple[str, ...] = ()
    """Lines for stderr, which `Batches` writes: what a user should know of the images that were read."""


def subset(split: str, wanted: int | None, available: int) -> Tensor | slice:
    """The indices of the samples to keep: all in order, or `wanted` of a fixed permutation.

    A smaller subset is the beginning of a larger one.

    Args:
        split: "train" or "test"; the key is `data.<split>_samples`.

    Raises:
        UserError: more samples are wanted than there are.
    """
    if wanted is None:
        return slice(None)
    if wanted > available:
        raise bad_value(f"data.{split}_samples", wanted, f"1 to {available}, the samples that exist, or null")
    return torch.randperm(available, generator=generator(FIXED_SEED, f"{split} subset"))[:wanted]


def held_out(dataset: Dataset, count: int, wanted: int | None) -> Dataset:
    """Training images in place of the test set: `count` of those that a subset of `wanted` leaves, the same for any `wanted`.

    Args:
        dataset: with all training images, in order.
        wanted: training images to keep; None: all that are left.

    Raises:
        UserError: there are not so many.
    """
    available = len(dataset.train_labels)
    if wanted is not None and wanted >= available:
        raise bad_value("data.train_samples", wanted, f"less than {available}, the samples that exist, or null")
    if count > (most := available - (wanted or 1)):
        raise bad_value("data.held_out", count, f"at most {most}, the training images that are left, or null")
    order = torch.randperm(available, generator=generator(FIXED_SEED, "train subset"))
    kept, tested = order[: wanted or -count], order[-count:]
    images, labels = dataset.train_images, dataset.train_labels
    return replace(
        dataset,
        train_images=images[kept],
        train_labels=labels[kept],
        test_images=images[tested],
        test_labels=labels[tested],
    )


def checked_labels(labels: object, path: Path, count: int, classes: int, first: int = 0) -> np.ndarray:
    """Labels read from `path` as int64 [count], counted from 0.

    Args:
        labels: a list or array of whole numbers from `first` to `first + classes - 1`.

    Raises:
        UserError: naming the file, for anything else.
    """
    try:
        values = np.asarray(labels)
    except ValueError:  # a ragged list
        values = np.empty(0)
    if values.shape != (count,) or values.dtype.kind not in "iu":
        raise UserError(f"{path}: corrupt: allowed: one whole-number label for each of its {count} images")
    outside = values[(values < first) | (values >= first + classes)]
    if outside.size:
        raise UserError(f"{path}: corrupt: label {outside[0]}: allowed: {first} to {first + classes - 1}")
    return values.astype(np.int64) - first


def reason(error: BaseException) -> str:
    """An error's message on one line."""
    return " ".join(str(getattr(error, "reason", error)).split()) or type(error).__name__
