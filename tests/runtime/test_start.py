"""Steps of the start over a real store: who does not come is named, and nobody waits past the deadline."""

import subprocess
import sys
import threading
import time
from datetime import timedelta

import pytest
import torch.distributed as dist

from fgpipe.cluster.start import Late, Start
from fgpipe.errors import LinkError

DEADLINE = 2.0
SERVER = """
import time, torch.distributed as dist
store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
print(store.port, flush=True)
time.sleep(60)
"""


@pytest.fixture
def server() -> dist.TCPStore:
    return dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)


def start(server: dist.TCPStore, rank: int, world_size: int) -> Start:
    """One process's, with a connection of its own."""
    client = dist.TCPStore("127.0.0.1", server.port, is_master=False, timeout=timedelta(seconds=30))
    return Start(client, rank, world_size, DEADLINE)


def test_all_come(server: dist.TCPStore) -> None:
    others = [threading.Thread(target=start(server, rank, 3).meet, args=("here", str)) for rank in (1, 2)]
    for thread in others:
        thread.start()
    start(server, 0, 3).meet("here", str)
    for thread in others:
        thread.join(DEADLINE)
        assert not thread.is_alive()


def test_who_does_not_come_is_named(server: dist.TCPStore) -> None:
    """Ranks 0 and 2 of four are late; 1 and 3 both know, and 1 says it."""
    errors: list[Late] = []

    def meet(rank: int) -> None:
        with pytest.raises(Late, match="start: block 0, block 2 did not come to here within 2 s") as caught:
            start(server, rank, 4).meet("here", "block {}".format)
        errors.append(caught.value)

    threads, began = [threading.Thread(target=meet, args=(rank,)) for rank in (1, 3)], time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [(error.rank, error.speaker) for error in errors] == [(0, 1)] * 2
    assert time.monotonic() - began < DEADLINE + 5


def test_a_long_load_is_no_silence(server: dist.TCPStore) -> None:
    """Twice the deadline passes, with signs of life; then without."""
    loader, waiter = start(server, 0, 2), start(server, 1, 2)
    found: list[bytes] = []
    thread = threading.Thread(target=lambda: found.append(waiter.get("facts", 0)))
    thread.start()
    with loader.working():
        time.sleep(2 * DEADLINE)
        server.set("facts", "digits")
    thread.join(DEADLINE)
    assert found == [b"digits"]
    began = time.monotonic()
    with pytest.raises(Late, match="rank 0, which loads the data, gave no sign of life within 2 s"):
        waiter.get("more facts", 0)
    assert DEADLINE < time.monotonic() - began < DEADLINE + 5


def test_the_store_is_gone() -> None:
    with subprocess.Popen([sys.executable, "-c", SERVER], stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        client = dist.TCPStore("127.0.0.1", int(server.stdout.readline()), is_master=False)
        server.kill()
    with pytest.raises(LinkError, match="start: the rendezvous store is gone"):
        Start(client, 1, 2, DEADLINE).get("facts", 0)
