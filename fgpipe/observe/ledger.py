"""Bytes per link, direction and kind, counted where they are handed to a socket."""

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

KINDS = ("activations", "tangents", "gradients", "feedback", "control", "averages")
"""`gradients` flow in backpropagation only; `control` is headers and labels; `averages` are what a block hands over to
be averaged over replicas, from itself to itself."""


class Ledger:
    """Bytes and messages that this process sent; batches within a process cross no socket and count nothing."""

    def __init__(self, blocks: int) -> None:
        self.blocks = blocks
        self._bytes: dict[tuple[int, int, str], int] = defaultdict(int)
        self._messages: dict[tuple[int, int, str], int] = defaultdict(int)

    def count(self, source: int, destination: int, kind: str, size: int) -> None:
        """Add one message of `size` bytes from a block to another."""
        self._bytes[source, destination, kind] += size
        self._messages[source, destination, kind] += 1

    def state(self, source: int) -> list[list[Any]]:
        """What one block has sent, as `[destination, kind, bytes, messages]`, for a checkpoint."""
        sent = ((destination, kind) for block, destination, kind in self._bytes if block == source)
        return [[*key, self._bytes[(source, *key)], self._messages[(source, *key)]] for key in sent]

    def restore(self, source: int, state: Iterable[list[Any]]) -> None:
        """Go on from what `state` gave."""
        for destination, kind, size, messages in state:
            self._bytes[source, destination, kind] = size
            self._messages[source, destination, kind] = messages

    def merge(self, leave: Callable[[Tensor], Tensor]) -> None:
        """Leave what the replicas have counted to the first: `leave` gives it the sum, and the others nothing."""
        table = leave(self.as_tensor())
        self._bytes.clear()
        self._messages.clear()
        for source, destination, kind in table[..., 1].nonzero().tolist():
            key = (source, destination, KINDS[kind])
            self._bytes[key], self._messages[key] = table[source, destination, kind].tolist()

    def as_tensor(self) -> Tensor:
        """int64 `[J, J, kinds, 2]` (source, destination, kind, bytes and messages), to be summed over processes."""
        table = torch.zeros(self.blocks, self.blocks, len(KINDS), 2, dtype=torch.int64)
        for (source, destination, kind), size in self._bytes.items():
            messages = self._messages[source, destination, kind]
            table[source, destination, KINDS.index(kind)] = torch.tensor([size, messages])
        return table


def report(table: Tensor) -> dict[str, dict[str, dict[str, int]]]:
    """`{"0->1": {"activations": {"bytes": ..., "messages": ...}, ...}, ...}`, links and kinds without traffic left out."""
    links: dict[str, dict[str, dict[str, int]]] = {}
    for source, destination, kind in table[..., 1].nonzero().tolist():
        size, messages = table[source, destination, kind].tolist()
        links.setdefault(f"{source}->{destination}", {})[KINDS[kind]] = {"bytes": size, "messages": messages}
    return links
