"""The box of a twin's weights: in order from each sender, all of them or none, and refused by the field that is wrong."""

from dataclasses import replace

import pytest

from fgpipe.errors import FeedbackError
from fgpipe.wire.feedback.messages import Weights
from fgpipe.wire.weights import WeightsBox

RUN, BLOCK = 99, 2


def weights(batch: int, sender: int = 3) -> Weights:
    return Weights(RUN, batch, sender, BLOCK, bytes(8 * (sender - 2)))


def box(first: int = 0) -> WeightsBox:
    return WeightsBox(RUN, BLOCK, {3: 8, 4: 16}, 5, first)


def test_complete_when_all_senders_have_sent() -> None:
    found = box()
    assert found.complete(4) and not found.complete(5) and found.missing(5) == 3
    found.put(weights(5))
    assert not found.complete(5) and found.missing(9) == 4
    found.put(weights(5, sender=4))
    assert found.complete(9) and not found.complete(10)


def test_the_newest_of_each_sender_is_taken() -> None:
    found = box()
    for batch in (5, 10, 15):
        found.put(weights(batch))
    found.put(weights(5, sender=4))
    assert sorted((each.sender, each.batch) for each in found.take(12)) == [(3, 10), (4, 5)]
    assert not found.take(12)
    assert [each.batch for each in found.take(15)] == [15]


@pytest.mark.parametrize("first, due", [(0, 5), (4, 5), (5, 10), (12, 15)])
def test_a_run_that_goes_on_waits_for_the_next(first: int, due: int) -> None:
    found = box(first)
    assert found.complete(due - 1) and not found.complete(due)
    found.put(weights(due))


@pytest.mark.parametrize("changes, line", [
    ({"run": 1}, "weights for batch 5: run is 1, expected 99"),
    ({"sender": 7}, r"weights for batch 5: sender is 7, expected one of \[3, 4\]"),
    ({"batch": 10}, "weights for batch 10: block 3 should have sent 5"),
    ({"values": bytes(9)}, "weights for batch 5: bytes are 9, expected 8"),
])  # fmt: skip
def test_refused(changes: dict, line: str) -> None:
    with pytest.raises(FeedbackError, match=f"^{line}$"):
        box().put(replace(weights(5), **changes))
