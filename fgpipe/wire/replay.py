"""Replay buffers (`replay.*`): a block with a local target need not wait for a slow one below, nor one above for it.

As in asynchronous decoupled greedy learning (Belilovsky et al. 2021): the input of the first block of a process is a
bounded buffer, and the block may train on what is in it more than once. An epoch is a fixed number of steps of every
block, and each sends one batch up. A step is made on a batch that was not used. While there is none and others will
come, the block makes extra steps on used ones, and the blocks above it in its process with it; they update these blocks
and are none of the epoch's steps. What arrives at a full buffer pushes another out, so that fewer batches than steps may
be left: when nothing will come any more, the last steps are made on used ones.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from fgpipe.config import ReplayConfig
from fgpipe.config.rng import generator
from fgpipe.observe.metrics import Metrics
from fgpipe.wire.batch import Batch


@dataclass(eq=False)
class Entry:
    """A batch in the buffer."""

    batch: Batch
    uses: int = 0
    """Steps that were made on it, extra ones included."""


def copied(batch: Batch) -> Batch:
    """The batch with an activation of its own: the receiver will use the buffer that it came in again."""
    return replace(batch, x=batch.x.clone()) if batch.training else batch


class Replay:
    """The input of one block, to be used as the queue that it is without a buffer; not safe for threads by itself.

    Test batches pass in order, and the buffer is no place for them.
    """

    def __init__(
        self, block: int, config: ReplayConfig, seed: int, metrics: Metrics, taken: Callable[[], None]
    ) -> None:
        """Args:
        config: with a size.
        metrics: counts what is trained on again, and what never is.
        taken: tells the receiver that there is room for another batch.
        """
        assert config.size is not None
        self._block, self._config, self._seed, self._metrics, self._taken = block, config, seed, metrics, taken
        self._size = config.size
        self._entries: list[Entry] = []
        """Batches in the order of their ids."""
        self._tests: deque[Batch] = deque()
        self._steps, self._left = range(0), 0
        """Steps of the epoch under way, and how many are left."""
        self._newest, self._extra = -1, 0
        """The last batch that came, and the extra steps so far."""

    def begin(self, steps: range) -> None:
        """Prepare for as many steps as there are batches in `steps`; their ids are these, whatever they are made on, and
        extra steps in between."""
        self._steps, self._left = steps, len(steps)

    def append(self, batch: Batch) -> None:
        """Take a batch that has arrived from below, the next one."""
        if not batch.training:
            self._tests.append(batch)
            return
        self._taken()
        self._newest = batch.id
        self._entries.append(Entry(batch))
        if len(self._entries) > self._size:
            self._push_one_out()

    def _push_one_out(self) -> None:
        """Remove, of the batches with the most uses, the one whose turn would be last."""
        most = max(entry.uses for entry in self._entries)
        worn = [entry for entry in self._entries if entry.uses == most]
        at = {"newest": 0, "oldest": -1}.get(self._config.take)
        self._entries.remove(worn[self._draw("replay_drop", self._newest, len(worn)) if at is None else at])
        if not most:
            self._metrics.count(self._block, "unseen")

    def __len__(self) -> int:
        """Batches that may be taken now: to train on while there are steps left, else test batches."""
        return len(self._usable()) if self._left else len(self._tests)

    def _usable(self) -> list[Entry]:
        """Those used least; none, if that is up to the limit and others will come."""
        least = min((entry.uses for entry in self._entries), default=0)
        if least >= self._config.reuse and self._more_will_come():
            return []
        return [entry for entry in self._entries if entry.uses == least]

    def _more_will_come(self) -> bool:
        """Tell whether others come in this epoch."""
        return self._newest < self._steps.stop - 1

    def popleft(self) -> Batch:
        """The batch for the next step of the epoch, or for an extra step before it; or the next test batch."""
        if not self._left:
            self._taken()
            return self._tests.popleft()
        usable, step = self._usable(), self._steps.stop - self._left
        uses = usable[0].uses
        if uses and self._more_will_come():
            self._extra += 1
            self._metrics.count(self._block, "extra")
            return self._use(usable, step, self._extra)
        for what, happened in (("reused", uses > 0), ("past_limit", uses >= self._config.reuse)):
            if happened:
                self._metrics.count(self._block, what)
        batch = self._use(usable, step)
        self._left -= 1
        if not self._left:
            self._entries.clear()  # all have come, and were used
        return batch

    def _use(self, usable: list[Entry], step: int, extra: int = 0) -> Batch:
        """One of these, for a step or for an extra one before it."""
        at = {"newest": -1, "oldest": 0}.get(self._config.take)
        chosen = usable[self._draw("replay_take", -extra or step, len(usable)) if at is None else at]
        chosen.uses += 1
        return replace(chosen.batch, id=step, extra=extra)

    def _draw(self, purpose: str, counter: int, count: int) -> int:
        return int(torch.randint(count, (), generator=generator(self._seed, purpose, self._block, counter)))
