"""Gradient estimates from scalars: c = <target gradient, g> / (|g|^2 + eps), the estimate is c g (paper, eq. 1).

Random guesses have unit covariance and the directions of a subspace unit norm: c is not divided. Eq. 4 applies this
to the parameters (weight space), eq. 5 to a block's output, from which the block back-propagates it through itself
(activity space).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fgpipe.gradients.running import RunningMean

EPSILON = 1e-30
"""Far below any |g|^2 of a mean loss that float32 resolves: it only turns 0 / 0 into 0."""


def coefficients(scalars: Tensor, squared_norms: Tensor | None) -> Tensor:
    """The factor of each guess, shaped as `scalars`; `squared_norms` is None where nothing is divided by them."""
    return scalars if squared_norms is None else scalars / (squared_norms + EPSILON)


@dataclass(eq=False)
class StepRule:
    """The size of one block's steps along its guesses, from the coefficients c of eq. 1, which it may remember.

    P probes of the block, S samples (scope sample) or 1; means are over batches and samples.
    """

    mean: RunningMean | None = None
    """Mean of c (decode=smoothed), in place of c: calm, and biased, for c changes with the guess."""
    magnitude: RunningMean | None = None
    """Mean of |c| (step=normalised), which c is divided by: its sign and its size among recent ones remain."""

    @classmethod
    def of(cls, decode: str, step: str, probes: int, like: Tensor) -> "StepRule":
        """The rule of a block, by the keys of these names, of the type and on the device of `like`."""
        return cls(
            RunningMean(probes, like) if decode == "smoothed" else None,
            RunningMean(probes, like) if step == "normalised" else None,
        )

    @property
    def means(self) -> dict[str, RunningMean | None]:
        """Running means, by name."""
        return {"coefficient": self.mean, "magnitude": self.magnitude}

    @property
    def recall(self) -> "Recall":
        """The same, for a batch without readings."""
        return Recall(self.mean, self.magnitude)

    def factors(self, coefficients: Tensor) -> Tensor:
        """Factors of the guesses, `[P, S]`, given c `[P, S]`; the running means take it in first."""
        factors = coefficients
        if self.mean is not None:
            factors = self.mean.update(factors.mean(dim=1)).unsqueeze(1).expand_as(factors)
        if self.magnitude is not None:
            factors = factors / (self.magnitude.update(factors.abs().mean(dim=1)).unsqueeze(1) + EPSILON)
        return factors


class Recall(StepRule):
    """The size of steps on a batch without readings: by the running means, which stay as they are."""

    def factors(self, coefficients: Tensor) -> Tensor:
        """Factors of the guesses, shaped as `coefficients` `[P, S]`, which say nothing."""
        assert self.mean is not None, "decode=smoothed remembers a mean"
        factors = self.mean.value if self.magnitude is None else self.mean.value / (self.magnitude.value + EPSILON)
        return factors.unsqueeze(1).expand_as(coefficients)


def unit(direction: Tensor) -> Tensor:
    """A direction over its norm, of all samples together; zero stays zero."""
    return direction / direction.norm().clamp_min(torch.finfo(direction.dtype).tiny)


def mixed(directions: Sequence[Tensor], weights: Tensor, size: Tensor) -> Tensor:
    """A direction of norm `size`: the sum of the others' units, times `weights`; zero if the sum is."""
    return size * unit(
        torch.stack([weight * unit(each) for weight, each in zip(weights, directions, strict=True)]).sum(0)
    )


def squared_norms(directions: Sequence[Tensor], scope: str) -> Tensor:
    """|g|^2 of each probe, `[P, S]`: of each tensor (scope tensor), each sample, or all together."""
    if scope in ("sample", "batch"):
        norms = directions[0].flatten(1).square().sum(dim=1)
        return norms.unsqueeze(0) if scope == "sample" else norms.sum(0, keepdim=True).unsqueeze(0)
    norms = torch.stack([direction.square().sum() for direction in directions])
    return (norms if scope == "tensor" else norms.sum(0, keepdim=True)).unsqueeze(1)


def scaled(directions: Sequence[Tensor], factors: Tensor, scope: str) -> list[Tensor]:
    """c g of each tensor, with `factors` `[P, S]`: one of each (scope tensor), of each sample, or one for all."""
    if scope in ("sample", "batch"):
        return [factors[0].reshape(-1, *[1] * (directions[0].dim() - 1)) * directions[0]]
    per_tensor = factors[:, 0].expand(len(directions))
    return [factor * direction for factor, direction in zip(per_tensor, directions, strict=True)]
