"""Counts of several threads at once: nothing is lost, and whoever reads meanwhile sees a state that there was."""

import sys
import threading
import time
from collections.abc import Callable, Iterator

import pytest
from torch import Tensor

from fgpipe.observe.ledger import KINDS, Ledger, report
from fgpipe.observe.metrics import INCIDENTS, Metrics

BLOCKS, ROUNDS, SIZE, THREADS = 8, 2, 7, 2
LINKS = [(source, destination, kind) for source in range(BLOCKS) for destination in range(BLOCKS) for kind in KINDS]


@pytest.fixture(autouse=True)
def often_switching() -> Iterator[None]:
    """Threads take turns as often as can be."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def at_once(count: Callable[[], None], read: Callable[[], object]) -> None:
    """Count in several threads, and read in this one until they have ended; what it raises is raised."""
    threads = [threading.Thread(target=count) for _ in range(THREADS)]
    for thread in threads:
        thread.start()
    try:
        while any(thread.is_alive() for thread in threads):
            read()
    finally:
        for thread in threads:
            thread.join()


def same(table: Tensor) -> Tensor:
    """What the only replica leaves to itself."""
    return table


READERS: dict[str, Callable[[Ledger], object]] = {
    "as_tensor": Ledger.as_tensor,
    "state": lambda ledger: [ledger.state(block) for block in range(BLOCKS)],
    "merge": lambda ledger: ledger.merge(same),
}


@pytest.mark.parametrize("read", READERS.values(), ids=READERS.keys())
def test_ledger(read: Callable[[Ledger], object]) -> None:
    """Links that are new to the ledger turn up while it is read; at the end every message is in it."""
    ledger = Ledger(BLOCKS)

    def count() -> None:
        for _ in range(ROUNDS):
            for link in LINKS:
                ledger.count(*link, SIZE)
                time.sleep(0)  # another thread's turn

    at_once(count, lambda: read(ledger))
    messages = THREADS * ROUNDS
    wanted = {kind: {"bytes": messages * SIZE, "messages": messages} for kind in KINDS}
    found = report(ledger.as_tensor())
    assert len(found) == BLOCKS**2 and all(each == wanted for each in found.values())
    assert ledger.state(3) == [[to, kind, messages * SIZE, messages] for to in range(BLOCKS) for kind in KINDS]


def test_counted_while_the_replicas_talk() -> None:
    """A message that is counted within `merge` is not lost, and the sum of the replicas is there once."""
    ledger = Ledger(2)
    ledger.count(0, 1, "activations", 100)

    def talk(table: Tensor) -> Tensor:
        ledger.count(0, 1, "activations", 10)
        ledger.count(1, 0, "feedback", 1)
        return 2 * table

    ledger.merge(talk)
    assert ledger.state(0) == [[1, "activations", 210, 3]] and ledger.state(1) == [[0, "feedback", 1, 1]]


def test_incidents() -> None:
    """Scalars that the receiving thread and the training one ask for are all counted."""
    metrics, rounds = Metrics(BLOCKS), 300

    def count() -> None:
        for _ in range(rounds):
            for block in range(BLOCKS):
                metrics.count(block, "asked")

    at_once(count, metrics.incidents)
    assert metrics.incidents()[:, INCIDENTS.index("asked")].tolist() == BLOCKS * [THREADS * rounds]
