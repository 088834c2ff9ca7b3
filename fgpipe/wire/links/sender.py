"""The sending end of a link between two processes: upwards of batches, downwards of gradients."""

import time
from collections import deque
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from fgpipe.errors import LinkError, first_line
from fgpipe.observe.ledger import Ledger
from fgpipe.plan import int8
from fgpipe.wire.batch import Batch
from fgpipe.wire.links.header import IN_FLIGHT, TAG, Layout, header_of, wire
from fgpipe.wire.slow import Delay
from fgpipe.wire.streams import Streams


class Sender:
    """Sends to the process of the block above. At most two batches wait here; then `send` blocks.

    With `gradients` it sends to the process of the block below, and `send` never blocks: two processes that wait for
    each other to take something would wait for ever. No more gradients can wait than the window of the block below.
    """

    def __init__(
        self,
        block: int,
        peer: int,
        layout: Layout,
        ledger: Ledger,
        streams: Streams,
        delay: Delay | None = None,
        *,
        gradients: bool = False,
    ) -> None:
        """
        Args:
            peer: rank of the process of block `block + 1`; of `block - 1` with gradients.
            layout: of what it sends.
            streams: of this process.
            delay: makes the link slower than it is; and sends in a thread, which waits for copies from a GPU. Gradients need
                one, of no time if the link is fast.
        """
        self._block, self._peer, self._layout = block, peer, layout
        self._ledger, self._streams, self._delay = ledger, streams, delay
        self._to, self._kind = (block - 1, "gradients") if gradients else (block + 1, "activations")
        self._room, self._plane = (None if gradients else IN_FLIGHT), ("gradient" if gradients else "forward")
        self._pending: deque[_Sending] = deque()

    def send(self, batch: Batch) -> None:
        """Hand a batch over, which must not be changed afterwards; waits until the block above has room.

        Raises:
            LinkError: the process above is gone, or takes nothing.
        """
        x = wire(batch.x)
        stacked = torch.cat([x, wire(batch.tangent.value)]) if batch.tangent else x.contiguous()
        lanes = len(batch.tangent.lanes) if batch.tangent else 0
        if self._layout.packed and stacked.numel():
            stacked = int8.pack(stacked, lanes + 1)
        there = stacked.device.type == self._layout.device.type
        payload, copied = (stacked, None) if there else self._streams.to_host(stacked)
        header = header_of(batch, self._layout.labels)
        messages = [header, payload] if payload.numel() else [header]
        if self._delay is None:
            self._post(batch.name, messages, copied)
        else:
            size = sum(message.nbytes for message in messages)
            self._delay.put(size, partial(self._post, batch.name, messages, copied), room=self._room)
        one = payload.nbytes // (lanes + 1)
        count = self._ledger.count
        count(self._block, self._to, self._kind, one)
        if lanes:
            count(self._block, self._to, "tangents", lanes * one)
        count(self._block, self._to, "control", header.nbytes)

    def _post(self, name: str, messages: list[Tensor], copied: Any) -> None:
        """Args: copied: event of the payload's copy from a GPU."""
        if copied is not None:
            copied.synchronize()
        if len(self._pending) == IN_FLIGHT:
            self._wait_for_oldest()
        sending = _Sending(name, time.monotonic(), messages, [])
        try:
            sending.works.extend(dist.isend(message, self._peer, tag=TAG) for message in messages)
        except RuntimeError as error:
            raise self._lost(sending, error) from error
        self._pending.append(sending)

    def _wait_for_oldest(self) -> None:
        sending = self._pending.popleft()
        try:
            for work in filter(None, sending.works):
                work.wait()
        except RuntimeError as error:
            raise self._lost(sending, error) from error

    def _lost(self, sending: "_Sending", error: Exception) -> LinkError:
        way = f"{sending.name} was on its way to it for {time.monotonic() - sending.began:.1f} s"
        what = f"lost block {self._to} (rank {self._peer}) on the {self._plane} plane; {way}: {first_line(error)}"
        return LinkError(what, self._peer)

    def close(self) -> None:
        """Wait until everything that was sent has left."""
        if self._delay is not None:
            self._delay.close()
        while self._pending:
            self._wait_for_oldest()


class _Sending(NamedTuple):
    """A batch that may not have arrived yet."""

    name: str
    began: float
    """`time.monotonic`."""
    messages: list[Tensor]
    """They must live as long."""
    works: list[dist.Work | None]
