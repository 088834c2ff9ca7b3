"""The feedback plane between members, over real sockets: block 0 listens, and block 1 sends."""

from contextlib import ExitStack
from pathlib import Path
from threading import Timer

from fgpipe.elastic.directory import Directory
from fgpipe.elastic.feedback import FeedbackIn, FeedbackOut
from fgpipe.elastic.presence import Presence
from fgpipe.elastic.secret import RunSecret
from fgpipe.elastic.sockets import Dialled
from fgpipe.elastic.store import StoreClient
from fgpipe.elastic.tally import Tally
from fgpipe.observe.ledger import Ledger
from fgpipe.wire.feedback.mailbox import Due
from fgpipe.wire.feedback.messages import Feedback
from tests.elastic.conftest import Server

LATER = 0.7
"""Seconds after which the store knows the block that asked: longer than between two looks at the store."""


def test_readings_for_a_block_of_which_the_store_has_not_told_yet(
    server: Server, secret: RunSecret, tmp_path: Path
) -> None:
    """A block that begins last asks at once; the one that answers last looked at the store before."""
    store, asks, answers = StoreClient(server.address, secret), (0, 1), (1, 1)
    errors: list[Exception] = []
    with ExitStack() as closing:
        readings = FeedbackIn(asks, 1, secret, "127.0.0.1")
        closing.callback(readings.close)
        readings.start(Due(0, 1, 0, probes=1, numbers=1), Tally(tmp_path / "tally", {}), lambda: 1, errors.append)
        directory = Directory(StoreClient(server.address, secret), Presence.here(*answers, ""), [0])
        closing.callback(directory.close)
        out = FeedbackOut(lambda block: Dialled(answers, block, secret, directory, "feedback"), Ledger(2))
        closing.callback(out.close)
        here = Presence.here(*asks, "", readings.address)
        timer = Timer(LATER, lambda: store.set("member/0", here.value()))
        timer.start()
        closing.callback(timer.join)
        sent = Feedback(run=1, batch=0, sender=1, receiver=0, probes=(0,), numbers=(0.5,))
        out.send(sent)
        assert readings.take(5) == sent and not errors
