"""A replay buffer by hand-written arrivals: what is taken, what is pushed out, and that every epoch has all its steps."""

import itertools

import pytest
import torch

from fgpipe.config import ReplayConfig
from fgpipe.observe.metrics import REPLAYS, Metrics
from fgpipe.wire.batch import Batch
from fgpipe.wire.replay import Replay, copied


class Buffer:
    """Buffer of block 1; batches hold their own id, so that it is seen what a step is made on."""

    def __init__(self, size: int, reuse: int = 4, take: str = "newest", seed: int = 0) -> None:
        self.metrics, self.room = Metrics(2), 0
        self.extras: list[int] = []
        self.replay = Replay(1, ReplayConfig(size, reuse, take), seed, self.metrics, self._make_room)

    def _make_room(self) -> None:
        self.room += 1

    def put(self, *ids: int, training: bool = True) -> None:
        for number in ids:
            self.replay.append(Batch(number, 0, training, torch.tensor([[float(number)]]), torch.zeros(1)))

    def take(self, count: int) -> list[int]:
        """Batches of the next steps, extra ones included; ids of the epoch's are counted up, and numbers of others."""
        found = []
        for _ in range(count):
            assert len(self.replay)
            batch = self.replay.popleft()
            found.append(int(batch.x.item()))
            if batch.extra:
                self.extras.append(batch.extra)
                assert batch.id == self.start + len(self.steps), "that of the step which comes next"
            else:
                self.steps.append(batch.id)
                self.on.append(found[-1])
        return found

    def begin(self, start: int, stop: int) -> None:
        self.start = start
        self.steps: list[int] = []
        self.on: list[int] = []
        self.replay.begin(range(start, stop))

    @property
    def counts(self) -> dict[str, int]:
        return dict(zip(REPLAYS, self.metrics.incidents(REPLAYS)[1].tolist(), strict=True))


@pytest.mark.parametrize(
    "take, expected",
    [("newest", [2, 1, 0, 2, 1, 0]), ("oldest", [0, 1, 2, 0, 1, 2])],
)
def test_least_used_first(take: str, expected: list[int]) -> None:
    """Three steps on new batches, then extra ones on used batches."""
    buffer = Buffer(3, reuse=2, take=take)
    buffer.begin(0, 100)
    buffer.put(0, 1, 2)
    assert buffer.take(6) == expected and buffer.steps == [0, 1, 2] and buffer.extras == [1, 2, 3]
    assert len(buffer.replay) == 0, "all are used up, and the block waits"
    buffer.put(3)
    assert buffer.take(2) == [3, 3] and len(buffer.replay) == 0
    assert buffer.steps == [0, 1, 2, 3] and buffer.extras == [1, 2, 3, 4]
    assert buffer.counts == {"extra": 4, "reused": 0, "past_limit": 0, "unseen": 0}


def test_a_new_batch_is_a_step() -> None:
    """Whenever there is one, whatever extra steps have been made; no step is ever made on a used one while others come."""
    buffer = Buffer(4, reuse=10)
    buffer.begin(0, 4)
    buffer.put(0)
    assert buffer.take(4) == [0, 0, 0, 0] and buffer.steps == [0] and buffer.extras == [1, 2, 3]
    buffer.put(1, 2)
    assert buffer.take(3) == [2, 1, 2] and buffer.steps == [0, 1, 2] and buffer.extras == [1, 2, 3, 4]
    buffer.put(3)
    assert buffer.take(1) == [3] and buffer.steps == [0, 1, 2, 3] and len(buffer.replay) == 0, (
        "the last one ends the epoch"
    )
    assert buffer.counts == {"extra": 4, "reused": 0, "past_limit": 0, "unseen": 0}


def test_draws_have_names_of_their_own() -> None:
    """Draws of every step and every extra one; those of the epoch's steps have their ids'."""
    buffer = Buffer(2, reuse=3)
    buffer.begin(0, 4)
    batches = []
    for number in range(4):
        buffer.put(number)
        while len(buffer.replay):
            batches.append(buffer.replay.popleft())
    assert [(batch.id, batch.extra) for batch in batches[:4]] == [(0, 0), (1, 1), (1, 2), (1, 0)]
    assert len({batch.draw for batch in batches}) == len(batches) == 4 + buffer.counts["extra"]
    assert [batch.draw for batch in batches if not batch.extra] == list(range(4))
    assert [batch.name for batch in batches[:2]] == ["batch 0", "an extra step before batch 1"]


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
    """Steps are as many as batches whatever comes when. At a slow block batches are unseen, and as many steps are made
    on used ones; above one, each step is made on another batch, and there are as many extra ones as the limit
    allows."""
    buffer, batches = Buffer(size, reuse, take), 10
    for epoch in range(3):
        start, stop = epoch * batches, (epoch + 1) * batches
        if epoch == 1:
            buffer.put(start)  # the block below has begun before this one has
        buffer.begin(start, stop)
        for number in range(start, stop):
            if (epoch, number) != (1, start):
                buffer.put(number)
            if order == "slow below":
                while len(buffer.replay) and len(buffer.steps) < batches:
                    buffer.take(1)
            elif order == "in turn" and len(buffer.steps) < batches:
                buffer.take(1)
        while len(buffer.steps) < batches:
            buffer.take(1)
        assert buffer.steps == list(range(start, stop)) and set(buffer.on) <= set(range(start, stop))
        assert len(buffer.replay) == 0, "the epoch is over"
        buffer.put(0, 1, 2, training=False)
        tests = [buffer.replay.popleft() for _ in range(3)]
        assert [(batch.id, batch.training) for batch in tests] == [(0, False), (1, False), (2, False)]
        assert buffer.room == (epoch + 1) * (batches + 3)
        unseen = batches - len(set(buffer.on))
        assert buffer.counts["reused"] == buffer.counts["unseen"] == (epoch + 1) * unseen
        assert (unseen > 0) == (order == "fast below"), "ten come before a step is made, to a buffer of three"
    assert buffer.extras == list(range(1, buffer.counts["extra"] + 1))
    assert len(buffer.extras) == (3 * (batches - 1) * (reuse - 1) if order == "slow below" else 0)


def test_past_the_limit() -> None:
    """A slow block: only the last batch is left, and nothing else will come, so that these are the epoch's own steps."""
    buffer = Buffer(1, reuse=2)
    buffer.begin(0, 4)
    buffer.put(0, 1, 2, 3)
    assert buffer.take(4) == [3] * 4 and buffer.steps == [0, 1, 2, 3]
    assert buffer.counts == {"extra": 0, "reused": 3, "past_limit": 2, "unseen": 3}


def test_pushed_out_and_more_to_come() -> None:
    """Batch 0 went unseen. While others are due, used ones are for extra steps; the step that is missing is made last."""
    buffer = Buffer(1, reuse=3)
    buffer.begin(0, 4)
    buffer.put(0, 1)
    assert buffer.take(2) == [1, 1] and buffer.steps == [0] and buffer.extras == [1]
    buffer.put(2)
    assert buffer.take(3) == [2, 2, 2] and buffer.steps == [0, 1] and len(buffer.replay) == 0
    buffer.put(3)
    assert buffer.take(2) == [3, 3] and buffer.steps == [0, 1, 2, 3]
    assert buffer.counts == {"extra": 3, "reused": 1, "past_limit": 0, "unseen": 1}


def test_a_copy() -> None:
    """The receiver's buffer may be overwritten; strides stay, as kernels choose by them."""
    x = torch.randn(2, 3, 4, 4).contiguous(memory_format=torch.channels_last)
    batch = Batch(0, 0, True, x, torch.zeros(2))
    kept = copied(batch)
    want = x.clone()
    x.zero_()
    assert torch.equal(kept.x, want) and kept.x.stride() == x.stride()
    assert copied(Batch(0, 0, False, x, torch.zeros(2))).x is x
