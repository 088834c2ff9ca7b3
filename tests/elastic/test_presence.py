"""A block's place: who may take it, and who is told that it is gone."""

import os
import subprocess
import sys
import time
from dataclasses import replace

import pytest

from fgpipe.elastic import presence
from fgpipe.elastic.directory import Directory
from fgpipe.elastic.places import Places
from fgpipe.elastic.presence import Presence, claim
from fgpipe.elastic.secret import RunSecret
from fgpipe.elastic.store import StoreClient
from fgpipe.errors import LinkError, UserError
from tests.elastic.conftest import Server
from tests.integration.launching import wait_until


def take(server: Server, places: Places, secret: RunSecret, block: int = 1) -> Presence:
    return claim(
        StoreClient(server.address, secret), places, block, 2.0, lambda generation: (f"address of {generation}", "")
    )


def directory(server: Server, secret: RunSecret, mine: Presence, *watched: int) -> Directory:
    return Directory(StoreClient(server.address, secret), mine, watched)


def test_a_living_place_is_refused(server: Server, places: Places, secret: RunSecret) -> None:
    mine = take(server, places, secret)
    assert (mine.generation, mine.forward, mine.pid) == (1, "address of 1", os.getpid())
    living = directory(server, secret, mine)
    with pytest.raises(UserError, match=rf"elastic.block=1: its place is taken by generation 1 \(pid {os.getpid()} on"):
        take(server, places, secret)
    living.close()
    assert living.superseded is None


def test_a_living_place_is_refused_although_the_store_has_forgotten(
    server: Server, places: Places, secret: RunSecret
) -> None:
    living = directory(server, secret, take(server, places, secret))
    server.restart()
    with pytest.raises(UserError, match="its place is taken"):
        take(server, places, secret)
    living.close()


def test_an_ended_process_leaves_its_place_at_once(
    server: Server, places: Places, secret: RunSecret, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(presence, "SILENCE", 60.0)
    mine, client = take(server, places, secret), StoreClient(server.address, secret)
    other = subprocess.Popen([sys.executable, "-c", ""])
    other.wait()
    assert client.replace("member/1", mine.value(), replace(mine, pid=other.pid).value())
    began = time.monotonic()
    assert take(server, places, secret).generation == 2
    assert time.monotonic() - began < 30


def test_a_silent_process_loses_its_place_and_is_told(
    server: Server, places: Places, secret: RunSecret, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one that is silent is stopped, or cut off; when it speaks again, it hears that another has its place."""
    monkeypatch.setattr(presence, "SILENCE", 0.6)
    first = take(server, places, secret)
    second = take(server, places, secret)
    assert (second.generation, second.forward) == (2, "address of 2")
    zombie, neighbour = directory(server, secret, first), directory(server, secret, replace(first, block=2), 1)
    assert wait_until(lambda: zombie.superseded is not None, 5)
    assert zombie.superseded == second
    assert wait_until(lambda: neighbour.of(1) == second, 5)
    zombie.close()
    neighbour.close()


def test_members_are_seen_and_heard(server: Server, places: Places, secret: RunSecret) -> None:
    one = directory(server, secret, take(server, places, secret, block=1), 2)
    assert one.of(2) is None and not one.alive(2) and one.generation(2) == 0
    mine = take(server, places, secret, block=2)
    two = directory(server, secret, mine, 1)
    two.say = lambda: {"position": 17}
    assert wait_until(lambda: one.figures(2).get("position") == 17, 5)
    assert one.of(2) == mine and one.alive(2)
    server.restart()
    assert wait_until(lambda: two.alive(1) and StoreClient(server.address, secret).get("member/2") == mine.value(), 10)
    one.close()
    two.close()


def test_without_a_store(server: Server, places: Places, secret: RunSecret) -> None:
    with pytest.raises(LinkError, match="no store at 127.0.0.1:1:"):
        claim(StoreClient("127.0.0.1:1", secret), places, 0, 0.3, lambda _: ("", ""))
