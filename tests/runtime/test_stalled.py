"""Report of a process that has waited for too long: block, batch, peer, plane, and when it last heard from there."""

import re

import pytest
import torch

from fgpipe.config import compose_config
from fgpipe.errors import LinkError, StalledError
from fgpipe.observe.observers import Observers
from fgpipe.plan.plan import DataFacts, Plan
from fgpipe.trainers.build import asynchronous_stages, local_stages
from fgpipe.trainers.worker import Worker
from fgpipe.wire.batch import Batch
from fgpipe.wire.feedback.mailbox import Due, Mailbox
from fgpipe.wire.feedback.messages import Feedback
from fgpipe.wire.gradients import Gradient, GradientBox
from fgpipe.wire.inbox import Arrivals, Inbox
from fgpipe.wire.post import Post
from tests.runtime.noise import noise


class Outbox(Post):
    """Whatever leaves the block is lost."""

    def up(self, block: int, batch: Batch) -> None:
        pass


def waiting_worker() -> tuple[Worker, Inbox, list[Batch]]:
    """Block 3 of 8 in a process of its own with window 2, which is given up after 0.5 s; and inputs for it."""
    config = compose_config(["model.width=0.07", "window=2", "batch_size=2", "scope=block", "deadline=1"])
    plan = Plan.make(config, DataFacts(4, 1, 10, 1, 8, 8))
    observers = Observers.of(8)
    mailbox = Mailbox(Due(9, 7, 3, 1, 1), window=2, lost="retry", metrics=observers.metrics)
    inbox = Inbox({3: Arrivals()}, {3: mailbox}, observers.timeline)
    stage = local_stages(plan)[3]
    return Worker(plan, [stage], Outbox(inbox), observers, {}), inbox, [noise(plan, 3, batch) for batch in range(4)]


def gives_up(worker: Worker, line: str) -> None:
    with pytest.raises(StalledError, match=f"^nothing arrived for 1 s; waiting: {line}$"):
        worker.train(0, 4, None)


def test_nothing_came() -> None:
    worker, _, _ = waiting_worker()
    gives_up(worker, re.escape("block 3 for its input of batch 0 from block 2 (forward plane; nothing came yet)"))


def test_no_readings_came() -> None:
    worker, inbox, batches = waiting_worker()
    for batch in batches:
        inbox.deliver_batch(3, batch)
    gives_up(worker, re.escape("block 3 for its readings of batch 0 from block 7 (feedback plane; nothing came yet)"))


def test_no_gradient_came() -> None:
    """Of asynchronous backpropagation, from the block above."""
    config = compose_config(
        ["guess=end_to_end", "schedule=async_1f1b", "model.width=0.07", "window=2", "batch_size=2", "deadline=1"]
    )
    plan, observers = Plan.make(config, DataFacts(4, 1, 10, 1, 8, 8)), Observers.of(8)
    inbox = Inbox({3: Arrivals()}, {3: GradientBox(3, range(9))}, observers.timeline)
    worker = Worker(plan, [asynchronous_stages(plan)[3]], Outbox(inbox), observers, {})
    for batch in range(4):
        inbox.deliver_batch(3, noise(plan, 3, batch))
    gives_up(worker, re.escape("block 3 for its gradient of batch 0 from block 4 (gradient plane; nothing came yet)"))
    with pytest.raises(LinkError, match="^block 3 got the gradient of batch 2 where number 0 was due$"):
        inbox.deliver_gradient(Gradient(2, 3, torch.zeros(1)))


def test_age_of_the_last_message() -> None:
    """On its own plane: what comes on the other one does not count."""
    worker, inbox, batches = waiting_worker()
    for batch in batches:
        inbox.deliver_batch(3, batch)
    inbox.deliver_feedback(Feedback(9, 0, 7, 3, (0,), (1.0,)))
    age = r"the last message came (?!0\.[0-8])\d+\.\d s ago"
    gives_up(worker, rf"block 3 for its readings of batch 1 from block 7 \(feedback plane; {age}\)")
