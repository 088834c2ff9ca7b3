"""`guess=local_subspace`: each sample's target is projected on the span of the local guesses of all samples."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fgpipe.config import Config
from fgpipe.errors import bad_value
from fgpipe.gradients.dual import Factor, Tangent, add, along
from fgpipe.gradients.estimator import StepRule
from fgpipe.gradients.guesses.base import Guess, GuessHead, View
from fgpipe.gradients.guesses.registry import guess


@guess("local_subspace")
@dataclass(frozen=True)
class LocalSubspace(Guess):
    """Principal directions of a batch's local guesses, orthonormal, in activity space (paper, table 6)."""

    directions: int | None = None
    """Largest number of directions; None: as many as the batch has samples."""

    spaces: ClassVar[tuple[str, ...]] = ("activity",)
    scopes: ClassVar[tuple[str, ...]] = ("sample",)
    head: ClassVar[GuessHead | None] = GuessHead.TRAINED
    divided: ClassVar[bool] = False
    steady: ClassVar[bool] = False

    def check(self, config: Config) -> None:
        if self.directions is not None and not 1 <= self.directions <= config.share:
            what = "the samples of a replica" if config.replicas > 1 else f"batch_size={config.batch_size}"
            allowed = f"1 to {config.share}, {what}, or null" if config.replicas > 1 else f"1 to {what}, or null"
            raise bad_value("guess.directions", self.directions, allowed)

    def probes(self, scope: str, tensors: int, samples: int) -> int:
        return self.directions or samples

    def propose(self, view: View) -> Sequence[Tensor]:
        """The rows of one tensor `[P, ...]`, each of which moves all samples alike."""
        (guesses,) = view.gradient()
        return [principal_directions(guesses, self.directions or len(guesses))]

    def insert(
        self, tangent: Tangent | None, direction: Tensor, carriers: Sequence[Mapping[int, Factor]], y: Tensor
    ) -> Tangent | None:
        return add(tangent, along(direction, tuple(lane for each in carriers for lane in each), y))

    def inner(self, gradient: Sequence[Tensor], directions: Sequence[Tensor], scope: str) -> Tensor:
        return directions[0].flatten(1) @ gradient[0].flatten(1).T

    def estimate(
        self, directions: Sequence[Tensor], readings: Tensor, scope: str, step: StepRule, places: Sequence[Tensor]
    ) -> Sequence[Tensor]:
        """sum_p c_p v_p for each sample, `[B, ...]`: the projection of the target's gradient on the span of the v_p."""
        return [torch.tensordot(step.factors(readings), directions[0], dims=([0], [0]))]


def principal_directions(guesses: Tensor, count: int) -> Tensor:
    """The first `count` right singular vectors of the samples' guesses `[B, ...]`, orthonormal: `[count, ...]`.

    Those past the rank are zero: they span nothing that the guesses do. A singular value counts as zero up to
    sqrt(B D) roundings of the largest, D being the size of one guess: heads that pool give fewer independent guesses
    than samples. NaN if a guess is not finite.
    """
    rows = guesses.flatten(1)
    directions, finite = rows.new_zeros(count, rows.shape[1]), rows.isfinite().all()
    _, sizes, vectors = torch.linalg.svd(torch.where(finite, rows, 0.0), full_matrices=False)
    found = min(count, len(sizes))
    spanned = sizes[:found] > sizes[0] * torch.finfo(rows.dtype).eps * rows.numel() ** 0.5
    directions[:found] = torch.where(spanned.unsqueeze(1), vectors[:found], 0.0)
    directions = torch.where(finite, directions, torch.nan)
    return directions.unflatten(1, guesses.shape[1:])
