"""Which process holds which blocks. Frozen, and passed to whoever asks; there is no rank in a global."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache


@dataclass(frozen=True)
class Topology:
    """Contiguous runs of blocks along a pipeline of processes. A position counts processes along it, from block 0 up."""

    sizes: tuple[int, ...]
    """Blocks at each position."""
    rank: int
    ranks: tuple[int, ...] = ()
    """Of the process at each position; in order if empty."""

    @property
    def pipeline(self) -> tuple[int, ...]:
        """The rank at each position."""
        return self.ranks or tuple(range(len(self.sizes)))

    @property
    def position(self) -> int:
        """Of this process."""
        return self.position_of(self.rank)

    def position_of(self, rank: int) -> int:
        return self.pipeline.index(rank)

    @property
    def local(self) -> range:
        """The blocks of this process."""
        return self.of(self.rank)

    def of(self, rank: int) -> range:
        """The blocks of a process."""
        position = self.position_of(rank)
        first = sum(self.sizes[:position])
        return range(first, first + self.sizes[position])

    def rank_of(self, block: int) -> int:
        """The process that holds a block."""
        return next(rank for rank in self.pipeline if block in self.of(rank))

    @property
    def source(self) -> int:
        """The process that has the data: the one with block 0."""
        return self.pipeline[0]

    @property
    def reporter(self) -> int:
        """The process that reports: the one with the last block, which knows the net's own loss."""
        return self.pipeline[-1]


def balanced(costs: Sequence[float], parts: int) -> tuple[int, ...]:
    """Sizes of `parts` contiguous, non-empty runs of blocks whose dearest run is as cheap as can be."""
    costs = tuple(costs)

    @lru_cache(maxsize=None)
    def best(first: int, parts: int) -> tuple[float, tuple[int, ...]]:
        if parts == 1:
            return sum(costs[first:]), (len(costs) - first,)
        options = []
        for size in range(1, len(costs) - first - parts + 2):
            rest, sizes = best(first + size, parts - 1)
            options.append((max(sum(costs[first : first + size]), rest), (size, *sizes)))
        return min(options)

    return best(0, parts)[1]
