"""Which process holds which blocks. Frozen, and passed to whoever asks; there is no rank in a global."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache


@dataclass(frozen=True)
class Topology:
    """Contiguous runs of blocks, one run for each process, in order."""

    sizes: tuple[int, ...]
    rank: int

    @property
    def world_size(self) -> int:
        return len(self.sizes)

    @property
    def blocks(self) -> int:
        return sum(self.sizes)

    @property
    def local(self) -> range:
        """The blocks of this process."""
        return self.of(self.rank)

    def of(self, rank: int) -> range:
        """The blocks of a process."""
        first = sum(self.sizes[:rank])
        return range(first, first + self.sizes[rank])

    def rank_of(self, block: int) -> int:
        """The process that holds a block."""
        return next(rank for rank in range(self.world_size) if block in self.of(rank))

    @property
    def reporter(self) -> int:
        """The process that reports: the one with the last block, which knows the net's own loss."""
        return self.world_size - 1


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
