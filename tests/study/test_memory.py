"""Memory that is kept, by PyTorch's allocator and by hand; what is in flight; the tables; and one real study."""

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from fgpipe.config import compose_config
from fgpipe.gradients.guesses.registry import OWN
from fgpipe.plan.plan import DataFacts, Plan
from fgpipe.study.__main__ import main
from fgpipe.study.common.ways import Way
from fgpipe.study.contests import memory
from fgpipe.study.contests.contest import Contest
from fgpipe.study.contests.kept import Storages, kept_by_blocks, kept_together
from fgpipe.study.contests.memory import (
    MemoryOptions,
    MemoryRow,
    by_process,
    contestants,
    in_flight,
    kept_table,
    peak_table,
    peaks,
    ways,
)
from fgpipe.trainers.build import local_stages
from fgpipe.trainers.stage import Stage
from fgpipe.wire.batch import Batch, within_process

SAMPLES = 16


def plan(*overrides: str) -> Plan:
    """Plan of ResNet-18 in 8 narrow blocks on images of 3 x 16 x 16, in one process."""
    config = compose_config(["model.width=0.07", f"batch_size={SAMPLES}", "window=auto", "device=cpu", *overrides])
    return Plan.make(config, DataFacts(4, 1, 10, 3, 16, 16))


def stages(of: Plan) -> list[Stage]:
    """Connected to nothing."""
    return local_stages(of)


def images() -> Batch:
    """The first batch, of noise."""
    source = torch.Generator().manual_seed(0)
    x = torch.randn(SAMPLES, 3, 16, 16, generator=source).contiguous(memory_format=torch.channels_last)
    return Batch(0, 0, True, x, torch.randint(10, (SAMPLES,), generator=source))


def copied(batch: Batch, id: int) -> Batch:
    """Another batch with tensors of its own, the tangent's too."""
    tangent = batch.tangent and replace(batch.tangent, value=batch.tangent.value.clone())
    return replace(batch, id=id, x=batch.x.clone(), tangent=tangent)


def bytes_of(kept: Sequence[Storages]) -> list[int]:
    """Bytes by block."""
    return [kept_together([storages]) for storages in kept]


def train(stages: Sequence[Stage], batch: Batch) -> Batch:
    """Send a batch through blocks of one process; returns what the last one sends, else gets."""
    for stage in stages:
        sent = [within_process(message) for message in stage.run(batch) if isinstance(message, Batch)]
        batch = (sent or [batch])[0]
    return batch


def growth(stages: Sequence[Stage], batch: Batch, ids: range, folder: Path) -> int:
    """Bytes that PyTorch's allocator gave out while a process trained on copies of a batch, and did not get back."""
    return allocated(lambda id: train(stages, copied(batch, id)), ids, folder)


def allocated(step: Callable[[int], object], ids: range, folder: Path) -> int:
    """Bytes that PyTorch's allocator gave out during steps, and did not get back."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        for id in ids:
            step(id)
    profiled.export_chrome_trace(str(folder / "memory.json"))
    events = json.loads((folder / "memory.json").read_text())["traceEvents"]
    found = [event["args"]["Bytes"] for event in events if event["name"] == "[memory]"]
    assert len(found) > 10, "a forward pass allocates"
    return sum(found)


@pytest.mark.parametrize(
    "overrides, keeps", [
        (["guess=gaussian", "lanes=1"], False),
        (["guess=rademacher", "lanes=1"], False),
        (["guess=gaussian", "scope=block", "target=intermediate"], False),
        (["guess=local", "lanes=1"], True),
        (["guess=ntk", "scope=block"], True),
        (["guess=gaussian", "space=activity", "lanes=1", "window=1"], True),
        (["guess=local", "space=activity", "lanes=1", "window=1"], True),
    ],
)  # fmt: skip
def test_what_the_allocator_says(overrides: list[str], keeps: bool, tmp_path: Path) -> None:
    """With 1, 2 and 4 more batches in flight: of random weight guesses not a byte, graphs, guesses, activations and lanes
    together; of the others, the controls, as many times what `study.contests.kept` says. It walks graphs and guesses; this counts
    allocations. With a window of 1 nothing has to be copied in activity space, which is for `test_copies_of_weights`."""
    made = plan(*overrides)
    batch = images()
    for stage, expected in zip(stages(made)[:-1], bytes_of(kept_by_blocks(made)), strict=False):
        above = train([stage], batch)  # makes what is made once, as a head's momentum
        first = 1
        for count in (1, 2, 4):
            assert growth([stage], batch, range(first, first + count), tmp_path) == count * expected
            first += count
        assert len(stage.in_flight) == 8 and (expected > 0) == keeps
        batch = above


@pytest.mark.parametrize(
    "overrides, shares", [
        (["guess=gaussian", "lanes=1"], False),
        (["guess=local", "lanes=1"], False),
        (["guess=gaussian", "space=activity", "lanes=1", "window=1"], True),
        (["guess=local", "space=activity", "lanes=1", "window=1"], True),
    ],
)  # fmt: skip
@pytest.mark.parametrize("split", [[3, 5], [2, 3, 3]])
def test_what_the_allocator_says_of_processes(
    overrides: list[str], shares: bool, split: list[int], tmp_path: Path
) -> None:
    """Same as above, of all blocks of a process in a row: each more batch takes what they keep together. Graphs of
    neighbours share what one sends to the other, so that in activity space it is less than what each block keeps by
    itself."""
    made, batch = plan(*overrides), images()
    kept = kept_by_blocks(made)
    for process, of_blocks in zip(by_process(stages(made), split), by_process(kept, split), strict=True):
        above, expected, apart = train(process, batch), kept_together(of_blocks), sum(bytes_of(of_blocks))
        assert growth(process, batch, range(1, 3), tmp_path) == 2 * expected
        assert (apart > expected) == shares and apart >= expected
        batch = above


def test_what_the_allocator_says_of_backpropagation(tmp_path: Path) -> None:
    """Graphs of one batch, in processes of 3 and 5 blocks; here they are plain modules in a row, with `autograd` alone."""
    made, x = plan("guess=end_to_end"), images().x
    kept = by_process(kept_by_blocks(made), [3, 5])
    graphs: list[torch.Tensor] = []

    def step(id: int) -> None:
        y = x.clone()
        for block in blocks:
            y = block(y)
        graphs.append(y)

    for blocks, of_blocks in zip(by_process([stage.block for stage in stages(made)], [3, 5]), kept, strict=True):
        found = allocated(step, range(2), tmp_path)
        assert found == 2 * kept_together(of_blocks) < 2 * sum(bytes_of(of_blocks))
        x = graphs[-1].detach()


def test_together_by_hand() -> None:
    """Blocks 0 and 1 share the 5 bytes at 20: once for each of the 3 batches of block 0, among which those of block 1 are."""
    kept = [{10: 7, 20: 5}, {20: 5, 30: 2}, {40: 1}]
    assert kept_together(kept) == 7 + 5 + 2 + 1
    assert kept_together(kept, [3, 2, 0]) == 3 * 7 + 3 * 5 + 2 * 2


def test_by_hand() -> None:
    """In weight space a local guess is the gradient, as large as the parameters; it is the same with every head."""
    found = {
        head: bytes_of(kept_by_blocks(plan(f"head={head}", "lanes=1"))) for head in ("cnn", "mlp", "linear", "predsim")
    }
    sizes = [sum(each.nbytes for each in stage.block.parameters()) for stage in stages(plan("lanes=1"))]
    assert set(map(tuple, found.values())) == {(*sizes[:-1], 0)}


def test_copies_of_weights() -> None:
    """In activity space with a window above 1, the weights of the batch on top."""
    keys = ("guess=gaussian", "space=activity", "lanes=1")
    sizes = [sum(each.nbytes for each in stage.block.parameters()) for stage in stages(plan(*keys))]
    one, more = bytes_of(kept_by_blocks(plan(*keys, "window=1"))), bytes_of(kept_by_blocks(plan(*keys)))
    assert [after - before for before, after in zip(one, more, strict=True)] == [*sizes[:-1], 0]


def test_asynchronous_backpropagation() -> None:
    """What backpropagation keeps of a block below the last, and with a window above 1 the weights of the batch on top; of two
    versions none, as they are there whatever is in flight."""
    keys = ("guess=end_to_end", "schedule=async_1f1b")
    graphs = bytes_of(kept_by_blocks(plan("guess=end_to_end")))
    sizes = [sum(each.nbytes for each in stage.block.parameters()) for stage in stages(plan("lanes=1"))]
    one = bytes_of(kept_by_blocks(plan(*keys, "window=1")))
    assert one == [*graphs[:-1], 0]
    more = bytes_of(kept_by_blocks(plan(*keys)))
    assert [after - before for before, after in zip(one, more, strict=True)] == [*sizes[:-1], 0]
    two = bytes_of(kept_by_blocks(plan(*keys, "stash=two", f"microbatches={SAMPLES}", "window=2")))
    assert two == one


@pytest.mark.parametrize(
    "overrides, split, expected", [
        (["target=local"], [4, 4], [0] * 8),
        (["guess=gaussian", "target=local"], [4, 4], [0] * 8),
        (["guess=gaussian"], [4, 4], [8, 7, 6, 5, 4, 3, 2, 0]),
        (["target=intermediate"], [4, 4], [2, 2, 2, 2, 2, 2, 2, 0]),
        (["window=3"], [4, 4], [3, 3, 3, 3, 3, 3, 3, 0]),
        (["guess=end_to_end", "schedule=async_1f1b"], [4, 4], [8, 7, 6, 5, 4, 3, 2, 0]),
        (["guess=end_to_end", "schedule=async_1f1b", "window=[2,2,2,1,1,1,1,1]"], [3, 5], [2, 2, 2, 1, 1, 1, 1, 0]),
        (["guess=end_to_end", "schedule=gpipe", "microbatches=4"], [3, 5], [4] * 8),
        (["guess=end_to_end", "schedule=1f1b", "microbatches=4"], [3, 5], [2, 2, 2, 1, 1, 1, 1, 1]),
        (["guess=end_to_end", "schedule=1f1b", "microbatches=8"], [1] * 8, [8, 7, 6, 5, 4, 3, 2, 1]),
        (["guess=end_to_end", "schedule=1f1b", "microbatches=4"], [2, 1, 1, 1, 1, 2], [4, 4, 4, 4, 3, 2, 1, 1]),
    ],
)  # fmt: skip
def test_in_flight(overrides: list[str], split: list[int], expected: list[int]) -> None:
    """Windows of blocks that wait; of P processes GPipe's microbatches m in each, and 1F1B's min(P - p, m) in process p."""
    assert in_flight(compose_config(["batch_size=16", "window=auto", *overrides]), split) == expected


def test_tables() -> None:
    summary = {"memory_before_training_bytes": [10, 20], "peak_memory_bytes": [15, 120]}
    assert peaks(summary) == [5, 100]
    lines = kept_table(
        {Way("local", "weight", "global"): [{1: 12_000_000, 2: 500}, {2: 500, 3: 1_000_000}, {}]}
    ).splitlines()
    assert lines[0] == "| guess | space | target | block 0 | block 1 | block 2 | all, in one process |"
    assert lines[2] == "| local | weight | global | 12.0 | 1.0 | 0 | 13.0 |"
    row = MemoryRow("ours", "32 images", [[3, 2], [0]], [1_234_560_000, 0], [2_000_000_000, 40_000])
    lines = peak_table([row]).splitlines()
    assert lines[2] == "| ours | 32 images | 3 2 | 1,234.6 | 2,000.0 | 0 | 0 | 0.040 |"
    assert len({line.count("|") for line in lines}) == 1


def test_ways_can_be_run() -> None:
    """Every guess in every space that it may be in, with both targets, and backpropagation."""
    found = ways()
    for way in found:
        compose_config(way.overrides())
    guesses = {"weight": 5, "activity": 10}
    placed = [(way.guess, way.space) for way in found if way.guess in OWN and way.guess != "end_to_end"]
    assert len(set(found)) == len(found)
    assert Counter(space for _, space in set(placed)) == guesses and len(placed) == 2 * sum(guesses.values())


@pytest.mark.parametrize("processes", [2, 8])
def test_contestants_can_be_run(processes: int, tmp_path: Path) -> None:
    wanted = contestants(processes)
    options = MemoryOptions(processes=processes, split=[8 // processes] * processes)
    Contest(tmp_path, options, ["batch_size=16"], wanted)
    peers = ["GPipe", "1F1B", "async 1F1B", "async 1F1B, two versions"]
    assert [each.name for each in wanted[-4:]] == peers and len(wanted) == 9


@pytest.mark.parametrize(
    "argument, expected", [
        ("batches=7", "batches=7: allowed: at least the 8 that may be in flight, one for each block"),
        ("epochs=0", "epochs=0: allowed: a whole number of at least 1"),
        ("processes=9", "processes=9: allowed: 2 to model.blocks=8"),
        ("split=[4,5]", "split=[4, 5]: allowed: numbers that add up to model.blocks=8"),
        ("batch_size=6", "batch_size=6: allowed: a multiple of the peers' 4 microbatches"),
    ],
)  # fmt: skip
def test_bad_input(argument: str, expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["memory", str(tmp_path / "study"), argument]) == 2
    message = capsys.readouterr().err
    assert message.startswith(f"fgpipe: {expected}") and message.count("\n") == 1
    assert not (tmp_path / "study").exists()


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A study of a small net in 2 processes: the measured peaks have room for what is kept, and grow with it."""
    names = ("random weight guess, one lane", "activity space, one lane", "GPipe", "1F1B")
    few = [each for each in contestants(2) if each.name in names]
    monkeypatch.setattr(memory, "contestants", lambda processes: few)
    small = ["model.width=0.1", "batch_size=64", "split=[2,6]", "batches=8", "head=linear", f"out={tmp_path / 'out'}"]
    assert main(["memory", str(tmp_path / "study"), *small]) == 0
    text = (tmp_path / "out" / "memory-2.md").read_text()
    for stated in ("python -m fgpipe.study memory FOLDER model.width=0.1", "blocks per process [2, 6], 8 batches"):
        assert stated in text
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("| ")]
    whole = {tuple(row[:3]): [float(cell) for cell in row[3:]] for row in rows if row[0] in ("gaussian", "end_to_end")}
    assert whole["gaussian", "weight", "global"] == [0] * 9 and min(whole["end_to_end", "weight", "global"]) > 0
    found = {row[0]: row for row in rows if row[0] in names}
    assert [found["GPipe"][i] for i in (1, 2, 5)] == ["16 images", "4 4", "4 4 4 4 4 4"]
    assert [found["1F1B"][i] for i in (1, 2, 5)] == ["16 images", "2 2", "1 1 1 1 1 1"]
    assert [found[names[1]][i] for i in (1, 2, 5)] == ["64 images", "8 7", "6 5 4 3 2 0"]
    kept, peak = ({name: [float(row[i]) for i in at] for name, row in found.items()} for at in ((3, 6), (4, 7)))
    assert kept[names[0]] == [0, 0]
    for p in range(2):
        assert kept["GPipe"][p] == pytest.approx([2, 4][p] * kept["1F1B"][p], rel=0.01)
        more = peak[names[1]][p] - peak[names[0]][p]
        assert 0.8 * kept[names[1]][p] < more < 2 * kept[names[1]][p] + 20, "heads, which a random guess has not, too"
        assert all(peak[name][p] > 0.9 * kept[name][p] for name in names)
