"""The order checks on hand-written events, what is kept by hand count, and both on real processes."""

import json
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import nn

from fgpipe.config import compose_config
from fgpipe.models.heads import Head
from fgpipe.models.net import Net
from fgpipe.observe import trace
from fgpipe.observe.timeline import Event
from fgpipe.plan.plan import DataFacts, Plan
from fgpipe.study.__main__ import main
from fgpipe.study.contests.kept import Storages, kept_by_blocks, kept_together
from fgpipe.study.probes import unlocking
from fgpipe.study.probes.orders import Spans, backward_locked, backward_unlocked, spans, update_unlocked
from fgpipe.study.probes.unlocking import (
    BATCHES,
    LAST,
    UnlockingRow,
    bytes_per_batch,
    cells,
    extra_compute,
    table,
    verdict,
)
from fgpipe.study.simulator.calibration import slices
from tests.integration.launching import fork
from tests.observe.chrome import faults

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
    """Two blocks with forward passes of 10 and 30. Backpropagation: 80 of backward passes. Ours, where the optimizer's
    steps (1 and 3) are in the updates: 20 of guesses, and 40 in updates."""
    plain = [{"forward": 10, "backward": 20, "update": 1}, {"forward": 30, "backward": 60, "update": 3}]
    assert extra_compute(plain, plain) == 80 / 40
    ours = [{"forward": 10, "guess": 5, "update": 1 + 10}, {"forward": 30, "guess": 15, "update": 3 + 30}]
    assert extra_compute(ours, plain) == 60 / 40


def test_extra_compute_of_a_trace() -> None:
    """From events of one process, by way of `calibration.slices`: a forward pass of 10 s, then a guess of 30 s, and an
    update of 25 s with 5 s of an optimizer's step in it. The two batches before do not count."""
    events, second = [], 10**9
    for batch in range(5):
        start = 1000 * batch + (100 if batch < 2 else 0)
        for kind, began, ended in (("forward", 0, 10), ("guess", 10, 40), ("update", 40, 65)):
            events.append(Event(kind, 0, batch, -1, (start + began) * second, (start + ended) * second))
        start_of_next = Event("loss", 1, batch, -1, (start + 65) * second, 1000 * (batch + 1) * second)
        events.append(start_of_next)  # the last block's, up to where the next batch begins
    costs = slices(events)[:1]
    assert extra_compute(costs, [{"forward": 10, "update": 5}]) == pytest.approx((30 + 20) / 10)


def test_the_papers_table() -> None:
    """Table 1: a global target unlocks backward, a local one updates, whatever is guessed."""
    assert {(cell.target, cell.unlocking) for cell in cells() if cell.guess != "end_to_end"} == {
        ("global", "backward"),
        ("local", "update"),
    }
    assert len(cells()) == 13


def by_hand(events: Sequence[Event], slow: int) -> list[Event]:
    """Blocks 0 and 1 above: the first as all blocks below the slow one, the second as the slow one and those above."""
    return [
        each._replace(block=block) for each in events for block in (range(slow) if each.block == 0 else range(slow, 8))
    ]


def test_verdict() -> None:
    """A run for each slow block; every one must have its order, and all pairs of a block and the one above are looked at."""
    for events, unlocked, checked in (
        (LOCAL, "update", 7),
        (GLOBAL, "backward", 7 + 6),
        (LOCKED, "none", 7 * 7),
        ([], "?", 0),
    ):
        found = {slow: by_hand(events, slow) for slow in range(1, 8)}
        name, together = verdict({slow: spans(of_run) for slow, of_run in found.items()})
        assert (name, together.batches) == (unlocked, checked)
        if events in (LOCAL, GLOBAL):
            for slow, of_slow in found.items():
                late = moved(of_slow, "update", slow - 1, 100, 101)
                rest = {other: spans(of_run) for other, of_run in found.items() if other != slow}
                assert verdict({**rest, slow: late})[0] == "?", slow
                assert slow == LAST or verdict(rest)[0] == "?", "a run is missing"
    assert verdict({LAST: spans(by_hand(LOCKED, LAST))})[0] == "none", "its order needs no other slow block"


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
    assert bytes_per_batch(links) == pytest.approx((121, 53))
    text = table([UnlockingRow(cells()[1], "backward", 52, 2.345, 121.0, 53.0, 4096)])
    assert (
        "| local | global | weight | backward | backward | 52 | vJp (local) + Jvp | 2.35 | 121 | 53 | 4,096 |" in text
    )


def fake(runs: Sequence[Sequence[str]], processes: int, file: Path) -> None:
    """In place of `series.launch`: hand-written traces, and summaries."""
    for run in runs:
        keys = dict(override.partition("=")[::2] for override in run)
        events = LOCKED if keys["guess"] == "end_to_end" else {"local": LOCAL, "global": GLOBAL}[keys["target"]]
        found = by_hand(events, int(keys.get("slow.block", LAST)))
        if processes == 1:
            at = sorted(
                (block, kind, batch) for block in range(8) for kind in ("forward", "update") for batch in (2, 3)
            )
            found = [Event(kind, block, batch, -1, place, place + 1) for place, (block, kind, batch) in enumerate(at)]
        path = Path(json.loads(keys["run_dir"]))
        path.mkdir(parents=True)
        trace.write(path / "trace.json", {0: found}, {0: "all"}, {})
        figures = {"test_accuracy": 0.1, "machine": "a machine", "commit": "abc", "bytes": {}}
        (path / "summary.json").write_text(json.dumps(figures))


def test_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """An interrupted study goes on: a run with a trace and no summary is run again, and no other one. Its folder may have
    any name. The file says what it was made with."""
    started: list[tuple[int, int]] = []

    def launched(runs: Sequence[Sequence[str]], processes: int, file: Path) -> None:
        started.append((processes, len(runs)))
        run_dir = compose_config(runs[0]).run_dir
        assert run_dir is not None and Path(run_dir).parent == study
        fake(runs, processes, file)

    monkeypatch.setattr(unlocking, "launch", launched)
    monkeypatch.setattr(unlocking, "kept_by_blocks", lambda plan: [{}] * 8)  # takes long, and has its tests below
    study, out = tmp_path / "a,b (1) {c}", tmp_path / "out"
    arguments = ["unlocking", str(study), "model.width=0.07", "batch_size=8", f"out={out}"]
    assert main(arguments) == 0
    assert started == [(8, 12 * 7 + 1), (1, 13)]
    for name in ("local-local-weight-slow-3", "ntk-global-activity-alone"):
        (study / name / "summary.json").unlink()
    (out / "unlocking.md").unlink()
    assert main(arguments) == 0 and started[2:] == [(8, 1), (1, 1)]
    assert main(arguments) == 0 and len(started) == 4
    text = (out / "unlocking.md").read_text()
    assert "python -m fgpipe.study unlocking FOLDER model.width=0.07 batch_size=8\n" in text
    assert "Width 0.07, batch 8, 4 batches, a process for each block. On a machine; commit abc." in text
    assert "| ntk | global | activity | backward | backward | 13 | vJp (local) + Jvp |" in text
    assert not (study / "unlocking.md").exists()
    broken = trace.events(study / "local-local-weight-slow-3" / "trace.json")
    late = [each._replace(began=100, ended=101) if each.kind == "update" else each for each in broken]
    trace.write(study / "local-local-weight-slow-3" / "trace.json", {0: late}, {0: "all"}, {})
    assert main(arguments) == 1
    assert "| local | local | weight | update | ? |" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments, expected", [
        (["model.width=0.07"], "model.width=0.07: allowed: FOLDER [key=value ...]"),
        (["FOLDER", "model.blocks=16"], "model.blocks=16: allowed: 8, one for each process"),
        (["FOLDER", "batch_size=0"], "batch_size=0: allowed: "),
    ],
)  # fmt: skip
def test_bad_input(arguments: list[str], expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = [str(tmp_path / "study") if each == "FOLDER" else each for each in arguments]
    assert main(["unlocking", *found]) == 2
    message = capsys.readouterr().err
    assert message.startswith(f"fgpipe: {expected}") and message.count("\n") == 1
    assert not (tmp_path / "study").exists()


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
    """Sums by hand: a random weight guess a seed only, a local one the guess, activity the graph, the guess and, with a
    window above 1, the weights of the batch; backpropagation the graph; a local target nothing."""
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
    """Sums by hand, of blocks 0 and 1 together: the weights of each, the input and the output of block 0, which is the
    input of block 1 and there once, and the output of block 1."""
    sizes = [*PARAMETERS, SAMPLES * (64 + 20), SAMPLES * 12]
    expected = FLOAT * sum(number * size for number, size in zip(numbers, sizes, strict=True))
    assert kept_together(kept(*overrides)[:2], in_flight) == expected


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    """Folder with the runs in which a block is slow; they are made when they are asked for first, a few or all others."""

    @cache
    def made(blocks: tuple[int, ...]) -> Path:
        return run_with_slow(blocks, tmp_path_factory.mktemp("unlocking"))

    return lambda block: made(FEW if block in FEW else tuple(set(range(1, 8)) - set(FEW)))


@pytest.fixture
def folder(folders: Callable[[int], Path]) -> Path:
    """The folder with block 4."""
    return folders(4)


def run_with_slow(blocks: Sequence[int], folder: Path) -> Path:
    """Run in 8 processes, each time with one of these blocks that is slow, with either target, and backpropagation."""
    common = [
        "epochs=1", f"data.train_samples={RUN_BATCHES * 8}", "batch_size=8", "data.test_samples=8", "model.width=0.07",
        "threads=1", "device=cpu", "observe.tensorboard=false", "trace=true", "window=auto", "head=linear",
        "slow.factor=100", "deadline=600",
    ]  # fmt: skip
    runs = {f"local-{block}": ["target=local", f"slow.block={block}"] for block in blocks}
    runs |= {f"global-{block}": ["lanes=1", f"slow.block={block}"] for block in blocks}
    runs["backpropagation"] = ["guess=end_to_end", "schedule=1f1b", "microbatches=8", "slow.block=4"]
    (folder / "runs.json").write_text(
        json.dumps([[*common, *run, f"run_dir={folder / name}"] for name, run in runs.items()])
    )
    done = fork(8, "-m", "fgpipe.study.common.series", str(folder / "runs.json"))
    assert done.returncode == 0, done.stderr
    return folder


def spans_of(folder: Path, name: str) -> Spans:
    return spans(trace.events(folder / name / "trace.json"))


RUN_BATCHES = 4
"""Batches of each of these runs."""
FEW = (1, 4, 7)
"""Slow blocks of tests that are not long."""
SLOW = [pytest.param(block, marks=() if block in FEW else pytest.mark.long) for block in range(1, 8)]


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("slow", SLOW)
def test_local_target_unlocks_updates(slow: int, folders: Callable[[int], Path]) -> None:
    """Below each slow block, every batch; and the negative controls: a global target and backpropagation fail this check,
    as they must."""
    folder, block = folders(slow), slow - 1
    found = update_unlocked(spans_of(folder, f"local-{slow}"), block)
    assert found.holds and found.batches == RUN_BATCHES, found.broken
    for other in (f"global-{slow}", "backpropagation"):
        assert len(update_unlocked(spans_of(folder, other), block).broken) == RUN_BATCHES


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("slow", SLOW)
def test_global_target_unlocks_backward(slow: int, folders: Callable[[int], Path]) -> None:
    """The block below each slow one, and each below the target when that is slow; every batch. No other run passes."""
    folder = folders(slow)
    for block in range(7) if slow == 7 else [slow - 1]:
        found = backward_unlocked(spans_of(folder, f"global-{slow}"), block, slow)
        assert found.holds and found.batches == RUN_BATCHES, found.broken
        for other in (f"local-{slow}", "backpropagation"):
            assert len(backward_unlocked(spans_of(folder, other), block, slow).broken) == RUN_BATCHES


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("block", range(7))
def test_backpropagation_is_locked(block: int, folder: Path) -> None:
    """Every block's every update comes after the gradient from above; the other runs have none."""
    found = backward_locked(spans_of(folder, "backpropagation"), block)
    assert found.holds and found.batches == RUN_BATCHES, found.broken
    for other in ("local-4", "global-4"):
        assert not backward_locked(spans_of(folder, other), block).holds


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", ["local-4", "global-4", "backpropagation"])
def test_traces_load(name: str, folder: Path) -> None:
    """A trace of 8 processes is what Chrome's format says, and has each of them."""
    made = json.loads((folder / name / "trace.json").read_text())
    assert list(faults(made)) == []
    assert {record["pid"] for record in made["traceEvents"] if record["ph"] == "X"} == set(range(8))
