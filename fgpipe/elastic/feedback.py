"""The feedback plane between members: readings from whoever evaluates a target to the block that asked.

Messages are those of `wire.feedback`, where `run` is the generation of the sender. What is lost is not sent again: the
block that asked makes no update of that batch.
"""

import threading
from collections import deque
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace

import zmq

from fgpipe.elastic.secret import RunSecret
from fgpipe.elastic.sockets import Dialled, Listener, Mine
from fgpipe.elastic.tally import Tally
from fgpipe.errors import FeedbackError
from fgpipe.observe.ledger import Ledger
from fgpipe.wire.feedback.mailbox import Due
from fgpipe.wire.feedback.messages import (
    MAX_NUMBERS,
    MAX_PROBES,
    PER_MESSAGE,
    PER_NUMBER,
    PER_PROBE,
    Feedback,
    decode,
    encode,
)

WAITING = 256
"""Messages that may wait on either side; windows keep the true number far below."""
LARGEST = PER_MESSAGE + PER_PROBE * MAX_PROBES + PER_NUMBER * MAX_NUMBERS
"""Bytes of a message, before the plan says how many there are."""


class FeedbackIn:
    """Readings for one block, in a thread.

    Args:
        target: the block that sends them.
        address: of this host, to listen on.
    """

    def __init__(self, mine: Mine, target: int, secret: RunSecret, address: str) -> None:
        self._listener = Listener(mine, target, secret, address, LARGEST, WAITING)
        self.address = self._listener.address
        self._arrived, self._changed = deque[Feedback](), threading.Condition()

    def start(self, due: Due, tally: Tally, known: Callable[[], int], fail: Callable[[Exception], None]) -> None:
        """Begin to receive; `known` and `fail` as for `Listener.start`.

        Args: due: what all messages are like, but for the generation of their sender.
        """

        def take(frames: list[zmq.Frame]) -> None:
            message = decode(frames[0].bytes)
            if not self._listener.accepts(frames[0], message.sender, message.run):
                tally.add("late")
                return
            if not isinstance(message, Feedback):
                raise FeedbackError(f"block {message.sender} sent a message that asks for, or loses, readings")
            replace(due, run=message.run).check(message)
            with self._changed:
                self._arrived.append(message)
                self._changed.notify()

        self._listener.start(take, known, fail)

    def take(self, seconds: float) -> Feedback | None:
        """The oldest readings that have arrived; None if none come in time."""
        with self._changed:
            return self._arrived.popleft() if self._changed.wait_for(lambda: self._arrived, seconds) else None

    def close(self) -> None:
        """Stop to receive."""
        self._listener.close()


class FeedbackOut:
    """Readings to the blocks that ask here.

    Args: dial: the connection to a block.
    """

    def __init__(self, dial: Callable[[int], Dialled], ledger: Ledger) -> None:
        self._dial, self._ledger = dial, ledger
        self._dialled: dict[int, Dialled] = {}
        self._closing = ExitStack()

    def send(self, feedback: Feedback) -> None:
        """Send readings, if the block that asked is there."""
        block = feedback.receiver
        if block not in self._dialled:
            self._dialled[block] = self._dial(block)
            self._closing.callback(self._dialled[block].close)
            self._dialled[block].expect()  # a batch of the block may be here before the store has told of the block
        data = encode(feedback)
        if (socket := self._dialled[block].ready(0)) is not None:
            try:
                socket.send(data, zmq.DONTWAIT)
            except zmq.Again:  # its process has gone since
                return
            self._ledger.count(feedback.sender, block, "feedback", len(data))

    def close(self) -> None:
        """Leave; what has not left is lost."""
        self._closing.close()
