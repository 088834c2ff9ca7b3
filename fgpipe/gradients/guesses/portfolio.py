"""`guess=portfolio`: the gradients of two heads' own losses, weighted by what scalars say of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fgpipe.gradients.dual import Factor, Tangent, insert
from fgpipe.gradients.estimator import StepRule, mixed, unit
from fgpipe.gradients.guesses.base import View
from fgpipe.gradients.guesses.registry import guess
from fgpipe.gradients.guesses.two_heads import TwoHeads


@guess("portfolio")
@dataclass(frozen=True)
class Portfolio(TwoHeads):
    """Directions of unit norm at the block's output, projected on together, at the size of the own gradient.

    Coefficients solve the Gram system of the directions for their derivatives; negative ones count as zero. A running mean
    of coefficients (`decode=smoothed`) is what a direction is worth over many batches. A block without a positive one rests.
    """

    scopes: ClassVar[tuple[str, ...]] = ("batch",)

    def probes(self, scope: str, tensors: int, samples: int) -> int:
        return 2

    def propose(self, view: View) -> Sequence[Tensor]:
        """Both directions as one tensor `[P, B, ...]` of unit norms, and the size of the own gradient, `[]`."""
        own, second = *view.gradient(), *view.beside()
        return [torch.stack([unit(own), unit(second)]), own.norm()]

    def insert(
        self, tangent: Tangent | None, direction: Tensor, carriers: Sequence[Mapping[int, Factor]], y: Tensor
    ) -> Tangent | None:
        for each, lanes in zip(direction, carriers, strict=True):
            tangent = insert(tangent, each, lanes)
        return tangent

    def inner(self, gradient: Sequence[Tensor], directions: Sequence[Tensor], scope: str) -> Tensor:
        return (directions[0].flatten(1) @ gradient[0].flatten()).unsqueeze(1)

    def estimate(
        self, directions: Sequence[Tensor], readings: Tensor, scope: str, step: StepRule, places: Sequence[Tensor]
    ) -> Sequence[Tensor]:
        units, size = directions
        rows = units.flatten(1)
        coefficients = torch.linalg.pinv(rows @ rows.T, hermitian=True) @ readings
        return [mixed(list(units), step.factors(coefficients).clamp_min(0)[:, 0], size)]
