"""Probes and the lanes that carry them, and what their scalars mean.

A probe is one guess of one block on one batch. With exact lanes each probe has a lane to itself, from the block
that asks to the block that evaluates its target.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fgpipe.gradients.dual import Tangent
from fgpipe.gradients.method import Method


@dataclass(frozen=True)
class ExactLanes:
    """One lane for every probe. Lanes are numbered from the lowest block's first probe upwards."""

    method: Method
    counts: tuple[int, ...]
    """Probes of each block; those that it evaluates itself (local target) count too, but travel on no link."""

    @classmethod
    def build(cls, method: Method, tensors: Sequence[int]) -> "ExactLanes":
        """Args: tensors: the number of parameter tensors of each block."""
        per_tensor = method.space == "weight" and method.scope == "tensor"
        counts = (0 if method.is_plain(j) else tensors[j] if per_tensor else 1 for j in range(method.blocks))
        return cls(method, tuple(counts))

    def of(self, block: int) -> tuple[int, ...]:
        """The lanes of the probes of `block`, in the order of the probes."""
        first = sum(self.counts[:block])
        return tuple(range(first, first + self.counts[block]))

    def on_link(self, block: int) -> tuple[int, ...]:
        """The lanes that leave `block` upwards: probes from here or below whose target lies above."""
        return tuple(lane for j in range(block + 1) if self.method.target(j) > block for lane in self.of(j))

    def carriers(self, block: int) -> list[dict[int, float]]:
        """For each probe of `block`, the lanes that carry it and with what factor."""
        return [{lane: 1.0} for lane in self.of(block)]

    def decode(self, block: int, lanes: tuple[int, ...], readings: Tensor) -> Tensor:
        """The scalars of the probes of `block`, `[P, S]`, from the readings `[R, S]` of the lanes."""
        row = {lane: position for position, lane in enumerate(lanes)}
        return readings[[row[lane] for lane in self.of(block)]]


def read(derivatives: Tensor, scope: str) -> Tensor:
    """Turn the derivatives `[R, B]` of each sample's own loss into readings `[R, S]` of the mean loss.

    With scope `sample` S is B and a reading is the sample's part of the derivative (design, section 3: the samples
    share one tangent). Otherwise S is 1: the derivative of the mean.
    """
    return derivatives / derivatives.shape[1] if scope == "sample" else derivatives.mean(dim=1, keepdim=True)


def restrict(tangent: Tangent | None, lanes: tuple[int, ...]) -> Tangent | None:
    """The part of a tangent that lives in `lanes`."""
    return tangent.select(lanes) if tangent is not None and lanes else None


def widen(tangent: Tangent | None, lanes: tuple[int, ...], like: Tensor) -> Tangent:
    """A tangent with exactly `lanes`, in their order; zeros where it has none. `like` is the primal `[B, ...]`."""
    if tangent is not None and tangent.lanes == lanes:
        return tangent
    parts = torch.zeros_like(like).repeat(len(lanes), *[1] * (like.dim() - 1))
    whole = Tangent(lanes, parts.contiguous(memory_format=torch.channels_last) if like.dim() == 4 else parts)
    if tangent is not None:
        for position, lane in enumerate(tangent.lanes):
            whole.per_lane()[lanes.index(lane)] = tangent.per_lane()[position]
    return whole
