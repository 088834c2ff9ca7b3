"""What a block trains on, against tables written by hand."""

import threading
import time

import pytest
import torch

from fgpipe.config import ReplayConfig
from fgpipe.elastic.buffer import Buffer
from fgpipe.wire.batch import Batch


def batch(number: int) -> Batch:
    return Batch(number, 0, True, torch.full((1,), float(number)), torch.tensor([number]))


def filled(numbers: range, take: str = "newest", size: int = 3, reuse: int = 2) -> Buffer:
    buffer = Buffer(1, ReplayConfig(size, reuse, take), seed=0)
    for number in numbers:
        buffer.put(batch(number), lambda: False)
        assert (taken := buffer.take(0)) is not None and taken.id == number and not taken.extra
    return buffer


@pytest.mark.parametrize("take, order", [("newest", [4, 3, 2]), ("oldest", [2, 3, 4])])
def test_again(take: str, order: list[int]) -> None:
    """Batches 0 to 4 came to a buffer of 3: each of the last three is used once more, and no more than `reuse` times."""
    buffer, found = filled(range(5), take), []
    while (again := buffer.again(5)) is not None:
        found.append(again)
    assert [int(each.labels) for each in found] == order
    assert [each.id for each in found] == [5, 5, 5] and [each.extra for each in found] == [1, 2, 3]


def test_random_order_is_drawn_by_name() -> None:
    orders = []
    for _ in range(2):
        buffer = filled(range(5), "random")
        orders.append([int(each.labels) for each in (buffer.again(5) for _ in range(3)) if each is not None])
    assert orders[0] == orders[1] and sorted(orders[0]) == [2, 3, 4]


def test_new_ones_first_and_in_order() -> None:
    buffer = filled(range(2))
    buffer.again(2)
    for number in (2, 7):
        buffer.put(batch(number), lambda: False)
    assert [taken.id for taken in (buffer.take(0), buffer.take(0)) if taken is not None] == [2, 7]
    assert buffer.take(0.01) is None


def test_nothing_unused_is_pushed_out() -> None:
    """A full buffer makes the sender wait; it has room when one was taken."""
    buffer = Buffer(1, ReplayConfig(2, 4), seed=0)
    for number in (0, 1):
        assert buffer.has_room()
        buffer.put(batch(number), lambda: False)
    assert not buffer.has_room()
    thread = threading.Thread(target=buffer.put, args=(batch(2), lambda: False))
    thread.start()
    time.sleep(0.05)
    assert thread.is_alive()
    assert [each.id for each in (buffer.take(0), buffer.take(1), buffer.take(1)) if each is not None] == [0, 1, 2]
    thread.join()


def test_closing_ends_the_wait() -> None:
    buffer = Buffer(1, ReplayConfig(1, 4), seed=0)
    buffer.put(batch(0), lambda: False)
    buffer.put(batch(1), lambda: True)
    assert (taken := buffer.take(0)) is not None and taken.id == 0 and buffer.take(0) is None
