"""The inbox: every batch once and in order, whoever sent it, and queues that tell when one is taken."""

import pytest
import torch

from fgpipe.observe.timeline import Timeline
from fgpipe.wire.batch import Batch
from fgpipe.wire.inbox import Arrivals, Inbox


def batch(id: int, training: bool = True, extra: int = 0) -> Batch:
    return Batch(id, 0, training, torch.zeros(1), torch.zeros(1, dtype=torch.int64), extra=extra)


def test_order() -> None:
    """Training batches count through, from where the run begins; test batches begin anew in every evaluation."""
    inbox = Inbox({1: Arrivals()}, {}, Timeline(), first=40)
    for each in (batch(40), batch(41), batch(0, False), batch(1, False), batch(42), batch(0, False)):
        inbox.deliver_batch(1, each)
    for wrong, line in ((batch(42), "batch 42"), (batch(44), "batch 44"), (batch(2, False), "test batch 2")):
        with pytest.raises(RuntimeError, match=f"^block 1 got {line} where number (43|1) was due$"):
            inbox.deliver_batch(1, wrong)
    for good in (batch(43, extra=1), batch(43)):
        inbox.deliver_batch(1, good)


def test_taken() -> None:
    """The receiver learns of each batch that is taken, and of no other."""
    taken: list[int] = []
    inbox = Inbox({1: Arrivals(lambda: taken.append(1))}, {}, Timeline())
    assert inbox.holds(1) and not inbox.holds(0) and not inbox.has_batch(1)
    for each in (batch(0), batch(1)):
        inbox.deliver_batch(1, each)
    assert inbox.has_batch(1) and not taken
    assert inbox.take_batch(1).id == 0 and taken == [1]
