"""What a process says that has waited for too long: block, batch, peer, plane, and when it last heard from there."""

import re
from types import SimpleNamespace

import pytest

from fgpipe.observe.metrics import Metrics
from fgpipe.observe.timeline import Timeline
from fgpipe.plan.schedule import Apply, Forward
from fgpipe.trainers.worker import Node, Stalled, Worker
from fgpipe.wire.feedback.messages import Feedback
from fgpipe.wire.inbox import Inbox
from fgpipe.wire.mailbox import Mailbox


def waiting_worker(action: Forward | Apply) -> tuple[Worker, Inbox, Node]:
    """Block 3 of 8, which has nothing to do but `action`, within 0.5 s."""
    metrics = Metrics(8)
    mailbox = Mailbox(3, 7, 1, 1, 9, 0, window=5, lost="retry", metrics=metrics)
    inbox = Inbox([3], {3: mailbox}, Timeline())
    stage = SimpleNamespace(index=3, has_applied=lambda batch: False)
    node = Node(stage, 5, True, None, None)
    node.pending.append(action)
    feedback = SimpleNamespace(ask=lambda request: None)
    return (
        Worker([node], inbox, feedback, eager=False, fixed_order=False, deadline=0.5, timeline=Timeline()),
        inbox,
        node,
    )


@pytest.mark.parametrize(
    "action, expected",
    [
        (Forward(17), "block 3 for its input of batch 17 from block 2 (forward plane; nothing came yet)"),
        (Apply(12), "block 3 for its scalars of batch 12 from block 7 (feedback plane; nothing came yet)"),
    ],
)
def test_nothing_came(action: Forward | Apply, expected: str) -> None:
    worker, _, _ = waiting_worker(action)
    with pytest.raises(Stalled, match=f"^nothing arrived for 0.5 s; waiting: {re.escape(expected)}$"):
        worker._next()


def test_age_of_the_last_message() -> None:
    """On its own plane: what comes on the other one does not count."""
    worker, inbox, node = waiting_worker(Apply(1))
    inbox.deliver_feedback(Feedback(9, 0, 7, 3, (0,), (1.0,)))
    inbox.take_feedback(3)
    with pytest.raises(
        Stalled, match=r"of batch 1 from block 7 \(feedback plane; the last message came (?!0\.[0-4])\d+\.\d s ago\)"
    ):
        worker._next()
    node.pending[0] = Forward(5)
    with pytest.raises(Stalled, match=r"of batch 5 from block 2 \(forward plane; nothing came yet\)"):
        worker._next()
