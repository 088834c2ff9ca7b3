"""A link between two blocks of one process."""

from collections.abc import Callable
from dataclasses import replace

from fgpipe.gradients.dual import Tangent
from fgpipe.wire.links.base import Batch, Link, canonical


class MemoryLink(Link):
    """Hands batches to the block above; whoever schedules both keeps few of them waiting."""

    def __init__(self, deliver: Callable[[Batch], None]) -> None:
        self._deliver = deliver

    def send(self, batch: Batch) -> None:
        tangent = batch.tangent and Tangent(batch.tangent.lanes, canonical(batch.tangent.value))
        self._deliver(replace(batch, x=canonical(batch.x), tangent=tangent))

    def close(self) -> None:
        pass
