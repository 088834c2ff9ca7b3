"""Bytes per link, direction and kind, counted where they are handed to a socket."""

import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

KINDS = ("activations", "tangents", "gradients", "feedback", "control", "averages", "weights")
"""`gradients` flow in backpropagation only; `control` is headers and labels; `averages` are what a block hands over to be
averaged over replicas, from itself to itself; `weights` are copies for twins below."""


Sent = dict[tuple[int, int, str], tuple[int, int]]
"""Source, destination and kind -> bytes and messages."""


class Ledger:
    """Bytes and messages that this process sent; batches within a process cross no socket and count nothing.

    Any thread may count at any time: the one that receives scalars answers requests while another one reads.
    """

    def __init__(self, blocks: int) -> None:
        self.blocks = blocks
        self._lock = threading.Lock()
        self._sent: Sent = {}

    def count(self, source: int, destination: int, kind: str, size: int) -> None:
        """Add one message of `size` bytes from a block to another."""
        with self._lock:
            self._add(source, destination, kind, size, 1)

    def _add(self, source: int, destination: int, kind: str, size: int, messages: int) -> None:
        before = self._sent.get((source, destination, kind), (0, 0))
        self._sent[source, destination, kind] = (before[0] + size, before[1] + messages)

    def state(self, source: int) -> list[list[Any]]:
        """Traffic that one block has sent, as `[destination, kind, bytes, messages]`, for a checkpoint."""
        with self._lock:
            return [[*key, *sent] for (block, *key), sent in self._sent.items() if block == source]

    def restore(self, source: int, state: Iterable[list[Any]]) -> None:
        """Go on from what `state` gave."""
        with self._lock:
            for destination, kind, size, messages in state:
                self._sent[source, destination, kind] = (size, messages)

    def merge(self, leave: Callable[[Tensor], Tensor]) -> None:
        """Leave what the replicas have counted to the first: `leave` gives it the sum, and the others nothing.

        What is counted while the replicas talk is kept here.
        """
        with self._lock:
            sent, self._sent = self._sent, {}
        table = leave(self._table(sent))
        with self._lock:
            for source, destination, kind in table[..., 1].nonzero().tolist():
                self._add(source, destination, KINDS[kind], *table[source, destination, kind].tolist())

    def as_tensor(self) -> Tensor:
        """int64 `[J, J, kinds, 2]` (source, destination, kind, bytes and messages), to be summed over processes."""
        with self._lock:
            sent = self._sent.copy()
        return self._table(sent)

    def _table(self, sent: Sent) -> Tensor:
        table = torch.zeros(self.blocks, self.blocks, len(KINDS), 2, dtype=torch.int64)
        for (source, destination, kind), counted in sent.items():
            table[source, destination, KINDS.index(kind)] = torch.tensor(counted)
        return table


def report(table: Tensor) -> dict[str, dict[str, dict[str, int]]]:
    """`{"0->1": {"activations": {"bytes": ..., "messages": ...}, ...}, ...}`, links and kinds without traffic left out."""
    links: dict[str, dict[str, dict[str, int]]] = {}
    for source, destination, kind in table[..., 1].nonzero().tolist():
        size, messages = table[source, destination, kind].tolist()
        links.setdefault(f"{source}->{destination}", {})[KINDS[kind]] = {"bytes": size, "messages": messages}
    return links


RETURNED = ("feedback", "gradients")
"""Kinds that come back for a batch."""


def bytes_back(table: Tensor, batches: int, kinds: Sequence[str] = RETURNED) -> list[float]:
    """Bytes of these kinds that came back to each block for one batch; what stays in a process is none."""
    downwards = torch.ones(len(table), len(table)).tril(-1).bool()
    sizes = table[:, :, [KINDS.index(kind) for kind in kinds], 0].sum(dim=2).where(downwards, 0)
    return [size / batches for size in sizes.sum(dim=0).tolist()]
