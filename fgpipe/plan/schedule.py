"""The order of things: windows to actions. Pure; no clock, no sockets, no tensors.

Before block j forwards batch b it has applied the feedback of batch b - W_j and of every earlier one (`in_order`:
of no later one either, so the sequence of updates depends on the windows alone). Four blocks, global target,
`window=auto` (W = 4 3 2 1; f = forward, a = apply; block 3 learns within its forward pass):

    block 0   f0 f1 f2 f3 a0 f4 a1 f5 a2 ...
    block 1      f0 f1 f2 a0 f3 a1 f4 a2 ...
    block 2         f0 f1 a0 f2 a1 f3 a2 ...
    block 3            f0    f1    f2    ...
"""

import math
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from fgpipe.gradients.method import Method


@dataclass(frozen=True)
class Forward:
    """Take the batch from below and run it, tangents and all."""

    batch: int


@dataclass(frozen=True)
class Apply:
    """Take the batch's scalars, or its gradient, from above and update."""

    batch: int


Action = Forward | Apply


def windows(method: Method, window: int | str | Sequence[int]) -> tuple[int, ...]:
    """The window of each block: `window`, its own if that is a list, or for `auto` the smallest that keeps all busy.

    A batch's scalars reach block j after the forward passes of the blocks up to its target, hence
    `target(j) - j + 1`, which is J - j for a global target. A block that waits for no scalars has window 1; its twin, if it
    has one, waits in their place for the weights of the blocks that it copies, which reach it as late. In asynchronous
    backpropagation gradients take the place of scalars, and J - j is 1F1B's: a batch's gradient comes back after the
    forward and backward passes of the blocks above, in which block j makes those of J - 1 - j others. Gradients come from
    the next block, so windows must fall from block to block: with equal ones in different processes, each waits for the
    batch that the other one's update lets go.
    """
    ends = [method.last if method.returns_gradients else method.target(j) for j in range(method.blocks)]
    ends = [max([end, *method.sources(j)]) for j, end in enumerate(ends)]
    if window == "auto":
        asked = [end - j + 1 for j, end in enumerate(ends)]
    else:
        asked = [window] * method.blocks if isinstance(window, int) else [int(each) for each in window]
    return tuple(w if method.waits(j) or method.has_copies(j) else 1 for j, w in enumerate(asked))


def actions(batches: range, window: int, waits: bool, every: int = 1) -> Iterator[Action]:
    """Actions of a block on a run of batches, from an empty pipeline to a drained one.

    Args:
        waits: the block needs scalars from above; otherwise it learns within its forward pass.
        every: scalars come back with every so many-th batch (`Method.every`).
    """
    for batch in batches:
        if waits and batch - window in batches and (batch - window) % every == 0:
            yield Apply(batch - window)
        yield Forward(batch)
    if waits:
        for batch in batches[-window:]:
            if batch % every == 0:
                yield Apply(batch)


def kept(windows: Sequence[int], every: int) -> tuple[int, ...]:
    """How many batches the readings for each block are kept: those in flight, in whole steps from readings to readings."""
    return tuple(math.ceil(window / every) * every for window in windows)


def drain(pending: Iterable[Action], last: int) -> deque[Action]:
    """Rest of a block's actions if no batch follows `last`, which it has forwarded."""
    return deque(action for action in pending if isinstance(action, Apply) and action.batch <= last)


def turn(pending: Sequence[Action], block: int) -> tuple[float, int, int]:
    """Place of the first of a block's pending actions in an order of all actions of all blocks: the least first.

    Batch by batch, each from block 0 up; what a block applies before it forwards a batch comes with that batch. No
    action waits for one that comes later. So processes that keep to this order, and wait for each other at any actions
    of it, get to its end.
    """
    forwards = (action.batch for action in pending if isinstance(action, Forward))
    return next(forwards, math.inf), pending[0].batch, block


class Agenda:
    """Actions that the blocks of one process have still to do, each in its own order.

    Of several blocks that can go on the highest goes first, so that few batches wait between them.

    Args:
        blocks: the window of each block, and whether it waits for readings; lowest first.
        fixed: take actions in an order that no timing changes (`turn`), as replicas must: they wait for each other.
        every: readings come back with every so many-th batch.
    """

    def __init__(self, blocks: Mapping[int, tuple[int, bool]], fixed: bool, every: int = 1) -> None:
        self._blocks, self._fixed, self._every = blocks, fixed, every
        self._pending: dict[int, deque[Action]] = {block: deque() for block in blocks}

    def train(self, batches: range) -> None:
        """Train on these batches, from an empty pipeline to a drained one."""
        for block, (window, waits) in self._blocks.items():
            self._pending[block].extend(actions(batches, window, waits, self._every))

    def test(self, batches: int) -> None:
        """Test on so many batches."""
        for pending in self._pending.values():
            pending.extend(map(Forward, range(batches)))

    def first(self) -> list[tuple[int, Action]]:
        """The first action of each block that may come next, in the order of preference; empty at the end."""
        busy = [block for block in reversed(self._pending) if self._pending[block]]
        if self._fixed and busy:
            busy = [min(busy, key=lambda block: turn(self._pending[block], block))]
        return [(block, self._pending[block][0]) for block in busy]

    def done(self, block: int) -> None:
        """The block's first action has been done."""
        self._pending[block].popleft()

    def applied(self, block: int, batch: int) -> None:
        """The block has applied a batch's readings before its turn."""
        self._pending[block].remove(Apply(batch))

    def drain(self, block: int, last: int) -> None:
        """No batch follows `last`, which the block has forwarded."""
        self._pending[block] = drain(self._pending[block], last)
