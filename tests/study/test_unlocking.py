"""The order checks on hand-written events, what is kept by hand count, and both on real processes."""

from collections.abc import Sequence

import pytest
import torch
from torch import nn

from fgpipe.assembly import DataFacts, Plan
from fgpipe.config import compose_config
from fgpipe.models.heads import Head
from fgpipe.models.net import Net
from fgpipe.observe import trace
from fgpipe.observe.timeline import COMPUTE, Event
from fgpipe.study.kept import Storages, kept_by_blocks, kept_together
from fgpipe.study.orders import Spans, backward_locked, backward_unlocked, extra_compute, spans, update_unlocked
from fgpipe.study.series import launch
from fgpipe.study.unlocking import BATCHES, LAST, Cell, Row, _bytes, cells, table

LOCAL = [Event("forward", 0, 5, -1, 0, 10), Event("update", 0, 5, -1, 12, 20), Event("forward", 1, 5, -1, 11, 30)]
GLOBAL = [
    Event("forward", 0, 5, -1, 0, 10), Event("forward", 1, 5, -1, 11, 30), Event("scalars", 0, 5, 1, 40, 42),
    Event("update", 0, 5, -1, 43, 50), Event("update", 1, 5, -1, 41, 60),
]  # fmt: skip
LOCKED = [
    *(Event("forward", 0, 5, m, 10 * m, 10 * m + 9) for m in range(2)), *(Event("forward", 1, 5, m, 20 + m, 21 + m) for m in range(2)),
    *(Event("backward", 1, 5, m, 30 + m, 31 + m) for m in range(2)), *(Event("backward", 0, 5, m, 40 + m, 41 + m) for m in range(2)),
    Event("update", 0, 5, -1, 50, 60), Event("update", 1, 5, -1, 35, 39),
]  # fmt: skip


def moved(events: Sequence[Event], kind: str, block: int, began: int, ended: int) -> Spans:
    """The events with other times for one."""
    return spans(each._replace(began=began, ended=ended) if each[:2] == (kind, block) else each for each in events)


def test_update_unlocked() -> None:
    assert update_unlocked(spans(LOCAL), 0).holds and update_unlocked(spans(LOCAL), 0).batches == 1
    assert update_unlocked(moved(LOCAL, "update", 0, 29, 99), 0).holds, "it may end later"
    for began in (30, 31):
        assert not update_unlocked(moved(LOCAL, "update", 0, began, 99), 0).holds
    late = update_unlocked(moved(LOCAL, "update", 0, 2_000_030, 3_000_000), 0)
    assert late.broken == ("batch 5: block 0 updated 2.000 ms after block 1 had finished its forward pass",)
    assert not update_unlocked(spans(LOCAL[:2]), 0).holds, "no forward pass above"
    assert not update_unlocked(spans([]), 0).holds, "nothing was seen"
    for other in (GLOBAL, LOCKED):
        assert not update_unlocked(spans(other), 0).holds


def test_backward_unlocked() -> None:
    assert backward_unlocked(spans(GLOBAL), 0, 1).holds
    assert "before its scalars" in backward_unlocked(moved(GLOBAL, "update", 0, 41, 50), 0, 1).broken[0]
    assert "had finished its own update" in backward_unlocked(moved(GLOBAL, "update", 0, 60, 70), 0, 1).broken[0]
    delivered = spans([*GLOBAL, Event("backward", 1, 5, 0, 31, 32)])
    assert "made a backward pass" in backward_unlocked(delivered, 0, 1).broken[0]
    assert "without scalars" in backward_unlocked(spans(LOCAL), 0, 1).broken[0]
    assert not backward_unlocked(spans(LOCKED), 0, 1).holds and not backward_unlocked(spans([]), 0, 1).holds


def test_backward_locked() -> None:
    """The gradient is there when the last microbatch's backward pass above has ended."""
    assert backward_locked(spans(LOCKED), 0).holds
    assert backward_locked(moved(LOCKED, "update", 0, 32, 60), 0).holds
    assert "before the gradient from block 1" in backward_locked(moved(LOCKED, "update", 0, 31, 60), 0).broken[0]
    for other in (LOCAL, GLOBAL, []):
        assert not backward_locked(spans(other), 0).holds


def test_extra_compute() -> None:
    """Batch 5: 10 forward, 5 guess, 15 update; block 1 and waits do not count. The median of 0, 2 and 9."""
    events = [Event("forward", 0, 5, -1, 0, 10), Event("guess", 0, 5, -1, 10, 15), Event("update", 0, 5, -1, 20, 35)]
    events += [Event("wait for input", 0, 5, -1, 15, 20), Event("forward", 1, 5, -1, 0, 1000)]
    events += [Event("forward", 0, 6, -1, 0, 10), Event("forward", 0, 7, -1, 0, 10), Event("update", 0, 7, -1, 10, 100)]
    assert extra_compute(events, COMPUTE, [0]) == 2.0


def test_the_papers_table() -> None:
    """Table 1: a global target unlocks backward, a local one updates, whatever is guessed."""
    assert {(cell.target, cell.unlocking) for cell in cells() if cell.guess != "end_to_end"} == {
        ("global", "backward"),
        ("local", "update"),
    }
    assert len(cells()) == 13
    for events, unlocked in ((LOCAL, "update"), (GLOBAL, "backward"), (LOCKED, "none"), ([], "?")):
        shifted = [each._replace(block=each.block + LAST - 1, other=LAST) for each in events]
        rest = [each._replace(block=block) for each in events if each.block == 0 for block in range(LAST - 1)]
        if events is LOCKED:
            rest += [Event("backward", block, 5, 0, 30, 31) for block in range(LAST)]
        assert Cell("local", "local", "weight", "", "").verdict([*shifted, *rest])[0] == unlocked


def test_bytes_and_table() -> None:
    links = {
        "0->1": {
            "activations": {"bytes": 100 * (BATCHES + 1)},
            "tangents": {"bytes": 20 * BATCHES},
            "control": {"bytes": BATCHES + 1},
        },
        "7->0": {"feedback": {"bytes": 3 * BATCHES}},
        "1->0": {"gradients": {"bytes": 50 * BATCHES}},
    }
    assert _bytes(links) == pytest.approx((121, 53))
    text = table([Row(cells()[1], "backward", 56, 2.345, 121.0, 53.0, 4096)])
    assert (
        "| local | global | weight | backward | backward | 56 | vJp (local) + Jvp | 2.35 | 121 | 53 | 4,096 |" in text
    )


SAMPLES, FLOAT = 16, 8


def small_net() -> Net:
    """Blocks whose graphs are easily counted: linear layers of 64 -> 20 -> 12 -> 5, with a ReLU after the first."""
    torch.manual_seed(0)
    blocks = [nn.Sequential(nn.Flatten(), nn.Linear(64, 20), nn.ReLU()), nn.Linear(20, 12), nn.Linear(12, 5)]
    return Net(blocks, [Head(nn.Linear(20, 10)), Head(nn.Linear(12, 10)), Head(nn.Linear(5, 10))])


def kept(*overrides: str) -> list[Storages]:
    config = compose_config(["dtype=float64", f"batch_size={SAMPLES}", "window=auto", *overrides])
    config.model.blocks = 3
    return kept_by_blocks(Plan.make(config, DataFacts(4, 1, 10, 1, 8, 8), small_net(), 0, 1))


PARAMETERS = [64 * 20 + 20, 20 * 12 + 12]
GRAPHS = [SAMPLES * (64 + 20), SAMPLES * (20 + 12)]
"""Input, and output, which ReLU saves too; in numbers."""


@pytest.mark.parametrize(
    "overrides, numbers",
    [
        (["guess=gaussian"], [0, 0, 0]),
        (["guess=rademacher", "scope=block"], [0, 0, 0]),
        (["guess=local"], [*PARAMETERS, 0]),
        (["guess=ntk"], [*PARAMETERS, 0]),
        (["guess=local", "target=local"], [0, 0, 0]),
        (["guess=ntk", "target=local"], [0, 0, 0]),
        (["guess=gaussian", "space=activity", "window=1"], [*GRAPHS, 0]),
        (["guess=local", "space=activity", "window=1"], [GRAPHS[0] + SAMPLES * 20, GRAPHS[1] + SAMPLES * 12, 0]),
        (["guess=gaussian", "space=activity"], [GRAPHS[0] + PARAMETERS[0], GRAPHS[1] + PARAMETERS[1], 0]),
        (["guess=end_to_end"], [*GRAPHS, SAMPLES * (12 + 5)]),
    ],
)  # fmt: skip
def test_kept(overrides: list[str], numbers: list[int]) -> None:
    """By hand: a random weight guess a seed only, a local one the guess, activity the graph, the guess and, with a window
    above 1, the weights of the batch; backpropagation the graph; a local target nothing."""
    assert [kept_together([storages]) for storages in kept(*overrides)] == [FLOAT * number for number in numbers]


@pytest.mark.parametrize(
    "overrides, in_flight, numbers",
    [
        (["guess=local"], [1, 1], [1, 1, 0, 0]),
        (["guess=end_to_end"], [1, 1], [0, 0, 1, 1]),
        (["guess=end_to_end"], [4, 4], [0, 0, 4, 4]),
        (["guess=gaussian", "space=activity", "window=1"], [1, 1], [0, 0, 1, 1]),
        (["guess=gaussian", "space=activity"], [3, 2], [3, 2, 3, 2]),
    ],
)  # fmt: skip
def test_kept_in_one_process(overrides: list[str], in_flight: list[int], numbers: list[int]) -> None:
    """By hand, of blocks 0 and 1 together: the weights of each, the input and the output of block 0, which is the input of
    block 1 and there once, and the output of block 1."""
    sizes = [*PARAMETERS, SAMPLES * (64 + 20), SAMPLES * 12]
    expected = FLOAT * sum(number * size for number, size in zip(numbers, sizes, strict=True))
    assert kept_together(kept(*overrides)[:2], in_flight) == expected


@pytest.fixture(scope="module")
def events(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Spans]:
    """Of three runs with a slow block in 8 processes."""
    folder = tmp_path_factory.mktemp("unlocking")
    common = [
        "epochs=1", f"data.train_samples={8 * 32}", "batch_size=32", "data.test_samples=32", "model.width=0.07", "threads=1",
        "device=cpu", "observe.tensorboard=false", "trace=true", "window=auto", "slow.factor=100", "deadline=600", "head=linear",
    ]  # fmt: skip
    runs = {
        "local": ["target=local", "slow.block=4"],
        "global": ["lanes=1", "slow.block=7", "slow.factor=300"],  # a busy machine must not outlast its last phase
        "backpropagation": ["guess=end_to_end", "schedule=1f1b", "microbatches=8", "slow.block=4"],
    }
    launch([[*common, *run, f"run_dir={folder / name}"] for name, run in runs.items()], 8, folder / "runs.json")
    return {
        name: spans(each for of in trace.read(folder / name / "trace.json").values() for each in of) for name in runs
    }


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_local_target_unlocks_updates(events: dict[str, Spans]) -> None:
    """Below the slow block, every batch; and the negative control: backpropagation fails this check, as it must."""
    verdict = update_unlocked(events["local"], 3)
    assert verdict.holds and verdict.batches == 8, verdict.broken
    assert len(update_unlocked(events["backpropagation"], 3).broken) == 8


@pytest.mark.slow
def test_global_target_unlocks_backward(events: dict[str, Spans]) -> None:
    """Every block below the slow target, every batch; neither other run passes."""
    for block in range(7):
        verdict = backward_unlocked(events["global"], block, 7)
        assert verdict.holds and verdict.batches == 8, verdict.broken
        assert len(update_unlocked(events["global"], block).broken) == 8
        assert not backward_unlocked(events["local"], block, 7).holds
        assert not backward_unlocked(events["backpropagation"], block, 7).holds


@pytest.mark.slow
def test_backpropagation_is_locked(events: dict[str, Spans]) -> None:
    """Every block's every update comes after the gradient from above; the other runs have none."""
    for block in range(7):
        verdict = backward_locked(events["backpropagation"], block)
        assert verdict.holds and verdict.batches == 8, verdict.broken
        assert not backward_locked(events["local"], block).holds and not backward_locked(events["global"], block).holds
