"""The forward plane between members. One message is one batch, in two frames:

frame 1   int64: block, generation, sequence number of the sender, then the header and labels of `wire.links.header`
frame 2   the activation and, where the blocks below follow their target, its lanes; channels last, as bytes
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
import zmq
from torch import Tensor

from fgpipe.elastic.buffer import Buffer
from fgpipe.elastic.secret import RunSecret
from fgpipe.elastic.sockets import Dialled, Listener, Mine
from fgpipe.elastic.tally import Tally
from fgpipe.errors import LinkError
from fgpipe.gradients.dual import Tangent
from fgpipe.observe.ledger import Ledger
from fgpipe.wire.batch import Batch
from fgpipe.wire.links.header import FIELDS, TRAINING, Layout, header_of, unwire, wire

PREFIX, LANES = 3, 4
"""Numbers before the header, and the place in it of the number of lanes."""
PATIENCE, STEPS = 0.5, 4
"""A sender waits for room for so many seconds, and for so many of its own steps if these take longer."""


class Uplink:
    """Sends to whoever is in the place of the block above; drops, and counts, what nobody takes.

    A living neighbour is waited for while it has no room, but one that takes nothing for a while is not waited for again
    until it does.

    Args: samples: of a training batch.
    """

    def __init__(self, mine: Mine, dialled: Dialled, samples: int, tally: Tally, ledger: Ledger) -> None:
        self._mine, self._dialled, self._samples, self._tally, self._ledger = mine, dialled, samples, tally, ledger
        self._takes = True

    def send(self, batch: Batch, step: float) -> None:
        """Hand over a batch, which must not be changed afterwards.

        Args: step: seconds that a step of this block takes.
        """
        x = wire(batch.x).contiguous()
        payload = torch.cat([x, wire(batch.tangent.value)]) if batch.tangent else x
        prefix = torch.tensor([*self._mine, self._tally["sent"]])
        header = torch.cat([prefix, header_of(batch, self._samples)])
        socket = self._dialled.ready(max(PATIENCE, STEPS * step) if self._takes else 0.0)
        try:
            if socket is not None:
                socket.send_multipart([_bytes_of(header), _bytes_of(payload)], zmq.DONTWAIT, copy=False)
        except zmq.Again:  # its process has gone since
            socket = None
        self._takes = socket is not None
        if socket is None:
            self._tally.add("dropped")
            return
        self._tally.add("sent")
        ends = self._mine[0], self._mine[0] + 1
        self._ledger.count(*ends, "activations", x.nbytes)
        self._ledger.count(*ends, "control", header.nbytes)
        if batch.tangent:
            self._ledger.count(*ends, "tangents", payload.nbytes - x.nbytes)

    def close(self) -> None:
        """Leave; what has not left is lost."""
        self._dialled.close()


def _bytes_of(tensor: Tensor) -> Any:
    return tensor.view(-1).view(torch.uint8).numpy()


class Downlink:
    """Receives from whoever is in the place of the block below, in a thread; refuses, and counts, older generations.

    Args:
        address: of this host, to listen on.
        layout: of the batches that come; those of blocks that follow their own losses have no lanes.
    """

    def __init__(self, mine: Mine, secret: RunSecret, address: str, layout: Layout) -> None:
        self._below, self._layouts = mine[0] - 1, {True: layout, False: replace(layout, lanes=())}
        numbers = (1 + len(layout.lanes)) * torch.Size(layout.shape).numel()
        limit = 8 * (PREFIX + FIELDS + layout.shape[0]) + layout.dtype.itemsize * numbers
        self._listener = Listener(mine, self._below, secret, address, limit)
        self.address = self._listener.address
        self._sequence, self._newest = 0, -1

    def start(self, buffer: Buffer, tally: Tally, known: Callable[[], int], fail: Callable[[Exception], None]) -> None:
        """Begin to receive; `known` and `fail` as for `Listener.start`."""

        def take(frames: list[zmq.Frame]) -> None:
            if (batch := self._read(frames, tally)) is not None:
                tally.add("received")
                buffer.put(batch, self._listener.closes)

        self._listener.start(take, known, fail, buffer.has_room)

    def _read(self, frames: list[zmq.Frame], tally: Tally) -> Batch | None:
        """The batch in a message; None if it is refused: not from the newest generation, or not after the newest batch.

        Raises:
            LinkError: it is, and has no batch of ours in it.
        """
        head, *body = frames
        samples, name = self._layouts[True].shape[0], f"block {self._below}"
        numbers = torch.frombuffer(bytearray(head.buffer), dtype=torch.int64) if len(head.buffer) % 8 == 0 else None
        if numbers is None or len(numbers) != PREFIX + FIELDS + samples or len(body) != 1:
            raise LinkError(f"{name} sent a message of another form")
        block, generation, sequence, *header = numbers[: PREFIX + FIELDS].tolist()
        if not self._listener.accepts(head, block, generation):
            tally.add("refused")
            return None
        tally.add("missed", max(0, sequence - self._sequence) if self._sequence else 0)
        self._sequence = sequence + 1
        layout = self._layouts[header[LANES] > 0]
        batch, epoch, flags, samples = layout.check(header, name, self._below)
        if batch <= self._newest:  # scalars go by the batch, and must not be taken for those of another one
            tally.add("refused")
            return None
        self._newest = batch
        shape = wire(torch.empty(((1 + len(layout.lanes)) * samples, *layout.shape[1:]), device="meta")).shape
        if not flags & TRAINING or len(body[0].buffer) != layout.dtype.itemsize * shape.numel():
            raise LinkError(f"{name} sent something else than a training batch")
        stacked = unwire(torch.frombuffer(bytearray(body[0].buffer), dtype=layout.dtype).view(shape))
        tangent = Tangent(layout.lanes, stacked[samples:]) if layout.lanes else None
        return Batch(batch, epoch, True, stacked[:samples], numbers[PREFIX + FIELDS :][:samples], tangent)

    def close(self) -> None:
        """Stop to receive."""
        self._listener.close()
