"""Events of a process, batch by batch (`trace=true`): kept in memory, merged at the end (`observe.trace`)."""

import time
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

COMPUTE = ("forward", "loss", "guess", "push", "read", "head", "update", "backward", "weights")
"""Stages of a training step, in order: the block; its head; the guess's backward pass; the lanes through the block; the
lanes through the head; the head's own step where the guess's backward pass does not make it; the update, with its
backward pass through the block alone where there is one. Backpropagation has `backward`, and `weights` where the
gradients of the weights are computed apart (`schedule=zero_bubble`)."""
RECEIVE, SCALARS = "receive", "scalars"
"""A batch arrives from another process, or a gradient, from its header on; scalars arrive."""
WAITS = ("wait for input", "wait for feedback")
KINDS = (*COMPUTE, "send", RECEIVE, "reply", SCALARS, *WAITS)
"""`send` hands a batch to the link, and `reply` scalars to the feedback plane or a gradient to its link."""
NOBODY = -1
LIMIT = 500_000
"""Events that a process keeps, of some 190 bytes each; the later ones are counted only."""


class Event(NamedTuple):
    """Something that a block did with a training batch."""

    kind: str
    """One of `KINDS`."""
    block: int
    batch: int
    other: int
    """The block at the other end (send, receive, reply, scalars, waits), the microbatch (backpropagation), or `NOBODY`."""
    began: int
    """Nanoseconds of the monotonic clock."""
    ended: int


class Timeline:
    """The events of one process, from any of its threads; test batches leave none. It costs nothing unless it is on."""

    def __init__(self, on: bool = False, limit: int = LIMIT) -> None:
        self.on, self._limit = on, limit
        self._events: list[tuple[str, int, int, int, int, int]] = []
        self.dropped = 0
        """Events past the limit."""

    def add(self, kind: str, block: int, batch: int, began: int, other: int = NOBODY) -> None:
        """Something that `began` then ends now; see `Event`. For a timeline that is on."""
        if len(self._events) < self._limit:
            self._events.append((kind, block, batch, other, began, time.monotonic_ns()))
        else:
            self.dropped += 1

    def as_tensor(self) -> Tensor:
        """int64 `[events, 6]`: the fields of `Event`, the kind by its index."""
        rows = [(KINDS.index(kind), *rest) for kind, *rest in self._events]
        return torch.tensor(rows, dtype=torch.int64).view(-1, len(Event._fields))


def events_of(table: Tensor) -> Sequence[Event]:
    """The inverse of `Timeline.as_tensor`."""
    return [Event(KINDS[kind], *rest) for kind, *rest in table.tolist()]
