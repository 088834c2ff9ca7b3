"""Which process holds which blocks. Frozen, and passed to whoever asks; there is no rank in a global."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import accumulate


@dataclass(frozen=True)
class Topology:
    """Contiguous runs of blocks along a pipeline of processes, and its replicas.

    A position counts processes along a pipeline, from block 0 up. Replicas have the same blocks at the same positions.
    """

    sizes: tuple[int, ...]
    """Blocks at each position."""
    rank: int
    placement: tuple[tuple[int, ...], ...] = ()
    """Ranks of each replica, by position; if empty, there is one, in order."""

    @property
    def pipelines(self) -> tuple[tuple[int, ...], ...]:
        """Ranks of each replica, by position."""
        return self.placement or (tuple(range(len(self.sizes))),)

    @property
    def replicas(self) -> int:
        """Number of replicas."""
        return len(self.pipelines)

    @property
    def replica(self) -> int:
        """Replica of this process."""
        return self.replica_of(self.rank)

    def replica_of(self, rank: int) -> int:
        return next(replica for replica, ranks in enumerate(self.pipelines) if rank in ranks)

    def share(self, batch: int) -> int:
        """Number of this replica's part of a batch, among those of all replicas and batches."""
        return batch * self.replicas + self.replica

    @property
    def pipeline(self) -> tuple[int, ...]:
        """The rank at each position of this process's replica."""
        return self.pipelines[self.replica]

    @property
    def peers(self) -> tuple[int, ...]:
        """The processes with the blocks of this one, itself included, replica 0's first."""
        return tuple(ranks[self.position] for ranks in self.pipelines)

    @property
    def position(self) -> int:
        """Position of this process."""
        return self.position_of(self.rank)

    def position_of(self, rank: int) -> int:
        return self.pipelines[self.replica_of(rank)].index(rank)

    @property
    def local(self) -> range:
        """The blocks of this process."""
        return self.of(self.rank)

    def of(self, rank: int) -> range:
        """The blocks of a process."""
        return runs_of(self.sizes)[self.position_of(rank)]

    def rank_of(self, block: int) -> int:
        """The process of this replica that holds a block."""
        return next(rank for rank in self.pipeline if block in self.of(rank))

    @property
    def source(self) -> int:
        """The process that reads the data first: the one with block 0, of replica 0."""
        return self.pipelines[0][0]

    @property
    def reporter(self) -> int:
        """The process that reports: the one with the last block, which knows the net's own loss, of replica 0."""
        return self.pipelines[0][-1]


def runs_of(sizes: Sequence[int]) -> list[range]:
    """The blocks at each position, given how many they are."""
    return [range(end - size, end) for size, end in zip(sizes, accumulate(sizes), strict=True)]


def balanced(costs: Sequence[float], parts: int) -> tuple[int, ...]:
    """Sizes of `parts` contiguous, non-empty runs of blocks whose dearest run is as cheap as can be."""
    costs = tuple(costs)

    @cache
    def best(first: int, parts: int) -> tuple[float, tuple[int, ...]]:
        if parts == 1:
            return sum(costs[first:]), (len(costs) - first,)
        options = []
        for size in range(1, len(costs) - first - parts + 2):
            rest, sizes = best(first + size, parts - 1)
            options.append((max(sum(costs[first : first + size]), rest), (size, *sizes)))
        return min(options)

    return best(0, parts)[1]
