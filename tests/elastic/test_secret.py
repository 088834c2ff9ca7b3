"""The run's key: who has it reads and writes, who has not gets nothing."""

import stat

import pytest
import torch.distributed as dist
import zmq

from fgpipe.elastic.places import Places
from fgpipe.elastic.secret import RunSecret
from fgpipe.elastic.store import StoreClient
from fgpipe.errors import LinkError
from tests.elastic.conftest import Server


def test_every_process_reads_the_same(places: Places) -> None:
    assert RunSecret.of(places.key).pair(3, 2) == RunSecret.of(places.key).pair(3, 2)
    assert stat.S_IMODE(places.key.stat().st_mode) == 0o600


def test_a_pair_for_each_generation(secret: RunSecret) -> None:
    pairs = {secret.pair(block, generation) for block in range(3) for generation in range(3)}
    assert len(pairs) == 9
    assert all(zmq.curve_public(private) == public for public, private in pairs)
    assert RunSecret(bytes(32)).pair(0, 0) not in pairs


@pytest.mark.parametrize(
    "change",
    [
        lambda name, text: (name, text.replace("1", "2", 1)),
        lambda name, text: (name, text[:-1] + " }"),
        lambda name, text: (name, f"{'0' * 64} {text.partition(' ')[2]}"),
        lambda name, text: (name, text.partition(" ")[2]),
        lambda name, text: (name, ""),
        lambda name, text: ("member/4", text),
    ],
)
def test_changed_or_moved_values_are_none(secret: RunSecret, change) -> None:
    value = {"generation": 1, "block": 1}
    sealed = secret.seal("member/3", value)
    assert secret.unseal("member/3", sealed) == value
    assert secret.unseal(*change("member/3", sealed)) is None
    assert RunSecret(bytes(32)).unseal("member/3", sealed) is None


def test_what_a_stranger_writes_is_not_there(server: Server, secret: RunSecret) -> None:
    client = StoreClient(server.address, secret)
    host, _, port = server.address.partition(":")
    stranger = dist.TCPStore(host, int(port), is_master=False, wait_for_workers=False)
    stranger.set(f"fgpipe/{secret.run}/member/3", RunSecret(bytes(32)).seal("member/3", {"generation": 9}))
    assert client.get("member/3") is None
    assert client.replace("member/3", None, {"generation": 1}), "nor is it in anybody's way"
    assert client.get("member/3") == {"generation": 1}
    assert not client.replace("member/3", None, {"generation": 2})
    assert not client.replace("member/3", {"generation": 3}, {"generation": 2})
    assert client.replace("member/3", {"generation": 1}, {"generation": 2})


def test_a_client_outlives_the_store(server: Server, secret: RunSecret) -> None:
    client = StoreClient(server.address, secret)
    client.set("beat/0", {"beat": 1})
    server.restart()
    with pytest.raises(LinkError, match="no store at 127.0.0.1"):
        client.get("beat/0")
    assert client.get("beat/0") is None
    client.set("beat/0", {"beat": 2})
    assert client.get("beat/0") == {"beat": 2}
