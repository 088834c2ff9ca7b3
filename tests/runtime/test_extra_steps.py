"""Extra steps in a process of two blocks below the last, where a batch arrives when and only when nothing can be done.

With three uses for each of four batches that is, in both blocks: step 0, two extra steps on its batch, step 1, two extra
steps on that one, step 2, two more, and step 3, after which no other comes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from fgpipe.cluster.replicas import Replicas
from fgpipe.config import compose_config
from fgpipe.config.rng import generator
from fgpipe.gradients.guesses import View, guess
from fgpipe.gradients.guesses.gaussian import Gaussian
from fgpipe.gradients.optim import Optimizer
from fgpipe.models.init import initialize
from fgpipe.observe.ledger import Ledger
from fgpipe.observe.metrics import Metrics
from fgpipe.observe.timeline import Timeline, events_of
from fgpipe.plan.plan import DataFacts, Plan
from fgpipe.trainers.build import build_stages
from fgpipe.trainers.stage import Stage
from fgpipe.trainers.worker import Node, Worker
from fgpipe.wire.feedback.memory import MemoryFeedback
from fgpipe.wire.inbox import Inbox
from fgpipe.wire.links.base import Batch, Link
from fgpipe.wire.links.memory import MemoryLink
from fgpipe.wire.replay import Replay

BATCHES, SAMPLES, SEED = 4, 8, 5
LOWER, UPPER = 2, 3
STEPS = [(0, 0), (1, 1), (1, 2), (1, 0), (2, 3), (2, 4), (2, 0), (3, 5), (3, 6), (3, 0)]
"""Ids, and numbers of the extra ones."""


class Wire(Link):
    """To another process."""

    def __init__(self) -> None:
        self.sent: list[Batch] = []

    def send(self, batch: Batch) -> None:
        self.sent.append(batch)

    def close(self) -> None:
        pass


class Starved(Inbox):
    """A batch comes from below when nothing can be done."""

    source: list[Batch]

    def wait(self, find, deadline: float):
        while (found := find()) is None:
            self.deliver_batch(LOWER, self.source.pop(0))
        return found


class Process:
    """Blocks LOWER and UPPER."""

    def __init__(self, *overrides: str) -> None:
        keys = [
            "model.width=0.07",
            f"batch_size={SAMPLES}",
            f"seed={SEED}",
            "device=cpu",
            "head=linear",
            "target=local",
        ]
        plan = Plan.make(compose_config([*keys, *overrides]), DataFacts(BATCHES, 1, 10, 3, 16, 16))
        self.metrics, self.timeline, self.wire = Metrics(8), Timeline(on=True), Wire()
        parts = (torch.device("cpu"), self.metrics, Ledger(8), self.timeline, Replicas())
        self.stages: dict[int, Stage] = {
            j: each for j, each in build_stages(plan, *parts).items() if j in (LOWER, UPPER)
        }
        source = torch.Generator().manual_seed(0)
        shape = (SAMPLES, *plan.forward.shapes[LOWER])
        self.batches = [
            Batch(i, 0, True, torch.randn(shape, generator=source), torch.randint(10, (SAMPLES,), generator=source))
            for i in range(BATCHES)
        ]

    def train(self) -> None:
        replay = Replay(
            LOWER, compose_config(["target=local", "replay.size=2", "replay.reuse=3"]).replay, SEED, self.metrics, int
        )
        inbox = Starved([LOWER, UPPER], {}, self.timeline, {LOWER: replay})
        inbox.source = list(self.batches)
        between = MemoryLink(lambda batch: inbox.deliver_batch(UPPER, batch))
        nodes = [Node(self.stages[j], 1, False, link, None) for j, link in ((LOWER, between), (UPPER, self.wire))]
        options = {"eager": False, "fixed_order": False, "deadline": 10.0, "timeline": self.timeline}
        Worker(nodes, inbox, MemoryFeedback(inbox.deliver_feedback), **options).train(0, BATCHES, None)

    def ids(self, kind: str, block: int) -> list[int]:
        """Of the batches of a block's events."""
        return [event.batch for event in events_of(self.timeline.as_tensor()) if event[:2] == (kind, block)]


def test_what_they_leave(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both blocks make them, each recorded and at the learning rate of the next step; scores have the epoch's steps alone,
    and only these leave the process. The blocks then have the weights of ten ordinary steps on the same batches."""
    rates: list[int] = []

    class Recording(Optimizer):
        def step(self, estimates, batch: int) -> None:
            rates.append(batch)
            super().step(estimates, batch)

    monkeypatch.setattr("fgpipe.trainers.build.Optimizer", Recording)
    process = Process("optim=constant")
    process.train()
    ids = [id for id, _ in STEPS]
    for block in (LOWER, UPPER):
        assert process.ids("forward", block) == process.ids("update", block) == ids
    assert rates == [id for id in ids for _ in range(2 * 2)], "of block and head, in both blocks"
    assert process.ids("send", LOWER) == ids and process.ids("send", UPPER) == list(range(BATCHES))
    assert [(batch.id, batch.extra) for batch in process.wire.sent] == [(id, 0) for id in range(BATCHES)]
    assert process.metrics.take()[1, :, 2].tolist() == [BATCHES * SAMPLES * (j in (LOWER, UPPER)) for j in range(8)]
    assert process.metrics.last_batch == BATCHES - 1
    other, through = Process("optim=constant"), []
    for each in [0, 0, 0, 1, 1, 1, 2, 2, 2, 3]:
        for block, batch in ((LOWER, other.batches[each]), (UPPER, None)):
            other.stages[block].train(batch or through.pop(), through.append, lambda reply: None)
        through.clear()
    for block in (LOWER, UPPER):
        pairs = [stage.block.state_dict() for stage in (process.stages[block], other.stages[block])]
        for name, value in pairs[0].items():
            assert torch.equal(value, pairs[1][name]), f"{name} of block {block}"


PROPOSED: dict[int, list[Sequence[Tensor]]] = {}


@guess("gaussian_in_sight")
@dataclass(frozen=True)
class InSight(Gaussian):
    """Gaussian guesses whose every draw is put into `PROPOSED`, by block."""

    def propose(self, view: View) -> Sequence[Tensor]:
        PROPOSED.setdefault(view.key[1], []).append(super().propose(view))
        return PROPOSED[view.key[1]][-1]


@pytest.mark.parametrize("space, scope", [("weight", "tensor"), ("activity", "sample")])
def test_noise(space: str, scope: str) -> None:
    """Every step has noise of its own in guess and update alike; the epoch's steps have that of their number."""
    PROPOSED.clear()
    Process("guess=gaussian_in_sight", f"space={space}", f"scope={scope}", "optim.lr=0.001").train()
    assert PROPOSED.keys() == {LOWER, UPPER}
    for block, found in PROPOSED.items():
        guesses, updates = found[::2], found[1::2]
        assert all(torch.equal(a, b) for pair in zip(guesses, updates, strict=True) for a, b in zip(*pair, strict=True))
        assert len({each[0].sum().item() for each in guesses}) == len(guesses) == len(STEPS)
        for (id, extra), noise in zip(STEPS, guesses, strict=True):
            expected = torch.randn(noise[0].shape, generator=generator(SEED, "guess", block, id))
            assert torch.equal(noise[0], expected) == (not extra)


def test_untrained_heads(monkeypatch: pytest.MonkeyPatch) -> None:
    """As noise: an NTK head is another one in every step, and in the epoch's that of its number."""
    drawn: list[int] = []

    def recording(head, source: torch.Generator) -> None:
        drawn.append(source.initial_seed())
        initialize(head, source)

    monkeypatch.setattr("fgpipe.gradients.guesses.base.initialize", recording)
    Process("guess=ntk", "optim.lr=0.001").train()
    for block, seeds in ((LOWER, drawn[::2]), (UPPER, drawn[1::2])):
        assert len(set(seeds)) == len(seeds) == len(STEPS)
        for (id, extra), seed in zip(STEPS, seeds, strict=True):
            assert (seed == generator(SEED, "ntk", block, id).initial_seed()) == (not extra)
