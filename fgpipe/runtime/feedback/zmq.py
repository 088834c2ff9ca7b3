"""The feedback plane between processes: one PULL socket per process, a PUSH to each process that asks.

zmq's defaults would wait forever on closing, drop or queue without bound, and take messages of any size; all are
set here. Ports are the system's choice and go through the rendezvous store.
"""

import threading
from collections.abc import Callable

import torch.distributed as dist
import zmq

from fgpipe.observe.ledger import Ledger
from fgpipe.runtime.feedback.base import FeedbackPlane
from fgpipe.runtime.feedback.messages import PER_MESSAGE, PER_PROBE, PER_SCALAR, Feedback, FeedbackError, decode, encode
from fgpipe.runtime.topology import Topology

HIGH_WATER_MARK = 4096
"""Messages that may wait on either side; windows keep the true number far below."""


class ZmqFeedback(FeedbackPlane):
    """Messages to blocks of this process are delivered at once; the others go through sockets."""

    def __init__(
        self,
        topology: Topology,
        store: dist.Store,
        ledger: Ledger,
        *,
        interface: str,
        deadline: float,
        largest: tuple[int, int],
        deliver: Callable[[Feedback], None],
        fail: Callable[[Exception], None],
    ) -> None:
        """
        Args:
            interface: address of this host to listen on.
            deadline: seconds that a send may wait for room, and that closing waits for the last messages.
            largest: probes and scalars of the largest message that may arrive.
            deliver: called with each message for a block of this process, in the receiving thread.
            fail: called in the thread with the error that ended it.
        """
        self._topology, self._store, self._ledger = topology, store, ledger
        self._deliver, self._fail = deliver, fail
        self._milliseconds = int(1000 * deadline)
        self._limit = PER_MESSAGE + PER_PROBE * largest[0] + PER_SCALAR * largest[1]
        self._context = zmq.Context()
        self._pushes: dict[int, zmq.Socket[bytes]] = {}
        self._pull = self._socket(zmq.PULL)
        port = self._pull.bind_to_random_port(f"tcp://{interface}")
        store.set(f"feedback/{topology.rank}", f"tcp://{interface}:{port}")
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
        rank = self._topology.rank_of(feedback.receiver)
        if rank == self._topology.rank:
            self._deliver(feedback)
            return
        if rank not in self._pushes:
            self._pushes[rank] = self._socket(zmq.PUSH)
            self._pushes[rank].connect(self._store.get(f"feedback/{rank}").decode())
        data = encode(feedback)
        try:
            self._pushes[rank].send(data)
        except zmq.Again as error:
            raise FeedbackError(f"block {feedback.receiver} (rank {rank}) takes no feedback; batch {feedback.batch}") from error
        self._ledger.count(feedback.sender, feedback.receiver, "feedback", len(data))

    def _receive(self) -> None:
        try:
            while not self._closing.is_set():
                if self._pull.poll(100):
                    self._deliver(decode(self._pull.recv()))
        except Exception as error:
            self._fail(error)

    def close(self) -> None:
        self._closing.set()
        self._thread.join()
        for socket in (self._pull, *self._pushes.values()):
            socket.close()
        self._context.term()
