"""Gradient guesses (paper, section 3.1): random ones from their key, others by a head's backward pass."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fgpipe.models.init import initialize
from fgpipe.rng import generator


def noise_like(kind: str, values: Sequence[Tensor], seed: int, block: int, batch: int) -> list[Tensor]:
    """The random guess of `block` for `batch`: Gaussian or Rademacher, zero mean, unit covariance.

    The same arguments always give the same noise, so the guess need not be kept.
    """
    source = generator(seed, "guess", block, batch, device=values[0].device)
    return [_draw(kind, value, source) for value in values]


def _draw(kind: str, like: Tensor, source: torch.Generator) -> Tensor:
    options: dict[str, Any] = {"generator": source, "dtype": like.dtype, "device": like.device}
    if kind == "gaussian":
        noise = torch.randn(like.shape, **options)
    else:
        noise = torch.randint(0, 2, like.shape, **options).mul_(2).sub_(1)
    if like.dim() == 4:
        noise = noise.contiguous(memory_format=torch.channels_last)
    return noise


def redraw(head: nn.Module, guess: str, seed: int, block: int, batch: int) -> None:
    """Give an untrained head its weights: new ones for every batch (`ntk`), or always the same (`fixed_ntk`)."""
    device = next(head.parameters(), torch.empty(0)).device
    initialize(head, generator(seed, guess, block, batch if guess == "ntk" else 0, device=device))


def principal_directions(guesses: Tensor, count: int) -> Tensor:
    """The first `count` right singular vectors of the samples' guesses `[B, ...]`, orthonormal: `[count, ...]`.

    Those past the rank are zero: they span nothing that the guesses do. A singular value counts as zero up to
    sqrt(B D) roundings of the largest, D being the size of one guess: heads that pool give fewer independent guesses
    than samples. NaN if a guess is not finite.
    """
    rows = guesses.flatten(1)
    directions = rows.new_zeros(count, rows.shape[1])
    if rows.isfinite().all():
        _, sizes, vectors = torch.linalg.svd(rows, full_matrices=False)
        least = sizes[0] * torch.finfo(rows.dtype).eps * rows.numel() ** 0.5
        rank = min(count, int((sizes > least).sum()))
        directions[:rank] = vectors[:rank]
    else:
        directions.fill_(torch.nan)
    return directions.unflatten(1, guesses.shape[1:])


def squared_norms(guesses: Mapping[str, Tensor], scope: str) -> Tensor:
    """|g|^2 of each probe of a weight-space guess, `[P]`: of each tensor, or of all together."""
    norms = torch.stack([guess.square().sum() for guess in guesses.values()])
    return norms if scope == "tensor" else norms.sum(0, keepdim=True)
