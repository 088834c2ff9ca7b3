"""Extra steps in a process of two blocks below the last, where a batch arrives when and only when nothing can be done.

With three uses for each of four batches that is, in both blocks: step 0, two extra steps on its batch, step 1, two extra
steps on that one, step 2, two more, and step 3, after which no other comes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from fgpipe.config import compose_config
from fgpipe.config.rng import generator
from fgpipe.gradients.guesses import View, guess
from fgpipe.gradients.guesses.gaussian import Gaussian
from fgpipe.gradients.optim import Optimizer
from fgpipe.models.init import initialize
from fgpipe.observe.ledger import Ledger
from fgpipe.observe.metrics import Metrics
from fgpipe.observe.observers import Observers
from fgpipe.observe.timeline import Timeline, events_of
from fgpipe.plan.plan import DataFacts, Plan
from fgpipe.trainers.build import local_stages
from fgpipe.trainers.phases import Phases
from fgpipe.trainers.worker import Worker
from fgpipe.wire.batch import Batch, within_process
from fgpipe.wire.inbox import Arrivals, Inbox
from fgpipe.wire.post import Post
from fgpipe.wire.replay import Replay
from tests.runtime.noise import noise

BATCHES, SAMPLES, SEED = 4, 8, 5
LOWER, UPPER = 2, 3
STEPS = [(0, 0), (1, 1), (1, 2), (1, 0), (2, 3), (2, 4), (2, 0), (3, 5), (3, 6), (3, 0)]
"""Ids, and numbers of the extra ones."""


class Wire(Post):
    """To another process, in whose place batches are kept."""

    def __init__(self, inbox: Inbox) -> None:
        super().__init__(inbox)
        self.sent: list[Batch] = []

    def up(self, block: int, batch: Batch) -> None:
        if self.inbox.holds(block + 1):
            super().up(block, batch)
        else:
            self.sent.append(batch)


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
        self.plan = plan = Plan.make(compose_config([*keys, *overrides]), DataFacts(BATCHES, 1, 10, 3, 16, 16))
        self.metrics, self.timeline = Metrics(8), Timeline(on=True)
        self.stages = {stage.index: stage for stage in local_stages(plan) if stage.index in (LOWER, UPPER)}
        self.batches = [noise(plan, LOWER, batch) for batch in range(BATCHES)]
        config = compose_config(["target=local", "replay.size=2", "replay.reuse=3"]).replay
        replay = Replay(LOWER, config, SEED, self.metrics, lambda: None)
        inbox = Starved({LOWER: replay, UPPER: Arrivals()}, {}, self.timeline)
        inbox.source, self.wire = list(self.batches), Wire(inbox)

    def train(self) -> None:
        observers = Observers(self.metrics, Ledger(8), self.timeline)
        clocks = {j: Phases(j, self.timeline) for j in self.stages}
        Worker(self.plan, list(self.stages.values()), self.wire, observers, clocks).train(0, BATCHES, None)

    def ids(self, kind: str, block: int) -> list[int]:
        """Ids of the batches of a block's events."""
        return [event.batch for event in events_of(self.timeline.as_tensor()) if event[:2] == (kind, block)]


def test_what_they_leave(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both blocks make them, each recorded and at the learning rate of the next step; scores have the epoch's steps alone,
    and only these leave the process. The blocks then have the weights of ten ordinary steps on the same batches."""
    rates: list[int] = []

    class Recording(Optimizer):
        def step(self, estimates, batch: int) -> None:
            rates.append(batch)
            super().step(estimates, batch)

    monkeypatch.setattr("fgpipe.trainers.learner.Optimizer", Recording)
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
    other = Process("optim=constant")
    through: list[Batch] = []
    for each in [0, 0, 0, 1, 1, 1, 2, 2, 2, 3]:
        for block, batch in ((LOWER, other.batches[each]), (UPPER, None)):
            given = batch or through.pop()
            through += [within_process(each) for each in other.stages[block].run(given) if isinstance(each, Batch)]
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
        for (id, extra), drawn in zip(STEPS, guesses, strict=True):
            expected = torch.randn(drawn[0].shape, generator=generator(SEED, "guess", block, id))
            assert torch.equal(drawn[0], expected) == (not extra)


def test_untrained_heads(monkeypatch: pytest.MonkeyPatch) -> None:
    """NTK heads are like noise: another one in every step, and in the epoch's that of its number."""
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
