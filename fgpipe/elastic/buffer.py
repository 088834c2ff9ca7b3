"""What a block trains on: batches that came from below, each once and in order; and again while none comes.

Unlike in `wire.replay`, no number of steps is fixed: a block that was away does not catch up. It trains on what comes,
under the number that the batch has in the stream.
"""

import threading
import time
from collections.abc import Callable
from dataclasses import replace

import torch

from fgpipe.config import ReplayConfig
from fgpipe.config.rng import generator
from fgpipe.wire.batch import Batch
from fgpipe.wire.replay import Entry


class Buffer:
    """At most `replay.size` batches; the receiving thread puts them in and the one that trains takes them.

    Args:
        block: that trains on them, for random draws.
        config: with a size.
    """

    def __init__(self, block: int, config: ReplayConfig, seed: int) -> None:
        assert config.size is not None
        self._block, self._size, self._reuse, self._which, self._seed = (
            block, config.size, config.reuse, config.take, seed,
        )  # fmt: skip
        self._entries: list[Entry] = []
        """In the order in which they came."""
        self._extra = 0
        self._changed = threading.Condition()
        self.came = time.monotonic()
        """When the newest came."""

    def has_room(self) -> bool:
        """Whether another batch may come: not all that are here are still to be trained on."""
        return self.unused < self._size

    @property
    def unused(self) -> int:
        """Batches that are here and were not trained on."""
        return sum(not entry.uses for entry in self._entries)

    def put(self, batch: Batch, closing: Callable[[], bool]) -> None:
        """Take a batch, once there is room; of a full buffer the oldest of the most used ones goes.

        Args: closing: nobody will take any more.
        """
        with self._changed:
            while not self._changed.wait_for(self.has_room, 0.1):
                if closing():
                    return
            if len(self._entries) == self._size:
                self._entries.remove(max(self._entries, key=lambda entry: entry.uses))
            self._entries.append(Entry(batch))
            self.came = time.monotonic()
            self._changed.notify_all()

    def take(self, patience: float) -> Batch | None:
        """The oldest batch that was not trained on; None if none comes within `patience` seconds."""
        with self._changed:
            if not self._changed.wait_for(lambda: self.unused, patience):
                return None
            entry = next(entry for entry in self._entries if not entry.uses)
            entry.uses = 1
            self._changed.notify_all()
            return entry.batch

    def again(self, position: int) -> Batch | None:
        """For an extra step before batch `position`: one that was used least; None if all were `replay.reuse` times."""
        with self._changed:
            least = min((entry.uses for entry in self._entries), default=self._reuse)
            if least >= self._reuse:
                return None
            usable = [entry for entry in self._entries if entry.uses == least]
            self._extra += 1
            at = {"newest": -1, "oldest": 0}.get(self._which)
            entry = usable[self._draw(len(usable)) if at is None else at]
            entry.uses += 1
            return replace(entry.batch, id=position, extra=self._extra, tangent=None)

    def _draw(self, count: int) -> int:
        source = generator(self._seed, "replay_take", self._block, -self._extra)
        return int(torch.randint(count, (), generator=source))
