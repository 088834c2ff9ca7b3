"""The mailbox: every message once, in order, or its loss handled as configured."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fgpipe.errors import FeedbackError
from fgpipe.observe.metrics import Metrics
from fgpipe.wire.feedback.mailbox import Due, Mailbox
from fgpipe.wire.feedback.messages import Feedback, Lost, Request

RUN, SENDER, BLOCK = 99, 7, 2


def message(batch: int, **changes) -> Feedback:
    fields = {"run": RUN, "batch": batch, "sender": SENDER, "receiver": BLOCK}
    return Feedback(**fields | {"probes": (0, 1), "numbers": (float(batch), 0.5)} | changes)


def mailbox(window: int = 4, lost: str = "retry", first: int = 0) -> tuple[Mailbox, Metrics]:
    metrics = Metrics(8)
    return Mailbox(Due(RUN, SENDER, BLOCK, 2, 2), first, window=window, lost=lost, metrics=metrics), metrics


def counted(metrics: Metrics) -> dict[str, int]:
    """Duplicates, requests and skipped updates of the block; other blocks have none."""
    table = metrics.incidents()
    assert table.sum() == table[BLOCK].sum()
    return dict(zip(("duplicates", "asked", "skipped"), table[BLOCK].tolist(), strict=True))


def take_all(box: Mailbox) -> list[Feedback | Lost]:
    found = []
    while box.first() is not None:
        found.append(box.take())
    return found


def test_every_third_batch() -> None:
    """From the middle of a run, in any order; other batches are refused, and what is missing is known by the others."""
    metrics = Metrics(8)
    box = Mailbox(Due(RUN, SENDER, BLOCK, 2, 2, every=3), 7, window=9, lost="retry", metrics=metrics)
    with pytest.raises(FeedbackError, match="batch 10: batch is 10, expected a multiple of 3"):
        box.put(message(10))
    assert box.put(message(12)) is None
    assert box.put(message(15)) == Request(RUN, 9, BLOCK, SENDER), "two of three in flight are here"
    assert box.put(message(6)) is None and counted(metrics)["duplicates"] == 1
    box.put(message(9))
    assert [each.batch for each in take_all(box)] == [9, 12, 15]


@given(st.data(), st.integers(1, 6), st.sampled_from(["retry", "skip", "fail"]))
@settings(max_examples=500, deadline=None)
def test_any_order_within_the_window(data, window: int, lost: str) -> None:
    """Swapped and doubled messages change nothing, as long as none stays away until all others in flight are there."""
    box, metrics = mailbox(window, lost)
    forwarded, doubled = 0, 0
    pending: list[int] = []
    old: list[int] = []
    taken: list[Feedback | Lost] = []
    while len(taken) < 12:
        while forwarded < min(12, len(taken) + window):
            pending.append(forwarded)
            forwarded += 1
        if old and data.draw(st.booleans()):
            assert box.put(message(data.draw(st.sampled_from(old)))) is None
            doubled += 1
        late = [batch for batch in pending if batch > pending[0]]
        waiting_ahead = sum(batch > pending[0] for batch in old)
        early = late and waiting_ahead + 1 < max(1, window - 1) and data.draw(st.booleans())
        batch = data.draw(st.sampled_from(late)) if early else pending[0]
        pending.remove(batch)
        old.append(batch)
        assert box.put(message(batch)) is None
        taken += take_all(box)
    assert [each.batch for each in taken] == list(range(12))
    assert all(each == message(each.batch) for each in taken)
    assert counted(metrics) == {"duplicates": doubled, "asked": 0, "skipped": 0}


def test_retry_asks_when_all_others_are_there() -> None:
    box, metrics = mailbox(window=4)
    assert box.put(message(1)) is None and box.put(message(3)) is None
    assert box.first() is None, "never out of turn"
    assert box.put(message(2)) == Request(RUN, 0, BLOCK, SENDER)
    assert box.put(message(0)) is None
    assert take_all(box) == [message(batch) for batch in range(4)]
    assert box.put(message(0)) is None, "it was only late"
    assert counted(metrics)["duplicates"] == 1 and not take_all(box)


def test_skip_goes_on_without_it() -> None:
    box, metrics = mailbox(window=3, lost="skip")
    assert box.put(message(1)) is None and box.first() is None
    assert box.put(message(2)) is None
    assert take_all(box) == [Lost(RUN, 0, SENDER, BLOCK), message(1), message(2)]
    box.put(message(0))
    assert not take_all(box) and counted(metrics)["duplicates"] == 1, "too late is not applied to another batch"


def test_skip_on_the_news_that_it_is_lost() -> None:
    box, _ = mailbox(window=1, lost="skip")
    assert box.overdue() == Request(RUN, 0, BLOCK, SENDER)
    gone = Lost(RUN, 0, SENDER, BLOCK)
    assert box.put(gone) is None and take_all(box) == [gone]
    assert box.put(message(1)) is None and take_all(box) == [message(1)]


def test_fail() -> None:
    box, _ = mailbox(window=3, lost="fail")
    assert box.overdue() is None, "the deadline decides"
    box.put(message(1))
    with pytest.raises(FeedbackError, match=r"batches \[1, 2\] came, that for batch 0 did not"):
        box.put(message(2))


@pytest.mark.parametrize("lost", ["retry", "fail"])
def test_gone_is_an_error_unless_skipped(lost: str) -> None:
    with pytest.raises(FeedbackError, match="batch 0: block 7 sent it once"):
        mailbox(lost=lost)[0].put(Lost(RUN, 0, SENDER, BLOCK))


def test_gone_is_no_error_once_it_has_come() -> None:
    """A late message crosses the request for it; the sender has moved on when the request arrives."""
    box, metrics = mailbox(window=1)
    assert box.overdue() == Request(RUN, 0, BLOCK, SENDER)
    box.put(message(0))
    assert box.put(Lost(RUN, 0, SENDER, BLOCK)) is None
    assert take_all(box) == [message(0)] and counted(metrics)["duplicates"] == 1


@pytest.mark.parametrize(
    "changes, named",
    [
        ({"run": RUN + 1}, "run is 100"),
        ({"sender": 6}, "sender is 6"),
        ({"receiver": 3}, "receiver is 3"),
        ({"probes": (0,), "numbers": (1.0,)}, "probes"),
        ({"probes": (1, 0)}, "probes"),
        ({"numbers": (1.0,) * 4}, "numbers are 4, expected 2"),
        ({"numbers": (1.0, float("nan"))}, "not finite"),
        ({"numbers": (float("-inf"), 1.0)}, "not finite"),
    ],
)
def test_refused(changes: dict, named: str) -> None:
    with pytest.raises(FeedbackError, match=f"batch 0.*{named}"):
        mailbox()[0].put(message(0, **changes))


def test_nothing_beyond_the_window() -> None:
    """A batch that the block cannot have forwarded; after one is taken it can."""
    box, _ = mailbox(window=2)
    with pytest.raises(FeedbackError, match="batch 2 came before block 2"):
        box.put(message(2))
    box.put(message(0))
    box.take()
    assert box.put(message(2)) == Request(RUN, 1, BLOCK, SENDER)


def test_a_run_may_begin_later() -> None:
    box, metrics = mailbox(window=2, first=40)
    assert box.put(message(39)) is None and counted(metrics)["duplicates"] == 1
    assert box.put(message(40)) is None and take_all(box) == [message(40)]
    with pytest.raises(FeedbackError, match="batch 43 came before"):
        box.put(message(43))
