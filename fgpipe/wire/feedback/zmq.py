"""The feedback plane between processes: one PULL socket per process, a PUSH to each process that it writes to.

Every connection is encrypted and authenticated (CURVE, `keys.py`), on one host too. zmq's defaults would wait forever
on closing, drop or queue without bound, and take messages of any size; all are set here. Ports are the system's choice
and go through the rendezvous store.
"""

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Protocol

import torch.distributed as dist
import zmq

from fgpipe.errors import FeedbackError
from fgpipe.observe.ledger import Ledger
from fgpipe.observe.metrics import Metrics
from fgpipe.plan.topology import Topology
from fgpipe.wire.feedback.keys import Keys
from fgpipe.wire.feedback.messages import (
    PER_MESSAGE,
    PER_NUMBER,
    PER_PROBE,
    Feedback,
    Lost,
    Message,
    Request,
    Weights,
    decode,
    encode,
)
from fgpipe.wire.slow import Delay, SlowLinks

HIGH_WATER_MARK = 4096
"""Messages that may wait on either side; windows keep the true number far below."""

SEAL, HANDSHAKE = 33, 512
"""Bytes that CURVE adds to a message, and more than any frame of its handshake has; zmq's limit is for all frames."""


@dataclass(frozen=True)
class Terms:
    """Agreed between the feedback planes of a run."""

    address: str
    """This host's, to listen on."""
    deadline: float
    """Seconds that a send may wait for room, and that closing waits for the last messages."""
    largest: tuple[int, int]
    """Probes and numbers of the largest message that may arrive."""
    kept: Sequence[int]
    """For each block, how many batches a message to it is kept, to be sent again; a multiple of those between two messages."""
    links: SlowLinks
    """To the other processes."""
    weights: int = 0
    """Bytes of the weights of the largest message that may arrive."""


class Recipient(Protocol):
    """Takes what arrives for the blocks of a process, in the receiving thread."""

    def deliver_feedback(self, feedback: Feedback | Lost) -> Request | None:
        """Take a message; returns what to ask for in consequence."""

    def deliver_weights(self, weights: Weights) -> None:
        """Take weights for a twin."""

    def fail(self, error: Exception) -> None:
        """Take the error that ended the thread."""


class ZmqFeedback:
    """Messages to and from the other processes."""

    def __init__(
        self,
        topology: Topology,
        store: dist.Store,
        recipient: Recipient,
        ledger: Ledger,
        metrics: Metrics,
        terms: Terms,
    ) -> None:
        """Wait for the keys of all processes; collective.

        Args: metrics: counts requests.

        Raises:
            FeedbackError: a process does not show its key within the deadline.
        """
        self._topology, self._store, self._ledger, self._metrics = topology, store, ledger, metrics
        self._recipient, self._kept = recipient, terms.kept
        self._milliseconds = int(1000 * terms.deadline)
        probes, numbers = terms.largest
        of_readings = PER_PROBE * probes + PER_NUMBER * numbers
        self._limit = max(HANDSHAKE, SEAL + PER_MESSAGE + max(of_readings, terms.weights))
        self.keys = Keys.exchange(store, topology.rank, topology.pipeline, terms.deadline)
        """Who this process is to the others, and they to it."""
        self._context = zmq.Context()
        self._authenticator = self.keys.admit(self._context)
        self._sending = threading.RLock()
        """Guards what follows; the main thread and the receiving one send."""
        self._pushes: dict[int, zmq.Socket[bytes]] = {}
        self._delays: dict[int, Delay | None] = {
            rank: terms.links.delay(topology.position, position, recipient.fail)
            for position, rank in enumerate(topology.pipeline)
            if rank != topology.rank
        }
        self._latest: dict[int, int] = {}
        self._sent: dict[tuple[int, int], Feedback] = {}
        self._pull = self._socket(zmq.PULL)
        self.keys.listen(self._pull)
        port = self._pull.bind_to_random_port(f"tcp://{terms.address}")
        store.set(f"feedback/{topology.rank}", f"tcp://{terms.address}:{port}")
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._receive, daemon=True, name="feedback")
        self._thread.start()

    def _socket(self, kind: int) -> "zmq.Socket[bytes]":
        socket = self._context.socket(kind)
        socket.set(zmq.LINGER, self._milliseconds)
        socket.set(zmq.SNDHWM, HIGH_WATER_MARK)
        socket.set(zmq.RCVHWM, HIGH_WATER_MARK)
        socket.set(zmq.MAXMSGSIZE, self._limit)
        socket.set(zmq.SNDTIMEO, self._milliseconds)
        socket.set(zmq.HEARTBEAT_IVL, self._milliseconds // 4)
        socket.set(zmq.HEARTBEAT_TIMEOUT, self._milliseconds)
        return socket

    def send(self, feedback: Feedback) -> None:
        """Hand readings over to the process of the block that asked; does not wait for it.

        Raises:
            FeedbackError: its process takes no messages.
        """
        block, batch = feedback.receiver, feedback.batch
        with self._sending:
            self._latest[block] = batch
            self._sent[block, batch] = feedback
            self._sent.pop((block, batch - self._kept[block]), None)
            self._post(feedback)

    def send_weights(self, weights: Weights) -> None:
        """Hand weights over to the process of a twin; does not wait for it. They are sent once.

        Raises:
            FeedbackError: its process takes no messages.
        """
        with self._sending:
            self._post(weights)

    def ask(self, request: Request) -> None:
        """Ask for readings that should be here. They come again if their target has been evaluated; else later, once."""
        with self._sending:
            self._metrics.count(request.sender, "asked")
            self._post(request)

    def _answer(self, request: Request) -> None:
        """Send the readings again, or that they are gone; nothing if they are yet to come."""
        block, batch = request.sender, request.batch
        with self._sending:
            if batch <= self._latest.get(block, -1):
                gone = Lost(request.run, batch, request.receiver, block)
                self._post(self._sent.get((block, batch), gone))

    def _post(self, message: Message) -> None:
        rank, data = self._topology.rank_of(message.receiver), encode(message)
        transmit = partial(self._transmit_in_time, rank, data, message)
        if (delay := self._delays[rank]) is not None:
            delay.put(len(data), transmit)
        else:
            transmit()
        kind = {Feedback: "feedback", Weights: "weights"}.get(type(message), "control")
        self._ledger.count(message.sender, message.receiver, kind, len(data))

    def _transmit_in_time(self, rank: int, data: bytes, message: Message) -> None:
        try:
            self.transmit(rank, data)
        except zmq.Again as error:
            what = f"block {message.receiver} (rank {rank}) takes no feedback; batch {message.batch}"
            raise FeedbackError(what) from error

    def transmit(self, rank: int, data: bytes) -> None:
        """Give an encoded message to the socket of a process, from any thread.

        Raises:
            zmq.Again: there was no room within the deadline.
        """
        with self._sending:
            if rank not in self._pushes:
                self._pushes[rank] = self._connect(rank)
            self._pushes[rank].send(data)

    def _connect(self, rank: int) -> "zmq.Socket[bytes]":
        name = f"feedback/{rank}"
        try:
            self._store.wait([name], timedelta(milliseconds=self._milliseconds))
        except dist.DistStoreError as error:
            raise FeedbackError(f"rank {rank} does not listen for feedback") from error
        socket = self._socket(zmq.PUSH)
        self.keys.dial(socket, rank)
        socket.connect(self._store.get(name).decode())
        return socket

    def _receive(self) -> None:
        try:
            while not self._closing.is_set():
                if self._pull.poll(100):
                    frame = self._pull.recv(copy=False)
                    self._handle(decode(frame.bytes), self.keys.ranks[str(frame.get("User-Id")).encode()])
        except Exception as error:  # noqa: BLE001 - of a thread, to be raised in the main one
            self._recipient.fail(error)

    def _handle(self, message: Message, rank: int) -> None:
        if message.sender not in self._topology.of(rank):
            raise FeedbackError(f"rank {rank} sent a message in the name of block {message.sender}, not its own")
        if message.receiver not in self._topology.local:
            raise FeedbackError(f"block {message.sender} sent a message to block {message.receiver}, which is not here")
        if isinstance(message, Request):
            self._answer(message)
        elif isinstance(message, Weights):
            self._recipient.deliver_weights(message)
        elif (missing := self._recipient.deliver_feedback(message)) is not None:
            self.ask(missing)

    def close(self) -> None:
        """Wait until everything that was sent has left, and free the sockets."""
        self._closing.set()
        self._thread.join()
        for delay in self._delays.values():
            if delay is not None:
                delay.close()
        for socket in (self._pull, *self._pushes.values()):
            socket.close()
        self._authenticator.stop()
        self._context.term()
