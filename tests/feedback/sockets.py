"""Feedback planes of several ranks in one test process, over real sockets: one block per rank."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch.distributed as dist

from fgpipe.config import LinkConfig
from fgpipe.observe.ledger import Ledger
from fgpipe.observe.metrics import Metrics
from fgpipe.plan.topology import Topology
from fgpipe.wire.feedback.messages import Feedback, Lost, Request, Weights
from fgpipe.wire.feedback.zmq import Terms, ZmqFeedback
from fgpipe.wire.slow import SlowLinks

RUN = 4242


def feedback(batch: int, receiver: int = 0, sender: int = 1, **changes) -> Feedback:
    fields = {"run": RUN, "batch": batch, "sender": sender, "receiver": receiver}
    return Feedback(**fields | {"probes": (0,), "numbers": (batch + 0.25,)} | changes)


class Rank:
    """A plane and what came out of it."""

    def __init__(
        self, rank: int, world_size: int, store: dist.Store, kept: int, deadline: float, link: LinkConfig
    ) -> None:
        self.ledger, self.metrics = Ledger(world_size), Metrics(world_size)
        self.arrived: list[Feedback | Lost] = []
        self.weights: list[Weights] = []
        self.errors: list[Exception] = []
        self.consequence: Callable[[Feedback | Lost], Request | None] = lambda message: None
        self.plane = ZmqFeedback(
            Topology((1,) * world_size, rank),
            store,
            self,
            self.ledger,
            self.metrics,
            Terms(
                "127.0.0.1", deadline, largest=(1, 1), kept=[kept] * world_size, links=SlowLinks.of(link, world_size)
            ),
        )

    def deliver_feedback(self, message: Feedback | Lost) -> Request | None:
        self.arrived.append(message)
        return self.consequence(message)

    def deliver_weights(self, weights: Weights) -> None:
        self.weights.append(weights)

    def fail(self, error: Exception) -> None:
        self.errors.append(error)


@contextmanager
def ranks(
    world_size: int, kept: int = 4, deadline: float = 20, link: LinkConfig | None = None
) -> Iterator[tuple[list[Rank], dist.Store]]:
    """Planes that have exchanged their keys, and the store; closed at the end."""
    store, made = dist.HashStore(), {}

    def make(rank: int) -> None:
        made[rank] = Rank(rank, world_size, store, kept, deadline, link or LinkConfig())

    threads = [threading.Thread(target=make, args=(rank,)) for rank in range(world_size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    try:
        yield [made[rank] for rank in range(world_size)], store
    finally:
        for rank in made.values():
            rank.plane.close()


def wait_for(condition: Callable[[], bool], seconds: float = 30) -> bool:
    """Poll until `condition()` holds; False when the time is over."""
    give_up = time.monotonic() + seconds
    while time.monotonic() < give_up:
        if condition():
            return True
        time.sleep(0.02)
    return condition()
