"""Probes and the lanes that carry them, and what their scalars mean.

A probe is one guess of one block on one batch. Its scalar is read at the block whose loss is its target. With exact
lanes each probe has a lane to itself, from the block that asks to the block that evaluates. With coded lanes the
probes of one target share some, and each one's scalar is decoded from the readings of all (docs/reference/algorithm.md).
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fgpipe.errors import bad_value
from fgpipe.gradients.codes import most_lanes, signs
from fgpipe.gradients.dual import Factor, Tangent, empty
from fgpipe.gradients.method import Method
from fgpipe.gradients.running import RunningMean


@dataclass(frozen=True)
class Lanes(ABC):
    """Lanes, and which probes they carry. Lanes are numbered; on every link and in every reading they are in order.

    Shapes: P probes of one block, or of all blocks that share a target, lowest block first; R lanes; S samples
    (scope sample) or 1.
    """

    method: Method
    counts: tuple[int, ...]
    """Probes of each block; those that it evaluates itself (local target) count too, but travel on no link."""

    def asking(self, target: int) -> tuple[int, ...]:
        """The blocks whose probes are read at `target`, lowest first."""
        return tuple(j for j in range(target + 1) if self.counts[j] and self.method.target(j) == target)

    def read_at(self, target: int) -> tuple[int, ...]:
        """The lanes that are read at `target`."""
        return _distinct(lane for j in self.asking(target) for lane in self.of(j))

    def on_link(self, block: int) -> tuple[int, ...]:
        """The lanes that leave `block` upwards: probes from here or below whose target lies above."""
        return _distinct(lane for j in range(block + 1) if self.method.target(j) > block for lane in self.of(j))

    @abstractmethod
    def of(self, block: int) -> tuple[int, ...]:
        """The lanes of the probes of `block`."""

    @abstractmethod
    def carriers(self, block: int, batch: int, like: Tensor) -> list[dict[int, Factor]]:
        """Lanes that carry each probe of `block`, and with what factor.

        `like` `[B, ...]` is shaped as the guess in activity space, where factors may differ from sample to sample.
        """

    @abstractmethod
    def encode(self, target: int, batch: int, scalars: Tensor) -> Tensor:
        """The readings `[R, S]` that scalars `[P, S]` of the probes of one target would cause."""

    @abstractmethod
    def decode(self, target: int, batch: int, readings: Tensor) -> Tensor:
        """Scalars `[P, S]` from readings `[R, S]`, which are `encode`'s in the mean over codes."""


def plan_lanes(method: Method, tensors: Sequence[int], lanes: int | str, code: str, seed: int) -> Lanes:
    """The lanes of a run.

    Args:
        tensors: the number of trainable parameter tensors of each block.
        lanes: `exact`, or how many the probes of one target share.

    Raises:
        UserError: there are more lanes than probes could use.
    """
    probes = [method.guess.probes(method.scope, each, method.samples) for each in tensors]
    counts = tuple(probes[j] if method.projects(j) else 0 for j in range(method.blocks))
    if not method.guess.reading.has_lane:
        return NoLanes(method, counts)
    if lanes == "exact":
        return ExactLanes(method, counts)
    coded = CodedLanes(method, counts, code, int(lanes), seed)
    most = max(most_lanes(code, coded.probes(target)) for target in range(method.blocks))
    if coded.limit > most:
        raise bad_value("lanes", lanes, f"exact, or at most {most} here with code={code}")
    return coded


@dataclass(frozen=True)
class ExactLanes(Lanes):
    """One lane for every probe. Lanes are numbered from the lowest block's first probe upwards."""

    def of(self, block: int) -> tuple[int, ...]:
        first = sum(self.counts[:block])
        return tuple(range(first, first + self.counts[block]))

    def carriers(self, block: int, batch: int, like: Tensor) -> list[dict[int, Factor]]:
        return [{lane: 1.0} for lane in self.of(block)]

    def encode(self, target: int, batch: int, scalars: Tensor) -> Tensor:
        return scalars

    def decode(self, target: int, batch: int, readings: Tensor) -> Tensor:
        return readings


@dataclass(frozen=True)
class NoLanes(Lanes):
    """No lanes: one reading comes back, the same for all probes of a target."""

    def of(self, block: int) -> tuple[int, ...]:
        return ()

    def carriers(self, block: int, batch: int, like: Tensor) -> list[dict[int, Factor]]:
        return [{}] * self.counts[block]

    def encode(self, target: int, batch: int, scalars: Tensor) -> Tensor:
        return scalars[:1]

    def decode(self, target: int, batch: int, readings: Tensor) -> Tensor:
        return readings.expand(sum(self.counts[j] for j in self.asking(target)), *readings.shape[1:])


@dataclass(frozen=True)
class CodedLanes(Lanes):
    """The probes of one target share lanes; probes of different targets never do, so none outlives its target."""

    code: str
    limit: int
    """Lanes of each target; fewer where its probes cannot use as many."""
    seed: int

    def probes(self, target: int) -> int:
        """Probes that are read at `target`."""
        return sum(self.counts[j] for j in self.asking(target))

    def of(self, block: int) -> tuple[int, ...]:
        if not self.counts[block]:
            return ()
        target = self.method.target(block)
        first = target * self.limit
        return tuple(range(first, first + self._width(target)))

    def carriers(self, block: int, batch: int, like: Tensor) -> list[dict[int, Factor]]:
        target, lanes = self.method.target(block), self.of(block)
        first = sum(self.counts[j] for j in self.asking(target) if j < block)
        by_sample = self.method.scope == "sample"
        code = self._signs(target, batch, len(like) if by_sample else 1)[first : first + self.counts[block]]
        if not by_sample:
            return [dict(zip(lanes, map(float, probe), strict=True)) for probe in code[:, :, 0].tolist()]
        factors = code.to(like).reshape(*code.shape, *[1] * (like.dim() - 1))
        return [dict(zip(lanes, probe, strict=True)) for probe in factors]

    def encode(self, target: int, batch: int, scalars: Tensor) -> Tensor:
        return torch.einsum("prs,ps->rs", self._signs(target, batch, scalars.shape[1]).to(scalars), scalars)

    def decode(self, target: int, batch: int, readings: Tensor) -> Tensor:
        """d_p = (1/R) sum_r eps[p, r] D_r."""
        code = self._signs(target, batch, readings.shape[1]).to(readings)
        return torch.einsum("prs,rs->ps", code, readings) / len(readings)

    def _width(self, target: int) -> int:
        return min(self.limit, most_lanes(self.code, self.probes(target)))

    def _signs(self, target: int, batch: int, samples: int) -> Tensor:
        shape = self.probes(target), self._width(target), samples
        return signs(self.code, *shape, seed=self.seed, target=target, batch=batch)


@dataclass(eq=False)
class Decoder:
    """Turns the readings at one target into the scalars of each block that asks; lives where the target is."""

    lanes: Lanes
    target: int
    prediction: RunningMean | None
    """Expectation of the scalars of all probes (decode=predicted): their mean over samples."""

    @classmethod
    def of(cls, lanes: Lanes, target: int, like: Tensor) -> "Decoder":
        """The decoder of one target, of the type and on the device of `like`."""
        probes = sum(lanes.counts[j] for j in lanes.asking(target))
        predicts = lanes.method.decode == "predicted" and probes > 0
        return cls(lanes, target, RunningMean(probes, like) if predicts else None)

    @property
    def asking(self) -> tuple[int, ...]:
        """The blocks whose probes are read here."""
        return self.lanes.asking(self.target)

    def decode(self, batch: int, readings: Tensor) -> dict[int, Tensor]:
        """Block -> scalars `[P, S]`, from readings `[R, S]` in the order of `read_at`.

        With a prediction e of the scalars, d = e + decode(D - encode(e)): of the same mean for any e that the
        batch's code has no part in.
        """
        if self.prediction is None:
            scalars = self.lanes.decode(self.target, batch, readings)
        else:
            expected = self.prediction.value.unsqueeze(1).expand(-1, readings.shape[1])
            surprise = readings - self.lanes.encode(self.target, batch, expected)
            scalars = expected + self.lanes.decode(self.target, batch, surprise)
            self.prediction.update(scalars.mean(dim=1))
        counts = [self.lanes.counts[j] for j in self.asking]
        return dict(zip(self.asking, scalars.split(counts), strict=True))


def _distinct(lanes: Iterable[int]) -> tuple[int, ...]:
    return tuple(dict.fromkeys(lanes))


def restrict(tangent: Tangent | None, lanes: tuple[int, ...]) -> Tangent | None:
    """The part of a tangent that lives in `lanes`."""
    return tangent.select(lanes) if tangent is not None and lanes else None


def widen(tangent: Tangent | None, lanes: tuple[int, ...], like: Tensor) -> Tangent:
    """A tangent with exactly `lanes`, in their order; zeros where it has none. `like` is the primal `[B, ...]`."""
    if tangent is not None and tangent.lanes == lanes:
        return tangent
    whole = empty(lanes, like)
    whole.value.zero_()
    if tangent is not None:
        for position, lane in enumerate(tangent.lanes):
            whole.per_lane()[lanes.index(lane)] = tangent.per_lane()[position]
    return whole
