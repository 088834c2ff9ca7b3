"""What tests of single parts share: a store, and a run's folder with its key."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch.distributed as dist

from fgpipe.elastic.places import Places
from fgpipe.elastic.secret import RunSecret


class Server:
    """PyTorch's store in this process, at an address that it keeps when it is started again."""

    def __init__(self) -> None:
        self._store: dist.TCPStore | None = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        self._port = self._store.port
        self.address = f"127.0.0.1:{self._port}"

    def end(self) -> None:
        self._store = None

    def restart(self) -> None:
        """As after SIGKILL: nothing is in it any more."""
        self.end()
        self._store = dist.TCPStore("127.0.0.1", self._port, is_master=True, wait_for_workers=False)


@pytest.fixture
def server() -> Iterator[Server]:
    yield Server()


@pytest.fixture
def places(tmp_path: Path) -> Places:
    found = Places(tmp_path / "run")
    found.begin()
    return found


@pytest.fixture
def secret(places: Places) -> RunSecret:
    return RunSecret.of(places.key)
