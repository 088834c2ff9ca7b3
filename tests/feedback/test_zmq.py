"""The feedback plane over real sockets: delivery, asking again, and who is let in."""

import threading
import time

import pytest
import torch.distributed as dist
import zmq
from zmq.utils.monitor import recv_monitor_message

from fgpipe.config import LinkConfig
from fgpipe.errors import FeedbackError
from fgpipe.observe.ledger import report
from fgpipe.wire.feedback.keys import Keys
from fgpipe.wire.feedback.messages import Lost, Request, encode
from tests.feedback.sockets import RUN, Rank, feedback, ranks, wait_for


def test_delivered_in_order() -> None:
    with ranks(2) as ((below, above), _):
        for batch in range(50):
            above.plane.send(feedback(batch))
        assert wait_for(lambda: len(below.arrived) == 50)
        assert below.arrived == [feedback(batch) for batch in range(50)]
        assert not below.errors and not above.errors
        sent = sum(len(encode(feedback(batch))) for batch in range(50))
        assert report(above.ledger.as_tensor()) == {"1->0": {"feedback": {"bytes": sent, "messages": 50}}}


def test_a_slow_link() -> None:
    """Both ways: half the round trip, and the bytes over the rate; in order, and the sender waits for neither."""
    size = len(encode(feedback(0)))
    rate = 8 * size / 0.02  # 20 ms for each message
    with ranks(2, link=LinkConfig(rate=f"{rate / 1000:.3f}kbit", rtt="400ms")) as ((below, above), _):
        for sender, receiver, block in ((above, below, 0), (below, above, 1)):
            cross(sender, receiver, block)
        assert not below.errors and not above.errors


def cross(sender: Rank, receiver: Rank, block: int) -> None:
    """Send five messages to `block` over the link of `test_a_slow_link`, and check their times and order."""
    began = time.monotonic()
    for batch in range(5):
        sender.plane.send(feedback(batch, receiver=block, sender=1 - block))
    assert len(receiver.arrived) < 4, "the sender waits for none of them to arrive"
    assert wait_for(lambda: len(receiver.arrived) == 5)
    assert time.monotonic() - began >= 0.2 + 5 * 0.0199
    assert [each.batch for each in receiver.arrived] == list(range(5))


def test_asked_again() -> None:
    """Kept readings come again as they were; older ones are reported gone; those yet to come are not answered."""
    with ranks(2, kept=2) as ((below, above), _):
        for batch in range(4):
            above.plane.send(feedback(batch))
        assert wait_for(lambda: len(below.arrived) == 4)
        for batch in (4, 3, 2, 1):  # the answer to 4 would be the first
            below.plane.ask(Request(RUN, batch, 0, 1))
        assert wait_for(lambda: len(below.arrived) == 7)
        assert below.arrived[4:] == [feedback(3), feedback(2), Lost(RUN, 1, 1, 0)]
        assert below.metrics.incidents()[:, 1].tolist() == [4, 0], "requests are counted"
        assert report(below.ledger.as_tensor())["0->1"]["control"]["messages"] == 4
        assert not below.errors and not above.errors


def test_a_gap_is_asked_for_at_once() -> None:
    """Result of `deliver` goes back as a request, from the receiving thread."""
    with ranks(2) as ((below, above), _):
        below.consequence = lambda message: Request(RUN, 0, 0, 1) if message == feedback(1) else None
        above.plane.send(feedback(0))
        above.plane.send(feedback(1))
        assert wait_for(lambda: len(below.arrived) == 3)
        assert below.arrived[2] == feedback(0)


@pytest.mark.parametrize("name", ["another block", "a block that is not there", "to a block elsewhere"])
def test_a_rank_speaks_for_its_own_blocks(name: str) -> None:
    """Rank 1 holds block 1 alone; a message in another's name ends the run with an error, and is not delivered."""
    forged, said = {
        "another block": (feedback(0, sender=2), "rank 1 sent a message in the name of block 2, not its own"),
        "a block that is not there": (feedback(0, sender=77), "rank 1 sent a message in the name of block 77"),
        "to a block elsewhere": (feedback(0, receiver=2), "to block 2, which is not here"),
    }[name]
    with ranks(3) as ((below, above, _), _):
        above.plane.transmit(0, encode(forged))
        assert wait_for(lambda: bool(below.errors))
        assert isinstance(below.errors[0], FeedbackError) and said in str(below.errors[0])
        assert not below.arrived


def stranger(context: zmq.Context, store: dist.Store, how: str) -> zmq.Socket:
    """A PUSH socket to rank 0 of somebody who can read the store."""
    socket = context.socket(zmq.PUSH)
    socket.linger = 0
    public, secret = zmq.curve_keypair()
    mine, others = store.get("key/0"), store.get("key/1")
    if how == "wrong key":  # a good server key, a pair of one's own
        socket.curve_serverkey, socket.curve_publickey, socket.curve_secretkey = mine, public, secret
    elif how == "stolen name":  # another's public key without its secret
        socket.curve_serverkey, socket.curve_publickey, socket.curve_secretkey = mine, others, secret
    elif how == "wrong server":
        socket.curve_serverkey, socket.curve_publickey, socket.curve_secretkey = public, public, secret
    elif how == "password":
        socket.plain_username, socket.plain_password = b"fgpipe", b"fgpipe"
    else:
        assert how == "no key"
    return socket


@pytest.mark.parametrize("how", ["wrong key", "stolen name", "wrong server", "password", "no key"])
def test_strangers_are_refused(how: str) -> None:
    """A perfect message from somebody without a key of the run never arrives; the run goes on."""
    with ranks(2) as ((below, above), store), zmq.Context() as context, stranger(context, store, how) as socket:
        monitor = socket.get_monitor_socket()
        failures = zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
        failures |= zmq.EVENT_HANDSHAKE_FAILED_AUTH | zmq.EVENT_DISCONNECTED
        socket.connect(store.get("feedback/0").decode())
        socket.send(encode(feedback(0, numbers=(6.66,))))
        seen = 0
        for _ in range(100):
            if monitor.poll(200):
                event = recv_monitor_message(monitor)["event"]
                assert event != zmq.EVENT_HANDSHAKE_SUCCEEDED
                seen |= event & failures
            if seen:
                break
        assert seen, "refused, not just slow"
        socket.disable_monitor()
        monitor.close()
        above.plane.send(feedback(0))
        assert wait_for(lambda: bool(below.arrived))
        assert not wait_for(lambda: len(below.arrived) > 1, 0.5)
        assert below.arrived == [feedback(0)] and not below.errors


def test_a_key_of_the_run_is_let_in() -> None:
    """The negative control: with rank 1's keys, the stranger's message does arrive."""
    with ranks(2) as ((below, above), store), zmq.Context() as context, context.socket(zmq.PUSH) as socket:
        socket.linger = 0
        above.plane.keys.dial(socket, 0)
        socket.connect(store.get("feedback/0").decode())
        socket.send(encode(feedback(0, numbers=(6.66,))))
        assert wait_for(lambda: below.arrived == [feedback(0, numbers=(6.66,))])


def test_recorded_bytes_cannot_be_replayed() -> None:
    """All that a peer sent over TCP, recorded by a relay and sent once more: nothing arrives a second time."""
    import socket as tcp

    with ranks(2) as ((below, above), store):
        address, port = store.get("feedback/0").decode().removeprefix("tcp://").split(":")
        recorded = bytearray()
        with tcp.create_server(("127.0.0.1", 0)) as relay:
            store.set("feedback/0", f"tcp://127.0.0.1:{relay.getsockname()[1]}")
            above.plane.send(feedback(0))
            client, _ = relay.accept()
            server = tcp.create_connection((address, int(port)))
            with client, server:
                back = threading.Thread(target=pump, args=(server, client, bytearray()), daemon=True)
                forth = threading.Thread(target=pump, args=(client, server, recorded), daemon=True)
                back.start()
                forth.start()
                assert wait_for(lambda: below.arrived == [feedback(0)]), "the relay works"
                store.set("feedback/0", f"tcp://{address}:{port}")
                for each in (client, server):
                    each.shutdown(tcp.SHUT_RDWR)
                back.join()
                forth.join()
        assert len(recorded) > len(encode(feedback(0))) and encode(feedback(0)) not in recorded, "and it is encrypted"
        with tcp.create_connection((address, int(port))) as again:
            again.sendall(recorded)
            again.settimeout(10)
            while again.recv(4096):  # until it is closed
                pass
        assert below.arrived == [feedback(0)] and not below.errors


def pump(source, sink, record: bytearray) -> None:
    while data := source.recv(4096):
        record += data
        sink.sendall(data)


def test_keys_differ_from_run_to_run_and_stay_secret() -> None:
    store = dist.HashStore()
    first, second = (Keys.exchange(dist.PrefixStore(name, store), 0, [0], 5) for name in ("a", "b"))
    assert first.public != second.public and first.secret != second.secret
    assert [store.get(f"{name}key/0") for name in ("a/", "b/")] == [first.public, second.public]
    assert store.num_keys() == 2, "nothing but public keys is in the store"
    assert first.secret.decode() not in repr(first)


def test_a_missing_rank_is_named() -> None:
    with pytest.raises(FeedbackError, match="no key for the feedback plane from rank 1, 2"):
        Keys.exchange(dist.HashStore(), 0, range(3), 0.5)
