"""Sockets between members: zmq with CURVE, which connects again by itself whatever happened to the other end.

A `torch.distributed` group of two would have to be made anew for each generation, by both ends at once, and gloo is no
faster on batches of up to a megabyte (docs/reference/elastic.md).
"""

import threading
import time
from collections.abc import Callable

import zmq

from fgpipe.elastic.directory import Directory
from fgpipe.elastic.secret import RunSecret
from fgpipe.wire.feedback.keys import Keys
from fgpipe.wire.feedback.zmq import HANDSHAKE, SEAL
from fgpipe.wire.links.header import IN_FLIGHT

AHEAD = 64
"""Generations after the newest known one that a connection is accepted from: a new one may be here before the store says so."""
HEARTBEAT, TIMEOUT = 1000, 5000
"""Milliseconds between zmq's own signs of life, and without one until a connection counts as broken."""
CONNECT = 2.0
"""Seconds in which a process that has just come, and listens, is connected to."""
TOLD = 5.0
"""Seconds in which the store has told of a process that has sent something here."""
KNOCK = 0.02
"""Seconds between looks whether it has."""
FULL = 0.002
"""Seconds until a listener without room looks again."""
QUEUE = 1 << 18
"""Bytes that the kernel may hold on either side: what is in there is old."""
Mine = tuple[int, int]
"""Block and generation of this process."""


def _socket_of(context: "zmq.Context[zmq.Socket[bytes]]", kind: int, most: int, limit: int = 0) -> "zmq.Socket[bytes]":
    """A socket with every option set that by default waits for ever, drops silently or has no bound.

    Args:
        most: messages that may wait.
        limit: bytes of the largest frame that may come.
    """
    socket = context.socket(kind)
    for option, value in (
        (zmq.LINGER, 0), (zmq.SNDHWM, most), (zmq.RCVHWM, most), (zmq.IMMEDIATE, 1), (zmq.RECONNECT_IVL, 100),
        (zmq.MAXMSGSIZE, max(HANDSHAKE, SEAL + limit)), (zmq.HEARTBEAT_IVL, HEARTBEAT), (zmq.HEARTBEAT_TIMEOUT, TIMEOUT),
        (zmq.SNDBUF, QUEUE), (zmq.RCVBUF, QUEUE),
    ):  # fmt: skip
        socket.set(option, value)
    return socket


class Dialled:
    """A socket that is connected to whoever is in a block's place now.

    Args:
        block: the other end's.
        plane: `forward` or `feedback`.
        most: messages that may wait.
    """

    def __init__(
        self, mine: Mine, block: int, secret: RunSecret, directory: Directory, plane: str, most: int = IN_FLIGHT
    ) -> None:
        self._mine, self._block, self._secret, self._directory = mine, block, secret, directory
        self._plane, self._most = plane, most
        self._context = zmq.Context()
        self._generation = 0
        self._socket: zmq.Socket[bytes] | None = None

    def expect(self) -> None:
        """Wait until the store has told who is in the block's place, for `TOLD` seconds at most."""
        give_up = time.monotonic() + TOLD
        while self._directory.of(self._block) is None and time.monotonic() < give_up:
            time.sleep(KNOCK)

    def ready(self, seconds: float) -> "zmq.Socket[bytes] | None":
        """The socket, once it takes a message; None if it takes none in time.

        Args: seconds: to wait, and `CONNECT` at least for one that was just dialled.
        """
        there = self._directory.of(self._block)
        if there is not None and there.generation != self._generation:
            if self._socket is not None:
                self._socket.close()
            server, _ = self._secret.pair(self._block, there.generation)
            self._socket, self._generation = _socket_of(self._context, zmq.PUSH, self._most), there.generation
            Keys(*self._secret.pair(*self._mine), {server: self._block}).dial(self._socket, self._block)
            self._socket.connect(getattr(there, self._plane))
            seconds = max(seconds, CONNECT)
        takes = self._socket is not None and self._socket.poll(int(1000 * seconds), zmq.POLLOUT)
        return self._socket if takes else None

    def close(self) -> None:
        """Free the socket; what has not left is lost."""
        self._context.destroy()


class Listener:
    """A socket that takes messages from one other block, in a thread, and tells its generations apart.

    Args:
        other: the block that may send.
        address: of this host, to listen on, at a port of the system's choice.
        limit: bytes of the largest frame.
        most: messages that may wait.
    """

    def __init__(
        self, mine: Mine, other: int, secret: RunSecret, address: str, limit: int, most: int = IN_FLIGHT
    ) -> None:
        self._other, self._secret = other, secret
        self._keys = Keys(*secret.pair(*mine), {})
        self._context = zmq.Context()
        self._authenticator = self._keys.admit(self._context)
        self._socket = _socket_of(self._context, zmq.PULL, most, limit)
        self._keys.listen(self._socket)
        self.address = f"tcp://{address}:{self._socket.bind_to_random_port(f'tcp://{address}')}"
        self._generation = -1
        self.admit(0)
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None

    def start(
        self,
        take: Callable[[list[zmq.Frame]], None],
        known: Callable[[], int],
        fail: Callable[[Exception], None],
        room: Callable[[], bool] = lambda: True,
    ) -> None:
        """Begin to receive.

        Args:
            take: called with the frames of each message, in the thread.
            known: the newest generation of the other block that the store has.
            fail: told the error that ended the thread.
            room: whether a message may be taken now.
        """

        def run() -> None:
            try:
                while not self.closes():
                    self.admit(known())
                    if not room():
                        time.sleep(FULL)
                    elif frames := self.receive(100):
                        take(frames)
            except Exception as error:  # noqa: BLE001 - of a thread, to be raised in the main one
                fail(error)

        self._thread = threading.Thread(target=run, daemon=True, name=f"listener-{self._other}")
        self._thread.start()

    def closes(self) -> bool:
        """Whether `close` was called."""
        return self._closing.is_set()

    def admit(self, generation: int) -> None:
        """The other block is of this generation now; those before it were accepted once, and may be connected still."""
        if generation > self._generation:
            self._generation = generation
            later = range(generation, generation + AHEAD)
            self._keys.ranks.update({self._secret.pair(self._other, each)[0]: self._other for each in later})

    def receive(self, milliseconds: int) -> list[zmq.Frame]:
        """The frames of a message; none if there is none in time."""
        return self._socket.recv_multipart(copy=False) if self._socket.poll(milliseconds) else []

    def accepts(self, frame: zmq.Frame, block: int, generation: int) -> bool:
        """Whether a message comes from the newest generation of the other block, as it says.

        Args: frame: one of its frames, which knows the key of the connection.
        """
        user = str(frame.get("User-Id")).encode()
        if block != self._other or generation < self._generation or user != self._secret.pair(block, generation)[0]:
            return False
        self.admit(generation)
        return True

    def close(self) -> None:
        """Stop to receive."""
        self._closing.set()
        if self._thread is not None:
            self._thread.join()
        self._socket.close()
        self._authenticator.stop()
        self._context.term()
