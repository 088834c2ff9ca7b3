"""The forward plane between members, over real sockets: block 1 listens, and generations of block 0 send."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch

from fgpipe.config import ReplayConfig
from fgpipe.elastic.buffer import Buffer
from fgpipe.elastic.directory import Directory
from fgpipe.elastic.links import Downlink, Uplink
from fgpipe.elastic.presence import Presence
from fgpipe.elastic.secret import RunSecret
from fgpipe.elastic.sockets import Dialled
from fgpipe.elastic.store import StoreClient
from fgpipe.elastic.tally import Tally
from fgpipe.observe.ledger import Ledger
from fgpipe.wire.batch import Batch
from fgpipe.wire.links.header import Layout
from tests.elastic.conftest import Server
from tests.integration.launching import wait_until

SHAPE = (4, 2, 3, 5)
LAYOUT = Layout(SHAPE, (), torch.float32, torch.device("cpu"))


def batch(number: int, shape: tuple[int, ...] = SHAPE) -> Batch:
    x = torch.arange(120.0)[: torch.Size(shape).numel()].view(shape) + number
    return Batch(number, number // 10, True, x.contiguous(memory_format=torch.channels_last), torch.arange(4) + number)


class Ends:
    """Both ends of a link; what is made for them is closed with `closing`."""

    def __init__(self, server: Server, secret: RunSecret, folder: Path, closing: ExitStack) -> None:
        self._server, self._secret, self._folder, self._closing = server, secret, folder, closing
        self.errors: list[Exception] = []
        self.listen(1)

    def listen(self, generation: int) -> None:
        self.buffer, self.received = Buffer(1, ReplayConfig(4, 4), 0), Tally(self._folder / f"up-{generation}", {})
        self.downlink = Downlink((1, generation), self._secret, "127.0.0.1", LAYOUT)
        self._closing.callback(self.downlink.close)
        self.downlink.start(self.buffer, self.received, lambda: 0, self.errors.append)
        here = Presence.here(1, generation, self.downlink.address)
        StoreClient(self._server.address, self._secret).set("member/1", here.value())

    def sender(self, generation: int, key: RunSecret | None = None) -> tuple[Uplink, Tally]:
        """Args: key: of a stranger, who has the addresses all the same."""
        mine, tally = (0, generation), Tally(self._folder / f"down-{generation}", {})
        directory = Directory(StoreClient(self._server.address, self._secret), Presence.here(0, generation, ""), [1])
        assert wait_until(lambda: directory.of(1) is not None, 5)
        uplink = Uplink(mine, Dialled(mine, 1, key or self._secret, directory, "forward"), SHAPE[0], tally, Ledger(2))
        self._closing.callback(directory.close)
        self._closing.callback(uplink.close)
        return uplink, tally

    def came(self) -> Batch | None:
        return self.buffer.take(5)


@pytest.fixture
def ends(server: Server, secret: RunSecret, tmp_path: Path) -> Iterator[Ends]:
    with ExitStack() as closing:
        yield Ends(server, secret, tmp_path, closing)


def test_arrives_as_it_was(ends: Ends) -> None:
    uplink, sent = ends.sender(1)
    for number in (7, 8, 23):
        uplink.send(batch(number), 1.0)
        came, want = ends.came(), batch(number)
        assert came is not None and (came.id, came.epoch, came.training) == (want.id, want.epoch, True)
        assert torch.equal(came.x, want.x) and torch.equal(came.labels, want.labels)
        assert came.x.stride() == want.x.stride()
    assert (sent["sent"], sent["dropped"], ends.received["received"], ends.received["missed"]) == (3, 0, 3, 0)


def test_an_older_generation_is_refused_and_counted(ends: Ends) -> None:
    """It was accepted once, and is connected still."""
    zombie, _ = ends.sender(1)
    zombie.send(batch(0), 1.0)
    assert (came := ends.came()) is not None and came.id == 0
    newer, _ = ends.sender(2)
    newer.send(batch(1), 1.0)
    assert (came := ends.came()) is not None and came.id == 1
    zombie.send(batch(2), 1.0)
    assert wait_until(lambda: ends.received["refused"] == 1, 5)
    newer.send(batch(3), 1.0)
    assert (came := ends.came()) is not None and came.id == 3
    assert ends.received["received"] == 3 and not ends.errors


def test_without_the_runs_key_nothing_gets_through(ends: Ends) -> None:
    stranger, sent = ends.sender(1, RunSecret(bytes(32)))
    stranger.send(batch(0), 1.0)
    assert (sent["sent"], sent["dropped"]) == (0, 1), "the connection never comes about"
    assert ends.buffer.take(0.2) is None and ends.received["refused"] == 0


def test_drops_what_nobody_takes_and_finds_who_comes_back(ends: Ends) -> None:
    uplink, sent = ends.sender(1)
    uplink.send(batch(0), 1.0)
    assert ends.came() is not None
    ends.downlink.close()
    numbers = iter(range(1, 400))
    while sent["dropped"] < 3:  # the first ones may leave before the end of the connection is seen
        uplink.send(batch(next(numbers)), 0.01)
    assert sent["sent"] < 40, "most of them left, to nobody"
    ends.listen(2)
    for number in numbers:
        uplink.send(batch(number), 0.01)
        if (came := ends.buffer.take(0.02)) is not None:
            break
    assert came is not None and sent["sent"] + sent["dropped"] == number + 1


def test_a_neighbour_without_room_is_waited_for_once(ends: Ends) -> None:
    """Blocks whose batches are all unused take no more; what does not fit on the way is dropped."""
    (uplink, sent), left = ends.sender(1), []
    for number in range(40_000):
        before = sent["sent"]
        uplink.send(batch(number), 0.01)
        left += [number] if sent["sent"] > before else []
        if sent["dropped"] == 3:
            break
    assert sent["dropped"] == 3 and len(left) >= 4
    came: list[int] = []
    while len(came) < len(left) and (next_one := ends.buffer.take(5)) is not None:
        came.append(next_one.id)
    assert came == left, "in order, and all of them"


def test_another_shape_ends_the_receiver(ends: Ends) -> None:
    uplink, _ = ends.sender(1)
    uplink.send(batch(0, (4, 1, 3, 5)), 1.0)
    assert wait_until(lambda: bool(ends.errors), 5)
    assert "block 0 sent a header with a wrong shape" in str(ends.errors[0])
