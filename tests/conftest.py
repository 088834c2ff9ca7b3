"""What all tests share: the order in which they run, and a network that is not there."""

import signal
from collections import Counter
from urllib.error import URLError

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests first, most of them before the others: what runs last leaves the other processes idle."""
    slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: -slow[item.path])


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every download fails."""

    def refuse(*_: object) -> None:
        raise URLError("Connection refused")

    monkeypatch.setattr("torchvision.datasets.utils.download_url", refuse)


def pytest_configure(config: pytest.Config) -> None:
    """Have Ctrl-C heard by the processes that tests start, also where these tests run in a shell's background."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
