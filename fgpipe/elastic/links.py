"""The forward plane between members: zmq with CURVE, which connects again by itself whatever happened to the other end.

A `torch.distributed` group of two would have to be made anew for each generation, by both ends at once, and gloo is no
faster on batches of up to a megabyte (docs/elastic.md). One message is one batch, in two frames:

    frame 1   int64: block, generation, sequence number of the sender, then the header and labels of `wire.links.header`
    frame 2   the activation, channels last, as bytes
"""

import threading
import time
from collections.abc import Callable
from typing import Any

import torch
import zmq
from torch import Tensor

from fgpipe.elastic.buffer import Buffer
from fgpipe.elastic.directory import Directory
from fgpipe.elastic.secret import RunSecret
from fgpipe.elastic.tally import Tally
from fgpipe.errors import LinkError
from fgpipe.observe.ledger import Ledger
from fgpipe.wire.batch import Batch
from fgpipe.wire.feedback.keys import Keys
from fgpipe.wire.feedback.zmq import HANDSHAKE, SEAL
from fgpipe.wire.links.header import FIELDS, IN_FLIGHT, TRAINING, Layout, header_of, unwire, wire

PREFIX = 3
"""Numbers before the header."""
AHEAD = 64
"""Generations after the newest known one that a connection is accepted from: a new one may be here before the store says so."""
HEARTBEAT, TIMEOUT = 1000, 5000
"""Milliseconds between zmq's own signs of life, and without one until a connection counts as broken."""
PATIENCE, STEPS = 0.5, 4
"""A sender waits for room for so many seconds, and for so many of its own steps if these take longer."""
QUEUE = 1 << 18
"""Bytes that the kernel may hold on either side: what is in there is old."""


def socket_of(context: "zmq.Context[zmq.Socket[bytes]]", kind: int, limit: int = 0) -> "zmq.Socket[bytes]":
    """A socket with every option set that by default waits for ever, drops silently or has no bound.

    Args: limit: bytes of the largest frame that may come.
    """
    socket = context.socket(kind)
    for option, value in (
        (zmq.LINGER, 0), (zmq.SNDHWM, IN_FLIGHT), (zmq.RCVHWM, IN_FLIGHT), (zmq.IMMEDIATE, 1), (zmq.RECONNECT_IVL, 100),
        (zmq.MAXMSGSIZE, max(HANDSHAKE, SEAL + limit)), (zmq.HEARTBEAT_IVL, HEARTBEAT), (zmq.HEARTBEAT_TIMEOUT, TIMEOUT),
        (zmq.SNDBUF, QUEUE), (zmq.RCVBUF, QUEUE),
    ):  # fmt: skip
        socket.set(option, value)
    return socket


class Dialled:
    """A socket that is connected to whoever is in a block's place now."""

    def __init__(self, mine: tuple[int, int], block: int, secret: RunSecret, directory: Directory) -> None:
        """Args:
        mine: block and generation of this process.
        block: the other end's.
        """
        self._mine, self._block, self._secret, self._directory = mine, block, secret, directory
        self._context = zmq.Context()
        self._generation = 0
        self._socket: zmq.Socket[bytes] | None = None

    def socket(self) -> "zmq.Socket[bytes] | None":
        """The socket; None if nobody was ever there."""
        there = self._directory.of(self._block)
        if there is not None and there.generation != self._generation:
            if self._socket is not None:
                self._socket.close()
            server, _ = self._secret.pair(self._block, there.generation)
            self._socket, self._generation = socket_of(self._context, zmq.PUSH), there.generation
            Keys(*self._secret.pair(*self._mine), {server: self._block}).dial(self._socket, self._block)
            self._socket.connect(there.address)
        return self._socket

    def close(self) -> None:
        """Free the socket; what has not left is lost."""
        self._context.destroy()


class Uplink:
    """Sends to whoever is in the place of the block above; drops, and counts, what nobody takes.

    A living neighbour is waited for while it has no room, but one that takes nothing for a while is not waited for again
    until it does.
    """

    def __init__(self, mine: tuple[int, int], dialled: Dialled, samples: int, tally: Tally, ledger: Ledger) -> None:
        """Args:
        mine: block and generation of this process.
        samples: of a training batch.
        """
        self._mine, self._dialled, self._samples, self._tally, self._ledger = mine, dialled, samples, tally, ledger
        self._takes = True

    def close(self) -> None:
        """Leave; what has not left is lost."""
        self._dialled.close()

    def send(self, batch: Batch, step: float) -> None:
        """Hand over a batch, which must not be changed afterwards.

        Args: step: seconds that a step of this block takes.
        """
        payload = wire(batch.x).contiguous()
        prefix = torch.tensor([*self._mine, self._tally["sent"]])
        header = torch.cat([prefix, header_of(batch, self._samples)])
        socket = self._dialled.socket()
        patience = max(PATIENCE, STEPS * step) if self._takes else 0.0
        self._takes = socket is not None and bool(socket.poll(int(1000 * patience), zmq.POLLOUT))
        if socket is None or not self._takes:
            self._tally.add("dropped")
            return
        socket.send_multipart([_bytes_of(header), _bytes_of(payload)], copy=False)
        self._tally.add("sent")
        block = self._mine[0]
        self._ledger.count(block, block + 1, "activations", payload.nbytes)
        self._ledger.count(block, block + 1, "control", header.nbytes)


def _bytes_of(tensor: Tensor) -> Any:
    return tensor.view(-1).view(torch.uint8).numpy()


class Downlink:
    """Receives from whoever is in the place of the block below, in a thread; refuses, and counts, older generations."""

    def __init__(self, mine: tuple[int, int], secret: RunSecret, address: str, layout: Layout) -> None:
        """Listen, at a port of the system's choice.

        Args:
            mine: block and generation of this process.
            address: of this host, to listen on.
            layout: of the batches that come.
        """
        self._block, self._secret, self._layout = mine[0], secret, layout
        self._keys = Keys(*secret.pair(*mine), {})
        self._context = zmq.Context()
        self._authenticator = self._keys.admit(self._context)
        limit = 8 * (PREFIX + FIELDS + layout.shape[0]) + layout.dtype.itemsize * torch.Size(layout.shape).numel()
        self._socket = socket_of(self._context, zmq.PULL, limit)
        self._keys.listen(self._socket)
        self.address = f"tcp://{address}:{self._socket.bind_to_random_port(f'tcp://{address}')}"
        self._generation, self._sequence = 0, 0
        self._admit(0)
        self._closing = threading.Event()

    def start(self, buffer: Buffer, tally: Tally, known: Callable[[], int], fail: Callable[[Exception], None]) -> None:
        """Begin to receive.

        Args:
            known: the newest generation of the block below that the store has.
            fail: told the error that ended the thread.
        """
        arguments = (buffer, tally, known, fail)
        self._thread = threading.Thread(target=self._run, args=arguments, daemon=True, name="downlink")
        self._thread.start()

    def _run(self, buffer: Buffer, tally: Tally, known: Callable[[], int], fail: Callable[[Exception], None]) -> None:
        try:
            while not self._closing.is_set():
                if known() > self._generation:
                    self._admit(known())
                if not buffer.has_room():
                    time.sleep(0.002)
                elif self._socket.poll(100):
                    head, *body = self._socket.recv_multipart(copy=False)
                    if (batch := self._read(head, body, tally)) is not None:
                        tally.add("received")
                        buffer.put(batch, self._closing.is_set)
        except Exception as error:  # noqa: BLE001 - of a thread, to be raised in the main one
            fail(error)

    def _admit(self, generation: int) -> None:
        """Accept the block below from this generation on; those before it were accepted once, and may still be connected."""
        self._generation = generation
        later = range(generation, generation + AHEAD)
        self._keys.ranks.update({self._secret.pair(self._block - 1, each)[0]: self._block - 1 for each in later})

    def _read(self, head: zmq.Frame, body: list[zmq.Frame], tally: Tally) -> Batch | None:
        """The batch in a message; None if it is refused, as not from the newest generation of the block below.

        Raises:
            LinkError: it is, and has no batch of ours in it.
        """
        below, layout = self._block - 1, self._layout
        numbers = torch.frombuffer(bytearray(head.buffer), dtype=torch.int64) if len(head.buffer) % 8 == 0 else None
        if numbers is None or len(numbers) != PREFIX + FIELDS + layout.shape[0] or len(body) != 1:
            raise LinkError(f"block {below} sent a message of another form")
        block, generation, sequence, *header = numbers[: PREFIX + FIELDS].tolist()
        user = str(head.get("User-Id")).encode()
        if block != below or generation < self._generation or user != self._secret.pair(block, generation)[0]:
            tally.add("refused")
            return None
        if generation > self._generation:
            self._admit(generation)
        tally.add("missed", max(0, sequence - self._sequence) if self._sequence else 0)
        self._sequence = sequence + 1
        name = f"block {below}"
        batch, epoch, flags, samples = layout.check(header, name, below)
        shape = wire(torch.empty(layout.trains_on, device="meta")).shape
        if not flags & TRAINING or len(body[0].buffer) != layout.dtype.itemsize * shape.numel():
            raise LinkError(f"{name} sent something else than a training batch")
        x = torch.frombuffer(bytearray(body[0].buffer), dtype=layout.dtype).view(shape)
        return Batch(batch, epoch, True, unwire(x), numbers[PREFIX + FIELDS :][:samples])

    def close(self) -> None:
        self._closing.set()
        if hasattr(self, "_thread"):
            self._thread.join()
        self._socket.close()
        self._authenticator.stop()
        self._context.term()
