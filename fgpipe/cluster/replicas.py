"""The copies of the pipeline (`replicas=D`): each takes its share of every batch, and all take the mean of the estimates.

The processes that hold the same blocks, one of each replica, are one process group. They make the same calls in the
same order: updates, which follow the windows; whether to drain; and what is left to replica 0 for a checkpoint.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from fgpipe.errors import LinkError, first_line
from fgpipe.gradients.optim import Trained
from fgpipe.observe.ledger import Ledger
from fgpipe.plan.topology import Topology


@dataclass(frozen=True)
class Replicas:
    """Processes of the same blocks, and what they agree on; with one replica every call gives back what it got."""

    ranks: tuple[int, ...] = (0,)
    """Ranks of the processes with the blocks of this one, replica 0's first."""
    index: int = 0
    """Index of this process's replica."""
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    """Device of what is sent."""
    group: dist.ProcessGroup | None = None
    """Group of `ranks`."""
    pipeline: dist.ProcessGroup | None = None
    """Group of the processes of this replica, for `guess=end_to_end`; None is the default group."""

    @classmethod
    def connect(cls, topology: Topology, device: torch.device, deadline: float, pipelined: bool) -> "Replicas":
        """Make the process groups; collective, once there is a default group.

        Args:
            device: where the wire's tensors live.
            deadline: seconds that any call waits for the other replicas.
            pipelined: make `pipeline`.

        Raises:
            LinkError: another process is gone, or silent past the deadline.
        """
        if topology.replicas == 1:
            return cls((topology.rank,))
        members = (topology.peers, *([topology.pipeline] if pipelined else []))
        try:
            groups = [_group(ranks, deadline) for ranks in members]
        except RuntimeError as error:
            what = f"start: no process group of ranks {', '.join(map(str, topology.peers))}, which have the same blocks"
            raise LinkError(f"{what}: {first_line(error)}") from error
        return cls(topology.peers, topology.replica, device, *groups)

    @property
    def count(self) -> int:
        return len(self.ranks)

    def average(self, ledger: Ledger, block: int, tensors: Iterable[Tensor]) -> list[Tensor]:
        """The mean over the replicas of tensors of one type, each with its own strides; one message for all.

        Args:
            ledger: counts what is handed over, as `averages` of the block.
            block: whose tensors they are.

        Raises:
            LinkError: another replica is gone, or silent past the deadline.
        """
        tensors = list(tensors)
        if self.count == 1:
            return tensors
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors]).to(self.device)
        ledger.count(block, block, "averages", flat.nbytes)
        means = self._sum(flat, f"block {block}").div_(self.count).split([tensor.numel() for tensor in tensors])
        return [
            torch.empty_like(tensor).copy_(mean.view(tensor.shape)) for tensor, mean in zip(tensors, means, strict=True)
        ]

    def average_statistics(self, ledger: Ledger, trained: Mapping[int, Mapping[str, Trained]]) -> None:
        """Give all replicas the mean of their running statistics, in a drained pipeline; errors as for `average`."""
        if self.count == 1:
            return
        for block, parts in trained.items():
            buffers = [each for part in parts.values() for each in part.module.buffers() if each.is_floating_point()]
            if buffers:
                for buffer, mean in zip(buffers, self.average(ledger, block, buffers), strict=True):
                    buffer.copy_(mean)

    def any(self, block: int, flag: bool) -> bool:
        """The flag is set in some replica, asked for one block; errors as for `average`."""
        if self.count == 1:
            return flag
        return bool(self._sum(torch.tensor([int(flag)], device=self.device), f"block {block}").item())

    def left_to_first(self, blocks: Sequence[int], tensor: Tensor) -> Tensor:
        """The sum over the replicas in replica 0, zeros in the others; errors as for `average`."""
        if self.count == 1:
            return tensor
        total = self._sum(tensor.to(self.device, copy=True), f"block {blocks[0]}").to(tensor.device)
        return total if self.index == 0 else torch.zeros_like(tensor)

    def _sum(self, tensor: Tensor, what: str) -> Tensor:
        try:
            dist.all_reduce(tensor, group=self.group)
        except RuntimeError as error:
            others = [f"{index} (rank {rank})" for index, rank in enumerate(self.ranks) if index != self.index]
            lost = f"replica {others[0]}" if len(others) == 1 else f"one of replicas {', '.join(others)}"
            rank = next(rank for rank in self.ranks if rank != self.ranks[self.index]) if len(others) == 1 else None
            line = f"replica {self.index} lost {lost} of {what} in their mean: {first_line(error)}"
            raise LinkError(line, rank) from error
        return tensor


def _group(ranks: Sequence[int], deadline: float) -> dist.ProcessGroup:
    group = dist.new_group(list(ranks), timeout=timedelta(seconds=deadline), use_local_synchronization=True)
    assert isinstance(group, dist.ProcessGroup), "this process is one of them"
    return group
