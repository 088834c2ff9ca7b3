"""A replay buffer by hand-written arrivals: what is taken, what is pushed out, and that every epoch has all its steps."""

import itertools

import pytest
import torch

from fgpipe.config import ReplayConfig
from fgpipe.observe.metrics import REPLAYS, Metrics
from fgpipe.runtime.links.base import Batch
from fgpipe.runtime.replay import Replay, copied


class Buffer:
    """Of block 1; batches hold their own id, so that it is seen what a step is made on."""

    def __init__(self, size: int, reuse: int = 4, take: str = "newest", seed: int = 0) -> None:
        self.metrics, self.room = Metrics(2), 0
        self.replay = Replay(1, ReplayConfig(size, reuse, take), seed, self.metrics, self._make_room)

    def _make_room(self) -> None:
        self.room += 1

    def put(self, *ids: int, training: bool = True) -> None:
        for number in ids:
            self.replay.append(Batch(number, 0, training, torch.tensor([[float(number)]]), torch.zeros(1)))

    def take(self, count: int) -> list[int]:
        """What the next steps are made on; their own ids are counted up."""
        found = []
        for _ in range(count):
            assert len(self.replay)
            batch = self.replay.popleft()
            found.append(int(batch.x.item()))
            self.steps.append(batch.id)
        return found

    def begin(self, start: int, stop: int) -> None:
        self.steps: list[int] = []
        self.replay.begin(range(start, stop))

    @property
    def counts(self) -> dict[str, int]:
        return dict(zip(REPLAYS, self.metrics.incidents(REPLAYS)[1].tolist(), strict=True))


@pytest.mark.parametrize(
    "take, expected",
    [("newest", [2, 1, 0, 2, 1, 0]), ("oldest", [0, 1, 2, 0, 1, 2])],
)
def test_least_used_first(take: str, expected: list[int]) -> None:
    buffer = Buffer(3, reuse=2, take=take)
    buffer.begin(0, 100)
    buffer.put(0, 1, 2)
    assert buffer.take(6) == expected and buffer.steps == list(range(6))
    assert len(buffer.replay) == 0, "all are used up, and the block waits"
    buffer.put(3)
    assert buffer.take(2) == [3, 3] and len(buffer.replay) == 0
    assert buffer.counts == {"reused": 4, "past_limit": 0, "unseen": 0}


@pytest.mark.parametrize("take, kept", [("newest", [4, 3]), ("oldest", [0, 1])])
def test_a_full_buffer(take: str, kept: list[int]) -> None:
    """The most used goes first; of unused ones that whose turn is last. The receiver has room at once."""
    buffer = Buffer(2, reuse=1, take=take)
    buffer.begin(0, 100)
    buffer.put(0, 1, 2, 3, 4)
    assert buffer.room == 5 and buffer.take(2) == kept and buffer.counts["unseen"] == 3
    buffer.put(5)
    assert buffer.take(1) == [5] and buffer.counts["unseen"] == 3, "a used one has gone"


def test_random() -> None:
    """Every batch comes up and is pushed out; the same seed gives the same."""

    def run(seed: int) -> list[int]:
        buffer = Buffer(3, reuse=2, take="random", seed=seed)
        buffer.begin(0, 1000)
        found = []
        for number in range(60):
            buffer.put(number)
            if number % 2:
                found += buffer.take(1)
        return found

    assert run(1) == run(1) != run(2)
    ages = {number - taken for number, taken in zip(range(1, 60, 2), run(1), strict=True)}
    assert len(ages) > 2, "neither always the newest nor always the oldest"


@pytest.mark.parametrize("size, reuse, take", [*itertools.product((1, 3), (1, 4), ("newest", "oldest", "random"))])
@pytest.mark.parametrize("order", ["fast below", "slow below", "in turn"])
def test_every_step_of_every_epoch(size: int, reuse: int, take: str, order: str) -> None:
    """As many steps as batches whatever comes when; each was trained on, again, or is counted as unseen."""
    buffer, batches = Buffer(size, reuse, take), 10
    for epoch in range(3):
        start, stop = epoch * batches, (epoch + 1) * batches
        if epoch == 1:
            buffer.put(start)  # the block below has begun before this one has
        buffer.begin(start, stop)
        made: list[int] = []
        for number in range(start, stop):
            if (epoch, number) != (1, start):
                buffer.put(number)
            if order == "slow below":
                while len(buffer.replay) and len(buffer.steps) < batches:
                    made += buffer.take(1)
            elif order == "in turn" and len(buffer.steps) < batches:
                made += buffer.take(1)
        while len(buffer.steps) < batches:
            made += buffer.take(1)
        assert buffer.steps == list(range(start, stop)) and set(made) <= set(range(start, stop))
        assert len(buffer.replay) == 0, "the epoch is over"
        buffer.put(0, 1, 2, training=False)
        tests = [buffer.replay.popleft() for _ in range(3)]
        assert [(batch.id, batch.training) for batch in tests] == [(0, False), (1, False), (2, False)]
        assert buffer.room == (epoch + 1) * (batches + 3)
        assert buffer.counts["reused"] == buffer.counts["unseen"]
    assert reuse > 1 or order == "fast below" or buffer.counts["reused"] == buffer.counts["past_limit"] == 0


def test_past_the_limit() -> None:
    """A slow block: only the last batch is left, and nothing else will come."""
    buffer = Buffer(1, reuse=2)
    buffer.begin(0, 4)
    buffer.put(0, 1, 2, 3)
    assert buffer.take(4) == [3] * 4
    assert buffer.counts == {"reused": 3, "past_limit": 2, "unseen": 3}


def test_order() -> None:
    """Batches come one after the other, over epochs too."""
    buffer = Buffer(4)
    buffer.begin(0, 3)
    buffer.put(0, 1)
    for wrong in (1, 3):
        with pytest.raises(RuntimeError, match=f"^block 1 got batch {wrong} where batch 2 was due$"):
            buffer.put(wrong)
    buffer.put(2, 3)


def test_a_copy() -> None:
    """The receiver's buffer may be overwritten; strides stay, as kernels choose by them."""
    x = torch.randn(2, 3, 4, 4).contiguous(memory_format=torch.channels_last)
    batch = Batch(0, 0, True, x, torch.zeros(2))
    kept = copied(batch)
    want = x.clone()
    x.zero_()
    assert torch.equal(kept.x, want) and kept.x.stride() == x.stride()
    assert copied(Batch(0, 0, False, x, torch.zeros(2))).x is x
