"""`fgpipe.status`: what it refuses, in one line; and `--stop`, where the store ends with the run."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from threading import Thread

import psutil
import pytest

from fgpipe.config import compose_config
from fgpipe.elastic.directory import STOP
from fgpipe.elastic.places import Places
from fgpipe.elastic.presence import Presence, member
from fgpipe.elastic.secret import RunSecret
from fgpipe.elastic.status import Status
from fgpipe.elastic.store import StoreClient
from fgpipe.errors import LinkError
from fgpipe.plan.plan import DataFacts
from fgpipe.status import main
from tests.elastic.conftest import Server
from tests.integration.launching import wait_until


def test_no_address(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path), "--store", "localhost"]) == 2
    assert capsys.readouterr().err == "fgpipe: --store=localhost: allowed: HOST:PORT\n"


def test_a_folder_that_cannot_be_read(
    places: Places, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    places.facts.parent.mkdir(parents=True, exist_ok=True)
    places.facts.write_text("{}")

    def refuse(*_: object, **__: object) -> str:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_text", refuse)
    assert main([str(places.run), "--assemble"]) == 2
    message = capsys.readouterr().err
    assert message == f"fgpipe: RUN={places.run}: allowed: a folder whose files can be read: Permission denied\n"


@contextmanager
def two_blocks(server: Server, places: Places, secret: RunSecret, pid: int) -> Iterator[Status]:
    """A run of which block 1 never came, and block 0 is a process; the store ends once that is asked to leave."""
    config = compose_config(
        ["target=local", "replay.size=8", "elastic.block=0", f"elastic.store={server.address}", f"run_dir={places.run}",
         "model.modules=[5,3]", "checkpoint.every_steps=10"]
    )  # fmt: skip
    places.agree(config, DataFacts(1, 1, 10, 1, 16, 16))
    store = StoreClient(server.address, secret)
    here = replace(Presence.here(0, 1, ""), pid=pid, began=psutil.Process(pid).create_time())
    store.set(member(0), here.value())

    def end() -> None:
        assert wait_until(lambda: store.get(STOP) == {"0": 1}, 30)
        if pid != os.getpid():
            psutil.Process(pid).kill()
        server.end()

    thread = Thread(target=end)
    thread.start()
    yield Status(places)
    thread.join()


def test_the_store_ends_with_the_last_member(server: Server, places: Places, secret: RunSecret) -> None:
    other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(100)"])
    with two_blocks(server, places, secret, other.pid) as status:
        assert status.stop(30) == []
    other.wait()


def test_the_store_ends_before_a_member(server: Server, places: Places, secret: RunSecret) -> None:
    with two_blocks(server, places, secret, os.getpid()) as status, pytest.raises(LinkError, match="no store at"):
        status.stop(30)
