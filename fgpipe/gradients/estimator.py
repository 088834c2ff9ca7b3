"""From scalars to gradient estimates: c = <target gradient, g> / (|g|^2 + eps), the estimate is c g (paper, eq. 1).

Random guesses have unit covariance and the directions of a subspace unit norm: c is not divided. Eq. 4 applies this
to the parameters (weight space), eq. 5 to a block's output, from which the block back-propagates it through itself
(activity space).
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from fgpipe.gradients.method import Method
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

    mean: RunningMean | None
    """Of c (decode=smoothed), in place of c: calm, and biased, for c changes with the guess."""
    magnitude: RunningMean | None
    """Of |c| (step=normalised), which c is divided by: its sign and its size among recent ones remain."""

    @classmethod
    def of(cls, method: Method, probes: int, like: Tensor) -> "StepRule":
        """The rule of a block, of the type and on the device of `like`."""
        return cls(
            RunningMean(probes, like) if method.decode == "smoothed" else None,
            RunningMean(probes, like) if method.step == "normalised" else None,
        )

    @property
    def means(self) -> dict[str, RunningMean | None]:
        """What it remembers, by name."""
        return {"coefficient": self.mean, "magnitude": self.magnitude}

    def factors(self, coefficients: Tensor) -> Tensor:
        """What the guesses are multiplied by, `[P, S]`, given c `[P, S]`; the running means take it in first."""
        factors = coefficients
        if self.mean is not None:
            factors = self.mean.update(factors.mean(dim=1)).unsqueeze(1).expand_as(factors)
        if self.magnitude is not None:
            factors = factors / (self.magnitude.update(factors.abs().mean(dim=1)).unsqueeze(1) + EPSILON)
        return factors


def weight_estimate(guesses: Mapping[str, Tensor], factors: Tensor) -> dict[str, Tensor]:
    """c g for each parameter (eq. 4). `factors` is `[P]`: one for each tensor (scope tensor), or one for all (block)."""
    per_tensor = factors.expand(len(guesses)) if len(factors) == 1 else factors
    return {name: factor * guess for factor, (name, guess) in zip(per_tensor, guesses.items(), strict=True)}


def activity_estimate(guess: Tensor, factors: Tensor) -> Tensor:
    """c g for a block's output `[B, ...]` (eq. 5). `factors` is `[B]` (scope sample) or `[1]` (batch)."""
    return factors.reshape(-1, *[1] * (guess.dim() - 1)) * guess


def subspace_estimate(directions: Tensor, factors: Tensor) -> Tensor:
    """sum_p c_p v_p for each sample's part of a block's output, `[B, ...]`.

    With c the scalars of orthonormal `directions` v `[P, ...]`, the projection of the target's gradient on their
    span (paper, table 6). `factors` is `[P, B]`.
    """
    return torch.tensordot(factors, directions, dims=([0], [0]))


def activity_squared_norms(guess: Tensor, scope: str) -> Tensor:
    """|g|^2 of each probe of an activity-space guess `[B, ...]`: `[B]` (scope sample) or `[1]` (batch)."""
    norms = guess.flatten(1).square().sum(dim=1)
    return norms if scope == "sample" else norms.sum(0, keepdim=True)
